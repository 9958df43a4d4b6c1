//! Watchers: streams of one to three watches that are judged response by response, and resume elsewhere when they end.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb;
use tailwater_eventlog::{EventKind, KeyRange, Revision};
use tailwater_fanout::{CreateWatch, ReadError, WatchControl, WatchFilter, WatchStream};

use super::nodes::query;
use super::{Event, World};
use crate::member::{At, Thread};
use crate::node::{Place, Spot};
use crate::operation::Kind;
use crate::oracle::answers::same_kv;
use crate::oracle::truth::{Truth, show};
use crate::plan::{Bug, Plan};
use crate::random::Random;
use crate::violation::{Checked, Guarantee, broken, check};

/// Pieces that one poll takes at most.
const PIECES_MAX: usize = 16;

/// One watch of a stream, as its client knows it.
#[derive(Debug)]
struct Watch {
    range: KeyRange,
    filter: WatchFilter,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// The next revision that it needs; `None`: from the moment of its creation on, and it is not created yet.
    next: Option<Revision>,
    created: bool,
    /// Events of a revision of which only fragments have come.
    parts: Vec<mvccpb::Event>,
}

/// A client that watches.
pub(super) struct Watcher {
    watches: BTreeMap<i64, Watch>,
    open: Option<Open>,
    /// It does not read until then.
    stalled_until: u64,
    received: u64,
}

/// An open stream.
struct Open {
    at: Spot,
    control: WatchControl,
    stream: WatchStream,
    buffer: Vec<u8>,
    /// A poll waits in the queue.
    due: bool,
}

impl Watcher {
    pub(super) fn new(plan: &Plan, random: &mut Random) -> Self {
        let count = 1 + random.index(3);
        let key = |random: &mut Random| bytes::Bytes::from(format!("k/{:02}", random.between(0, plan.keys - 1)));
        let watches = (1..=count).map(|id| {
            let range = match random.index(5) {
                0 => KeyRange::all(),
                1 => KeyRange::Span(bytes::Bytes::from_static(b"k/"), bytes::Bytes::from_static(b"k0")),
                2 => KeyRange::Span(bytes::Bytes::from_static(b"l/"), bytes::Bytes::from_static(b"l0")),
                3 => KeyRange::Key(key(random)),
                _ => KeyRange::From(key(random)),
            };
            let filter = WatchFilter { no_put: random.chance(50), no_delete: random.chance(100) };
            let watch = Watch {
                range,
                filter,
                prev_kv: random.chance(500),
                fragment: random.chance(300),
                progress_notify: random.chance(500),
                next: random.chance(500).then_some(Revision(2)),
                created: false,
                parts: Vec::new(),
            };
            (i64::try_from(id).expect("few"), watch)
        });
        Self { watches: watches.collect(), open: None, stalled_until: 0, received: 0 }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    fn place(&self) -> Option<Place> {
        self.open.as_ref().map(|open| open.at.place)
    }

    /// The stream is gone; what is known stays.
    pub(super) fn close(&mut self) {
        self.open = None;
        for watch in self.watches.values_mut() {
            watch.created = false;
            watch.parts.clear();
        }
    }

    /// It reads again.
    pub(super) fn wake_up(&mut self, now: u64) {
        self.stalled_until = self.stalled_until.min(now);
    }

    /// Whether it has everything up to a revision.
    pub(super) fn has_all(&self, truth: &Truth) -> bool {
        self.watches.values().all(|watch| watch.created && watch.missing(truth, truth.revision()).is_none())
    }

    pub(super) fn lag(&self, truth: &Truth) -> String {
        let watches = self.watches.iter().map(|(id, watch)| {
            let missing = watch.missing(truth, truth.revision()).map(|event| show(std::slice::from_ref(event)));
            format!("watch {id} created {} next {:?} misses {missing:?}", watch.created, watch.next)
        });
        format!("{:?}: {}", self.open.as_ref().map(|open| open.at), watches.collect::<Vec<_>>().join("; "))
    }
}

impl Watch {
    fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.filter.no_put,
            EventKind::Delete => !self.filter.no_delete,
        }
    }

    /// The first event up to a revision that it has not had.
    fn missing<'a>(&'a self, truth: &'a Truth, to: Revision) -> Option<&'a std::sync::Arc<tailwater_eventlog::Event>> {
        let next = self.next?;
        truth.events(&self.range, next, to).find(|event| self.wants(event.kind()))
    }

    /// Everything up to `to` is said to have been sent.
    fn progress(&mut self, truth: &Truth, to: Revision, id: i64) -> Checked {
        check(to <= truth.revision(), Guarantee::Bookmarkable, || format!("progress {to}, where no member is"))?;
        if let Some(missing) = self.missing(truth, to) {
            let missing = show(std::slice::from_ref(missing));
            return broken(Guarantee::Bookmarkable, format!("watch {id} is told of progress {to} without {missing}"));
        }
        self.next = self.next.map(|next| next.max(to.next()));
        Ok(())
    }

    /// Whole revisions of events.
    fn events(&mut self, truth: &Truth, events: &[mvccpb::Event], header: Revision, id: i64) -> Checked {
        let Some(next) = self.next else {
            return broken(Guarantee::Ordered, format!("watch {id} gets events before it is created"));
        };
        let at = |event: &mvccpb::Event| Revision(event.kv.as_ref().map_or(0, |kv| kv.mod_revision));
        let (first, last) = (at(&events[0]), at(&events[events.len() - 1]));
        check(last <= header, Guarantee::Ordered, || format!("watch {id} gets revision {last} under header {header}"))?;
        check(events.is_sorted_by_key(at), Guarantee::Ordered, || format!("watch {id} gets {events:?}"))?;
        check(first >= next, Guarantee::Unique, || {
            format!("watch {id} gets revision {first}, but had everything below {next}")
        })?;
        check(last <= truth.revision(), Guarantee::Reliable, || {
            format!("watch {id} gets revision {last}, which is not")
        })?;
        let mut expected = truth.events(&self.range, next, last).filter(|event| self.wants(event.kind()));
        for event in events {
            let revision = at(event);
            let Some(wanted) = expected.next() else {
                return broken(Guarantee::Unique, format!("watch {id} gets {event:?}, which is not its"));
            };
            check(wanted.revision() == revision, Guarantee::Reliable, || {
                format!("watch {id} gets {event:?} instead of {}", show(std::slice::from_ref(wanted)))
            })?;
            let kv = event.kv.as_ref();
            let same = match wanted.kind() {
                EventKind::Put => event.r#type == 0 && same_kv(Some(wanted), kv),
                EventKind::Delete => event.r#type == 1 && kv.is_some_and(|kv| kv.key == wanted.key()),
            };
            check(same, Guarantee::Reliable, || {
                format!("watch {id} gets {event:?} instead of {}", show(std::slice::from_ref(wanted)))
            })?;
            let before = truth.live(wanted.key(), Revision(revision.0 - 1));
            let fits = match &event.prev_kv {
                Some(prev) => self.prev_kv && same_kv(before, Some(prev)),
                // Gone for readers at and below the compacted revision; absent where the key is made anew.
                None => !self.prev_kv || before.is_none() || revision <= truth.compacted() || is_made(wanted),
            };
            check(fits, Guarantee::PrevKv, || {
                let before = before.map(|event| show(std::slice::from_ref(event)));
                format!("watch {id} gets {:?} as the version before {revision}, which is {before:?}", event.prev_kv)
            })?;
        }
        if let Some(left) = expected.next() {
            let left = show(std::slice::from_ref(left));
            return broken(Guarantee::Atomic, format!("watch {id} gets revision {last} without {left}"));
        }
        self.next = Some(last.next());
        Ok(())
    }
}

/// Whether the key did not live at the moment of this put.
fn is_made(event: &tailwater_eventlog::Event) -> bool {
    event.kind() == EventKind::Put && event.envelope().create_revision == event.revision()
}

impl World {
    /// A client that watches opens a stream, leaves one, stalls, or asks for progress.
    pub(super) fn whim(&mut self, index: usize) -> Checked {
        let delay = self.between(20_000, 1_500_000);
        self.schedule(delay, Event::Whim(index));
        if self.watchers[index].open.is_none() {
            self.open_stream(index);
            return Ok(());
        }
        // In the end each of them must have caught up at the same time, so they stay where they are; but who missed that
        // it was removed, and whom to ask, catches up with nothing.
        let ends = self.settle_by.is_some();
        let lost = ends
            && matches!(self.watchers[index].place(),
                Some(Place::Member(member)) if !self.admin.has(self.members[member].id));
        match self.random.index(10) {
            0 if !ends => return self.list_again(index),
            0 | 1 if lost || !ends => {
                self.trace.step(self.now, "leave", &[index as u64]);
                self.watchers[index].close();
                self.open_stream(index);
            }
            2 if self.settle_by.is_none() => {
                self.watchers[index].stalled_until = self.now + self.between(100_000, 3_000_000);
            }
            _ => {
                if let Some(open) = &self.watchers[index].open {
                    open.control.progress();
                }
                self.wake_watcher(index, 1);
            }
        }
        Ok(())
    }

    /// A client that has lost its place lists what it watches at one fanout, and goes on from there at any other.
    fn list_again(&mut self, index: usize) -> Checked {
        self.watchers[index].close();
        let place = self.some_place();
        let Some(fanout) = self.fanout_at(place).map(|(_, fanout)| fanout.clone()) else { return Ok(()) };
        let ranges: Vec<(i64, KeyRange)> =
            self.watchers[index].watches.iter().map(|(id, watch)| (*id, watch.range.clone())).collect();
        for (id, range) in ranges {
            if !fanout.scope().covers(&range) {
                continue;
            }
            let answer = match fanout.range_here(query(range.clone(), None, 0)) {
                Ok(answer) => answer,
                // It can't be answered now.
                Err(ReadError::History(_) | ReadError::Stopped) => continue,
                Err(error) => return broken(Guarantee::Sound, format!("a list failed: {error}")),
            };
            let read = Kind::Read { range, at: None, serializable: true, limit: 0 };
            let operation = self.oracle.asks(0, read);
            self.oracle.read(&operation, &answer, Revision(0))?;
            if let Some(watch) = self.watchers[index].watches.get_mut(&id) {
                watch.next = Some(answer.header_revision.next());
            }
        }
        self.trace.step(self.now, "list", &[index as u64]);
        self.open_stream(index);
        Ok(())
    }

    fn open_stream(&mut self, index: usize) {
        let place = self.some_place();
        let Some((at, fanout)) = self.fanout_at(place) else { return };
        if !self.watchers[index].watches.values().all(|watch| fanout.scope().covers(&watch.range)) {
            return;
        }
        let (control, stream) = fanout.open_stream();
        let skip = i64::from(self.config.bug == Some(Bug::ResumesBehind));
        let watcher = &mut self.watchers[index];
        for (id, watch) in &watcher.watches {
            let start = watch.next.map_or(Revision(0), |next| Revision(next.0 + skip));
            let create = CreateWatch {
                range: watch.range.clone(),
                start,
                progress_notify: watch.progress_notify,
                filter: watch.filter,
                prev_kv: watch.prev_kv,
                watch_id: *id,
                fragment: watch.fragment,
            };
            control.create(create, None);
        }
        watcher.open = Some(Open { at, control, stream, buffer: Vec::new(), due: false });
        let shown = match place {
            Place::Member(member) => member as u64,
            Place::Node(node) => 1000 + node as u64,
        };
        self.trace.step(self.now, "watch", &[index as u64, shown]);
        self.wake_watcher(index, 10);
    }

    /// The process that they watch has ended.
    pub(super) fn close_watchers(&mut self, place: Place) {
        self.watchers.iter_mut().filter(|watcher| watcher.place() == Some(place)).for_each(Watcher::close);
    }

    pub(super) fn wake_watchers(&mut self, at: Spot) {
        for index in 0..self.watchers.len() {
            if self.watchers[index].open.as_ref().is_some_and(|open| open.at == at) {
                let delay = self.between(10, 2_000);
                self.wake_watcher(index, delay);
            }
        }
    }

    fn wake_watcher(&mut self, index: usize, delay: u64) {
        let Some(open) = &mut self.watchers[index].open else { return };
        if !std::mem::replace(&mut open.due, true) {
            self.schedule(delay, Event::Watcher(index));
        }
    }

    /// The client takes what its stream has.
    pub(super) fn poll_watcher(&mut self, index: usize) -> Checked {
        let stalled = self.watchers[index].stalled_until;
        let Some(at) = self.watchers[index].open.as_ref().map(|open| open.at) else { return Ok(()) };
        let wait = stalled.max(self.paused_until(at.place)).saturating_sub(self.now);
        if wait > 0 {
            self.schedule(wait, Event::Watcher(index));
            return Ok(());
        }
        let Some(open) = &mut self.watchers[index].open else { return Ok(()) };
        open.due = false;
        let (mut pieces, mut ended) = (0, false);
        let mut context = Context::from_waker(Waker::noop());
        while pieces < PIECES_MAX {
            match Pin::new(&mut open.stream).poll_next(&mut context) {
                Poll::Ready(Some(piece)) => open.buffer.extend_from_slice(&piece),
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending => break,
            }
            pieces += 1;
        }
        let mut responses = Vec::new();
        while let Some(response) = next_response(&mut open.buffer) {
            responses.push(response?);
        }
        self.trace.step(self.now, "poll", &[index as u64, pieces as u64, responses.len() as u64]);
        if self.config.bug == Some(Bug::ProgressTooEarly) {
            overtake(&mut responses);
        }
        for response in responses {
            self.watched(index, response)?;
            if self.watchers[index].open.is_none() {
                // It has had enough of this stream.
                return Ok(());
            }
        }
        if ended {
            let status = self.watchers[index].open.as_ref().map(|open| open.stream.status());
            self.trace.say(self.now, || format!("stream {index} ended: {status:?}"));
            self.watchers[index].close();
            return Ok(());
        }
        if pieces == PIECES_MAX {
            self.wake_watcher(index, 100);
        }
        match at.place {
            Place::Member(member) => self.wake_soon(At { member, run: at.run }, Thread::History),
            Place::Node(node) => self.wake_node(node, Thread::History),
        }
        Ok(())
    }

    /// A response, judged.
    fn watched(&mut self, index: usize, response: pb::WatchResponse) -> Checked {
        let header = Revision(response.header.as_ref().map_or(0, |header| header.revision));
        let truth = &self.oracle.truth;
        let watcher = &mut self.watchers[index];
        watcher.received += response.events.len() as u64;
        let id = response.watch_id;
        if id == -1 && !response.created {
            for (id, watch) in &mut watcher.watches {
                check(watch.created, Guarantee::Bookmarkable, || {
                    format!("progress of watch {id} before it is created")
                })?;
                watch.progress(truth, header, *id)?;
            }
            self.oracle.tell(header);
            return Ok(());
        }
        let Some(watch) = watcher.watches.get_mut(&id) else {
            return broken(Guarantee::Unique, format!("a response for watch {id}, which was not asked for"));
        };
        if response.created {
            check(!watch.created && !response.canceled, Guarantee::Unique, || format!("{response:?}"))?;
            watch.created = true;
            watch.next = watch.next.or(Some(header.next()));
        } else if response.canceled {
            let compacted = Revision(response.compact_revision);
            let next = watch.next.unwrap_or(compacted);
            let legal = next < compacted && compacted <= truth.compacted();
            check(legal, Guarantee::Reliable, || format!("watch {id} at revision {next} was ended: {response:?}"))?;
            // What it missed is gone for it; it goes on where history begins.
            watch.next = Some(compacted);
            watch.parts.clear();
            if let Some(open) = &watcher.open {
                open.control.end(tailwater_fanout::StreamEnd::ClientClosed);
            }
            watcher.close();
            return Ok(());
        } else if response.fragment {
            check(watch.fragment, Guarantee::Atomic, || format!("watch {id} gets a fragment it did not ask for"))?;
            watch.parts.extend(response.events);
            return Ok(());
        } else if response.events.is_empty() && watch.parts.is_empty() {
            watch.progress(truth, header, id)?;
        } else {
            let mut events = std::mem::take(&mut watch.parts);
            events.extend(response.events);
            watch.events(truth, &events, header, id)?;
        }
        self.oracle.tell(header);
        Ok(())
    }
}

/// Takes the next whole response out of what has come.
fn next_response(buffer: &mut Vec<u8>) -> Option<Checked<pb::WatchResponse>> {
    let prefix: [u8; 5] = buffer.get(..5)?.try_into().ok()?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    let end = 5 + usize::try_from(length).ok()?;
    let decoded = pb::WatchResponse::decode(buffer.get(5..end)?);
    buffer.drain(..end);
    Some(decoded.or_else(|error| broken(Guarantee::Sound, format!("a watch response can't be read: {error}"))))
}

/// The planted bug: progress is sent before the events that were ready with it.
fn overtake(responses: &mut [pb::WatchResponse]) {
    let is_progress = |response: &pb::WatchResponse| {
        response.events.is_empty() && !response.created && !response.canceled && !response.fragment
    };
    for at in 1..responses.len() {
        if is_progress(&responses[at]) && !responses[at - 1].created {
            responses.swap(at - 1, at);
        }
    }
}
