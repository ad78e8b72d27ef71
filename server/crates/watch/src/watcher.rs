//! All watchers, and where each stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mvcc::{Event, EventKind};
use tokio::time::Instant;
use types::{KeyRange, Revision};

use crate::index::{Slot, WatcherIndex};
use crate::message::WatchMessage;
use crate::queue::StreamQueue;

/// Where a watcher gets its events from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// From what is published.
    Synced,
    /// From the history.
    Behind,
    /// From nowhere until its stream has room.
    Blocked,
}

/// One watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) stream: u64,
    pub(crate) id: i64,
    pub(crate) range: KeyRange,
    /// No event below this revision is sent to it. Kept up to date while it is not synced.
    pub(crate) next: i64,
    /// Progress is reported only from this revision on.
    pub(crate) progress_from: i64,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) prev_kv: bool,
    pub(crate) fragment: bool,
    pub(crate) progress_notify: bool,
    /// Whether it was sent no event since the last tick.
    pub(crate) quiet: bool,
    pub(crate) place: Place,
    /// The events of the slice at hand that it gets.
    pub(crate) matched: Vec<u32>,
}

impl Watcher {
    pub(crate) fn wants(&self, revision: Revision, event: &Event) -> bool {
        let filtered = match event.kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        revision.0 >= self.next && !filtered
    }

    /// Whether everything up to `position` has been sent and may be said to have been.
    pub(crate) fn is_current(&self, position: i64) -> bool {
        self.place == Place::Synced && position >= self.progress_from
    }
}

/// One stream and its watches.
#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) queue: Arc<StreamQueue>,
    pub(crate) watchers: BTreeMap<i64, Slot>,
    pub(crate) next_id: i64,
    pub(crate) blocked: BTreeSet<Slot>,
    /// When it reports progress next.
    pub(crate) tick: Instant,
    /// The highest revision that a header of this stream has shown; headers never go back.
    shown: i64,
}

impl StreamState {
    pub(crate) fn new(queue: Arc<StreamQueue>, tick: Instant) -> Self {
        let (watchers, blocked) = (BTreeMap::new(), BTreeSet::new());
        Self { queue, watchers, next_id: 0, blocked, tick, shown: 0 }
    }

    /// The id for a new watch: the wanted one, or the next free one; none if it is taken.
    pub(crate) fn pick_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.watchers.contains_key(&wanted)).then_some(wanted);
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// A header's revision, at least `revision` and not below an earlier one.
    pub(crate) fn header(&mut self, revision: i64) -> Revision {
        self.shown = self.shown.max(revision);
        Revision(self.shown)
    }

    /// Reports progress at exactly `position` if the queue has room for it and no header has shown
    /// more: a watch may have been created at a revision that was not published yet.
    pub(crate) fn report(&mut self, id: i64, position: i64) {
        if position >= self.shown && self.queue.has_room() {
            let revision = self.header(position);
            self.queue.push(WatchMessage::Progress { id, revision });
        }
    }
}

/// Every stream and watcher of the hub.
#[derive(Debug)]
pub(crate) struct Watchers {
    slots: Vec<Option<Watcher>>,
    free: Vec<Slot>,
    pub(crate) streams: BTreeMap<u64, StreamState>,
    pub(crate) synced: WatcherIndex,
    /// The watchers in place [`Place::Behind`], by key.
    pub(crate) lagging: WatcherIndex,
    /// The same by the revision they need next.
    pub(crate) behind: BTreeSet<(i64, Slot)>,
    /// The revision up to which synced watchers have been served.
    pub(crate) position: i64,
    blocked: usize,
}

impl Watchers {
    pub(crate) fn new(position: i64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            streams: BTreeMap::new(),
            synced: WatcherIndex::default(),
            lagging: WatcherIndex::default(),
            behind: BTreeSet::new(),
            position,
            blocked: 0,
        }
    }

    pub(crate) fn get(&self, slot: Slot) -> &Watcher {
        self.slots[slot].as_ref().expect("slots in the indexes hold watchers")
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Watcher {
        self.slots[slot].as_mut().expect("slots in the indexes hold watchers")
    }

    pub(crate) fn stream(&mut self, slot: Slot) -> &mut StreamState {
        let stream = self.get(slot).stream;
        self.streams.get_mut(&stream).expect("a watcher goes with its stream")
    }

    /// Adds a watcher to its stream, which exists, and to the index it belongs in.
    pub(crate) fn add(&mut self, watcher: Watcher) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let (stream, id) = (watcher.stream, watcher.id);
        self.slots[slot] = Some(watcher);
        self.streams
            .get_mut(&stream)
            .expect("a watcher goes with its stream")
            .watchers
            .insert(id, slot);
        self.settle(slot);
    }

    /// Puts a watcher that is in no index where its next revision says it belongs.
    pub(crate) fn settle(&mut self, slot: Slot) {
        let position = self.position;
        let watcher = self.slots[slot].as_mut().expect("slots in the indexes hold watchers");
        if watcher.next > position {
            watcher.place = Place::Synced;
            self.synced.insert(&watcher.range, slot);
        } else {
            watcher.place = Place::Behind;
            self.lagging.insert(&watcher.range, slot);
            self.behind.insert((watcher.next, slot));
        }
    }

    /// Takes a watcher out of the index it is in.
    pub(crate) fn unsettle(&mut self, slot: Slot) {
        let watcher = self.slots[slot].as_mut().expect("slots in the indexes hold watchers");
        match watcher.place {
            Place::Synced => self.synced.remove(&watcher.range, slot),
            Place::Behind => {
                self.lagging.remove(&watcher.range, slot);
                self.behind.remove(&(watcher.next, slot));
            }
            Place::Blocked => {
                self.blocked -= 1;
                if let Some(stream) = self.streams.get_mut(&watcher.stream) {
                    stream.blocked.remove(&slot);
                }
            }
        }
    }

    /// Sets a watcher aside that could not be sent what it needs next. It is in no index.
    pub(crate) fn block(&mut self, slot: Slot, next: i64) {
        self.get_mut(slot).next = next;
        if self.stream(slot).queue.starve() {
            self.get_mut(slot).place = Place::Blocked;
            self.stream(slot).blocked.insert(slot);
            self.blocked += 1;
        } else {
            self.settle(slot);
        }
    }

    /// Lets the blocked watchers of a stream go on.
    pub(crate) fn unblock(&mut self, stream: u64) {
        let blocked =
            self.streams.get_mut(&stream).map(|stream| std::mem::take(&mut stream.blocked));
        for slot in blocked.into_iter().flatten() {
            self.blocked -= 1;
            self.settle(slot);
        }
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.unsettle(slot);
        let watcher = self.slots[slot].take().expect("slots in the indexes hold watchers");
        if let Some(stream) = self.streams.get_mut(&watcher.stream) {
            stream.watchers.remove(&watcher.id);
        }
        self.free.push(slot);
    }

    /// Ends a stream with its watches and answers when it would have reported progress.
    pub(crate) fn remove_stream(&mut self, stream: u64) -> Option<Instant> {
        let slots = self.streams.get(&stream).map(|stream| stream.watchers.values().copied());
        for slot in slots.into_iter().flatten().collect::<Vec<_>>() {
            self.remove(slot);
        }
        self.streams.remove(&stream).map(|stream| stream.tick)
    }

    /// Makes every synced watcher that wants something up to `upto` read it from the history.
    pub(crate) fn lose(&mut self, upto: i64) {
        if upto <= self.position {
            return;
        }
        let first = self.position + 1;
        let missed = |(slot, watcher): (Slot, &Option<Watcher>)| {
            let watcher = watcher.as_ref()?;
            (watcher.place == Place::Synced && watcher.next <= upto).then_some(slot)
        };
        let slots: Vec<Slot> = self.slots.iter().enumerate().filter_map(missed).collect();
        for slot in &slots {
            self.unsettle(*slot);
        }
        self.position = upto;
        for slot in slots {
            let watcher = self.get_mut(slot);
            watcher.next = watcher.next.max(first);
            self.settle(slot);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many watchers are not synced.
    pub(crate) fn slow(&self) -> usize {
        self.behind.len() + self.blocked
    }
}
