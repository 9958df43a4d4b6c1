//! With a real etcd: its snapshots are read here, and what is written here is taken by its tools and served by it.
//!
//! Needs Go, and etcd, etcdctl and etcdutl: env `ETCD`, `ETCDCTL` and `ETCDUTL`, or on PATH. `ACCEPTANCE=1` takes
//! 100,000 keys instead of 2,000.

mod tools;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, ensure};
use tailwater_snapshot::{
    Change, Facts, Limits, SnapshotPlan, SnapshotPlanner, SnapshotReader, SnapshotStatus, SnapshotWriter,
};
use tools::{Etcd, Tools};

/// What etcdutl's restore is told to add to the revision.
const BUMP: i64 = 1_000_000;

fn open(path: &Path) -> anyhow::Result<SnapshotReader<File>> {
    Ok(SnapshotReader::open(File::open(path)?, Limits::default())?)
}

/// Writes what `reader` has, as if it came from a store of our own.
fn copy(reader: &SnapshotReader<File>, to: &Path) -> anyhow::Result<()> {
    let facts = reader.facts()?;
    let plan = plan(reader, &facts)?;
    let mut writer = SnapshotWriter::new(BufWriter::new(File::create(to)?), plan, &facts)?;
    let mut revision = facts.compacted().unwrap_or(1);
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        revision = revision.max(at.main);
        match change {
            Change::Put { encoded, .. } => writer.put(at, encoded)?,
            Change::Delete { key } => writer.delete(at, &key)?,
            Change::Bump => {}
        }
    }
    writer.end_history(revision)?;
    let mut leases = reader.leases()?;
    while let Some(lease) = leases.next()? {
        writer.lease(&lease)?;
    }
    writer.finish()?.into_inner()?.sync_all()?;
    ensure!(fs::metadata(to)?.len() == plan.snapshot_bytes(), "the file is of another size than planned");
    Ok(())
}

fn plan(reader: &SnapshotReader<File>, facts: &Facts) -> anyhow::Result<SnapshotPlan> {
    let mut planner = SnapshotPlanner::new(facts)?;
    let mut revision = facts.compacted().unwrap_or(1);
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        revision = revision.max(at.main);
        match change {
            Change::Put { encoded, .. } => planner.put(at, encoded.len())?,
            Change::Delete { key } => planner.delete(at, key.len())?,
            Change::Bump => {}
        }
    }
    planner.end_history(revision)?;
    let mut leases = reader.leases()?;
    while let Some(lease) = leases.next()? {
        planner.lease(&lease)?;
    }
    Ok(planner.finish()?)
}

/// Our summary of the file, which must be etcdutl's.
fn status(tools: &Tools, path: &Path) -> anyhow::Result<SnapshotStatus> {
    let ours = open(path)?.status()?;
    let theirs = tools.snapshot_status(path)?;
    ensure!(theirs["hash"] == ours.hash, "hash: etcdutl {theirs}, here {ours:?}");
    ensure!(theirs["revision"] == ours.revision, "revision: etcdutl {theirs}, here {ours:?}");
    ensure!(theirs["totalKey"] == ours.keys, "keys: etcdutl {theirs}, here {ours:?}");
    ensure!(theirs["totalSize"] == ours.database_bytes, "bytes: etcdutl {theirs}, here {ours:?}");
    ensure!(theirs["version"] == ours.storage_version.as_deref().unwrap_or_default(), "{theirs}, here {ours:?}");
    Ok(ours)
}

/// Restores `snapshot` with etcdutl, and tells what an etcd on it serves.
fn served(tools: &Tools, snapshot: &Path, data_dir: &Path, options: &[&str]) -> anyhow::Result<String> {
    tools.restore(snapshot, data_dir, options)?;
    let etcd = Etcd::start(tools, data_dir)?;
    tools.dump(&etcd.endpoint)
}

/// The lines of a dump but for `without`, so that a difference is short to tell.
fn ensure_equal(expected: &str, found: &str, what: &str) -> anyhow::Result<()> {
    let count = (expected.lines().count(), found.lines().count());
    for (line, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        ensure!(expected == found, "{what}, line {}:\n  etcd served {expected}\n  restored   {found}", line + 1);
    }
    ensure!(count.0 == count.1, "{what}: {} lines, restored {}", count.0, count.1);
    Ok(())
}

fn with_etcd(test: &str, run: impl FnOnce(&Tools, &Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Some(tools) = Tools::find(test)? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    run(&tools, dir.path())
}

#[test]
fn a_snapshot_of_etcd_goes_through_our_reader_and_writer_and_back() -> anyhow::Result<()> {
    with_etcd("snapshots of a real etcd", |tools, dir| {
        let (theirs, ours) = (dir.join("theirs.db"), dir.join("ours.db"));
        let keys = if tools::is_acceptance() { 100_000 } else { 2_000 };
        let etcd = Etcd::start(tools, &dir.join("first"))?;
        tools.fill(&etcd.endpoint, keys, 60)?;
        let expected = tools.dump(&etcd.endpoint)?;
        ensure!(expected.lines().count() > 8_000, "a dump of {} lines", expected.lines().count());
        tools.save(&etcd.endpoint, &theirs)?;
        etcd.stop()?;

        let reader = open(&theirs)?;
        reader.verify_trailer()?;
        let found = status(tools, &theirs)?;
        copy(&reader, &ours)?;
        open(&ours)?.verify_trailer()?;
        // The same rows in other pages: all is equal but the size.
        let written = status(tools, &ours)?;
        ensure!(written.database_bytes <= found.database_bytes, "{written:?} is larger than {found:?}");
        assert_eq!(SnapshotStatus { database_bytes: 0, ..written }, SnapshotStatus { database_bytes: 0, ..found });
        tools.check(&ours)?;

        ensure_equal(&expected, &served(tools, &ours, &dir.join("second"), &[])?, "an etcd on our snapshot")?;
        let bump = ["--bump-revision", &BUMP.to_string(), "--mark-compacted"].map(str::to_owned);
        let bump: Vec<&str> = bump.iter().map(String::as_str).collect();
        let bumped = dir.join("bumped");
        tools.restore(&theirs, &bumped, &bump)?;
        bumped_revisions_are_kept(tools, dir, &bumped.join("member/snap/db"), written.revision + BUMP)
    })
}

/// What etcdutl bumped is read here, and what is written from that is served at the bumped revision.
fn bumped_revisions_are_kept(tools: &Tools, dir: &Path, database: &Path, revision: i64) -> anyhow::Result<()> {
    let reader = open(database)?;
    assert_eq!(reader.facts()?.scheduled_compaction, Some(revision));
    let mut last = None;
    let mut history = reader.history()?;
    while let Some((at, change)) = history.next()? {
        last = Some((at.main, change == Change::Bump));
    }
    assert_eq!(last, Some((revision, true)));
    let ours = dir.join("bumped.db");
    copy(&reader, &ours)?;
    let dump = served(tools, &ours, &dir.join("third"), &[])?;
    let first = dump.lines().next().context("a dump begins with the revision")?;
    assert_eq!(first, format!("revision {revision} compacted {revision}"));
    Ok(())
}

#[test]
fn a_data_directory_of_a_killed_etcd_is_read() -> anyhow::Result<()> {
    with_etcd("the data directory of a killed etcd", |tools, dir| {
        let etcd = Etcd::start(tools, &dir.join("killed"))?;
        tools.fill(&etcd.endpoint, 500, 0)?;
        etcd.kill()?;
        let database = dir.join("killed/member/snap/db");
        assert!(!open(&database)?.has_trailer());
        let found = status(tools, &database)?;
        ensure!(found.revision > 1, "{found:?}");
        // Pages of it are free; what is written from it has none, and etcd can't tell the two apart.
        let ours = dir.join("ours.db");
        copy(&open(&database)?, &ours)?;
        let written = status(tools, &ours)?;
        assert_eq!((written.hash, written.keys), (found.hash, found.keys));
        tools.check(&ours)?;
        assert_eq!(tools.hash_kv(&ours)?, tools.hash_kv(&database)?);
        flipped_bytes_are_survived(fs::read(&database)?);
        Ok(())
    })
}

/// A database with free pages, in which each of the steps flips one byte more.
fn flipped_bytes_are_survived(mut database: Vec<u8>) {
    let mut state = 1_u64;
    for _ in 0..200 {
        // Knuth's linear congruential generator; its upper bits are good enough to pick bytes.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) % database.len() as u64;
        database[usize::try_from(at).expect("an index of memory")] ^= 0x55;
        if let Ok(reader) = SnapshotReader::open(database.as_slice(), Limits::default()) {
            // An answer or an error, but an end.
            let _ = reader.status();
            let _ = reader.facts();
        }
    }
}

#[test]
fn an_empty_store_is_a_snapshot_too() -> anyhow::Result<()> {
    with_etcd("a snapshot of an empty store", |tools, dir| {
        let facts =
            Facts { term: 1, consistent_index: 1, storage_version: Some("3.6.0".to_owned()), ..Facts::default() };
        let write = |planner: &mut SnapshotPlanner| planner.end_history(1);
        let mut planner = SnapshotPlanner::new(&facts)?;
        write(&mut planner)?;
        let path = dir.join("empty.db");
        let mut writer = SnapshotWriter::new(File::create(&path)?, planner.finish()?, &facts)?;
        writer.end_history(1)?;
        writer.finish()?;
        assert_eq!(status(tools, &path)?.keys, 0);
        tools.check(&path)?;
        tools.restore(&path, &dir.join("restored"), &[])?;
        let etcd = Etcd::start(tools, &dir.join("restored"))?;
        assert_eq!(tools.revision(&etcd.endpoint)?, 1);
        Ok(())
    })
}
