//! Bounding a bulk flow in bytes per second.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Shared by the streams of one kind: together they pass so many bytes per second, with bursts of about a message each.
#[derive(Debug)]
pub(super) struct ByteRate {
    /// 0: without a bound.
    bytes_per_second: u64,
    /// When what was passed so far will have taken its time.
    free_at: Mutex<Option<Instant>>,
}

impl ByteRate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Counts `bytes` and says how long to wait before they go out.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_second;
        let mut free_at = self.free_at.lock();
        let begin = free_at.filter(|free_at| *free_at > now).unwrap_or(now);
        *free_at = Some(begin + Duration::from_nanos(nanos));
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_the_rate_and_time_that_passed_is_not_saved_up() {
        let rate = ByteRate::new(1000);
        let now = Instant::now();
        assert_eq!(rate.take(500, now), Duration::ZERO);
        assert_eq!(rate.take(500, now), Duration::from_millis(500));
        assert_eq!(rate.take(500, now + Duration::from_millis(200)), Duration::from_millis(800));
        let later = now + Duration::from_secs(60);
        assert_eq!(rate.take(100, later), Duration::ZERO);
        assert_eq!(rate.take(100, later), Duration::from_millis(100));
        assert_eq!(ByteRate::new(0).take(1 << 40, now), Duration::ZERO);
    }
}
