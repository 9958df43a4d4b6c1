//! A directory in memory that can lose power: for tests and for simulated clusters.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, DiskFile};

/// A device writes sectors of this many bytes; a cut tears between and within them.
const SECTOR_BYTES: usize = 512;

/// Room is made ahead for at most so many bytes more.
const RESERVED_BYTES_MAX: usize = 997;

/// What a sync does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// What it promises.
    Honest,
    /// Nothing, and reports success: to prove that a test would notice.
    Ignored,
}

/// Files in memory with what is visible and what is durable kept apart. Clones share the directory.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    mode: SyncMode,
    visible: BTreeMap<String, Content>,
    durable: BTreeMap<String, Content>,
    /// Name changes since the last sync of the directory, in order.
    pending: Vec<NameChange>,
    writes: u64,
    /// Writes after which the device is gone.
    writes_max: Option<u64>,
}

type Content = Arc<Mutex<Bytes>>;

#[derive(Default)]
struct Bytes {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// The two are known to be equal up to here.
    same: usize,
}

enum NameChange {
    Link(String, Content),
    Unlink(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, Content>) {
        match self {
            Self::Link(name, content) => names.insert(name.clone(), Arc::clone(content)),
            Self::Unlink(name) => names.remove(name),
        };
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.visible);
        self.pending.push(change);
    }

    /// Counts an operation that changes the device; fails once power is gone.
    fn step(&mut self) -> io::Result<()> {
        if self.writes_max.is_some_and(|max| self.writes >= max) {
            return Err(io::Error::other("simulated disk has no power"));
        }
        self.writes += 1;
        Ok(())
    }
}

impl SimDisk {
    /// An empty directory.
    #[must_use]
    pub fn new(mode: SyncMode) -> Self {
        let state = State {
            mode,
            visible: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            writes: 0,
            writes_max: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Operations so far that change the device: writes, syncs, truncations and changes of names.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// Lets the device fail once it has seen `writes` operations in all; `None`: it goes on.
    pub fn fail_after(&self, writes: Option<u64>) {
        self.state.lock().writes_max = writes;
    }

    /// What the device holds after the power went now and came back: all that was synced, and of the rest whatever the
    /// seed says. Name changes survive as a prefix of their order. Of an unsynced file each sector is the old, the new,
    /// or for one of them a torn mix or garbage; its length is any between. Open handles go on with the old directory.
    #[must_use]
    pub fn cut(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.state.lock();
        let mut names = state.durable.clone();
        let survive = rng.random_range(0..=state.pending.len());
        for change in &state.pending[..survive] {
            change.apply(&mut names);
        }
        let files = names.iter().map(|(name, content)| {
            let bytes = content.lock();
            let kept = tear(&bytes.durable, &bytes.visible, &mut rng);
            (name.clone(), Arc::new(Mutex::new(Bytes { visible: kept.clone(), durable: kept, same: 0 })))
        });
        let visible: BTreeMap<String, Content> = files.collect();
        let after = Self::new(state.mode);
        {
            let mut fresh = after.state.lock();
            fresh.durable = visible.clone();
            fresh.visible = visible;
        }
        after
    }

    /// What the next process finds after this one was killed: everything visible, as durable as it was.
    #[must_use]
    pub fn kill(&self) -> Self {
        let state = self.state.lock();
        let mut copies: BTreeMap<*const Mutex<Bytes>, Content> = BTreeMap::new();
        let mut copy = |content: &Content| {
            let copied = copies.entry(Arc::as_ptr(content)).or_insert_with(|| {
                let bytes = content.lock();
                Arc::new(Mutex::new(Bytes { visible: bytes.visible.clone(), durable: bytes.durable.clone(), same: 0 }))
            });
            Arc::clone(copied)
        };
        let after = Self::new(state.mode);
        {
            let mut fresh = after.state.lock();
            fresh.visible = state.visible.iter().map(|(name, content)| (name.clone(), copy(content))).collect();
            fresh.durable = state.durable.iter().map(|(name, content)| (name.clone(), copy(content))).collect();
            let pending = state.pending.iter().map(|change| match change {
                NameChange::Link(name, content) => NameChange::Link(name.clone(), copy(content)),
                NameChange::Unlink(name) => NameChange::Unlink(name.clone()),
            });
            fresh.pending = pending.collect();
        }
        after
    }

    /// Flips one bit, durably. False when the file is not there or shorter.
    #[must_use]
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        let state = self.state.lock();
        let Some(content) = state.visible.get(name) else { return false };
        let Ok(offset) = usize::try_from(offset) else { return false };
        let mut bytes = content.lock();
        let Bytes { visible, durable, .. } = &mut *bytes;
        let flipped = [visible, durable].map(|side| side.get_mut(offset).map(|byte| *byte ^= 1 << (bit % 8)));
        flipped[0].is_some()
    }

    /// The visible bytes of a file.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.visible.get(name).map(|content| content.lock().visible.clone())
    }

    /// Replaces or makes a file, durably.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let content = Arc::new(Mutex::new(Bytes { visible: bytes.to_vec(), durable: bytes.to_vec(), same: 0 }));
        let mut state = self.state.lock();
        state.durable.insert(name.to_owned(), Arc::clone(&content));
        state.visible.insert(name.to_owned(), content);
    }
}

/// A mix of what was durable and what was visible.
fn tear(durable: &[u8], visible: &[u8], rng: &mut StdRng) -> Vec<u8> {
    if durable == visible {
        return durable.to_vec();
    }
    let (short, long) = (durable.len().min(visible.len()), durable.len().max(visible.len()));
    let len = match rng.random_range(0..4) {
        0 => durable.len(),
        1 => visible.len(),
        _ => rng.random_range(short..=long),
    };
    let mut kept = durable.to_vec();
    kept.resize(len, 0);
    // Sectors either get through in order up to some point, or each by itself.
    let in_order = rng.random_bool(0.5);
    let through = rng.random_range(0..=len);
    for start in (0..len).step_by(SECTOR_BYTES) {
        let end = (start + SECTOR_BYTES).min(len).min(visible.len());
        let new = if in_order { start < through } else { rng.random_bool(0.5) };
        if new && start < end {
            let end = if in_order { end.min(through) } else { end };
            kept[start..end].copy_from_slice(&visible[start..end]);
        }
    }
    let changed = durable.iter().zip(visible).take_while(|(old, new)| old == new).count();
    if changed < len && rng.random_bool(0.25) {
        let start = rng.random_range(changed..len);
        let end = (start + rng.random_range(1..=SECTOR_BYTES)).min(len);
        rng.fill(&mut kept[start..end]);
    }
    kept
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.step()?;
        if state.visible.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content::default();
        state.change(NameChange::Link(name.to_owned(), Arc::clone(&content)));
        Ok(Arc::new(SimFile { disk: self.clone(), content }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state.lock();
        let content = state.visible.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), content: Arc::clone(content) }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().visible.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let content = Arc::clone(state.visible.get(from).ok_or(io::ErrorKind::NotFound)?);
        state.change(NameChange::Unlink(from.to_owned()));
        state.change(NameChange::Link(to.to_owned(), content));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        if !state.visible.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        if state.mode == SyncMode::Honest {
            state.durable = state.visible.clone();
            state.pending.clear();
        }
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    content: Content,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.content.lock().visible.len() as u64)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.state.lock().step()?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut content = self.content.lock();
        let end = offset + bytes.len();
        content.same = content.same.min(offset).min(content.visible.len());
        if content.visible.len() < end {
            content.visible.resize(end, 0);
        }
        content.visible[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock();
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let found = content.visible.get(offset..offset + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step()?;
        if state.mode == SyncMode::Honest {
            let mut content = self.content.lock();
            let Bytes { visible, durable, same } = &mut *content;
            durable.truncate(*same);
            durable.extend_from_slice(&visible[*same..]);
            *same = visible.len();
        }
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<u64> {
        self.disk.state.lock().step()?;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut content = self.content.lock();
        let now = content.visible.len();
        // A full room would make tests copy zeros; that of real disks ends at any byte of a record, too.
        let len = len.min(now + RESERVED_BYTES_MAX).max(now);
        content.same = content.same.min(now);
        content.visible.resize(len, 0);
        Ok(len as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.state.lock().step()?;
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut content = self.content.lock();
        content.same = content.same.min(len).min(content.visible.len());
        content.visible.resize(len, 0);
        Ok(())
    }
}
