//! The one task that owns all watchers: requests, fan-out, progress.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mvcc::{RangeError, ReadView, RevisionEvents};
use revlog::RevStoreError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::encoded::{EncodedEvents, Slice};
use crate::hub::{Backlog, Command, CreateWatch, HubOptions, Lost, Request, Shared};
use crate::index::Slot;
use crate::message::{NO_WATCH, WatchMessage};
use crate::watcher::{Place, StreamState, Watcher, Watchers};

/// Requests handled in one turn, so that events do not wait behind a flood of them.
const REQUESTS_PER_TURN: usize = 256;

/// What a message of one fragment has beside its events, at most.
const FRAGMENT_OVERHEAD: usize = 64;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// The hub's task.
pub struct HubTask {
    pub(crate) view: ReadView,
    pub(crate) options: HubOptions,
    pub(crate) watchers: Watchers,
    /// Where catching up goes on.
    pub(crate) cursor: i64,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Command>,
    pending: VecDeque<RevisionEvents>,
    /// When each stream reports progress next.
    ticks: BTreeSet<(Instant, u64)>,
}

/// Encoded events by which events they are, so that watchers of the same ones share them.
pub(crate) type Batches = BTreeMap<(bool, Vec<u32>), EncodedEvents>;

impl HubTask {
    pub(crate) fn new(
        view: ReadView,
        options: HubOptions,
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Command>,
    ) -> Self {
        let watchers = Watchers::new(view.revision().0);
        Self {
            view,
            options,
            watchers,
            cursor: 0,
            shared,
            requests,
            pending: VecDeque::new(),
            ticks: BTreeSet::new(),
        }
    }

    /// Serves until [`crate::Hub::stop`] or until nobody holds the hub any more. An error means that
    /// the history cannot be read, after which no watch can be trusted: the process must stop.
    pub async fn run(mut self) -> Result<(), RevStoreError> {
        let result = self.serve().await;
        for stream in self.watchers.streams.values() {
            stream.queue.close();
        }
        self.requests.close();
        while let Ok(command) = self.requests.try_recv() {
            command.queue.close();
        }
        result.map_err(|error| match error {
            RangeError::Store(error) => error,
            other => RevStoreError::Engine { engine: "watch", detail: other.to_string() },
        })
    }

    async fn serve(&mut self) -> Result<(), RangeError> {
        loop {
            let unwatched = self.watchers.streams.is_empty();
            let backlog = self.shared.take(unwatched);
            if backlog.stopped {
                return Ok(());
            }
            self.take_up(backlog);
            self.fan_out()?;
            let requests = self.handle_waiting();
            let behind = self.catch_up()?;
            self.tick();
            self.shared.stats.show(&self.watchers);
            // What was published before the first stream came is not in the backlog, which says so.
            let first = unwatched && !self.watchers.streams.is_empty();
            if requests || behind || first || !self.pending.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            let tick = self.ticks.first().map(|(at, _)| *at);
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = sleep_until(tick) => {}
                command = self.requests.recv() => match command {
                    Some(command) => self.handle(command),
                    None => return Ok(()),
                },
            }
        }
    }

    fn take_up(&mut self, backlog: Backlog) {
        if let Some(view) = backlog.view {
            self.view = view;
        }
        if let Some(lost) = backlog.lost {
            self.pending.clear();
            let upto = match lost {
                Lost::UpTo(revision) => revision.0,
                Lost::All => self.view.revision().0,
            };
            tracing::debug!(from = self.watchers.position, upto, "watchers read from the history");
            self.watchers.lose(upto);
        }
        self.pending.extend(backlog.revisions);
        for stream in backlog.drained {
            self.watchers.unblock(stream);
        }
        for stream in backlog.closed {
            if let Some(tick) = self.watchers.remove_stream(stream) {
                self.ticks.remove(&(tick, stream));
            }
        }
    }

    /// Hands one slice of what was published to the synced watchers.
    fn fan_out(&mut self) -> Result<(), RangeError> {
        let groups = self.next_slice();
        let Some((first, last)) = groups.first().zip(groups.last()) else { return Ok(()) };
        let (first, last) = (first.revision.0, last.revision.0);
        self.watchers.lose(first - 1);
        let slice = Slice::new(groups);
        let mut touched = Vec::new();
        for (at, (revision, event)) in (0..).zip(slice.events()) {
            let mut found = Vec::new();
            self.watchers.synced.stab(&event.key, &mut |slot| found.push(slot));
            for slot in found {
                let watcher = self.watchers.get_mut(slot);
                if watcher.wants(*revision, event) {
                    if watcher.matched.is_empty() {
                        touched.push(slot);
                    }
                    watcher.matched.push(at);
                }
            }
        }
        self.watchers.position = last;
        let mut batches = Batches::new();
        for slot in touched {
            if let Some(missed) = self.deliver(slot, &slice, &mut batches)? {
                self.watchers.unsettle(slot);
                self.watchers.block(slot, missed);
            }
        }
        Ok(())
    }

    /// Revisions that were published and are new, as many as one slice takes.
    fn next_slice(&mut self) -> Vec<RevisionEvents> {
        let (mut groups, mut events, mut bytes) = (Vec::new(), 0, 0);
        while events < self.options.slice_events && bytes < self.options.slice_bytes {
            let Some(group) = self.pending.pop_front() else { break };
            if group.revision.0 <= self.watchers.position {
                continue;
            }
            let gap = groups
                .last()
                .is_some_and(|last: &RevisionEvents| last.revision.0 + 1 != group.revision.0);
            if gap {
                self.pending.push_front(group);
                break;
            }
            events += group.events.len();
            bytes += group.events.iter().map(|event| event.key_value.len()).sum::<usize>();
            groups.push(group);
        }
        groups
    }

    /// Sends a watcher what it matched of a slice. Without room nothing is sent, and the answer is
    /// the revision that it misses first.
    pub(crate) fn deliver(
        &mut self,
        slot: Slot,
        slice: &Slice,
        batches: &mut Batches,
    ) -> Result<Option<i64>, RangeError> {
        let position = self.watchers.position;
        let watcher = self.watchers.get_mut(slot);
        let matched = std::mem::take(&mut watcher.matched);
        let (id, prev_kv, fragment) = (watcher.id, watcher.prev_kv, watcher.fragment);
        let Some(first) = matched.first() else { return Ok(None) };
        if !self.watchers.stream(slot).queue.has_room() {
            return Ok(Some(slice.revision(*first as usize).0));
        }
        self.watchers.get_mut(slot).quiet = false;
        let key = (prev_kv, matched);
        let events = match batches.get(&key) {
            Some(events) => events.clone(),
            None => {
                let frames = key.1.iter().map(|at| slice.frame(*at as usize, prev_kv, &self.view));
                let events = EncodedEvents::new(frames.collect::<Result<_, _>>()?);
                batches.insert(key, events.clone());
                events
            }
        };
        self.shared.stats.sent(events.frames().len());
        let stream = self.watchers.stream(slot);
        let revision = stream.header(position);
        let parts = match fragment {
            true => fragments(events, self.options.fragment_bytes),
            false => vec![events],
        };
        let count = parts.len();
        for (number, events) in (1..).zip(parts) {
            let fragment = number < count;
            stream.queue.push(WatchMessage::Events { id, revision, events, fragment });
        }
        Ok(None)
    }

    fn handle_waiting(&mut self) -> bool {
        for _ in 0..REQUESTS_PER_TURN {
            match self.requests.try_recv() {
                Ok(command) => self.handle(command),
                Err(_) => return false,
            }
        }
        true
    }

    fn handle(&mut self, Command { queue, request }: Command) {
        if queue.is_closed() {
            return;
        }
        let name = queue.stream;
        if !self.watchers.streams.contains_key(&name) {
            self.shared.watched();
            let tick = Instant::now() + self.interval(name);
            self.watchers.streams.insert(name, StreamState::new(Arc::clone(&queue), tick));
            self.ticks.insert((tick, name));
        }
        match request {
            Request::Create(watch) => self.create(name, watch),
            Request::Refuse(reason) => self.refuse(name, reason),
            Request::Cancel(id) => self.cancel(name, id),
            Request::Progress => self.report_stream(name),
        }
    }

    fn create(&mut self, name: u64, watch: CreateWatch) {
        if watch.start_revision < 0 {
            return self.refuse(name, COMPACTED.to_owned());
        }
        let Some(range) = watch.range() else { return self.refuse(name, EMPTY_RANGE.to_owned()) };
        let now = self.view.revision().0.max(self.watchers.position);
        let stream = known(&mut self.watchers, name);
        let Some(id) = stream.pick_id(watch.watch_id) else {
            return self.refuse(name, DUPLICATE_ID.to_owned());
        };
        let revision = stream.header(now);
        stream.queue.push(WatchMessage::Created { id, revision });
        let from_now = watch.start_revision == 0;
        self.watchers.add(Watcher {
            stream: name,
            id,
            range,
            next: if from_now { now + 1 } else { watch.start_revision },
            progress_from: if from_now { now } else { watch.start_revision },
            no_put: watch.no_put,
            no_delete: watch.no_delete,
            prev_kv: watch.prev_kv,
            fragment: watch.fragment,
            progress_notify: watch.progress_notify,
            quiet: true,
            place: Place::Blocked,
            matched: Vec::new(),
        });
    }

    fn refuse(&mut self, name: u64, reason: String) {
        let now = self.view.revision().0;
        let stream = known(&mut self.watchers, name);
        let revision = stream.header(now);
        stream.queue.push(WatchMessage::Refused { revision, reason });
    }

    fn cancel(&mut self, name: u64, id: i64) {
        let now = self.view.revision().0;
        let stream = known(&mut self.watchers, name);
        let Some(slot) = stream.watchers.get(&id).copied() else { return };
        let revision = stream.header(now);
        stream.queue.push(WatchMessage::Canceled { id, revision });
        self.watchers.remove(slot);
    }

    /// Progress of the whole stream, if all of its watches are current.
    fn report_stream(&mut self, name: u64) {
        let position = self.watchers.position;
        let mut slots =
            known(&mut self.watchers, name).watchers.values().copied().collect::<Vec<_>>();
        let any = !slots.is_empty();
        slots.retain(|slot| !self.watchers.get(*slot).is_current(position));
        if any && slots.is_empty() {
            known(&mut self.watchers, name).report(NO_WATCH, position);
        }
    }

    /// Reports progress of quiet watches on the streams whose time has come.
    fn tick(&mut self) {
        let now = Instant::now();
        while let Some((at, name)) = self.ticks.first().copied().filter(|(at, _)| *at <= now) {
            self.ticks.remove(&(at, name));
            let next = now + self.interval(name);
            known(&mut self.watchers, name).tick = next;
            self.ticks.insert((next, name));
            let position = self.watchers.position;
            let slots: Vec<Slot> =
                known(&mut self.watchers, name).watchers.values().copied().collect();
            for slot in slots {
                let watcher = self.watchers.get_mut(slot);
                if !watcher.progress_notify {
                    continue;
                }
                let due = std::mem::replace(&mut watcher.quiet, true);
                let id = watcher.id;
                if due && watcher.is_current(position) {
                    known(&mut self.watchers, name).report(id, position);
                }
            }
        }
    }

    /// The interval of a stream: a part of a tenth longer for each, so that streams opened at once
    /// do not all report at once. etcd draws it at random; here a run must repeat.
    fn interval(&self, name: u64) -> Duration {
        let part = name.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        let interval = self.options.progress_interval;
        interval + interval.mul_f64(part as f64 / 1024.0 / 10.0)
    }
}

fn known(watchers: &mut Watchers, name: u64) -> &mut StreamState {
    watchers.streams.get_mut(&name).expect("a stream is known while it is served")
}

/// Divides events into messages below `limit`, at least one event each, as etcd does.
fn fragments(events: EncodedEvents, limit: usize) -> Vec<EncodedEvents> {
    if FRAGMENT_OVERHEAD + events.encoded_len() < limit {
        return vec![events];
    }
    let mut parts = Vec::new();
    let (mut part, mut size) = (Vec::new(), FRAGMENT_OVERHEAD);
    for frame in events.frames() {
        if !part.is_empty() && size + frame.len() >= limit {
            parts.push(EncodedEvents::new(std::mem::take(&mut part)));
            size = FRAGMENT_OVERHEAD;
        }
        size += frame.len();
        part.push(frame.clone());
    }
    parts.push(EncodedEvents::new(part));
    parts
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
