//! What can go wrong in the raft log.

use std::io;

/// Why the raft log can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum RaftLogError {
    /// The device refused an operation.
    #[error("{file}: {operation}: {source}")]
    Io {
        /// The file, by its name in the raft directory; empty for the directory itself.
        file: String,
        /// What was asked of the device.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// Bytes that were once synced are not what was written.
    #[error("{file}: corrupt at offset {offset}: {reason}")]
    Corrupt {
        /// The file, by its name in the raft directory.
        file: String,
        /// Offset in bytes of the record (or header) that does not check.
        offset: u64,
        /// What does not check.
        reason: String,
    },
    /// A file that must be there is not.
    #[error("{file}: missing: {reason}")]
    Missing {
        /// Where the gap is, by a file's name in the raft directory.
        file: String,
        /// How it is known.
        reason: String,
    },
    /// One entry is larger than a record can hold.
    #[error("entry {index} is too large for the raft log: {bytes} bytes")]
    TooLarge {
        /// The entry's index.
        index: u64,
        /// Its bytes.
        bytes: usize,
    },
    /// The entries asked for are below the first index.
    #[error("entries below {first_index} are trimmed")]
    Compacted {
        /// The first index held.
        first_index: u64,
    },
    /// The entries asked for are above the last index.
    #[error("no entries above {last_index}")]
    Unavailable {
        /// The last index held.
        last_index: u64,
    },
    /// An earlier write or sync failed; what the files hold is unknown until the log is opened again.
    #[error("the raft log failed before and takes no more writes")]
    Failed,
}

impl RaftLogError {
    pub(super) fn io<'a>(file: &'a str, operation: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { file: file.to_owned(), operation, source }
    }

    pub(super) fn corrupt(file: &str, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, reason: reason.into() }
    }
}

impl From<RaftLogError> for raft::Error {
    /// As raft-rs's `Storage` wants it: trimmed and missing entries by their own errors, all else opaque.
    fn from(error: RaftLogError) -> Self {
        Self::Store(match error {
            RaftLogError::Compacted { .. } => raft::StorageError::Compacted,
            RaftLogError::Unavailable { .. } => raft::StorageError::Unavailable,
            other => raft::StorageError::Other(Box::new(other)),
        })
    }
}
