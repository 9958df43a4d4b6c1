//! What a snapshot says beside keys and history.

use prost::Message as _;
use tailwater_api::{authpb, etcdserverpb as pb};
use tailwater_consensus::StoredState;
use tailwater_eventlog::{AlarmKind, AuthFacts, LogState, Revision};
use tailwater_snapshot::{Auth, ConfState, Facts, Lease, Member};

use super::STORAGE_VERSION;

/// Facts and leases of a stored state. Without a cluster version, which the etcd that starts on the file decides anew: one
/// above its own would keep it from starting.
pub(super) fn facts(stored: &StoredState, numbers: &LogState) -> (Facts, Vec<Lease>) {
    let compacted = (numbers.compacted > Revision(0)).then_some(numbers.compacted.0);
    let facts = Facts {
        auth: auth(&stored.auth),
        alarms: stored.alarms.iter().map(|alarm| alarm_member(*alarm)).collect(),
        members: stored.members.iter().map(member).collect(),
        removed_members: stored.removed.iter().map(|id| id.0).collect(),
        consistent_index: numbers.applied.0,
        term: numbers.applied_term.0,
        conf_state: Some(conf_state(stored)),
        scheduled_compaction: compacted,
        finished_compaction: compacted,
        storage_version: Some(STORAGE_VERSION.to_owned()),
        ..Facts::default()
    };
    let lease = |lease: &tailwater_consensus::StoredLease| Lease {
        id: lease.id.0,
        ttl: lease.ttl,
        remaining_ttl: lease.remaining,
    };
    let mut leases: Vec<Lease> = stored.leases.iter().map(lease).collect();
    // As the file orders them: by their bytes, where a negative id comes last.
    leases.sort_unstable_by_key(|lease| lease.id.to_be_bytes());
    (facts, leases)
}

fn auth(facts: &AuthFacts) -> Auth {
    Auth {
        is_enabled: facts.enabled,
        revision: facts.revision,
        users: facts.users.iter().filter_map(|user| authpb::User::decode(user.clone()).ok()).collect(),
        roles: facts.roles.iter().filter_map(|role| authpb::Role::decode(role.clone()).ok()).collect(),
    }
}

fn conf_state(stored: &StoredState) -> ConfState {
    let ids = |is_learner| -> Vec<u64> {
        stored.members.iter().filter(|member| member.is_learner == is_learner).map(|member| member.id.0).collect()
    };
    ConfState { voters: ids(false), learners: ids(true), ..ConfState::default() }
}

fn member(member: &tailwater_eventlog::Member) -> Member {
    Member {
        id: member.id.0,
        peer_urls: member.peer_urls.clone(),
        is_learner: member.is_learner,
        name: member.name.clone(),
        client_urls: member.client_urls.clone(),
    }
}

fn alarm_member(alarm: tailwater_eventlog::Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member.0, alarm: kind as i32 }
}
