#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailwater_eventlog::{
    Cursor, Envelope, Event, EventKind, EventLog, EventLogConfig, Fact, Frame, HistoryId, KeyIndex, LeaseId,
    LocalSource, Position, Revision, Tail, TailConfig, WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

use super::*;

mod copying;
mod following;
mod pieces;

const HISTORY: HistoryId = HistoryId(77);

fn config(path: &Path) -> EventLogConfig {
    EventLogConfig { path: path.join("state"), memtable_bytes: 256 << 10, block_cache_bytes: 1 << 20 }
}

/// An apply thread in small.
struct Writer {
    log: EventLog,
    index: KeyIndex,
    tail: Tail,
    _dir: tempfile::TempDir,
}

impl Writer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, index) = EventLog::open(&config(dir.path())).unwrap();
        let begin = Cursor { history: HISTORY, revision: Revision(1), position: Position(0) };
        let tail = Tail::new(TailConfig { hot_bytes_max: 1 << 20 }, begin, vec![]);
        Self { log, index, tail, _dir: dir }
    }

    /// Writes one record; a `None` deletes a key that must be there.
    fn write(&mut self, changes: &[(&str, Option<&[u8]>)]) {
        let mut state = self.log.state();
        state.history = HISTORY;
        state.applied.0 += 1;
        if !changes.is_empty() {
            state.revision = state.revision.next();
        }
        let mut events = Vec::new();
        for (sub, (key, value)) in (0..).zip(changes) {
            let event = Arc::new(self.event(state.revision, sub, key.as_bytes(), *value));
            self.index.insert(&event);
            events.push(event);
        }
        let own = (b"revision".to_vec(), Some(state.revision.to_string().into_bytes()));
        self.log.write(&WriteBatch { events: events.clone(), state: vec![own], log_state: state }).unwrap();
        let frame = Frame { position: state.applied, revision: state.revision, events, ..Frame::default() };
        self.tail.publish(vec![Arc::new(frame)]);
    }

    fn event(&self, revision: Revision, sub: u32, key: &[u8], value: Option<&[u8]>) -> Event {
        let before = self.index.get(key, Revision(revision.0 - 1));
        let prev = before.as_ref().map(|meta| (meta.mod_revision, meta.sub));
        let Some(value) = value else { return Event::delete(revision, sub, key, prev) };
        let envelope = Envelope {
            kind: EventKind::Put,
            revision,
            sub,
            create_revision: before.as_ref().map_or(revision, |meta| meta.create_revision),
            version: before.map_or(1, |meta| meta.version + 1),
            lease: LeaseId(0),
            prev,
        };
        Event::put(envelope, key, value)
    }

    /// `count` records over 40 keys.
    fn fill(&mut self, count: usize, value_bytes: usize) {
        for _ in 0..count {
            let number = self.log.state().revision.0;
            let key = format!("key/{:02}", number * 17 % 40);
            let is_live = self.index.latest(key.as_bytes()).is_some();
            let value = vec![b'v'; value_bytes];
            self.write(&[(&key, Some(&value[..]).filter(|_| !is_live || number % 7 != 0))]);
        }
    }

    fn compact(&mut self, revision: i64) {
        let mut state = self.log.state();
        state.applied.0 += 1;
        state.compacted = Revision(revision);
        self.log.write(&WriteBatch { log_state: state, ..WriteBatch::default() }).unwrap();
        while !self.index.compact_step(state.compacted, 100) {}
        let facts = vec![Fact::Compacted(state.compacted)];
        let frame = Frame { position: state.applied, revision: state.revision, facts, ..Frame::default() };
        self.tail.publish(vec![Arc::new(frame)]);
        while self.log.fold_step(100).unwrap() == tailwater_eventlog::FoldProgress::More {}
    }

    fn source(&self) -> LocalSource {
        LocalSource::new(self.log.clone(), self.tail.clone())
    }
}

/// A process that serves a source; dropping it breaks every connection.
struct Node {
    address: SocketAddr,
    service: TailService,
    runtime: Option<Runtime>,
}

impl Node {
    fn start(writer: &Writer, config: TailServiceConfig) -> Self {
        Self::start_with(writer, config, || CoreWord { path: vec![1], age: Duration::ZERO })
    }

    /// One that hears of the core as `word` tells.
    fn start_with(
        writer: &Writer,
        config: TailServiceConfig,
        word: impl Fn() -> CoreWord + Send + Sync + 'static,
    ) -> Self {
        let source = writer.source();
        let log = Some(writer.log.clone());
        let service = TailService::new(config, Box::new(move || Arc::new(source.clone())), log, Box::new(word));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(service.clone().into_grpc());
        runtime.spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        Self { address, service, runtime: Some(runtime) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.service.stop();
        if let Some(runtime) = self.runtime.take() {
            // Elsewhere, since a test may be a task itself. Whatever holds the log has let go of it then: RocksDB must not be
            // closed while the process exits.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(30))).join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
        wait_until("the streams have ended", || self.service.streams() == 0);
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
