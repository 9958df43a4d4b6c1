//! The storage layer of `dropsync.c`, from the test's side.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;

/// Keeps what was synced below `root` in a copy, which takes its place at a cut.
pub struct SyncedDisk {
    root: PathBuf,
    dir: TempDir,
    ignore_syncs: bool,
    delay: Duration,
}

/// Decides what is torn.
pub struct Cut<'a> {
    /// Where the decisions come from.
    pub random: &'a mut StdRng,
}

impl SyncedDisk {
    /// Compiles the layer; needs a C compiler, as the server's own build does.
    pub fn new(root: PathBuf, ignore_syncs: bool) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tailwater-synced-").tempdir()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("crash/dropsync.c");
        let built = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(dir.path().join("dropsync.so"))
            .arg(source)
            .args(["-ldl", "-lpthread"])
            .status()
            .context("a C compiler builds the storage layer")?;
        anyhow::ensure!(built.success(), "dropsync.c does not compile");
        Ok(Self { root, dir, ignore_syncs, delay: Duration::ZERO })
    }

    /// Makes each sync take so much longer.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn shadow(&self) -> PathBuf {
        self.dir.path().join("shadow")
    }

    /// What the server's environment needs.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        vec![
            ("LD_PRELOAD".into(), text(self.dir.path().join("dropsync.so"))),
            ("DROPSYNC_ROOT".into(), text(self.root.clone())),
            ("DROPSYNC_SHADOW".into(), text(self.shadow())),
            ("DROPSYNC_IGNORE".into(), if self.ignore_syncs { "1" } else { "0" }.into()),
            ("DROPSYNC_DELAY_MS".into(), self.delay.as_millis().to_string()),
        ]
    }

    /// Everything that is there now counts as synced.
    pub fn reset(&self) -> anyhow::Result<()> {
        if self.shadow().exists() {
            std::fs::remove_dir_all(self.shadow())?;
        }
        std::fs::create_dir_all(self.shadow().join("ino"))?;
        self.adopt(&self.root, &self.shadow().join("tree"))
    }

    fn adopt(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.adopt(&entry.path(), &target)?;
            } else {
                let kept = self.shadow().join("ino").join(entry.metadata()?.ino().to_string());
                std::fs::copy(entry.path(), &kept)?;
                std::fs::hard_link(&kept, &target)?;
            }
        }
        Ok(())
    }

    /// After the kill: what was not synced is gone, but for what a torn write may have left.
    pub fn cut(&self, cut: &mut Cut<'_>) -> anyhow::Result<()> {
        let tree = self.shadow().join("tree");
        cut.tear(&self.root, &tree)?;
        std::fs::remove_dir_all(&self.root)?;
        crate::copy_tree(&tree, &self.root)
    }
}

impl Cut<'_> {
    /// Writes to some synced files a part of what was written behind what was synced; in the raft log, whose records carry
    /// checksums for it, perhaps with wrong bytes.
    fn tear(&mut self, written: &Path, synced: &Path) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(synced)? {
            let entry = entry?;
            let original = written.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.tear(&original, &entry.path())?;
                continue;
            }
            let Ok(mut file) = std::fs::File::open(&original) else { continue };
            let is_raft_log = original.parent().is_some_and(|parent| parent.ends_with("raft"));
            let have = match is_raft_log {
                // Room made ahead is zeros in both: what was not synced lies before the end.
                true => first_difference(&std::fs::read(entry.path())?, &std::fs::read(&original)?),
                false => Some(entry.metadata()?.len()),
            };
            let all = if is_raft_log { written_end(&original)? } else { file.metadata()?.len() };
            let Some(have) = have.filter(|have| all > *have && self.random.random_bool(0.5)) else { continue };
            let count = usize::try_from(self.random.random_range(1..=all - have))?;
            let mut bytes = vec![0; count];
            file.seek(SeekFrom::Start(have))?;
            file.read_exact(&mut bytes)?;
            if is_raft_log && self.random.random_bool(0.3) {
                let at = self.random.random_range(0..count);
                bytes[at..].fill_with(|| self.random.random());
            }
            std::fs::OpenOptions::new().write(true).open(entry.path())?.write_all_at(&bytes, have)?;
        }
        Ok(())
    }
}

/// Where two files begin to differ; `None`: they don't.
fn first_difference(one: &[u8], other: &[u8]) -> Option<u64> {
    let differs = one.iter().zip(other).position(|(one, other)| one != other);
    let at = differs.or_else(|| (one.len() != other.len()).then(|| one.len().min(other.len())))?;
    u64::try_from(at).ok()
}

/// The end of what was written to a file: the zeros behind it may be room that was made ahead.
pub fn written_end(path: &Path) -> std::io::Result<u64> {
    Ok(std::fs::read(path)?.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}
