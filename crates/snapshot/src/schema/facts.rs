//! Everything but keys and leases: what fits into memory, as one value.

use std::collections::BTreeMap;

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tailwater_api::authpb;
use tailwater_api::etcdserverpb::AlarmMember;

use super::{ConfState, Downgrade, Member, RowError, RowKey, RowRevision, bucket};

const AUTH_ENABLED: &[u8] = b"authEnabled";
const AUTH_REVISION: &[u8] = b"authRevision";
const CLUSTER_VERSION: &[u8] = b"clusterVersion";
const DOWNGRADE: &[u8] = b"downgrade";
const CONSISTENT_INDEX: &[u8] = b"consistent_index";
const TERM: &[u8] = b"term";
const CONF_STATE: &[u8] = b"confState";
const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
const STORAGE_VERSION: &[u8] = b"storageVersion";
const REMOVED: &[u8] = b"removed";

/// The rows of the small buckets, by bucket and in the order of their keys.
pub(crate) type FactRows = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Users, roles and whether they matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    /// Whether requests are checked.
    pub is_enabled: bool,
    /// Counts changes of users and roles.
    pub revision: u64,
    /// By name.
    pub users: Vec<authpb::User>,
    /// By name.
    pub roles: Vec<authpb::Role>,
}

/// What a snapshot says beside keys and leases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Users and roles.
    pub auth: Auth,
    /// Alarms that are raised.
    pub alarms: Vec<AlarmMember>,
    /// Members; `etcdutl snapshot restore` replaces them.
    pub members: Vec<Member>,
    /// Ids that may not come back; replaced as well.
    pub removed_members: Vec<u64>,
    /// The version that all members support, as `3.6.0`.
    pub cluster_version: Option<String>,
    /// A downgrade that was asked for.
    pub downgrade: Option<Downgrade>,
    /// The raft index up to which everything was applied; 0 when there is none.
    pub consistent_index: u64,
    /// The term of that index; 0 when there is none. etcd takes a file without it for one of a version below 3.5.
    pub term: u64,
    /// The raft configuration.
    pub conf_state: Option<ConfState>,
    /// The revision of the last compaction that began. When etcd finds it above the finished one, it compacts again.
    pub scheduled_compaction: Option<i64>,
    /// The revision of the last compaction whose rows are gone.
    pub finished_compaction: Option<i64>,
    /// The version of this schema, as `3.6.0`; etcd 3.5 has none.
    pub storage_version: Option<String>,
}

impl Facts {
    /// The compacted revision: history below it is not served.
    #[must_use]
    pub fn compacted(&self) -> Option<i64> {
        self.scheduled_compaction.max(self.finished_compaction)
    }

    /// As rows. All buckets of [`bucket::FACTS`] are there, the empty ones too.
    pub(crate) fn rows(&self) -> FactRows {
        let mut rows: FactRows = bucket::FACTS.into_iter().map(|name| (name, BTreeMap::new())).collect();
        let mut put = |bucket: &'static str, key: &[u8], value: Vec<u8>| {
            rows.entry(bucket).or_default().insert(key.to_vec(), value);
        };
        put(bucket::AUTH, AUTH_ENABLED, vec![u8::from(self.auth.is_enabled)]);
        put(bucket::AUTH, AUTH_REVISION, self.auth.revision.to_be_bytes().to_vec());
        for user in &self.auth.users {
            put(bucket::AUTH_USERS, &user.name, user.encode_to_vec());
        }
        for role in &self.auth.roles {
            put(bucket::AUTH_ROLES, &role.name, role.encode_to_vec());
        }
        for alarm in &self.alarms {
            put(bucket::ALARM, &alarm.encode_to_vec(), Vec::new());
        }
        for member in &self.members {
            put(bucket::MEMBERS, member_key(member.id).as_bytes(), json(member));
        }
        for id in &self.removed_members {
            put(bucket::MEMBERS_REMOVED, member_key(*id).as_bytes(), REMOVED.to_vec());
        }
        if let Some(version) = &self.cluster_version {
            put(bucket::CLUSTER, CLUSTER_VERSION, version.clone().into_bytes());
        }
        if let Some(downgrade) = &self.downgrade {
            put(bucket::CLUSTER, DOWNGRADE, json(downgrade));
        }
        self.meta_rows(&mut put);
        rows
    }

    fn meta_rows(&self, put: &mut impl FnMut(&'static str, &[u8], Vec<u8>)) {
        for (key, number) in [(CONSISTENT_INDEX, self.consistent_index), (TERM, self.term)] {
            if number != 0 {
                put(bucket::META, key, number.to_be_bytes().to_vec());
            }
        }
        let compactions =
            [(SCHEDULED_COMPACTION, self.scheduled_compaction), (FINISHED_COMPACTION, self.finished_compaction)];
        for (key, revision) in compactions {
            if let Some(main) = revision {
                let row = RowKey { revision: RowRevision { main, sub: 0 }, is_tombstone: false };
                put(bucket::META, key, row.encode().as_slice().to_vec());
            }
        }
        if let Some(state) = &self.conf_state {
            put(bucket::META, CONF_STATE, json(state));
        }
        if let Some(version) = &self.storage_version {
            put(bucket::META, STORAGE_VERSION, version.clone().into_bytes());
        }
    }
}

/// etcd prints ids in hexadecimal without leading zeros.
fn member_key(id: u64) -> String {
    format!("{id:x}")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data without maps serializes")
}

/// Gathers [`Facts`] from rows in any order.
#[derive(Debug, Default)]
pub(crate) struct FactsReader(Facts);

impl FactsReader {
    pub(crate) fn finish(self) -> Facts {
        self.0
    }

    /// Takes the next row of one of [`bucket::FACTS`]. Rows with unknown names are passed over.
    pub(crate) fn row(&mut self, bucket: &'static str, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let at = Place { bucket, key };
        let facts = &mut self.0;
        match bucket {
            bucket::ALARM => facts.alarms.push(at.message(key)?),
            bucket::AUTH if key == AUTH_ENABLED => facts.auth.is_enabled = value == [1],
            bucket::AUTH if key == AUTH_REVISION => facts.auth.revision = at.number(value)?,
            bucket::AUTH_USERS => facts.auth.users.push(at.message(value)?),
            bucket::AUTH_ROLES => facts.auth.roles.push(at.message(value)?),
            bucket::MEMBERS => facts.members.push(at.member(value)?),
            bucket::MEMBERS_REMOVED => facts.removed_members.push(at.member_id()?),
            bucket::CLUSTER if key == CLUSTER_VERSION => facts.cluster_version = Some(at.text(value)?),
            bucket::CLUSTER if key == DOWNGRADE => facts.downgrade = Some(at.json(value)?),
            bucket::META => self.meta(at, value)?,
            _ => {}
        }
        Ok(())
    }

    fn meta(&mut self, at: Place<'_>, value: &[u8]) -> Result<(), RowError> {
        let facts = &mut self.0;
        match at.key {
            CONSISTENT_INDEX => facts.consistent_index = at.number(value)?,
            TERM => facts.term = at.number(value)?,
            CONF_STATE => facts.conf_state = Some(at.json(value)?),
            SCHEDULED_COMPACTION => facts.scheduled_compaction = Some(at.revision(value)?),
            FINISHED_COMPACTION => facts.finished_compaction = Some(at.revision(value)?),
            // etcd 3.6 writes it empty for a moment while it upgrades from 3.5.
            STORAGE_VERSION if !value.is_empty() => facts.storage_version = Some(at.text(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// Where a row stands, for its error.
#[derive(Clone, Copy)]
struct Place<'a> {
    bucket: &'static str,
    key: &'a [u8],
}

impl Place<'_> {
    fn wrong(self, what: impl std::fmt::Display) -> RowError {
        RowError::new(self.bucket, self.key, what)
    }

    fn message<M: Message + Default>(self, bytes: &[u8]) -> Result<M, RowError> {
        M::decode(bytes).map_err(|error| self.wrong(error))
    }

    fn json<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, RowError> {
        serde_json::from_slice(bytes).map_err(|error| self.wrong(error))
    }

    fn number(self, bytes: &[u8]) -> Result<u64, RowError> {
        let bytes = bytes.try_into().map_err(|_| self.wrong("not a number of 8 bytes"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn text(self, bytes: &[u8]) -> Result<String, RowError> {
        Ok(std::str::from_utf8(bytes).map_err(|error| self.wrong(error))?.to_owned())
    }

    fn revision(self, bytes: &[u8]) -> Result<i64, RowError> {
        Ok(RowKey::decode(bytes).map_err(|error| self.wrong(error.what))?.revision.main)
    }

    fn member_id(self) -> Result<u64, RowError> {
        let text = std::str::from_utf8(self.key).map_err(|error| self.wrong(error))?;
        u64::from_str_radix(text, 16).map_err(|error| self.wrong(error))
    }

    fn member(self, bytes: &[u8]) -> Result<Member, RowError> {
        // The key decides, as in etcd.
        Ok(Member { id: self.member_id()?, ..self.json(bytes)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Facts {
        let user = authpb::User {
            name: b"root".to_vec(),
            password: b"$2a$10$hash".to_vec(),
            roles: vec!["root".to_owned()],
            options: Some(authpb::UserAddOptions { no_password: false }),
        };
        let permission = authpb::Permission { perm_type: 2, key: b"a".to_vec(), range_end: b"b".to_vec() };
        Facts {
            auth: Auth {
                is_enabled: true,
                revision: 7,
                users: vec![user],
                roles: vec![authpb::Role { name: b"r1".to_vec(), key_permission: vec![permission] }],
            },
            alarms: vec![AlarmMember { member_id: 5, alarm: 1 }],
            members: vec![Member { id: 0x0abc, peer_urls: vec!["http://a:1".to_owned()], ..Member::default() }],
            removed_members: vec![0x17],
            cluster_version: Some("3.6.0".to_owned()),
            downgrade: Some(Downgrade::default()),
            consistent_index: 51,
            term: 2,
            conf_state: Some(ConfState { voters: vec![0x0abc], ..ConfState::default() }),
            scheduled_compaction: Some(20),
            finished_compaction: Some(19),
            storage_version: Some("3.6.0".to_owned()),
        }
    }

    fn read(rows: &FactRows) -> Result<Facts, RowError> {
        let mut reader = FactsReader::default();
        for (bucket, rows) in rows {
            for (key, value) in rows {
                reader.row(bucket, key, value)?;
            }
        }
        Ok(reader.finish())
    }

    #[test]
    fn facts_come_back_from_their_rows() {
        for facts in [sample(), Facts::default()] {
            assert_eq!(read(&facts.rows()), Ok(facts));
        }
    }

    #[test]
    fn rows_are_etcds() {
        // As etcd 3.6.16 wrote them.
        let rows = sample().rows();
        assert_eq!(rows[bucket::AUTH][AUTH_REVISION], b"\0\0\0\0\0\0\0\x07");
        assert_eq!(rows[bucket::AUTH][AUTH_ENABLED], [1]);
        assert_eq!(rows[bucket::AUTH_ROLES][b"r1".as_slice()], b"\n\x02r1\x12\x08\x08\x02\x12\x01a\x1a\x01b");
        assert_eq!(rows[bucket::AUTH_USERS][b"root".as_slice()], b"\n\x04root\x12\x0b$2a$10$hash\x1a\x04root\"\0");
        assert_eq!(rows[bucket::META][SCHEDULED_COMPACTION], b"\0\0\0\0\0\0\0\x14_\0\0\0\0\0\0\0\0");
        assert!(rows[bucket::MEMBERS].contains_key(b"abc".as_slice()));
        assert_eq!(rows[bucket::MEMBERS_REMOVED][b"17".as_slice()], b"removed");
        assert_eq!(rows.len(), 8);
    }

    #[test]
    fn broken_rows_are_named() {
        for (bucket, key, value) in [
            (bucket::META, CONSISTENT_INDEX, b"123".as_slice()),
            (bucket::META, FINISHED_COMPACTION, b"123"),
            (bucket::META, CONF_STATE, b"{"),
            (bucket::MEMBERS, b"xyz", b"{\"id\":1}"),
            (bucket::MEMBERS, b"1", b"[]"),
            (bucket::AUTH_USERS, b"root", b"\xff"),
            (bucket::CLUSTER, CLUSTER_VERSION, b"\xff"),
            (bucket::ALARM, b"\xff", b""),
        ] {
            let error = FactsReader::default().row(bucket, key, value).expect_err("a broken row");
            assert_eq!(error.bucket, bucket);
        }
    }

    #[test]
    fn unknown_rows_are_passed_over() {
        let mut reader = FactsReader::default();
        for bucket in [bucket::META, bucket::CLUSTER, bucket::AUTH] {
            reader.row(bucket, b"of a later version", b"?").expect("it is passed over");
        }
        assert_eq!(reader.finish(), Facts::default());
    }
}
