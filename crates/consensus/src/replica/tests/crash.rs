//! Crashes under load: what a power loss would leave is copied away while writers run, and opened.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use tailwater_eventlog::{History, HistoryPoint};

use super::*;

const ROUNDS: u64 = 20;
const WRITERS: usize = 8;

/// What was acknowledged: the key and value of each revision.
type Acknowledged = Arc<Mutex<BTreeMap<Revision, (Bytes, Bytes)>>>;

/// Copies a directory's files: the names first, then each in order.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for (name, _) in listing(from)? {
        std::fs::copy(from.join(&name), to.join(&name))?;
    }
    Ok(())
}

/// Names and lengths, in order of the names; without RocksDB's log of messages.
fn listing(dir: &Path) -> std::io::Result<Vec<(OsString, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("LOG") {
            files.push((entry.file_name(), entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// State first: nothing is flushed or trimmed but by the test, so the copied raft log reaches at least as far as the
/// copied state, and holds all above it. RocksDB may still tidy up after a flush, so the state's copy counts only when
/// nothing moved while it was made. The raft log only appends: the copy is a prefix, perhaps with a torn end, as a crash
/// at some moment of the copying leaves it.
fn crash_copy(from: &Path, to: &Path) {
    let (state, copied) = (from.join("state"), to.join("state"));
    let began = Instant::now();
    loop {
        let before = listing(&state).ok();
        if before.is_some() && copy_files(&state, &copied).is_ok() && listing(&state).ok() == before {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the state never rests");
        // Not there yet when already the listing failed.
        drop(std::fs::remove_dir_all(&copied));
    }
    copy_files(&from.join("raft"), &to.join("raft")).unwrap();
}

async fn write(consensus: Consensus, writer: usize, round: u64, acknowledged: Acknowledged) {
    for n in 0.. {
        let key = Bytes::from(format!("key-{writer}-{}", n % 5));
        let value = Bytes::from(format!("{round}-{writer}-{n}"));
        let request = pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
        let Ok(applied) = consensus.propose(Command::Put(request)).await else { return };
        let before = acknowledged.lock().insert(Revision(revision(&applied)), (key, value));
        assert_eq!(before, None, "a revision was given twice");
    }
}

/// All events, by revision.
fn stored(source: &LocalSource) -> BTreeMap<Revision, (Bytes, Bytes)> {
    let mut events = BTreeMap::new();
    let mut next = Some(HistoryPoint { revision: Revision(0), sub: 0 });
    while let Some(from) = next {
        let chunk = source.read(&[], from, source.log.state().revision, false, 1 << 20).unwrap();
        for found in chunk.events {
            let event = found.event;
            let pair = (Bytes::copy_from_slice(event.key()), Bytes::copy_from_slice(event.value()));
            assert_eq!(events.insert(event.revision(), pair), None);
        }
        next = chunk.next;
    }
    events
}

#[test]
fn nothing_acknowledged_is_lost_by_crashes_at_random_moments() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse::<u64>().unwrap());
    eprintln!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let runtime = runtime();
    let root = tempfile::tempdir().unwrap();
    let config = |round: u64| ConsensusConfig {
        memtable_bytes: 1 << 30,
        raft_log_bytes: 1 << 30,
        ..config(&root.path().join(round.to_string()))
    };
    // All that the surviving line of history acknowledged.
    let mut survived: BTreeMap<Revision, (Bytes, Bytes)> = BTreeMap::new();
    let mut history = None;
    for round in 0..ROUNDS {
        let (consensus, source) = start(config(round));
        // Everything recovered is committed in the new term, and applied.
        let position = runtime.block_on(consensus.barrier()).unwrap();
        let state = source.log.state();
        assert!(state.applied >= position, "{state:?} and a barrier at {position}");
        assert_eq!(source.tail.end().revision, state.revision);
        let history = *history.get_or_insert(state.history);
        assert_eq!(state.history, history);
        let recovered = stored(&source);
        for (revision, pair) in &survived {
            assert_eq!(recovered.get(revision), Some(pair), "round {round}, revision {revision}");
        }
        let newest = recovered.keys().next_back().copied().unwrap_or(Revision(1));
        assert_eq!(state.revision, newest, "the state tells of exactly the events there are");

        let acknowledged = Acknowledged::default();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| runtime.spawn(write(consensus.clone(), writer, round, Arc::clone(&acknowledged))))
            .collect();
        std::thread::sleep(Duration::from_millis(random.random_range(5..150)));
        // A flush between: the state is then somewhere inside the raft log, or where it was.
        if random.random_bool(0.5) {
            source.log.flush().unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(0..50)));
        }
        let promised = acknowledged.lock().clone();
        crash_copy(&root.path().join(round.to_string()), &root.path().join((round + 1).to_string()));
        survived = recovered;
        survived.extend(promised);
        stop(consensus, source);
        for writer in writers {
            runtime.block_on(writer).unwrap();
        }
        std::fs::remove_dir_all(root.path().join(round.to_string())).unwrap();
    }
    assert!(survived.len() > 100, "only {} writes", survived.len());
}
