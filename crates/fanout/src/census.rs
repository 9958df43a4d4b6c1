//! Watchers counted by prefix, for whoever looks at this node. There may be a million groups, so they are looked at a
//! part at a time, on a thread of its own, and only while somebody asks.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::core::Core;
use crate::group::{KeyView, Kind, SharedGroup};

/// Prefixes that are told.
const PREFIXES_MAX: usize = 16;
/// Prefixes that are counted apart; beyond it those with fewer watchers are forgotten, half of them at a time.
const COUNTED_MAX: usize = 1024;
/// What is longer counts for its beginning.
const PREFIX_BYTES_MAX: usize = 256;
/// Groups that are taken under the registry's lock at once: some tens of microseconds of it.
const PART_GROUPS: usize = 4096;
/// Between two parts: a million groups cost a hundredth of a CPU.
const PART_PAUSE: Duration = Duration::from_millis(100);
/// Between two counts.
const PAUSE: Duration = Duration::from_secs(1);

/// Watchers whose keys all begin alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixLoad {
    /// The longest beginning that the keys of the watched range share, cut at 256 bytes. Of a single key: up to its last
    /// slash.
    pub prefix: Bytes,
    /// How many watch such a range.
    pub watchers: u64,
}

/// The last count, and whether another one is wanted.
#[derive(Debug, Default)]
pub(crate) struct Census {
    told: Mutex<Vec<PrefixLoad>>,
    wanted: AtomicBool,
}

impl Census {
    /// The prefixes with most watchers as they were counted last, the most first; they are counted anew soon.
    pub(crate) fn prefixes(&self) -> Vec<PrefixLoad> {
        self.wanted.store(true, Ordering::Relaxed);
        self.told.lock().clone()
    }

    /// Counts while somebody asks, until the fanout has stopped.
    pub(crate) fn run(&self, core: &Core) {
        while !core.is_stopped() {
            if self.wanted.swap(false, Ordering::Relaxed) {
                self.count(core, || std::thread::sleep(PART_PAUSE));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One count; `pause` is called between two parts.
    fn count(&self, core: &Core, pause: impl Fn()) {
        let mut counts = Counts::default();
        let mut next = 0;
        let mut part: Vec<SharedGroup> = Vec::new();
        loop {
            let is_last = core.registry.lock().part(&mut next, PART_GROUPS, &mut part);
            // Counted without the lock, which the tail thread wants.
            for group in part.drain(..) {
                counts.add(shared_prefix(group.key()), group.watchers.load(Ordering::Relaxed).into());
            }
            if is_last || core.is_stopped() {
                break;
            }
            pause();
        }
        *self.told.lock() = counts.most();
    }
}

/// Counts by prefix, bounded.
#[derive(Debug, Default)]
struct Counts {
    by_prefix: BTreeMap<Box<[u8]>, u64>,
}

impl Counts {
    fn add(&mut self, prefix: &[u8], watchers: u64) {
        match self.by_prefix.get_mut(prefix) {
            Some(count) => *count += watchers,
            None => {
                if self.by_prefix.len() >= COUNTED_MAX {
                    self.forget_half();
                }
                self.by_prefix.insert(prefix.into(), watchers);
            }
        }
    }

    fn forget_half(&mut self) {
        let mut sorted: Vec<_> = mem::take(&mut self.by_prefix).into_iter().collect();
        sorted.sort_by_key(|(_, watchers)| std::cmp::Reverse(*watchers));
        sorted.truncate(COUNTED_MAX / 2);
        self.by_prefix = sorted.into_iter().collect();
    }

    fn most(self) -> Vec<PrefixLoad> {
        let mut loads: Vec<_> = self.by_prefix.into_iter().map(|(prefix, watchers)| (watchers, prefix)).collect();
        loads.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
        loads.truncate(PREFIXES_MAX);
        loads.into_iter().map(|(watchers, prefix)| PrefixLoad { prefix: prefix.into_vec().into(), watchers }).collect()
    }
}

/// What all keys of a range begin with, as [`PrefixLoad`] says it.
fn shared_prefix(key: KeyView<'_>) -> &[u8] {
    let (start, end) = key.ends();
    let len = match key.kind() {
        Kind::Exact => start.iter().rposition(|byte| *byte == b'/').map_or(start.len(), |at| at + 1),
        Kind::Prefix => start.len(),
        Kind::From => 0,
        Kind::Span => start.iter().zip(end.unwrap_or_default()).take_while(|(a, b)| a == b).count(),
    };
    &start[..len.min(PREFIX_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use tailwater_eventlog::KeyRange;

    use super::*;
    use crate::WatchFilter;
    use crate::group::GroupKey;

    #[test]
    fn a_range_counts_for_what_its_keys_share() {
        let long = vec![b'x'; 1000];
        let cases = [
            (KeyRange::Key("/a/b/c".into()), &b"/a/b/"[..]),
            (KeyRange::Key("abc".into()), b"abc"),
            (KeyRange::Span("/a/".into(), "/a0".into()), b"/a/"),
            (KeyRange::Span("/a/b".into(), "/a/x".into()), b"/a/"),
            (KeyRange::Span("b".into(), "".into()), b""),
            (KeyRange::From("/a".into()), b""),
            (KeyRange::all(), b""),
            (KeyRange::Key(long.clone().into()), &long[..PREFIX_BYTES_MAX]),
        ];
        for (range, prefix) in cases {
            let key = GroupKey::new(&range, WatchFilter::default(), false);
            assert_eq!(shared_prefix(key.view()), prefix, "{range:?}");
        }
    }

    #[test]
    fn counts_are_bounded_and_keep_the_largest() {
        let mut counts = Counts::default();
        counts.add(b"most", 1000);
        for n in 0..100_000_u32 {
            counts.add(&n.to_be_bytes(), 1);
            assert!(counts.by_prefix.len() <= COUNTED_MAX);
        }
        counts.add(b"late", 500);
        counts.add(b"most", 1);
        let most = counts.most();
        assert_eq!(most.len(), PREFIXES_MAX);
        assert_eq!(most[0], PrefixLoad { prefix: "most".into(), watchers: 1001 });
        assert_eq!(most[1], PrefixLoad { prefix: "late".into(), watchers: 500 });
    }
}
