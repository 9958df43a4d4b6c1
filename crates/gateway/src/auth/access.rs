//! What each method requires before it is looked at; one place, so that none is forgotten.

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Anybody,
    /// Who has shown who it is, and what the method then requires.
    Known,
    /// Who has the role root.
    Root,
    /// The method asks for what its request needs.
    Own,
}

/// The methods that don't require the role root.
const OPEN: &[(&str, Access)] = &[
    ("/etcdserverpb.KV/Range", Access::Own),
    ("/etcdserverpb.KV/RangeStream", Access::Own),
    ("/etcdserverpb.KV/Put", Access::Own),
    ("/etcdserverpb.KV/DeleteRange", Access::Own),
    ("/etcdserverpb.KV/Txn", Access::Own),
    ("/etcdserverpb.Watch/Watch", Access::Own),
    ("/etcdserverpb.Lease/LeaseGrant", Access::Known),
    ("/etcdserverpb.Lease/LeaseRevoke", Access::Known),
    // Per request of the stream.
    ("/etcdserverpb.Lease/LeaseKeepAlive", Access::Own),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Access::Known),
    ("/etcdserverpb.Lease/LeaseLeases", Access::Known),
    // Malformed URLs are refused first.
    ("/etcdserverpb.Cluster/MemberAdd", Access::Own),
    ("/etcdserverpb.Cluster/MemberUpdate", Access::Own),
    ("/etcdserverpb.Cluster/MemberList", Access::Known),
    // Listing; to raise and to disarm is root's.
    ("/etcdserverpb.Maintenance/Alarm", Access::Known),
    ("/etcdserverpb.Maintenance/Status", Access::Known),
    ("/etcdserverpb.Auth/AuthStatus", Access::Anybody),
    ("/etcdserverpb.Auth/Authenticate", Access::Anybody),
    // One's own.
    ("/etcdserverpb.Auth/UserGet", Access::Own),
    ("/etcdserverpb.Auth/RoleGet", Access::Own),
    // Made of calls to the services above, with the same credentials.
    ("/v3electionpb.Election/Campaign", Access::Own),
    ("/v3electionpb.Election/Proclaim", Access::Own),
    ("/v3electionpb.Election/Leader", Access::Own),
    ("/v3electionpb.Election/Observe", Access::Own),
    ("/v3electionpb.Election/Resign", Access::Own),
    ("/v3lockpb.Lock/Lock", Access::Own),
    ("/v3lockpb.Lock/Unlock", Access::Own),
    ("/grpc.health.v1.Health/Check", Access::Anybody),
    ("/grpc.health.v1.Health/Watch", Access::Anybody),
];

/// What the method at `path` requires. One that is not named above is root's.
pub(crate) fn of(path: &str) -> Access {
    OPEN.iter().find(|(open, _)| *open == path).map_or(Access::Root, |(_, access)| *access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::METHODS;

    #[test]
    fn roots_own_are_what_is_left() {
        for (path, _) in OPEN {
            assert!(METHODS.iter().any(|(known, _)| known == path), "{path} is a method");
        }
        let root: Vec<_> = METHODS.iter().map(|(path, _)| *path).filter(|path| of(path) == Access::Root).collect();
        let names: Vec<_> = root.iter().map(|path| path.rsplit('/').next().expect("it has a name")).collect();
        let expected = "Compact MemberRemove MemberPromote Defragment Hash HashKV Snapshot MoveLeader Downgrade AuthEnable \
                        AuthDisable UserAdd UserList UserDelete UserChangePassword UserGrantRole UserRevokeRole RoleAdd \
                        RoleList RoleDelete RoleGrantPermission RoleRevokePermission";
        assert_eq!(names.join(" "), expected);
    }
}
