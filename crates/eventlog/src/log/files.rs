//! The two small files beside RocksDB's own: `FORMAT` and `FLUSHED`. Their bytes are described in `format.rs`.
//!
//! `FLUSHED` says what the last flush made durable. RocksDB takes a damaged record length in its MANIFEST for the end
//! of that file and opens as if later flushes had not happened, the first one included; what was flushed can't come
//! back from the raft log, which is trimmed by then. So a store that opens behind this file is refused.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{LogState, StorageError, format};

const FORMAT_FILE: &str = "FORMAT";
const FLUSHED_FILE: &str = "FLUSHED";
/// Names the MANIFEST in use.
const CURRENT_FILE: &str = "CURRENT";

/// Makes the directory and its format file, or checks what is there.
pub(super) fn check_format(path: &Path) -> Result<(), StorageError> {
    fs::create_dir_all(path).map_err(|error| failed(path, &error))?;
    let file = path.join(FORMAT_FILE);
    let has_database = path.join(CURRENT_FILE).exists();
    let Some(line) = read_if_there(&file)? else {
        if has_database {
            let file = file.display();
            return Err(StorageError::Inconsistent(format!("{file} is missing beside a database")));
        }
        return replace(path, FORMAT_FILE, &format::format_line(format::FORMAT));
    };
    let Some(found) = format::parse_format_line(&line) else { return Err(damaged(&file)) };
    if found != format::FORMAT {
        let path = path.display().to_string();
        return Err(StorageError::Format { path, found, supported: format::FORMAT });
    }
    if !has_database && has_tables(path).map_err(|error| failed(path, &error))? {
        // RocksDB would take the directory for a new one and begin empty.
        let path = path.display();
        return Err(StorageError::Inconsistent(format!("{path}: tables without the file CURRENT that leads to them")));
    }
    if has_database { check_current(path) } else { Ok(()) }
}

/// RocksDB's own message for a damaged CURRENT names the file that it then can't find, not CURRENT.
fn check_current(path: &Path) -> Result<(), StorageError> {
    let file = path.join(CURRENT_FILE);
    let named = read_if_there(&file)?.unwrap_or_default();
    let manifest = named.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-"));
    if manifest.is_some_and(|name| path.join(name).is_file()) {
        return Ok(());
    }
    let (file, named) = (file.display(), named.escape_debug());
    Err(StorageError::Inconsistent(format!("{file} at byte 0: \"{named}\" names no MANIFEST that is there")))
}

/// Stores what a flush has made durable.
pub(super) fn write_flushed(path: &Path, flushed: &LogState) -> Result<(), StorageError> {
    replace(path, FLUSHED_FILE, &format::flushed_line(flushed))
}

/// Refuses a store that is behind what was flushed.
pub(super) fn check_flushed(path: &Path, found: &LogState) -> Result<(), StorageError> {
    let file = path.join(FLUSHED_FILE);
    let Some(line) = read_if_there(&file)? else { return Ok(()) };
    let Some((applied, fold_point)) = format::parse_flushed_line(&line) else { return Err(damaged(&file)) };
    if found.applied >= applied && found.fold_point >= fold_point {
        return Ok(());
    }
    let manifest = read_if_there(&path.join(CURRENT_FILE))?.unwrap_or_default();
    let manifest = path.join(manifest.trim_end());
    Err(StorageError::Inconsistent(format!(
        "{} leads to applied position {} and fold point {}, but {applied} and {fold_point} were flushed: it is damaged \
         or was replaced by an older one",
        manifest.display(),
        found.applied,
        found.fold_point,
    )))
}

pub(super) fn failed(path: &Path, error: &io::Error) -> StorageError {
    StorageError::Engine(format!("{}: {error}", path.display()))
}

pub(super) fn damaged(file: &Path) -> StorageError {
    StorageError::Inconsistent(format!("{}: the line does not fit its checksum", file.display()))
}

pub(super) fn read_if_there(file: &Path) -> Result<Option<String>, StorageError> {
    match fs::read(file) {
        // A damaged byte need not be text; the checksum finds what this changes.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file, &error)),
    }
}

fn has_tables(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.path().extension().is_some_and(|extension| extension == "sst") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a file whole or not at all, and durably.
pub(super) fn replace(path: &Path, name: &str, line: &str) -> Result<(), StorageError> {
    let new = path.join(format!("{name}.new"));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path.join(name))?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error: io::Error| failed(&new, &error))
}
