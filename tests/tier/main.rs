//! Members, fanouts and relays as processes of their own, seen through public clients.
//!
//! * `ACCEPTANCE=1` runs the full counts of issue 4; `TIER_ROUNDS=n` another number of kills.
//! * `TIER=members` puts plain members in the place of fanouts, `TIER=etcd` members of a real etcd (`ETCD`, or `etcd` on
//!   PATH): what is true of fanouts in these tests is true there too, but for what only fanouts can do, which is left out.
//! * `SEED=n` repeats the choices, though not the timing.

mod behind;
mod client;
mod consensus;
mod exact;
mod experiments;
mod kills;
mod load;
mod region;
mod run;
mod scope;
mod start;
mod watchers;
