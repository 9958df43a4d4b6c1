//! What is served of the Maintenance and Health services.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use prost::Message;
use tailwater_api::etcdserverpb as pb;
use tailwater_api::health::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tailwater_api::write::command::Command;
use tailwater_consensus::Answer;
use tailwater_eventlog::{Alarm, AlarmKind};
use tokio_stream::wrappers::WatchStream;

use crate::Gateway;
use crate::auth::Credentials;
use crate::body::{Chunks, framed};
use crate::kv::mismatched;
use crate::status::{Code, Fault};

impl Gateway {
    /// `Maintenance.Status`: answered without a leader too.
    pub(crate) async fn status(&self) -> Result<pb::StatusResponse, Fault> {
        self.settle(true).await?;
        let status = self.write_plane().status();
        let snapshot = self.fanout().snapshot();
        let mut errors = Vec::new();
        if status.leader.0 == 0 {
            errors.push(Fault::NoLeader.status().1.to_owned());
        }
        errors.extend(snapshot.alarms.iter().map(|alarm| {
            // The trailing blank is how etcd prints the message, and that it leaves out an id that is 0.
            let member = if alarm.member.0 == 0 { String::new() } else { format!("memberID:{} ", alarm.member) };
            format!("{member}alarm:{} ", alarm_type(alarm.kind).as_str_name())
        }));
        Ok(pb::StatusResponse {
            header: Some(self.header(snapshot.cursor.revision)),
            version: self.config().reported_version.clone(),
            db_size: to_i64(status.disk_bytes),
            leader: status.leader.0,
            // The two are read one after the other, and what is applied was committed.
            raft_index: status.committed.max(status.applied.0),
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: to_i64(status.disk_bytes_in_use),
            is_learner: status.is_learner,
            storage_version: self.config().storage_version(),
            db_size_quota: to_i64(self.config().quota_bytes),
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: !snapshot.downgrade.is_empty(),
                target_version: snapshot.downgrade.clone(),
            }),
        })
    }

    /// `Maintenance.Alarm`. Listing reads, the other actions are proposed.
    pub(crate) async fn alarm(
        &self,
        credentials: &Credentials,
        request: pb::AlarmRequest,
    ) -> Result<pb::AlarmResponse, Fault> {
        if request.action != pb::alarm_request::AlarmAction::Get as i32 {
            return match self.propose(credentials, request.encoded_len(), Command::Alarm(request)).await? {
                Answer::Alarm(mut response) => {
                    response.header = self.complete(response.header);
                    Ok(response)
                }
                other => mismatched("alarm", &other),
            };
        }
        self.settle(false).await?;
        let snapshot = self.fanout().snapshot();
        let asked = |alarm: &&Alarm| request.alarm == 0 || request.alarm == alarm_type(alarm.kind) as i32;
        let alarms = snapshot
            .alarms
            .iter()
            .filter(asked)
            .map(|alarm| pb::AlarmMember { member_id: alarm.member.0, alarm: alarm_type(alarm.kind) as i32 });
        Ok(pb::AlarmResponse { header: Some(self.header(snapshot.cursor.revision)), alarms: alarms.collect() })
    }

    /// `grpc.health.v1.Health/Check`; only the whole server has a state.
    pub(crate) fn health_check(&self, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Fault> {
        if !request.service.is_empty() {
            return Err(Fault::Other(Code::NotFound, "unknown service".into()));
        }
        Ok(serving_status(*self.serving().borrow()))
    }
}

fn alarm_type(kind: AlarmKind) -> pb::AlarmType {
    match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    }
}

fn to_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn serving_status(is_serving: bool) -> HealthCheckResponse {
    let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status as i32 }
}

/// `grpc.health.v1.Health/Watch`: the state now, and again when it changes.
pub(crate) struct HealthWatch {
    states: WatchStream<bool>,
    is_known: bool,
    is_sent: bool,
}

impl HealthWatch {
    pub(crate) fn open(gateway: &Gateway, request: &HealthCheckRequest) -> Self {
        let is_known = request.service.is_empty();
        Self { states: WatchStream::new(gateway.serving()), is_known, is_sent: false }
    }
}

impl Chunks for HealthWatch {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.is_known {
            // Unknown is an answer here, not an error; it never changes.
            if self.is_sent {
                return Poll::Pending;
            }
            self.is_sent = true;
            let response = HealthCheckResponse { status: ServingStatus::ServiceUnknown as i32 };
            return Poll::Ready(Some(framed(&response)));
        }
        let state = ready!(Pin::new(&mut self.states).poll_next(cx));
        Poll::Ready(state.map(|is_serving| framed(&serving_status(is_serving))))
    }

    fn status(&self) -> (i32, String) {
        (Code::Unavailable as i32, Fault::Stopped.status().1.to_owned())
    }
}
