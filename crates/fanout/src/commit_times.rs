//! When revisions were applied, as far as it is worth remembering.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tailwater_eventlog::Revision;

/// Moments that are kept: 64 KiB of them.
const MOMENTS_MAX: usize = 2048;
/// Moments lie at least so far apart.
const STEP: Duration = Duration::from_millis(20);

/// Revisions with the time at which they were reached, ascending: close together lately, further apart the longer ago.
#[derive(Debug, Default)]
pub(crate) struct CommitTimes {
    moments: Mutex<VecDeque<(Revision, Instant)>>,
}

impl CommitTimes {
    /// `revision` was reached at `at`.
    pub(crate) fn note(&self, revision: Revision, at: Instant) {
        let mut moments = self.moments.lock();
        if moments.back().is_some_and(|(last, since)| *last >= revision || at.saturating_duration_since(*since) < STEP)
        {
            return;
        }
        if moments.len() >= MOMENTS_MAX {
            thin(&mut moments, at);
        }
        moments.push_back((revision, at));
    }

    /// How long ago `revision` was applied, about; zero when that is not known.
    pub(crate) fn since(&self, revision: Revision, now: Instant) -> Duration {
        let moments = self.moments.lock();
        let at = moments.partition_point(|(reached, _)| *reached < revision);
        moments.get(at).map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at))
    }
}

/// Leaves moments as far apart as a 64th of their age: about 64 for each factor of e, so 2,048 are never too few.
fn thin(moments: &mut VecDeque<(Revision, Instant)>, now: Instant) {
    let mut thinned: VecDeque<(Revision, Instant)> = VecDeque::with_capacity(MOMENTS_MAX);
    for (index, moment) in moments.iter().enumerate() {
        let next = moments.get(index + 1);
        let is_close = |(_, before): &(Revision, Instant), (_, after): &(Revision, Instant)| {
            after.saturating_duration_since(*before) < now.saturating_duration_since(moment.1) / 64
        };
        if !thinned.back().zip(next).is_some_and(|(before, after)| is_close(before, after)) {
            thinned.push_back(*moment);
        }
    }
    *moments = thinned;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_known_in_bounded_memory() {
        let (times, start) = (CommitTimes::default(), Instant::now());
        let second = |n: u64| start + Duration::from_secs(n);
        for n in 1..=100_000 {
            times.note(Revision(i64::try_from(n).expect("small")), second(n));
        }
        assert!(times.moments.lock().len() <= MOMENTS_MAX);
        let ago = |revision| times.since(Revision(revision), second(100_000)).as_secs();
        assert_eq!((ago(100_000), ago(100_001)), (0, 0));
        assert!((980..=1000).contains(&ago(99_000)), "{}", ago(99_000));
        assert!((48_000..=50_000).contains(&ago(50_000)), "{}", ago(50_000));
        assert!((96_000..=99_999).contains(&ago(1)), "{}", ago(1));
    }
}
