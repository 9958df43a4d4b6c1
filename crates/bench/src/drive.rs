//! The loop that all workloads of requests share.
//!
//! Closed: a client sends its next request when it has the answer to the last. Open: requests are due at a fixed rate,
//! whatever becomes of those before, and are measured from when they were due; so a server that stalls for a second is
//! charged with everything that waited for that second, not with one request.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::load::{histogram, micros_between};

/// A closed loop that fails does not spin.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

const MINUTE: Duration = Duration::from_secs(60);

/// How requests leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Requests per second that are due, of all clients together; 0: a closed loop.
    pub(crate) rate: u64,
    /// Ends after so many requests.
    pub(crate) total: Option<u64>,
    /// Ends after this time.
    pub(crate) time: Duration,
}

/// Who sends requests, one at a time.
pub(crate) trait Client: Send + 'static {
    /// Sends the request with this number, which no other has, and tells how many bytes of keys and values it moved.
    fn request(&mut self, number: u64) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

/// What was measured. Times are microseconds.
pub(crate) struct Measured {
    /// From when a request was due (closed loop: sent) to its answer.
    pub(crate) latency: Histogram<u64>,
    /// From when it left to its answer: what the server and the way to it took.
    pub(crate) answer: Histogram<u64>,
    /// From when it could have left (it was due, and a client was free) to when it did: what this generator was behind.
    pub(crate) lateness: Histogram<u64>,
    /// `latency` by the minute in which a request was due, two digits; empty for a run that is not longer than one.
    pub(crate) by_minute: Vec<Histogram<u64>>,
    /// Keys and values.
    pub(crate) bytes: u64,
    pub(crate) failed: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) elapsed: Duration,
}

impl Measured {
    pub(crate) fn new() -> Self {
        Self {
            latency: histogram(),
            answer: histogram(),
            lateness: histogram(),
            by_minute: Vec::new(),
            bytes: 0,
            failed: 0,
            first_error: None,
            elapsed: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.latency.add(other.latency)?;
        self.answer.add(other.answer)?;
        self.lateness.add(other.lateness)?;
        for (minute, theirs) in other.by_minute.into_iter().enumerate() {
            self.minute(minute).add(theirs)?;
        }
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.first_error = self.first_error.take().or(other.first_error);
        Ok(())
    }

    fn minute(&mut self, minute: usize) -> &mut Histogram<u64> {
        if self.by_minute.len() <= minute {
            self.by_minute.resize_with(minute + 1, || Histogram::new(2).expect("two digits are valid"));
        }
        &mut self.by_minute[minute]
    }
}

/// Sends requests at this pace; `done` counts the answered ones as they come.
pub(crate) async fn drive<C: Client>(clients: Vec<C>, pace: Pace, done: &Arc<AtomicU64>) -> anyhow::Result<Measured> {
    let next = Arc::new(AtomicU64::new(0));
    // One for all: a client's own three histograms are half a MiB, and touching those of 256 clients for the first time
    // held the generator up by 130 ms.
    let all = Arc::new(Mutex::new(Measured::new()));
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(one(client, pace, begin, Arc::clone(&next), Arc::clone(done), Arc::clone(&all)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let elapsed = begin.elapsed();
    let measured = Arc::into_inner(all).context("all clients have ended")?.into_inner();
    Ok(Measured { elapsed, ..measured })
}

async fn one<C: Client>(
    mut client: C,
    pace: Pace,
    begin: Instant,
    next: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    measured: Arc<Mutex<Measured>>,
) -> anyhow::Result<()> {
    let mut free = begin;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = match pace.rate {
            0 => Instant::now(),
            rate => begin + Duration::from_nanos(1_000_000_000 / rate * number),
        };
        if pace.total.is_some_and(|total| number >= total) || due >= begin + pace.time {
            return Ok(());
        }
        if pace.rate > 0 {
            tokio::time::sleep_until(due.into()).await;
        }
        let left = Instant::now();
        let answer = client.request(number).await;
        let answered = Instant::now();
        let failed = answer.is_err();
        {
            let mut measured = measured.lock();
            if pace.rate > 0 {
                measured.lateness.record(micros_between(due.max(free), left))?;
            }
            match answer {
                Ok(bytes) => {
                    measured.latency.record(micros_between(due, answered))?;
                    measured.answer.record(micros_between(left, answered))?;
                    if pace.time > MINUTE {
                        let minute = due.saturating_duration_since(begin).as_secs() / MINUTE.as_secs();
                        measured.minute(usize::try_from(minute)?).record(micros_between(due, answered))?;
                    }
                    measured.bytes += bytes;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    measured.failed += 1;
                    measured.first_error.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
        if failed && pace.rate == 0 {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
        free = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers at once, but for one request that holds everything up.
    struct Stalls(Arc<tokio::sync::Mutex<()>>);

    impl Client for Stalls {
        async fn request(&mut self, number: u64) -> anyhow::Result<u64> {
            let held = self.0.lock().await;
            if number == 50 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            drop(held);
            anyhow::ensure!(number != 7, "seven");
            Ok(1)
        }
    }

    #[tokio::test]
    async fn an_open_loop_charges_a_stall_to_all_that_were_due() {
        let stalls = |clients: usize| {
            let lock = Arc::default();
            (0..clients).map(|_| Stalls(Arc::clone(&lock))).collect::<Vec<_>>()
        };
        let pace = |rate| Pace { rate, total: Some(500), time: Duration::from_secs(60) };
        let done = Arc::default();
        let open = drive(stalls(4), pace(1000), &done).await.expect("it runs");
        // About a fifth of a second of requests waited.
        assert!(open.latency.value_at_quantile(0.8) > 20_000, "{}", open.latency.value_at_quantile(0.8));
        assert!(open.answer.value_at_quantile(0.8) < 20_000, "only those in flight took long themselves");
        assert_eq!((open.failed, open.bytes, done.load(Ordering::Relaxed)), (1, 499, 499));
        assert_eq!(open.first_error.as_deref(), Some("seven"));
        let closed = drive(stalls(1), pace(0), &done).await.expect("it runs");
        assert!(closed.latency.value_at_quantile(0.8) < 20_000);
        assert_eq!(closed.latency.len(), 499);
    }
}
