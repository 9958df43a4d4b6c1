//! Auth commands, and commands under auth.

use tailwater_api::authpb;
use tailwater_api::authpb::permission::Type;

use super::*;
use crate::{AuthError, Right};

fn add_user(name: &str) -> Command {
    let hashed_password = "aGFzaA==".to_owned();
    Command::AuthUserAdd(pb::AuthUserAddRequest { name: name.into(), hashed_password, ..Default::default() })
}

fn delete_user(name: &str) -> Command {
    Command::AuthUserDelete(pb::AuthUserDeleteRequest { name: name.into() })
}

fn add_role(name: &str) -> Command {
    Command::AuthRoleAdd(pb::AuthRoleAddRequest { name: name.into() })
}

fn delete_role(role: &str) -> Command {
    Command::AuthRoleDelete(pb::AuthRoleDeleteRequest { role: role.into() })
}

fn grant_role(user: &str, role: &str) -> Command {
    Command::AuthUserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn revoke_role(name: &str, role: &str) -> Command {
    Command::AuthUserRevokeRole(pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() })
}

fn grant(role: &str, perm_type: Type, key: &str, range_end: &str) -> Command {
    let perm = authpb::Permission { perm_type: perm_type as i32, key: key.into(), range_end: range_end.into() };
    Command::AuthRoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) })
}

fn revoke(role: &str, key: &str, range_end: &str) -> Command {
    let (role, key, range_end) = (role.to_owned(), key.as_bytes().to_vec(), range_end.as_bytes().to_vec());
    Command::AuthRoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
        role,
        key: key.into(),
        range_end: range_end.into(),
    })
}

fn enable() -> Command {
    Command::AuthEnable(write::AuthEnable { token_secret: "secret".into() })
}

fn disable() -> Command {
    Command::AuthDisable(pb::AuthDisableRequest {})
}

impl World {
    fn auth_error(&mut self, command: Command) -> AuthError {
        match self.run(command) {
            Err(ApplyError::Auth(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    fn by(&mut self, user: &str, command: Command) -> Result<Answer, ApplyError> {
        let auth_revision = self.machine.auth.revision();
        self.run_as(Some(Caller { user: user.into(), auth_revision }), command)
    }

    /// Auth is on; root is root, `u` may read and write what begins with `a`.
    fn with_auth() -> Self {
        let mut world = Self::new();
        for command in [
            add_user("root"),
            add_user("u"),
            add_role("r"),
            grant("r", Type::Readwrite, "a", "b"),
            grant_role("root", "root"),
            grant_role("u", "r"),
            enable(),
        ] {
            world.run(command).unwrap();
        }
        world
    }
}

const DENIED: Result<Answer, ApplyError> = Err(ApplyError::Auth(AuthError::PermissionDenied));

#[test]
fn users_and_roles_change_by_etcds_rules() {
    let mut world = World::new();
    assert_eq!(world.auth_error(enable()), AuthError::NoRootUser);
    assert_eq!(world.auth_error(add_user("")), AuthError::UserEmpty);
    assert_eq!(world.run(add_user("root")), Ok(Answer::AuthChanged(Revision(1))));
    assert_eq!(world.auth_error(add_user("root")), AuthError::UserExists);
    assert_eq!(world.auth_error(enable()), AuthError::NoRootRole);
    assert_eq!(world.auth_error(grant_role("nobody", "root")), AuthError::UserNotFound);
    assert_eq!(world.auth_error(grant_role("root", "r")), AuthError::RoleNotFound);
    world.run(grant_role("root", "root")).unwrap();
    assert_eq!(world.auth_error(add_role("")), AuthError::RoleEmpty);
    world.run(add_role("r")).unwrap();
    assert_eq!(world.auth_error(add_role("r")), AuthError::RoleExists);
    assert_eq!(world.auth_error(delete_role("s")), AuthError::RoleNotFound);
    assert_eq!(world.auth_error(delete_user("nobody")), AuthError::UserNotFound);
    assert_eq!(world.auth_error(revoke_role("root", "r")), AuthError::RoleNotGranted);
    let none = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    assert_eq!(world.auth_error(Command::AuthRoleGrantPermission(none)), AuthError::PermissionNotGiven);
    for (key, end) in [("", ""), ("b", "a"), ("a", "a")] {
        assert_eq!(world.auth_error(grant("r", Type::Read, key, end)), AuthError::InvalidManagement);
    }
    assert_eq!(world.auth_error(grant("s", Type::Read, "a", "")), AuthError::RoleNotFound);
    world.run(grant("r", Type::Read, "a", "\0")).unwrap();
    assert_eq!(world.auth_error(revoke("r", "a", "")), AuthError::PermissionNotGranted);
    let garbled =
        pb::AuthUserChangePasswordRequest { name: "root".into(), hashed_password: "?".into(), ..Default::default() };
    assert_eq!(world.auth_error(Command::AuthUserChangePassword(garbled)), AuthError::NoPasswordUser);
    world.run(revoke("r", "a", "\0")).unwrap();
    // Refusals count nothing; enabling doesn't either, disabling does.
    assert_eq!(world.machine.auth.revision(), 6);
    world.run(enable()).unwrap();
    assert_eq!(world.machine.auth.revision(), 6);
    for broken in [delete_user("root"), revoke_role("root", "root"), delete_role("root")] {
        assert_eq!(world.auth_error(broken), AuthError::InvalidManagement);
    }
    world.run(disable()).unwrap();
    world.run(disable()).unwrap();
    assert_eq!(world.machine.auth.revision(), 7);
    world.run(revoke_role("root", "root")).unwrap();
    assert_eq!(world.auth_error(enable()), AuthError::NoRootRole);
    // No revision of the store is spent on auth.
    assert_eq!(world.revision(), 1);
}

#[test]
fn a_deleted_role_leaves_its_users() {
    let mut world = World::with_auth();
    world.by("u", Command::Put(put("a1", "1"))).unwrap();
    world.run(delete_role("r")).unwrap();
    assert!(world.machine.auth.user("u").unwrap().roles.is_empty());
    assert_eq!(world.by("u", Command::Put(put("a1", "2"))), DENIED);
    // A new role of that name is another one.
    world.run(add_role("r")).unwrap();
    world.run(grant("r", Type::Write, "a1", "")).unwrap();
    assert_eq!(world.by("u", Command::Put(put("a1", "2"))), DENIED);
    world.run(grant_role("u", "r")).unwrap();
    world.by("u", Command::Put(put("a1", "2"))).unwrap();
}

#[test]
fn a_grant_of_the_same_range_replaces_the_kind() {
    let mut world = World::with_auth();
    world.run(grant("r", Type::Read, "a", "b")).unwrap();
    assert_eq!(world.machine.auth.role_permissions("r").unwrap().len(), 1);
    assert_eq!(world.by("u", Command::Put(put("a1", "1"))), DENIED);
}

#[test]
fn writes_are_checked_where_they_are_applied() {
    let mut world = World::with_auth();
    let old = Caller { user: "u".into(), auth_revision: world.machine.auth.revision() - 1 };
    let own = || Command::Put(put("a1", "1"));
    assert_eq!(world.run_as(Some(old), own()), Err(AuthError::OldRevision.into()));
    assert_eq!(world.run_as(Some(Caller::default()), own()), Err(AuthError::UserEmpty.into()));
    assert_eq!(world.by("nobody", own()), DENIED);
    assert_eq!(world.by("u", Command::Put(put("b1", "1"))), DENIED);
    world.by("u", own()).unwrap();
    world.by("root", Command::Put(put("b1", "1"))).unwrap();
    let mut wide = delete("a", "c");
    assert_eq!(world.by("u", Command::DeleteRange(wide.clone())), DENIED);
    wide.range_end = "b".into();
    world.by("u", Command::DeleteRange(wide)).unwrap();
    // With prev_kv a write shows what was there.
    world.run(grant("r", Type::Write, "c", "")).unwrap();
    world.by("u", Command::Put(put("c", "1"))).unwrap();
    assert_eq!(world.by("u", Command::Put(pb::PutRequest { prev_kv: true, ..put("c", "1") })), DENIED);
    assert_eq!(world.by("u", Command::DeleteRange(delete("c", ""))), DENIED);
    assert_eq!(world.by("u", Command::Compact(pb::CompactionRequest::default())), DENIED);
    let lonely = Command::LeaseExpire(write::LeaseExpire { ids: vec![1] });
    assert_eq!(world.by("root", lonely), DENIED);
    assert!(world.last.write.events.is_empty());
}

/// CVE-2026-33343: what a nested txn does needs the same rights.
#[test]
fn every_branch_of_a_txn_counts() {
    let mut world = World::with_auth();
    let allowed = then([
        Request::RequestPut(put("a1", "1")),
        Request::RequestRange(pb::RangeRequest { key: "a1".into(), ..Default::default() }),
    ]);
    world.by("u", Command::Txn(allowed.clone())).unwrap();
    for op in [
        Request::RequestPut(put("b", "1")),
        Request::RequestRange(all()),
        Request::RequestDeleteRange(delete("b", "")),
        Request::RequestTxn(then([Request::RequestRange(all())])),
        Request::RequestTxn(then([Request::RequestTxn(then([Request::RequestPut(put("b", "1"))]))])),
    ] {
        let op = pb::RequestOp { request: Some(op) };
        let taken = pb::TxnRequest { success: vec![op.clone()], ..Default::default() };
        let not_taken = pb::TxnRequest { failure: vec![op], ..allowed.clone() };
        assert_eq!(world.by("u", Command::Txn(taken)), DENIED);
        assert_eq!(world.by("u", Command::Txn(not_taken)), DENIED);
    }
    let compare = pb::Compare { key: "b".into(), ..Default::default() };
    let compared = pb::TxnRequest { compare: vec![compare], ..allowed };
    assert_eq!(world.by("u", Command::Txn(compared.clone())), DENIED);
    let nested = then([Request::RequestTxn(compared)]);
    assert_eq!(world.by("u", Command::Txn(nested)), DENIED);
}

#[test]
fn a_lease_belongs_to_who_may_write_its_keys() {
    let mut world = World::with_auth();
    let grant_lease = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 60 });
    let leased = |key, lease| Command::Put(pb::PutRequest { lease, ..put(key, "1") });
    world.by("u", grant_lease(1)).unwrap();
    assert_eq!(world.run_as(Some(Caller::default()), grant_lease(2)), Err(AuthError::UserEmpty.into()));
    world.by("u", leased("a1", 1)).unwrap();
    let revision = world.machine.auth.revision();
    let caller = Caller { user: "u".into(), auth_revision: revision };
    let check = |world: &World, right, id| world.machine.check_lease_caller(&caller, right, id);
    assert_eq!(check(&world, Right::Write, Some(LeaseId(1))), Ok(()));
    assert_eq!(check(&world, Right::Read, None), Ok(()));
    world.by("root", leased("b1", 1)).unwrap();
    let denied = Err(ApplyError::Auth(AuthError::PermissionDenied));
    assert_eq!(check(&world, Right::Write, Some(LeaseId(1))), denied);
    assert_eq!(check(&world, Right::Read, None), denied);
    assert_eq!(check(&world, Right::Read, Some(LeaseId(9))), Ok(()));
    let revoke = || Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 });
    assert_eq!(world.by("u", leased("a2", 1)), DENIED);
    assert_eq!(world.by("u", revoke()), DENIED);
    world.by("root", revoke()).unwrap();
    assert_eq!(world.by("u", revoke()), Err(ApplyError::LeaseNotFound));
}

#[test]
fn only_root_manages() {
    let mut world = World::with_auth();
    let alarm = |action| Command::Alarm(pb::AlarmRequest { action, member_id: 7, alarm: 1 });
    for command in [
        add_user("v"),
        delete_user("u"),
        add_role("s"),
        delete_role("r"),
        grant_role("u", "root"),
        revoke_role("u", "r"),
        grant("r", Type::Read, "x", ""),
        revoke("r", "a", "b"),
        enable(),
        disable(),
        alarm(1),
        Command::MemberRemove(write::MemberRemove { id: 7 }),
    ] {
        assert_eq!(world.by("u", command.clone()), DENIED, "{command:?}");
        let nobody = world.run_as(Some(Caller::default()), command.clone());
        assert_eq!(nobody, Err(AuthError::UserEmpty.into()), "{command:?}");
    }
    world.by("u", alarm(0)).unwrap();
    world.by("root", add_user("v")).unwrap();
}

#[test]
fn readers_are_told_once_per_batch() {
    let mut world = World::with_auth();
    world.run(add_user("v")).unwrap();
    let [Fact::Auth(facts)] = world.last.facts.as_slice() else { panic!("{:?}", world.last.facts) };
    assert_eq!(Auth::from_facts(facts), world.machine.auth);
    assert_eq!((facts.users.len(), facts.token_secret.as_ref()), (3, &b"secret"[..]));
    // A secret that is there stays.
    let another = || Command::AuthTokenSecret(write::AuthTokenSecret { token_secret: "other".into() });
    world.run(another()).unwrap();
    assert!(world.last.facts.is_empty());
    world.run(disable()).unwrap();
    assert!(world.machine.auth.token_secret().is_empty());
    world.run(another()).unwrap();
    assert!(world.machine.auth.token_secret().is_empty());
}

#[test]
fn a_restart_finds_the_same_rules() {
    let mut world = World::with_auth();
    world.run(delete_user("u")).unwrap();
    world.run(add_role("empty")).unwrap();
    let rows = world.memory.state.iter().map(|(key, value)| (key.clone().into(), value.clone().into()));
    let loaded = Machine::load(KeyIndex::default(), world.machine.state(), rows).unwrap();
    assert_eq!(loaded.auth, world.machine.auth);
    assert_eq!(loaded.facts(), world.machine.facts());
}
