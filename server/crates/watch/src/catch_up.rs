//! Watchers that are behind, fed from the history.
//!
//! Like a lift: one slice of the history is read from where the cursor stands, and all watchers that
//! need something in it ride along, so that many watchers behind at the same place cost one reading.
//! Then the cursor goes on behind the slice, and from the end back to whoever is furthest behind. One
//! slice per turn, so that published events and requests are never kept waiting for long.

use mvcc::RangeError;
use types::Revision;

use crate::encoded::Slice;
use crate::index::Slot;
use crate::message::WatchMessage;
use crate::task::{Batches, HubTask};

impl HubTask {
    /// Reads and hands out one slice; answers whether some watcher is still behind.
    pub(crate) fn catch_up(&mut self) -> Result<bool, RangeError> {
        self.cancel_compacted();
        let behind = &self.watchers.behind;
        let next = behind.range((self.cursor, 0)..).next().or_else(|| behind.first());
        let Some((from, slot)) = next.copied() else { return Ok(false) };
        let position = self.watchers.position;
        let until = Revision(position + 1);
        let events = self.options.slice_events;
        let bytes = match self.watchers.get(slot).fragment {
            true => self.options.slice_bytes_in_fragments,
            false => self.options.slice_bytes,
        };
        let groups = match self.view.history_within(Revision(from), until, events, bytes) {
            Ok(groups) => groups,
            // The watermark moved since; the next turn cancels whom it passed.
            Err(RangeError::Compacted) => return Ok(true),
            Err(error) => return Err(error),
        };
        let end = groups.last().map_or(position, |group| group.revision.0);
        self.hand_out(from, end, &Slice::new(groups))?;
        self.cursor = end + 1;
        Ok(!self.watchers.behind.is_empty())
    }

    /// Cancels the watchers that need what compaction has passed.
    fn cancel_compacted(&mut self) {
        let compact_revision = match self.watchers.behind.is_empty() {
            true => return,
            false => self.view.compact_revision(),
        };
        while let Some((next, slot)) = self.watchers.behind.first().copied() {
            if next >= compact_revision.0 {
                break;
            }
            let id = self.watchers.get(slot).id;
            let message = WatchMessage::Compacted { id, compact_revision };
            self.watchers.stream(slot).queue.push(message);
            self.watchers.remove(slot);
        }
    }

    /// Serves everyone whose next revision lies from `from` to `end`, which is what `slice` covers.
    fn hand_out(&mut self, from: i64, end: i64, slice: &Slice) -> Result<(), RangeError> {
        for (at, (revision, event)) in (0..).zip(slice.events()) {
            let mut found = Vec::new();
            self.watchers.lagging.stab(&event.key, &mut |slot| found.push(slot));
            for slot in found {
                let watcher = self.watchers.get_mut(slot);
                // Whoever is behind from before this slice gets its events in order, later.
                if watcher.next >= from && watcher.wants(*revision, event) {
                    watcher.matched.push(at);
                }
            }
        }
        let window = self.watchers.behind.range((from, 0)..(end + 1, 0));
        let riders: Vec<Slot> = window.map(|(_, slot)| *slot).collect();
        let mut batches = Batches::new();
        for slot in riders {
            self.watchers.unsettle(slot);
            match self.deliver(slot, slice, &mut batches)? {
                Some(missed) => self.watchers.block(slot, missed),
                None => {
                    self.watchers.get_mut(slot).next = end + 1;
                    self.watchers.settle(slot);
                }
            }
        }
        Ok(())
    }
}
