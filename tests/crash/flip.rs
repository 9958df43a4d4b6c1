//! One flipped bit in each kind of file that holds data, at its head, middle and tail.
//!
//! The server must refuse to start, or fail the read, naming the file; or nothing that a client was told may differ.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::load::Load;
use tailwater_tests::{Node, copy_tree, written_end};

/// The kind of a file: its name without digits, below its directory.
fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_ascii_hexdigit() || c.is_ascii_uppercase()).collect();
    format!("{parent}/{name}")
}

/// Logs for people and locks hold no data.
fn holds_data(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !(name.starts_with("LOG") || name.starts_with("LOCK") || name.starts_with("OPTIONS") || name == "IDENTITY")
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.metadata()?.len() > 0 && holds_data(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// Flips and judges; the newest file of each kind.
pub(crate) async fn every_kind_of_file(seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::new()?;
    let mut load = Load::new(seed);
    // A clean end leaves flushed files, a kill leaves an unflushed raft log.
    for clean in [true, true, false] {
        node.start(Vec::new()).await?;
        let running = load.begin(node.endpoint()).await?;
        tokio::time::sleep(Duration::from_millis(400)).await;
        if clean {
            node.terminate()?
        } else {
            node.kill()?
        }
        running.end(&mut load).await?;
    }
    let mut all = Vec::new();
    files(&node.data(), &mut all)?;
    all.sort();
    let mut newest = std::collections::BTreeMap::new();
    for path in all {
        newest.insert(kind(&path), path);
    }
    anyhow::ensure!(newest.len() >= 3, "raft log, tables and manifest are expected, found {newest:?}");
    let kept = node.root().with_file_name("kept");
    copy_tree(&node.root(), &kept)?;
    for path in newest.values() {
        let (length, written) = (path.metadata()?.len(), written_end(path)?);
        for at in [random.random_range(0..written.min(16)), written / 2, written - 1, length - 1] {
            std::fs::remove_dir_all(node.root())?;
            copy_tree(&kept, &node.root())?;
            flip(path, at, random.random_range(0..8))?;
            judge(&mut node, &load, path).await.with_context(|| format!("{} at byte {at}", path.display()))?;
        }
    }
    Ok(())
}

fn flip(path: &Path, at: u64, bit: u32) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes[usize::try_from(at)?] ^= 1 << bit;
    Ok(std::fs::write(path, bytes)?)
}

async fn judge(node: &mut Node, load: &Load, path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !node.try_start(Vec::new()).await? {
        let log = node.log();
        anyhow::ensure!(log.contains(&name), "the refusal does not name {name}:\n{log}");
        return Ok(());
    }
    // It started: either the flip was harmless, or the first read that meets it fails; never other data.
    let checked = load.check(node.endpoint()).await;
    node.kill()?;
    match checked {
        Ok(()) => Ok(()),
        Err(error) if error.downcast_ref::<tonic::Status>().is_some() => {
            anyhow::ensure!(
                node.log().contains(&name),
                "a read failed ({error}) without naming {name}:\n{}",
                node.log()
            );
            Ok(())
        }
        Err(error) => Err(error.context("other data than was written")),
    }
}
