//! Puts at a fixed rate, and as many as a server takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tailwater_api::etcdserverpb as pb;
use tokio::task::JoinSet;

use crate::load::{Kv, connect, histogram, kv, micros, value};

/// Writers, each of which waits for its answer before its next put; and their connections.
const SENDERS: u64 = 256;
const CONNECTIONS: usize = 32;

/// Where puts go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: String,
    /// Keys are `{prefix}{number:08}`, in a scattered order.
    pub(crate) prefix: &'static str,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
}

/// What became of them.
pub(crate) struct Measured {
    /// Microseconds from when a put should have left to its answer.
    pub(crate) latency: Histogram<u64>,
    /// Microseconds from when a put left to its answer: what the servers and the way to them took.
    pub(crate) answer: Histogram<u64>,
    /// Microseconds from when a put could have left (it was due, and its sender had the answer to the one before) to when
    /// it did: what the generator itself was behind.
    pub(crate) lateness: Histogram<u64>,
    /// First error, and how many.
    pub(crate) failed: u64,
}

impl Measured {
    fn new() -> Self {
        Self { latency: histogram(), answer: histogram(), lateness: histogram(), failed: 0 }
    }
}

impl Target {
    /// The key of the put with that number; consecutive numbers go far from each other.
    pub(crate) fn key(&self, number: u64) -> Bytes {
        // An odd multiplier that is prime visits each key once before any twice, for any number of keys that it does
        // not divide.
        format!("{}{:08}", self.prefix, number.wrapping_mul(7_919) % self.keys).into()
    }

    async fn clients(&self) -> anyhow::Result<Vec<Kv>> {
        let channels = connect(&self.endpoint, CONNECTIONS).await?;
        Ok((0..SENDERS).map(|sender| kv(&channels[usize::try_from(sender).expect("few") % CONNECTIONS])).collect())
    }

    async fn put(&self, client: &mut Kv, number: u64) -> Result<(), tonic::Status> {
        let put = pb::PutRequest { key: self.key(number), value: value(self.value_bytes), ..Default::default() };
        client.put(put).await.map(|_| ())
    }

    /// Puts per second of as many senders as [`Target::open_loop`] has, for `time`.
    pub(crate) async fn greatest_rate(&self, time: Duration) -> anyhow::Result<u64> {
        let begin = Instant::now();
        let mut senders = JoinSet::new();
        for (sender, mut client) in (0..SENDERS).zip(self.clients().await?) {
            let target = self.clone();
            senders.spawn(async move {
                let mut count = 0u64;
                while begin.elapsed() < time {
                    target.put(&mut client, count * SENDERS + sender).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
        let mut count = 0;
        while let Some(done) = senders.join_next().await {
            count += done??;
        }
        Ok(count * 1000 / u64::try_from(begin.elapsed().as_millis())?.max(1))
    }

    /// Writes `count` puts as fast as they are taken.
    pub(crate) async fn fill(&self, count: u64) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU64::new(0));
        let mut senders = JoinSet::new();
        for mut client in self.clients().await? {
            let (target, next) = (self.clone(), Arc::clone(&next));
            senders.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(());
                    }
                    target.put(&mut client, number).await?;
                }
            });
        }
        while let Some(done) = senders.join_next().await {
            done??;
        }
        Ok(())
    }

    /// `rate` puts per second for `time`, whatever becomes of those before.
    pub(crate) async fn open_loop(&self, rate: u64, time: Duration) -> anyhow::Result<Measured> {
        let count = rate * u64::try_from(time.as_millis())? / 1000;
        let begin = Instant::now();
        let mut senders = JoinSet::new();
        for (sender, client) in (0..SENDERS).zip(self.clients().await?) {
            senders.spawn(self.clone().send(client, sender, rate, count, begin));
        }
        let mut all = Measured::new();
        while let Some(done) = senders.join_next().await {
            let one = done??;
            all.latency.add(one.latency)?;
            all.answer.add(one.answer)?;
            all.lateness.add(one.lateness)?;
            all.failed += one.failed;
        }
        Ok(all)
    }

    async fn send(
        self,
        mut client: Kv,
        sender: u64,
        rate: u64,
        count: u64,
        begin: Instant,
    ) -> anyhow::Result<Measured> {
        let mut measured = Measured::new();
        let mut free = begin;
        for number in (sender..count).step_by(usize::try_from(SENDERS)?) {
            let due = begin + Duration::from_nanos(1_000_000_000 / rate.max(1) * number);
            tokio::time::sleep_until(due.into()).await;
            let left = Instant::now();
            measured.lateness.record(micros(due.max(free)))?;
            match self.put(&mut client, number).await {
                Ok(()) => {
                    measured.latency.record(micros(due))?;
                    measured.answer.record(micros(left))?;
                }
                Err(_) => measured.failed += 1,
            }
            free = Instant::now();
        }
        Ok(measured)
    }
}
