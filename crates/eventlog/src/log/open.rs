//! Opening: the format, the numbers, and the index from heads and log.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::engine::{Engine, Family};
use super::generation::Directory;
use super::generations::{self, Home};
use super::{EventLog, EventLogConfig, Generation, LogState, Scan, StorageError, base, files, format};
use crate::{KeyIndex, Revision};

pub(super) fn open(config: &EventLogConfig) -> Result<(EventLog, KeyIndex), StorageError> {
    let marker = generations::read(&config.path)?;
    let (generation, index) = open_generation(&generations::config_of(config, marker.number))?;
    generations::remove_others(&config.path, marker.number);
    let log = EventLog {
        current: Arc::new(ArcSwap::from_pointee(generation)),
        home: Arc::new(Home::new(config.clone(), marker)),
    };
    Ok((log, index))
}

/// Opens one directory.
pub(super) fn open_generation(config: &EventLogConfig) -> Result<(Generation, KeyIndex), StorageError> {
    files::check_format(&config.path)?;
    let engine = Engine::open(config)?;
    let state = read_numbers(&engine)?;
    files::check_flushed(&config.path, &state)?;
    check_state(&engine)?;
    let mut index = KeyIndex::default();
    base::load(&engine, &state, &mut index)?;
    load_log(&engine, &state, &mut index)?;
    while !index.compact_step(state.compacted, usize::MAX) {}
    let generation = Generation {
        engine,
        state: Mutex::new(state),
        tree: index.shared_tree(),
        // Nobody noted it; no step goes further.
        folding: Mutex::new(Revision(state.compacted.0 - 1)),
        defragmenting: Mutex::new(()),
        flushing: Mutex::new(()),
        directory: Directory::new(config.path.clone()),
    };
    Ok((generation, index))
}

fn read_numbers(engine: &Engine) -> Result<LogState, StorageError> {
    let read = |key: &[u8]| match engine.get(Family::State, key)? {
        Some(value) => format::unsealed(key, value).map(Some),
        None => Ok(None),
    };
    let mut state = match read(format::NUMBERS_KEY)? {
        Some(value) => format::decode_numbers(&value)?,
        None if engine.is_empty(Family::Log)?
            && engine.is_empty(Family::Base)?
            && engine.is_empty(Family::State)? =>
        {
            LogState { revision: Revision(1), ..LogState::default() }
        }
        None => {
            return Err(StorageError::Inconsistent("there are rows, but not the numbers that describe them".into()));
        }
    };
    if let Some(value) = read(format::FOLD_KEY)? {
        state.fold_point = format::decode_fold_point(&value)?;
    }
    let ordered = state.fold_point <= state.compacted && state.compacted <= state.revision;
    if ordered {
        Ok(state)
    } else {
        Err(StorageError::Inconsistent(format!("numbers contradict each other: {state:?}")))
    }
}

/// Reads every value of the state, so that a corrupt one stops the start rather than a later read.
fn check_state(engine: &Engine) -> Result<(), StorageError> {
    let mut rows = engine.rows(Family::State, &[], None);
    while let Some((key, value)) = rows.next_row()? {
        format::unsealed(&key, value)?;
    }
    Ok(())
}

fn load_log(engine: &Engine, state: &LogState, index: &mut KeyIndex) -> Result<(), StorageError> {
    // Rows at and below the fold point may be back after files were dropped; base has what they said.
    let mut scan = Scan::new(engine, (state.fold_point.next(), 0), Revision(i64::MAX - 1));
    let (mut first, mut last) = (None, state.fold_point);
    while let Some(event) = scan.next_event()? {
        first = first.or(Some((event.revision(), event.sub())));
        last = event.revision();
        index.insert(&event);
    }
    // A fresh store stands at revision 1, without a record of it.
    let expected = (state.fold_point.max(Revision(1)).next(), 0);
    match first {
        Some(first) if first != expected => {
            let (expected, found) = (format::place_of_log(expected.0, 0), format::place_of_log(first.0, first.1));
            Err(StorageError::Inconsistent(format!("a hole: {expected} is missing, the log begins with {found}")))
        }
        _ if last > state.revision => {
            let newest = state.revision;
            Err(StorageError::Inconsistent(format!("the log reaches revision {last}, above the newest, {newest}")))
        }
        _ => Ok(()),
    }
}
