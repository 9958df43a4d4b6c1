//! The write plane as a gateway reaches it, wherever the leader is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tailwater_api::write::write_request::Request;
use tailwater_api::write::write_response::Response;
use tailwater_api::write::{self as pb};
use tailwater_api::write::{Caller, command::Command};
use tailwater_consensus::{Applied, ConsensusStatus, LeaseInfo, ProposeError, Reply, Right, WritePlane};
use tailwater_eventlog::{LeaseId, MemberId, Position, StorageError};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::barriers::{Barriers, answer_all};
use super::codec::{self, Failed};
use super::leader_stream::{LeaderStream, Outcome, StreamConfig};
use super::leader_watch::LeaderWatch;
use super::permit::{Permit, Permits};
use crate::{Greeter, LinkConfig};

/// After "not me" the same member is asked again only then, unless it is known before who leads.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// How long one that led is waited for after another is known to lead: it may be cut off, and its word never come.
const FAREWELL: Duration = Duration::from_secs(1);

/// How requests reach a leader elsewhere.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Connections.
    pub link: LinkConfig,
    /// A request that has no answer after this fails. The same as the replica's: 5 s + 2 × election timeout.
    pub request_timeout: Duration,
    /// Requests that may wait. Default 65,536.
    pub requests_max: usize,
    /// The same in bytes. Default 256 MiB.
    pub request_bytes_max: usize,
    /// Requests that leave together, in bytes. Default 1 MiB.
    pub batch_bytes_max: usize,
}

impl RouterConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(request_timeout: Duration) -> Self {
        Self {
            link: LinkConfig::default(),
            request_timeout,
            requests_max: 1 << 16,
            request_bytes_max: 256 << 20,
            batch_bytes_max: 1 << 20,
        }
    }
}

/// Sends each request to the leader: the local replica while that leads, else the member that does, over one stream
/// that is kept while it leads. While no leader is known a request waits for one. Clones share it.
///
/// A command is handed to a leader at most once. What was not sent, or was refused by a member that does not lead, had
/// no effect and is routed anew; a stream that breaks fails the commands that it carried with `LeaderChanged`. Barriers
/// and lease reads may be asked twice, so they are asked anew until they time out.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    replica: Option<Arc<dyn WritePlane>>,
    greeter: Greeter,
    config: RouterConfig,
    leader: LeaderWatch,
    permits: Permits,
    streams: Mutex<HashMap<MemberId, Arc<LeaderStream>>>,
    barriers: Barriers,
    /// Whom to ask when nobody is known to lead; only without a replica.
    turn: AtomicUsize,
    handle: Handle,
}

/// Whether a request may reach a leader more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Never,
    Harmless,
}

/// What follows from an outcome.
enum Next<T> {
    Done(Result<T, ProposeError>),
    /// It had no effect, or may be asked twice; the member is not to be asked again at once.
    Again(ProposeError),
}

/// One request, in the two forms in which it is asked.
struct Question<'a, T> {
    remote: &'a (dyn Fn() -> Request + Send + Sync),
    repeat: Repeat,
    local: &'a (dyn for<'b> Fn(&'b dyn WritePlane) -> Reply<'b, T> + Send + Sync),
    /// `None`: an answer of another kind, or of a newer version.
    decode: fn(Response) -> Option<T>,
}

impl Router {
    /// Asks `replica` while that leads, and other members as `greeter` names them. Streams run on `handle`. Without a
    /// replica the members are asked in turn until one knows the leader.
    #[must_use]
    pub fn new(replica: Option<Arc<dyn WritePlane>>, greeter: Greeter, config: RouterConfig, handle: Handle) -> Self {
        let inner = Inner {
            leader: LeaderWatch::start(replica.clone(), &handle),
            permits: Permits::new(config.requests_max, config.request_bytes_max),
            replica,
            greeter,
            config,
            streams: Mutex::default(),
            barriers: Barriers::default(),
            turn: AtomicUsize::new(0),
            handle,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Who leads, as a node without a replica hears from its tail.
    pub fn set_leader(&self, leader: MemberId) {
        self.inner.leader.hint(leader);
    }

    #[cfg(test)]
    pub(super) fn batches_sent(&self) -> usize {
        self.inner.streams.lock().values().map(|stream| stream.batches_sent()).sum()
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> usize {
        self.inner.turn.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn greeter(&self) -> &Greeter {
        &self.inner.greeter
    }
}

impl WritePlane for Router {
    fn propose_as(&self, caller: Option<Caller>, command: Command) -> Reply<'_, Applied> {
        Box::pin(self.inner.propose(caller, command))
    }

    fn barrier(&self) -> Reply<'_, Position> {
        Box::pin(Inner::barrier(&self.inner))
    }

    fn lease_keep_alive(&self, id: LeaseId) -> Reply<'_, Option<i64>> {
        Box::pin(async move {
            let question = Question {
                remote: &|| Request::KeepAlive(pb::LeaseKeepAlive { id: id.0 }),
                repeat: Repeat::Harmless,
                local: &|replica| replica.lease_keep_alive(id),
                decode: |response| match response {
                    Response::KeepAlive(renewed) => Some(renewed.granted_ttl_seconds),
                    _ => None,
                },
            };
            self.inner.ask(question).await
        })
    }

    fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Reply<'_, Option<LeaseInfo>> {
        Box::pin(async move {
            let question = Question {
                remote: &|| Request::TimeToLive(pb::LeaseTimeToLive { id: id.0, keys }),
                repeat: Repeat::Harmless,
                local: &|replica| replica.lease_time_to_live(id, keys),
                decode: |response| match response {
                    Response::TimeToLive(remaining) => Some(remaining.lease.map(codec::decode_lease)),
                    _ => None,
                },
            };
            self.inner.ask(question).await
        })
    }

    fn check_lease(&self, caller: Caller, right: Right, id: Option<LeaseId>) -> Reply<'_, ()> {
        Box::pin(async move {
            let question = Question {
                remote: &|| {
                    let (id, write) = (id.map(|id| id.0), right == Right::Write);
                    Request::CheckLease(pb::CheckLease { caller: Some(caller.clone()), id, write })
                },
                repeat: Repeat::Harmless,
                local: &|replica| replica.check_lease(caller.clone(), right, id),
                decode: |response| matches!(response, Response::Checked(_)).then_some(()),
            };
            self.inner.ask(question).await
        })
    }

    fn leases(&self) -> Reply<'_, Vec<LeaseId>> {
        Box::pin(async move {
            if let Some(replica) = &self.inner.replica {
                return replica.leases().await;
            }
            let question = Question {
                remote: &|| Request::Leases(pb::ListLeases {}),
                repeat: Repeat::Harmless,
                local: &|replica| replica.leases(),
                decode: |response| match response {
                    Response::Leases(leases) => Some(leases.ids.into_iter().map(LeaseId).collect()),
                    _ => None,
                },
            };
            self.inner.ask(question).await
        })
    }

    fn move_leader(&self, to: MemberId) -> Reply<'_, ()> {
        Box::pin(async move {
            let question = Question {
                remote: &|| Request::MoveLeader(pb::MoveLeader { to: to.0 }),
                repeat: Repeat::Never,
                local: &|replica| replica.move_leader(to),
                decode: |response| matches!(response, Response::Moved(_)).then_some(()),
            };
            self.inner.ask(question).await
        })
    }

    fn status(&self) -> ConsensusStatus {
        match &self.inner.replica {
            Some(replica) => replica.status(),
            None => ConsensusStatus { leader: self.inner.leader.now(), ..Default::default() },
        }
    }
}

impl Inner {
    async fn propose(&self, caller: Option<Caller>, command: Command) -> Result<Applied, ProposeError> {
        let question = Question {
            remote: &|| {
                let (caller, command) = (caller.clone(), Some(command.clone()));
                Request::Propose(pb::Command { caller, command, ..Default::default() })
            },
            repeat: Repeat::Never,
            local: &|replica| replica.propose_as(caller.clone(), command.clone()),
            decode: |response| match response {
                Response::Applied(applied) => codec::decode_applied(applied),
                _ => None,
            },
        };
        self.ask(question).await
    }

    async fn barrier(self: &Arc<Self>) -> Result<Position, ProposeError> {
        if let Some(replica) = &self.replica
            && self.leader.now() == self.greeter.member_id()
        {
            // The replica lets barriers share by the same rule.
            match replica.barrier().await {
                Err(ProposeError::NoLeader | ProposeError::LeaderChanged) => {}
                answered => return answered,
            }
        }
        let (answer, must_ask) = self.barriers.join()?;
        if must_ask {
            self.handle.spawn(ask_barriers(self.clone()));
        }
        match tokio::time::timeout(self.config.request_timeout, answer).await {
            Ok(answer) => answer.unwrap_or(Err(ProposeError::Stopped)),
            Err(_) if self.leader.now() == MemberId(0) => Err(ProposeError::NoLeader),
            Err(_) => Err(ProposeError::Timeout),
        }
    }

    /// Asks whoever leads, until there is an answer or no time left.
    async fn ask<T>(&self, question: Question<'_, T>) -> Result<T, ProposeError> {
        let deadline = Instant::now() + self.config.request_timeout;
        let mut permit = None;
        loop {
            let known = self.leader.now();
            let leader = self.choose(known);
            let next = if leader == MemberId(0) {
                Next::Again(ProposeError::NoLeader)
            } else if let Some(replica) = self.replica.as_ref().filter(|_| leader == self.greeter.member_id()) {
                self.ask_replica(&question, &**replica).await
            } else {
                let request = (question.remote)();
                let permit = match &permit {
                    Some(permit) => permit,
                    None => permit.insert(self.permit(&request)?),
                };
                self.ask_member(&question, (leader, known), (request, permit.clone()), deadline).await
            };
            let error = match next {
                Next::Done(answered) => return answered,
                Next::Again(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            self.pause(known, deadline).await;
        }
    }

    fn permit(&self, request: &Request) -> Result<Permit, ProposeError> {
        self.permits.take(request.encoded_len()).ok_or(ProposeError::TooManyRequests)
    }

    /// Until something else is known of the leader than before, or a while has passed.
    async fn pause(&self, known: MemberId, deadline: Instant) {
        let end = deadline.min(match known {
            MemberId(0) if self.replica.is_some() => deadline,
            _ => Instant::now() + REFUSED_PAUSE,
        });
        drop(timeout_at(end, self.leader.changed_from(known)).await);
    }

    /// Whom to ask, by what is known. 0: nobody, until a leader is known.
    fn choose(&self, leader: MemberId) -> MemberId {
        if leader != MemberId(0) || self.replica.is_some() {
            return leader;
        }
        let members = self.greeter.directory().members();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        members.get(turn % members.len().max(1)).map_or(MemberId(0), |member| member.id)
    }

    async fn ask_replica<T>(&self, question: &Question<'_, T>, replica: &dyn WritePlane) -> Next<T> {
        match (question.local)(replica).await {
            Err(ProposeError::NoLeader) => Next::Again(ProposeError::NoLeader),
            Err(ProposeError::LeaderChanged) if question.repeat == Repeat::Harmless => {
                Next::Again(ProposeError::LeaderChanged)
            }
            answered => Next::Done(answered),
        }
    }

    async fn ask_member<T>(
        &self,
        question: &Question<'_, T>,
        (leader, known): (MemberId, MemberId),
        (request, permit): (Request, Permit),
        deadline: Instant,
    ) -> Next<T> {
        let stream = self.stream(leader);
        let (id, mut outcome) = stream.ask(request, permit);
        let mut is_sent = false;
        let mut end = deadline;
        loop {
            tokio::select! {
                outcome = &mut outcome => return self.judge(question, leader, outcome.unwrap_or(Outcome::Broken)),
                () = self.leader.is_elsewhere(leader, known), if !is_sent => {
                    if stream.withdraw(id) || question.repeat == Repeat::Harmless {
                        return Next::Again(ProposeError::LeaderChanged);
                    }
                    // Who led may still say what became of it.
                    is_sent = true;
                }
                () = self.leader.succeeded(leader), if is_sent && end == deadline => {
                    end = Instant::now() + FAREWELL;
                }
                () = sleep_until(end.min(deadline)) => break,
            }
        }
        let is_unsent = stream.withdraw(id);
        Next::Done(Err(match end != deadline {
            true => ProposeError::LeaderChanged,
            false if is_unsent && self.leader.now() == MemberId(0) => ProposeError::NoLeader,
            false => ProposeError::Timeout,
        }))
    }

    fn judge<T>(&self, question: &Question<'_, T>, leader: MemberId, outcome: Outcome) -> Next<T> {
        let failure = match outcome {
            Outcome::Unsent => {
                self.leader.lost(leader);
                return Next::Again(ProposeError::NoLeader);
            }
            Outcome::Broken => {
                self.leader.lost(leader);
                return self.unknown(question, ProposeError::LeaderChanged);
            }
            Outcome::Answered(Response::Failure(failure)) => codec::decode_failure(failure),
            Outcome::Answered(response) => {
                self.leader.hint(leader);
                let answer = (question.decode)(response);
                return Next::Done(answer.ok_or(ProposeError::LeaderChanged));
            }
        };
        match failure {
            Failed::NotLeader(other) => {
                self.leader.hint(other);
                Next::Again(ProposeError::NoLeader)
            }
            Failed::UnknownRequest => {
                let text = "the leader is of an older version and does not know this request";
                Next::Done(Err(StorageError::Inconsistent(text.into()).into()))
            }
            Failed::Error(ProposeError::NoLeader) => Next::Again(ProposeError::NoLeader),
            // It is the leader that stops, not this node.
            Failed::Error(ProposeError::LeaderChanged | ProposeError::Stopped) => {
                self.unknown(question, ProposeError::LeaderChanged)
            }
            Failed::Error(error) => Next::Done(Err(error)),
        }
    }

    /// The request may have been carried out.
    fn unknown<T>(&self, question: &Question<'_, T>, error: ProposeError) -> Next<T> {
        match question.repeat {
            Repeat::Never => Next::Done(Err(error)),
            Repeat::Harmless => Next::Again(error),
        }
    }

    /// The stream to a leader; those to earlier ones end once they are idle.
    fn stream(&self, leader: MemberId) -> Arc<LeaderStream> {
        let mut streams = self.streams.lock();
        if streams.len() > 1 {
            streams.retain(|member, stream| *member == leader || !stream.is_idle());
        }
        let start = || {
            let config = StreamConfig {
                greeter: self.greeter.clone(),
                link: self.config.link.clone(),
                batch_bytes_max: self.config.batch_bytes_max,
            };
            Arc::new(LeaderStream::start(leader, config, &self.handle))
        };
        streams.entry(leader).or_insert_with(start).clone()
    }
}

/// Asks for those who gather, again and again, until nobody waits.
async fn ask_barriers(inner: Arc<Inner>) {
    while let Some(waiters) = inner.barriers.next() {
        let question = Question {
            remote: &|| Request::Barrier(pb::Barrier {}),
            repeat: Repeat::Harmless,
            local: &|replica| replica.barrier(),
            decode: |response| match response {
                Response::Barrier(passed) => Some(Position(passed.position)),
                _ => None,
            },
        };
        answer_all(waiters, inner.ask(question).await);
    }
}
