//! The first message of a stream between nodes: who speaks to whom, and whether they may.

use std::fmt;
use std::sync::Arc;

use prost::Message as _;
use tailwater_api::peer::{Hello, Refusal, refusal::Reason};
use tailwater_eventlog::MemberId;
use tonic::{Code, Status};

use crate::Directory;

/// Of the protocols on the peer URLs, as one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Why a node refuses to speak to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The stream does not begin with a hello.
    NoHello,
    /// The other speaks this version.
    ProtocolVersion(u32),
    /// The other belongs to this cluster.
    ClusterId(u64),
    /// The other is this member, not the one that was meant.
    WrongMember(MemberId),
    /// The sender was removed from the group.
    Removed,
    /// A reason that this version does not know.
    Unknown,
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHello => f.write_str("the stream does not begin with a hello"),
            Self::ProtocolVersion(other) => {
                write!(f, "protocol version mismatch: {other} there, {PROTOCOL_VERSION} here")
            }
            Self::ClusterId(other) => write!(f, "cluster ID mismatch: the other side is of cluster {other:x}"),
            Self::WrongMember(other) => write!(f, "member ID mismatch: the URL belongs to member {other}"),
            Self::Removed => f.write_str("the member has been permanently removed from the cluster"),
            Self::Unknown => f.write_str("refused"),
        }
    }
}

impl RefusalReason {
    /// The reason in a status; `None` when it is another failure.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        if status.code() != Code::FailedPrecondition {
            return None;
        }
        let refusal = Refusal::decode(status.details()).ok()?;
        Some(match refusal.reason() {
            Reason::NoHello => Self::NoHello,
            Reason::ProtocolVersion => Self::ProtocolVersion(refusal.protocol_version),
            Reason::ClusterId => Self::ClusterId(refusal.cluster_id),
            Reason::WrongMember => Self::WrongMember(MemberId(refusal.member_id)),
            Reason::Removed => Self::Removed,
            Reason::Unknown => Self::Unknown,
        })
    }
}

/// Greets others, and judges their greetings.
#[derive(Clone, Debug)]
pub struct Greeter {
    member_id: MemberId,
    directory: Arc<Directory>,
}

impl Greeter {
    /// As this node: its member id (0: no member), and the group that it belongs to.
    #[must_use]
    pub fn new(member_id: MemberId, directory: Arc<Directory>) -> Self {
        Self { member_id, directory }
    }

    /// This node's id.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        self.member_id
    }

    /// Who the members are.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// What a stream to `to` begins with.
    #[must_use]
    pub fn hello(&self, to: MemberId) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: self.directory.cluster_id(),
            from: self.member_id.0,
            to: to.0,
            peer_urls: self.directory.peer_urls(self.member_id),
        }
    }

    /// The sender, when it may speak to this node.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with the reason in its details.
    pub fn check(&self, hello: Option<&Hello>) -> Result<MemberId, Status> {
        let Some(hello) = hello else {
            return Err(self.refuse(Reason::NoHello, "the stream does not begin with a hello"));
        };
        let from = MemberId(hello.from);
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(self.refuse(Reason::ProtocolVersion, "protocol version mismatch"));
        }
        if hello.cluster_id != self.directory.cluster_id() {
            return Err(self.refuse(Reason::ClusterId, "cluster ID mismatch"));
        }
        if hello.to != self.member_id.0 {
            return Err(self.refuse(Reason::WrongMember, "member ID mismatch"));
        }
        Ok(from)
    }

    /// What a sender is told that was removed from the group.
    pub(crate) fn refuse_removed(&self) -> Status {
        self.refuse(Reason::Removed, "the member has been permanently removed from the cluster")
    }

    fn refuse(&self, reason: Reason, text: &str) -> Status {
        let refusal = Refusal {
            reason: reason as i32,
            protocol_version: PROTOCOL_VERSION,
            cluster_id: self.directory.cluster_id(),
            member_id: self.member_id.0,
        };
        Status::with_details(Code::FailedPrecondition, text, refusal.encode_to_vec().into())
    }
}
