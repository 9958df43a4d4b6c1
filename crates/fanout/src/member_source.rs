//! What a member serves the tail from: its log, and for the state that a reader begins with its read plane's memory.
//!
//! Keys that were updated often lie scattered over the log, so that a million of them are as many reads of blocks; the
//! read plane holds them in order. Without one, as with `--roles=consensus`, the log serves it all.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tailwater_eventlog::{
    Cursor, Fact, Frame, History, HistoryChunk, HistoryError, HistoryPoint, KeyRange, LiveChunk, LocalSource, Position,
    Revision, Source, SourceError, StateChunk, StateQuery, TailError,
};

use crate::Fanout;

/// One reader's view of a member.
pub struct MemberSource {
    log: LocalSource,
    fanout: Option<Fanout>,
    /// Where this reader's transfer comes from, once it has begun; `None` inside: from the log.
    memory: OnceLock<Option<Arc<dyn Source>>>,
}

impl MemberSource {
    /// For one reader of the log, which reads the state out of `fanout` where there is one.
    #[must_use]
    pub fn new(log: LocalSource, fanout: Option<Fanout>) -> Self {
        Self { log, fanout, memory: OnceLock::new() }
    }

    fn memory(&self) -> Option<&Arc<dyn Source>> {
        self.memory.get()?.as_ref()
    }
}

impl Source for MemberSource {
    fn ranges(&self) -> &[KeyRange] {
        self.log.ranges()
    }

    fn is_awaited(&self, position: Position) {
        self.log.is_awaited(position);
    }

    fn transfer_begin(&self) -> Result<(Cursor, Vec<Fact>), SourceError> {
        // A read plane that is not there yet is no reason to wait.
        let in_memory = || {
            let memory = self.fanout.as_ref()?.source();
            memory.transfer_begin().is_ok().then_some(memory)
        };
        match self.memory.get_or_init(in_memory) {
            Some(memory) => memory.transfer_begin(),
            None => self.log.transfer_begin(),
        }
    }

    fn transfer_end(&self) -> Revision {
        let log = self.log.transfer_end();
        self.memory().map_or(log, |memory| memory.transfer_end().max(log))
    }

    fn transfer(
        &self,
        range: &KeyRange,
        resume_after: Option<&Bytes>,
        bytes_max: usize,
    ) -> Result<LiveChunk, SourceError> {
        match self.memory() {
            Some(memory) => memory.transfer(range, resume_after, bytes_max),
            None => self.log.transfer(range, resume_after, bytes_max),
        }
    }

    fn follow(&self, cursor: Cursor, bytes_max: usize, timeout: Duration) -> Result<Vec<Arc<Frame>>, TailError> {
        self.log.follow(cursor, bytes_max, timeout)
    }
}

impl History for MemberSource {
    fn read(
        &self,
        ranges: &[KeyRange],
        from: HistoryPoint,
        to: Revision,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, HistoryError> {
        self.log.read(ranges, from, to, with_prev, bytes_max)
    }

    fn state_at(&self, query: &StateQuery) -> Result<StateChunk, HistoryError> {
        self.log.state_at(query)
    }
}
