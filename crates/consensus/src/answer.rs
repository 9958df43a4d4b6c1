//! What a proposal is answered with.

use tailwater_api::etcdserverpb as pb;
use tailwater_eventlog::{Member, Position, Revision, StorageError};

use crate::AuthError;

/// An answer and where it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The applied position of the command: a reader that has reached it sees what the command did.
    pub position: Position,
    /// The answer.
    pub answer: Answer,
}

/// The etcd response to a command. Headers hold only the revision; the gateway fills in ids and term.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the response of the command of its name")]
pub enum Answer {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    Alarm(pb::AlarmResponse),
    /// The members after a change of membership, by id; of an added one, its id is the command's.
    Members(Vec<Member>),
    /// The auth state is as it was asked to be, at this revision of the store.
    AuthChanged(Revision),
    /// A command whose effect is its answer.
    Done,
}

/// The command was applied and refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// The lease does not exist.
    #[error("lease not found")]
    LeaseNotFound,
    /// A lease of this id exists.
    #[error("lease exists")]
    LeaseExists,
    /// The TTL is above 9,000,000,000 s.
    #[error("lease TTL too large")]
    LeaseTtlTooLarge,
    /// The revision lies below the compacted one, or is already compacted.
    #[error("revision compacted")]
    Compacted,
    /// The revision lies above the current one.
    #[error("future revision")]
    FutureRevision,
    /// A NOSPACE alarm is raised.
    #[error("no space")]
    NoSpace,
    /// A CORRUPT alarm is raised.
    #[error("corrupt")]
    Corrupt,
    /// A member of this id exists.
    #[error("member exists")]
    MemberExists,
    /// There is no such member, or it was removed: the id of a removed member never returns.
    #[error("member not found")]
    MemberNotFound,
    /// One of the peer URLs belongs to another member.
    #[error("peer URL exists")]
    PeerUrlExists,
    /// The member to be promoted votes already.
    #[error("not a learner")]
    NotLearner,
    /// The group has as many learners as it may have.
    #[error("too many learners")]
    TooManyLearners,
    /// The auth rules refuse it.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

/// A proposal has no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Applied and refused.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// The encoded command is above `max_request_bytes`.
    #[error("request too large")]
    TooLarge,
    /// A queue is at its bound, or too much is committed and not yet applied.
    #[error("too many requests")]
    TooManyRequests,
    /// No leader is known, or another member leads.
    #[error("no leader")]
    NoLeader,
    /// Not enough members have ever started for a quorum of the changed group.
    #[error("not enough started members")]
    NotEnoughStarted,
    /// The change could cost the group its quorum: members that vote are not heard from.
    #[error("unhealthy cluster")]
    UnhealthyCluster,
    /// The learner's log is not yet near the leader's.
    #[error("learner not ready")]
    LearnerNotReady,
    /// Leadership can't be handed to a learner or to who is no member.
    #[error("bad leader transferee")]
    BadTransferee,
    /// The leader changed while it waited; the outcome is unknown.
    #[error("leader changed")]
    LeaderChanged,
    /// No answer in time; the outcome is unknown.
    #[error("timed out")]
    Timeout,
    /// This member stops.
    #[error("stopped")]
    Stopped,
    /// The member's storage failed and it stops for that reason.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
