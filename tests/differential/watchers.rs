//! The watchers of a run, and the moments at which their histories are compared.

use std::time::Instant;

use bytes::Bytes;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::mvccpb::Event;

use crate::run::{ANSWER, Difference, Run, Side};

/// The id of the watcher that sees every event, alone on its stream.
const ALL: i64 = 0;

/// Every event of a run as the reference delivered it: what each watcher is to get follows from it.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: Vec<(i64, Bytes, i32)>,
}

impl History {
    /// Begins with the delete of `key` that made revision `first`.
    pub(crate) fn beginning(first: i64, key: &'static str) -> Self {
        Self { events: vec![(first, key.into(), 1)] }
    }
}

/// One watcher, the same on both servers.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) stream: usize,
    pub(crate) id: i64,
    /// The lowest revision that was not compared yet.
    pub(crate) next: i64,
    /// It began below the compacted revision and is to be ended for that.
    pub(crate) compacted: bool,
    /// It began in the past.
    pub(crate) replays: bool,
    pub(crate) created: Instant,
    ended: bool,
    key: Bytes,
    range_end: Bytes,
    filters: Vec<i32>,
}

impl Watcher {
    pub(crate) fn new(stream: usize, id: i64, request: &pb::WatchCreateRequest, now: i64, compacted: i64) -> Self {
        let start = request.start_revision;
        Self {
            stream,
            id,
            next: if start == 0 { now + 1 } else { start },
            compacted: start != 0 && start < compacted,
            replays: start != 0 && start <= now,
            created: Run::now(),
            ended: false,
            key: if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key.clone() },
            range_end: request.range_end.clone(),
            filters: request.filters.clone(),
        }
    }

    fn wants(&self, key: &Bytes, kind: i32) -> bool {
        let inside = match &self.range_end[..] {
            b"" => *key == self.key,
            b"\0" => *key >= self.key,
            end => *key >= self.key && key[..] < *end,
        };
        inside && !self.filters.contains(&kind)
    }
}

impl Run {
    /// Waits until everything so far has been delivered on both servers, and compares it.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        self.settle_all().await?;
        let current = self.at.current;
        for watcher in &mut self.watchers {
            let (Some(a), Some(b)) = (&self.reference.streams[watcher.stream], &self.subject.streams[watcher.stream])
            else {
                continue;
            };
            let id = watcher.id;
            if watcher.compacted && !watcher.ended {
                let mut canceled = Vec::new();
                for stream in [a, b] {
                    canceled.push(stream.wait(ANSWER, |arrived| arrived.canceled.get_mut(&id)?.pop()).await);
                }
                if canceled[0] != canceled[1] {
                    return differ(watcher, &canceled[0], &canceled[1]);
                }
                watcher.ended = true;
            }
            let from = self.history.events.partition_point(|(revision, ..)| *revision < watcher.next);
            let expected = self.history.events[from..].iter().filter(|(_, key, kind)| watcher.wants(key, *kind));
            let expected = if watcher.compacted { 0 } else { expected.count() };
            let mut delivered: Vec<Vec<Event>> = Vec::new();
            for stream in [a, b] {
                let enough = |arrived: &mut crate::stream::Arrived| {
                    let here = arrived.events.get(&id).map_or(0, Vec::len);
                    (here >= expected || arrived.ended.is_some()).then_some(())
                };
                // What is missing then shows in the comparison.
                let _enough = stream.wait(ANSWER, enough).await;
                delivered.push(stream.with(|arrived| arrived.events.remove(&id).unwrap_or_default()));
            }
            if delivered[0] != delivered[1] {
                let text = first_difference(&delivered[0], &delivered[1]);
                return Err(Difference(format!("  of {watcher:?}: {text}")).into());
            }
            watcher.next = watcher.next.max(current + 1);
            // History comes before what is live, and all of it has come.
            watcher.replays &= delivered[0].is_empty();
        }
        self.check_rules()
    }

    async fn settle_all(&mut self) -> anyhow::Result<()> {
        let (current, first) = (self.at.current, self.at.first);
        let mut delivered: Vec<Vec<Event>> = Vec::new();
        for side in [&self.reference, &self.subject] {
            let reached = side
                .all
                .wait(ANSWER, |arrived| {
                    let there = current == first || arrived.last_revision(ALL) >= current;
                    there.then(|| arrived.events.remove(&ALL).unwrap_or_default())
                })
                .await;
            delivered.push(
                reached.unwrap_or_else(|| side.all.with(|arrived| arrived.events.remove(&ALL).unwrap_or_default())),
            );
        }
        if delivered[0] != delivered[1] {
            let text = format!(
                "  the watch of every key, up to revision {current}, differs: {}",
                first_difference(&delivered[0], &delivered[1])
            );
            return Err(Difference(text).into());
        }
        let events = delivered.swap_remove(0).into_iter().filter_map(|event| {
            let kv = event.kv?;
            Some((kv.mod_revision, kv.key, event.r#type))
        });
        self.history.events.extend(events);
        Ok(())
    }

    /// Rules of one server alone, and what came without being asked for.
    fn check_rules(&mut self) -> anyhow::Result<()> {
        let (mut broken, mut left) = (Vec::new(), Vec::new());
        for (name, side) in [("reference", &self.reference), ("subject", &self.subject)] {
            let Side { all, streams, .. } = side;
            let mut unasked = Vec::new();
            for stream in streams.iter().flatten().chain([all]) {
                stream.with(|arrived| {
                    broken.extend(arrived.violations.drain(..).map(|text| format!("  {name}: {text}")));
                    broken.extend(arrived.ended.iter().map(|end| format!("  {name}: the watch stream ended: {end:?}")));
                    unasked.push((
                        arrived.created.drain(..).collect::<Vec<_>>(),
                        arrived.progress.drain(..).collect::<Vec<_>>(),
                    ));
                    arrived.canceled.retain(|_, answers| !answers.is_empty());
                    unasked.push((arrived.canceled.values().flatten().cloned().collect(), Vec::new()));
                    arrived.canceled.clear();
                });
            }
            left.push(unasked);
        }
        if !broken.is_empty() {
            return Err(Difference(broken.join("\n")).into());
        }
        if left[0] != left[1] {
            return Err(Difference(format!(
                "  unasked, reference: {:?}\n  unasked, subject:   {:?}",
                left[0], left[1]
            ))
            .into());
        }
        Ok(())
    }
}

fn differ<T: std::fmt::Debug>(watcher: &Watcher, reference: &T, subject: &T) -> anyhow::Result<()> {
    let text = format!("  of {watcher:?}\n  reference: {reference:?}\n  subject:   {subject:?}");
    Err(Difference(text).into())
}

fn first_difference(reference: &[Event], subject: &[Event]) -> String {
    let at = reference.iter().zip(subject).take_while(|(a, b)| a == b).count();
    format!(
        "{} and {} events, first at {at}\n  reference: {:?}\n  subject:   {:?}",
        reference.len(),
        subject.len(),
        reference.get(at),
        subject.get(at)
    )
}
