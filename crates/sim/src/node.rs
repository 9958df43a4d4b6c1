//! A fanout in a process of its own: it keeps nothing, follows members or other such fanouts, and may feed some.

use std::sync::Arc;

use tailwater_eventlog::{Position, Revision, Scope};
use tailwater_fanout::{Fanout, FanoutConfig, FanoutParts};

use crate::link::Link;
use crate::member::{Clock, Thread};
use crate::operation::Operation;
use crate::plan::Plan;
use crate::random::Random;

/// Ids of these fanouts begin here, above those of members.
const NODE_ID: u64 = 1 << 20;

/// A process that clients read from and watch, and the one run of it that something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) place: Place,
    pub(crate) run: u64,
}

/// Where a fanout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a member's process.
    Member(usize),
    /// In a process of its own.
    Node(usize),
}

/// A fanout in a process of its own.
pub(crate) struct Node {
    pub(crate) scope: Scope,
    /// Whether others follow it.
    pub(crate) relays: bool,
    relay_bytes: usize,
    rows_bytes: usize,
    /// Counts starts.
    pub(crate) run: u64,
    /// It gets no turn until then.
    pub(crate) paused_until: u64,
    /// It reaches nobody until then.
    pub(crate) cut_until: u64,
    pub(crate) running: Option<RunningNode>,
}

/// A running process.
pub(crate) struct RunningNode {
    pub(crate) fanout: Fanout,
    pub(crate) parts: FanoutParts,
    pub(crate) link: Link,
    pub(crate) upstream: Option<Spot>,
    /// Turns that wait in the world's queue.
    pub(crate) due: [bool; Thread::COUNT],
    /// Whether a look at what its source has waits there.
    pub(crate) feed_due: bool,
    /// When the last frames arrive that have left: a stream does not overtake itself.
    pub(crate) arrival: u64,
    pub(crate) reads: Vec<NodeRead>,
    /// The newest revision that its reads have shown.
    pub(crate) shown: Revision,
}

/// A read that is under way.
pub(crate) struct NodeRead {
    pub(crate) operation: Operation,
    pub(crate) since: u64,
    /// What must be reached; `None`: the leader has not said it yet.
    pub(crate) position: Option<Position>,
}

impl Node {
    pub(crate) fn new(plan: &Plan, random: &mut Random) -> Self {
        Self {
            scope: Scope::new(&plan.scopes[random.index(plan.scopes.len())]),
            relays: random.chance(600),
            relay_bytes: [0, 1 << 10, 1 << 20][random.index(3)],
            rows_bytes: [1 << 9, 4 << 10, 1 << 20][random.index(3)],
            run: 0,
            paused_until: 0,
            cut_until: 0,
            running: None,
        }
    }

    /// Starts a process, which knows nothing.
    pub(crate) fn start(&mut self, index: usize, plan: &Plan, clock: &Clock) {
        self.run += 1;
        let link = Link::new(self.scope.clone(), self.rows_bytes);
        let config = FanoutConfig {
            ranges: self.scope.ranges().to_vec(),
            relay_bytes_max: self.relay_bytes,
            history_bytes_max: self.relay_bytes,
            ..plan.fanout(NODE_ID + index as u64 * 1000 + self.run % 1000)
        };
        let clock = clock.clone();
        let follows = Arc::new(link.clone());
        let (fanout, parts) = tailwater_fanout::assemble(config, follows, Box::new(move || clock.instant()));
        self.running = Some(RunningNode {
            fanout,
            parts,
            link,
            upstream: None,
            due: [false; Thread::COUNT],
            feed_due: false,
            arrival: 0,
            reads: Vec::new(),
            shown: Revision(0),
        });
    }
}
