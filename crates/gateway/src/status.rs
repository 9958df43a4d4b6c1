//! The one table from our errors to etcd's codes and texts.
//!
//! etcd's Go client tells errors apart by their text, so each text here is etcd's to the byte (its
//! `api/v3rpc/rpctypes/error.go`); the codes steer retries and balancing.

use tailwater_api::grpc::FrameError;
use tailwater_consensus::{ApplyError, AuthError, ProposeError};
use tailwater_fanout::ReadError;

/// gRPC's status codes, as far as they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "gRPC's own names")]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The name that grpc-go prints and metrics carry.
    #[must_use]
    pub fn name(self) -> &'static str {
        code_name(self as i32)
    }
}

impl Code {
    /// From the number on the wire.
    #[must_use]
    pub(crate) fn from_number(number: i32) -> Self {
        match number {
            0 => Self::Ok,
            1 => Self::Canceled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

/// The name of a code that came over the wire.
#[must_use]
pub(crate) fn code_name(code: i32) -> &'static str {
    match code {
        0 => "OK",
        1 => "Canceled",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        _ => "Unknown",
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident => $code:ident, $text:literal;)*) => {
        /// Why a call fails, in etcd's terms.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
            /// A failure without an entry in etcd's table: gRPC's own, or one that etcd sends with a free text.
            Other(Code, String),
        }

        impl Fault {
            /// gRPC code and text.
            #[must_use]
            pub fn status(&self) -> (Code, &str) {
                match self {
                    $(Self::$name => (Code::$code, $text),)*
                    Self::Other(code, text) => (*code, text),
                }
            }

            /// Every entry of the table.
            #[cfg(test)]
            fn all() -> Vec<Self> {
                vec![$(Self::$name),*]
            }
        }
    };
}

faults! {
    /// An empty key.
    EmptyKey => InvalidArgument, "etcdserver: key is not provided";
    /// `ignore_value` or `ignore_lease` on a missing key; an operation of a txn without a request.
    KeyNotFound => InvalidArgument, "etcdserver: key not found";
    /// A value beside `ignore_value`.
    ValueProvided => InvalidArgument, "etcdserver: value is provided";
    /// A lease beside `ignore_lease`.
    LeaseProvided => InvalidArgument, "etcdserver: lease is provided";
    /// Above `--max-txn-ops`.
    TooManyOps => InvalidArgument, "etcdserver: too many operations in txn request";
    /// A txn writes a key twice.
    DuplicateKey => InvalidArgument, "etcdserver: duplicate key given in txn request";
    /// The metadata `client-api-version` is not text.
    InvalidClientApiVersion => InvalidArgument, "etcdserver: invalid client api version";
    /// Unknown sort order or target.
    InvalidSortOption => InvalidArgument, "etcdserver: invalid sort option";
    /// Below the compacted revision.
    Compacted => OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    /// Above the current revision.
    FutureRevision => OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    /// A NOSPACE alarm is raised.
    NoSpace => ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    /// No such lease.
    LeaseNotFound => NotFound, "etcdserver: requested lease not found";
    /// The chosen lease id is taken.
    LeaseExists => FailedPrecondition, "etcdserver: lease already exists";
    /// Above 9,000,000,000 s.
    LeaseTtlTooLarge => OutOfRange, "etcdserver: too large lease TTL";
    /// The client cancelled the watch stream.
    WatchCanceled => Canceled, "etcdserver: watch canceled";
    /// Above `--max-request-bytes`.
    RequestTooLarge => InvalidArgument, "etcdserver: request is too large";
    /// Overload. etcd's table says ResourceExhausted, but its server sends the client-side value: Unknown.
    TooManyRequests => Unknown, "etcdserver: too many requests";
    /// No leader is known.
    NoLeader => Unavailable, "etcdserver: no leader";
    /// The leader changed while the request waited.
    LeaderChanged => Unavailable, "etcdserver: leader changed";
    /// The server stops.
    Stopped => Unavailable, "etcdserver: server stopped";
    /// No answer in time.
    Timeout => Unavailable, "etcdserver: request timed out";
    /// A CORRUPT alarm is raised, or the data can't be read.
    Corrupt => DataLoss, "etcdserver: corrupt cluster";
    /// The chosen member id is taken.
    MemberExists => FailedPrecondition, "etcdserver: member ID already exist";
    /// A peer URL belongs to another member.
    PeerUrlExists => FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// No such member, or one that was removed.
    MemberNotFound => NotFound, "etcdserver: member not found";
    /// The member votes already.
    MemberNotLearner => FailedPrecondition, "etcdserver: can only promote a learner member";
    /// The learner is not yet near the leader.
    LearnerNotReady => FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    /// One learner at a time.
    TooManyLearners => FailedPrecondition, "etcdserver: too many learner members in cluster";
    /// etcd's table says FailedPrecondition, but its server sends the client-side value: Unknown.
    NotEnoughStarted => Unknown, "etcdserver: re-configuration failed due to not enough started members";
    /// Members that vote are not heard from.
    Unhealthy => Unavailable, "etcdserver: unhealthy cluster";
    /// A peer URL without a scheme, a host or a port, or none at all.
    MemberBadUrls => InvalidArgument, "etcdserver: given member URLs are invalid";
    /// Only the leader does this.
    NotLeader => FailedPrecondition, "etcdserver: not leader";
    /// The successor did not take over in time. Not in etcd's table, so its code is Unknown.
    TransferTimeout => Unknown, "etcdserver: request timed out, leader transfer took too long";
    /// A learner serves status, serializable reads and snapshots.
    NotSupportedForLearner => FailedPrecondition, "etcdserver: rpc not supported for learner";
    /// Leadership for a learner or a stranger.
    BadLeaderTransferee => FailedPrecondition, "etcdserver: bad leader transferee";
    /// No credentials where some are needed, or a user without a name.
    UserEmpty => InvalidArgument, "etcdserver: user name is empty";
    /// No such user.
    UserNotFound => FailedPrecondition, "etcdserver: user name not found";
    /// The user name is taken.
    UserExists => FailedPrecondition, "etcdserver: user name already exists";
    /// A role without a name.
    RoleEmpty => InvalidArgument, "etcdserver: role name is empty";
    /// No such role.
    RoleNotFound => FailedPrecondition, "etcdserver: role name not found";
    /// The role name is taken.
    RoleExists => FailedPrecondition, "etcdserver: role name already exists";
    /// Auth needs a user root.
    NoRootUser => FailedPrecondition, "etcdserver: root user does not exist";
    /// Auth needs a user root with the role root.
    NoRootRole => FailedPrecondition, "etcdserver: root user does not have root role";
    /// The user may not.
    PermissionDenied => PermissionDenied, "etcdserver: permission denied";
    /// A grant without a permission.
    PermissionNotGiven => InvalidArgument, "etcdserver: permission not given";
    /// The role does not have the permission to be revoked.
    PermissionNotGranted => FailedPrecondition, "etcdserver: permission is not granted to the role";
    /// The user does not have the role to be revoked.
    RoleNotGranted => FailedPrecondition, "etcdserver: role is not granted to the user";
    /// It would break auth.
    InvalidAuthManagement => InvalidArgument, "etcdserver: invalid auth management";
    /// Users or roles have changed since the token was made, or while the call was served.
    AuthOldRevision => InvalidArgument, "etcdserver: revision of auth store is old";
    /// A login while auth is off.
    AuthNotEnabled => FailedPrecondition, "etcdserver: authentication is not enabled";
    /// A login with a wrong name or password.
    AuthFailed => InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    /// A login of a user without a password; a password that can't be read. Not in etcd's table, so its code is Unknown.
    NoPasswordUser => Unknown, "auth: authentication failed, password was given for no password user";
    /// The token is none of this cluster's, or not any more.
    InvalidAuthToken => Unauthenticated, "etcdserver: invalid auth token";
    /// The cluster version is not decided yet.
    ClusterVersionUnavailable => FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    /// A downgrade names no version.
    WrongDowngradeVersionFormat => InvalidArgument, "etcdserver: wrong downgrade target version format";
    /// A downgrade goes one minor version back, and no further.
    InvalidDowngradeTargetVersion => InvalidArgument, "etcdserver: invalid downgrade target version";
    /// One is under way.
    DowngradeInProcess => FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    /// A login where only the key that checks tokens is known. Not in etcd's table, so its code is Unknown.
    VerifyOnly => Unknown, "auth: token signing attempted with verify-only key";
    /// The caller's own deadline passed.
    DeadlineExceeded => DeadlineExceeded, "context deadline exceeded";
}

impl Fault {
    /// A method that this version does not serve.
    #[must_use]
    pub fn unserved(service: &str, method: &str) -> Self {
        Self::Other(Code::Unimplemented, format!("tailwater: {service}/{method} is not served by this version"))
    }

    /// As text inside an answer, where etcd writes what Go prints of an error.
    #[must_use]
    pub fn in_band(&self) -> String {
        let (code, text) = self.status();
        format!("rpc error: code = {} desc = {text}", code.name())
    }

    /// A payload that is not the expected message; grpc-go's sentence, our reason.
    #[must_use]
    pub fn malformed(error: &prost::DecodeError) -> Self {
        Self::Other(Code::Internal, format!("grpc: error unmarshalling request: {error}"))
    }

    /// The same in a stream, where grpc-go words it differently.
    #[must_use]
    pub fn malformed_in_stream(error: &prost::DecodeError) -> Self {
        Self::Other(Code::Internal, format!("grpc: failed to unmarshal the received message: {error}"))
    }
}

impl From<ApplyError> for Fault {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::KeyNotFound => Self::KeyNotFound,
            ApplyError::LeaseNotFound => Self::LeaseNotFound,
            ApplyError::LeaseExists => Self::LeaseExists,
            ApplyError::LeaseTtlTooLarge => Self::LeaseTtlTooLarge,
            ApplyError::Compacted => Self::Compacted,
            ApplyError::FutureRevision => Self::FutureRevision,
            ApplyError::NoSpace => Self::NoSpace,
            ApplyError::Corrupt => Self::Corrupt,
            ApplyError::MemberExists => Self::MemberExists,
            ApplyError::MemberNotFound => Self::MemberNotFound,
            ApplyError::PeerUrlExists => Self::PeerUrlExists,
            ApplyError::NotLearner => Self::MemberNotLearner,
            ApplyError::TooManyLearners => Self::TooManyLearners,
            ApplyError::Auth(error) => error.into(),
        }
    }
}

impl From<AuthError> for Fault {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::UserEmpty => Self::UserEmpty,
            AuthError::UserNotFound => Self::UserNotFound,
            AuthError::UserExists => Self::UserExists,
            AuthError::RoleEmpty => Self::RoleEmpty,
            AuthError::RoleNotFound => Self::RoleNotFound,
            AuthError::RoleExists => Self::RoleExists,
            AuthError::NoRootUser => Self::NoRootUser,
            AuthError::NoRootRole => Self::NoRootRole,
            AuthError::PermissionDenied => Self::PermissionDenied,
            AuthError::PermissionNotGiven => Self::PermissionNotGiven,
            AuthError::PermissionNotGranted => Self::PermissionNotGranted,
            AuthError::RoleNotGranted => Self::RoleNotGranted,
            AuthError::InvalidManagement => Self::InvalidAuthManagement,
            AuthError::OldRevision => Self::AuthOldRevision,
            AuthError::NoPasswordUser => Self::NoPasswordUser,
        }
    }
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refused) => refused.into(),
            ProposeError::TooLarge => Self::RequestTooLarge,
            ProposeError::TooManyRequests => Self::TooManyRequests,
            ProposeError::NoLeader => Self::NoLeader,
            ProposeError::NotEnoughStarted => Self::NotEnoughStarted,
            ProposeError::UnhealthyCluster => Self::Unhealthy,
            ProposeError::LearnerNotReady => Self::LearnerNotReady,
            ProposeError::BadTransferee => Self::BadLeaderTransferee,
            ProposeError::LeaderChanged => Self::LeaderChanged,
            ProposeError::Timeout => Self::Timeout,
            ProposeError::Stopped => Self::Stopped,
            ProposeError::Storage(error) => Self::Other(Code::Unknown, error.to_string()),
        }
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::FutureRevision => Self::FutureRevision,
            ReadError::Compacted => Self::Compacted,
            ReadError::Stopped => Self::Stopped,
            // Where etcd refuses a proposal it sends a client-side value, as Unknown; here the table's code fits.
            ReadError::TooManyRequests => {
                Self::Other(Code::ResourceExhausted, Self::TooManyRequests.status().1.to_owned())
            }
            ReadError::OutOfScope => Self::Other(Code::Unavailable, format!("tailwater: {error}")),
            ReadError::History(error) => Self::Other(Code::Unknown, error.to_string()),
        }
    }
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Oversize { len, max } => Self::Other(
                Code::ResourceExhausted,
                format!("grpc: received message larger than max ({len} vs. {max})"),
            ),
            FrameError::Compressed => {
                Self::Other(Code::Internal, "grpc: compressed flag set with identity or empty encoding".into())
            }
            FrameError::Flag(flag) => {
                Self::Other(Code::Internal, format!("grpc: received unexpected payload format {flag}"))
            }
            FrameError::Truncated => Self::Other(Code::Unknown, "unexpected EOF".into()),
            FrameError::Missing => Self::Other(Code::Unknown, "EOF".into()),
            FrameError::Transport(reason) => Self::Other(Code::Canceled, reason),
        }
    }
}

#[cfg(test)]
mod tests;
