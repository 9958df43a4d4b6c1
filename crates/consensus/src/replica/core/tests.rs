//! Three cores that exchange messages by hand; appends are persisted, and entries applied, when the test says so.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::machine::conf_state_of;
use crate::raft_log::{RaftLog, RaftLogConfig, RealDisk};

struct Node {
    core: ReplicaCore,
    log: RaftLog,
    _dir: tempfile::TempDir,
    /// Committed and not applied.
    committed: VecDeque<Entry>,
    /// Commands of applied entries.
    applied: Vec<Vec<u8>>,
    applies: bool,
    connected: bool,
    /// What the log notes as committed.
    noted: u64,
    changes: usize,
}

struct Group {
    nodes: Vec<Node>,
}

impl Group {
    /// Three members; the first leads.
    fn new() -> Self {
        let mut group = Self { nodes: (1..=3).map(node).collect() };
        group.nodes[0].core.node.campaign().unwrap();
        group.settle();
        assert!(group.nodes[0].core.serves());
        group
    }

    /// Lets everything happen that follows from what was put in.
    fn settle(&mut self) {
        for _ in 0..200 {
            let messages: Vec<_> = self.nodes.iter_mut().flat_map(Node::work).collect();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let (from, to) = (message.from, message.to);
                if self.node(from).connected && self.node(to).connected {
                    self.node(to).core.step(message);
                }
            }
        }
        panic!("never quiet");
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    fn ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.nodes.iter_mut().for_each(|node| node.core.tick());
            self.settle();
        }
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.connected && node.core.standing().is_leader)
    }
}

fn node(id: u64) -> Node {
    node_with(id, false)
}

fn node_with(id: u64, doubtful: bool) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(dir.path().join("raft")).unwrap();
    let (log, recovered) = RaftLog::open(Arc::new(disk), RaftLogConfig::default()).unwrap();
    let config = CoreConfig {
        member_id: MemberId(id),
        election_ticks: 10,
        batch_bytes_max: 1 << 20,
        barrier_retry_ticks: 5,
        applied: Position(0),
        seed: id,
        bootstrapped: true,
        strict_reconfig_check: true,
        run_id: id,
        doubtful,
    };
    let members: Vec<_> = (1..=3).map(|id| Member { id: MemberId(id), ..Default::default() }).collect();
    let group = crate::machine::Group { conf_state: conf_state_of(&members), members, removed: Vec::new() };
    let core = ReplicaCore::new(config, log.view(), recovered.hard_state, group).unwrap();
    let (committed, applied) = (VecDeque::new(), Vec::new());
    Node { core, log, _dir: dir, committed, applied, applies: true, connected: true, noted: 0, changes: 0 }
}

impl Node {
    /// Does what the core asks, and returns what it sends.
    fn work(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(outputs) = self.core.take_ready() {
            messages.extend(outputs.messages);
            if let Some(append) = outputs.append {
                self.log.append(&append.entries, append.hard_state.as_ref()).unwrap();
                messages.extend(append.messages);
                let noted = append.hard_state.filter(|_| append.sync).map_or(0, |state| state.commit);
                self.noted = self.noted.max(noted);
                self.core.on_persisted(append.number);
            }
            let is_change = |entry: &&Entry| entry.entry_type() != EntryType::EntryNormal;
            if let Some(change) = outputs.committed.iter().rfind(is_change) {
                assert!(self.noted >= change.index, "whose commit can be forgotten");
                self.changes += 1;
            }
            self.committed.extend(outputs.committed);
            assert_eq!(outputs.refused.len(), 0);
            if self.applies {
                self.apply();
            }
        }
        messages
    }

    fn apply(&mut self) {
        let Some(last) = self.committed.back().map(|entry| entry.index) else { return };
        self.applied.extend(self.committed.drain(..).map(|entry| entry.data).filter(|data| !data.is_empty()));
        self.core.on_applied(Position(last), true);
    }

    fn propose(&mut self, command: &'static [u8]) {
        self.core.propose(Pending { proposal_id: 1, command: command.into(), change: None });
    }

    fn barrier(&mut self) -> oneshot::Receiver<Result<Position, ProposeError>> {
        let (waiter, answer) = oneshot::channel();
        self.core.barrier(waiter);
        answer
    }
}

fn data(command: &'static [u8]) -> Vec<u8> {
    entry_data(&[Pending { proposal_id: 1, command: command.into(), change: None }])
}

#[test]
fn a_change_of_the_group_takes_effect_once_it_is_noted_that_it_is_committed() {
    let mut group = Group::new();
    group.node(1).propose(b"before");
    group.settle();
    let mut change = raft::eraftpb::ConfChange { node_id: 4, ..Default::default() };
    change.set_change_type(raft::eraftpb::ConfChangeType::AddLearnerNode);
    group.node(1).core.node.propose_conf_change(b"change".to_vec(), change).unwrap();
    group.node(1).propose(b"behind");
    group.settle();
    group.ticks(2);
    for node in &group.nodes {
        assert_eq!(node.changes, 1);
        assert_eq!(node.applied.first(), Some(&data(b"before")));
        assert_eq!(node.applied.last(), Some(&data(b"behind")));
    }
}

#[test]
fn what_one_proposes_all_apply_in_order() {
    let mut group = Group::new();
    for command in [b"a", b"b", b"c"] {
        group.node(1).propose(command);
        group.settle();
    }
    group.ticks(1);
    for node in &group.nodes {
        assert_eq!(node.applied, [data(b"a"), data(b"b"), data(b"c")]);
    }
}

#[test]
fn where_commands_wait_the_next_append_tells_what_is_committed() {
    for (waiting, empty_appends) in [(None, 2), (Some(b"b"), 0)] {
        let mut group = Group::new();
        group.node(1).propose(b"a");
        let mut answers = Vec::new();
        for append in group.node(1).work() {
            let follower = group.node(append.to);
            follower.core.step(append);
            answers.extend(follower.work());
        }
        if let Some(command) = waiting {
            group.node(1).propose(command);
        }
        let leader = group.node(1);
        leader.core.spare_commit_messages();
        answers.into_iter().for_each(|answer| leader.core.step(answer));
        assert_eq!(leader.core.committed(), 2, "the leader's first entry and the command");
        let sent = leader.work();
        assert!(sent.iter().all(|append| append.commit == 2));
        assert_eq!(sent.len(), 2);
        assert_eq!(sent.iter().filter(|append| append.entries.is_empty()).count(), empty_appends);
    }
}

#[test]
fn a_confirmed_read_is_answered_once_applied_even_when_leadership_is_lost_meanwhile() {
    let mut group = Group::new();
    group.node(1).applies = false;
    group.node(1).propose(b"a");
    group.settle();
    let mut confirmed = group.node(1).barrier();
    group.settle();
    assert!(confirmed.try_recv().is_err(), "not applied yet");
    // Cut off: the next read can't be confirmed.
    group.node(1).connected = false;
    let mut open = group.node(1).barrier();
    group.settle();
    group.ticks(40);
    assert!(!group.nodes[0].core.standing().is_leader, "a leader without a quorum steps down");
    let node = group.node(1);
    node.core.abandon();
    assert!(matches!(open.try_recv(), Ok(Err(ProposeError::LeaderChanged | ProposeError::NoLeader))));
    node.apply();
    let index = node.applied.len() as u64 + 1;
    assert!(matches!(confirmed.try_recv(), Ok(Ok(Position(at))) if at == index));
}

#[test]
fn what_was_queued_for_a_lost_leadership_is_never_proposed() {
    let mut group = Group::new();
    group.node(1).connected = false;
    group.ticks(40);
    let leader = group.leader().expect("the others elect one");
    group.node(1).propose(b"stale");
    group.nodes[leader].propose(b"new");
    group.settle();
    group.node(1).core.abandon();
    group.node(1).connected = true;
    group.ticks(40);
    for node in &group.nodes {
        assert_eq!(node.applied, [data(b"new")]);
    }
}

#[test]
fn a_withdrawn_command_is_not_proposed_and_later_ones_are() {
    let mut group = Group::new();
    group.nodes.iter_mut().for_each(|node| node.core.hold_back(true));
    for (proposal_id, command) in [(1, b"a"), (2, b"b"), (0, b"o"), (3, b"c")] {
        group.node(1).core.propose(Pending { proposal_id, command: Bytes::from_static(command), change: None });
    }
    group.settle();
    group.node(1).core.withdraw(2);
    group.nodes.iter_mut().for_each(|node| node.core.hold_back(false));
    group.settle();
    let pending = |command: &'static [u8]| Pending { proposal_id: 1, command: command.into(), change: None };
    assert_eq!(group.nodes[0].applied, [entry_data(&[pending(b"o"), pending(b"c")])]);
}

#[test]
fn a_follower_that_is_behind_takes_nothing_more_and_the_leader_stays() {
    let mut group = Group::new();
    let term = group.nodes[0].core.standing().term;
    group.node(3).core.hold_back(true);
    for command in [b"a", b"b", b"c"] {
        group.node(1).propose(command);
        group.settle();
    }
    group.ticks(50);
    assert_eq!(group.nodes[2].core.standing(), Standing { leader: MemberId(1), term, is_leader: false });
    assert_eq!((group.nodes[1].applied.len(), group.nodes[2].applied.len()), (3, 0));
    group.node(3).core.hold_back(false);
    group.ticks(10);
    assert_eq!(group.nodes[2].applied, group.nodes[0].applied);
}

#[test]
fn a_leader_that_is_held_back_keeps_its_term_and_confirms_reads() {
    let mut group = Group::new();
    let term = group.nodes[0].core.standing().term;
    group.node(1).core.hold_back(true);
    group.node(1).propose(b"a");
    let mut read = group.node(1).barrier();
    group.ticks(50);
    assert_eq!(group.nodes[0].core.standing(), Standing { leader: MemberId(1), term, is_leader: true });
    assert!(matches!(read.try_recv(), Ok(Ok(_))));
    assert!(group.nodes[0].applied.is_empty());
    group.node(1).core.hold_back(false);
    group.settle();
    assert_eq!(group.nodes[0].applied, [data(b"a")]);
}

#[test]
fn a_member_in_doubt_gets_back_what_it_had_acknowledged_and_lost() {
    let mut group = Group::new();
    let term = group.nodes[0].core.standing().term;
    for command in [b"a", b"b", b"c"] {
        group.node(1).propose(command);
        group.settle();
    }
    group.ticks(2);
    // All of its log is gone, and the leader counts on it.
    group.nodes[2] = node_with(3, true);
    group.node(2).connected = false;
    group.node(1).propose(b"d");
    group.settle();
    assert!(group.nodes[2].core.doubt.is_some());
    group.node(3).core.node.campaign().unwrap();
    group.ticks(30);
    assert_eq!(group.nodes[2].applied, group.nodes[0].applied);
    assert_eq!(group.nodes[2].applied.len(), 4);
    assert!(group.nodes[2].core.doubt.is_none());
    assert_eq!(group.nodes[0].core.standing(), Standing { leader: MemberId(1), term, is_leader: true });
}

#[test]
fn a_member_in_doubt_lets_nobody_win_by_its_vote() {
    let mut group = Group::new();
    group.node(1).propose(b"a");
    group.settle();
    group.ticks(2);
    group.nodes[2] = node_with(3, true);
    group.node(1).connected = false;
    group.ticks(100);
    assert_eq!(group.leader(), None);
    // The leader that comes back vouches for it, and then its vote counts.
    group.node(1).connected = true;
    group.ticks(100);
    assert!(group.leader().is_some() && group.nodes[2].core.doubt.is_none());
    let leader = group.leader().unwrap();
    group.nodes[if leader == 2 { 0 } else { leader }].connected = false;
    group.ticks(100);
    assert!(group.leader().is_some());
}
