//! What can go wrong.

use std::time::Duration;

use tailwater_tls::TlsError;
use tonic::{Code, Status};

use crate::core::BadList;

/// Why a call, or a wait, ended without what was asked for. An informer never ends by one: it tries again, and shows the
/// newest in its status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No endpoints were given.
    #[error("no endpoints")]
    NoEndpoints,
    /// An endpoint is not a URL.
    #[error("the endpoint {url} can't be used: {reason}")]
    Endpoint {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS files can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server's answer, or what the connection ended with.
    #[error("{endpoint}: {}: {}", status.code(), status.message())]
    Call {
        /// Who was asked.
        endpoint: String,
        /// The answer.
        status: Box<Status>,
    },
    /// A server did not answer in time. Whether it has done a write is not known.
    #[error("{endpoint}: no answer within {waited:?}")]
    Timeout {
        /// Who was asked.
        endpoint: String,
        /// For how long.
        waited: Duration,
    },
    /// A server's list can't be right.
    #[error("{endpoint}: {reason}")]
    BadList {
        /// Who was asked.
        endpoint: String,
        /// What is wrong.
        reason: BadList,
    },
    /// A server ended a watch in the stream, without breaking the stream.
    #[error("{endpoint}: the watch was ended: {reason}")]
    WatchEnded {
        /// Who was asked.
        endpoint: String,
        /// The server's words; may be empty.
        reason: String,
    },
    /// The cache did not reach a revision in time.
    #[error("the cache is at revision {revision}, {wanted} is wanted{}", if *is_held_back { "; a subscriber does not take its changes" } else { "" })]
    Behind {
        /// Which revision was waited for.
        wanted: i64,
        /// Which one the cache is at.
        revision: i64,
        /// Whether the informer waits for a subscriber, which may be the one that waits here.
        is_held_back: bool,
    },
    /// The servers' revision is behind the cache's: a backup was restored. A new list is being taken; ask again.
    #[error("the servers are at revision {revision}, the cache was at {cached}: history was lost")]
    HistoryLost {
        /// That of the cache.
        cached: i64,
        /// That of the servers.
        revision: i64,
    },
    /// The informer's task is gone: its decoder panicked, or the runtime has shut down.
    #[error("the informer has stopped")]
    Stopped,
}

/// What etcd says of tokens that it no longer knows (expired, of before a restart or of before users changed), and of
/// none where one is needed since auth was enabled.
const STALE_TOKENS: [&str; 3] =
    ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old", "etcdserver: user name is empty"];

impl Error {
    pub(crate) fn call(endpoint: &str, status: Status) -> Self {
        Self::Call { endpoint: endpoint.to_owned(), status: Box::new(status) }
    }

    /// The answer's code, where there was one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether another endpoint may answer.
    pub(crate) fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            // Cancelled, Unknown and Internal: what broken connections end calls with.
            Self::Call { status, .. } => matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
            ),
            _ => false,
        }
    }

    /// Whether no server has seen the call: there was no connection.
    pub(crate) fn is_never_sent(&self) -> bool {
        let Self::Call { status, .. } = self else { return false };
        let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status.as_ref());
        while let Some(error) = source {
            if error.is::<tonic::ConnectError>() {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// Whether a new token helps.
    pub(crate) fn is_stale_token(&self) -> bool {
        match self {
            Self::Call { status, .. } => STALE_TOKENS.contains(&status.message()),
            // Here a text around it tells the code.
            Self::WatchEnded { reason, .. } => STALE_TOKENS.iter().any(|text| reason.contains(text)),
            _ => false,
        }
    }

    /// Whether the revision that was read at is gone.
    pub(crate) fn is_compacted(&self) -> bool {
        matches!(self, Self::Call { status, .. } if status.message() == "etcdserver: mvcc: required revision has been compacted")
    }
}
