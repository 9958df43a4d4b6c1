//! What clients did and were told, and what the cluster says in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tailwater_api::mvccpb::{Event, KeyValue};

/// The clock of one test run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).expect("no test runs for 500 years")
    }
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Reads one key.
    Read {
        /// Without a quorum.
        serializable: bool,
    },
    /// Writes a value that no other operation writes to all its keys, in one transaction when they are several.
    Put {
        /// The value.
        value: String,
    },
    /// Writes a unique value if the key's mod_revision (0: the key is absent) is as expected; else reads it.
    Swap {
        /// The mod_revision.
        expected: i64,
        /// The value.
        value: String,
    },
    /// Deletes one key.
    Delete,
}

/// A key's value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The value.
    pub(crate) value: String,
    /// Its mod_revision.
    pub(crate) revision: i64,
}

impl Version {
    /// As a server sends it.
    pub(crate) fn of(kv: &KeyValue) -> Self {
        Self { value: text(&kv.value), revision: kv.mod_revision }
    }
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The revision in the header.
    pub(crate) revision: i64,
    /// Whether something was written.
    pub(crate) wrote: bool,
    /// What a read, or a swap that wrote nothing, found.
    pub(crate) found: Option<Version>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With this answer.
    Ok(Answer),
    /// It was refused and has no effect.
    Refused,
    /// Nobody knows: it may have taken effect, or may yet.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) keys: Vec<String>,
    pub(crate) action: Action,
    /// When it began, by the run's clock.
    pub(crate) call: u64,
    /// When its end was known.
    pub(crate) end: u64,
    pub(crate) outcome: Outcome,
}

impl Operation {
    /// The answer, if there is one.
    pub(crate) fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }

    /// The value that it writes, if it writes one.
    pub(crate) fn value(&self) -> Option<&str> {
        match &self.action {
            Action::Put { value } | Action::Swap { value, .. } => Some(value),
            Action::Read { .. } | Action::Delete => None,
        }
    }

    /// Whether it must see everything that was acknowledged before it began.
    pub(crate) fn is_linearizable(&self) -> bool {
        self.action != Action::Read { serializable: true }
    }
}

/// One answer on a watch stream.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// When it came.
    pub(crate) at: u64,
    /// The revision in the header.
    pub(crate) revision: i64,
    /// Its events; none in a progress notification.
    pub(crate) events: Vec<Event>,
}

/// One stream of a watcher, from its start or resumption to its end.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The slot that served it.
    pub(crate) slot: usize,
    /// The revision that was asked for.
    pub(crate) start: i64,
    /// What came after `created`.
    pub(crate) replies: Vec<Reply>,
}

/// Everything that one watcher was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    pub(crate) sessions: Vec<Session>,
}

/// Everything that happened in one run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) operations: Vec<Operation>,
    pub(crate) watched: Vec<Watched>,
    /// All events from revision 2 on, with prev_kv, as a member has them in the end.
    pub(crate) log: Arc<Vec<Event>>,
    /// The revision in the end.
    pub(crate) revision: i64,
}

/// The states of all keys at all revisions, by replay of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct States {
    /// By key: what each revision that touched it left.
    keys: BTreeMap<String, Vec<(i64, Option<Version>)>>,
}

impl States {
    /// Replays `log`.
    pub(crate) fn replay(log: &[Event]) -> Self {
        let mut keys: BTreeMap<String, Vec<(i64, Option<Version>)>> = BTreeMap::new();
        for event in log {
            let kv = kv(event);
            let left = is_put(event).then(|| Version::of(kv));
            keys.entry(text(&kv.key)).or_default().push((kv.mod_revision, left));
        }
        Self { keys }
    }

    /// What `key` is at `revision`.
    pub(crate) fn at(&self, key: &str, revision: i64) -> Option<&Version> {
        let changes = self.keys.get(key)?;
        let after = changes.partition_point(|(changed, _)| *changed <= revision);
        changes.get(after.checked_sub(1)?)?.1.as_ref()
    }
}

/// An event's key-value pair.
pub(crate) fn kv(event: &Event) -> &KeyValue {
    event.kv.as_ref().expect("every event has one; checked where it is received")
}

/// Whether an event is a put.
pub(crate) fn is_put(event: &Event) -> bool {
    event.r#type == i32::from(tailwater_api::mvccpb::event::EventType::Put)
}

/// Bytes that are known to be text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
