//! Flags and variables: what is refused, how it is said, and which of them wins.

use std::net::TcpListener;
use std::process::Stdio;

use crate::support::{Server, free_port, get, outcome, serve_flags, tailwater};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    outcome(tailwater(arguments))
}

#[test]
fn a_wrong_value_is_one_sentence_and_exit_code_1() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["--max-txn-ops=x"],
            "error: invalid value 'x' for '--max-txn-ops <MAX_TXN_OPS>': invalid digit found in string\n",
        ),
        (
            &["--listen-client-urls=http://127.0.0.1:1"],
            "error: --advertise-client-urls is required when --listen-client-urls is set explicitly\n",
        ),
        (
            &["--listen-peer-urls=https://127.0.0.1:1"],
            "error: cannot listen on TLS for 127.0.0.1:1: KeyFile and CertFile are not presented\n",
        ),
        (
            &["--listen-metrics-urls=http://127.0.0.1"],
            "error: --listen-metrics-urls: \"http://127.0.0.1\" must name a host and a port and no path, as in http://10.0.0.1:2379\n",
        ),
        (
            &["--initial-cluster=other=http://127.0.0.1:2380"],
            "error: --initial-cluster must contain \"default\"; add default=<its peer URL> or change --name\n",
        ),
        (&["--initial-cluster-state=x"], "error: --initial-cluster-state: \"x\" must be new or existing\n"),
        (&["--auto-compaction-mode=x"], "error: --auto-compaction-mode: \"x\" must be periodic or revision\n"),
        (
            &["--election-timeout=200"],
            "error: --election-timeout (200 ms) must be at least five times --heartbeat-interval (100 ms)\n",
        ),
        (
            &["--watch-progress-notify-interval=50ms"],
            "error: --watch-progress-notify-interval must be at least 100ms, or 0 for 10m\n",
        ),
        (&["--log-level=loud"], "error: --log-level: \"loud\" must be debug, info, warn, error, panic or fatal\n"),
    ];
    for (flags, sentence) in cases {
        let arguments = [&["serve"], *flags].concat();
        assert_eq!(run(&arguments), (Some(1), (*sentence).to_owned()), "{flags:?}");
    }
}

#[test]
fn an_unknown_flag_is_exit_code_2() {
    let (code, text) = run(&["serve", "--nope"]);
    assert_eq!(code, Some(2));
    assert!(text.starts_with("error: unexpected argument '--nope' found\n"), "{text}");
    assert_eq!(run(&[]).0, Some(2));
}

#[test]
fn help_and_version_go_to_stdout() {
    for arguments in [&["--version"][..], &["serve", "--help"]] {
        let output = tailwater(arguments).stdout(Stdio::piped()).output().unwrap();
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
        assert!(!output.stdout.is_empty());
    }
}

/// The last line of a log that ends with why the server did not start.
fn reason(log: &str) -> &str {
    let line = log.lines().last().unwrap();
    assert!(line.starts_with("{\"level\":\"error\""), "{log}");
    line.split("\"reason\":\"").nth(1).unwrap().trim_end_matches("\"}")
}

#[test]
fn a_taken_port_is_said_and_nothing_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let home = tempfile::tempdir().unwrap();
    let arguments = serve_flags(port, &home.path().join("data"));
    let (code, log) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(1));
    let wanted = format!("cannot listen on 127.0.0.1:{port}; free it or change the listen URL: Address already in use");
    assert!(reason(&log).starts_with(&wanted), "{log}");
    assert!(!home.path().join("data/raft").exists());
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    // Not a missing permission: root, who runs many a test, has them all.
    std::fs::write(home.path().join("file"), "").unwrap();
    let data_dir = home.path().join("file/data");
    let arguments = serve_flags(free_port(), &data_dir);
    let (code, log) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(1));
    let wanted = format!("data directory {}: Not a directory", data_dir.display());
    assert!(reason(&log).starts_with(&wanted), "{log}");
    assert!(reason(&log).ends_with("make it writable or change --data-dir"), "{log}");
}

#[test]
fn a_second_server_on_one_data_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let first = Server::start_in(home.path(), &[]);
    let data_dir = home.path().join("data");
    let arguments = serve_flags(free_port(), &data_dir);
    let (code, log) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(1));
    let wanted =
        format!("data directory {} is used by another process; stop that one or change --data-dir", data_dir.display());
    assert_eq!(reason(&log), wanted);
    assert_eq!(get(first.port, "/health").status, 200);
}

#[test]
fn a_flag_wins_over_our_variable_which_wins_over_etcds() {
    let home = tempfile::tempdir().unwrap();
    let mut arguments = serve_flags(free_port(), &home.path().join("data"));
    // Refused values show which one was read.
    let mut read = |flag: Option<&str>, variables: &[(&str, &str)]| {
        arguments.truncate(4);
        arguments.extend(flag.map(str::to_owned));
        let mut command = tailwater(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.envs(variables.iter().copied());
        outcome(command)
    };
    let sentence = |level: &str| {
        let text = format!("error: --log-level: {level:?} must be debug, info, warn, error, panic or fatal\n");
        (Some(1), text)
    };
    let (etcds, ours) = (("ETCD_LOG_LEVEL", "etcds"), ("TAILWATER_LOG_LEVEL", "ours"));
    assert_eq!(read(None, &[etcds]), sentence("etcds"));
    assert_eq!(read(None, &[etcds, ours]), sentence("ours"));
    assert_eq!(read(Some("--log-level=flags"), &[etcds, ours]), sentence("flags"));
}
