//! The machine's rows in the `state` column family. The event log adds a checksum to each value.
//!
//! Every value begins with the format byte 1. Numbers are big endian.
//!
//! | key | value after the format byte |
//! |---|---|
//! | `lease/` + id (8 bytes) | granted TTL (8 bytes), remaining TTL (8 bytes), seconds |
//! | `member/` + id (8 bytes) | encoded `tailwater.tail.v1.Member` |
//! | `removed/` + id (8 bytes) | nothing; the member was removed |
//! | `alarm/` + member id (8 bytes) + kind (1 byte: 1 NOSPACE, 2 CORRUPT) | nothing |
//! | `auth` | whether auth is on (1 byte, 0 or 1), auth revision (8 bytes), token secret (the rest) |
//! | `auth/user/` + name | encoded `authpb.User` |
//! | `auth/role/` + name | encoded `authpb.Role` |
//! | `cluster_id` | 8 bytes |
//! | `cluster_version` | UTF-8 text |
//! | `downgrade` | UTF-8 text: the version that members are about to be replaced by; no row when there is none |
//! | `compacted_at_zero` | nothing; the row exists once a compaction at revision 0 was accepted |
//! | `restored` | a digest; what the store began with was restored from a backup with it |
//! | `conf_state` | auto leave (1 byte), then voters, learners, outgoing voters, next learners: each a count (4 bytes) and so many ids (8 bytes) |

use bytes::{Buf, Bytes};
use prost::Message;
use raft::eraftpb::ConfState;
use tailwater_api::{authpb, tail};
use tailwater_eventlog::{Alarm, AlarmKind, LeaseId, Member, MemberId};

use super::members::{member as decode_member, member_message};
use super::{LeaseRecord, Machine};
use crate::Auth;

/// First byte of every value.
pub(super) const FORMAT: u8 = 1;
pub(super) const CLUSTER_ID: &[u8] = b"cluster_id";
pub(super) const CLUSTER_VERSION: &[u8] = b"cluster_version";
pub(super) const DOWNGRADE: &[u8] = b"downgrade";
pub(super) const CONF_STATE: &[u8] = b"conf_state";
pub(super) const COMPACTED_AT_ZERO: &[u8] = b"compacted_at_zero";
pub(super) const RESTORED: &[u8] = b"restored";
const LEASE: &[u8] = b"lease/";
const MEMBER: &[u8] = b"member/";
const REMOVED: &[u8] = b"removed/";
const ALARM: &[u8] = b"alarm/";
/// Also the prefix of users and roles.
pub(super) const AUTH: &[u8] = b"auth";
const AUTH_USER: &[u8] = b"auth/user/";
const AUTH_ROLE: &[u8] = b"auth/role/";

/// The prefixes under which all rows of the machine lie.
pub(crate) const PREFIXES: [&[u8]; 11] = [
    LEASE,
    MEMBER,
    REMOVED,
    ALARM,
    AUTH,
    CLUSTER_ID,
    CLUSTER_VERSION,
    DOWNGRADE,
    CONF_STATE,
    COMPACTED_AT_ZERO,
    RESTORED,
];

pub(super) fn lease_key(id: LeaseId) -> Vec<u8> {
    [LEASE, &id.0.to_be_bytes()].concat()
}

pub(super) fn member_key(id: MemberId) -> Vec<u8> {
    [MEMBER, &id.0.to_be_bytes()].concat()
}

pub(super) fn removed_key(id: MemberId) -> Vec<u8> {
    [REMOVED, &id.0.to_be_bytes()].concat()
}

pub(super) fn alarm_key(alarm: Alarm) -> Vec<u8> {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    };
    [ALARM, &alarm.member.0.to_be_bytes(), &[kind]].concat()
}

pub(super) fn lease(lease: &LeaseRecord) -> Vec<u8> {
    [&[FORMAT][..], &lease.ttl.to_be_bytes(), &lease.remaining.to_be_bytes()].concat()
}

pub(super) fn member(member: &Member) -> Vec<u8> {
    let mut out = vec![FORMAT];
    member_message(member).encode(&mut out).expect("a vector takes any length");
    out
}

pub(super) fn user_key(name: &[u8]) -> Vec<u8> {
    [AUTH_USER, name].concat()
}

pub(super) fn role_key(name: &[u8]) -> Vec<u8> {
    [AUTH_ROLE, name].concat()
}

pub(super) fn auth(auth: &Auth) -> Vec<u8> {
    let enabled = u8::from(auth.is_enabled());
    [&[FORMAT, enabled][..], &auth.revision().to_be_bytes(), auth.token_secret()].concat()
}

/// An encoded message as a value.
pub(super) fn sealed(message: Vec<u8>) -> Vec<u8> {
    [vec![FORMAT], message].concat()
}

pub(super) fn number(number: u64) -> Vec<u8> {
    [&[FORMAT][..], &number.to_be_bytes()].concat()
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [&[FORMAT][..], text.as_bytes()].concat()
}

pub(super) fn conf_state(conf: &ConfState) -> Vec<u8> {
    let mut out = vec![FORMAT, u8::from(conf.auto_leave)];
    for ids in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
        out.extend(u32::try_from(ids.len()).expect("a group has few members").to_be_bytes());
        ids.iter().for_each(|id| out.extend(id.to_be_bytes()));
    }
    out
}

/// Puts one stored row into the machine; `None` when it can't be read.
pub(super) fn load_row(machine: &mut Machine, key: &[u8], value: &[u8]) -> Option<()> {
    let (&FORMAT, mut value) = value.split_first()? else { return None };
    if let Some(id) = key.strip_prefix(LEASE) {
        let id = LeaseId(i64::from_be_bytes(id.try_into().ok()?));
        let ttl = value.try_get_i64().ok()?;
        let remaining = value.try_get_i64().ok()?;
        machine.leases.insert(id, LeaseRecord { ttl, remaining, ..Default::default() });
    } else if key.starts_with(MEMBER) {
        let member = decode_member(tail::Member::decode(value).ok()?);
        machine.members.insert(member.id, member);
    } else if let Some(id) = key.strip_prefix(REMOVED) {
        machine.removed.insert(MemberId(u64::from_be_bytes(id.try_into().ok()?)));
    } else if let Some(mut alarm) = key.strip_prefix(ALARM) {
        let member = MemberId(alarm.try_get_u64().ok()?);
        let kind = match alarm {
            [1] => AlarmKind::NoSpace,
            [2] => AlarmKind::Corrupt,
            _ => return None,
        };
        machine.alarms.insert(Alarm { member, kind });
    } else if key == AUTH {
        machine.auth.set_enabled(value.try_get_u8().ok()? == 1);
        machine.auth.set_revision(value.try_get_u64().ok()?);
        machine.auth.set_token_secret(Bytes::copy_from_slice(value));
    } else if key.starts_with(AUTH_USER) {
        machine.auth.insert_user(authpb::User::decode(value).ok()?);
    } else if key.starts_with(AUTH_ROLE) {
        machine.auth.insert_role(authpb::Role::decode(value).ok()?);
    } else if key == CLUSTER_ID {
        machine.cluster_id = value.try_get_u64().ok()?;
    } else if key == CLUSTER_VERSION {
        machine.cluster_version = String::from_utf8(value.to_vec()).ok()?;
    } else if key == DOWNGRADE {
        machine.downgrade = String::from_utf8(value.to_vec()).ok()?;
    } else if key == COMPACTED_AT_ZERO {
        machine.compacted_at_zero = true;
    } else if key == RESTORED {
        machine.restored = value.to_vec();
    } else if key == CONF_STATE {
        machine.conf_state = load_conf_state(value)?;
    } else {
        return None;
    }
    Some(())
}

fn load_conf_state(mut value: &[u8]) -> Option<ConfState> {
    let auto_leave = value.try_get_u8().ok()? == 1;
    let mut ids = || -> Option<Vec<u64>> {
        let count = value.try_get_u32().ok()?;
        (0..count).map(|_| value.try_get_u64().ok()).collect()
    };
    Some(ConfState { voters: ids()?, learners: ids()?, voters_outgoing: ids()?, learners_next: ids()?, auto_leave })
}
