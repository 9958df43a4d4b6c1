//! The experiments and their targets.

use clap::ValueEnum;

use crate::server::ECHO;

/// Which rows are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// A few of them, once each.
    Quick,
    /// Those that take seconds, in rounds.
    Full,
    /// Those that take minutes, once each.
    Long,
}

impl Size {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Long => "long",
        }
    }

    /// Whether a run of this size has the rows of that.
    pub(crate) fn has(self, rows: Self) -> bool {
        self == rows || (self, rows) == (Self::Full, Self::Quick)
    }
}

/// A figure that a workload tells itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// Its name among [`crate::report::Report::figures`].
    pub(crate) name: &'static str,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Operations per second.
    PerSecond,
    /// Microseconds of the servers' CPU time.
    CpuPerOperation,
    /// Megabytes of keys and values per second of the servers' CPU time.
    BytesPerCpuSecond,
    /// Milliseconds.
    P50,
    P99,
    /// High-water mark of resident memory, MiB.
    MemoryMax,
    /// What the load added to the most memory before, MiB.
    MemoryAdded,
    /// Bytes written to disk per byte of keys and values.
    WrittenPerByte,
    Told(&'static Told),
}

impl Figure {
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::PerSecond => "per-second",
            Self::CpuPerOperation => "cpu-us",
            Self::BytesPerCpuSecond => "mb-per-cpu-second",
            Self::P50 => "p50-ms",
            Self::P99 => "p99-ms",
            Self::MemoryMax => "memory-mib",
            Self::MemoryAdded => "memory-added-mib",
            Self::WrittenPerByte => "written-per-byte",
            Self::Told(told) => told.id,
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::PerSecond => "per second",
            Self::CpuPerOperation => "server CPU, us per operation",
            Self::BytesPerCpuSecond => "MB per CPU-second",
            Self::P50 => "p50, ms",
            Self::P99 => "p99, ms",
            Self::MemoryMax => "most memory, MiB",
            Self::MemoryAdded => "memory that the load added, MiB",
            Self::WrittenPerByte => "bytes written per byte",
            Self::Told(told) => told.what,
        }
    }
}

/// What should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The ratio to etcd.
    AtMost(f64),
    /// The ratio to etcd.
    AtLeast(f64),
    /// The figure itself.
    Itself(f64),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit:.2}"),
            Self::AtLeast(limit) => write!(f, ">= {limit:.2}"),
            Self::Itself(limit) => write!(f, "itself <= {limit:.2}"),
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Both,
    /// And a server that only answers: what the RPC layer costs.
    BothAndEcho,
    Ours,
}

impl Who {
    pub(crate) fn has(self, name: &str) -> bool {
        match self {
            Self::Both => name != ECHO,
            Self::BothAndEcho => true,
            Self::Ours => name == "tailwater",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    /// A line of `tailwater bench`.
    Line(&'static str),
    /// See [`super::long`].
    Restart,
    Large,
    MostNodes,
}

/// One load on one kind of group.
#[derive(Debug)]
pub(crate) struct Experiment {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    /// From which size on it is run.
    pub(crate) size: Size,
    pub(crate) members: usize,
    /// Lines of `tailwater bench`.
    pub(crate) before: Option<&'static str>,
    pub(crate) measured: Run,
    pub(crate) who: Who,
    pub(crate) figures: &'static [(Figure, Option<Target>)],
}

use Figure::{
    BytesPerCpuSecond, CpuPerOperation, MemoryAdded, MemoryMax, P50, P99, PerSecond, Told as Tells, WrittenPerByte,
};
use Run::{Large, Line, MostNodes, Restart};
use Target::{AtLeast, AtMost, Itself};
use Who::{Both, BothAndEcho, Ours};

const WRITES: &[(Figure, Option<Target>)] = &[
    (CpuPerOperation, Some(AtMost(0.5))),
    (PerSecond, Some(AtLeast(2.0))),
    (P99, Some(AtMost(1.0))),
    (MemoryMax, None),
];
const READS: &[(Figure, Option<Target>)] =
    &[(CpuPerOperation, Some(AtMost(0.4))), (PerSecond, Some(AtLeast(2.0))), (P99, None)];
const LISTS: &[(Figure, Option<Target>)] = &[
    (BytesPerCpuSecond, Some(AtLeast(3.0))),
    (PerSecond, None),
    (MemoryMax, Some(AtMost(1.0 / 3.0))),
    (MemoryAdded, None),
];
const COUNTS: &[(Figure, Option<Target>)] = &[(CpuPerOperation, Some(AtMost(1.0 / 3.0))), (PerSecond, None)];
const MODERATE: &[(Figure, Option<Target>)] =
    &[(CpuPerOperation, Some(AtMost(0.5))), (P99, Some(AtMost(0.5))), (MemoryMax, None)];
const FEW_STREAMS: &[(Figure, Option<Target>)] =
    &[(CpuPerOperation, Some(AtMost(0.25))), (P99, Some(AtMost(0.5))), (MemoryMax, None)];

const LISTED_10K: &str = "put --clients=64 --conns=4 --sequential --key-space=10000 --total=10000 --val-size=1024 \
                          --prefix=/registry/pods/default/pod- --seconds=600";

const WITH_WITHOUT: Told =
    Told { id: "p99-with-without", what: "put p99 with ÷ without", name: "put p99 with / without" };
const RATE: Told = Told { id: "rate", what: "puts per second (half of the most)", name: "rate puts/s" };
const NOISE: Told = Told { id: "p99-noise", what: "put p99 without, again ÷ without", name: "put p99 noise" };
const CAUGHT_UP: Told = Told { id: "caught-up", what: "revisions caught up per second", name: "caught up revisions/s" };
pub(super) const READY: Told = Told { id: "ready-s", what: "ready after kill -9, s", name: "ready s" };
pub(super) const DISK: Told =
    Told { id: "disk-per-live", what: "disk ÷ live bytes after a compaction", name: "disk / live" };
pub(super) const LARGE_P99: Told = Told { id: "p99-12-1", what: "put p99, 12 GiB ÷ 1 GiB", name: "put p99 12/1" };
pub(super) const LARGE_COMPACTION: Told =
    Told { id: "p99-compaction-12-1", what: "put p99 beside a compaction, 12 GiB ÷ 1 GiB", name: "compaction 12/1" };
pub(super) const LARGE_PAGE: Told =
    Told { id: "page-12-1", what: "page of 500, p50, 12 GiB ÷ 1 GiB", name: "page 12/1" };
pub(super) const LARGE_READY: Told =
    Told { id: "ready-12-1", what: "ready after kill -9, 12 GiB ÷ 1 GiB", name: "ready 12/1" };
pub(super) const NODES: Told = Told { id: "nodes", what: "most nodes", name: "nodes" };

/// All of them.
pub(crate) const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        id: "put",
        what: "puts of 256 B, 1000 clients on 100 connections",
        size: Size::Quick,
        members: 1,
        before: None,
        measured: Line("put --clients=1000 --conns=100 --val-size=256 --seconds=5"),
        who: BothAndEcho,
        figures: WRITES,
    },
    Experiment {
        id: "txn-put",
        what: "compare-and-put of 1 KiB, 1000 clients on 100 connections",
        size: Size::Quick,
        members: 1,
        before: None,
        measured: Line("txn-put --clients=1000 --conns=100 --val-size=1024 --seconds=5"),
        who: BothAndEcho,
        figures: WRITES,
    },
    Experiment {
        id: "put-3",
        what: "the puts on three members of one host",
        size: Size::Full,
        members: 3,
        before: None,
        measured: Line("put --clients=1000 --conns=100 --val-size=256 --seconds=5"),
        who: Both,
        figures: WRITES,
    },
    Experiment {
        id: "txn-put-3",
        what: "the transactions on three members of one host",
        size: Size::Full,
        members: 3,
        before: None,
        measured: Line("txn-put --clients=1000 --conns=100 --val-size=1024 --seconds=5"),
        who: Both,
        figures: WRITES,
    },
    Experiment {
        id: "put-1-client",
        what: "puts of 256 B, one client",
        size: Size::Quick,
        members: 1,
        before: None,
        measured: Line("put --val-size=256 --seconds=5"),
        who: BothAndEcho,
        figures: &[(P50, Some(AtMost(1.0))), (P99, None), (CpuPerOperation, None)],
    },
    Experiment {
        id: "get",
        what: "linearizable gets of one key, 1000 clients on 100 connections",
        size: Size::Quick,
        members: 1,
        before: Some("put --total=1 --sequential --prefix=/bench/range/"),
        measured: Line("range --no-load --clients=1000 --conns=100 --seconds=5"),
        who: BothAndEcho,
        figures: READS,
    },
    Experiment {
        id: "get-serializable",
        what: "serializable gets of one key, 1000 clients on 100 connections",
        size: Size::Full,
        members: 1,
        before: Some("put --total=1 --sequential --prefix=/bench/range/"),
        measured: Line("range --serializable --no-load --clients=1000 --conns=100 --seconds=5"),
        who: BothAndEcho,
        figures: READS,
    },
    Experiment {
        id: "list",
        what: "lists of 10,000 keys of 1 KiB, 4 clients",
        size: Size::Quick,
        members: 1,
        before: Some(LISTED_10K),
        measured: Line("list --no-load --clients=4 --conns=4 --seconds=5"),
        who: Both,
        figures: LISTS,
    },
    Experiment {
        id: "list-paged",
        what: "the same in pages of 500",
        size: Size::Full,
        members: 1,
        before: Some(LISTED_10K),
        measured: Line("list --no-load --how=paged --clients=4 --conns=4 --seconds=5"),
        who: Both,
        figures: LISTS,
    },
    Experiment {
        id: "list-500k",
        what: "lists of 500,000 keys of 100 B, 2 clients",
        size: Size::Full,
        members: 1,
        before: Some(
            "put --clients=256 --conns=32 --sequential --key-space=500000 --total=500000 --val-size=100 \
             --prefix=/registry/pods/default/pod- --seconds=600",
        ),
        measured: Line("list --no-load --key-space=500000 --clients=2 --conns=2 --seconds=8"),
        who: Both,
        figures: LISTS,
    },
    Experiment {
        id: "list-keys-only",
        what: "the 10,000 keys without values",
        size: Size::Full,
        members: 1,
        before: Some(LISTED_10K),
        measured: Line("list --no-load --how=keys-only --clients=4 --conns=4 --seconds=5"),
        who: Both,
        figures: LISTS,
    },
    Experiment {
        id: "count",
        what: "how many there are of the 10,000",
        size: Size::Full,
        members: 1,
        before: Some(LISTED_10K),
        measured: Line("list --no-load --how=count-only --clients=64 --conns=16 --seconds=5"),
        who: Both,
        figures: COUNTS,
    },
    Experiment {
        id: "fan-out",
        what: "1000 watchers of one prefix on 1000 streams and 100 connections, 1 KiB, at saturation",
        size: Size::Quick,
        members: 1,
        before: None,
        measured: Line("watch --streams=1000 --watch-conns=100 --clients=16 --conns=16 --val-size=1024 --seconds=5"),
        who: Both,
        figures: &[
            (CpuPerOperation, Some(AtMost(1.0 / 6.0))),
            (PerSecond, Some(AtLeast(5.0))),
            (P99, None),
            (MemoryMax, None),
        ],
    },
    Experiment {
        id: "fan-out-moderate",
        what: "20,000 deliveries/s to 5000 streams on 100 connections",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line(
            "watch --streams=5000 --watch-conns=100 --clients=16 --conns=4 --rate=4 --val-size=1024 --seconds=10",
        ),
        who: Both,
        figures: MODERATE,
    },
    Experiment {
        id: "fan-out-connections",
        what: "20,000 deliveries/s to 1000 streams on 1000 connections",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line(
            "watch --streams=1000 --watch-conns=1000 --clients=16 --conns=4 --rate=20 --val-size=1024 --seconds=10",
        ),
        who: Both,
        figures: MODERATE,
    },
    Experiment {
        id: "fan-out-few-streams",
        what: "20,000 deliveries/s to 5000 watches on 10 streams",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line(
            "watch --streams=10 --watch-conns=10 --watches-per-stream=500 --ranges=1 --clients=16 --conns=4 --rate=4 \
                   --val-size=1024 --seconds=10",
        ),
        who: Both,
        figures: FEW_STREAMS,
    },
    Experiment {
        id: "fan-out-prefixes-0",
        what: "the same puts with nobody watching: what is left of the row below are deliveries",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line("put --clients=64 --conns=4 --rate=2000 --val-size=6144 --key-space=6000 --seconds=10"),
        who: BothAndEcho,
        figures: &[(CpuPerOperation, None), (P99, None)],
    },
    Experiment {
        id: "fan-out-prefixes",
        what: "180 prefix streams, 6 KiB with previous versions",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line(
            "watch --streams=180 --watch-conns=3 --ranges=60 --prev-kv --clients=64 --conns=4 --rate=2000 \
                   --val-size=6144 --seconds=10",
        ),
        who: Both,
        figures: FEW_STREAMS,
    },
    Experiment {
        id: "keepalive",
        what: "keep-alives, 100 clients on 10 connections",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line("keepalive --clients=100 --conns=10 --seconds=5"),
        who: BothAndEcho,
        figures: &[(PerSecond, Some(AtLeast(3.0))), (CpuPerOperation, None)],
    },
    Experiment {
        id: "stalled",
        what: "puts beside 1000 watch streams that nobody reads",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line("stalled --streams=1000 --watch-conns=100 --val-size=1024 --seconds=6"),
        who: Both,
        figures: &[(Tells(&WITH_WITHOUT), Some(Itself(1.1))), (Tells(&NOISE), None), (Tells(&RATE), None), (P99, None)],
    },
    Experiment {
        id: "watch-lag",
        what: "puts beside a watch that begins 200,000 revisions back",
        size: Size::Full,
        members: 1,
        before: None,
        measured: Line("lagging --revisions=200000 --val-size=1024 --seconds=6"),
        who: Both,
        figures: &[
            (Tells(&WITH_WITHOUT), Some(Itself(1.1))),
            (Tells(&CAUGHT_UP), None),
            (Tells(&RATE), None),
            (P99, None),
        ],
    },
    Experiment {
        id: "restart",
        what: "1,000,000 keys of 512 B, put twice and compacted",
        size: Size::Long,
        members: 1,
        before: None,
        measured: Restart,
        who: Both,
        figures: &[(Tells(&READY), Some(Itself(10.0))), (Tells(&DISK), Some(Itself(1.5)))],
    },
    Experiment {
        id: "large",
        what: "12 GiB of 4 KiB values beside 1 GiB, 1000 puts/s",
        size: Size::Long,
        members: 1,
        before: None,
        measured: Large,
        who: Ours,
        figures: &[
            (Tells(&LARGE_P99), Some(Itself(2.0))),
            (Tells(&LARGE_COMPACTION), Some(Itself(2.0))),
            (Tells(&LARGE_PAGE), Some(Itself(2.0))),
            (Tells(&LARGE_READY), Some(Itself(2.0))),
        ],
    },
    Experiment {
        id: "kube",
        what: "the model of Kubernetes: lag of watches and p99 of writes below 1 s, nothing failed",
        size: Size::Long,
        members: 1,
        before: None,
        measured: MostNodes,
        who: Both,
        figures: &[(Tells(&NODES), Some(AtLeast(3.0)))],
    },
    Experiment {
        id: "lease-flood",
        what: "node leases renewed for 10 minutes, 2000/s",
        size: Size::Long,
        members: 1,
        before: None,
        measured: Line("lease-flood --nodes=20000 --clients=256 --conns=32 --rate=2000 --seconds=600"),
        who: Both,
        figures: &[(WrittenPerByte, Some(AtMost(1.0))), (CpuPerOperation, None), (P99, None), (MemoryMax, None)],
    },
];

/// For who asks for one that is not there.
pub(crate) fn names() -> String {
    EXPERIMENTS.iter().map(|experiment| experiment.id).collect::<Vec<_>>().join(", ")
}
