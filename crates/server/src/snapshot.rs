//! `tailwater snapshot save|status|restore`: backups in etcd's format, and the way from an etcd to here.

use std::process::ExitCode;

use crate::flags::SnapshotCommand;
use crate::telemetry::{self, LogConfig};

mod restore;
mod save;
mod status;

/// Runs one of them.
#[expect(clippy::print_stderr, reason = "a command for a terminal")]
pub(crate) fn run(command: &SnapshotCommand) -> ExitCode {
    telemetry::start_log(&LogConfig::default());
    let done = match command {
        SnapshotCommand::Save(flags) => save::run(flags),
        SnapshotCommand::Status(flags) => status::run(flags),
        SnapshotCommand::Restore(flags) => restore::run(flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Bytes as etcd's tools print them: in thousands, one digit behind the point below ten.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let rounded = (value * 10.0 + 0.5).floor() / 10.0;
    if rounded < 10.0 { format!("{rounded:.1} {unit}") } else { format!("{rounded:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_printed_as_etcds_tools_do() {
        for (bytes, text) in [(9, "9 B"), (999, "999 B"), (20_480, "20 kB"), (1_500, "1.5 kB"), (12_345_678, "12 MB")] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
