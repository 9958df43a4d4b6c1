use super::*;

fn ask(arguments: &[&str], environment: &[(&str, &str)]) -> Asked {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    read(&arguments, &environment, |path| match path {
        "there" => Ok("name: f\nwhatever: 1\nforce: true\n".into()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    })
}

fn line(arguments: &[&str], environment: &[(&str, &str)]) -> (Vec<String>, Vec<Note>) {
    match ask(arguments, environment) {
        Asked::Serve(line, notes) => (line, notes),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> Refused {
    match ask(arguments, environment) {
        Asked::Refused(refused) => refused,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn misspelt(arguments: &[&str]) -> String {
    match ask(arguments, &[]) {
        Asked::Misspelt(text) => text.lines().next().unwrap_or_default().to_owned(),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn every_flag_that_claims_to_be_ours_under_another_name_is() {
    for row in table::ROWS {
        if let Meaning::As(to) = row.meaning {
            assert!(is_ours(to), "--{} means --{to}, which does not exist", row.name);
        }
        assert_eq!(table::ROWS.iter().filter(|other| other.name == row.name).count(), 1, "{} twice", row.name);
    }
    for (gate, flag) in table::GATES {
        assert!(flag.is_none_or(is_ours), "{gate}");
    }
}

#[test]
fn flags_have_one_dash_or_two_and_the_last_wins() {
    let (line, notes) = line(&["-name", "a", "--name=b", "-strict-reconfig-check", "--auto-tls=F"], &[]);
    assert_eq!(line, ["--data-dir=b.etcd", "--auto-tls=false", "--name=b", "--strict-reconfig-check=true"]);
    assert_eq!(notes, []);
}

#[test]
fn wrong_spelling_is_told_in_gos_words() {
    for (arguments, reason) in [
        (&["--nope=1"][..], "flag provided but not defined: -nope"),
        (&["--max-txn-ops"], "flag needs an argument: -max-txn-ops"),
        (&["--max-txn-ops=x"], "invalid value \"x\" for flag -max-txn-ops: parse error"),
        (&["--strict-reconfig-check=maybe"], "invalid boolean value \"maybe\" for -strict-reconfig-check: parse error"),
        (&["---x"], "bad flag syntax: ---x"),
        (&["--initial-cluster-state=foo"], "invalid value \"foo\" for flag -initial-cluster-state: invalid value"),
        (
            &["--feature-gates=Foo=true"],
            "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
        ),
    ] {
        assert_eq!(misspelt(arguments), reason);
    }
    assert_eq!(refused(&["foo"], &[]).error, "\"foo\" is not a valid flag");
}

#[test]
fn a_variable_counts_unless_a_flag_says_the_same() {
    let (line, notes) = line(&["--max-txn-ops=9"], &[("ETCD_NAME", "v"), ("ETCD_FOO", "1"), ("PATH", "/")]);
    assert_eq!(line, ["--data-dir=v.etcd", "--max-txn-ops=9", "--name=v"]);
    let expected = [
        Note::Recognized { variable: "ETCD_NAME".into(), value: "v".into() },
        Note::Unrecognized { variable: "ETCD_FOO=1".into() },
    ];
    assert_eq!(notes, expected);
    let both = refused(&["--name=x"], &[("ETCD_NAME", "v")]);
    assert!(both.message.starts_with("conflicting environment variable is shadowed"), "{both:?}");
    assert_eq!(both.variable, "ETCD_NAME");
    let wrong = refused(&[], &[("ETCD_STRICT_RECONFIG_CHECK", "maybe")]);
    assert_eq!(wrong.error, "invalid value \"maybe\" for ETCD_STRICT_RECONFIG_CHECK: parse error");
}

#[test]
fn flags_of_the_past_and_without_meaning_are_told() {
    let (line, notes) = line(
        &[
            "--experimental-watch-progress-notify-interval=5s",
            "--max-wals=5",
            "--feature-gates=InitialCorruptCheck=true",
        ],
        &[],
    );
    let expected = ["--data-dir=default.etcd", "--watch-progress-notify-interval=5s", "--initial-corrupt-check=true"];
    assert_eq!(line, expected);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!(
        refused(&["--discovery-srv=example.com"], &[]).error,
        "--discovery-srv: discovery is not served; name the members with --initial-cluster"
    );
    assert!(matches!(ask(&["--enable-v2=false", "--discovery="], &[]), Asked::Serve(..)));
    assert!(refused(&["--enable-v2"], &[]).error.contains("no v2 API"));
}

#[test]
fn a_configuration_file_replaces_flags_and_variables() {
    for (arguments, environment) in
        [(&["--config-file=there", "--name=x"][..], &[][..]), (&["--name=x"], &[("ETCD_CONFIG_FILE", "there")])]
    {
        let (line, notes) = line(arguments, environment);
        assert_eq!(line, ["--data-dir=f.etcd", "--name=f"]);
        assert_eq!(notes[..2], [Note::File { path: "there".into() }, Note::Unknown { key: "whatever".into() }]);
    }
    assert_eq!(refused(&["--config-file=nope"], &[]).error, "open nope: no such file or directory");
}

#[test]
fn versions_and_help_are_printed() {
    let Asked::Print(text) = ask(&["--version"], &[]) else { panic!("not printed") };
    let first = text.lines().next().unwrap_or_default();
    assert_eq!(first, format!("etcd Version: {}", flags::REPORTED_VERSION));
    assert_eq!(text.lines().count(), 4);
    let Asked::Print(text) = ask(&["--help"], &[]) else { panic!("not printed") };
    assert!(text.contains("--listen-client-urls"), "{text}");
    assert!(misspelt(&["grpc-proxy", "start"]).contains("--roles=gateway"));
}

#[test]
fn only_the_name_makes_it_etcd() {
    assert!(is_meant_by("/usr/local/bin/etcd") && is_meant_by("etcd"));
    assert!(!is_meant_by("/etcd/tailwater") && !is_meant_by("etcdctl") && !is_meant_by(""));
}

#[test]
fn every_flag_has_its_row_in_the_documents() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility/flags.md");
    let document = std::fs::read_to_string(path).expect("a document of the project");
    for row in table::ROWS {
        let line = document.lines().find(|line| line.starts_with(&format!("| `--{}` |", row.name)));
        let line = line.unwrap_or_else(|| panic!("--{} has no row in docs/compatibility/flags.md", row.name));
        let says_so = match row.meaning {
            Meaning::Nothing(_) => line.contains("accepted, without effect"),
            Meaning::Refused(..) => line.contains("refused"),
            Meaning::As(to) => line.contains(&format!("`--{to}`")),
            Meaning::Ours => !line.contains("without effect") && !line.contains("| refused"),
        };
        assert!(says_so, "{:?} is told otherwise: {line}", row.meaning);
    }
}
