//! A survey as text.

use std::fmt::Write as _;

use super::{Survey, Surveyed};
use crate::status::Slow;

/// Streams that are shown.
const STREAMS_SHOWN_MAX: usize = 20;

/// For a terminal.
pub(crate) fn render(survey: &Survey) -> String {
    let leader = match survey.nodes.iter().find(|surveyed| surveyed.is_leader) {
        Some(surveyed) => surveyed.node.name.clone(),
        None if survey.leader.is_empty() => "none".into(),
        None => survey.leader.clone(),
    };
    let mut out = String::new();
    put(
        &mut out,
        format_args!(
            "cluster {}, leader {leader}, term {}, revision {}\n\n",
            survey.cluster_id, survey.term, survey.revision
        ),
    );
    let mut rows = vec![
        [
            "NODE",
            "ID",
            "ROLES",
            "STATE",
            "REVISION",
            "LAG",
            "CORE AGE",
            "STREAMS",
            "WATCHERS",
            "BEHIND",
            "HELD",
            "KEYS",
            "RSS",
            "CLIENT URL",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(survey.nodes.iter().map(row));
    put_columns(&mut out, &rows);
    let slowest = survey.slowest(STREAMS_SHOWN_MAX);
    if !slowest.is_empty() {
        out.push_str("\nslowest watch streams\n");
        let mut rows = vec![["NODE", "PEER", "RANGE", "BACKLOG", "HELD"].map(str::to_owned).to_vec()];
        rows.extend(slowest.into_iter().map(slow_row));
        put_columns(&mut out, &rows);
    }
    for error in &survey.errors {
        put(&mut out, format_args!("\nno answer from {}: {}\n", error.endpoint, error.reason));
    }
    out
}

fn row(surveyed: &Surveyed) -> Vec<String> {
    let node = &surveyed.node;
    let indent = match surveyed.depth {
        0 => String::new(),
        depth => format!("{}└ ", "  ".repeat(depth - 1)),
    };
    let load = &node.load;
    let age = if surveyed.depth == 0 { "-".into() } else { format!("{}ms", node.core_age_ms) };
    let held = match load.held_bytes_max {
        0 => "-".into(),
        max => format!("{} of {}", bytes(load.held_bytes), bytes(max)),
    };
    let mut row = vec![
        format!("{indent}{}", node.name),
        node.id.clone(),
        node.roles.join(","),
        surveyed.state().into(),
        node.revision.to_string(),
        surveyed.lag_revisions.to_string(),
        age,
    ];
    row.extend([load.streams, load.watchers, load.watchers_behind].map(|count| count.to_string()));
    row.push(held);
    row.push(load.keys.to_string());
    row.push(bytes(load.resident_bytes));
    row.push(node.client_urls.first().cloned().unwrap_or_else(|| "-".into()));
    row
}

/// Without client and range where they were not told.
fn slow_row((surveyed, stream): (&Surveyed, &Slow)) -> Vec<String> {
    let told = |text: String| if text.is_empty() { "-".into() } else { text };
    let range = format!("{} {}", stream.range.start, stream.range.end).trim().to_owned();
    let backlog = stream.backlog_revisions.to_string();
    vec![surveyed.node.name.clone(), told(stream.peer.clone()), told(range), backlog, bytes(stream.held_bytes)]
}

/// Left aligned, two blanks between columns.
fn put_columns(out: &mut String, rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        put(out, format_args!("{}\n", line.join("  ").trim_end()));
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

/// Three digits and a unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    match (unit, whole) {
        (0, _) | (_, 100..) => format!("{whole} {}", UNITS[unit]),
        _ => format!("{whole}.{} {}", rest * 10 / 1024, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_short() {
        let shown = [0, 1023, 1536, 150 << 10, (5 << 30) + (1 << 29)].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "150 KiB", "5.5 GiB"]);
    }
}
