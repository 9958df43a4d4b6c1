//! Several members under load and faults, seen through the public API only.
//!
//! Clients write and read a few keys through all members while processes are killed and paused, links between members
//! are held or cut, and members are replaced. Everything that clients do and are told is recorded, and
//! in the end checked: by the oracles in [`oracle`] against the log that the members have, and by [`porcupine`].
//!
//! * `CLUSTER_REFERENCE=1` runs the same tests on members of a real etcd (`ETCD`, or `etcd` on PATH): they must pass
//!   there too.
//! * `ACCEPTANCE=1` runs the full lengths: ten minutes of each kind of fault (`CLUSTER_MINUTES` changes the ten).
//! * `SEED=n` repeats the clients' choices, though not the timing.
//!
//! The links between members go through proxies; see [`tailwater_tests::cluster::Links`].

mod catch_up;
mod disk;
mod faults;
mod history;
mod leader_loss;
mod leases;
mod membership;
mod oracle;
mod planted;
mod porcupine;
mod run;
mod selftest;
mod stale;
mod watchers;
mod workload;
