//! Leases that expire: what is deleted, in which order, and what the lease calls say afterwards.

use std::sync::atomic::Ordering;

use tailwater_api::etcdserverpb as pb;

use crate::operation::Operation;
use crate::run::Run;

/// (id, TTL in seconds) of the leases; far enough apart that they expire one after the other on both servers.
const LEASES: [(i64, i64); 3] = [(1, 2), (2, 4), (3, 60)];
/// Keys and their leases; a key's last put counts, and a lease of 0 takes it off.
const PUTS: [(&str, i64); 7] = [("z", 1), ("a", 1), ("m", 2), ("b", 1), ("m", 1), ("b", 0), ("y", 2)];

/// Lets leases expire on both endpoints and compares everything.
///
/// # Errors
/// A [`crate::run::Difference`], or what kept the run from going on.
pub(crate) async fn run(reference: &str, subject: &str) -> anyhow::Result<()> {
    let mut run = Run::start(reference, subject).await?;
    for (id, ttl) in LEASES {
        run.step(0, &Operation::Grant(pb::LeaseGrantRequest { id, ttl })).await?;
    }
    for (key, lease) in PUTS {
        let put = pb::PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() };
        run.step(0, &Operation::Put(put)).await?;
    }
    run.settle().await?;
    // Leases 1 and 2, each with keys: one revision for each.
    for expired in [1, 2] {
        run.at.current += 1;
        for side in [&run.reference, &run.subject] {
            side.bound.store(run.at.current, Ordering::SeqCst);
        }
        run.settle().await?;
        for operation in [
            Operation::TimeToLive { id: expired, keys: true },
            Operation::KeepAlive(expired),
            Operation::Revoke(expired),
            Operation::Leases,
            Operation::Range(pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }),
        ] {
            run.step(1, &operation).await?;
        }
    }
    run.settle().await
}
