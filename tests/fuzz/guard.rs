//! What is not sent, because a server that does as it is told would no longer serve: it would lose its quorum, its users or
//! its room. That it refuses those who may not is what tests/auth is for.

use prost::Message;
use tailwater_api::etcdserverpb as pb;

/// Users and roles that this test needs.
pub(crate) const KEPT: [&str; 3] = ["root", "witness", "limited"];

fn decoded<M: Message + Default>(bytes: &[u8]) -> M {
    // What can't be decoded is refused.
    M::decode(bytes).unwrap_or_default()
}

/// Whether the call does no such thing. `member` is the server's own id.
pub(crate) fn is_harmless(path: &str, bytes: &[u8], with_auth: bool, member: u64) -> bool {
    let keeps = |names: &[&str]| !names.iter().any(|name| KEPT.contains(name));
    match path {
        "/etcdserverpb.Cluster/MemberAdd" => decoded::<pb::MemberAddRequest>(bytes).is_learner,
        "/etcdserverpb.Cluster/MemberRemove" => decoded::<pb::MemberRemoveRequest>(bytes).id != member,
        "/etcdserverpb.Cluster/MemberUpdate" => decoded::<pb::MemberUpdateRequest>(bytes).id != member,
        // An alarm that is raised stops writes, and a downgrade the tests after it.
        "/etcdserverpb.Maintenance/Alarm" => decoded::<pb::AlarmRequest>(bytes).action != 1,
        "/etcdserverpb.Maintenance/Downgrade" => decoded::<pb::DowngradeRequest>(bytes).action != 1,
        "/etcdserverpb.Auth/AuthEnable" | "/etcdserverpb.Auth/AuthDisable" => false,
        _ if !with_auth => true,
        "/etcdserverpb.Auth/UserDelete" => keeps(&[&decoded::<pb::AuthUserDeleteRequest>(bytes).name]),
        "/etcdserverpb.Auth/UserChangePassword" => keeps(&[&decoded::<pb::AuthUserChangePasswordRequest>(bytes).name]),
        "/etcdserverpb.Auth/UserRevokeRole" => keeps(&[&decoded::<pb::AuthUserRevokeRoleRequest>(bytes).name]),
        "/etcdserverpb.Auth/RoleDelete" => keeps(&[&decoded::<pb::AuthRoleDeleteRequest>(bytes).role]),
        "/etcdserverpb.Auth/RoleRevokePermission" => {
            keeps(&[&decoded::<pb::AuthRoleRevokePermissionRequest>(bytes).role])
        }
        // What a limited user may is part of the tests.
        "/etcdserverpb.Auth/RoleGrantPermission" => {
            keeps(&[&decoded::<pb::AuthRoleGrantPermissionRequest>(bytes).name])
        }
        "/etcdserverpb.Auth/UserGrantRole" => keeps(&[&decoded::<pb::AuthUserGrantRoleRequest>(bytes).user]),
        _ => true,
    }
}
