//! The seam to the storage device: a flat directory of files, each operation as strong as POSIX makes it and no
//! stronger. [`RealDisk`] is the file system, [`SimDisk`](super::SimDisk) a directory in memory that can lose power.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// One flat directory.
///
/// What a call changed is *visible* when it returns and *durable* only later: the content of a file after
/// [`DiskFile::sync`], names (create, rename, remove) after [`Disk::sync_dir`], and names in the order they were made.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new empty file.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the device says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, or what the device says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// The names in the directory, sorted.
    ///
    /// # Errors
    /// What the device says.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// What the device says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name; who has the file open goes on reading it.
    ///
    /// # Errors
    /// What the device says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    ///
    /// # Errors
    /// What the device says.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file. Reads and writes name their offset; the handle has no position and may be shared.
pub trait DiskFile: Send + Sync {
    /// Bytes in the file.
    ///
    /// # Errors
    /// What the device says.
    fn size(&self) -> io::Result<u64>;
    /// Writes all bytes; a gap between the old end and `offset` reads as zeros.
    ///
    /// # Errors
    /// What the device says; some of the bytes may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, or what the device says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the device says. What was written before is then in an unknown state: the file must not be used again.
    fn sync(&self) -> io::Result<()>;
    /// Makes room ahead, which reads as zeros, so that writes up to `len` bytes don't make the file longer; tells how long it
    /// is now. It stays shorter where the device can't or is full: then a write makes it longer, or fails.
    ///
    /// # Errors
    /// What else the device says.
    fn reserve(&self, len: u64) -> io::Result<u64>;
    /// Cuts the file to `len` bytes.
    ///
    /// # Errors
    /// What the device says.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// Opens the directory, made (and made durable in its parent) if missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { dir })
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.dir.join(name))?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.dir.join(name))?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            // A name that is no UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn reserve(&self, len: u64) -> io::Result<u64> {
        let now = self.metadata()?.len();
        if now >= len {
            return Ok(now);
        }
        match fallocate(self, FallocateFlags::empty(), now, len - now) {
            Ok(()) => Ok(len),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Ok(now),
            Err(error) => Err(error.into()),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}
