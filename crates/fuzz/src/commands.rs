//! Commands in the log: every member does the same with them, whatever they are.

use prost::Message as _;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::write::{self, Caller, Command as Sent, CommandBatch, command::Command};
use tailwater_consensus::fuzzing;

/// The first byte says after how many commands a member is started again.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some((&restart_every, rest)) = data.split_first() else { return false };
    let Ok(batch) = CommandBatch::decode(rest) else { return false };
    let is_sound = |sent: &Sent| sent.command.as_ref().is_none_or(tailwater_gateway::fuzzing::is_let_through);
    let commands: Vec<Sent> = batch.commands.into_iter().filter(is_sound).collect();
    fuzzing::same_everywhere(commands, usize::from(restart_every))
}

/// What users, leases and keys go through.
pub(crate) fn batch() -> CommandBatch {
    let sent = |command| Sent { command: Some(command), ..Default::default() };
    let put = |key: &'static str, lease: i64| {
        Command::Put(pb::PutRequest { lease, prev_kv: true, ..crate::txns::put(key, "value") })
    };
    let user = pb::AuthUserAddRequest { name: "root".into(), hashed_password: "aGFzaA==".into(), ..Default::default() };
    let granted = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    let commands = vec![
        sent(Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 5 })),
        sent(put("a", 5)),
        sent(put("a", 0)),
        sent(Command::Txn(crate::txns::nested())),
        sent(Command::DeleteRange(delete)),
        sent(Command::Compact(pb::CompactionRequest { revision: 3, physical: false })),
        sent(put("g", 5)),
        sent(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 5 })),
        sent(Command::AuthUserAdd(user)),
        sent(Command::AuthRoleAdd(pb::AuthRoleAddRequest { name: "root".into() })),
        sent(Command::AuthUserGrantRole(granted)),
        sent(Command::AuthEnable(write::AuthEnable { token_secret: "secret".into() })),
        Sent {
            caller: Some(Caller { user: "root".into(), auth_revision: 5 }),
            command: Some(put("b", 0)),
            ..Default::default()
        },
    ];
    CommandBatch { commands }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let member = tailwater_api::tail::Member {
        id: 8,
        name: "n".into(),
        peer_urls: vec!["http://h:1".into()],
        is_learner: true,
        ..Default::default()
    };
    let members = CommandBatch {
        commands: [
            Command::MemberAdd(write::MemberAdd { member: Some(member) }),
            Command::MemberPromote(write::MemberPromote { id: 8 }),
            Command::MemberRemove(write::MemberRemove { id: 8 }),
            Command::Alarm(pb::AlarmRequest { action: 1, member_id: 7, alarm: 1 }),
            Command::Put(crate::txns::put("a", "refused")),
            Command::Alarm(pb::AlarmRequest { action: 2, member_id: 7, alarm: 1 }),
            Command::Put(crate::txns::put("a", "taken")),
            Command::SetClusterVersion(write::SetClusterVersion { version: "3.6.0".into() }),
        ]
        .map(|command| Sent { command: Some(command), ..Default::default() })
        .into(),
    };
    [(2, batch()), (1, members)].map(|(every, batch)| [vec![every], batch.encode_to_vec()].concat()).into()
}
