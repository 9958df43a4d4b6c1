//! The watchers of a stream by id.
//!
//! Ids nearly always come in ascending order, and a stream may have a million: so they lie side by side in one sorted
//! list, and only those that come out of order wait in a tree until there are enough of them to be merged.

use std::collections::BTreeMap;
use std::ops::Index;

/// Below so many out of order, or gaps, nothing is moved.
const SLACK_MIN: usize = 32;

/// A map from watch ids, in order.
#[derive(Debug)]
pub(super) struct Watchers<T> {
    /// Ascending; `None`: removed.
    sorted: Vec<(i64, Option<T>)>,
    gaps: usize,
    /// Disjoint from `sorted`, gaps included.
    others: BTreeMap<i64, T>,
}

impl<T> Default for Watchers<T> {
    fn default() -> Self {
        Self { sorted: Vec::new(), gaps: 0, others: BTreeMap::new() }
    }
}

impl<T> Watchers<T> {
    fn find(&self, watch_id: i64) -> Result<usize, usize> {
        self.sorted.binary_search_by_key(&watch_id, |(id, _)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len() - self.gaps + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, watch_id: i64) -> Option<&T> {
        match self.find(watch_id) {
            Ok(at) => self.sorted[at].1.as_ref(),
            Err(_) => self.others.get(&watch_id),
        }
    }

    pub(super) fn get_mut(&mut self, watch_id: i64) -> Option<&mut T> {
        match self.find(watch_id) {
            Ok(at) => self.sorted[at].1.as_mut(),
            Err(_) => self.others.get_mut(&watch_id),
        }
    }

    pub(super) fn contains(&self, watch_id: i64) -> bool {
        self.get(watch_id).is_some()
    }

    /// Adds one whose id is not in use.
    pub(super) fn insert(&mut self, watch_id: i64, watcher: T) {
        match self.find(watch_id) {
            Ok(at) => {
                self.sorted[at].1 = Some(watcher);
                self.gaps -= 1;
            }
            Err(at) if at == self.sorted.len() => {
                // By an eighth rather than by doubling: half of the memory would lie idle.
                if self.sorted.len() == self.sorted.capacity() {
                    self.sorted.reserve_exact(1 + self.sorted.len() / 8);
                }
                self.sorted.push((watch_id, Some(watcher)));
            }
            Err(_) => {
                self.others.insert(watch_id, watcher);
                if self.others.len() > SLACK_MIN + self.sorted.len() / 8 {
                    self.merge();
                }
            }
        }
    }

    pub(super) fn remove(&mut self, watch_id: i64) -> Option<T> {
        let Ok(at) = self.find(watch_id) else { return self.others.remove(&watch_id) };
        let removed = self.sorted[at].1.take();
        self.gaps += usize::from(removed.is_some());
        if self.gaps > SLACK_MIN + self.sorted.len() / 2 {
            self.merge();
        }
        removed
    }

    fn merge(&mut self) {
        let mut merged = Vec::with_capacity(self.len());
        let mut others = std::mem::take(&mut self.others).into_iter().peekable();
        for (id, watcher) in self.sorted.drain(..) {
            let Some(watcher) = watcher else { continue };
            while let Some((other, watcher)) = others.next_if(|(other, _)| *other < id) {
                merged.push((other, Some(watcher)));
            }
            merged.push((id, Some(watcher)));
        }
        merged.extend(others.map(|(id, watcher)| (id, Some(watcher))));
        (self.sorted, self.gaps) = (merged, 0);
    }

    /// In any order.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.sorted.iter().filter_map(|(_, watcher)| watcher.as_ref()).chain(self.others.values())
    }

    /// From an id on, in order.
    pub(super) fn range_from(&mut self, from: i64) -> impl Iterator<Item = (i64, &mut T)> {
        if !self.others.is_empty() {
            self.merge();
        }
        let at = self.sorted.partition_point(|(id, _)| *id < from);
        self.sorted[at..].iter_mut().filter_map(|(id, watcher)| Some((*id, watcher.as_mut()?)))
    }

    /// Takes out all, in any order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (i64, T)> {
        let all = std::mem::take(self);
        all.sorted.into_iter().filter_map(|(id, watcher)| Some((id, watcher?))).chain(all.others)
    }
}

impl<T> Index<i64> for Watchers<T> {
    type Output = T;

    fn index(&self, watch_id: i64) -> &T {
        self.get(watch_id).expect("only the ids of watchers are asked for")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_in_order(steps in prop::collection::vec((0i64..120, any::<bool>(), any::<bool>()), 0..600)) {
            let (mut watchers, mut model) = (Watchers::default(), BTreeMap::new());
            for (i, (id, adds, looks)) in steps.into_iter().enumerate() {
                if !adds {
                    prop_assert_eq!(watchers.remove(id), model.remove(&id));
                } else if !watchers.contains(id) {
                    watchers.insert(id, i);
                    model.insert(id, i);
                }
                prop_assert_eq!((watchers.len(), watchers.get(id)), (model.len(), model.get(&id)));
                if looks {
                    let seen: Vec<_> = watchers.range_from(id).map(|(id, i)| (id, *i)).collect();
                    prop_assert_eq!(seen, model.range(id..).map(|(id, i)| (*id, *i)).collect::<Vec<_>>());
                }
            }
            let mut values: Vec<_> = watchers.values().copied().collect();
            values.sort_unstable();
            let mut expected: Vec<_> = model.values().copied().collect();
            expected.sort_unstable();
            prop_assert_eq!(values, expected);
            let mut all: Vec<_> = watchers.drain().collect();
            all.sort_unstable();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            prop_assert!(watchers.is_empty());
        }
    }
}
