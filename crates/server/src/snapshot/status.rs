//! `tailwater snapshot status`: what `etcdutl snapshot status` prints.

use std::fs::File;

use anyhow::Context as _;
use tailwater_snapshot::{Limits, SnapshotReader, SnapshotStatus};

use super::human_bytes;
use crate::flags::SnapshotStatusFlags;

/// Looks through the whole file: its pages, its rows, and its checksum where it has one.
///
/// # Errors
/// The file can't be read, or is damaged.
#[expect(clippy::print_stdout, reason = "a command for a terminal")]
pub(super) fn run(flags: &SnapshotStatusFlags) -> anyhow::Result<()> {
    let named = || flags.file.display().to_string();
    let file = File::open(&flags.file).with_context(named)?;
    let reader = SnapshotReader::open(file, Limits::default()).with_context(named)?;
    if reader.has_trailer() {
        reader.verify_trailer().with_context(named)?;
    }
    let status = reader.status().with_context(named)?;
    println!("{}", render(&status, &flags.write_out));
    Ok(())
}

fn render(status: &SnapshotStatus, format: &str) -> String {
    let SnapshotStatus { hash, revision, keys, database_bytes, storage_version } = status;
    let version = storage_version.as_deref().unwrap_or_default();
    if format == "json" {
        return format!(
            "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{keys},\"totalSize\":{database_bytes},\"version\":\"{version}\"}}"
        );
    }
    let fields =
        [format!("{hash:x}"), revision.to_string(), keys.to_string(), human_bytes(*database_bytes), version.to_owned()];
    if format == "table" { table(&fields) } else { fields.join(", ") }
}

fn table(fields: &[String; 5]) -> String {
    const HEADS: [&str; 5] = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
    let widths: Vec<usize> = HEADS.iter().zip(fields).map(|(head, field)| head.len().max(field.len())).collect();
    let line = widths.iter().fold("+".to_owned(), |line, width| line + &"-".repeat(width + 2) + "+");
    // Heads in the middle, fields to the right, as etcd's tables have them.
    let heads =
        HEADS.iter().zip(&widths).fold("|".to_owned(), |row, (head, width)| row + &format!(" {head:^width$} |"));
    let row =
        fields.iter().zip(&widths).fold("|".to_owned(), |row, (field, width)| row + &format!(" {field:>width$} |"));
    format!("{line}\n{heads}\n{line}\n{row}\n{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_printed_as_etcdutl_does() {
        // What etcdutl 3.6.16 printed of a snapshot.
        let status = SnapshotStatus {
            hash: 2_540_781_912,
            revision: 4,
            keys: 3,
            database_bytes: 20_480,
            storage_version: Some("3.6.0".to_owned()),
        };
        assert_eq!(render(&status, "simple"), "97714158, 4, 3, 20 kB, 3.6.0");
        let json = r#"{"hash":2540781912,"revision":4,"totalKey":3,"totalSize":20480,"version":"3.6.0"}"#;
        assert_eq!(render(&status, "json"), json);
        let table = "\
+----------+----------+------------+------------+---------+
|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE | VERSION |
+----------+----------+------------+------------+---------+
| 97714158 |        4 |          3 |      20 kB |   3.6.0 |
+----------+----------+------------+------------+---------+";
        assert_eq!(render(&status, "table"), table);
    }
}
