//! Alarms, and what they forbid.

use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::alarm_request::AlarmAction;
use tailwater_api::write::command::Command;
use tailwater_eventlog::{Alarm, AlarmKind, Fact, MemberId};

use super::{Machine, encode, header, quota};
use crate::{Answer, ApplyError};

impl Machine {
    /// NOSPACE, wherever raised, forbids what needs space; CORRUPT forbids every change of data.
    pub(super) fn refuse_for_alarms(&self, command: &Command) -> Result<(), ApplyError> {
        if self.alarms.is_empty() {
            return Ok(());
        }
        let changes_data = matches!(
            command,
            Command::Put(_)
                | Command::DeleteRange(_)
                | Command::Txn(_)
                | Command::Compact(_)
                | Command::LeaseGrant(_)
                | Command::LeaseRevoke(_)
                | Command::LeaseExpire(_)
        );
        if changes_data && self.raised(AlarmKind::Corrupt) {
            return Err(ApplyError::Corrupt);
        }
        if quota::cost(command) > 0 && self.raised(AlarmKind::NoSpace) {
            return Err(ApplyError::NoSpace);
        }
        Ok(())
    }

    fn raised(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    pub(super) fn alarm(&mut self, request: &pb::AlarmRequest) -> Answer {
        let wanted = kind(request.alarm);
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let any = request.alarm == pb::AlarmType::None as i32;
                self.alarms.iter().filter(|alarm| any || Some(alarm.kind) == wanted).copied().collect()
            }
            Ok(AlarmAction::Activate) => wanted.map_or_else(Vec::new, |kind| self.activate(request.member_id, kind)),
            Ok(AlarmAction::Deactivate) => {
                wanted.map_or_else(Vec::new, |kind| self.deactivate(request.member_id, kind))
            }
            Err(_) => Vec::new(),
        };
        let alarms = alarms.into_iter().map(alarm_member).collect();
        Answer::Alarm(pb::AlarmResponse { header: header(self.state.revision), alarms })
    }

    /// One that is raised already is answered as well, and changes nothing.
    fn activate(&mut self, member: u64, kind: AlarmKind) -> Vec<Alarm> {
        let alarm = Alarm { member: MemberId(member), kind };
        if self.alarms.insert(alarm) {
            self.store(encode::alarm_key(alarm), Some(vec![encode::FORMAT]));
            self.alarms_changed();
        }
        vec![alarm]
    }

    fn deactivate(&mut self, member: u64, kind: AlarmKind) -> Vec<Alarm> {
        let alarm = Alarm { member: MemberId(member), kind };
        if !self.alarms.remove(&alarm) {
            return Vec::new();
        }
        self.store(encode::alarm_key(alarm), None);
        self.alarms_changed();
        vec![alarm]
    }

    fn alarms_changed(&mut self) {
        self.output.facts.push(Fact::Alarms(self.alarms.iter().copied().collect()));
    }
}

fn kind(alarm: i32) -> Option<AlarmKind> {
    match pb::AlarmType::try_from(alarm) {
        Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
        Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
        Ok(pb::AlarmType::None) | Err(_) => None,
    }
}

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member.0, alarm: kind as i32 }
}
