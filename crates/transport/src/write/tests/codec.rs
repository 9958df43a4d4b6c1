//! Every answer and error there and back; noise.

use proptest::prelude::*;
use prost::Message as _;
use tailwater_api::etcdserverpb as etcd;
use tailwater_api::peer::{Hello, PeerBatch};
use tailwater_api::write::{self as pb, write_response::Response};
use tailwater_consensus::Answer;
use tailwater_eventlog::{Revision, RowError, StorageError};

use super::super::codec::*;
use super::*;

/// As it is after the wire.
fn over_the_wire(response: Response) -> Response {
    let response = pb::WriteResponse { request_id: 9, response: Some(response) };
    let decoded = pb::WriteResponse::decode(response.encode_to_vec().as_slice()).expect("as it was encoded");
    assert_eq!(decoded.request_id, 9);
    decoded.response.expect("an answer")
}

fn header(revision: i64) -> Option<etcd::ResponseHeader> {
    Some(etcd::ResponseHeader { revision, ..Default::default() })
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Put(etcd::PutResponse { header: header(2), prev_kv: None }),
        Answer::DeleteRange(etcd::DeleteRangeResponse { header: header(3), deleted: 4, ..Default::default() }),
        Answer::Txn(etcd::TxnResponse { header: header(5), succeeded: true, ..Default::default() }),
        Answer::Compact(etcd::CompactionResponse { header: header(6) }),
        Answer::LeaseGrant(etcd::LeaseGrantResponse { header: header(7), id: -8, ttl: 9, error: String::new() }),
        Answer::LeaseRevoke(etcd::LeaseRevokeResponse { header: header(10) }),
        Answer::Alarm(etcd::AlarmResponse { header: header(11), alarms: vec![etcd::AlarmMember::default()] }),
        Answer::Members(vec![Member {
            id: MemberId(12),
            name: "n".into(),
            peer_urls: vec!["http://a:1".into(), "http://b:2".into()],
            client_urls: vec!["http://c:3".into()],
            is_learner: true,
        }]),
        Answer::AuthChanged(Revision(13)),
        Answer::Done,
    ]
}

#[test]
fn every_answer_survives() {
    for answer in answers() {
        let applied = Applied { position: Position(u64::MAX), answer };
        let Response::Applied(message) = over_the_wire(Response::Applied(encode_applied(applied.clone()))) else {
            panic!("an answer stays one");
        };
        assert_eq!(decode_applied(message), Some(applied));
    }
    let lease = LeaseInfo { id: LeaseId(-1), granted_ttl: 5, remaining_ttl: -1, keys: vec!["a".into(), "".into()] };
    assert_eq!(decode_lease(encode_lease(lease.clone())), lease);
}

/// Adding a variant without a line here is an error of the compiler in `encode_error`, and a test that counts.
fn errors() -> Vec<ProposeError> {
    let refusals = [
        ApplyError::KeyNotFound,
        ApplyError::LeaseNotFound,
        ApplyError::LeaseExists,
        ApplyError::LeaseTtlTooLarge,
        ApplyError::Compacted,
        ApplyError::FutureRevision,
        ApplyError::NoSpace,
        ApplyError::Corrupt,
        ApplyError::MemberExists,
        ApplyError::MemberNotFound,
        ApplyError::PeerUrlExists,
        ApplyError::NotLearner,
        ApplyError::TooManyLearners,
        AuthError::UserEmpty.into(),
        AuthError::UserNotFound.into(),
        AuthError::UserExists.into(),
        AuthError::RoleEmpty.into(),
        AuthError::RoleNotFound.into(),
        AuthError::RoleExists.into(),
        AuthError::NoRootUser.into(),
        AuthError::NoRootRole.into(),
        AuthError::PermissionDenied.into(),
        AuthError::PermissionNotGiven.into(),
        AuthError::PermissionNotGranted.into(),
        AuthError::RoleNotGranted.into(),
        AuthError::InvalidManagement.into(),
        AuthError::OldRevision.into(),
        AuthError::NoPasswordUser.into(),
    ];
    let mut errors: Vec<ProposeError> = refusals.into_iter().map(ProposeError::Refused).collect();
    errors.extend([
        ProposeError::TooLarge,
        ProposeError::TooManyRequests,
        ProposeError::NoLeader,
        ProposeError::NotEnoughStarted,
        ProposeError::UnhealthyCluster,
        ProposeError::LearnerNotReady,
        ProposeError::BadTransferee,
        ProposeError::LeaderChanged,
        ProposeError::Timeout,
        ProposeError::Stopped,
        StorageError::Engine("IO error: no space".into()).into(),
        StorageError::Row { place: "log 00ff".into(), source: RowError::Format(9) }.into(),
        StorageError::Format { path: "/data".into(), found: 3, supported: 2 }.into(),
        StorageError::Inconsistent("a hole".into()).into(),
    ]);
    errors
}

#[test]
fn every_error_survives() {
    let mut codes = std::collections::BTreeSet::new();
    for error in errors() {
        let Response::Failure(message) = over_the_wire(failure(&error)) else { panic!("an error stays one") };
        assert!(codes.insert(message.code), "{error:?} shares its code");
        let Failed::Error(decoded) = decode_failure(message) else { panic!("{error:?} became something else") };
        assert_eq!(decoded.to_string(), error.to_string());
        if !matches!(error, ProposeError::Storage(StorageError::Row { .. })) {
            assert_eq!(format!("{decoded:?}"), format!("{error:?}"));
        }
    }
    let Response::Failure(message) = over_the_wire(not_leader(MemberId(7))) else { panic!("a failure") };
    assert!(matches!(decode_failure(message), Failed::NotLeader(MemberId(7))));
    let Response::Failure(message) = over_the_wire(unknown_request()) else { panic!("a failure") };
    assert!(matches!(decode_failure(message), Failed::UnknownRequest));
    // From a version that knows more: nothing is known of the outcome.
    let newer = pb::Failure { code: 9999, ..Default::default() };
    assert!(matches!(decode_failure(newer), Failed::Error(ProposeError::LeaderChanged)));
}

proptest! {
    #[test]
    fn noise_is_refused_or_read_but_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = pb::Failure::decode(bytes.as_slice()) {
            drop(decode_failure(message));
        }
        if let Ok(message) = pb::Applied::decode(bytes.as_slice()) {
            drop(decode_applied(message));
        }
        if let Ok(message) = pb::LeaseInfo::decode(bytes.as_slice()) {
            drop(decode_lease(message));
        }
        drop(pb::WriteRequests::decode(bytes.as_slice()));
        drop(PeerBatch::decode(bytes.as_slice()));
        let greeter = Greeter::new(GATEWAY, Arc::new(Directory::new(CLUSTER)));
        if let Ok(hello) = Hello::decode(bytes.as_slice()) {
            prop_assert!(greeter.check(Some(&hello)).is_err() || hello.to == GATEWAY.0);
        }
        let status = tonic::Status::with_details(tonic::Code::FailedPrecondition, "", bytes.into());
        prop_assert!(crate::RefusalReason::of(&status).is_none_or(|reason| !reason.to_string().is_empty()));
    }
}
