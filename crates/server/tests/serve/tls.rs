//! TLS: who is let in, what is said of those who are not, and certificates that change under load.

mod pki;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::ExtendedKeyUsagePurpose;
use tailwater_api::etcdserverpb as pb;
use tailwater_tls::{ClientTls, Protocol};
use tonic::transport::{Channel, Endpoint};

use self::pki::{Authority, CLIENT, Files, NODE, Wanted, replace};
use crate::support::{Server, free_port};

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection, handshake included; HTTP/2 speaks first, so a refusal in TLS 1.3 may come with the first call.
async fn connect(port: u16, tls: &ClientTls) -> Result<Channel, tonic::transport::Error> {
    let tls = tls.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = tls.clone();
        async move {
            let stream = tailwater_tls::dial("127.0.0.1", port, Some(&tls), Protocol::Http2).await;
            stream.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().timeout(PATIENCE);
    endpoint.connect_with_connector(connector).await
}

async fn put(port: u16, tls: &ClientTls, key: &str) -> Result<i64, String> {
    let channel = connect(port, tls).await.map_err(|error| format!("{error:?}"))?;
    let request = pb::PutRequest { key: key.as_bytes().to_vec().into(), ..Default::default() };
    let answer = pb::kv_client::KvClient::new(channel).put(request).await.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().header.unwrap().revision)
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// A server whose clients need a certificate of `authority`; the URL on its port says so.
fn start(home: &Path, authority: &Authority, own: &Files, more: &[String]) -> Server {
    let port = free_port();
    let (url, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    let mut arguments = vec![
        "serve".to_owned(),
        flag("data-dir", &home.join("data")),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        flag("cert-file", &own.cert),
        flag("key-file", &own.key),
        flag("trusted-ca-file", &authority.file()),
        "--client-cert-auth".to_owned(),
    ];
    arguments.extend(more.iter().cloned());
    let mut server = Server::spawn(port, home.join("log"), &arguments);
    server.wait_ready();
    server
}

/// Lines of the log about connections that were not let in.
fn rejections(server: &Server, endpoint: &str) -> Vec<serde_json::Value> {
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["msg"] == format!("rejected connection on {endpoint} endpoint")).collect()
}

/// The line with a reason that begins so and has this part; the client may have tried more than once.
async fn wait_for_rejection(server: &Server, endpoint: &str, (begin, part): (&str, &str)) -> serde_json::Value {
    let is_it = |line: &serde_json::Value| {
        let reason = line["error"].as_str().unwrap();
        reason.starts_with(begin) && reason.contains(part)
    };
    let waited = async {
        loop {
            if let Some(line) = rejections(server, endpoint).into_iter().find(is_it) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("no line {begin}…{part}: {}", server.log()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_good_certificate_are_let_in_and_the_others_are_named() {
    let home = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(home.path(), "ca"), Authority::new(home.path(), "other"));
    let node = ours.sign("node", &NODE);
    let crl = home.path().join("crl.der");
    std::fs::write(&crl, ours.revoke(0x0bad)).unwrap();
    let more = [flag("client-crl-file", &crl)];
    let server = start(home.path(), &ours, &node, &more);
    let good = ours.client(Some(&ours.sign("alice", &CLIENT)));
    assert_eq!(put(server.port, &good, "a").await, Ok(2));
    let period = "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time ";
    let cases: [(&str, Option<Files>, (&str, &str)); 6] = [
        ("none", None, ("tls: client didn't provide a certificate", "")),
        (
            "wrong authority",
            Some(theirs.sign("wrong", &CLIENT)),
            ("tls: failed to verify certificate: x509: certificate signed by unknown authority", ""),
        ),
        ("expired", Some(ours.sign("expired", &Wanted { days: (-3, -1), ..CLIENT })), (period, "Z is after 2")),
        ("not yet valid", Some(ours.sign("early", &Wanted { days: (1, 3), ..CLIENT })), (period, "Z is before 2")),
        (
            "for servers",
            Some(ours.sign("server", &Wanted { usages: &[ExtendedKeyUsagePurpose::ServerAuth], ..CLIENT })),
            ("tls: failed to verify certificate: x509: certificate specifies an incompatible key usage", ""),
        ),
        (
            "revoked",
            Some(ours.sign("revoked", &Wanted { serial: 0x0bad, hosts: &["127.0.0.1", "h"], ..CLIENT })),
            ("transport: certificate serial 0bad revoked", ""),
        ),
    ];
    for (name, own, reason) in &cases {
        let refused = put(server.port, &ours.client(own.as_ref()), "b").await;
        assert!(refused.is_err(), "{name}: {refused:?}");
        let line = wait_for_rejection(&server, "client", *reason).await;
        assert!(line["remote-addr"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert_eq!(line["server-name"], "", "an address is no name: {line}");
    }
    let last = wait_for_rejection(&server, "client", cases[5].2).await;
    assert_eq!(last["ip-addresses"], serde_json::json!(["127.0.0.1"]));
    assert_eq!(last["dns-names"], serde_json::json!(["h"]));
    // Whoever does not trust the server's certificate goes away, and says so.
    assert!(put(server.port, &theirs.client(Some(&node)), "b").await.is_err());
    wait_for_rejection(&server, "client", ("remote error: tls: unknown certificate authority", "")).await;
    // Nothing but what the good client has written is there.
    assert_eq!(put(server.port, &good, "a").await, Ok(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_serves_both_schemes_and_a_secure_one_is_not_entered_without_tls() {
    let home = tempfile::tempdir().unwrap();
    let ours = Authority::new(home.path(), "ca");
    let node = ours.sign("node", &NODE);
    let both = free_port();
    let urls = format!("http://127.0.0.1:{both},https://127.0.0.1:{both}");
    let port = free_port();
    let more = [format!("--listen-client-urls={urls},https://127.0.0.1:{port}")];
    let server = start(home.path(), &ours, &node, &more);
    let good = ours.client(Some(&ours.sign("alice", &CLIENT)));
    assert_eq!(crate::support::get(both, "/version").status, 200);
    assert_eq!(put(both, &good, "a").await, Ok(2));
    assert_eq!(put(port, &good, "a").await, Ok(3));
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await;
    if let Ok(channel) = plain {
        let mut kv = pb::kv_client::KvClient::new(channel);
        assert!(kv.put(pb::PutRequest { key: "a".into(), ..Default::default() }).await.is_err());
    }
    wait_for_rejection(&server, "client", ("tls: first record does not look like a TLS handshake", "")).await;
}

/// Files change while clients connect again and again: no connection fails, and afterwards only the new ones count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_rotated_under_load_without_a_failed_request() {
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(home.path(), "old"), Authority::new(home.path(), "new"));
    let bundle = Authority::new(home.path(), "bundle");
    let own = old.sign("node", &NODE);
    replace(&bundle.file(), &std::fs::read(old.file()).unwrap());
    let server = start(home.path(), &bundle, &own, &[]);
    let client = old.sign("client", &CLIENT);
    let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 3]));
    let tls = bundle.client(Some(&client));
    let kept = connect(server.port, &tls).await.unwrap();
    let mut load = tokio::task::JoinSet::new();
    for task in 0..calls.len() {
        let (is_over, calls, tls, port, kept) =
            (is_over.clone(), calls.clone(), tls.clone(), server.port, kept.clone());
        load.spawn(async move {
            let mut kv = pb::kv_client::KvClient::new(kept);
            while !is_over.load(Ordering::Relaxed) {
                // On a new connection, and on one that lives through all of it.
                put(port, &tls, "a").await.unwrap_or_else(|error| panic!("task {task}: {error}"));
                kv.put(pb::PutRequest { key: "b".into(), ..Default::default() }).await.unwrap();
                calls[task].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // Of every task: none may still be in a handshake that began before a change when the next one is made.
    let some_calls = || async {
        for calls in calls.iter() {
            let goal = calls.load(Ordering::Relaxed) + 3;
            while calls.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    // As one does it: first both authorities are trusted, then certificates change, then the old authority goes.
    let both = [std::fs::read(old.file()).unwrap(), std::fs::read(new.file()).unwrap()].concat();
    tokio::time::timeout(PATIENCE, async {
        some_calls().await;
        replace(&bundle.file(), &both);
        some_calls().await;
        for serial in 8..12 {
            own.become_like(&new.sign("next", &Wanted { serial, ..NODE }));
            client.become_like(&new.sign("next-client", &Wanted { serial, ..CLIENT }));
            some_calls().await;
        }
        replace(&bundle.file(), &std::fs::read(new.file()).unwrap());
        some_calls().await;
    })
    .await
    .unwrap_or_else(|_| panic!("the load stands still: {}", server.log()));
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    let late = old.sign("late", &CLIENT);
    assert!(put(server.port, &new.client(Some(&late)), "a").await.is_err(), "the old authority is gone");
    // Half a change is no change: the key is of another certificate.
    replace(&own.key, &std::fs::read(&late.key).unwrap());
    put(server.port, &tls, "a").await.unwrap();
    assert!(server.log().contains("changed TLS files can't be used"), "{}", server.log());
}

/// Three members, a fanout and a gateway, all with TLS on every URL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_fanouts_and_gateways_speak_tls_and_refuse_strangers() {
    let home = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(home.path(), "ca"), Authority::new(home.path(), "other"));
    let node = ours.sign("node", &NODE);
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let cluster: Vec<_> =
        ports.iter().enumerate().map(|(at, (_, peer))| format!("m{at}=https://127.0.0.1:{peer}")).collect();
    let security = |client: u16| {
        vec![
            format!("--listen-client-urls=https://127.0.0.1:{client}"),
            format!("--advertise-client-urls=https://127.0.0.1:{client}"),
            flag("cert-file", &node.cert),
            flag("key-file", &node.key),
            flag("trusted-ca-file", &ours.file()),
            flag("peer-cert-file", &node.cert),
            flag("peer-key-file", &node.key),
            flag("peer-trusted-ca-file", &ours.file()),
            "--peer-client-cert-auth".to_owned(),
            "--peer-cert-allowed-cn=node,other".to_owned(),
        ]
    };
    let mut members: Vec<Server> = Vec::new();
    for (at, (client, peer)) in ports.iter().enumerate() {
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--name=m{at}"),
            flag("data-dir", &home.path().join(format!("data{at}"))),
            format!("--listen-peer-urls=https://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=https://127.0.0.1:{peer}"),
            format!("--initial-cluster={}", cluster.join(",")),
        ];
        arguments.extend(security(*client));
        members.push(Server::spawn(*client, home.path().join(format!("log{at}")), &arguments));
    }
    members.iter_mut().for_each(Server::wait_ready);
    let upstream = format!("--upstream=https://127.0.0.1:{}", ports[1].1);
    let mut others = Vec::new();
    for roles in ["fanout,gateway", "gateway"] {
        let client = free_port();
        let mut arguments = vec!["serve".to_owned(), format!("--roles={roles}"), upstream.clone()];
        arguments.extend(security(client));
        let mut server = Server::spawn(client, home.path().join(format!("log-{roles}")), &arguments);
        server.wait_ready();
        others.push(server);
    }
    let client = ours.client(Some(&ours.sign("alice", &CLIENT)));
    let mut revision = 1;
    for server in members.iter().chain(&others) {
        let written = put(server.port, &client, "a").await.unwrap_or_else(|error| panic!("{error}: {}", server.log()));
        assert!(written > revision, "{written} after {revision}");
        revision = written;
        let mut kv = pb::kv_client::KvClient::new(connect(server.port, &client).await.unwrap());
        let read = kv.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap().into_inner();
        assert_eq!((read.count, read.kvs[0].mod_revision), (1, written));
    }
    // Strangers at a peer port.
    let peer = ports[0].1;
    let strangers: [(Option<Files>, &str); 5] = [
        (None, "tls: client didn't provide a certificate"),
        (
            Some(theirs.sign("stranger", &NODE)),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
        (
            Some(ours.sign("misnamed", &Wanted { common_name: "alice", ..NODE })),
            "client certificate authentication failed",
        ),
        (
            Some(ours.sign("elsewhere", &Wanted { hosts: &["10.9.9.9"], ..NODE })),
            "x509: certificate is valid for 10.9.9.9, not 127.0.0.1",
        ),
        (
            Some(ours.sign("nowhere", &Wanted { hosts: &["tailwater.invalid"], ..NODE })),
            "tls: \"127.0.0.1\" does not match any of DNSNames [\"tailwater.invalid\"]",
        ),
    ];
    for (own, reason) in &strangers {
        let tls = ours.client(own.as_ref());
        let spoken = async {
            let channel = connect(peer, &tls).await.map_err(|error| format!("{error:?}"))?;
            let mut kv = pb::kv_client::KvClient::new(channel);
            kv.put(pb::PutRequest::default()).await.map(drop).map_err(|status| status.to_string())
        };
        assert!(spoken.await.is_err());
        wait_for_rejection(&members[0], "peer", (reason, "")).await;
    }
    for server in &members {
        let lines = rejections(server, "client");
        assert!(lines.is_empty(), "{lines:?}");
    }
    rotate(&mut members, &home, (&ours, &theirs), &node, &client).await;
}

/// The group moves to another authority while clients write; then a member starts anew with the new certificate alone.
async fn rotate(
    members: &mut [Server],
    home: &tempfile::TempDir,
    (ours, theirs): (&Authority, &Authority),
    node: &Files,
    client: &ClientTls,
) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    // Connected before anything changes: a handshake that has read the old authorities may meet the new certificate.
    let mut kv = pb::kv_client::KvClient::new(connect(members[0].port, client).await.unwrap());
    let load = tokio::spawn(async move {
        let mut written = 0;
        while !over.load(Ordering::Relaxed) {
            kv.put(pb::PutRequest { key: "load".into(), ..Default::default() }).await.unwrap();
            written += 1;
        }
        written
    });
    let both = [std::fs::read(ours.file()).unwrap(), std::fs::read(theirs.file()).unwrap()].concat();
    replace(&ours.file(), &both);
    node.become_like(&theirs.sign("node-of-the-new", &NODE));
    let alice = theirs.sign("alice-of-the-new", &CLIENT);
    let begun = std::time::Instant::now();
    // Whoever trusts the new authority alone finds it everywhere now.
    let trusting = theirs.client(Some(&alice));
    let mut at = 0;
    for (follower, member) in members.iter().enumerate().skip(1) {
        // What this is about is not an election.
        let channel = connect(member.port, &trusting).await.unwrap();
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel);
        let status = maintenance.status(pb::StatusRequest {}).await.unwrap().into_inner();
        if status.leader != status.header.unwrap().member_id {
            at = follower;
        }
    }
    assert!(at > 0, "one of two others follows");
    // It dials the others and is dialed by them, both with the new certificate.
    members[at].signal("TERM");
    assert!(members[at].wait().success(), "{}", members[at].log());
    let mut again = members[at].again(home.path().join("log-again"));
    again.wait_ready();
    put(again.port, &trusting, "a").await.unwrap_or_else(|error| panic!("{error}: {}", again.log()));
    assert!(begun.elapsed() < PATIENCE);
    is_over.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0, "writes went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_made_when_they_are_asked_for_and_kept() {
    let home = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port(), free_port());
    let arguments = [
        "serve".to_owned(),
        flag("data-dir", &home.path().join("data")),
        format!("--listen-client-urls=https://127.0.0.1:{client}"),
        format!("--advertise-client-urls=https://127.0.0.1:{client}"),
        format!("--listen-peer-urls=https://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=https://127.0.0.1:{peer}"),
        format!("--initial-cluster=default=https://127.0.0.1:{peer}"),
        "--auto-tls".to_owned(),
        "--peer-auto-tls=true".to_owned(),
    ];
    let made = home.path().join("data/fixtures/client/cert.pem");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut server = Server::spawn(client, home.path().join("log"), &arguments);
        server.wait_ready();
        let tls = ClientTls::new(tailwater_tls::TlsConfig {
            trusted_ca_file: Some(made.clone()),
            ..tailwater_tls::TlsConfig::default()
        });
        put(client, &tls, "a").await.unwrap();
        seen.push(std::fs::read(&made).unwrap());
        server.signal("TERM");
        assert!(server.wait().success());
    }
    assert_eq!(seen[0], seen[1]);
    assert!(home.path().join("data/fixtures/peer/key.pem").exists());
}

/// `tailwater bench put` with these arguments besides: whether it was content, and what it said.
fn bench(port: u16, arguments: &[String]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(["bench", "put", "--total=20", "--conns=2", "--clients=4", "--json"])
        .arg(format!("--endpoints=https://127.0.0.1:{port}"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_comes_with_a_certificate_and_as_a_user() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new(home.path(), "ca");
    let server = start(home.path(), &authority, &authority.sign("node", &NODE), &["--bcrypt-cost=4".to_owned()]);
    let own = authority.sign("client", &CLIENT);
    let channel = connect(server.port, &authority.client(Some(&own))).await.unwrap();
    let mut auth = pb::auth_client::AuthClient::new(channel);
    let root = pb::AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(root).await.unwrap();
    auth.user_grant_role(pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() }).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();

    let files = vec![flag("cacert", &authority.file()), flag("cert", &own.cert), flag("key", &own.key)];
    let as_user = |user: &str| [files.clone(), vec![format!("--user={user}")]].concat();
    let (good, said) = bench(server.port, &as_user("root:secret"));
    assert!(good && said.contains("\"operations\":20"), "{said}");
    for (arguments, reason) in [
        (as_user("root:wrong"), "authentication failed, invalid user ID or password"),
        (as_user("root"), "NAME:PASSWORD"),
        (files.clone(), "requests failed"),
        // Refused with the handshake or with the first call: the client has done its part of TLS 1.3 before it is judged.
        (files[..1].to_vec(), ""),
        (Vec::new(), "can't be reached"),
    ] {
        let (good, said) = bench(server.port, &arguments);
        assert!(!good && said.contains(reason), "{arguments:?}: {said}");
    }
}
