//! Answers and errors on the wire: every variant there and back without loss.

use tailwater_api::tail;
use tailwater_api::write::{self as pb, FailureCode, applied, write_response};
use tailwater_consensus::{Answer, Applied, ApplyError, AuthError, LeaseInfo, ProposeError};
use tailwater_eventlog::{LeaseId, Member, MemberId, Position, Revision, StorageError};

/// What a leader answered, or another member instead of it.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing happened; this one leads, as far as that member knows.
    NotLeader(MemberId),
    /// Nothing happened: the member is older than the request.
    UnknownRequest,
    /// As the leader's replica said.
    Error(ProposeError),
}

/// The answer to a request that failed.
pub(super) fn failure(error: &ProposeError) -> write_response::Response {
    write_response::Response::Failure(encode_error(error))
}

/// The answer of a member that does not lead.
pub(super) fn not_leader(leader: MemberId) -> write_response::Response {
    let code = FailureCode::NotLeader as i32;
    write_response::Response::Failure(pb::Failure { code, leader: leader.0, ..Default::default() })
}

/// The answer to a request that this version does not know.
pub(super) fn unknown_request() -> write_response::Response {
    let code = FailureCode::UnknownRequest as i32;
    write_response::Response::Failure(pb::Failure { code, ..Default::default() })
}

/// An error as a message.
pub(super) fn encode_error(error: &ProposeError) -> pb::Failure {
    let mut failure = pb::Failure::default();
    let code = match error {
        ProposeError::Refused(refused) => refusal_code(refused),
        ProposeError::TooLarge => FailureCode::TooLarge,
        ProposeError::TooManyRequests => FailureCode::TooManyRequests,
        ProposeError::NoLeader => FailureCode::NoLeader,
        ProposeError::NotEnoughStarted => FailureCode::NotEnoughStarted,
        ProposeError::UnhealthyCluster => FailureCode::UnhealthyCluster,
        ProposeError::LearnerNotReady => FailureCode::LearnerNotReady,
        ProposeError::BadTransferee => FailureCode::BadTransferee,
        ProposeError::LeaderChanged => FailureCode::LeaderChanged,
        ProposeError::Timeout => FailureCode::Timeout,
        ProposeError::Stopped => FailureCode::Stopped,
        ProposeError::Storage(error) => storage_failure(error, &mut failure),
    };
    failure.code = code as i32;
    failure
}

fn refusal_code(refused: &ApplyError) -> FailureCode {
    match refused {
        ApplyError::KeyNotFound => FailureCode::KeyNotFound,
        ApplyError::LeaseNotFound => FailureCode::LeaseNotFound,
        ApplyError::LeaseExists => FailureCode::LeaseExists,
        ApplyError::LeaseTtlTooLarge => FailureCode::LeaseTtlTooLarge,
        ApplyError::Compacted => FailureCode::Compacted,
        ApplyError::FutureRevision => FailureCode::FutureRevision,
        ApplyError::NoSpace => FailureCode::NoSpace,
        ApplyError::Corrupt => FailureCode::Corrupt,
        ApplyError::MemberExists => FailureCode::MemberExists,
        ApplyError::MemberNotFound => FailureCode::MemberNotFound,
        ApplyError::PeerUrlExists => FailureCode::PeerUrlExists,
        ApplyError::NotLearner => FailureCode::NotLearner,
        ApplyError::TooManyLearners => FailureCode::TooManyLearners,
        ApplyError::Auth(error) => auth_code(*error),
    }
}

fn auth_code(error: AuthError) -> FailureCode {
    match error {
        AuthError::UserEmpty => FailureCode::AuthUserEmpty,
        AuthError::UserNotFound => FailureCode::AuthUserNotFound,
        AuthError::UserExists => FailureCode::AuthUserExists,
        AuthError::RoleEmpty => FailureCode::AuthRoleEmpty,
        AuthError::RoleNotFound => FailureCode::AuthRoleNotFound,
        AuthError::RoleExists => FailureCode::AuthRoleExists,
        AuthError::NoRootUser => FailureCode::AuthNoRootUser,
        AuthError::NoRootRole => FailureCode::AuthNoRootRole,
        AuthError::PermissionDenied => FailureCode::AuthPermissionDenied,
        AuthError::PermissionNotGiven => FailureCode::AuthPermissionNotGiven,
        AuthError::PermissionNotGranted => FailureCode::AuthPermissionNotGranted,
        AuthError::RoleNotGranted => FailureCode::AuthRoleNotGranted,
        AuthError::InvalidManagement => FailureCode::AuthInvalidManagement,
        AuthError::OldRevision => FailureCode::AuthOldRevision,
        AuthError::NoPasswordUser => FailureCode::AuthNoPasswordUser,
    }
}

fn storage_failure(error: &StorageError, failure: &mut pb::Failure) -> FailureCode {
    match error {
        StorageError::Engine(text) => {
            failure.text.clone_from(text);
            FailureCode::StorageEngine
        }
        // The reason of a row travels as text: nobody elsewhere acts on it.
        StorageError::Row { place, source } => {
            failure.text = format!("{place}: {source}");
            FailureCode::StorageRow
        }
        StorageError::Format { path, found, supported } => {
            failure.text.clone_from(path);
            failure.formats = vec![*found, *supported];
            FailureCode::StorageFormat
        }
        StorageError::Inconsistent(text) => {
            failure.text.clone_from(text);
            FailureCode::StorageInconsistent
        }
    }
}

/// The error in a message. A code that this version does not know says nothing about the outcome, so it counts as
/// unknown.
pub(super) fn decode_failure(failure: pb::Failure) -> Failed {
    let refused = |error: ApplyError| ProposeError::Refused(error);
    Failed::Error(match failure.code() {
        FailureCode::NotLeader => return Failed::NotLeader(MemberId(failure.leader)),
        FailureCode::UnknownRequest => return Failed::UnknownRequest,
        FailureCode::FailureUnknown | FailureCode::LeaderChanged => ProposeError::LeaderChanged,
        FailureCode::TooLarge => ProposeError::TooLarge,
        FailureCode::TooManyRequests => ProposeError::TooManyRequests,
        FailureCode::NoLeader => ProposeError::NoLeader,
        FailureCode::NotEnoughStarted => ProposeError::NotEnoughStarted,
        FailureCode::UnhealthyCluster => ProposeError::UnhealthyCluster,
        FailureCode::LearnerNotReady => ProposeError::LearnerNotReady,
        FailureCode::BadTransferee => ProposeError::BadTransferee,
        FailureCode::Timeout => ProposeError::Timeout,
        FailureCode::Stopped => ProposeError::Stopped,
        FailureCode::StorageEngine | FailureCode::StorageRow => StorageError::Engine(failure.text).into(),
        FailureCode::StorageInconsistent => StorageError::Inconsistent(failure.text).into(),
        FailureCode::StorageFormat => {
            let format = |at: usize| failure.formats.get(at).copied().unwrap_or(0);
            StorageError::Format { found: format(0), supported: format(1), path: failure.text }.into()
        }
        FailureCode::KeyNotFound => refused(ApplyError::KeyNotFound),
        FailureCode::LeaseNotFound => refused(ApplyError::LeaseNotFound),
        FailureCode::LeaseExists => refused(ApplyError::LeaseExists),
        FailureCode::LeaseTtlTooLarge => refused(ApplyError::LeaseTtlTooLarge),
        FailureCode::Compacted => refused(ApplyError::Compacted),
        FailureCode::FutureRevision => refused(ApplyError::FutureRevision),
        FailureCode::NoSpace => refused(ApplyError::NoSpace),
        FailureCode::Corrupt => refused(ApplyError::Corrupt),
        FailureCode::MemberExists => refused(ApplyError::MemberExists),
        FailureCode::MemberNotFound => refused(ApplyError::MemberNotFound),
        FailureCode::PeerUrlExists => refused(ApplyError::PeerUrlExists),
        FailureCode::NotLearner => refused(ApplyError::NotLearner),
        FailureCode::TooManyLearners => refused(ApplyError::TooManyLearners),
        FailureCode::AuthUserEmpty => refused(AuthError::UserEmpty.into()),
        FailureCode::AuthUserNotFound => refused(AuthError::UserNotFound.into()),
        FailureCode::AuthUserExists => refused(AuthError::UserExists.into()),
        FailureCode::AuthRoleEmpty => refused(AuthError::RoleEmpty.into()),
        FailureCode::AuthRoleNotFound => refused(AuthError::RoleNotFound.into()),
        FailureCode::AuthRoleExists => refused(AuthError::RoleExists.into()),
        FailureCode::AuthNoRootUser => refused(AuthError::NoRootUser.into()),
        FailureCode::AuthNoRootRole => refused(AuthError::NoRootRole.into()),
        FailureCode::AuthPermissionDenied => refused(AuthError::PermissionDenied.into()),
        FailureCode::AuthPermissionNotGiven => refused(AuthError::PermissionNotGiven.into()),
        FailureCode::AuthPermissionNotGranted => refused(AuthError::PermissionNotGranted.into()),
        FailureCode::AuthRoleNotGranted => refused(AuthError::RoleNotGranted.into()),
        FailureCode::AuthInvalidManagement => refused(AuthError::InvalidManagement.into()),
        FailureCode::AuthOldRevision => refused(AuthError::OldRevision.into()),
        FailureCode::AuthNoPasswordUser => refused(AuthError::NoPasswordUser.into()),
    })
}

/// An answer as a message.
pub(super) fn encode_applied(applied: Applied) -> pb::Applied {
    let answer = match applied.answer {
        Answer::Put(response) => applied::Answer::Put(response),
        Answer::DeleteRange(response) => applied::Answer::DeleteRange(response),
        Answer::Txn(response) => applied::Answer::Txn(response),
        Answer::Compact(response) => applied::Answer::Compact(response),
        Answer::LeaseGrant(response) => applied::Answer::LeaseGrant(response),
        Answer::LeaseRevoke(response) => applied::Answer::LeaseRevoke(response),
        Answer::Alarm(response) => applied::Answer::Alarm(response),
        Answer::Members(members) => {
            let members = members.into_iter().map(encode_member).collect();
            applied::Answer::Members(tail::Members { members })
        }
        Answer::AuthChanged(revision) => applied::Answer::AuthChanged(pb::AuthChanged { revision: revision.0 }),
        Answer::Done => applied::Answer::Done(pb::Done {}),
    };
    pb::Applied { position: applied.position.0, answer: Some(answer) }
}

/// The answer in a message; `None` when it comes from a newer version.
pub(super) fn decode_applied(applied: pb::Applied) -> Option<Applied> {
    let answer = match applied.answer? {
        applied::Answer::Put(response) => Answer::Put(response),
        applied::Answer::DeleteRange(response) => Answer::DeleteRange(response),
        applied::Answer::Txn(response) => Answer::Txn(response),
        applied::Answer::Compact(response) => Answer::Compact(response),
        applied::Answer::LeaseGrant(response) => Answer::LeaseGrant(response),
        applied::Answer::LeaseRevoke(response) => Answer::LeaseRevoke(response),
        applied::Answer::Alarm(response) => Answer::Alarm(response),
        applied::Answer::AuthChanged(changed) => Answer::AuthChanged(Revision(changed.revision)),
        applied::Answer::Done(pb::Done {}) => Answer::Done,
        applied::Answer::Members(tail::Members { members }) => {
            Answer::Members(members.into_iter().map(decode_member).collect())
        }
    };
    Some(Applied { position: Position(applied.position), answer })
}

fn encode_member(member: Member) -> tail::Member {
    let Member { id, name, peer_urls, client_urls, is_learner } = member;
    tail::Member { id: id.0, name, peer_urls, client_urls, is_learner }
}

fn decode_member(member: tail::Member) -> Member {
    let tail::Member { id, name, peer_urls, client_urls, is_learner } = member;
    Member { id: MemberId(id), name, peer_urls, client_urls, is_learner }
}

/// A lease as a message.
pub(super) fn encode_lease(lease: LeaseInfo) -> pb::LeaseInfo {
    let LeaseInfo { id, granted_ttl, remaining_ttl, keys } = lease;
    pb::LeaseInfo { id: id.0, granted_ttl_seconds: granted_ttl, remaining_ttl_seconds: remaining_ttl, keys }
}

/// The lease in a message.
pub(super) fn decode_lease(lease: pb::LeaseInfo) -> LeaseInfo {
    let pb::LeaseInfo { id, granted_ttl_seconds, remaining_ttl_seconds, keys } = lease;
    LeaseInfo { id: LeaseId(id), granted_ttl: granted_ttl_seconds, remaining_ttl: remaining_ttl_seconds, keys }
}
