//! Which watchers a key concerns.
//!
//! Watchers of one key are in a map. Watchers of ranges are in a treap ordered by the ranges' bounds,
//! in which each node knows the furthest end below it, so that looking up a key costs O(log n) for
//! each distinct range that contains it. Watchers of equal ranges share a node: the usual case is
//! many clients with the same prefix.
//!
//! The treap's priorities are a fixed sequence, not random: a simulated run must repeat exactly, and
//! no client can choose them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use types::{KeyRange, RangeEnd};

/// Where a watcher is kept.
pub(crate) type Slot = usize;

/// Where a range ends; `Unbounded` is above every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Unbounded,
}

impl End {
    fn is_beyond(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < end.as_ref(),
            End::Unbounded => true,
        }
    }
}

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    /// The furthest end in the subtree.
    furthest: End,
    watchers: BTreeSet<Slot>,
    priority: u64,
    left: Option<usize>,
    right: Option<usize>,
}

/// Watchers by what they watch.
#[derive(Debug, Default)]
pub(crate) struct WatcherIndex {
    keys: BTreeMap<Bytes, BTreeSet<Slot>>,
    nodes: Vec<Node>,
    free: Vec<usize>,
    root: Option<usize>,
    drawn: u64,
}

impl WatcherIndex {
    pub(crate) fn insert(&mut self, range: &KeyRange, watcher: Slot) {
        let Some(end) = end_of(range) else {
            self.keys.entry(range.start.clone()).or_default().insert(watcher);
            return;
        };
        if let Some(at) = self.find(&range.start, &end) {
            self.nodes[at].watchers.insert(watcher);
            return;
        }
        let (low, high) = self.split(self.root, &range.start, &end);
        let node = self.allocate(range.start.clone(), end, watcher);
        let low = self.merge(low, Some(node));
        self.root = self.merge(low, high);
    }

    pub(crate) fn remove(&mut self, range: &KeyRange, watcher: Slot) {
        let Some(end) = end_of(range) else {
            if let Some(watchers) = self.keys.get_mut(&range.start) {
                watchers.remove(&watcher);
                if watchers.is_empty() {
                    self.keys.remove(&range.start);
                }
            }
            return;
        };
        let Some(at) = self.find(&range.start, &end) else { return };
        self.nodes[at].watchers.remove(&watcher);
        if self.nodes[at].watchers.is_empty() {
            self.root = self.without(self.root, &range.start, &end);
            self.free.push(at);
        }
    }

    /// Shows every watcher that `key` concerns; each once.
    pub(crate) fn stab(&self, key: &[u8], visit: &mut impl FnMut(Slot)) {
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().copied().for_each(&mut *visit);
        }
        let mut open: Vec<usize> = self.root.into_iter().collect();
        while let Some(at) = open.pop() {
            let node = &self.nodes[at];
            if !node.furthest.is_beyond(key) {
                continue;
            }
            open.extend(node.left);
            if node.start.as_ref() <= key {
                if node.end.is_beyond(key) {
                    node.watchers.iter().copied().for_each(&mut *visit);
                }
                open.extend(node.right);
            }
        }
    }

    fn find(&self, start: &Bytes, end: &End) -> Option<usize> {
        let mut at = self.root;
        while let Some(here) = at {
            let node = &self.nodes[here];
            at = match (start, end).cmp(&(&node.start, &node.end)) {
                std::cmp::Ordering::Equal => return Some(here),
                std::cmp::Ordering::Less => node.left,
                std::cmp::Ordering::Greater => node.right,
            };
        }
        None
    }

    fn allocate(&mut self, start: Bytes, end: End, watcher: Slot) -> usize {
        self.drawn = self.drawn.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let node = Node {
            start,
            furthest: end.clone(),
            end,
            watchers: BTreeSet::from([watcher]),
            priority: scramble(self.drawn),
            left: None,
            right: None,
        };
        match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Divides a subtree into the nodes below the bounds and the others.
    fn split(
        &mut self,
        tree: Option<usize>,
        start: &Bytes,
        end: &End,
    ) -> (Option<usize>, Option<usize>) {
        let Some(at) = tree else { return (None, None) };
        let node = &self.nodes[at];
        if (&node.start, &node.end) < (start, end) {
            let (low, high) = self.split(node.right, start, end);
            self.nodes[at].right = low;
            self.refresh(at);
            (Some(at), high)
        } else {
            let (low, high) = self.split(node.left, start, end);
            self.nodes[at].left = high;
            self.refresh(at);
            (low, Some(at))
        }
    }

    /// Joins two subtrees, all of the first below all of the second.
    fn merge(&mut self, low: Option<usize>, high: Option<usize>) -> Option<usize> {
        let (Some(a), Some(b)) = (low, high) else { return low.or(high) };
        if self.nodes[a].priority > self.nodes[b].priority {
            self.nodes[a].right = self.merge(self.nodes[a].right, high);
            self.refresh(a);
            Some(a)
        } else {
            self.nodes[b].left = self.merge(low, self.nodes[b].left);
            self.refresh(b);
            Some(b)
        }
    }

    /// The subtree without the node of these bounds, which is in it.
    fn without(&mut self, tree: Option<usize>, start: &Bytes, end: &End) -> Option<usize> {
        let at = tree?;
        let node = &self.nodes[at];
        let (left, right) = (node.left, node.right);
        match (start, end).cmp(&(&node.start, &node.end)) {
            std::cmp::Ordering::Equal => return self.merge(left, right),
            std::cmp::Ordering::Less => self.nodes[at].left = self.without(left, start, end),
            std::cmp::Ordering::Greater => self.nodes[at].right = self.without(right, start, end),
        }
        self.refresh(at);
        Some(at)
    }

    fn refresh(&mut self, at: usize) {
        let node = &self.nodes[at];
        let below = [node.left, node.right].into_iter().flatten();
        let furthest = below.map(|child| &self.nodes[child].furthest).max();
        let furthest = furthest.map_or(&node.end, |furthest| furthest.max(&node.end)).clone();
        self.nodes[at].furthest = furthest;
    }
}

/// Where a range ends, if it is not a single key.
fn end_of(range: &KeyRange) -> Option<End> {
    match &range.end {
        RangeEnd::Single => None,
        RangeEnd::Unbounded => Some(End::Unbounded),
        RangeEnd::Before(end) => Some(End::Before(end.clone())),
    }
}

/// The finaliser of SplitMix64.
fn scramble(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'e', 0..3).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        let end = prop_oneof![
            Just(RangeEnd::Single),
            Just(RangeEnd::Unbounded),
            short().prop_map(RangeEnd::Before)
        ];
        (short(), end).prop_map(|(start, end)| KeyRange { start, end })
    }

    proptest! {
        #[test]
        fn a_key_finds_exactly_the_watchers_whose_range_contains_it(
            ranges in prop::collection::vec(range(), 1..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            again in prop::collection::vec(range(), 0..20),
        ) {
            let mut index = WatcherIndex::default();
            let mut known = BTreeMap::new();
            for (slot, range) in ranges.iter().enumerate() {
                index.insert(range, slot);
                known.insert(slot, range);
            }
            for slot in &removed {
                let slot = slot.index(ranges.len());
                index.remove(&ranges[slot], slot);
                known.remove(&slot);
            }
            for (slot, range) in again.iter().enumerate() {
                index.insert(range, 100 + slot);
                known.insert(100 + slot, range);
            }
            for key in ["", "a", "ab", "b", "ba", "c", "cd", "d", "dd", "e"] {
                let mut found = Vec::new();
                index.stab(key.as_bytes(), &mut |slot| found.push(slot));
                found.sort_unstable();
                let expected = known.iter().filter(|(_, range)| range.contains(key.as_bytes()));
                prop_assert_eq!(found, expected.map(|(slot, _)| *slot).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn looking_up_a_key_among_many_ranges_visits_few_nodes() {
        let mut index = WatcherIndex::default();
        for number in 0..100_000usize {
            let (start, end) = (format!("{number:06}"), format!("{:06}", number + 1));
            index.insert(&KeyRange::from_wire(start.into(), end.into()), number);
        }
        let mut depth = 0;
        let mut level: Vec<usize> = index.root.into_iter().collect();
        while !level.is_empty() {
            depth += 1;
            level = level
                .into_iter()
                .flat_map(|at| [index.nodes[at].left, index.nodes[at].right])
                .flatten()
                .collect();
        }
        assert!(depth < 60, "the tree is {depth} deep");
        let mut found = Vec::new();
        index.stab(b"054321x", &mut |slot| found.push(slot));
        assert_eq!(found, [54321]);
    }
}
