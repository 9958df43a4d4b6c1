//! What this process says of itself: to other nodes, and as `/status` to operators.

use bytes::Bytes;
use tailwater_eventlog::KeyRange;
use tailwater_fanout::{Fanout, FanoutLoad, StreamLoad};
use tailwater_transport::{NodeLoad, PrefixLoad, SlowStream};

use crate::process;

/// Streams that are told one by one.
const SLOWEST_MAX: usize = 10;

/// Bytes of each end of a range that are told; it is for people, and clients choose how long it is.
const KEY_BYTES_MAX: usize = 256;

/// What the read plane of this process carries.
pub(crate) fn node_load(fanout: &Fanout) -> NodeLoad {
    let FanoutLoad {
        streams,
        watchers,
        watchers_behind,
        held_bytes,
        held_bytes_max,
        window_bytes,
        lag_revisions,
        keys,
        slowest,
        events,
        prefixes,
        streams_behind: _,
        lag: _,
    } = fanout.load(SLOWEST_MAX);
    NodeLoad {
        streams: streams as u64,
        watchers: watchers as u64,
        watchers_behind: watchers_behind as u64,
        held_bytes: held_bytes as u64,
        held_bytes_max: held_bytes_max as u64,
        window_bytes: window_bytes as u64,
        lag_revisions,
        keys: keys as u64,
        resident_bytes: process::resident_bytes(),
        slowest: slowest.into_iter().map(slow_stream).collect(),
        events,
        prefixes: prefixes
            .into_iter()
            .map(|load| PrefixLoad { prefix: load.prefix, watchers: load.watchers })
            .collect(),
    }
}

fn slow_stream(stream: StreamLoad) -> SlowStream {
    let (range_start, range_end) = match stream.range {
        KeyRange::Key(key) => (key, Bytes::new()),
        KeyRange::Span(start, end) => (start, end),
        KeyRange::From(start) => (start, Bytes::from_static(&[0])),
    };
    SlowStream {
        peer: stream.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        range_start: cut(range_start),
        range_end: cut(range_end),
        backlog_revisions: i64::try_from(stream.backlog_revisions).unwrap_or(i64::MAX),
        held_bytes: stream.held_bytes as u64,
    }
}

fn cut(key: Bytes) -> Bytes {
    if key.len() <= KEY_BYTES_MAX { key } else { Bytes::copy_from_slice(&key[..KEY_BYTES_MAX]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_keys_of_slow_streams_are_told_by_their_beginning() {
        let range = KeyRange::Span(vec![b'a'; 1 << 20].into(), Bytes::from_static(b"b"));
        let told = slow_stream(StreamLoad { peer: None, range, backlog_revisions: 3, held_bytes: 4 });
        assert_eq!(told.range_start, Bytes::from(vec![b'a'; KEY_BYTES_MAX]));
        assert_eq!((told.range_end.as_ref(), told.backlog_revisions, told.held_bytes), (&b"b"[..], 3, 4));
    }
}
