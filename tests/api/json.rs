//! The API as JSON: the same requests to an etcd and to this server, by curl, and what comes back compared.

use std::process::Command;

use tailwater_tests::{Kind, Options, Server, free_port, left_out, program};

/// Requests in order, each with its body; of a stream what comes within a second is taken.
const REQUESTS: &[(&str, &str)] = &[
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy","lease":5}"#),
    ("kv/range", r#"{"key":"Zm9v"}"#),
    ("kv/range", r#"{"key":"Zm9v","rangeEnd":"Zm9w","sortOrder":"DESCEND","sort_target":2,"limit":"1"}"#),
    ("kv/range", r#"{"key":"Zm9v","sort_order":"NOPE","nope":[{}]}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
    ("kv/range", r#"{"key":"Zm9v"} and what follows"#),
    ("kv/range", r#"{"key":"Zm9v""#),
    ("kv/range", ""),
    ("kv/nope", "{}"),
    (
        "kv/txn",
        r#"{"compare":[{"target":"VALUE","key":"Zm9v","value":"YmF6"}],
            "success":[{"requestRange":{"key":"Zm9v"}},{"request_put":{"key":"YQ=="}}],"failure":[{"request_delete_range":{"key":"YQ=="}}]}"#,
    ),
    ("kv/deleterange", r#"{"key":"YQ==","prev_kv":true}"#),
    ("kv/compaction", r#"{"revision":"4","physical":true}"#),
    ("kv/compaction", r#"{"revision":"4"}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":"2"}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":"900"}"#),
    ("watch", r#"{"create_request":{"key":"Zm9v","start_revision":"4"}}"#),
    (
        "watch",
        r#"{"create_request":{"key":"YQ==","start_revision":"4","watch_id":7}}{"create_request":{"key":"Zm9v"}}"#,
    ),
    ("watch", r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#),
    ("lease/grant", r#"{"TTL":"100","ID":7}"#),
    ("lease/grant", r#"{"TTL":"100","ID":7}"#),
    ("lease/keepalive", r#"{"ID":7}{"ID":8}"#),
    ("kv/lease/timetolive", r#"{"ID":8}"#),
    ("lease/leases", ""),
    ("kv/lease/revoke", r#"{"ID":7}"#),
    ("lease/revoke", r#"{"ID":7}"#),
    ("cluster/member/remove", r#"{"ID":"99"}"#),
    ("cluster/member/promote", r#"{"ID":"99"}"#),
    ("maintenance/alarm", r#"{"action":"ACTIVATE","alarm":"NOSPACE","memberID":"5"}"#),
    ("maintenance/alarm", "{}"),
    ("maintenance/alarm", r#"{"action":2,"alarm":1,"memberID":5}"#),
    ("maintenance/defragment", ""),
    ("maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
    ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.5"}"#),
    ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.4.0"}"#),
    ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"x"}"#),
    ("maintenance/downgrade", r#"{"action":"ENABLE","version":"3.5.0"}"#),
    ("maintenance/downgrade", r#"{"action":"ENABLE","version":"3.5.0"}"#),
    ("maintenance/status", ""),
    ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
    ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
    ("maintenance/status", ""),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("election/proclaim", ""),
    ("election/campaign", r#"{"name":"ZQ==","value":"dg==","lease":"99"}"#),
    ("lease/grant", r#"{"TTL":"100","ID":"99"}"#),
    ("election/campaign", r#"{"name":"ZQ==","value":"dg==","lease":"99"}"#),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("election/observe", r#"{"name":"ZQ=="}"#),
    ("lock/lock", r#"{"name":"bG9jaw==","lease":"99"}"#),
    ("lock/unlock", r#"{"key":"bG9jay82Mw=="}"#),
    ("auth/status", ""),
    ("auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("auth/role/add", r#"{"name":"r"}"#),
    ("auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"Zm9v"}}"#),
    ("auth/role/get", r#"{"role":"r"}"#),
    ("auth/user/add", r#"{"name":"root","password":"p"}"#),
    ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
    ("auth/user/list", ""),
    ("auth/enable", ""),
    ("auth/enable", ""),
    ("auth/user/list", ""),
    ("kv/range", r#"{"key":"Zm9v"}"#),
];

/// Numbers that are a server's own affair.
const OWN: &[&str] = &[
    "cluster_id",
    "member_id",
    "raft_term",
    "raftTerm",
    "leader",
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftAppliedIndex",
];

fn curl(url: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-s", "-i", "-m", "1"]).args(arguments).arg(url).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Status, the headers that say something, and the body with what is the server's own taken out.
fn comparable(answer: &str) -> (String, Vec<String>, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let is_said =
        |line: &String| !["date:", "content-length:", "transfer-encoding:"].iter().any(|name| line.starts_with(name));
    let mut headers: Vec<_> = lines.map(str::to_lowercase).filter(is_said).collect();
    headers.sort();
    let mut body = body.to_owned();
    for name in OWN {
        let key = format!("\"{name}\":\"");
        let mut from = 0;
        while let Some(at) = body[from..].find(&key) {
            let start = from + at + key.len();
            let end = start + body[start..].find('"').unwrap();
            body.replace_range(start..end, "_");
            from = start;
        }
    }
    (status, headers, without_blanks(&body))
}

/// etcd's library puts blanks after commas and colons, or none, as its build decides.
fn without_blanks(json: &str) -> String {
    let (mut out, mut is_quoted, mut is_escaped) = (String::new(), false, false);
    for letter in json.chars() {
        if is_quoted || letter != ' ' {
            out.push(letter);
        }
        is_quoted ^= letter == '"' && !is_escaped;
        is_escaped = is_quoted && letter == '\\' && !is_escaped;
    }
    out
}

#[tokio::test]
async fn json_is_what_an_etcd_says() {
    let test = "JSON beside etcd";
    if Command::new("curl").arg("--version").output().is_err() {
        return left_out(test, "no curl on PATH");
    }
    for kind in [Kind::Tailwater, Kind::Etcd] {
        if let Err(error) = program(kind) {
            return left_out(test, &format!("{error:#}"));
        }
    }
    let etcd = Server::start(Kind::Etcd, &Options::default()).await.unwrap();
    let version = etcds_version(etcd.url());
    let flags = Options { flags: vec![format!("--reported-version={version}")], ..Options::default() };
    let ours = Server::start(Kind::Tailwater, &flags).await.unwrap();
    for (path, body) in REQUESTS {
        let answer = |server: &Server, method: &str| {
            let url = format!("{}/v3/{path}", server.url());
            comparable(&curl(&url, &["-X", method, "-d", body]))
        };
        assert_eq!(answer(&ours, "POST"), answer(&etcd, "POST"), "{path} {body}");
    }
    for arguments in [&["-X", "OPTIONS"][..], &["-X", "GET"], &["-X", "OPTIONS", "-H", "Origin: http://page"]] {
        let answer = |server: &Server| comparable(&curl(&format!("{}/v3/kv/range", server.url()), arguments));
        assert_eq!(answer(&ours), answer(&etcd), "{arguments:?}");
    }
    // The old name of the same.
    let beta = |server: &Server| comparable(&curl(&format!("{}/v3beta/auth/user/list", server.url()), &["-d", "{}"]));
    assert_eq!(beta(&ours), beta(&etcd));
    with_token(&ours, &etcd);
}

fn etcds_version(url: &str) -> String {
    let answer = curl(&format!("{url}/version"), &[]);
    let (_, rest) = answer.split_once("\"etcdserver\":\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

/// Root logs in, and its token is what opens the rest.
fn with_token(ours: &Server, etcd: &Server) {
    let told = |server: &Server| {
        let login =
            curl(&format!("{}/v3/auth/authenticate", server.url()), &["-d", r#"{"name":"root","password":"p"}"#]);
        let (_, rest) = login.split_once("\"token\":\"").unwrap_or_else(|| panic!("{login}"));
        let token = format!("Authorization: {}", rest.split('"').next().unwrap());
        let list = curl(&format!("{}/v3/auth/user/list", server.url()), &["-H", &token, "-d", "{}"]);
        let wrong = curl(&format!("{}/v3/auth/user/list", server.url()), &["-H", "Authorization: x", "-d", "{}"]);
        (comparable(&list), comparable(&wrong))
    };
    assert_eq!(told(ours), told(etcd));
}

/// What web pages and strange names are told.
#[tokio::test]
async fn pages_and_hosts_are_let_in_as_told() {
    let test = "CORS and hosts";
    if Command::new("curl").arg("--version").output().is_err() {
        return left_out(test, "no curl on PATH");
    }
    let flags = ["--cors=http://a:1,http://b:2", "--host-whitelist=good.example,127.0.0.1", "--metrics=extensive"];
    let options = Options { flags: flags.map(str::to_owned).to_vec(), ..Options::default() };
    let mut told = Vec::new();
    for kind in [Kind::Tailwater, Kind::Etcd] {
        if let Err(error) = program(kind) {
            return left_out(test, &format!("{error:#}"));
        }
        let server = Server::start(kind, &options).await.unwrap();
        let asked = |path: &str, headers: &[&str]| {
            let arguments: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
            comparable(&curl(&format!("{}{path}", server.url()), &arguments))
        };
        told.push([
            asked("/health", &["Origin: http://b:2"]),
            asked("/health", &["Origin: http://c:3"]),
            asked("/health", &["Host: good.example:99"]),
            asked("/v3/kv/range", &["Host: bad.example"]),
            asked("/health", &["Host: bad.example"]),
        ]);
        let metrics = curl(&format!("{}/metrics", server.url()), &[]);
        assert!(metrics.contains("grpc_server_handling_seconds_bucket{"), "{kind:?}");
    }
    assert_eq!(told[0], told[1]);
}

/// gRPC on one port, everything else on another.
#[tokio::test]
async fn grpc_and_the_rest_may_have_their_own_ports() {
    if let Err(error) = program(Kind::Tailwater) {
        return left_out("ports apart", &format!("{error:#}"));
    }
    let port = free_port();
    let flags = vec![format!("--listen-client-http-urls=http://127.0.0.1:{port}")];
    let server = Server::start(Kind::Tailwater, &Options { flags, ..Options::default() }).await.unwrap();
    let status = |url: &str| curl(url, &[]).lines().next().unwrap_or_default().to_owned();
    assert_eq!(status(&format!("{}/health", server.url())), "HTTP/1.1 404 Not Found");
    assert_eq!(status(&format!("http://127.0.0.1:{port}/health")), "HTTP/1.1 200 OK");
    let range = curl(&format!("http://127.0.0.1:{port}/v3/kv/range"), &["-d", r#"{"key":"YQ=="}"#]);
    assert!(range.starts_with("HTTP/1.1 200"), "{range}");
}
