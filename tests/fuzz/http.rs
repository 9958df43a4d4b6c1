//! Plain HTTP/1.1, written by hand: the JSON gateway, health and metrics, and what is no request.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::messages;
use crate::random::Random;
use crate::run::World;

/// Paths behind `/v3/`, and the methods that they stand for. Those whose changed bodies can do harm are called over gRPC.
const ROUTES: [(&str, &str); 20] = [
    ("kv/range", "/etcdserverpb.KV/Range"),
    ("kv/put", "/etcdserverpb.KV/Put"),
    ("kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "/etcdserverpb.KV/Txn"),
    ("kv/compaction", "/etcdserverpb.KV/Compact"),
    ("watch", "/etcdserverpb.Watch/Watch"),
    ("lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    ("maintenance/status", "/etcdserverpb.Maintenance/Status"),
    ("maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    ("auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    ("election/observe", "/v3electionpb.Election/Observe"),
    ("election/leader", "/v3electionpb.Election/Leader"),
    ("lock/unlock", "/v3lockpb.Lock/Unlock"),
];
const PAGES: [&str; 14] = [
    "/health",
    "/health?exclude=NOSPACE&serializable=true",
    "/livez",
    "/readyz?verbose",
    "/readyz/linearizable_read",
    "/metrics",
    "/version",
    "/status",
    "/v3/nope",
    "/v3beta/kv/range",
    "/",
    "/%",
    "/health?exclude=%ff&&&=&serializable",
    "/../../etc/passwd",
];
const CONNECT_MAX: Duration = Duration::from_secs(20);
const READ_MAX_MS: usize = 300;

/// One connection with a few requests.
///
/// # Errors
/// It can't be made: the server does not accept.
pub(crate) async fn any(world: &World, random: &mut Random) -> anyhow::Result<()> {
    let connected = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(world.address)).await;
    let mut stream = connected.map_err(|_| anyhow::anyhow!("no connection within {CONNECT_MAX:?}"))??;
    for _ in 0..=random.below(4) {
        let (mut request, is_last) = if random.one_in(4) { (page(random), false) } else { json(world, random) };
        if !is_last && random.one_in(8) {
            request = random.changed(request);
        }
        // The server may close at any moment; that is its right.
        if stream.write_all(&request).await.is_err() || !answered(random, &mut stream).await || is_last {
            break;
        }
    }
    Ok(())
}

fn page(random: &mut Random) -> Vec<u8> {
    let method = random.pick(&["GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "BREW", ""]);
    let path = random.pick(&PAGES);
    let host = random.pick(&["localhost", "[::1]:2379", "", "evil.example", "a b"]);
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://x\r\n\r\n").into_bytes()
}

/// A request, and whether nothing may follow it: whoever sends more behind one whose answer is a stream can leave without
/// being missed until the stream has something to say. So it is with HTTP/1.1 in Go, too, and so in etcd.
fn json(world: &World, random: &mut Random) -> (Vec<u8>, bool) {
    let (route, path) = random.pick(&ROUTES);
    let method = world.methods.iter().find(|method| method.path == *path).expect("a method");
    let values = if method.client_streams { random.below(4) } else { 1 };
    let body: Vec<u8> = (0..values).flat_map(|_| messages::json(random, &method.input)).collect();
    let mut head = format!("POST /v3/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    if let Some(token) = random.pick(&world.tokens) {
        head.push_str(&format!("Authorization: {token}\r\n"));
    }
    if random.one_in(6) {
        head.push_str("Grpc-Metadata-Hasleader: true\r\nGrpc-Metadata-Grpc-Timeout: 1n\r\nGrpc-Timeout: 50m\r\n");
    }
    let framed = match random.below(8) {
        // More is announced than comes.
        0 => [format!("Content-Length: {}\r\n\r\n", body.len() + 10).into_bytes(), body].concat(),
        1 => [format!("Content-Length: {}\r\n\r\n", i64::MAX).into_bytes(), body].concat(),
        2..4 => {
            let mut out = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in body.chunks(random.below(20) + 1) {
                out.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                out.extend([chunk, b"\r\n"].concat());
            }
            if !random.one_in(4) {
                out.extend(b"0\r\n\r\n");
            }
            out
        }
        _ => [format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes(), body].concat(),
    };
    ([head.into_bytes(), framed].concat(), method.server_streams)
}

/// Whether the connection goes on; an answer is read for a while, or not at all.
async fn answered(random: &mut Random, stream: &mut TcpStream) -> bool {
    if random.one_in(5) {
        return !random.one_in(3);
    }
    let patience = Duration::from_millis(random.below(READ_MAX_MS) as u64);
    let mut buffer = vec![0; 16 << 10];
    !matches!(tokio::time::timeout(patience, stream.read(&mut buffer)).await, Ok(Ok(0) | Err(_)))
}
