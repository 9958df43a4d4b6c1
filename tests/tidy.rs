//! The order of the house: which crate may know which, and how large a file may grow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate, and the crates of this project that it may use. Dependencies point one way: server → gateway → fanout →
/// eventlog, and server → consensus → eventlog; `api` and `tls` lie under all. The gateway reaches the write plane through
/// consensus's `WritePlane`. `snapshot` knows etcd's files and nothing of ours. fanout and consensus do not know each other; `transport` carries what passes between nodes.
const LAYERS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("http2", &[]),
    ("tls", &[]),
    ("snapshot", &["api"]),
    ("eventlog", &["api"]),
    ("consensus", &["api", "eventlog"]),
    ("fanout", &["api", "eventlog"]),
    ("transport", &["api", "tls", "eventlog", "consensus"]),
    ("gateway", &["api", "tls", "snapshot", "eventlog", "consensus", "fanout"]),
    ("bench", &["api", "tls"]),
    // A library for others: it reaches servers by their public API only.
    ("client", &["api", "tls"]),
    (
        "server",
        &["api", "http2", "tls", "snapshot", "eventlog", "consensus", "fanout", "transport", "gateway", "bench"],
    ),
    // Checks of what the others decode.
    ("fuzz", &["api", "http2", "tls", "snapshot", "eventlog", "consensus", "transport", "gateway", "server", "fuzz"]),
    // The program beside the library is of the same name.
    ("micro", &["consensus", "eventlog", "fanout"]),
    ("sim", &["api", "eventlog", "consensus", "fanout", "sim"]),
];

/// A file beyond this many lines wants to be two.
const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the project").to_path_buf()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in
        fs::read_dir(dir).expect("a folder of the project").map(|entry| entry.expect("a readable entry").path())
    {
        if entry.is_dir() && !entry.ends_with("target") && !entry.ends_with("node_modules") {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The names of this project's crates that `text` mentions with `before` in front of the name.
fn mentioned(text: &str, before: &str) -> BTreeSet<String> {
    text.match_indices(before)
        .map(|(at, _)| text[at + before.len()..].chars().take_while(|c| c.is_ascii_lowercase()).collect::<String>())
        .filter(|name| LAYERS.iter().any(|(layer, _)| layer == name))
        .collect()
}

/// The crates of this project that `text` names in paths.
fn paths(text: &str) -> BTreeSet<String> {
    let is_path = |name: &String| text.contains(&format!("tailwater_{name}::"));
    mentioned(text, "tailwater_").into_iter().filter(is_path).collect()
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_crate_reaches_up() {
    for (layer, allowed) in LAYERS {
        let dir = root().join("crates").join(layer);
        if !dir.exists() {
            continue;
        }
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("each crate has a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for name in mentioned(dependencies, "tailwater-") {
            assert!(allowed.contains(&name.as_str()), "crates/{layer}/Cargo.toml depends on {name}");
        }
        let mut files = Vec::new();
        // A crate's own integration tests see it from outside.
        rust_files(&dir.join("src"), &mut files);
        for file in files {
            let text = code(&file);
            for name in mentioned(&text, "use tailwater_").into_iter().chain(paths(&text)) {
                // The program of a crate uses the library beside it.
                let is_own = name == *layer && file.ends_with("src/main.rs");
                assert!(is_own || allowed.contains(&name.as_str()), "{} imports {name}", file.display());
            }
        }
    }
}

#[test]
fn every_crate_has_its_place_in_the_layers() {
    for entry in fs::read_dir(root().join("crates")).expect("crates/") {
        let name = entry.expect("a readable entry").file_name();
        assert!(LAYERS.iter().any(|(layer, _)| name == *layer), "add crates/{} to LAYERS", name.display());
    }
}

#[test]
fn no_file_is_too_long() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    for file in files {
        let lines = fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines; split it by what a reader looks for", file.display());
    }
}

#[test]
fn list_and_watch_paths_build_no_event_messages() {
    // The write plane answers with messages (prev_kv of a put); the read plane never does: it sends stored bytes.
    let mut files = Vec::new();
    rust_files(&root().join("crates/fanout/src"), &mut files);
    let gateway = root().join("crates/gateway/src");
    for name in ["range.rs", "watch.rs", "range_body.rs"] {
        files.extend(Some(gateway.join(name)).filter(|path| path.exists()));
    }
    for file in files {
        let text = code(&file);
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!product.contains("mvccpb"), "{} mentions mvccpb: events are encoded once, at apply", file.display());
    }
}

/// What the names of our metrics begin with.
const METRIC_PREFIXES: &[&str] = &["tailwater_", "etcd_", "grpc_server_", "process_", "os_fd_"];

/// The names of metrics among the words of `text`; those of a histogram's parts stand for the histogram.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| METRIC_PREFIXES.iter().any(|prefix| word.starts_with(prefix) && word.len() > prefix.len()))
        .map(|word| ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word))
        .map(str::to_owned)
        .collect()
}

/// The names of the metrics that the code has.
fn metrics_in_code() -> BTreeSet<String> {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    // A name is a whole literal: what is between two quotes.
    let is_name = |part: &&str| !part.contains(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let product = files.iter().filter(|file| file.components().any(|part| part.as_os_str() == "src"));
    let known: BTreeSet<String> = product
        .flat_map(|file| code(file).split('"').filter(is_name).flat_map(metric_names).collect::<Vec<_>>())
        .collect();
    assert!(known.len() > 50, "only {} metrics were found in the code", known.len());
    known
}

#[test]
fn operators_are_told_of_every_metric_and_of_no_other() {
    let known = metrics_in_code();
    let told = metric_names(&fs::read_to_string(root().join("docs/OPERATIONS.md")).expect("the operators' guide"));
    let missing: Vec<_> = known.difference(&told).collect();
    assert!(missing.is_empty(), "docs/OPERATIONS.md does not explain {missing:?}");
    let made_up: Vec<_> = told.difference(&known).collect();
    assert!(made_up.is_empty(), "docs/OPERATIONS.md names metrics that the code does not have: {made_up:?}");
}

/// The rows of the tables of one of the documents about compatibility: what their first cells name between backticks,
/// and what the last cell says.
fn rows(document: &str) -> Vec<(Vec<String>, String)> {
    let path = root().join("docs/compatibility").join(document);
    let text = fs::read_to_string(path).expect("a document about compatibility");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.trim_end_matches(" |").split(" | ");
        let (first, last) = (format!("`{}", cells.next()?), cells.last()?.to_owned());
        Some((first.split('`').skip(1).step_by(2).map(str::to_owned).collect(), last))
    });
    rows.collect()
}

/// Says which of `known` have no row in the document, and which rows have nothing behind them.
fn assert_rows(document: &str, known: &BTreeSet<String>, told: &BTreeSet<String>) {
    let missing: Vec<_> = known.difference(told).collect();
    assert!(missing.is_empty(), "docs/compatibility/{document} has no row of {missing:?}");
    let made_up: Vec<_> = told.difference(known).collect();
    assert!(made_up.is_empty(), "docs/compatibility/{document} has rows of {made_up:?}, which are not there");
}

#[test]
fn every_method_and_no_other_is_compared_with_etcds() {
    let text = code(&root().join("crates/gateway/src/methods.rs"));
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    // "/package.Service/Method"
    let method = |literal: &str| {
        let (service, name) = literal.strip_prefix('/')?.split_once('/')?;
        Some(format!("{}/{name}", service.rsplit('.').next()?))
    };
    let known: BTreeSet<String> = product.split('"').filter_map(method).collect();
    assert!(known.len() > 40, "only {} methods were found in the code", known.len());
    let is_method = |name: &String| name.starts_with(|c: char| c.is_ascii_uppercase()) && name.contains('/');
    let told = rows("api.md").into_iter().flat_map(|(names, _)| names).filter(is_method).collect();
    assert_rows("api.md", &known, &told);
}

#[test]
fn every_flag_of_etcds_and_no_other_has_its_row() {
    let text = code(&root().join("crates/server/src/etcd_name/table.rs"));
    let flag = |row: &str| Some(format!("--{}", row.trim_start().strip_prefix('"')?.split('"').next()?));
    let known: BTreeSet<String> = text.split("row(").skip(1).filter_map(flag).collect();
    assert!(known.len() > 100, "only {} flags were found in the code", known.len());
    // A row of a flag names it alone.
    let alone = rows("flags.md").into_iter().filter(|(names, _)| names.len() == 1).flat_map(|(names, _)| names);
    let told = alone.filter(|name| name.starts_with("--")).collect();
    assert_rows("flags.md", &known, &told);
}

#[test]
fn every_metric_of_etcds_and_no_other_is_said_to_be_there() {
    let known = metrics_in_code();
    let (own, etcds): (BTreeSet<_>, BTreeSet<_>) = known.into_iter().partition(|name| name.starts_with("tailwater_"));
    let rows = rows("metrics.md");
    let there = rows.iter().filter(|(_, says)| !says.starts_with("not there")).flat_map(|(names, _)| names);
    assert_rows("metrics.md", &etcds, &there.filter(|name| !metric_names(name).is_empty()).cloned().collect());
    // What stands in for one that is missing is there.
    let named = rows.iter().flat_map(|(_, says)| metric_names(says)).filter(|name| !name.ends_with('_'));
    let made_up: Vec<_> = named.filter(|name| name.starts_with("tailwater_") && !own.contains(name)).collect();
    assert!(made_up.is_empty(), "docs/compatibility/metrics.md refers to {made_up:?}, which are not there");
}

#[test]
fn the_guide_for_clients_shows_code_that_is_run() {
    let guide = fs::read_to_string(root().join("docs/CLIENTS.md")).expect("the guide for clients");
    let run = fs::read_to_string(root().join("tests/clients/go/informer/informer.go")).expect("the informer in Go");
    let blocks: Vec<&str> = guide.split("```go\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty(), "docs/CLIENTS.md shows no Go");
    for block in blocks {
        assert!(run.contains(block.trim_end()), "docs/CLIENTS.md shows Go that is not in informer.go:\n{block}");
    }
}
