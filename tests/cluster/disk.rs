//! Disks that are full, and disks that keep only what was synced.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tailwater_tests::cluster::{Cluster, Setup};
use tailwater_tests::{Cut, Kind, SyncedDisk, left_out};

use crate::run::{Rounds, Run, amount, scaled, seed, turn};
use crate::workload::Amount;

/// Size of the small disk in MiB, short and in full: an etcd reserves two write-ahead files of 64 MB on it at once, and
/// what ten minutes write must fit beside them.
const DISK_MIB: (usize, usize) = (256, 2048);
/// What is left of it when it is filled up.
const LEFT_BYTES: u64 = 256 << 10;
/// How long writes may take to go on without that member.
const RESUME_MAX: Duration = Duration::from_secs(10);

/// A small file system in memory; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None when this process may not mount.
    fn mount(at: &Path) -> Option<Self> {
        let size = format!("size={}m", scaled(DISK_MIB.0, DISK_MIB.1));
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tailwater-test"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all space but [`LEFT_BYTES`].
    fn fill(&self) -> anyhow::Result<()> {
        let chunk = vec![1; 64 << 10];
        let mut file = std::fs::File::create(self.filler())?;
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        let len = file.metadata()?.len();
        file.set_len(len.saturating_sub(LEFT_BYTES))?;
        Ok(())
    }

    fn empty(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the member may still run.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        debug_assert!(unmounted.is_ok_and(|status| status.success()), "what was mounted can be unmounted");
    }
}

/// Waits until the member on the full disk has ended, or says that it has no space.
async fn notices(cluster: &mut Cluster, slot: usize) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let named = cluster.log(slot).to_lowercase().contains("no space left");
        if named {
            return Ok(());
        }
        anyhow::ensure!(cluster.is_running(slot), "member {slot} ended on a full disk without saying why");
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(30), "member {slot} goes on without space for 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn full(setup: Setup, amount: &Amount) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(setup).await?;
    let slot = 1;
    let place = tempfile::Builder::new().prefix("tailwater-small-disk-").tempdir()?;
    let Some(disk) = SmallDisk::mount(place.path()) else {
        left_out("cluster: a full disk", "mounting a tmpfs needs root");
        cluster.finish();
        return Ok(());
    };
    cluster.place_data(slot, place.path().join("data"));
    cluster.heal().await?;
    let mut run = Run::start(cluster, amount).await?;
    for () in Rounds::new(1) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        disk.fill()?;
        notices(&mut run.cluster, slot).await?;
        run.load.next_write(RESUME_MAX).await.context("the others go on")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        run.load.next_write(RESUME_MAX).await.context("the others go on")?;
        disk.empty()?;
        run.cluster.kill(slot)?;
        run.cluster.restart(slot).await.context("with space again")?;
    }
    run.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_is_full_leaves_the_others_alone() {
    let Some((_turn, setup)) = turn("a full disk", 3).await else { return };
    // Larger values, so that the rest of the disk is used up soon.
    let amount = Amount { value_bytes: 4 << 10, ..amount() };
    if let Err(error) = full(setup, &amount).await {
        panic!("SEED={}: {error:?}", amount.seed);
    }
}

/// Power cuts of all members at once under load, on disks that keep what was synced and perhaps some of the rest.
async fn cuts(setup: Setup, rounds: usize, seed: u64, ignore_syncs: bool) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::new(setup).await?;
    if ignore_syncs {
        cluster.keep_nothing();
    }
    let mut disks = Vec::new();
    for slot in 0..cluster.size() {
        let root = cluster.data(slot).parent().context("it has a parent")?.to_owned();
        let disk = SyncedDisk::new(root, ignore_syncs)?;
        disk.reset()?;
        cluster.set_environment(slot, disk.environment());
        disks.push(disk);
    }
    cluster.heal().await?;
    let mut run = Run::start(cluster, &amount()).await?;
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(400)).await;
        run.cluster.kill_all()?;
        for disk in &disks {
            disk.cut(&mut Cut { random: &mut random })?;
            disk.reset()?;
        }
        run.cluster.heal().await?;
        run.load.next_write(RESUME_MAX).await?;
    }
    run.end().await
}

async fn power_cuts(members: usize, ignore_syncs: bool) {
    let Some((_turn, setup)) = turn("power cuts", members).await else { return };
    if setup.kind == Kind::Etcd {
        // It makes its system calls without the C library, which the layer replaces.
        return;
    }
    let (rounds, seed) = (if ignore_syncs { 1 } else { scaled(3, 100) }, seed());
    let outcome = cuts(setup, rounds, seed, ignore_syncs).await;
    match outcome {
        Err(error) if !ignore_syncs => panic!("SEED={seed}: {error:?}"),
        Ok(()) if ignore_syncs => panic!("SEED={seed}: disks that keep nothing went unnoticed"),
        Ok(()) | Err(_) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_of_one_member_alone_lose_nothing() {
    power_cuts(1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_of_all_members_lose_nothing() {
    power_cuts(3, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_loss_of_all_that_was_synced_is_found() {
    power_cuts(1, true).await;
}
