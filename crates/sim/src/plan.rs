//! What a seed makes of a world: sizes, speeds, and which faults come how often.

use std::time::Duration;

use bytes::Bytes;
use tailwater_eventlog::KeyRange;
use tailwater_fanout::FanoutConfig;

use crate::random::Random;

/// A world to run.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Operations of clients until the faults end.
    pub operations: u64,
    /// A bug to plant.
    pub bug: Option<Bug>,
}

/// Bugs that can be planted in the simulated world, to prove that its judge finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Syncs that report success and keep nothing for a while: what is answered is not on a quorum's disks.
    AnswerBeforeQuorum,
    /// A loss of power that takes the last synced batch, too, and a member that does not notice: it votes.
    VoteAfterCutLog,
    /// A member that believes to lead serves reads without confirming it.
    StaleRead,
    /// Progress overtakes the events of its stream.
    ProgressTooEarly,
    /// A command that is sent to the leader arrives there twice.
    ProposedTwice,
    /// A resumed watcher begins one revision behind its cursor.
    ResumesBehind,
    /// A copied state has the machine's own rows as they were before its numbers.
    StateBeforeNumbers,
    /// A connection of the tail that loses frames and goes on.
    FrameLost,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::AnswerBeforeQuorum,
        Self::VoteAfterCutLog,
        Self::StaleRead,
        Self::ProgressTooEarly,
        Self::ProposedTwice,
        Self::ResumesBehind,
        Self::StateBeforeNumbers,
        Self::FrameLost,
    ];
}

/// How a world is built.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) members: usize,
    pub(crate) clients: usize,
    pub(crate) watchers: usize,
    /// Keys of the clients; few, so that they meet.
    pub(crate) keys: u64,
    /// Microseconds between two faults; `None`: none come.
    pub(crate) fault_gap: Option<(u64, u64)>,
    /// Microseconds that a client thinks.
    pub(crate) think: (u64, u64),
    pub(crate) tail_hot_bytes_max: usize,
    pub(crate) window_bytes_max: usize,
    pub(crate) chunk_bytes: usize,
    pub(crate) progress_interval: Duration,
    /// Of a thousand operations, those that compact.
    pub(crate) compactions: u32,
    /// Bytes of raft log above which it is trimmed.
    pub(crate) raft_log_bytes: u64,
    /// Bytes of one piece of a copied state.
    pub(crate) copy_bytes: usize,
    /// Microseconds between two steps of whoever changes the group; `None`: it stays.
    pub(crate) admin_gap: Option<(u64, u64)>,
    /// Fanouts in processes of their own.
    pub(crate) nodes: usize,
    /// What such a fanout may hold; none: everything.
    pub(crate) scopes: Vec<Vec<KeyRange>>,
}

impl Plan {
    pub(crate) fn new(random: &mut Random) -> Self {
        let members = [1, 3, 3, 3, 3, 3, 5, 5][random.index(8)];
        let quick = random.between(2_000, 20_000);
        let fault_gap = match random.index(8) {
            0 => None,
            1 => Some((2_000_000, 8_000_000)),
            2..5 => Some((200_000, 2_000_000)),
            _ => Some((60_000, 900_000)),
        };
        let keys = random.between(4, 40);
        let span = |start: &str, end: &str| KeyRange::Span(Bytes::from(start.to_owned()), Bytes::from(end.to_owned()));
        let middle = format!("k/{:02}", random.between(1, keys));
        let scopes = vec![
            Vec::new(),
            Vec::new(),
            vec![span("k/", "k0")],
            vec![span("l/", "l0"), span("k/", &middle)],
            vec![span(&middle, "k0")],
        ];
        Self {
            members,
            clients: random.index(6) + 3,
            watchers: random.index(4) + 2,
            keys,
            fault_gap,
            think: (0, quick),
            tail_hot_bytes_max: [1 << 10, 16 << 10, 1 << 20][random.index(3)],
            window_bytes_max: [4 << 10, 64 << 10, 1 << 20][random.index(3)],
            chunk_bytes: [1 << 10, 4 << 10, 64 << 10][random.index(3)],
            progress_interval: Duration::from_millis(random.between(100, 3000)),
            compactions: [0, 3, 15][random.index(3)],
            raft_log_bytes: [1 << 10, 4 << 10, 1 << 30][random.index(3)],
            copy_bytes: [1 << 9, 4 << 10, 1 << 20][random.index(3)],
            admin_gap: random.chance(400).then_some((200_000, 2_000_000)),
            nodes: random.index(5),
            scopes,
        }
    }

    pub(crate) fn fanout(&self, member_id: u64) -> FanoutConfig {
        FanoutConfig {
            cluster_id: 1,
            member_id,
            window_bytes_max: self.window_bytes_max,
            stream_chunk_bytes: self.chunk_bytes,
            watch_memory_bytes_max: 4 << 20,
            list_memory_bytes_max: 4 << 20,
            response_bytes_max: 1 << 20,
            fragment_bytes_max: 2 << 10,
            progress_interval: self.progress_interval,
            // In a third of the worlds values are held only once they were asked for.
            unread_value_bytes_min: (self.copy_bytes == 1 << 9).then_some(1),
            ..FanoutConfig::default()
        }
    }
}
