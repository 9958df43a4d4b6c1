use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

fn config(arguments: &[&str]) -> Result<Config, String> {
    let line = std::iter::once("serve").chain(arguments.iter().copied());
    Config::from_flags(&Line::try_parse_from(line).expect("known flags").flags)
}

#[test]
fn defaults_are_etcds() {
    let config = config(&[]).expect("valid");
    assert_eq!(config.data_dir, PathBuf::from("default.tailwater"));
    assert_eq!(config.client_listens[0].address, "127.0.0.1:2379".parse().expect("an address"));
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { data_dir: directory.path().join("data"), ..config };
    let consensus = config.consensus(&DataDir::open(&config).expect("founded"));
    assert_eq!((consensus.election_ticks, consensus.lease_ttl_min), (10, 2));
    assert_eq!(consensus.request_timeout, Duration::from_secs(7));
    assert_eq!(consensus.quota_bytes, 2 << 30);
    let identity = config.founding.as_ref().expect("a member").identity;
    assert_eq!(config.fanout(identity).progress_interval, Duration::from_secs(600));
    assert_eq!(config.gateway(identity).message_bytes_max(), 2 << 20);
}

#[test]
fn a_member_that_has_begun_needs_no_flags_of_its_group() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a name in UTF-8");
    let begun = config(&["--data-dir", path]).expect("valid");
    drop(DataDir::open(&begun).expect("founded"));
    for flags in [&["--initial-cluster-state=existing"][..], &["--initial-cluster=other=http://localhost:2380"]] {
        let again = config(&[&["--data-dir", path], flags].concat()).expect("valid");
        assert!(DataDir::open(&again).expect("opened").is_existing);
    }
}

#[test]
fn a_wrong_combination_is_named_with_its_remedy() {
    let cases: &[(&[&str], &str)] = &[
        (&["--listen-client-urls=http://127.0.0.1:1"], "--advertise-client-urls is required"),
        (&["--initial-cluster=other=http://localhost:2380"], "must contain \"default\""),
        (&["--initial-cluster=default=http://localhost:1"], "make them equal"),
        (&["--initial-cluster-state=existing"], "needs --initial-cluster"),
        (&["--election-timeout=400"], "at least five times --heartbeat-interval"),
        (&["--heartbeat-interval=0"], "at least 1 ms"),
        (&["--auto-compaction-mode=x"], "must be periodic or revision"),
        (&["--auto-compaction-retention=5x"], "not a duration"),
        (&["--watch-progress-notify-interval=50ms"], "at least 100ms"),
        (&["--log-level=loud"], "must be debug"),
        (&["--listen-metrics-urls=https://127.0.0.1:1"], "must be provided for metrics secure url"),
        (&["--listen-metrics-urls=unix://127.0.0.1:1"], "must begin with http://"),
        (&["--listen-peer-urls=http://127.0.0.1"], "host and a port"),
        (&["--listen-peer-urls=https://127.0.0.1:1"], "cannot listen on TLS for 127.0.0.1:1"),
        (
            &["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"],
            "must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
        ),
        (&["--cipher-suites=TLS_FOO"], "unexpected TLS cipher suite \"TLS_FOO\""),
        (&["--tls-min-version=TLS1.1"], "unexpected TLS version \"TLS1.1\""),
        (&["--log-format=xml"], "must be json or console"),
        (&["--log-outputs=/nowhere/at/all"], "--log-outputs: \"/nowhere/at/all\""),
        (&["--stream-chunk-bytes=1"], "at least 4096"),
        (&["--roles=relay"], "must be all, consensus, gateway or fanout,gateway"),
        (&["--roles=fanout,gateway"], "needs --upstream"),
        (&["--upstream=http://127.0.0.1:1"], "for nodes without the consensus role"),
        (&["--roles=consensus", "--upstream=http://127.0.0.1:1"], "for nodes without the consensus role"),
        (&["--roles=fanout,gateway", "--upstream=127.0.0.1:1"], "must begin with http://"),
        (&["--prefixes=/a/"], "--prefixes is for fanouts"),
        (&["--roles=fanout,gateway", "--upstream=http://h:1", "--prefixes=/a/,"], "names an empty prefix"),
        (
            &["--roles=fanout,gateway", "--upstream=http://h:1", "--initial-advertise-peer-urls=http://h:2"],
            "without --listen-peer-urls",
        ),
        (&["--reported-version=3"], "major.minor.patch"),
    ];
    for (arguments, part) in cases {
        let reason = config(arguments).expect_err("refused");
        assert!(reason.contains(part), "{arguments:?}: {reason}");
        assert!(!reason.contains('\n'), "{reason}");
    }
}

#[test]
fn retention_is_hours_a_duration_or_revisions() {
    let mode = |arguments: &[&str]| config(arguments).expect("valid").auto_compaction;
    assert_eq!(mode(&[]), AutoCompaction::Off);
    let hour = AutoCompaction::Periodic(Duration::from_secs(3600));
    assert_eq!(mode(&["--auto-compaction-retention=1"]), hour);
    assert_eq!(mode(&["--auto-compaction-retention=60m"]), hour);
    let revision = ["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"];
    assert_eq!(mode(&revision), AutoCompaction::Revisions(1000));
}

#[test]
fn what_a_node_serves_follows_from_its_roles() {
    let fanout = config(&["--roles=fanout,gateway", "--upstream=http://b:2,http://a:1"]).expect("valid");
    assert_eq!(fanout.upstream, ["http://b:2", "http://a:1"]);
    assert!(fanout.founding.is_none() && fanout.peer_listens.is_empty() && fanout.peer_urls.is_empty());
    assert_eq!(fanout.client_urls, ["http://localhost:2379"]);
    let relay = ["--roles=fanout,gateway", "--upstream=http://a:1", "--listen-peer-urls=http://127.0.0.1:7"];
    assert_eq!(config(&relay).expect("valid").peer_urls, ["http://127.0.0.1:7"]);
    let member = config(&["--roles=consensus"]).expect("valid");
    assert!(member.client_listens.is_empty() && member.client_urls.is_empty());
    assert_eq!(member.peer_urls, ["http://localhost:2380"]);
}
