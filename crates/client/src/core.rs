//! What an informer does with each answer: plain synchronous code, without sockets, clocks or tasks.
//!
//! The driver asks [`Core::next`] what is wanted, a list or a watch, does it, and hands in what comes. It publishes each
//! [`Batch`] that it gets for that. A broken connection is [`Core::on_stream_end`]; nothing more is needed to go on.
//!
//! Invariants:
//! - The state is the range at its revision: every change up to it is in, none behind it.
//! - It moves by whole revisions only: of a revision whose events come in several fragments, nothing is taken before
//!   the last one is there.
//! - A watch begins at the state's revision + 1. So a change comes once, whatever breaks.
//! - A change is taken only where it follows the version that is held. So a change that a server leaves out is noticed
//!   with the next one of its key, one that comes too late when it comes.

mod list;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use tailwater_api::etcdserverpb::{WatchCreateRequest, WatchResponse};
use tailwater_api::mvccpb::event::EventType;
use tailwater_api::mvccpb::{Event, KeyValue};

use crate::object::{BoxError, Change, Object, RelistCause, Snapshot, Stamp, Undecodable};
use crate::range::KeyRange;
pub use list::BadList;
use list::Listing;

/// Makes an object's value of a key and its bytes.
pub(crate) type Decode<T> = Arc<dyn Fn(&[u8], Bytes) -> Result<T, BoxError> + Send + Sync>;

/// The id in answers that speak for all watches of a stream.
const ALL_WATCHES: i64 = -1;

/// What is wanted of the servers now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The whole range at one revision.
    List,
    /// All changes from this revision on.
    Watch(i64),
}

/// The changes from one state to the next.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    /// In order. Of the first state none: there is nothing that it differs from.
    pub(crate) changes: Vec<Change<T>>,
    /// What they lead to.
    pub(crate) state: Snapshot<T>,
    /// Whether it is the first state.
    pub(crate) is_first: bool,
}

/// What an answer of a watch stream means.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// Nothing to do.
    Nothing,
    /// The watch is there. `is_behind`: the server has not reached the state's revision. It may be late; but when a
    /// linearizable read says the same, history was lost: see [`Core::on_current`].
    Created { is_behind: bool },
    /// A new state; without changes when only the revision moved.
    Changed(Batch<T>),
    /// The watch can't go on; a list is wanted.
    Relist(RelistCause),
    /// The server has ended the watch and says why; it can be opened again.
    Ended(String),
}

/// What can't be: a change that does not follow the version held.
struct Gap;

/// The state and what is under way.
pub(crate) struct Core<T> {
    range: KeyRange,
    page_size: i64,
    wants_prev_kv: bool,
    decode: Decode<T>,
    state: Snapshot<T>,
    listing: Option<Listing<T>>,
    stream: Option<Stream>,
    duplicates: u64,
}

/// The watch stream that is open.
#[derive(Default)]
struct Stream {
    /// Known once the watch is created.
    watch_id: Option<i64>,
    /// What comes has at least this revision.
    at_least: i64,
    /// Events of a revision that the next fragment may have more of.
    pending: Vec<Event>,
}

impl<T> Core<T> {
    /// Nothing is known yet. `page_size`: keys per answer where the range is read in pages.
    pub(crate) fn new(range: KeyRange, decode: Decode<T>, page_size: i64, wants_prev_kv: bool) -> Self {
        let state = Snapshot::default();
        let listing = Some(Listing::new(None));
        Self { range, page_size, wants_prev_kv, decode, state, listing, stream: None, duplicates: 0 }
    }

    /// What is wanted.
    pub(crate) fn next(&self) -> Next {
        match self.listing {
            Some(_) => Next::List,
            None => Next::Watch(self.state.revision + 1),
        }
    }

    /// The state as of now.
    pub(crate) fn state(&self) -> &Snapshot<T> {
        &self.state
    }

    /// Events that came again and were left out.
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// The request that opens the watch. Fragments are welcome: a big revision then comes in pieces.
    pub(crate) fn watch_request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.range.key.clone(),
            range_end: self.range.end.clone(),
            start_revision: self.state.revision + 1,
            progress_notify: true,
            prev_kv: self.wants_prev_kv,
            fragment: true,
            ..Default::default()
        }
    }

    /// A watch stream begins.
    pub(crate) fn on_stream_begin(&mut self) {
        self.stream = Some(Stream::default());
    }

    /// The stream broke. What came of a revision in part is forgotten; it will come whole.
    pub(crate) fn on_stream_end(&mut self) {
        self.stream = None;
    }

    /// A linearizable read told the servers' revision. Whether a list is wanted because history was lost.
    pub(crate) fn on_current(&mut self, revision: i64) -> bool {
        let is_lost = revision < self.state.revision;
        if is_lost {
            self.relist(RelistCause::HistoryLost { revision });
        }
        is_lost
    }

    /// The next answer of the watch stream.
    pub(crate) fn on_answer(&mut self, answer: WatchResponse) -> Step<T> {
        // What was on its way when the stream was given up.
        let Some(stream) = &mut self.stream else { return Step::Nothing };
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.created && !answer.canceled {
            stream.watch_id = Some(answer.watch_id);
            return Step::Created { is_behind: revision < self.state.revision };
        }
        let is_ours = stream.watch_id == Some(answer.watch_id);
        if answer.canceled && (is_ours || answer.created || answer.watch_id == ALL_WATCHES) {
            self.stream = None;
            if answer.compact_revision != 0 {
                return self.relist(RelistCause::Compacted { compact_revision: answer.compact_revision });
            }
            return Step::Ended(answer.cancel_reason);
        }
        if !answer.events.is_empty() && is_ours {
            return self.on_events(answer.events, answer.fragment);
        }
        let is_progress = answer.events.is_empty() && stream.watch_id.is_some() && stream.pending.is_empty();
        if is_progress && (is_ours || answer.watch_id == ALL_WATCHES) {
            return self.on_progress(revision);
        }
        Step::Nothing
    }

    fn on_progress(&mut self, revision: i64) -> Step<T> {
        if let Some(stream) = &mut self.stream {
            stream.at_least = stream.at_least.max(revision + 1);
        }
        if revision <= self.state.revision {
            return Step::Nothing;
        }
        self.state.revision = revision;
        Step::Changed(Batch { changes: Vec::new(), state: self.state.clone(), is_first: false })
    }

    fn on_events(&mut self, events: Vec<Event>, is_fragment: bool) -> Step<T> {
        let Some(mut stream) = self.stream.take() else { return Step::Nothing };
        stream.pending.extend(events);
        let newest = stream.pending.last().map(revision_of);
        let whole = match is_fragment {
            true => stream.pending.iter().rposition(|event| Some(revision_of(event)) != newest).map_or(0, |at| at + 1),
            false => stream.pending.len(),
        };
        let mut next = self.state.clone();
        let mut changes = Vec::new();
        for event in stream.pending.drain(..whole) {
            let revision = revision_of(&event);
            let is_late = revision < stream.at_least;
            stream.at_least = revision;
            if is_late {
                return self.relist(RelistCause::Gap { revision });
            }
            // A stream that begins further back than it was asked to.
            if revision <= self.state.revision {
                self.duplicates += 1;
                continue;
            }
            match self.take(&mut next, event) {
                Ok(change) => changes.extend(change),
                Err(Gap) => return self.relist(RelistCause::Gap { revision }),
            }
            next.revision = revision;
        }
        self.stream = Some(stream);
        if next.revision == self.state.revision {
            return Step::Nothing;
        }
        self.state = next;
        Step::Changed(Batch { changes, state: self.state.clone(), is_first: false })
    }

    /// Brings one event into `state`.
    fn take(&self, state: &mut Snapshot<T>, event: Event) -> Result<Option<Change<T>>, Gap> {
        let held = event.kv.as_ref().and_then(|kv| state.stamp(&kv.key));
        let is_delete = event.r#type == EventType::Delete as i32;
        let kv = event.kv.ok_or(Gap)?;
        let follows = match held {
            None => !is_delete && kv.version == 1,
            Some(_) if is_delete => true,
            Some(held) => kv.version == held.version + 1 && kv.create_revision == held.create_revision,
        };
        // It is missing where it is compacted.
        let is_after_held = event.prev_kv.is_none_or(|prev| held == Some(Stamp::of(&prev)));
        if !follows || !is_after_held {
            return Err(Gap);
        }
        if is_delete {
            state.undecodable.remove(&kv.key);
            let old = state.objects.remove(&kv.key);
            return Ok(old.map(|old| Change::Deleted { old, revision: kv.mod_revision }));
        }
        Ok(Some(match decoded(&self.decode, kv) {
            Ok(new) => {
                state.undecodable.remove(&new.key);
                let old = state.objects.insert(new.key.clone(), new.clone());
                Change::Applied { old, new }
            }
            Err(what) => {
                state.undecodable.insert(what.key.clone(), what.clone());
                let old = state.objects.remove(&what.key);
                Change::Undecodable { what, old }
            }
        }))
    }

    fn relist(&mut self, cause: RelistCause) -> Step<T> {
        self.stream = None;
        self.listing = Some(Listing::new(Some(cause)));
        Step::Relist(cause)
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn decoded<T>(decode: &Decode<T>, kv: KeyValue) -> Result<Arc<Object<T>>, Arc<Undecodable>> {
    let stamp = Stamp::of(&kv);
    match decode(&kv.key, kv.value) {
        Ok(value) => Ok(Arc::new(Object { key: kv.key, stamp, lease: kv.lease, value })),
        Err(error) => Err(Arc::new(Undecodable { key: kv.key, stamp, error })),
    }
}
