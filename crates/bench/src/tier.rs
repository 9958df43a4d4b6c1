//! Experiments with members and fanouts as processes of their own.
//!
//! Pinned (`--pin`), all members share CPU 0, and fanouts, watch clients and this process share CPU 1. Fanouts and watch
//! clients run at lower priorities there than this process: they stand for other machines, and the instrument must not
//! wait for them. Puts go to the leader at a fixed rate and are measured from when they should have left; how late
//! they really left is a column of its own. etcd has members only, so there the watchers are spread over the members.

pub(crate) mod bound;
pub(crate) mod clients;
pub(crate) mod figures;
mod group;
pub(crate) mod growth;
pub(crate) mod isolation;
pub(crate) mod lists;
pub(crate) mod memory;
pub(crate) mod puts;
pub(crate) mod topology;

use std::path::PathBuf;

use clap::Args;

use crate::server::Program;

/// What every experiment takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// The tailwater binary.
    #[arg(long)]
    tailwater: Option<PathBuf>,
    /// The etcd binary.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Members of each group.
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// Fanouts behind tailwater's members.
    #[arg(long, default_value_t = 2)]
    fanouts: usize,
    /// Directory for the members' data; its disk is the one that is measured.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Members on CPU 0, everything else on CPU 1 (needs taskset and nice).
    #[arg(long)]
    pin: bool,
}

impl Common {
    /// The servers that are to be compared, ours first.
    fn programs(&self) -> anyhow::Result<Vec<Program>> {
        let ours = self.tailwater.clone().map(Program::tailwater);
        let theirs = self.etcd.clone().map(Program::etcd);
        let programs: Vec<Program> = ours.into_iter().chain(theirs).collect();
        anyhow::ensure!(!programs.is_empty(), "name a server: --tailwater PATH, --etcd PATH or both");
        Ok(programs)
    }

    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// Keeps this process where it belongs.
    fn begin(&self) -> anyhow::Result<()> {
        if self.pin {
            crate::server::pin_self()?;
        }
        Ok(())
    }
}
