#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use http::Response;
use http_body::Frame;
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::Call;
use crate::body::Incoming;

/// A body without an end.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 1000])))))
    }
}

fn answer(_: Request<Incoming>) -> Call<Endless> {
    Box::pin(async { Response::new(Endless) })
}

type Tested = Connection<DuplexStream, fn(Request<Incoming>) -> Call<Endless>, Endless>;

/// A connection with endless streams whose client takes `window` bytes more and has a socket of `socket` bytes.
async fn stalled(streams: u32, window: u32, socket: usize) -> (DuplexStream, Tested) {
    let (mut client, server) = duplex(socket);
    let config = Config {
        stream_window_bytes: 1 << 16,
        connection_window_bytes: 1 << 16,
        streams_max: u32::MAX,
        headers_bytes_max: 1 << 14,
        pings_apart: Duration::ZERO,
        keepalive_interval: Duration::ZERO,
        keepalive_timeout: Duration::ZERO,
    };
    let mut connection: Tested = Connection::new(server, config, answer);
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let head = Head { len: payload.len(), kind, flags, stream };
        [&head.to_bytes()[..], payload].concat()
    };
    let mut sent = frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    if window > 0 {
        sent.extend(frame(kind::WINDOW_UPDATE, 0, 0, &window.to_be_bytes()));
    }
    for stream in 0..streams {
        sent.extend(frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 2 * stream + 1, &[0x83, 0x86, 0x84]));
    }
    client.write_all(&sent).await.unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..20 {
        assert!(Pin::new(&mut connection).poll(&mut cx).is_pending());
    }
    (client, connection)
}

#[tokio::test]
async fn whoever_waits_does_so_once() {
    let mut cx = Context::from_waker(Waker::noop());
    // The client takes no more on the connection; or its socket is full.
    for (window, socket) in [(0, 1 << 20), (1 << 30, 1 << 12)] {
        let (_client, mut connection) = stalled(5, window, socket).await;
        let waiting = |connection: &Tested| (connection.waiting_for_window.len(), connection.waiting_for_room.len());
        let before = waiting(&connection);
        assert_eq!(before, if window == 0 { (5, 0) } else { (0, 5) });
        for _ in 0..100 {
            connection.slots.iter().for_each(|slot| slot.task.wake_by_ref());
            assert!(Pin::new(&mut connection).poll(&mut cx).is_pending());
        }
        assert_eq!(waiting(&connection), before);
    }
}
