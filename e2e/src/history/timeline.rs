//! The states that the store has gone through, from the events of a watch.

use std::collections::BTreeMap;

use super::{Event, Key, KeyValue, Violation};

/// Every state by revision.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The states of each key by the revision at which they began.
    keys: BTreeMap<Key, BTreeMap<i64, Option<KeyValue>>>,
    /// The events of each revision.
    revisions: BTreeMap<i64, Vec<Event>>,
    last: i64,
}

impl Timeline {
    /// Replays the events of a watch from the first revision. The store must have been empty, at
    /// revision 1, so the revisions have no gap, and what an event says of a key must follow from
    /// the events before.
    pub fn replay(events: &[Event]) -> Result<Timeline, Violation> {
        let mut timeline = Timeline { last: 1, ..Timeline::default() };
        for event in events {
            let next = timeline.last + 1;
            let allowed =
                event.revision == next || (event.revision == timeline.last && timeline.last > 1);
            if !allowed {
                return Err(Violation::HistoryHasGap {
                    after: timeline.last,
                    next: event.revision,
                });
            }
            timeline.last = event.revision;
            let before = timeline.at(event.key, event.revision);
            if let Some(put) = &event.put {
                let (create_revision, version) = match before {
                    Some(before) => (before.create_revision, before.version + 1),
                    None => (event.revision, 1),
                };
                let mod_revision = event.revision;
                let expected = KeyValue {
                    key: event.key,
                    value: put.value,
                    create_revision,
                    mod_revision,
                    version,
                };
                if *put != expected {
                    return Err(Violation::EventDoesNotFollow { event: event.clone(), expected });
                }
            } else if before.is_none() {
                return Err(Violation::DeleteOfNothing { event: event.clone() });
            }
            timeline.keys.entry(event.key).or_default().insert(event.revision, event.put.clone());
            timeline.revisions.entry(event.revision).or_default().push(event.clone());
        }
        Ok(timeline)
    }

    /// The newest revision.
    pub fn last(&self) -> i64 {
        self.last
    }

    /// A key as it was at a revision.
    pub fn at(&self, key: Key, revision: i64) -> Option<&KeyValue> {
        self.keys.get(&key)?.range(..=revision).next_back()?.1.as_ref()
    }

    /// All keys as they were at a revision.
    pub fn state(&self, revision: i64) -> Vec<KeyValue> {
        self.keys.keys().filter_map(|key| self.at(*key, revision)).cloned().collect()
    }

    /// The events of one revision.
    pub fn events(&self, revision: i64) -> &[Event] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    /// All revisions with their events.
    pub(super) fn revisions(&self) -> impl Iterator<Item = (i64, &[Event])> {
        self.revisions.iter().map(|(revision, events)| (*revision, events.as_slice()))
    }
}
