//! Where each live entry lies: 12 bytes per entry, and one record per change of leader.

use std::collections::VecDeque;

use types::{LogIndex, MemberId, Term};

use crate::record::LogId;

/// Where an entry's record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) payload_len: u32,
}

/// The entries of one leadership: from this index on, until the next run.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    term: Term,
    node: MemberId,
}

/// The live entries, a contiguous range of indexes.
///
/// Invariants: no index is above `limits::INDEX_MAX`, so sums here cannot overflow; the runs start at or before `first`, ascend, and none starts beyond the last entry.
#[derive(Debug, Default)]
pub(crate) struct LogPositions {
    /// The index of the first position; meaningless while there is none.
    first: u64,
    positions: VecDeque<Position>,
    runs: VecDeque<Run>,
}

impl LogPositions {
    /// The first and last index, if there are entries.
    pub(crate) fn range(&self) -> Option<(LogIndex, LogIndex)> {
        let count = self.positions.len() as u64;
        (count > 0).then(|| (LogIndex(self.first), LogIndex(self.first + count - 1)))
    }

    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Adds the entry after the last one.
    pub(crate) fn push(&mut self, id: LogId, position: Position) {
        if self.positions.is_empty() {
            self.first = id.index.0;
            self.runs.clear();
        }
        let expected = self.first + self.positions.len() as u64;
        assert!(id.index.0 == expected, "entry {} pushed where {expected} belongs", id.index);
        let same = self.runs.back().is_some_and(|run| (run.term, run.node) == (id.term, id.node));
        if !same {
            self.runs.push_back(Run { start: id.index.0, term: id.term, node: id.node });
        }
        self.positions.push_back(position);
    }

    /// Forgets every entry with an index above `last`; `None` forgets all.
    pub(crate) fn truncate_after(&mut self, last: Option<LogIndex>) {
        let keep = match last {
            Some(last) if last.0 >= self.first => (last.0 - self.first).saturating_add(1),
            _ => 0,
        };
        if keep >= self.positions.len() as u64 {
            return;
        }
        self.positions.truncate(keep as usize);
        let end = self.first + keep;
        while self.runs.back().is_some_and(|run| run.start >= end) {
            self.runs.pop_back();
        }
    }

    /// Forgets every entry up to and with `upto`.
    pub(crate) fn purge(&mut self, upto: LogIndex) {
        let gone = match upto.0.checked_sub(self.first) {
            Some(distance) => distance.saturating_add(1).min(self.positions.len() as u64),
            None => return,
        };
        self.positions.drain(..gone as usize);
        self.first += gone;
        while self.runs.get(1).is_some_and(|run| run.start <= self.first) {
            self.runs.pop_front();
        }
    }

    /// The entry's identity and place.
    pub(crate) fn get(&self, index: LogIndex) -> Option<(LogId, Position)> {
        let position = index.0.checked_sub(self.first)?;
        let position = *self.positions.get(usize::try_from(position).ok()?)?;
        let run = self.runs.partition_point(|run| run.start <= index.0).checked_sub(1)?;
        let run = self.runs.get(run)?;
        Some((LogId { term: run.term, node: run.node, index }, position))
    }

    /// The segment of the first entry.
    pub(crate) fn first_segment(&self) -> Option<u32> {
        self.positions.front().map(|position| position.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Push { new_leader: bool },
        Truncate(u64),
        Purge(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<bool>().prop_map(|new_leader| Step::Push { new_leader }),
            1 => (0..20u64).prop_map(Step::Truncate),
            1 => (0..20u64).prop_map(Step::Purge),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_of_entries(steps in steps()) {
            let mut positions = LogPositions::default();
            let mut model: BTreeMap<u64, (LogId, Position)> = BTreeMap::new();
            let (mut next, mut term, mut purged) = (1, 1, 0);
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push { new_leader } => {
                        term += u64::from(new_leader);
                        let id = LogId {
                            term: Term(term),
                            node: MemberId(term % 3),
                            index: LogIndex(next),
                        };
                        let offset = number as u32;
                        let position = Position { segment: 1, offset, payload_len: 0 };
                        positions.push(id, position);
                        model.insert(next, (id, position));
                        next += 1;
                    }
                    Step::Truncate(back) => {
                        let last = (next - 1).saturating_sub(back).max(purged);
                        positions.truncate_after(Some(LogIndex(last)));
                        model.retain(|index, _| *index <= last);
                        next = last + 1;
                    }
                    Step::Purge(ahead) => {
                        let upto = (purged + ahead).min(next - 1);
                        positions.purge(LogIndex(upto));
                        model.retain(|index, _| *index > upto);
                        purged = purged.max(upto);
                    }
                }
                for index in 0..next + 2 {
                    let expected = model.get(&index).copied();
                    prop_assert_eq!(positions.get(LogIndex(index)), expected);
                }
                let range = model.keys().next().zip(model.keys().next_back());
                let range = range.map(|(first, last)| (LogIndex(*first), LogIndex(*last)));
                prop_assert_eq!(positions.range(), range);
            }
        }
    }
}
