//! Rows by (revision, sub), sorted with bounded memory: runs in a file without a name, merged while they are read.
//!
//! A row in the file is its length, 4 bytes little endian, and its bytes, which end with their own checksum.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::{StorageError, files};
use super::{BackupConfig, unreadable};
use crate::{Event, Revision};

/// What is read of one run at once.
const READ_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;

/// Where a row belongs.
type Place = (Revision, u32);

/// Rows on their way into order.
pub(super) struct Sorted {
    scratch: PathBuf,
    memory_bytes_max: usize,
    spare_bytes_min: u64,
    /// The last run, which needs no file.
    rows: Vec<(Place, Bytes)>,
    bytes: usize,
    file: Option<File>,
    runs: Vec<Run>,
}

/// Where a sorted run stands in the file.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
}

impl Sorted {
    /// Rows that don't fit into memory go to a file in `scratch`.
    pub(super) fn new(config: &BackupConfig, scratch: &Path) -> Self {
        Self {
            scratch: scratch.to_owned(),
            memory_bytes_max: config.memory_bytes_max,
            spare_bytes_min: config.spare_bytes_min,
            rows: Vec::new(),
            bytes: 0,
            file: None,
            runs: Vec::new(),
        }
    }

    /// Adds a stored row.
    pub(super) fn add(&mut self, row: Bytes) -> Result<(), StorageError> {
        let event = Event::from_row(row.clone()).map_err(unreadable)?;
        self.bytes += row.len() + size_of::<(Place, Bytes)>();
        self.rows.push(((event.revision(), event.sub()), row));
        if self.bytes >= self.memory_bytes_max { self.spill() } else { Ok(()) }
    }

    /// To be called behind the last row.
    pub(super) fn finish(&mut self) {
        self.rows.sort_unstable_by_key(|(place, _)| *place);
    }

    /// Puts what is in memory into the file, as one run.
    fn spill(&mut self) -> Result<(), StorageError> {
        self.rows.sort_unstable_by_key(|(place, _)| *place);
        let failed = |error: io::Error| files::failed(&self.scratch, &error);
        let space = rustix::fs::statvfs(&self.scratch).map_err(|error| failed(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < self.spare_bytes_min.saturating_add(self.bytes as u64) {
            return Err(StorageError::Engine(format!(
                "{}: {free} bytes are free, too few to sort a backup beside the {} that stay free",
                self.scratch.display(),
                self.spare_bytes_min
            )));
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(&self.scratch).map_err(failed)?),
        };
        let start = self.runs.last().map_or(0, |run| run.end);
        let mut end = start;
        let mut out = io::BufWriter::with_capacity(1 << 20, &*file);
        for (_, row) in self.rows.drain(..) {
            let length = u32::try_from(row.len()).expect("a row is far below 4 GiB");
            out.write_all(&length.to_le_bytes()).and_then(|()| out.write_all(&row)).map_err(failed)?;
            end += (LENGTH_BYTES + row.len()) as u64;
        }
        out.flush().map_err(failed)?;
        drop(out);
        self.bytes = 0;
        self.runs.push(Run { start, end });
        Ok(())
    }

    /// The rows in order. Reads of several merges don't disturb each other.
    pub(super) fn merge(&self) -> Result<Merge<'_>, StorageError> {
        let mut merge = Merge { sorted: self, readers: Vec::new(), heads: BinaryHeap::new(), in_memory: 0 };
        for run in &self.runs {
            merge.readers.push(Reader { next: run.start, end: run.end, buffer: Bytes::new() });
            merge.refill(merge.readers.len() - 1)?;
        }
        Ok(merge)
    }
}

/// The rows of a [`Sorted`] in order.
pub(super) struct Merge<'a> {
    sorted: &'a Sorted,
    readers: Vec<Reader>,
    /// The first row of each run that is left.
    heads: BinaryHeap<Reverse<(Place, usize, Bytes)>>,
    /// Rows taken of the run in memory.
    in_memory: usize,
}

/// A run as far as it was read.
struct Reader {
    next: u64,
    end: u64,
    buffer: Bytes,
}

impl Merge<'_> {
    /// The next row; none behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        let in_memory = self.sorted.rows.get(self.in_memory);
        let from_file = self.heads.peek().map(|Reverse((place, ..))| *place);
        match (in_memory, from_file) {
            (Some((place, row)), head) if head.is_none_or(|head| *place < head) => {
                self.in_memory += 1;
                Ok(Some(row.clone()))
            }
            (_, None) => Ok(None),
            (_, Some(_)) => {
                let Some(Reverse((_, run, row))) = self.heads.pop() else { return Ok(None) };
                self.refill(run)?;
                Ok(Some(row))
            }
        }
    }

    /// Puts the next row of a run among the heads.
    fn refill(&mut self, run: usize) -> Result<(), StorageError> {
        let file = self.sorted.file.as_ref().expect("a run is in the file");
        let row = self.readers[run].row(file).map_err(|error| files::failed(&self.sorted.scratch, &error))?;
        if let Some(row) = row {
            let event = Event::from_row(row.clone()).map_err(unreadable)?;
            self.heads.push(Reverse(((event.revision(), event.sub()), run, row)));
        }
        Ok(())
    }
}

impl Reader {
    fn row(&mut self, file: &File) -> io::Result<Option<Bytes>> {
        if self.buffer.is_empty() && self.next == self.end {
            return Ok(None);
        }
        self.fill(file, LENGTH_BYTES)?;
        let length = u32::from_le_bytes(*self.buffer.first_chunk().expect("just filled")) as usize;
        self.fill(file, LENGTH_BYTES + length)?;
        let row = self.buffer.split_to(LENGTH_BYTES + length).slice(LENGTH_BYTES..);
        Ok(Some(row))
    }

    /// Has at least `bytes` in the buffer.
    fn fill(&mut self, file: &File, bytes: usize) -> io::Result<()> {
        if self.buffer.len() >= bytes {
            return Ok(());
        }
        let missing = (bytes - self.buffer.len()) as u64;
        let left = self.end - self.next;
        if missing > left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let wanted = usize::try_from(missing.max(READ_BYTES as u64).min(left)).unwrap_or(READ_BYTES);
        let mut filled = Vec::with_capacity(self.buffer.len() + wanted);
        filled.extend_from_slice(&self.buffer);
        let held = filled.len();
        filled.resize(held + wanted, 0);
        file.read_exact_at(&mut filled[held..], self.next)?;
        self.next += wanted as u64;
        self.buffer = filled.into();
        Ok(())
    }
}
