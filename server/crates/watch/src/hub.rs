//! The handles: what the applier and the gRPC streams hold of the hub.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mvcc::{ReadView, RevisionEvents};
use tokio::sync::{Notify, mpsc};
use types::{KeyRange, RangeEnd, Revision};

use crate::queue::{StreamOutput, StreamQueue};
use crate::task::HubTask;
use crate::watcher::Watchers;

const LOCK: &str = "no holder of the hub's backlog panics";

/// How many requests of all streams may wait for the hub; further ones wait to be sent.
const COMMANDS: usize = 1024;

/// Limits and intervals.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// How often a watch with `progress_notify` hears of progress, at most a tenth later.
    pub progress_interval: Duration,
    /// The bound of one stream's queue.
    pub stream_bytes: usize,
    /// The bound of what the applier published and the hub has not taken up.
    pub backlog_bytes: usize,
    /// A watcher that allows fragments gets none longer than this, unless one event is.
    pub fragment_bytes: usize,
    /// How many events one slice of work handles, and how many bytes of records.
    pub slice_events: usize,
    pub slice_bytes: usize,
    /// How many bytes of records a slice of the history has for a watcher that allows fragments: it
    /// gets them as one response in parts, as from etcd, which reads a thousand revisions at once.
    pub slice_bytes_in_fragments: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            progress_interval: Duration::from_secs(600),
            stream_bytes: 2 << 20,
            backlog_bytes: 64 << 20,
            fragment_bytes: 1_572_864 + (512 << 10),
            slice_events: 1000,
            slice_bytes: 1 << 20,
            slice_bytes_in_fragments: 8 << 20,
        }
    }
}

/// A request to watch, as the client sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateWatch {
    /// Empty means the smallest key.
    pub key: Bytes,
    pub range_end: Bytes,
    /// 0 for what comes next.
    pub start_revision: i64,
    pub progress_notify: bool,
    /// The filters NOPUT and NODELETE.
    pub no_put: bool,
    pub no_delete: bool,
    pub prev_kv: bool,
    /// 0 lets the hub choose.
    pub watch_id: i64,
    pub fragment: bool,
}

impl CreateWatch {
    /// What is watched, or nothing if the range is empty.
    pub(crate) fn range(&self) -> Option<KeyRange> {
        let key = match self.key.is_empty() {
            true => Bytes::from_static(&[0]),
            false => self.key.clone(),
        };
        let range = KeyRange::from_wire(key, self.range_end.clone());
        (range.end == RangeEnd::Unbounded || !range.is_empty()).then_some(range)
    }
}

#[derive(Debug)]
pub(crate) enum Request {
    Create(CreateWatch),
    Refuse(String),
    Cancel(i64),
    Progress,
}

/// A request with the queue that answers go to.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) queue: Arc<StreamQueue>,
    pub(crate) request: Request,
}

/// What was published and not taken up yet, and which streams want attention.
#[derive(Default)]
pub(crate) struct Backlog {
    pub(crate) revisions: Vec<RevisionEvents>,
    bytes: usize,
    /// Revisions up to here were dropped from the backlog and must be read from the history.
    pub(crate) lost: Option<Lost>,
    /// The store that has replaced the one read so far.
    pub(crate) view: Option<ReadView>,
    pub(crate) drained: Vec<u64>,
    pub(crate) closed: Vec<u64>,
    pub(crate) stopped: bool,
    /// There is no stream: what is published is not kept and wakes nobody.
    unwatched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lost {
    UpTo(Revision),
    /// Everything that the store has now.
    All,
}

pub(crate) struct Shared {
    backlog: Mutex<Backlog>,
    backlog_bytes: usize,
    stream_bytes: usize,
    pub(crate) wake: Notify,
    pub(crate) stats: Stats,
    next_stream: AtomicU64,
}

impl Shared {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().expect(LOCK)
    }

    /// Takes everything up. `unwatched` holds until the next time: while nobody watches, a put must
    /// not wake the hub's thread.
    pub(crate) fn take(&self, unwatched: bool) -> Backlog {
        let mut backlog = self.backlog();
        let stopped = backlog.stopped;
        std::mem::replace(&mut *backlog, Backlog { stopped, unwatched, ..Backlog::default() })
    }

    /// There is a stream: what is published from now on is kept.
    pub(crate) fn watched(&self) {
        self.backlog().unwatched = false;
    }

    pub(crate) fn drained(&self, stream: u64) {
        self.backlog().drained.push(stream);
        self.wake.notify_one();
    }

    pub(crate) fn closed(&self, stream: u64) {
        self.backlog().closed.push(stream);
        self.wake.notify_one();
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Streams with at least one request.
    pub streams: usize,
    pub watchers: usize,
    /// Watchers that are behind or blocked.
    pub slow_watchers: usize,
    /// Events handed to streams since the start, once for each watcher.
    pub events: usize,
    /// Events that are handed to streams and not taken from them yet.
    pub pending_events: usize,
    /// The revision up to which synced watchers have been served.
    pub position: Revision,
}

#[derive(Debug, Default)]
pub(crate) struct Stats {
    streams: AtomicUsize,
    watchers: AtomicUsize,
    slow: AtomicUsize,
    events: AtomicUsize,
    pending: Arc<AtomicUsize>,
    position: AtomicI64,
}

impl Stats {
    pub(crate) fn show(&self, watchers: &Watchers) {
        self.streams.store(watchers.streams.len(), Ordering::Relaxed);
        self.watchers.store(watchers.count(), Ordering::Relaxed);
        self.slow.store(watchers.slow(), Ordering::Relaxed);
        self.position.store(watchers.position, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, events: usize) {
        self.events.fetch_add(events, Ordering::Relaxed);
    }
}

/// The hub, as the applier and the edge hold it.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Hub {
    /// A hub over a store, and the task that must be run for it: on a thread of its own, or as a
    /// task of a simulator. Everything that `read` shows now counts as published.
    pub fn new(read: ReadView, options: HubOptions) -> (Hub, HubTask) {
        let (commands, requests) = mpsc::channel(COMMANDS);
        let shared = Arc::new(Shared {
            backlog: Mutex::default(),
            backlog_bytes: options.backlog_bytes,
            stream_bytes: options.stream_bytes,
            wake: Notify::new(),
            stats: Stats::default(),
            next_stream: AtomicU64::new(0),
        });
        let task = HubTask::new(read, options, Arc::clone(&shared), requests);
        (Hub { shared, commands }, task)
    }

    /// Takes the events of committed revisions, in order. It never waits for a watcher. When the hub
    /// is so far behind that the backlog is full, the backlog is dropped and watchers are fed from
    /// the history.
    pub fn publish(&self, revisions: Vec<RevisionEvents>) {
        let Some(last) = revisions.last().map(|group| group.revision) else { return };
        let mut backlog = self.shared.backlog();
        if backlog.unwatched {
            backlog.lost = backlog.lost.max(Some(Lost::UpTo(last)));
            return;
        }
        let bytes: usize = revisions
            .iter()
            .flat_map(|group| &group.events)
            .map(|event| event.key_value.len() + size_of_val(event))
            .sum();
        // What is dropped is freed after the lock, which the hub's task waits for.
        let mut dropped = Vec::new();
        if backlog.bytes + bytes > self.shared.backlog_bytes {
            dropped = std::mem::take(&mut backlog.revisions);
            backlog.bytes = 0;
            backlog.lost = backlog.lost.max(Some(Lost::UpTo(last)));
        } else {
            backlog.bytes += bytes;
            backlog.revisions.extend(revisions);
        }
        drop(backlog);
        drop(dropped);
        self.shared.wake.notify_one();
    }

    /// To be called after a leader's snapshot has replaced the store by the one that `view` reads,
    /// before anything further is published: watchers go on from its history where they were, or are
    /// cancelled if that is compacted (etcd#15271).
    pub fn reset(&self, view: ReadView) {
        let mut backlog = self.shared.backlog();
        backlog.view = Some(view);
        backlog.revisions = Vec::new();
        backlog.bytes = 0;
        backlog.lost = Some(Lost::All);
        drop(backlog);
        self.shared.wake.notify_one();
    }

    /// Opens a stream without watches.
    pub fn open(&self) -> (StreamHandle, StreamOutput) {
        let stream = self.shared.next_stream.fetch_add(1, Ordering::Relaxed);
        let pending = Arc::clone(&self.shared.stats.pending);
        let queue = Arc::new(StreamQueue::new(stream, self.shared.stream_bytes, pending));
        let output = StreamOutput { queue: Arc::clone(&queue), shared: Arc::clone(&self.shared) };
        let handle = StreamHandle {
            queue,
            commands: self.commands.clone(),
            shared: Arc::clone(&self.shared),
        };
        (handle, output)
    }

    /// Numbers for metrics, as of the task's last turn.
    pub fn stats(&self) -> HubStats {
        let stats = &self.shared.stats;
        HubStats {
            streams: stats.streams.load(Ordering::Relaxed),
            watchers: stats.watchers.load(Ordering::Relaxed),
            slow_watchers: stats.slow.load(Ordering::Relaxed),
            events: stats.events.load(Ordering::Relaxed),
            pending_events: stats.pending.load(Ordering::Relaxed),
            position: Revision(stats.position.load(Ordering::Relaxed)),
        }
    }

    /// Ends the task and with it every stream.
    pub fn stop(&self) {
        self.shared.backlog().stopped = true;
        self.shared.wake.notify_one();
    }
}

/// The asking half of a stream; dropping it ends the stream and its watches. A client that has
/// closed its sending side still wants its events, so keep this until the whole stream is over.
pub struct StreamHandle {
    queue: Arc<StreamQueue>,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl StreamHandle {
    /// Creates a watch. The answer comes through the stream's output. This waits while the client
    /// leaves its queue full.
    pub async fn create(&self, watch: CreateWatch) {
        self.send(Request::Create(watch)).await;
    }

    /// Answers a request to watch with a refusal that the edge decided on (authorisation).
    pub async fn refuse(&self, reason: String) {
        self.send(Request::Refuse(reason)).await;
    }

    /// Ends a watch; an unknown id is passed over without an answer, as in etcd.
    pub async fn cancel(&self, id: i64) {
        self.send(Request::Cancel(id)).await;
    }

    /// Asks for a progress message about the whole stream; there is no answer while one of its
    /// watches is behind.
    pub async fn request_progress(&self) {
        self.send(Request::Progress).await;
    }

    /// Whether a request would be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    async fn send(&self, request: Request) {
        while !self.has_room() {
            self.queue.room.notified().await;
        }
        let command = Command { queue: Arc::clone(&self.queue), request };
        if self.commands.send(command).await.is_err() {
            self.queue.close();
        }
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.queue.close();
        self.shared.closed(self.queue.stream);
    }
}
