//! One watch stream: its watchers, and what goes to the client next.
//!
//! This is the synchronous core of a stream. Requests come in through [`Delivery::create`] and its siblings; the
//! transport pulls pieces with [`Delivery::next`]. Between two pulls a stream holds cursors, answers to requests (the
//! number of which is bounded) and at most one piece that is under way.
//!
//! Order within a stream: answers in the order of their requests, `created` before any event of its watcher, a
//! message that has begun before anything else, and progress R only after everything up to R.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tailwater_eventlog::{HistoryPoint, KeyRange, Revision};

use crate::core::{Core, WatcherState};
use crate::encode::{HEAD_BYTES_MAX, Head};
use crate::group::{GroupKey, SharedGroup, Take, Taken};
use crate::inbox::{Inbox, Mail};
use crate::metrics::Ended;
use crate::store::Published;
use crate::{CreateWatch, StreamEnd};

mod progress;
mod replay;
mod watchers;

use progress::Progress;
use replay::{Job, Message};
use watchers::Watchers;

/// etcd's texts.
pub(crate) mod text {
    pub(crate) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
    pub(crate) const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
    pub(crate) const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
    pub(crate) const STOPPED: &str = "etcdserver: server stopped";
    pub(crate) const TOO_MANY: &str = "etcdserver: too many requests";
    pub(crate) const ELSEWHERE: &str = "tailwater: no live tail here, resume elsewhere";
    pub(crate) const OUT_OF_SCOPE: &str = "tailwater: no replica here covers the range";
    pub(crate) const UNAVAILABLE: &str = "etcdserver: watch history unavailable, resume elsewhere";
}

/// gRPC's UNAVAILABLE.
pub(crate) const UNAVAILABLE: i32 = 14;
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: i32 = 8;
/// The watch id of answers that concern no watcher.
const NO_WATCH: i64 = -1;
/// Answers that wait for the client to read; a client that sends requests and reads nothing is ended beyond it.
const ANSWERS_MAX: usize = 16 << 10;
/// Ids that watchers ended by compaction keep in use; beyond it the lowest is free again.
const ENDED_MAX: usize = 16 << 10;
/// Room for so many answers and ids of watchers is kept while there are none.
const IDLE_MAX: usize = 16;
/// Steps of a scan that one pull makes at most, so that a stream far behind does not hold its thread.
const STEPS_MAX: usize = 32;
/// Shared bytes below this are copied into the piece; above it they are referenced.
const COPY_BYTES_MAX: usize = 4 << 10;

/// One watch id.
struct Watcher {
    group: SharedGroup,
    /// The next revision that it needs.
    next: Revision,
    state: WatcherState,
    /// Its start was not published when it was created, and it has not moved since.
    unreached: bool,
    progress_notify: bool,
    fragment: bool,
    /// Something was sent since the last tick.
    sent: bool,
    /// It is in `Delivery::ready`.
    queued: bool,
}

impl Watcher {
    /// Whether the revision that it was asked to start at is published.
    fn has_started(&self, published: Revision) -> bool {
        !self.unreached || self.next <= published
    }
}

/// What a pull yields.
pub(crate) enum Next {
    Piece(Bytes),
    /// Nothing now; the inbox wakes.
    Idle,
    /// Nothing yet, but there is more to scan: pull again soon.
    Again,
    Ended(StreamEnd),
}

/// What one step of a watcher did.
enum Step {
    /// A response was added, or a message was begun.
    Sent,
    /// It has everything that is published.
    Drained,
    /// It looked at events and has to go on.
    Scanned,
    /// It waits for history.
    Waits,
    /// The piece has no room for it; hand out the piece first.
    Full,
    /// It was ended.
    Gone,
}

/// The state of a stream.
pub(crate) struct Delivery {
    core: Arc<Core>,
    inbox: Arc<Inbox>,
    watchers: Watchers<Watcher>,
    /// Ids of watchers that compaction has ended: as in etcd they stay in use until the client cancels them.
    ended: BTreeSet<i64>,
    next_id: i64,
    answers: VecDeque<Head>,
    ready: VecDeque<i64>,
    /// Pieces that must go out next, in order.
    under_way: VecDeque<Bytes>,
    message: Option<Message>,
    job: Option<Job>,
    progress: Progress,
    slices: Vec<Bytes>,
    closed: bool,
}

impl Delivery {
    pub(crate) fn new(core: Arc<Core>, inbox: Arc<Inbox>) -> Self {
        Self {
            core,
            inbox,
            watchers: Watchers::default(),
            ended: BTreeSet::new(),
            next_id: 0,
            answers: VecDeque::new(),
            ready: VecDeque::new(),
            under_way: VecDeque::new(),
            message: None,
            job: None,
            progress: Progress::default(),
            slices: Vec::new(),
            closed: false,
        }
    }

    /// Adds a watcher or refuses it; see [`crate::WatchControl::create`].
    pub(crate) fn create(&mut self, create: CreateWatch, denied: Option<String>) {
        if self.closed {
            return;
        }
        if !self.core.scope.covers(&create.range) {
            // Not in band: clients take that for the end of the watch.
            return self.inbox.end(StreamEnd::Status(UNAVAILABLE, text::OUT_OF_SCOPE.into()));
        }
        let published = self.core.published.load_full();
        let refused = if create.start.0 < 0 {
            Some(text::COMPACTED.to_owned())
        } else if let Some(reason) = denied {
            Some(reason)
        } else if create.range.is_empty() {
            Some(text::EMPTY_RANGE.to_owned())
        } else {
            let taken = create.watch_id != 0 && self.is_in_use(create.watch_id);
            taken.then(|| text::DUPLICATE_ID.to_owned())
        };
        let mut head = answer(&published, NO_WATCH);
        head.created = true;
        if let Some(reason) = refused {
            (head.canceled, head.cancel_reason) = (true, reason);
            self.core.flow.ended(Ended::Refused, 1);
            return self.answer(head);
        }
        head.watch_id = if create.watch_id == 0 { self.assign_id() } else { create.watch_id };
        let watch_id = head.watch_id;
        self.answer(head);
        if create.start.0 > 0 && create.start < published.snapshot.compacted {
            let head = compacted_cancel(&published, watch_id, published.snapshot.compacted);
            self.core.flow.ended(Ended::Compacted, 1);
            self.keep_id(watch_id);
            return self.answer(head);
        }
        self.progress.added(watch_id, create.start);
        self.add(watch_id, create, &published);
    }

    fn add(&mut self, watch_id: i64, create: CreateWatch, published: &Published) {
        let key = GroupKey::new(&create.range, create.filter, create.prev_kv);
        let ((group, is_member), matched) = {
            let mut registry = self.core.registry.lock();
            (registry.acquire(key, watch_id, &self.inbox), registry.matched())
        };
        if !is_member {
            group.join(watch_id, &self.inbox);
        }
        let reached = published.revision();
        let next = if create.start.0 == 0 { reached.next() } else { create.start };
        let is_future = next > reached.next();
        let watcher = Watcher {
            group,
            next,
            state: if is_future { WatcherState::Future } else { WatcherState::CatchingUp },
            unreached: create.start > reached,
            progress_notify: create.progress_notify,
            fragment: create.fragment,
            sent: false,
            queued: true,
        };
        self.core.memory.watcher_added(watcher.state);
        self.watchers.insert(watch_id, watcher);
        self.ready.push_back(watch_id);
        if is_future {
            self.core.wakeups.wait_for(before(next), watch_id, &self.inbox);
        }
        // A batch that is matched but not yet published was not matched against a new group.
        if self.core.published.load().revision() < matched {
            self.core.wakeups.wait_for(matched, watch_id, &self.inbox);
            if self.core.published.load().revision() >= matched {
                self.inbox.ready(watch_id, matched);
            }
        }
    }

    fn is_in_use(&self, watch_id: i64) -> bool {
        self.watchers.contains(watch_id) || self.ended.contains(&watch_id)
    }

    fn keep_id(&mut self, watch_id: i64) {
        self.ended.insert(watch_id);
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    fn assign_id(&mut self) -> i64 {
        while self.is_in_use(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Ends a watcher; see [`crate::WatchControl::cancel`].
    pub(crate) fn cancel(&mut self, watch_id: i64) {
        if self.remove(watch_id) {
            self.core.flow.ended(Ended::Cancelled, 1);
        } else if !self.ended.remove(&watch_id) {
            return;
        }
        let mut head = answer(&self.core.published.load(), watch_id);
        head.canceled = true;
        self.answer(head);
    }

    /// Cancels the watchers for whose range there is a reason.
    pub(crate) fn deny(&mut self, reason: &dyn Fn(&KeyRange) -> Option<String>) {
        let ranges = self.watchers.range_from(i64::MIN).map(|(id, watcher)| (id, watcher.group.key().range()));
        let denied: Vec<_> = ranges.filter_map(|(id, range)| Some((id, reason(&range)?))).collect();
        for (watch_id, reason) in denied {
            self.remove(watch_id);
            self.core.flow.ended(Ended::Refused, 1);
            let mut head = answer(&self.core.published.load(), watch_id);
            (head.canceled, head.cancel_reason) = (true, reason);
            self.answer(head);
        }
    }

    /// Asks for progress of the whole stream.
    pub(crate) fn request_progress(&mut self) {
        let published = self.core.published.load().revision();
        if self.may_tell_progress(published) {
            self.progress.request(published);
        }
        self.inbox.wake();
    }

    /// Answers that the client has not read yet.
    pub(crate) fn backlog(&self) -> usize {
        self.answers.len()
    }

    /// The first revision that has yet to be given to the client, as far as the last pull has seen.
    pub(crate) fn oldest_wanted(&self) -> Option<Revision> {
        let first = || self.ready.front().and_then(|watch_id| self.watchers.get(*watch_id)).map(|w| w.next);
        self.message.as_ref().map(Message::revision).or_else(first)
    }

    /// The range of the watcher that is furthest behind among those that have something to be given.
    pub(crate) fn furthest_behind(&self) -> Option<KeyRange> {
        let waiting = |w: &&Watcher| w.queued;
        let furthest = self.watchers.values().filter(waiting).min_by_key(|w| w.next);
        furthest.or_else(|| self.watchers.values().next()).map(|w| w.group.key().range())
    }

    /// Bytes of the pieces that must go out next.
    pub(crate) fn under_way_bytes(&self) -> usize {
        self.under_way.iter().map(Bytes::len).sum()
    }

    fn answer(&mut self, head: Head) {
        if self.answers.len() >= ANSWERS_MAX {
            return self.inbox.end(StreamEnd::Status(RESOURCE_EXHAUSTED, text::TOO_MANY.into()));
        }
        self.answers.push_back(head);
        self.inbox.wake();
    }

    fn remove(&mut self, watch_id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(watch_id) else { return false };
        self.release(watch_id, &watcher);
        self.progress.removed(watch_id);
        let mut finishes = false;
        if let Some(message) = self.message.as_mut().filter(|message| message.watch_id == watch_id) {
            message.orphaned = true;
            finishes = message.has_begun();
            if !finishes {
                self.message = None;
            }
        }
        // The id may be taken anew, with another range; only a message that has begun reads on.
        if !finishes && self.job.as_ref().is_some_and(|job| job.watch_id == watch_id) {
            self.job = None;
        }
        true
    }

    /// What others hold for a watcher that is gone.
    fn release(&self, watch_id: i64, watcher: &Watcher) {
        let is_gone = self.core.registry.lock().release(&watcher.group);
        if !is_gone {
            watcher.group.leave(watch_id, &self.inbox);
        }
        if watcher.state == WatcherState::Future {
            self.core.wakeups.wait_no_more(before(watcher.next), watch_id, &self.inbox);
        }
        self.core.memory.watcher_removed(watcher.state);
    }

    /// Frees everything.
    pub(crate) fn close(&mut self, ended: Ended) {
        self.closed = true;
        self.core.flow.ended(ended, self.watchers.len());
        let watchers: Vec<_> = self.watchers.drain().collect();
        for (watch_id, watcher) in watchers {
            self.release(watch_id, &watcher);
        }
        (self.message, self.job) = (None, None);
        self.answers = VecDeque::new();
        self.ended.clear();
        self.ready = VecDeque::new();
        self.under_way = VecDeque::new();
    }

    /// The next piece for the client.
    pub(crate) fn next(&mut self, mail: &mut Mail) -> Next {
        if let Some(end) = mail.end.take() {
            self.close(Ended::by(&end));
            return Next::Ended(end);
        }
        for watch_id in mail.ready.drain(..) {
            self.enqueue(watch_id);
        }
        // Read before anything is drained: progress up to here is true once all of it was handed out.
        let published = self.core.published.load_full();
        if mail.tick {
            self.tick(&published);
        }
        let chunk = self.core.chunk_bytes();
        let mut out = BytesMut::new();
        for _ in 0..STEPS_MAX {
            if let Some(piece) = self.under_way.pop_front() {
                return Next::Piece(piece);
            }
            let step = if let Some(message) = &self.message {
                if !message.has_begun() {
                    self.put_answers(&mut out, chunk);
                    if !out.is_empty() {
                        break;
                    }
                }
                self.continue_message(&published, chunk)
            } else {
                self.put_answers(&mut out, chunk);
                self.put_progress(&published);
                self.put_answers(&mut out, chunk);
                self.step_ready(&published, chunk, &mut out)
            };
            match step {
                Err(end) => {
                    self.close(Ended::by(&end));
                    return Next::Ended(end);
                }
                Ok(Step::Full) => break,
                Ok(Step::Drained | Step::Waits)
                    if self.under_way.is_empty() && (self.answers.is_empty() || self.message.is_some()) =>
                {
                    if out.is_empty() {
                        self.trim();
                        return Next::Idle;
                    }
                    return Next::Piece(out.freeze());
                }
                Ok(_) => {}
            }
            if !out.is_empty() && (out.len() >= chunk || !self.under_way.is_empty() || self.message.is_some()) {
                break;
            }
        }
        match out.is_empty() {
            false => Next::Piece(out.freeze()),
            true => self.under_way.pop_front().map_or(Next::Again, Next::Piece),
        }
    }

    /// Gives back what a burst of requests or events took and a silent stream does not need.
    fn trim(&mut self) {
        if self.answers.is_empty() && self.answers.capacity() > IDLE_MAX {
            self.answers = VecDeque::new();
        }
        if self.ready.is_empty() && self.ready.capacity() > IDLE_MAX {
            self.ready = VecDeque::new();
        }
        if self.slices.capacity() > IDLE_MAX {
            self.slices = Vec::new();
        }
    }

    fn enqueue(&mut self, watch_id: i64) {
        if let Some(watcher) = self.watchers.get_mut(watch_id).filter(|watcher| !watcher.queued) {
            watcher.queued = true;
            self.ready.push_back(watch_id);
        }
    }

    fn put_answers(&mut self, out: &mut BytesMut, chunk: usize) {
        while out.len() < chunk {
            let Some(head) = self.answers.pop_front() else { return };
            head.put(out, self.core.ids(), 0);
        }
    }

    /// Gives the ready watchers their turn until one has something to say.
    fn step_ready(&mut self, published: &Published, chunk: usize, out: &mut BytesMut) -> Result<Step, StreamEnd> {
        if !self.answers.is_empty() {
            return Ok(Step::Full);
        }
        for _ in 0..self.ready.len() {
            let Some(watch_id) = self.ready.pop_front() else { break };
            if !self.watchers.contains(watch_id) {
                continue;
            }
            let step = self.step(watch_id, published, chunk, out)?;
            match step {
                Step::Drained => {
                    let watcher = self.watchers.get_mut(watch_id).expect("a step that drains keeps the watcher");
                    watcher.queued = false;
                }
                Step::Waits => self.ready.push_back(watch_id),
                Step::Full => {
                    self.ready.push_front(watch_id);
                    return Ok(step);
                }
                Step::Sent | Step::Scanned => {
                    self.ready.push_back(watch_id);
                    return Ok(step);
                }
                Step::Gone => return Ok(step),
            }
        }
        Ok(if self.ready.is_empty() { Step::Drained } else { Step::Waits })
    }

    /// One response of one watcher, if there is anything for it.
    fn step(
        &mut self,
        watch_id: i64,
        published: &Published,
        chunk: usize,
        out: &mut BytesMut,
    ) -> Result<Step, StreamEnd> {
        let to = published.revision();
        let room = chunk.saturating_sub(out.len() + HEAD_BYTES_MAX);
        let room = room.min(self.core.config.response_bytes_max);
        let watcher = self.watchers.get_mut(watch_id).expect("only known watchers take a step");
        self.slices.clear();
        watcher.unreached &= watcher.next > to;
        let shared = if watcher.group.key().prev_kv() && watcher.next == published.snapshot.compacted {
            // What its group shares may have been encoded when this revision's previous versions were still visible.
            Take::Missed(watcher.next)
        } else {
            watcher.group.take(watcher.next, to, room, &mut self.slices)
        };
        match shared {
            Take::Drained => {
                // Everything up to `to` was matched against its group and nothing is left of it.
                watcher.next = watcher.next.max(to.next());
                let is_future = watcher.next > to.next();
                self.set_state(watch_id, if is_future { WatcherState::Future } else { WatcherState::Live });
                Ok(Step::Drained)
            }
            Take::Taken(taken) => {
                watcher.next = taken.last.next();
                watcher.sent = true;
                self.set_state(watch_id, WatcherState::Live);
                self.core.flow.live(taken.events, self.core.now().saturating_duration_since(taken.committed));
                self.put_shared(watch_id, published, taken, out);
                Ok(Step::Sent)
            }
            Take::TooLarge(_) if !out.is_empty() => Ok(Step::Full),
            Take::Missed(from) | Take::TooLarge(from) => {
                watcher.next = from;
                let fell_behind = matches!(watcher.state, WatcherState::Live | WatcherState::Slow);
                self.set_state(watch_id, if fell_behind { WatcherState::Slow } else { WatcherState::CatchingUp });
                self.replay(watch_id, published, chunk, out)
            }
        }
    }

    /// A response made of the shared slices.
    fn put_shared(&mut self, watch_id: i64, published: &Published, taken: Taken, out: &mut BytesMut) {
        let bytes = taken.bytes;
        // Room for all at once: growing step by step would allocate several times per response.
        out.reserve(HEAD_BYTES_MAX + if bytes <= COPY_BYTES_MAX { bytes } else { 0 });
        answer(published, watch_id).put(out, self.core.ids(), bytes);
        if bytes <= COPY_BYTES_MAX {
            self.slices.drain(..).for_each(|slice| out.extend_from_slice(&slice));
        } else {
            self.under_way.push_back(out.split().freeze());
            self.under_way.extend(self.slices.drain(..));
        }
    }

    fn set_state(&mut self, watch_id: i64, state: WatcherState) {
        let Some(watcher) = self.watchers.get_mut(watch_id) else { return };
        let before = std::mem::replace(&mut watcher.state, state);
        self.core.memory.watcher_moved(before, state);
    }

    /// Ends a watcher whose next revision is compacted.
    fn end_compacted(&mut self, watch_id: i64, published: &Published, compacted: Revision) -> Step {
        self.remove(watch_id);
        self.core.flow.ended(Ended::Compacted, 1);
        self.keep_id(watch_id);
        self.answers.push_back(compacted_cancel(published, watch_id, compacted));
        Step::Gone
    }
}

/// A response's head at what is published now.
fn answer(published: &Published, watch_id: i64) -> Head {
    Head { revision: published.revision(), term: published.snapshot.term, watch_id, ..Head::default() }
}

/// etcd sends this answer with revision 0 and no reason; its client makes ErrCompacted of it.
fn compacted_cancel(published: &Published, watch_id: i64, compacted: Revision) -> Head {
    Head { revision: Revision(0), canceled: true, compact_revision: compacted, ..answer(published, watch_id) }
}

/// The first event of `revision`.
fn first_of(revision: Revision) -> HistoryPoint {
    HistoryPoint { revision, sub: 0 }
}

fn before(revision: Revision) -> Revision {
    Revision(revision.0 - 1)
}
