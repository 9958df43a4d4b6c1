//! A member whose log was cut when it was opened. Almost always what was cut was never acknowledged. It can't tell, and if
//! it did lose what it had promised, its vote could elect a leader without it. So it neither votes nor campaigns until
//! one of two things has shown that nothing can be missing:
//!
//! * *A leader has it back where it must be.* The leader, having confirmed that it leads after the question arrived, answers
//!   with its last index. Whatever this member ever acknowledged to it, or to those before it, lies at or below; once the
//!   member has all of that, and it is committed, it is as good as before.
//! * *All voters have shown where their logs end.* That is for a group in which a majority lost power together, which
//!   could elect nobody else. What was committed is in some voter's log unless all that held it lost it, so a log that is at
//!   least as new as every voter's has it. Members tell when they are asked, and by asking for votes (raft's pre-vote);
//!   neither promises anything.

use std::collections::{BTreeMap, BTreeSet};

use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};

use tailwater_eventlog::MemberId;

use super::ReplicaCore;

/// Where a log ends; the later is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LogEnd {
    term: u64,
    index: u64,
}

/// What a doubtful member knows so far.
pub(super) struct Doubt {
    /// Ends of the voters' logs, as they told them since this member started.
    ends: BTreeMap<u64, LogEnd>,
    /// What the leader, in this term, said it must have.
    wanted: Option<(u64, u64)>,
    asked: Option<u64>,
    /// The newest configuration that another member has applied, and its index. It is committed, and who committed it holds
    /// all before it: a voter that has left since is not waited for.
    group: (u64, Vec<u64>),
    /// Who asked this member for its vote, or where its log ends. All voters that it knows of may have left for good, and it
    /// learns only from those who came who the voters are now.
    callers: BTreeSet<u64>,
}

impl Doubt {
    pub(super) fn new() -> Self {
        Self { ends: BTreeMap::new(), wanted: None, asked: None, group: (0, Vec::new()), callers: BTreeSet::new() }
    }
}

impl ReplicaCore {
    /// What is left of a message for a member in doubt.
    pub(super) fn doubted(&mut self, mut message: Message) -> Option<Message> {
        if self.doubt.is_none() {
            return Some(message);
        }
        match message.msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                let end = LogEnd { term: message.log_term, index: message.index };
                let is_voter = self.doubt_voters().contains(&message.from);
                let doubt = self.doubt.as_mut()?;
                doubt.callers.insert(message.from);
                if is_voter {
                    doubt.ends.insert(message.from, end);
                }
                self.is_newest(end).then_some(message)
            }
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                let own = self.log_end();
                self.is_newest(own).then_some(message)
            }
            MessageType::MsgTimeoutNow => None,
            MessageType::MsgHeartbeat => {
                // The leader remembers acknowledgements that may be lost: only entries that match say what is committed.
                message.commit = message.commit.min(self.committed());
                Some(message)
            }
            _ => Some(message),
        }
    }

    fn log_end(&self) -> LogEnd {
        let log = &self.node.raft.raft_log;
        LogEnd { term: log.last_term(), index: log.last_index() }
    }

    /// Whether all voters have told where their logs end, and none ends later.
    fn is_newest(&self, end: LogEnd) -> bool {
        let (own, own_end) = (self.config.member_id.0, self.log_end());
        let Some(doubt) = &self.doubt else { return true };
        self.doubt_voters().iter().all(|voter| {
            let told = if *voter == own { Some(&own_end) } else { doubt.ends.get(voter) };
            told.is_some_and(|told| *told <= end)
        })
    }

    /// The voters of the newest configuration that this member knows of.
    fn doubt_voters(&self) -> Vec<u64> {
        let store = self.node.store();
        match &self.doubt {
            Some(Doubt { group: (index, voters), .. }) if *index > store.applied => voters.clone(),
            _ => store.conf_state.voters.clone(),
        }
    }

    /// Asks the leader, once in a while, what this member must have; without one, all voters where their logs end.
    pub(super) fn ask_leader(&mut self) {
        let (leader, term) = (self.node.raft.leader_id, self.node.raft.term);
        let (own, ticks) = (self.config.member_id.0, self.ticks);
        let voters = self.doubt_voters();
        let Some(doubt) = &mut self.doubt else { return };
        let due = doubt.asked.is_none_or(|asked| ticks - asked >= self.config.election_ticks as u64);
        if leader == own || !due {
            return;
        }
        doubt.asked = Some(ticks);
        let asked = match leader {
            raft::INVALID_ID => voters.into_iter().chain(doubt.callers.iter().copied()).collect(),
            leader => BTreeSet::from([leader]),
        };
        for to in asked.into_iter().filter(|to| *to != own) {
            let entries = vec![Entry { data: self.config.run_id.to_be_bytes().to_vec(), ..Default::default() }];
            let message = Message { to, from: own, term, entries, ..Default::default() };
            self.own_messages.push(with_type(message, MessageType::MsgReadIndex));
        }
    }

    /// Asks the voters whether this member was removed: who knows it refuses the question and says why. One that knows it
    /// asks with each tick, since until another one knows it too, durably, the group may still need it. One that has
    /// not heard a leader for an election timeout asks once in a while: a learner would never say anything else.
    pub(super) fn ask_whether_removed(&mut self) {
        let raft = &self.node.raft;
        let is_time = self.ticks.is_multiple_of(self.config.election_ticks as u64);
        let leads = raft.state == StateRole::Leader;
        let lost = is_time && !leads && !self.is_active(MemberId(raft.leader_id));
        if !self.removed && !lost {
            return;
        }
        let (own, term) = (self.config.member_id.0, raft.term);
        let voters = self.node.store().conf_state.voters.clone();
        for to in voters.into_iter().filter(|to| *to != own) {
            let message = Message { to, from: own, term, ..Default::default() };
            self.own_messages.push(with_type(message, MessageType::MsgReadIndex));
        }
    }

    /// A member in doubt asks. The leader answers with the next confirmation of leadership that starts; any other member
    /// says where its log ends, since it may never ask for votes itself: one that does not know yet that it is a voter.
    pub(super) fn on_doubter(&mut self, question: Message) {
        if question.entries.is_empty() {
            // One that asks whether it was removed is told by whoever carries messages.
            return;
        }
        if self.node.raft.state == StateRole::Leader {
            if self.node.raft.prs().get(question.from).is_some() {
                self.doubters.retain(|waiting| waiting.from != question.from);
                self.doubters.push(question);
            }
            return;
        }
        if let Some(doubt) = &mut self.doubt {
            doubt.callers.insert(question.from);
        }
        let end = self.log_end();
        let store = self.node.store();
        let metadata =
            SnapshotMetadata { index: store.applied, conf_state: Some(store.conf_state.clone()), ..Default::default() };
        let answer = Message {
            snapshot: Some(Snapshot { metadata: Some(metadata), ..Default::default() }),
            to: question.from,
            from: self.config.member_id.0,
            term: self.node.raft.term,
            log_term: end.term,
            index: end.index,
            reject: true,
            entries: question.entries,
            ..Default::default()
        };
        self.own_messages.push(with_type(answer, MessageType::MsgReadIndexResp));
    }

    /// The leadership is confirmed for these.
    pub(super) fn answer_doubters(&mut self, confirmed: Vec<Message>) {
        let (term, index) = (self.node.raft.term, self.node.raft.raft_log.last_index());
        for question in confirmed {
            let answer = Message {
                to: question.from,
                from: self.config.member_id.0,
                term,
                index,
                entries: question.entries,
                ..Default::default()
            };
            self.own_messages.push(with_type(answer, MessageType::MsgReadIndexResp));
        }
    }

    /// The leader's answer, if it is to this run's question.
    pub(super) fn on_doubt_answer(&mut self, answer: &Message) {
        let run_id = self.config.run_id.to_be_bytes();
        let to_this_run = answer.entries.first().is_some_and(|entry| entry.data.as_slice() == run_id.as_slice());
        let raft = &self.node.raft;
        if answer.reject {
            if let Some(doubt) = self.doubt.as_mut().filter(|_| to_this_run) {
                doubt.ends.insert(answer.from, LogEnd { term: answer.log_term, index: answer.index });
                let SnapshotMetadata { index, conf_state, .. } = answer.get_snapshot().get_metadata().clone();
                if index > doubt.group.0 {
                    doubt.group = (index, conf_state.unwrap_or_default().voters);
                }
            }
            return;
        }
        if to_this_run && answer.term == raft.term && answer.from == raft.leader_id {
            let wanted = Some((answer.term, answer.index));
            if let Some(doubt) = &mut self.doubt {
                doubt.wanted = wanted;
            }
        }
    }

    /// `true` once, when the doubt has ended.
    pub(super) fn settle(&mut self) -> bool {
        let Some(doubt) = &self.doubt else { return false };
        let raft = &self.node.raft;
        let held = raft.raft_log.committed.min(raft.raft_log.persisted);
        let has_all = doubt.wanted.is_some_and(|(term, index)| term == raft.term && index <= held);
        // One that leads was elected for having the newest log of all.
        let settled = has_all || raft.state == StateRole::Leader;
        if settled {
            tracing::info!("nothing is missing that this member had acknowledged before its log was cut");
            self.doubt = None;
        }
        settled
    }
}

fn with_type(mut message: Message, message_type: MessageType) -> Message {
    message.set_msg_type(message_type);
    message
}
