//! What waits for one peer, and what is on its way to it: bounded in bytes, in the order given.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;
use tailwater_api::peer::{Hello, PeerBatch};
use tailwater_api::wire;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a message costs besides its bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// How often a batch asks for its own acknowledgement, which tells how long the way is.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// Raft's `MsgAppend`, and the field that holds a message's type.
const MSG_APPEND: u64 = 3;
const TYPE_FIELD: u32 = 1;

/// The two ways to a peer, each a connection of its own: what keeps leadership alive must not stand behind megabytes
/// in a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    /// Heartbeats, votes, answers: small, and late is as bad as lost.
    Urgent,
    /// Appends, in order among themselves.
    Append,
}

impl LaneKind {
    /// The lane of an encoded raft message. Its type is its first field, and left out when it is 0.
    pub(crate) fn of(message: &[u8]) -> Self {
        let tag = TYPE_FIELD << 3 | wire::VARINT;
        match message {
            [first, kind, ..] if u32::from(*first) == tag && u64::from(*kind) == MSG_APPEND => Self::Append,
            _ => Self::Urgent,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Append => "append",
        }
    }
}

/// One lane to one peer. Whoever pushes never waits; one session at a time takes from it.
#[derive(Debug)]
pub(crate) struct Lane {
    state: Mutex<State>,
    /// Told when a message comes in, for a link that has no session.
    work: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Batches on their way.
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    /// Bytes of messages taken in this session.
    taken: u64,
    /// When a batch asked for its own acknowledgement last.
    probed: Option<Instant>,
    /// The session that takes; an older one gets nothing any more.
    session: u64,
    /// When a batch was acknowledged last.
    heard: Option<Instant>,
    /// Whether the other side has accepted this session's hello.
    is_open: bool,
    waker: Option<Waker>,
}

/// A batch on its way.
#[derive(Debug)]
struct Sent {
    /// The count of bytes of the session up to its end.
    end: u64,
    cost: usize,
    /// When it left.
    since: Instant,
    /// Whether its acknowledgement comes at once.
    is_probe: bool,
}

impl Lane {
    /// Holds up to `bytes_max`, what is on its way included; a single larger message passes when it is alone.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), work: Notify::new(), bytes_max }
    }

    /// Queues a message; `false` when there is no room.
    pub(crate) fn push(&self, message: Bytes) -> bool {
        let waker = {
            let mut state = self.state.lock();
            let cost = message.len() + MESSAGE_OVERHEAD_BYTES;
            let held = state.waiting_bytes + state.sent_bytes;
            if held > 0 && held + cost > self.bytes_max {
                return false;
            }
            state.waiting_bytes += cost;
            state.waiting.push_back(message);
            state.waker.take()
        };
        match waker {
            Some(waker) => waker.wake(),
            None => self.work.notify_one(),
        }
        true
    }

    /// Resolves when a message waits.
    pub(crate) async fn has_work(&self) {
        while self.state.lock().waiting.is_empty() {
            self.work.notified().await;
        }
    }

    /// Begins a session: what it sends begins with `hello`, and goes on once it is opened.
    pub(crate) fn begin(self: &Arc<Self>, hello: Hello, batch_bytes_max: usize) -> Outgoing {
        let mut state = self.state.lock();
        state.session += 1;
        state.is_open = false;
        Outgoing { lane: self.clone(), session: state.session, hello: Some(hello), batch_bytes_max }
    }

    /// The other side has accepted the session.
    pub(crate) fn open(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.is_open = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ends the session and forgets everything: what comes after a lost message is of no use.
    pub(crate) fn reset(&self) {
        let waker = {
            let mut state = self.state.lock();
            let session = state.session + 1;
            std::mem::replace(&mut *state, State { session, ..State::default() }).waker
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The other side has taken so many bytes of this session; how long the newest of them that asked for its own
    /// acknowledgement was on its way.
    pub(crate) fn acknowledge(&self, received_bytes: u64, now: Instant) -> Option<Duration> {
        let mut state = self.state.lock();
        let mut round_trip = None;
        while let Some(sent) = state.sent.pop_front_if(|sent| sent.end <= received_bytes) {
            state.sent_bytes -= sent.cost;
            if sent.is_probe {
                round_trip = Some(now.saturating_duration_since(sent.since));
            }
            state.heard = Some(now);
        }
        round_trip
    }

    /// Since when the other side owes an acknowledgement and has given none. A slow way is not a silent one.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        let since = state.sent.front()?.since;
        Some(state.heard.map_or(since, |heard| heard.max(since)))
    }

    /// Bytes that wait or are on their way.
    pub(crate) fn held_bytes(&self) -> usize {
        let state = self.state.lock();
        state.waiting_bytes + state.sent_bytes
    }
}

/// What one session sends. It is pulled: HTTP/2 asks for the next batch when its windows have room, and until then
/// messages wait in the lane, where they are counted.
#[derive(Debug)]
pub(crate) struct Outgoing {
    lane: Arc<Lane>,
    session: u64,
    hello: Option<Hello>,
    batch_bytes_max: usize,
}

impl Stream for Outgoing {
    type Item = PeerBatch;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<PeerBatch>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(PeerBatch { hello: Some(hello), ..Default::default() }));
        }
        let mut state = self.lane.state.lock();
        if state.session != self.session {
            return Poll::Ready(None);
        }
        if !state.is_open || state.waiting.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(state.take(self.batch_bytes_max, Instant::now())))
    }
}

impl State {
    /// Takes up to `bytes_max` of messages, at least one.
    fn take(&mut self, bytes_max: usize, now: Instant) -> PeerBatch {
        let mut messages = Vec::new();
        let (mut bytes, mut cost) = (0, 0);
        while let Some(next) = self.waiting.front()
            && (messages.is_empty() || bytes + next.len() <= bytes_max)
        {
            bytes += next.len();
            cost += next.len() + MESSAGE_OVERHEAD_BYTES;
            messages.extend(self.waiting.pop_front());
        }
        self.taken += bytes as u64;
        self.waiting_bytes -= cost;
        self.sent_bytes += cost;
        let is_probe = self.probed.is_none_or(|probed| now >= probed + PROBE_PERIOD);
        if is_probe {
            self.probed = Some(now);
        }
        self.sent.push_back(Sent { end: self.taken, cost, since: now, is_probe });
        PeerBatch { hello: None, messages, ack_now: is_probe }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn message(kind: u8, len: usize) -> Bytes {
        let mut bytes = vec![0; len];
        bytes[..2].copy_from_slice(&[8, kind]);
        bytes.into()
    }

    #[test]
    fn only_appends_take_the_slow_lane() {
        assert_eq!(LaneKind::of(&message(3, 10)), LaneKind::Append);
        for kind in [1, 4, 5, 8, 17] {
            assert_eq!(LaneKind::of(&message(kind, 10)), LaneKind::Urgent);
        }
        assert_eq!(LaneKind::of(&[]), LaneKind::Urgent);
        assert_eq!(LaneKind::of(&[16, 3]), LaneKind::Urgent, "a message whose type is left out");
    }

    #[test]
    fn the_bound_counts_what_is_not_acknowledged() {
        let lane = Arc::new(Lane::new(1000));
        let mut outgoing = lane.begin(Hello::default(), 200);
        assert!(lane.push(message(3, 2000)), "alone, even a large one");
        assert!(!lane.push(message(3, 2)), "no room beside it");
        assert!(outgoing.next().now_or_never().flatten().is_some_and(|batch| batch.hello.is_some()));
        assert!(outgoing.next().now_or_never().is_none(), "nothing before the hello is accepted");
        lane.open();
        let batch = outgoing.next().now_or_never().flatten().expect("a batch");
        assert_eq!(batch.messages.len(), 1);
        assert!(!lane.push(message(3, 2)), "it is on its way");
        assert!(lane.acknowledge(1999, Instant::now()).is_none());
        assert!(lane.silent_since().is_some());
        assert!(lane.acknowledge(2000, Instant::now()).is_some());
        assert_eq!((lane.held_bytes(), lane.silent_since()), (0, None));
        for _ in 0..5 {
            assert!(lane.push(message(3, 100)));
        }
        let sizes: Vec<_> =
            std::iter::from_fn(|| outgoing.next().now_or_never().flatten()).map(|batch| batch.messages.len()).collect();
        assert_eq!(sizes, [2, 2, 1], "bounded in bytes");
    }

    #[test]
    fn an_older_session_takes_nothing() {
        let lane = Arc::new(Lane::new(1000));
        let mut old = lane.begin(Hello::default(), 100);
        assert!(old.next().now_or_never().flatten().is_some());
        lane.reset();
        let mut new = lane.begin(Hello::default(), 100);
        lane.open();
        assert!(lane.push(message(1, 10)));
        assert!(old.next().now_or_never().expect("ended").is_none());
        assert!(new.next().now_or_never().flatten().is_some());
        assert_eq!(new.next().now_or_never().flatten().expect("the message").messages.len(), 1);
    }
}
