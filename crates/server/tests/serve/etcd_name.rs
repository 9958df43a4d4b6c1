//! The program under etcd's name.

use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{free_port, get, outcome, tailwater, wait};

/// `etcd` with these arguments, in `dir`, and no variables from outside.
fn etcd(dir: &Path, arguments: &[&str]) -> Command {
    let link = dir.join("etcd");
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_tailwater"), &link).unwrap();
    }
    let mut command = Command::new(&link);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TAILWATER_") || name.starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A running `etcd`; killed when dropped.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(dir: &Path, mut command: Command) -> Self {
        let log = dir.join("log");
        command.stderr(std::fs::File::create(&log).unwrap());
        let running = Self { child: command.spawn().unwrap(), log };
        let begun = Instant::now();
        while !running.log().contains("ready to serve client requests") {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", running.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn wrong_command_lines_end_as_etcds_do() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| outcome(etcd(dir.path(), arguments));
    let (code, text) = run(&["--nope"]);
    assert_eq!((code, text.lines().next()), (Some(2), Some("flag provided but not defined: -nope")));
    let (code, text) = run(&["--listen-client-urls=http://127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&"warn".into(), &"failed to verify flags".into()));
    assert_eq!(line["error"], "--advertise-client-urls is required when --listen-client-urls is set explicitly");
    let mut both = etcd(dir.path(), &["--name=a"]);
    both.env("ETCD_NAME", "b");
    let (code, text) = outcome(both);
    assert_eq!(code, Some(1));
    assert!(text.contains("conflicting environment variable is shadowed by corresponding command-line flag"), "{text}");
    assert!(text.contains("\"environment-variable\":\"ETCD_NAME\""), "{text}");
}

#[test]
fn its_version_is_an_etcd_version() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = etcd(dir.path(), &["--version"]);
    let output = command.stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("etcd Version: 3."), "{text}");
    // Not so under its own name.
    let output = tailwater(&["--version"]).stdout(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("tailwater "));
}

/// Flags with one dash, variables and a configuration file; a signal ends the process as it would end any other.
#[test]
fn it_serves_by_flags_variables_or_a_file_and_dies_of_its_signal() {
    let (client, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
    let port: u16 = client.rsplit(':').next().unwrap().parse().unwrap();
    for by_file in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut command;
        if by_file {
            let text = format!(
                "name: m\nlisten-client-urls: {client}\nadvertise-client-urls: {client}\nlisten-peer-urls: {peer}\n\
                 initial-advertise-peer-urls: {peer}\ninitial-cluster: m={peer}\nlog-outputs: [stderr]\n\
                 watch-progress-notify-interval: 5000000000\nwal-dir:\nwhatever: 1\n"
            );
            std::fs::write(dir.path().join("etcd.conf.yml"), text).unwrap();
            command = etcd(dir.path(), &["--config-file", "etcd.conf.yml"]);
        } else {
            let list = format!("-listen-client-urls={client}");
            let arguments = [&list, "-advertise-client-urls", &client, "-listen-peer-urls", &peer, "--max-wals=5"];
            command = etcd(dir.path(), &arguments);
            command.env("ETCD_NAME", "m").env("ETCD_INITIAL_CLUSTER", format!("m={peer}")).env("ETCD_PORT", "x");
            command.env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer);
        }
        let mut running = Running::start(dir.path(), command);
        assert_eq!(get(port, "/health").body, "{\"health\":\"true\",\"reason\":\"\"}");
        assert!(dir.path().join("m.etcd").is_dir(), "etcd's default directory");
        let log = running.log();
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["level"] != "error", "{line}");
        }
        let told = if by_file { "\"key\":\"whatever\"" } else { "\"environment-variable\":\"ETCD_PORT=x\"" };
        assert!(log.contains(told), "{log}");
        let sent = Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(wait(&mut running.child).signal(), Some(15), "{}", running.log());
    }
}
