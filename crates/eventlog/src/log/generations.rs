//! Which directory the state is in.
//!
//! The state that a member began with is in the directory `state`, generation 0. A copy of another member's state is
//! gathered in `state.n`, n being the generation in use plus one, and the file `state.generation` says which one is in
//! use. Replacing that file, durably and whole, is the switch: a crash before it leaves the old state and a copy that
//! can be resumed, a crash behind it the new state. What is neither in use nor the next is removed at each start.
//!
//! With the switch the file also notes the position at which the state was installed, since the raft log still ends
//! somewhere below: a start that finds the note may reset the log to that position. The note goes with
//! [`EventLog::installed_settled`](super::EventLog::installed_settled).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;

use super::hold::Holds;
use super::{EventLogConfig, StorageError, files, format};
use crate::{Position, Term};

const MARKER_SUFFIX: &str = "generation";

/// Where a state was when it was installed by a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The applied raft index.
    pub applied: Position,
    /// Term of the entry there.
    pub term: Term,
}

/// What `state.generation` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) number: u64,
    /// Set until the raft log was told.
    pub(super) installed: Option<Installed>,
}

/// What all generations share.
pub(super) struct Home {
    /// As the caller gave it: the path is that of generation 0.
    pub(super) config: EventLogConfig,
    /// As on disk. Held while the file is replaced.
    pub(super) marker: Mutex<Marker>,
    pub(super) holds: Arc<Holds>,
    /// Set while a [`super::Staging`] or what it became is in use.
    pub(super) is_staging: Arc<AtomicBool>,
    /// Bytes on disk, and those in use, when they were measured last.
    pub(super) disk_bytes: (AtomicU64, AtomicU64),
}

impl Home {
    pub(super) fn new(config: EventLogConfig, marker: Marker) -> Self {
        Self {
            config,
            marker: Mutex::new(marker),
            holds: Arc::default(),
            is_staging: Arc::default(),
            disk_bytes: Default::default(),
        }
    }
}

/// The configuration of one generation.
pub(super) fn config_of(config: &EventLogConfig, number: u64) -> EventLogConfig {
    EventLogConfig { path: directory_of(&config.path, number), ..config.clone() }
}

fn directory_of(path: &Path, number: u64) -> PathBuf {
    if number == 0 { path.to_owned() } else { with_suffix(path, &number.to_string()) }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Where the generations stand.
pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads the marker and checks that what it names is there.
pub(super) fn read(path: &Path) -> Result<Marker, StorageError> {
    let file = with_suffix(path, MARKER_SUFFIX);
    let found = files::read_if_there(&file)?;
    let marker = match &found {
        Some(line) => format::parse_generation_line(line).ok_or_else(|| files::damaged(&file))?,
        None => Marker::default(),
    };
    let directory = directory_of(path, marker.number);
    // A state that is lost must not be taken for a new one.
    let was_there = found.is_some() || !numbers_beside(path)?.is_empty();
    if was_there && !directory.is_dir() {
        let (file, directory) = (file.display(), directory.display());
        let says = if found.is_some() { "names" } else { "is missing, which means" };
        return Err(StorageError::Inconsistent(format!("{file} {says} {directory}, but there is no such directory")));
    }
    Ok(marker)
}

/// Replaces the marker; durable when it returns, together with the name of the directory.
pub(super) fn write(path: &Path, marker: &Marker) -> Result<(), StorageError> {
    let file = with_suffix(path, MARKER_SUFFIX);
    let name = file.file_name().and_then(OsStr::to_str);
    let name = name.ok_or_else(|| StorageError::Engine(format!("{}: not a name", file.display())))?;
    files::replace(parent_of(path), name, &format::generation_line(marker))
}

/// Removes every generation but `current` and the one that may be on its way.
pub(super) fn remove_others(path: &Path, current: u64) {
    let mut numbers = numbers_beside(path).unwrap_or_default();
    numbers.push(0);
    for number in numbers.into_iter().filter(|number| *number != current && *number != current + 1) {
        let directory = directory_of(path, number);
        if directory.is_dir()
            && let Err(error) = fs::remove_dir_all(&directory)
        {
            tracing::warn!(path = %directory.display(), %error, "a replaced state can't be removed");
        }
    }
}

/// The numbers of the generations beside `path`.
fn numbers_beside(path: &Path) -> Result<Vec<u64>, StorageError> {
    let parent = parent_of(path);
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let mut numbers = Vec::new();
    let failed = |error| files::failed(parent, &error);
    for entry in fs::read_dir(parent).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let own = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_prefix(own)?.strip_prefix('.')?.parse().ok());
        numbers.extend(number.filter(|number| *number > 0));
    }
    Ok(numbers)
}
