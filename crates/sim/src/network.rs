//! The network between members: delays, loss, repetition, and links that are cut.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tailwater_consensus::PeerTransport;
use tailwater_eventlog::{Member, MemberId};

use crate::random::Random;

/// A message that a member gave out.
pub(crate) struct Sent {
    pub(crate) from: usize,
    pub(crate) to: MemberId,
    pub(crate) message: Bytes,
}

/// What members have given out and the world has not yet taken.
pub(crate) type Outbox = Arc<Mutex<Vec<Sent>>>;

/// One member's end of the network.
pub(crate) struct Wire {
    pub(crate) from: usize,
    pub(crate) outbox: Outbox,
}

impl PeerTransport for Wire {
    fn send(&self, to: MemberId, message: Bytes) {
        self.outbox.lock().push(Sent { from: self.from, to, message });
    }

    fn set_members(&self, _members: &[Member]) {}
}

/// How the links behave.
#[derive(Debug)]
pub(crate) struct Network {
    /// Microseconds.
    pub(crate) delay: (u64, u64),
    /// Of a thousand messages.
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    /// So many take up to 30 times as long, and so are overtaken.
    pub(crate) late: u32,
    /// By sender and receiver.
    cut: Vec<Vec<bool>>,
}

impl Network {
    pub(crate) fn new(members: usize, random: &mut Random) -> Self {
        let low = random.between(50, 1000);
        let high = low + random.between(50, 4000);
        let (lost, repeated, late) = match random.index(3) {
            0 => (0, 0, 0),
            1 => (5, 5, 10),
            _ => (random.between(0, 60), random.between(0, 40), random.between(0, 80)),
        };
        let per_mille = |value| u32::try_from(value).expect("at most 1000");
        Self {
            delay: (low, high),
            lost: per_mille(lost),
            repeated: per_mille(repeated),
            late: per_mille(late),
            cut: vec![vec![false; members]; members],
        }
    }

    /// When copies of a message arrive, microseconds from now: none, one or two.
    pub(crate) fn route(&self, from: usize, to: usize, random: &mut Random) -> Vec<u64> {
        if self.is_cut(from, to) || random.chance(self.lost) {
            return Vec::new();
        }
        let copies = if random.chance(self.repeated) { 2 } else { 1 };
        (0..copies).map(|_| self.delay(random)).collect()
    }

    /// How long a message takes.
    pub(crate) fn delay(&self, random: &mut Random) -> u64 {
        let delay = random.between(self.delay.0, self.delay.1);
        if random.chance(self.late) { delay * random.between(2, 30) } else { delay }
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to]
    }

    pub(crate) fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from][to] = cut;
    }

    /// Every link works, and nothing is lost from now on.
    pub(crate) fn heal(&mut self) {
        self.cut.iter_mut().for_each(|row| row.fill(false));
        (self.lost, self.repeated, self.late) = (0, 0, 0);
    }

    /// A new member's links.
    pub(crate) fn grow(&mut self) {
        self.cut.iter_mut().for_each(|row| row.push(false));
        self.cut.push(vec![false; self.cut.len() + 1]);
    }
}
