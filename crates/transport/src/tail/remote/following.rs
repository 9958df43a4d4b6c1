//! The stream of frames of a remote source. Every wait may be given up and taken up again by the next call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwater_api::tail as wire;
use tailwater_api::tail::resync::Reason;
use tailwater_eventlog::{Cursor, Fact, Frame, Position, TailError, Term};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::Shared;
use crate::tail::codec::{PROTOCOL_VERSION, cursor_out, range_out};
use crate::tail::description::NodeDescription;
use crate::tail::pieces::Assembly;
use crate::tail::server::CoreWord;
use crate::tail::uplink::Connected;

/// The state between two calls.
#[derive(Default)]
pub(super) struct Following {
    stage: Stage,
    /// The newest term that any source told.
    term: Term,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Opening(Box<Opening>),
    Open(Box<Open>),
}

struct Opening {
    source: Connected,
    cursor: Cursor,
    stream: JoinHandle<Result<Streaming<wire::FollowResponse>, Status>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

struct Open {
    source: Connected,
    stream: Streaming<wire::FollowResponse>,
    assembly: Assembly,
    heard: Instant,
    /// When the reader asked last.
    asked: Instant,
    /// Since when the source has known no leader.
    leaderless: Option<Instant>,
    /// Heartbeats since the last frame: with the second the source has nothing more.
    quiet: u32,
}

/// What a message means for the reader.
enum Told {
    Frames(Vec<Arc<Frame>>),
    /// The reader can't go on there.
    Resync(Reason),
    /// This source is no good.
    Leave(String),
}

impl Following {
    /// Leaves a source that has given out everything that it has, when that is not up to `position`.
    pub(super) fn leave_if_behind(&mut self, shared: &Shared, position: Position) {
        if let Stage::Open(open) = &self.stage
            && open.quiet >= 2
            && open.assembly.cursor().position < position
        {
            shared.uplink.leave(&open.source, "it is behind what reads wait for");
            self.stage = Stage::Idle;
        }
    }

    /// Frames behind `cursor`, when there are some.
    pub(super) async fn frames(&mut self, shared: &Shared, cursor: Cursor) -> Result<Vec<Arc<Frame>>, TailError> {
        loop {
            match &mut self.stage {
                // A better source was found meanwhile.
                Stage::Open(open) if !shared.uplink.is_current(&open.source) => self.stage = Stage::Idle,
                Stage::Open(open) if open.assembly.cursor() == cursor => {
                    let told = open.next(shared).await;
                    self.term = self.term.max(open.assembly.term());
                    match told {
                        Told::Frames(frames) if frames.is_empty() => {}
                        Told::Frames(frames) => return Ok(frames),
                        Told::Resync(reason) => {
                            self.stage = Stage::Idle;
                            return Err(match reason {
                                Reason::OtherHistory => TailError::OtherHistory,
                                Reason::Compacted | Reason::Unknown => TailError::Behind(cursor),
                            });
                        }
                        Told::Leave(reason) => {
                            shared.uplink.leave(&open.source, &reason);
                            self.stage = Stage::Idle;
                        }
                    }
                }
                Stage::Opening(opening) if opening.cursor == cursor => {
                    let opened = (&mut opening.stream).await;
                    let source = opening.source.clone();
                    self.stage = match opened {
                        Ok(Ok(stream)) => Stage::Open(Box::new(Open {
                            source,
                            stream,
                            assembly: Assembly::new(cursor, shared.config.ranges.is_empty(), self.term),
                            heard: Instant::now(),
                            asked: Instant::now(),
                            leaderless: None,
                            quiet: 0,
                        })),
                        Ok(Err(status)) => {
                            shared.uplink.leave(&source, status.message());
                            Stage::Idle
                        }
                        // It was not aborted here, so the runtime is ending.
                        Err(_) => Stage::Idle,
                    };
                }
                // Also when the reader has gone elsewhere.
                _ => {
                    let source = shared.uplink.connected().await;
                    self.stage = Stage::Opening(Box::new(open(shared, source, cursor)));
                }
            }
        }
    }
}

/// Opens a stream in a task of its own: on a long way it takes longer than one call waits.
fn open(shared: &Shared, source: Connected, cursor: Cursor) -> Opening {
    let announced = NodeDescription {
        id: shared.config.reader_id,
        ranges: shared.config.ranges.clone(),
        cluster_id: shared.config.cluster_id,
        ..shared.config.announced.clone()
    };
    let request = wire::FollowRequest {
        protocol_version: PROTOCOL_VERSION,
        reader_id: shared.config.reader_id.0,
        cursor: Some(cursor_out(cursor)),
        ranges: shared.config.ranges.iter().map(range_out).collect(),
        cluster_id: shared.config.cluster_id,
        reader: Some(announced.to_wire()),
    };
    let (mut client, silence_max) = (source.client.clone(), shared.config.silence_max);
    let stream = shared.runtime.handle().spawn(async move {
        match tokio::time::timeout(silence_max, client.follow(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the source does not answer")),
        }
    });
    Opening { source, cursor, stream }
}

impl Open {
    /// The next message. Cancel safe.
    async fn next(&mut self, shared: &Shared) -> Told {
        // While the reader was busy elsewhere, nobody listened.
        if self.asked.elapsed() > shared.config.silence_max / 2 {
            self.heard = Instant::now();
        }
        self.asked = Instant::now();
        let silent_at = tokio::time::Instant::from_std(self.heard + shared.config.silence_max);
        let message = match tokio::time::timeout_at(silent_at, self.stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Told::Leave("the stream has ended".into()),
            Ok(Err(status)) => return Told::Leave(status.message().to_owned()),
            Err(_) => return Told::Leave("the source is silent".into()),
        };
        self.heard = Instant::now();
        self.quiet = if message.frames.is_empty() { self.quiet.saturating_add(1) } else { 0 };
        if let Some(resync) = message.resync {
            return Told::Resync(resync.reason());
        }
        if let Some(reason) = message.heartbeat.and_then(|heartbeat| self.judge(shared, heartbeat)) {
            return Told::Leave(reason);
        }
        match self.assembly.add(message.frames) {
            Ok(frames) => {
                self.note_leader(&frames);
                Told::Frames(frames)
            }
            Err(error) => {
                tracing::error!(source = self.source.url, %error, "a source sends what it must not");
                Told::Leave(error.to_string())
            }
        }
    }

    fn note_leader(&mut self, frames: &[Arc<Frame>]) {
        for fact in frames.iter().flat_map(|frame| &frame.facts) {
            match fact {
                Fact::Leader(None, _) => self.leaderless = self.leaderless.or(Some(Instant::now())),
                Fact::Leader(Some(_), _) => self.leaderless = None,
                _ => {}
            }
        }
    }

    /// Why this source should be left, if it should.
    fn judge(&self, shared: &Shared, heartbeat: wire::Heartbeat) -> Option<String> {
        let word = CoreWord { path: heartbeat.path, age: Duration::from_millis(heartbeat.core_age_ms) };
        if word.path.contains(&shared.config.reader_id.0) {
            return Some("its path to the core leads through this node".into());
        }
        let age_max = shared.config.core_age_max;
        let is_old = word.age > age_max;
        *shared.word.lock() = Some((word, Instant::now()));
        if shared.uplink.has_others() {
            let is_leaderless = self.leaderless.is_some_and(|since| since.elapsed() > age_max);
            let reason = match (is_old, is_leaderless) {
                (true, _) => Some("it has not heard of the core for long"),
                (false, true) => Some("it has known no leader for long"),
                (false, false) => None,
            };
            // Without a better one to go to, an old word is better than none.
            shared.uplink.seek(&self.source, reason);
        }
        None
    }
}
