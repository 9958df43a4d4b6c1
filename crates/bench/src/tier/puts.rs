//! Puts at a fixed rate, and as many as a server takes.

use std::sync::Arc;
use std::time::Duration;

use crate::drive::{Measured, Pace, drive};
use crate::load::connect;
use crate::workload::writes::{Put, Writer};

/// Writers, each of which waits for its answer before its next put; and their connections.
const SENDERS: usize = 256;
const CONNECTIONS: usize = 32;
/// A store is filled within this time, or something is wrong.
const FILL_MAX: Duration = Duration::from_secs(3600);

/// Where puts go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: String,
    /// Keys are `{prefix}{number:08}`, in a scattered order.
    pub(crate) prefix: &'static str,
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
}

impl Target {
    async fn run(&self, pace: Pace) -> anyhow::Result<Measured> {
        let channels = connect(&self.endpoint, CONNECTIONS).await?;
        let put =
            Put { val_size: self.value_bytes, key_space: self.keys, prefix: self.prefix.to_owned(), sequential: false };
        let writer = Writer::new(&channels[0], put, None);
        let writers = (0..SENDERS).map(|at| writer.on(&channels[at % CONNECTIONS])).collect();
        drive(writers, pace, &Arc::default()).await
    }

    /// Puts per second of as many senders as [`Target::open_loop`] has, for `time`.
    pub(crate) async fn greatest_rate(&self, time: Duration) -> anyhow::Result<u64> {
        let measured = self.run(Pace { rate: 0, total: None, time }).await?;
        let count = none_failed(measured)?.latency.len();
        Ok(count * 1000 / u64::try_from(time.as_millis())?.max(1))
    }

    /// Writes `count` puts as fast as they are taken.
    pub(crate) async fn fill(&self, count: u64) -> anyhow::Result<()> {
        none_failed(self.run(Pace { rate: 0, total: Some(count), time: FILL_MAX }).await?).map(drop)
    }

    /// `rate` puts per second for `time`, whatever becomes of those before.
    pub(crate) async fn open_loop(&self, rate: u64, time: Duration) -> anyhow::Result<Measured> {
        self.run(Pace { rate: rate.max(1), total: None, time }).await
    }
}

fn none_failed(measured: Measured) -> anyhow::Result<Measured> {
    anyhow::ensure!(measured.failed == 0, "puts failed: {}", measured.first_error.unwrap_or_default());
    Ok(measured)
}
