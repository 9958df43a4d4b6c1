//! What a client sends on a connection of HTTP/2, behind the preface.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use tailwater_http2::{Call, Config, Connection, Incoming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const CONFIG: Config = Config {
    stream_window_bytes: 1 << 10,
    connection_window_bytes: 1 << 16,
    streams_max: 20,
    headers_bytes_max: 1 << 10,
    pings_apart: Duration::from_secs(5),
    keepalive_interval: Duration::ZERO,
    keepalive_timeout: Duration::ZERO,
};
/// Far more turns than any input needs.
const TURNS_MAX: usize = 1 << 16;

/// A client that sends what it is given, in pieces of one size, and reads everything.
struct Client<'a> {
    left: &'a [u8],
    piece: usize,
    read: Rc<RefCell<Vec<u8>>>,
}

impl AsyncRead for Client<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (piece, left) = self.left.split_at(self.piece.min(self.left.len()).min(into.remaining()));
        into.put_slice(piece);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.read.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The requests that were called, those that were whole with their bodies, and whether the client was served to its end.
fn serve(bytes: &[u8], piece: usize) -> (Vec<String>, bool) {
    let read = Rc::new(RefCell::new(Vec::new()));
    let called = Arc::new(Mutex::new(Vec::new()));
    let calls = called.clone();
    let service = move |request: Request<Incoming>| -> Call<Full<bytes::Bytes>> {
        let (head, body) = request.into_parts();
        let calls = calls.clone();
        calls.lock().push(format!("{head:?}"));
        Box::pin(async move {
            let body = body.collect().await.map(|body| body.to_bytes());
            if let Ok(body) = &body {
                calls.lock().push(format!("{head:?} {body:?}"));
            }
            Response::new(Full::new(body.unwrap_or_default()))
        })
    };
    let client = Client { left: bytes, piece, read: read.clone() };
    let mut connection = pin!(Connection::new(client, CONFIG, service));
    let mut cx = Context::from_waker(Waker::noop());
    let ended = (0..TURNS_MAX).find_map(|_| match connection.as_mut().poll(&mut cx) {
        Poll::Ready(ended) => Some(ended.is_ok()),
        Poll::Pending => None,
    });
    let ended = ended.expect("it ends with its client");
    // What is answered are frames from the first to the last byte.
    let answered = read.borrow();
    let mut rest = &answered[..];
    while !rest.is_empty() {
        let len = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        assert!(len <= 16 << 10 && rest[3] <= 9, "a frame of {len} bytes of kind {}", rest[3]);
        rest = &rest[9 + len..];
    }
    let mut called = called.lock().clone();
    called.sort();
    (called, ended)
}

pub(crate) fn check(bytes: &[u8]) -> bool {
    thread_local! {
        // Its clock is what a connection that fails waits by.
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without threads");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let (at_once, ended) = serve(bytes, usize::MAX);
        let (by_byte, also_ended) = serve(bytes, 1);
        // However the bytes are cut, the same requests come out, with the same bodies; what is given up in the same
        // breath is not called. Where the connection fails, it may do so later when everything comes at once.
        let mut all = by_byte.iter();
        let is_of = at_once.iter().all(|request| all.any(|other| other == request));
        assert!(is_of || !also_ended, "{at_once:?}\nis not of\n{by_byte:?}");
        ended && !by_byte.is_empty()
    })
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let len = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, len, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let settings = frame(4, 0, 0, &[0, 4, 0, 1, 0, 0, 0, 5, 0, 0, 0x40, 0]);
    let path = b"/etcdserverpb.KV/Range";
    let mut call = vec![0x83, 0x86, 0x44, 22];
    call.extend(path);
    // An authority and a header that the table keeps, one that it does not, and one coded by Huffman.
    call.extend(b"\x41\x06a:2379\x40\x05token\x02ab\x00\x0cgrpc-timeout\x025S\x5f\x86\xa8\xeb\x10\x64\x9c\xbf");
    let data: Vec<u8> = (0..5).flat_map(|nth| frame(0, u8::from(nth == 4), 1, &[nth; 3])).collect();
    let again = [0x83, 0x86, 0xc1, 0xc0, 0xbf];
    vec![
        [settings.clone(), frame(1, 4, 1, &call), frame(0, 1, 1, b"\0\0\0\0\x03\n\x01k")].concat(),
        [settings.clone(), frame(1, 4, 1, &call), data].concat(),
        [settings.clone(), frame(1, 5, 1, &call), frame(1, 5, 3, &again), frame(8, 0, 0, &[0, 0, 1, 0])].concat(),
        [settings.clone(), frame(1, 0, 1, &call[..9]), frame(9, 4, 1, &call[9..]), frame(3, 0, 1, &[0, 0, 0, 8])]
            .concat(),
        [settings, frame(1, 0x2c, 1, &[&[2, 0, 0, 0, 0, 9], &call[..], &[0, 0]].concat()), frame(6, 0, 0, &[1; 8])]
            .concat(),
    ]
}
