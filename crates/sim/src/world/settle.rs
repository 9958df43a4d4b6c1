//! The end: the faults are over, everything must come to rest, and then all members are compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailwater_eventlog::{History, HistoryPoint, KeyRange, Revision};

use super::nodes::query;
use super::{Event, World};
use crate::violation::{Checked, Guarantee, Violation, broken, check};

/// Microseconds in which everything must come to rest: elections, leases that run out, watchers that catch up.
const SETTLE: u64 = 60_000_000;
/// How often it is looked whether it has.
const LOOK: u64 = 250_000;

impl World {
    /// No more operations and no more faults.
    pub(super) fn end_faults(&mut self) {
        if self.settle_by.is_some() {
            return;
        }
        self.settle_by = Some(self.now + SETTLE);
        self.trace.step(self.now, "heal", &[]);
        self.network.heal();
        for member in 0..self.members.len() {
            let this = &mut self.members[member];
            (this.paused_until, this.slow_until) = (this.paused_until.min(self.now), 0);
            this.disk.fail_after(None);
            if this.running.is_none() && !this.gone {
                self.schedule(1, Event::Start(member));
            }
        }
        self.heal_nodes();
        self.watchers.iter_mut().for_each(|watcher| watcher.wake_up(self.now));
        self.schedule(LOOK, Event::Settle);
    }

    pub(super) fn settle(&mut self) -> Checked {
        self.start_listed();
        self.compare_own_rows()?;
        if let Err(why) = self.is_settled() {
            if self.settle_by.is_some_and(|by| self.now >= by) {
                return broken(Guarantee::Live, format!("not at rest after all faults ended: {why}"));
            }
            self.schedule(LOOK, Event::Settle);
            return Ok(());
        }
        self.compare()?;
        self.done = true;
        Ok(())
    }

    /// Members at one position have equal rows of their machines: leases, members, and so on.
    fn compare_own_rows(&self) -> Checked {
        let mut known = BTreeMap::new();
        for (index, member) in self.members.iter().enumerate() {
            let Some(source) = member.running.as_ref().and_then(|running| running.source.as_ref()) else { continue };
            let rows = source
                .log
                .state_scan(&[])
                .map_err(|error| Violation { guarantee: Guarantee::Sound, what: format!("member {index}: {error}") })?;
            let position = source.log.state().applied;
            let (other, others) = known.entry(position).or_insert_with(|| (index, rows.clone()));
            check(*others == rows, Guarantee::Identical, || {
                let differing = rows.iter().find(|row| !others.contains(row));
                let missing = others.iter().find(|row| !rows.contains(row));
                format!("at position {position} member {index} has {differing:?} and member {other} {missing:?}")
            })?;
        }
        Ok(())
    }

    fn is_settled(&self) -> Result<(), String> {
        let truth = &self.oracle.truth;
        let mut positions = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            if !self.admin.has(member.id) {
                continue;
            }
            let Some(running) = &member.running else { return Err(format!("member {index} is not there")) };
            let Some(source) = &running.source else { return Err(format!("member {index} has no history")) };
            let state = source.log.state();
            if state.revision < truth.revision() {
                return Err(format!("member {index} is at revision {} of {}", state.revision, truth.revision()));
            }
            if running.fanout_is_behind() {
                return Err(format!("the fanout of member {index} is behind"));
            }
            positions.push(state.applied);
        }
        if positions.iter().any(|position| *position != positions[0]) {
            return Err(format!("members are at {positions:?}"));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let running = node.running.as_ref().ok_or_else(|| format!("node {index} is not there"))?;
            let cursor = running.fanout.snapshot().cursor;
            if !running.fanout.is_ready() || Some(&cursor.position) != positions.first() {
                return Err(format!("node {index} is at {cursor:?}, below {:?}", running.upstream));
            }
        }
        if let Some(busy) = self.clients.iter().position(|client| !client.is_idle()) {
            return Err(format!("client {busy} waits"));
        }
        let now = truth.revision();
        if let Some(left) = truth.range(&KeyRange::all(), now).find(|event| event.lease().0 != 0) {
            return Err(format!("lease {} lives on", left.lease()));
        }
        for (index, watcher) in self.watchers.iter().enumerate() {
            if !watcher.has_all(truth) {
                return Err(format!("watcher {index} is behind: {}", watcher.lag(truth)));
            }
        }
        Ok(())
    }

    /// All members hold the same, and that is the truth.
    fn compare(&mut self) -> Checked {
        let truth = &self.oracle.truth;
        check(self.oracle.floor() <= truth.revision(), Guarantee::Durable, || {
            format!("somebody was told of revision {}, and there is {}", self.oracle.floor(), truth.revision())
        })?;
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| self.admin.has(member.id)) {
            let Some((running, source)) =
                member.running.as_ref().and_then(|running| Some((running, running.source.as_ref()?)))
            else {
                continue;
            };
            let state = source.log.state();
            check(state.compacted == truth.compacted(), Guarantee::Identical, || {
                format!("member {index} is compacted at {}, others at {}", state.compacted, truth.compacted())
            })?;
            let unreadable =
                |what: String| Violation { guarantee: Guarantee::Sound, what: format!("member {index}: {what}") };
            let from = state.compacted.max(Revision(2));
            let mut next = Some(HistoryPoint { revision: from, sub: 0 });
            let mut stored = Vec::new();
            while let Some(point) = next {
                let chunk = source.read(&[], point, state.revision, false, 1 << 20);
                let chunk = chunk.map_err(|error| unreadable(error.to_string()))?;
                stored.extend(chunk.events.into_iter().map(|found| found.event));
                next = chunk.next;
            }
            truth.compare(index, from, &stored)?;
            let live = source
                .log
                .live(&KeyRange::all(), None, usize::MAX, None)
                .map_err(|error| unreadable(error.to_string()))?;
            self.same_keys(&format!("member {index} stores"), &KeyRange::all(), state.revision, &live.events)?;
            let Some((fanout, _)) = &running.fanout else { continue };
            for at in [state.compacted.max(Revision(1)), state.revision] {
                let answer = fanout.range_here(query(KeyRange::all(), Some(at), 0));
                let answer = answer.map_err(|error| unreadable(error.to_string()))?;
                self.same_keys(&format!("member {index} shows"), &KeyRange::all(), at, &answer.events)?;
            }
        }
        self.compare_nodes()
    }

    /// Fanouts of their own show the same, of what they hold.
    fn compare_nodes(&self) -> Checked {
        let truth = &self.oracle.truth;
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(running) = &node.running else { continue };
            for at in [truth.compacted().max(Revision(1)), truth.revision()] {
                for span in node.scope.spans() {
                    let answer =
                        running.fanout.range_here(query(span.clone(), Some(at), 0)).map_err(|error| Violation {
                            guarantee: Guarantee::Sound,
                            what: format!("node {index} at revision {at}: {error}"),
                        })?;
                    self.same_keys(&format!("node {index} shows"), span, at, &answer.events)?;
                }
            }
        }
        Ok(())
    }

    fn same_keys(
        &self,
        who: &str,
        range: &KeyRange,
        at: Revision,
        found: &[Arc<tailwater_eventlog::Event>],
    ) -> Checked {
        let mut live = self.oracle.truth.range(range, at);
        let same = found.iter().all(|event| live.next().is_some_and(|known| known.bytes() == event.bytes()));
        check(same && live.next().is_none(), Guarantee::Identical, || {
            format!("{who} other keys at revision {at} than there are")
        })
    }
}
