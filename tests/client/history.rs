//! What was written, and whether a subscriber was told just that.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::watch_request::RequestUnion;
use tailwater_api::mvccpb::{Event, KeyValue};
use tailwater_client::{Change, KeyRange, RelistCause, Stamp};
use tailwater_tests::cluster::connect;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::PREFIX;

/// What there is of a key: where it stands in history, and a hash of its value.
pub(crate) type Held = (Stamp, u64);
pub(crate) type State = BTreeMap<Bytes, Held>;

pub(crate) fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

pub(crate) fn held(kv: &KeyValue) -> Held {
    let stamp = Stamp { create_revision: kv.create_revision, mod_revision: kv.mod_revision, version: kv.version };
    (stamp, hash(&kv.value))
}

/// One event.
#[derive(Clone, Debug)]
struct Written {
    revision: i64,
    key: Bytes,
    now: Option<Held>,
}

/// All events under the prefix up to a revision, as a server's own history has them.
#[derive(Debug)]
pub(crate) struct History {
    events: Vec<Written>,
    up_to: i64,
}

impl History {
    /// Of a store in which nothing was written yet.
    pub(crate) fn new() -> Self {
        Self { events: Vec::new(), up_to: 1 }
    }

    /// Reads on from a server, up to its revision of now, which it returns. To be called before a compaction.
    pub(crate) async fn read_on(&mut self, url: &str) -> anyhow::Result<i64> {
        let channel = connect(url)?;
        let mut kv = pb::kv_client::KvClient::new(channel.clone());
        let read = pb::RangeRequest { key: "a".into(), ..Default::default() };
        let target = kv.range(read).await?.into_inner().header.context("a header")?.revision;
        let (requests, bodies) = mpsc::channel(4);
        let end = {
            let mut end = PREFIX.as_bytes().to_vec();
            *end.last_mut().context("no prefix")? += 1;
            end
        };
        let create = pb::WatchCreateRequest {
            key: PREFIX.into(),
            range_end: end.into(),
            start_revision: self.up_to + 1,
            ..Default::default()
        };
        requests.send(request(RequestUnion::CreateRequest(create))).await?;
        let mut watch = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(1 << 30);
        let mut answers = watch.watch(ReceiverStream::new(bodies)).await?.into_inner();
        let mut asks = tokio::time::interval(std::time::Duration::from_millis(50));
        while self.up_to < target {
            let answer = tokio::select! {
                answer = answers.message() => answer?.context("the stream ended")?,
                _ = asks.tick() => {
                    requests.send(request(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))).await?;
                    continue;
                }
            };
            ensure!(!answer.canceled, "the history was not kept: {answer:?}");
            if answer.events.is_empty() && !answer.created {
                self.up_to = self.up_to.max(answer.header.context("a header")?.revision);
            }
            for event in answer.events {
                let written = Written::of(event)?;
                self.up_to = written.revision;
                self.events.push(written);
            }
        }
        Ok(self.up_to)
    }

    /// Checks what one subscriber was told, from its begin to the end of this history; how many differences were among it.
    ///
    /// # Errors
    /// The first change that is missing, twice, out of order or different.
    pub(crate) fn judge(&self, told: &[Change<u64>]) -> anyhow::Result<usize> {
        let (mut belief, mut truth) = (State::new(), State::new());
        let mut events = self.events.iter().peekable();
        // Whether what is told is a list or a difference; both end with `Synced`.
        let mut is_listed = true;
        let mut relists = 0;
        for change in told {
            match change {
                Change::Relisted { cause, since } => {
                    ensure!(!is_listed, "{change:?} within another");
                    ensure!(matches!(cause, RelistCause::Compacted { .. }), "{change:?}");
                    let missed = events.peek().filter(|event| event.revision <= *since);
                    ensure!(missed.is_none(), "{missed:?} was not told before {change:?}");
                    is_listed = true;
                    relists += 1;
                }
                Change::Synced { revision } => {
                    ensure!(is_listed, "{change:?} without a begin");
                    while let Some(event) = events.next_if(|event| event.revision <= *revision) {
                        event.enter(&mut truth);
                    }
                    ensure!(
                        belief == truth,
                        "at {change:?} the subscriber believes\n{belief:?}\ninstead of\n{truth:?}"
                    );
                    is_listed = false;
                }
                Change::Undecodable { .. } => anyhow::bail!("{change:?}"),
                Change::Applied { .. } | Change::Deleted { .. } => {
                    let told = Written::told(change, &belief)?;
                    if !is_listed {
                        let event = events.next().with_context(|| format!("{change:?} was never written"))?;
                        let is_it = told.revision == event.revision && told.key == event.key && told.now == event.now;
                        ensure!(is_it, "{change:?} was told instead of {event:?}");
                        event.enter(&mut truth);
                    }
                    told.enter(&mut belief);
                }
            }
        }
        let missed = events.next();
        ensure!(missed.is_none(), "{missed:?} was not told");
        Ok(relists)
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}

impl Written {
    fn of(event: Event) -> anyhow::Result<Self> {
        let kv = event.kv.context("an event has a key")?;
        let now = (event.r#type == 0).then(|| held(&kv));
        Ok(Self { revision: kv.mod_revision, key: kv.key, now })
    }

    /// The same of a change; what it says was before must be what was told before.
    fn told(change: &Change<u64>, belief: &State) -> anyhow::Result<Self> {
        let (revision, key, now, old) = match change {
            Change::Applied { old, new } => {
                (new.mod_revision(), new.key.clone(), Some((new.stamp, new.value)), old.clone())
            }
            Change::Deleted { old, revision } => (*revision, old.key.clone(), None, Some(old.clone())),
            _ => anyhow::bail!("not a change of a key: {change:?}"),
        };
        let before = old.map(|old| (old.stamp, old.value));
        ensure!(belief.get(&key).copied() == before, "{change:?} follows {before:?}, not {:?}", belief.get(&key));
        Ok(Self { revision, key, now })
    }

    fn enter(&self, state: &mut State) {
        match self.now {
            Some(now) => drop(state.insert(self.key.clone(), now)),
            None => drop(state.remove(&self.key)),
        }
    }
}

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

/// What the informers of the rounds cache.
pub(crate) fn range() -> KeyRange {
    KeyRange::prefix(PREFIX)
}

#[test]
fn the_judge_finds_what_is_missing_twice_or_out_of_order() {
    use std::sync::Arc;
    use tailwater_client::Object;

    let object = |key: &'static str, revision| {
        let stamp = Stamp { create_revision: revision, mod_revision: revision, version: 1 };
        Arc::new(Object { key: key.into(), stamp, lease: 0, value: 0 })
    };
    let written = |key: &'static str, revision: i64| Written {
        revision,
        key: key.into(),
        now: Some((object(key, revision).stamp, 0)),
    };
    let history = History { events: vec![written("a", 2), written("b", 3), written("c", 4)], up_to: 4 };
    let put = |key, revision| Change::Applied { old: None, new: object(key, revision) };
    let synced = |revision| Change::Synced { revision };
    let relisted = || Change::Relisted { cause: RelistCause::Compacted { compact_revision: 4 }, since: 2 };
    let good = [put("a", 2), synced(2), put("b", 3), put("c", 4)];
    assert_eq!(history.judge(&good).unwrap(), 0);
    let relist = [put("a", 2), synced(2), relisted(), put("b", 3), put("c", 4), synced(4)];
    assert_eq!(history.judge(&relist).unwrap(), 1);
    for bad in [
        vec![put("a", 2), synced(2), put("b", 3)],
        vec![put("a", 2), synced(2), put("c", 4)],
        vec![put("a", 2), synced(2), put("c", 4), put("b", 3)],
        vec![put("a", 2), synced(2), put("b", 3), put("b", 3), put("c", 4)],
        vec![put("a", 2), synced(2), put("b", 3), put("c", 4), put("c", 5)],
        vec![put("a", 2), synced(3), put("c", 4)],
        vec![put("a", 2), synced(2), relisted(), put("c", 4), synced(4)],
        vec![synced(1), relisted(), put("b", 3), put("c", 4), synced(4)],
    ] {
        assert!(history.judge(&bad).is_err(), "{bad:?}");
    }
}
