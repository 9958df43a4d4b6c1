//! Connections beside a client of somebody else's (hyper), and beside frames that no good client sends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use tailwater_http2::{Call, Config, Connection, ConnectionError, Incoming, PREFACE, Reason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

type Answer = Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>;

const CONFIG: Config = Config {
    stream_window_bytes: 256 << 10,
    connection_window_bytes: 1 << 20,
    streams_max: u32::MAX,
    headers_bytes_max: 16 << 10,
    pings_apart: Duration::ZERO,
    keepalive_interval: Duration::ZERO,
    keepalive_timeout: Duration::ZERO,
};

/// Calls that are being answered.
#[derive(Clone, Default)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

struct Opened(Open);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn full(bytes: impl Into<Bytes>) -> Answer {
    Box::pin(Full::new(bytes.into()))
}

/// `/echo` answers with the request, as it arrives; `/whole` once all of it is there; `/ignore` without reading it;
/// `/never` does not answer; `/empty` has no body; `/bytes` answers with as many as the query says, in pieces.
fn service(open: Open) -> impl Fn(Request<Incoming>) -> Call<Answer> + Send + Unpin {
    move |request| {
        open.0.fetch_add(1, Ordering::SeqCst);
        let opened = Opened(open.clone());
        Box::pin(async move {
            let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
            let (head, body) = request.into_parts();
            let body: Answer = match head.uri.path() {
                "/echo" => {
                    Box::pin(body.map_err(|error| panic!("{error}")).with_trailers(async { Some(Ok(trailers)) }))
                }
                "/whole" => full(body.collect().await.unwrap().to_bytes()),
                "/ignore" => full("ignored"),
                "/never" => std::future::pending().await,
                "/empty" => Box::pin(Empty::new()),
                "/bytes" => {
                    let bytes: usize = head.uri.query().and_then(|query| query.parse().ok()).unwrap_or(0);
                    let pieces = (0..bytes).step_by(10_000).map(move |at| vec![7; 10_000.min(bytes - at)]);
                    Box::pin(StreamBody::new(futures_util::stream::iter(
                        pieces.map(|piece| Ok(Frame::data(piece.into()))),
                    )))
                }
                _ => full("something else"),
            };
            drop(opened);
            let mut response = Response::new(body);
            response.headers_mut().insert("x-method", head.method.as_str().parse().unwrap());
            response
        })
    }
}

fn serve(config: Config, open: Open) -> (DuplexStream, JoinHandle<Result<(), ConnectionError>>) {
    let (client, mut server) = duplex(20_000);
    let task = tokio::spawn(async move {
        let mut preface = [0; PREFACE.len()];
        server.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        Connection::new(server, config, service(open)).await
    });
    (client, task)
}

async fn client<B>(io: DuplexStream) -> SendRequest<B>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let (client, connection) =
        hyper::client::conn::http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn post<B>(path: &str, body: B) -> Request<B> {
    Request::post(format!("http://server{path}")).body(body).unwrap()
}

#[tokio::test]
async fn calls_are_answered() {
    let (io, _task) = serve(CONFIG, Open::default());
    let client = client(io).await;
    let calls = (0..300_usize).map(|nth| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let path = ["/echo", "/whole", "/ignore", "/empty"][nth % 4];
            let sent = Bytes::from(vec![u8::try_from(nth % 251).unwrap(); nth * 100]);
            let response = client.send_request(post(path, Full::new(sent.clone()))).await.unwrap();
            assert_eq!(response.headers()["x-method"], "POST");
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().is_some(), path == "/echo");
            let expected = match path {
                "/echo" | "/whole" => sent,
                "/ignore" => "ignored".into(),
                _ => Bytes::new(),
            };
            assert!(collected.to_bytes() == expected, "{path} {nth}");
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways_beyond_all_windows() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut client = client(io).await;
    let sent = Bytes::from_iter((0..5_000_000_u32).map(|n| n.to_le_bytes()[1]));
    for path in ["/echo", "/whole", "/echo"] {
        let response = client.send_request(post(path, Full::new(sent.clone()))).await.unwrap();
        assert!(response.into_body().collect().await.unwrap().to_bytes() == sent, "{path}");
    }
}

#[tokio::test]
async fn streams_go_both_ways_at_a_time() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut client = client(io).await;
    let (sender, body) = http_body_util::channel::Channel::<Bytes, Infallible>::new(1);
    let mut sender = sender;
    let response = client.send_request(post("/echo", body)).await.unwrap();
    let mut answers = response.into_body();
    for round in 0..100 {
        let piece = Bytes::from(format!("piece {round}"));
        sender.send_data(piece.clone()).await.unwrap();
        assert_eq!(answers.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(sender);
    let trailers = answers.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_itself_alone() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut client = client(io).await;
    let stalled = client.send_request(post("/bytes?3000000", Empty::<Bytes>::new())).await.unwrap();
    for _ in 0..10 {
        let response = client.send_request(post("/bytes?50000", Empty::new())).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 50_000);
    }
    assert_eq!(stalled.into_body().collect().await.unwrap().to_bytes().len(), 3_000_000);
}

#[tokio::test]
async fn a_call_ends_with_its_client() {
    let open = Open::default();
    let (io, task) = serve(CONFIG, open.clone());
    let mut client = client(io).await;
    let given_up =
        tokio::time::timeout(Duration::from_millis(50), client.send_request(post("/never", Empty::<Bytes>::new())));
    assert!(given_up.await.is_err());
    let other = tokio::spawn(client.send_request(post("/never", Empty::new())));
    while open.count() != 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    other.abort();
    drop(client);
    task.await.unwrap().unwrap();
    assert_eq!(open.count(), 0);
}

#[tokio::test]
async fn more_streams_than_agreed_are_refused() {
    let (io, _task) = serve(Config { streams_max: 1, ..CONFIG }, Open::default());
    let mut raw = Raw::new(io).await;
    raw.send(&raw.request(1, "/never", true)).await;
    raw.send(&raw.request(3, "/empty", true)).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (3, vec![0, 0, 0, 7]));
    raw.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).await;
    raw.send(&raw.request(5, "/empty", true)).await;
    assert_eq!(raw.next_of(HEADERS).await.0, 5);
}

#[tokio::test]
async fn an_end_in_good_order() {
    let (client_io, mut server) = duplex(20_000);
    let (leave, mut left) = mpsc::channel::<()>(1);
    let task = tokio::spawn(async move {
        server.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut connection = Connection::new(server, CONFIG, service(Open::default()));
        tokio::select! {
            ended = &mut connection => return ended,
            _ = left.recv() => connection.graceful_shutdown(),
        }
        connection.await
    });
    let mut raw = Raw::new(client_io).await;
    raw.send(&raw.request(1, "/echo", false)).await;
    assert_eq!(raw.next_of(HEADERS).await.0, 1);
    leave.send(()).await.unwrap();
    // The first says no number: what the client has sent meanwhile is served.
    assert_eq!(raw.next_of(GOAWAY).await.1, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let (_, payload) = raw.next_of(PING).await;
    raw.send(&raw.request(3, "/ignore", true)).await;
    assert_eq!(raw.next_of(HEADERS).await.0, 3);
    raw.send(&frame(PING, ACK, 0, &payload)).await;
    assert_eq!(raw.next_of(GOAWAY).await.1, [0, 0, 0, 3, 0, 0, 0, 0]);
    // Too late; it is passed over. The first call goes on to its end, and with it the connection.
    raw.send(&raw.request(5, "/ignore", true)).await;
    raw.send(&frame(DATA, END_STREAM, 1, b"last")).await;
    assert_eq!(raw.next_of(DATA).await, (1, b"last".to_vec()));
    assert_eq!(raw.next_of(HEADERS).await.0, 1);
    task.await.unwrap().unwrap();
    assert_eq!(raw.io.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_given_up() {
    let keepalive = Duration::from_secs(10);
    let config = Config { keepalive_interval: keepalive, keepalive_timeout: keepalive, ..CONFIG };
    let (io, task) = serve(config, Open::default());
    let mut raw = Raw::new(io).await;
    let (_, payload) = raw.next_of(PING).await;
    raw.send(&frame(PING, ACK, 0, &payload)).await;
    raw.next_of(PING).await;
    assert!(matches!(task.await.unwrap(), Err(ConnectionError::Silent)));
}

#[tokio::test]
async fn who_pings_too_often_is_told_and_cut_off() {
    let (io, task) = serve(Config { pings_apart: Duration::from_secs(5), ..CONFIG }, Open::default());
    let mut raw = Raw::new(io).await;
    for _ in 0..5 {
        raw.send(&frame(PING, 0, 0, &[0; 8])).await;
    }
    assert_eq!(raw.next_of(GOAWAY).await.1, b"\0\0\0\0\0\0\0\x0btoo_many_pings");
    assert!(matches!(task.await.unwrap(), Err(ConnectionError::TooManyPings)));
}

#[tokio::test]
async fn broken_connections_end_with_the_reason() {
    let big_block = |raw: &Raw| {
        let mut frames = frame(HEADERS, 0, 1, &raw.block("/empty"));
        (0..5).for_each(|_| frames.extend(frame(CONTINUATION, 0, 1, &[0; 16 << 10])));
        frames
    };
    let window = |increment: u32, stream| frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    type Frames = Box<dyn Fn(&Raw) -> Vec<u8>>;
    let cases: Vec<(&str, Reason, Frames)> = vec![
        ("a large frame", Reason::FrameSizeError, Box::new(|_| frame(DATA, 0, 1, &vec![0; (16 << 10) + 1]))),
        ("data before a stream", Reason::ProtocolError, Box::new(|_| frame(DATA, 0, 1, b"data"))),
        ("data of the connection", Reason::ProtocolError, Box::new(|_| frame(DATA, 0, 0, b"data"))),
        ("an even stream", Reason::ProtocolError, Box::new(|raw| raw.request(2, "/empty", true))),
        ("a push", Reason::ProtocolError, Box::new(|_| frame(5, 0, 1, &[0; 8]))),
        ("settings of a stream", Reason::ProtocolError, Box::new(|_| frame(SETTINGS, 0, 1, &[]))),
        ("half a setting", Reason::FrameSizeError, Box::new(|_| frame(SETTINGS, 0, 0, &[0; 7]))),
        ("an acknowledgement with settings", Reason::FrameSizeError, Box::new(|_| frame(SETTINGS, ACK, 0, &[0; 6]))),
        ("a huge window", Reason::FlowControlError, Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]))),
        ("small frames", Reason::ProtocolError, Box::new(|_| frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]))),
        ("a short ping", Reason::FrameSizeError, Box::new(|_| frame(PING, 0, 0, &[0; 7]))),
        ("no window", Reason::FlowControlError, Box::new(move |_| window(0, 0))),
        ("too much window", Reason::FlowControlError, Box::new(move |_| window(0x7fff_ffff, 0))),
        ("the window of no stream", Reason::ProtocolError, Box::new(move |_| window(1, 1))),
        ("a reset of no stream", Reason::ProtocolError, Box::new(|_| frame(RST_STREAM, 0, 1, &[0; 4]))),
        (
            "a block between others",
            Reason::ProtocolError,
            Box::new(|raw| [frame(HEADERS, 0, 1, &raw.block("/empty")), frame(PING, 0, 0, &[0; 8])].concat()),
        ),
        ("a block that goes on from nothing", Reason::ProtocolError, Box::new(|_| frame(CONTINUATION, 4, 1, &[]))),
        (
            "a block in empty pieces",
            Reason::EnhanceYourCalm,
            Box::new(|raw| [frame(HEADERS, 0, 1, &raw.block("/empty")), frame(CONTINUATION, 0, 1, &[])].concat()),
        ),
        ("a large block", Reason::EnhanceYourCalm, Box::new(big_block)),
        ("a block that can't be read", Reason::CompressionError, Box::new(|_| frame(HEADERS, 4, 1, &[0x80]))),
        (
            "headers of an ended stream",
            Reason::StreamClosed,
            Box::new(|raw| [raw.request(3, "/empty", true), raw.request(1, "/empty", true)].concat()),
        ),
        ("padding alone", Reason::ProtocolError, Box::new(|_| frame(HEADERS, 4 | 8, 1, &[9, 0]))),
        (
            "too much data",
            Reason::FlowControlError,
            Box::new(|raw| {
                let mut frames = Vec::new();
                for stream in (1..=11).step_by(2) {
                    frames.extend(raw.request(stream, "/never", false));
                    (0..16).for_each(|_| frames.extend(frame(DATA, 0, stream, &[0; 16 << 10])));
                }
                frames
            }),
        ),
    ];
    for (what, reason, frames) in cases {
        let (io, task) = serve(CONFIG, Open::default());
        let raw = Raw::new(io).await;
        let frames = frames(&raw);
        let (mut reading, mut writing) = tokio::io::split(raw.io);
        let sending = tokio::spawn(async move { writing.write_all(&frames).await });
        let mut told = Vec::new();
        reading.read_to_end(&mut told).await.unwrap();
        sending.await.unwrap().ok();
        let goaway = raw_frames(&told).into_iter().find(|(kind, ..)| *kind == GOAWAY);
        let (.., payload) = goaway.unwrap_or_else(|| panic!("{what}: no reason in {told:x?}"));
        assert_eq!(payload[4..8], (reason as u32).to_be_bytes(), "{what}");
        match task.await.unwrap() {
            Err(ConnectionError::Protocol(ended, _)) => assert_eq!(ended, reason, "{what}"),
            ended => panic!("{what}: {ended:?}"),
        }
    }
}

#[tokio::test]
async fn broken_streams_end_alone() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut raw = Raw::new(io).await;
    let malformed = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x83]);
    raw.send(&malformed).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (1, vec![0, 0, 0, 1]), "no path");
    raw.send(&raw.request(3, "/never", true)).await;
    raw.send(&frame(DATA, 0, 3, b"late")).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (3, vec![0, 0, 0, 5]), "data behind the end");
    raw.send(&raw.request(5, "/never", false)).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 5, &[0; 4])).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (5, vec![0, 0, 0, 1]), "a window of nothing");
    raw.send(&raw.request(7, "/never", false)).await;
    raw.send(&frame(PRIORITY, 0, 7, &[0; 4])).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (7, vec![0, 0, 0, 6]), "a short priority");
    raw.send(&raw.request(9, "/never", false)).await;
    raw.send(&frame(HEADERS, END_HEADERS, 9, &[])).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (9, vec![0, 0, 0, 1]), "headers that are no trailers");
    let mut large = raw.block("/empty");
    large.extend([0, 1, b'n', 0x7f, 0x81, 0x7f]);
    large.extend(vec![b'v'; 0x7f + 0x3f81]);
    raw.send(&frame(HEADERS, END_STREAM, 11, &large[..16 << 10])).await;
    raw.send(&frame(CONTINUATION, END_HEADERS, 11, &large[16 << 10..])).await;
    let (stream, block) = raw.next_of(HEADERS).await;
    assert_eq!((stream, &block[..]), (11, &b"\x08\x03431"[..]));
    let mut dependent = vec![0, 0, 0, 15, 16];
    dependent.extend(raw.block("/empty"));
    raw.send(&frame(PRIORITY, 0, 15, &dependent[..5])).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (15, vec![0, 0, 0, 1]), "a stream that depends on itself");
    raw.send(&raw.request(17, "/empty", true)).await;
    assert_eq!(raw.next_of(HEADERS).await.0, 17);
    raw.send(&frame(DATA, 0, 17, b"late")).await;
    assert_eq!(raw.next_of(RST_STREAM).await, (17, vec![0, 0, 0, 5]), "data of a stream that has ended");
    for (stream, data) in [(19, &b"dat"[..]), (21, b"data!")] {
        let mut announcing = raw.block("/whole");
        announcing.extend(b"\x0f\x0d\x014");
        raw.send(&frame(HEADERS, END_HEADERS, stream, &announcing)).await;
        raw.send(&frame(DATA, END_STREAM, stream, data)).await;
        assert_eq!(raw.next_of(RST_STREAM).await, (stream, vec![0, 0, 0, 1]), "another length than announced");
    }
    // Padding and a priority are passed over, and what the client sends on ended streams.
    let mut padded = vec![3, 0, 0, 0, 0, 16];
    padded.extend(raw.block("/whole"));
    padded.extend([0; 3]);
    raw.send(&frame(HEADERS, END_HEADERS | PADDED | 0x20, 23, &padded)).await;
    raw.send(&frame(DATA, 0, 3, b"ended")).await;
    raw.send(&frame(0xfa, 0xff, 23, b"unknown")).await;
    raw.send(&frame(DATA, END_STREAM | PADDED, 23, b"\x02data\0\0")).await;
    assert_eq!(raw.next_of(DATA).await, (23, b"data".to_vec()));
}

#[tokio::test]
async fn bodies_in_many_pieces_stay_in_order() {
    for (pieces, path) in (1..8).flat_map(|pieces| [(pieces, "/whole"), (pieces, "/echo")]) {
        let (io, _task) = serve(CONFIG, Open::default());
        let mut raw = Raw::new(io).await;
        // All of it arrives at once, the end by itself or with the last piece.
        let mut sent = raw.request(1, path, false);
        let body: Vec<u8> = (0..pieces).flat_map(|piece| vec![piece; 10]).collect();
        for (nth, piece) in body.chunks(10).enumerate() {
            let is_end = pieces % 2 == 0 && nth + 1 == usize::from(pieces);
            sent.extend(frame(DATA, u8::from(is_end), 1, piece));
        }
        if pieces % 2 == 1 {
            sent.extend(frame(DATA, END_STREAM, 1, b""));
        }
        raw.send(&sent).await;
        let mut echoed = Vec::new();
        while echoed.len() < body.len() {
            echoed.extend(raw.next_of(DATA).await.1);
        }
        assert_eq!(echoed, body, "{pieces} pieces to {path}");
    }
}

#[tokio::test]
async fn many_calls_that_become_ready_together_are_polled_once_more() {
    const CALLS: usize = 1000;
    let polls = Arc::new(AtomicUsize::new(0));
    let ready = Arc::new(tokio::sync::Semaphore::new(0));
    let (service_polls, service_ready) = (polls.clone(), ready.clone());
    let service = move |_: Request<Incoming>| -> Call<Answer> {
        let (polls, ready) = (service_polls.clone(), service_ready.clone());
        let mut waiting = Box::pin(async move { ready.acquire().await.map(|permit| permit.forget()) });
        Box::pin(std::future::poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::SeqCst);
            waiting.as_mut().poll(cx).map(|_| Response::new(full("done")))
        }))
    };
    let (io, mut server) = duplex(1 << 20);
    tokio::spawn(async move {
        server.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        Connection::new(server, CONFIG, service).await
    });
    let mut raw = Raw::new(io).await;
    let calls = (0..CALLS).flat_map(|nth| raw.request(u32::try_from(2 * nth + 1).unwrap(), "/", true));
    raw.send(&calls.collect::<Vec<_>>()).await;
    while polls.load(Ordering::SeqCst) < CALLS {
        tokio::task::yield_now().await;
    }
    ready.add_permits(CALLS);
    for _ in 0..CALLS {
        raw.next_of(DATA).await;
    }
    assert_eq!(polls.load(Ordering::SeqCst), 2 * CALLS);
}

#[tokio::test]
async fn windows_are_kept_to() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut raw = Raw::new(io).await;
    // Streams take ten bytes from now on, the connection as much as before.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10])).await;
    raw.send(&raw.request(1, "/bytes?65545", true)).await;
    assert_eq!(raw.next_of(DATA).await, (1, vec![7; 10]));
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &5_u32.to_be_bytes())).await;
    assert_eq!(raw.next_of(DATA).await, (1, vec![7; 5]));
    // Less than nothing, then all that the connection has.
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &9_u32.to_be_bytes())).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 1, &100_000_u32.to_be_bytes())).await;
    let mut bytes = 15;
    while bytes < 65_535 {
        bytes += raw.next_of(DATA).await.1.len();
    }
    assert_eq!(bytes, 65_535);
    raw.send(&frame(PING, 0, 0, &[1; 8])).await;
    raw.next_of(PING).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes())).await;
    assert_eq!(raw.next_of(DATA).await, (1, vec![7; 10]));
}

#[tokio::test]
async fn answers_without_a_body_end_with_their_head() {
    let (io, _task) = serve(CONFIG, Open::default());
    let mut client = client(io).await;
    let request = Request::head("http://server/bytes?500").body(Empty::<Bytes>::new()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().is_end_stream());
    let response = client.send_request(post("/ignore", Empty::new())).await.unwrap();
    assert_eq!(response.headers()["content-length"], "7");
    let response = client.send_request(post("/empty", Empty::new())).await.unwrap();
    assert!(response.into_body().is_end_stream());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a client sends, nothing panics and nothing hangs.
    #[test]
    fn anything_may_come(
        frames in prop::collection::vec((0_u8..12, any::<u8>(), 0_u32..8, prop::collection::vec(any::<u8>(), 0..40)), 0..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut sent = frame(SETTINGS, 0, 0, &[]);
        frames.iter().for_each(|(kind, flags, stream, payload)| sent.extend(frame(*kind, *flags, *stream, payload)));
        sent.truncate(cut.index(sent.len() + 1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut io, task) = serve(CONFIG, Open::default());
            io.write_all(PREFACE).await.unwrap();
            let (mut reading, mut writing) = tokio::io::split(io);
            let writing = tokio::spawn(async move { writing.write_all(&sent).await.ok(); writing.shutdown().await.ok() });
            tokio::time::timeout(Duration::from_secs(20), reading.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
            writing.await.unwrap();
            task.await.unwrap().ok();
        });
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Kind, stream and payload.
fn raw_frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let len = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        frames.push((bytes[3], stream, bytes[9..9 + len].to_vec()));
        bytes = &bytes[9 + len..];
    }
    frames
}

/// A client that sends frames as they are given.
struct Raw {
    io: DuplexStream,
    read: BytesMut,
}

impl Raw {
    async fn new(mut io: DuplexStream) -> Self {
        io.write_all(PREFACE).await.unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { io, read: BytesMut::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// `POST` of a path, without compression.
    fn block(&self, path: &str) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        block.extend(path.as_bytes());
        block
    }

    fn request(&self, stream: u32, path: &str, ends: bool) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | if ends { END_STREAM } else { 0 }, stream, &self.block(path))
    }

    /// Stream and payload of the next frame of this kind; others are passed over.
    async fn next_of(&mut self, kind: u8) -> (u32, Vec<u8>) {
        loop {
            while self.read.len() < 9 || self.read.len() < 9 + raw_len(&self.read) {
                let read = tokio::time::timeout(Duration::from_secs(60), self.io.read_buf(&mut self.read)).await;
                assert_ne!(read.expect("in time").unwrap(), 0, "the connection has ended");
            }
            let bytes = self.read.split_to(9 + raw_len(&self.read));
            let (found, stream, payload) = raw_frames(&bytes).remove(0);
            if found == kind {
                return (stream, payload);
            }
        }
    }
}

fn raw_len(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}
