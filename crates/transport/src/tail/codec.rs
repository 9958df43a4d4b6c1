//! Between the types of the event log and the messages of `tail.proto`.

use bytes::Bytes;
use tailwater_api::tail as wire;
use tailwater_eventlog::{
    Alarm, AlarmKind, AuthFacts, CopyPoint, Cursor, Event, Fact, HistoryId, KeyRange, LogState, Member, MemberId,
    Position, Revision, RowError, Term,
};

/// Of the messages in `tail.proto`.
pub(super) const PROTOCOL_VERSION: u32 = 1;
/// Larger messages are refused; a row comes whole, so it is far above the largest request.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A message that no source of this version sends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that is not known here.
    #[error("{0}: unknown value {1}")]
    Unknown(&'static str, u64),
    /// A row is damaged.
    #[error("row {at} of the message: {source}")]
    Row {
        /// Its place in the message.
        at: usize,
        /// What is wrong with it.
        source: RowError,
    },
    /// A frame is not as it was sent.
    #[error("checksum mismatch of a frame: sent {sent:08x}, computed {computed:08x}")]
    Checksum {
        /// As found.
        sent: u32,
        /// Of what came.
        computed: u32,
    },
    /// What came does not follow what came before.
    #[error("out of order: {0}")]
    Order(String),
}

pub(super) fn cursor_out(cursor: Cursor) -> wire::Cursor {
    wire::Cursor { history_id: cursor.history.0, revision: cursor.revision.0, position: cursor.position.0 }
}

pub(super) fn cursor_in(cursor: &wire::Cursor) -> Cursor {
    Cursor {
        history: HistoryId(cursor.history_id),
        revision: Revision(cursor.revision),
        position: Position(cursor.position),
    }
}

pub(super) fn range_out(range: &KeyRange) -> wire::KeyRange {
    let (start, end) = match range {
        KeyRange::Key(key) => (key.clone(), Bytes::new()),
        // These two ends would stand for something else; before them there is no key but the empty one.
        KeyRange::Span(start, end) if end.as_ref() == [0] && start.is_empty() => (Bytes::new(), Bytes::new()),
        KeyRange::Span(_, end) if end.is_empty() || end.as_ref() == [0] => {
            (Bytes::from_static(&[1]), Bytes::from_static(&[1]))
        }
        KeyRange::Span(start, end) => (start.clone(), end.clone()),
        KeyRange::From(start) => (start.clone(), Bytes::from_static(&[0])),
    };
    wire::KeyRange { start, end }
}

pub(super) fn range_in(range: wire::KeyRange) -> KeyRange {
    KeyRange::from_etcd(range.start, range.end)
}

/// A row lies in the buffer of its message, with a thousand others; an event may live long.
pub(super) fn event_in(at: usize, row: Bytes) -> Result<Event, CodecError> {
    Event::from_row(row).map(Event::detached).map_err(|source| CodecError::Row { at, source })
}

/// Of a frame; rows have checksums of their own, which stand at their ends.
pub(super) fn frame_checksum(frame: &wire::Frame) -> u32 {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut checksum = crc32c::crc32c(&frame.position.to_le_bytes());
    checksum = crc32c::crc32c_append(checksum, &frame.revision.to_le_bytes());
    checksum = crc32c::crc32c_append(checksum, &[u8::from(frame.continued)]);
    checksum = crc32c::crc32c_append(checksum, &count(frame.rows.len()));
    checksum = crc32c::crc32c_append(checksum, &count(frame.facts.len()));
    frame
        .rows
        .iter()
        .fold(checksum, |checksum, row| crc32c::crc32c_append(checksum, &row[row.len().saturating_sub(4)..]))
}

/// With its checksum.
pub(super) fn sealed(mut frame: wire::Frame) -> wire::Frame {
    frame.checksum = frame_checksum(&frame);
    frame
}

pub(super) fn fact_out(fact: &Fact) -> wire::Fact {
    use wire::fact::Fact as Wire;
    let fact = match fact {
        Fact::Compacted(revision) => Wire::CompactedRevision(revision.0),
        Fact::Auth(auth) => Wire::Auth(wire::AuthState {
            enabled: auth.enabled,
            revision: auth.revision,
            users: auth.users.clone(),
            roles: auth.roles.clone(),
            token_secret: auth.token_secret.clone(),
        }),
        Fact::Alarms(alarms) => Wire::Alarms(wire::Alarms { alarms: alarms.iter().map(alarm_out).collect() }),
        Fact::Members(members) => Wire::Members(wire::Members { members: members.iter().map(member_out).collect() }),
        Fact::Leader(leader, term) => {
            Wire::Leader(wire::Leader { member_id: leader.map_or(0, |leader| leader.0), term: term.0 })
        }
        Fact::ClusterVersion(version) => Wire::ClusterVersion(version.clone()),
        Fact::Downgrade(target) => Wire::DowngradeTarget(target.clone()),
    };
    wire::Fact { fact: Some(fact) }
}

pub(super) fn fact_in(fact: wire::Fact) -> Result<Fact, CodecError> {
    use wire::fact::Fact as Wire;
    Ok(match fact.fact.ok_or(CodecError::Missing("fact"))? {
        Wire::CompactedRevision(revision) => Fact::Compacted(Revision(revision)),
        Wire::Auth(auth) => Fact::Auth(AuthFacts {
            enabled: auth.enabled,
            revision: auth.revision,
            users: auth.users,
            roles: auth.roles,
            token_secret: auth.token_secret,
        }),
        Wire::Alarms(alarms) => Fact::Alarms(alarms.alarms.iter().map(alarm_in).collect::<Result<_, _>>()?),
        Wire::Members(members) => Fact::Members(members.members.into_iter().map(member_in).collect()),
        Wire::Leader(leader) => {
            Fact::Leader((leader.member_id != 0).then_some(MemberId(leader.member_id)), Term(leader.term))
        }
        Wire::ClusterVersion(version) => Fact::ClusterVersion(version),
        Wire::DowngradeTarget(target) => Fact::Downgrade(target),
    })
}

fn alarm_out(alarm: &Alarm) -> wire::Alarm {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    };
    wire::Alarm { member_id: alarm.member.0, kind }
}

fn alarm_in(alarm: &wire::Alarm) -> Result<Alarm, CodecError> {
    let kind = match alarm.kind {
        1 => AlarmKind::NoSpace,
        2 => AlarmKind::Corrupt,
        other => return Err(CodecError::Unknown("alarm", other.into())),
    };
    Ok(Alarm { member: MemberId(alarm.member_id), kind })
}

pub(super) fn member_out(member: &Member) -> wire::Member {
    wire::Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

pub(super) fn member_in(member: wire::Member) -> Member {
    let wire::Member { id, name, peer_urls, client_urls, is_learner } = member;
    Member { id: MemberId(id), name, peer_urls, client_urls, is_learner }
}

pub(super) fn point_out(point: CopyPoint) -> wire::CopyPoint {
    wire::CopyPoint {
        history_id: point.history.0,
        fold_point: point.fold_point.0,
        compacted_revision: point.compacted.0,
    }
}

pub(super) fn point_in(point: &wire::CopyPoint) -> CopyPoint {
    CopyPoint {
        history: HistoryId(point.history_id),
        fold_point: Revision(point.fold_point),
        compacted: Revision(point.compacted_revision),
    }
}

pub(super) fn numbers_out(state: &LogState) -> wire::CopyNumbers {
    wire::CopyNumbers {
        revision: state.revision.0,
        compacted_revision: state.compacted.0,
        fold_point: state.fold_point.0,
        position: state.applied.0,
        term: state.applied_term.0,
    }
}

pub(super) fn numbers_in(history: HistoryId, numbers: &wire::CopyNumbers) -> LogState {
    LogState {
        history,
        revision: Revision(numbers.revision),
        compacted: Revision(numbers.compacted_revision),
        fold_point: Revision(numbers.fold_point),
        applied: Position(numbers.position),
        applied_term: Term(numbers.term),
    }
}
