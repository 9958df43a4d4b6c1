use std::collections::HashSet;

use super::*;

/// Code and text as a client of a real etcd sees them.
const ETCD: &[(Fault, i32, &str)] = &[
    (Fault::EmptyKey, 3, "etcdserver: key is not provided"),
    (Fault::KeyNotFound, 3, "etcdserver: key not found"),
    (Fault::ValueProvided, 3, "etcdserver: value is provided"),
    (Fault::LeaseProvided, 3, "etcdserver: lease is provided"),
    (Fault::TooManyOps, 3, "etcdserver: too many operations in txn request"),
    (Fault::DuplicateKey, 3, "etcdserver: duplicate key given in txn request"),
    (Fault::InvalidClientApiVersion, 3, "etcdserver: invalid client api version"),
    (Fault::InvalidSortOption, 3, "etcdserver: invalid sort option"),
    (Fault::Compacted, 11, "etcdserver: mvcc: required revision has been compacted"),
    (Fault::FutureRevision, 11, "etcdserver: mvcc: required revision is a future revision"),
    (Fault::NoSpace, 8, "etcdserver: mvcc: database space exceeded"),
    (Fault::LeaseNotFound, 5, "etcdserver: requested lease not found"),
    (Fault::LeaseExists, 9, "etcdserver: lease already exists"),
    (Fault::LeaseTtlTooLarge, 11, "etcdserver: too large lease TTL"),
    (Fault::WatchCanceled, 1, "etcdserver: watch canceled"),
    (Fault::RequestTooLarge, 3, "etcdserver: request is too large"),
    (Fault::TooManyRequests, 2, "etcdserver: too many requests"),
    (Fault::NoLeader, 14, "etcdserver: no leader"),
    (Fault::LeaderChanged, 14, "etcdserver: leader changed"),
    (Fault::Stopped, 14, "etcdserver: server stopped"),
    (Fault::Timeout, 14, "etcdserver: request timed out"),
    (Fault::Corrupt, 15, "etcdserver: corrupt cluster"),
    (Fault::MemberExists, 9, "etcdserver: member ID already exist"),
    (Fault::PeerUrlExists, 9, "etcdserver: Peer URLs already exists"),
    (Fault::MemberNotFound, 5, "etcdserver: member not found"),
    (Fault::MemberNotLearner, 9, "etcdserver: can only promote a learner member"),
    (Fault::LearnerNotReady, 9, "etcdserver: can only promote a learner member which is in sync with leader"),
    (Fault::TooManyLearners, 9, "etcdserver: too many learner members in cluster"),
    (Fault::NotEnoughStarted, 2, "etcdserver: re-configuration failed due to not enough started members"),
    (Fault::Unhealthy, 14, "etcdserver: unhealthy cluster"),
    (Fault::MemberBadUrls, 3, "etcdserver: given member URLs are invalid"),
    (Fault::NotLeader, 9, "etcdserver: not leader"),
    (Fault::TransferTimeout, 2, "etcdserver: request timed out, leader transfer took too long"),
    (Fault::NotSupportedForLearner, 9, "etcdserver: rpc not supported for learner"),
    (Fault::BadLeaderTransferee, 9, "etcdserver: bad leader transferee"),
    (Fault::UserEmpty, 3, "etcdserver: user name is empty"),
    (Fault::UserNotFound, 9, "etcdserver: user name not found"),
    (Fault::UserExists, 9, "etcdserver: user name already exists"),
    (Fault::RoleEmpty, 3, "etcdserver: role name is empty"),
    (Fault::RoleNotFound, 9, "etcdserver: role name not found"),
    (Fault::RoleExists, 9, "etcdserver: role name already exists"),
    (Fault::NoRootUser, 9, "etcdserver: root user does not exist"),
    (Fault::NoRootRole, 9, "etcdserver: root user does not have root role"),
    (Fault::PermissionDenied, 7, "etcdserver: permission denied"),
    (Fault::PermissionNotGiven, 3, "etcdserver: permission not given"),
    (Fault::PermissionNotGranted, 9, "etcdserver: permission is not granted to the role"),
    (Fault::RoleNotGranted, 9, "etcdserver: role is not granted to the user"),
    (Fault::InvalidAuthManagement, 3, "etcdserver: invalid auth management"),
    (Fault::AuthOldRevision, 3, "etcdserver: revision of auth store is old"),
    (Fault::AuthNotEnabled, 9, "etcdserver: authentication is not enabled"),
    (Fault::AuthFailed, 3, "etcdserver: authentication failed, invalid user ID or password"),
    (Fault::NoPasswordUser, 2, "auth: authentication failed, password was given for no password user"),
    (Fault::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
    (Fault::VerifyOnly, 2, "auth: token signing attempted with verify-only key"),
    (Fault::ClusterVersionUnavailable, 9, "etcdserver: cluster version not found during downgrade"),
    (Fault::WrongDowngradeVersionFormat, 3, "etcdserver: wrong downgrade target version format"),
    (Fault::InvalidDowngradeTargetVersion, 3, "etcdserver: invalid downgrade target version"),
    (Fault::DowngradeInProcess, 9, "etcdserver: cluster has a downgrade job in progress"),
    (Fault::DeadlineExceeded, 4, "context deadline exceeded"),
];

#[test]
fn every_entry_has_etcds_code_and_text() {
    for (fault, code, text) in ETCD {
        assert_eq!((fault.status().0 as i32, fault.status().1), (*code, *text));
    }
    assert_eq!(Fault::all().len(), ETCD.len(), "an entry of the table is not compared");
}

#[test]
fn texts_are_unique_because_clients_tell_errors_apart_by_them() {
    let faults = Fault::all();
    let texts: HashSet<&str> = faults.iter().map(|fault| fault.status().1).collect();
    assert_eq!(texts.len(), faults.len());
}

#[test]
fn errors_of_the_planes_map_to_their_entry() {
    assert_eq!(Fault::from(ProposeError::Refused(ApplyError::LeaseExists)), Fault::LeaseExists);
    assert_eq!(Fault::from(ProposeError::TooLarge), Fault::RequestTooLarge);
    assert_eq!(Fault::from(ReadError::Compacted), Fault::Compacted);
    assert_eq!(
        Fault::from(FrameError::Oversize { len: 3_000_000, max: 2_097_152 }).status(),
        (Code::ResourceExhausted, "grpc: received message larger than max (3000000 vs. 2097152)")
    );
}
