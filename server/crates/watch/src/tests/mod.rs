//! Tests of the whole room on a paused clock.

mod random;
mod semantics;
mod validators;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use mvcc::memory::MemoryRevs;
use mvcc::{EventKind, RevisionEvents, Store, Sweep};
use prost::Message;
use proto::etcdserverpb::WatchResponse;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use tokio::time::Duration;
use types::{ClusterId, KeyRange, LeaseId, MemberId, Revision, Term};

use crate::check::History;
use crate::{CreateWatch, Hub, HubOptions, StreamHandle, StreamOutput};

/// A store, its hub, and what happened.
struct World {
    store: Store,
    hub: Hub,
    history: History,
    unpublished: Vec<RevisionEvents>,
}

/// One change of a transaction.
#[derive(Clone, Debug)]
enum Change {
    Put(&'static str, &'static str),
    Delete(&'static str, &'static str),
}

use Change::{Delete, Put};

impl World {
    fn new(options: HubOptions) -> Self {
        let store = Store::empty(Arc::new(MemoryRevs::default()));
        let (hub, task) = Hub::new(store.read(), options);
        tokio::spawn(async move { task.run().await.unwrap() });
        Self { store, hub, history: History::new(), unpublished: Vec::new() }
    }

    fn small() -> Self {
        Self::new(HubOptions {
            progress_interval: Duration::from_secs(10),
            stream_bytes: 300,
            backlog_bytes: 2000,
            fragment_bytes: 120,
            slice_events: 3,
            slice_bytes: 200,
            slice_bytes_in_fragments: 200,
        })
    }

    /// Commits transactions as one entry without publishing it. A change of a key that the
    /// transaction has changed already is left out: etcd refuses such a transaction.
    fn commit(&mut self, transactions: &[Vec<Change>]) {
        let mut writer = self.store.writer();
        for changes in transactions {
            writer.begin();
            let mut changed: Vec<Bytes> = Vec::new();
            for change in changes {
                let (key, end, value) = match change {
                    Put(key, value) => (*key, "", Some(*value)),
                    Delete(key, end) => (*key, *end, None),
                };
                let range = KeyRange::from_wire(key.into(), end.into());
                if changed.iter().any(|key| range.contains(key)) {
                    continue;
                }
                match value {
                    Some(value) => {
                        writer.put(key.into(), value.into(), LeaseId(0));
                        changed.push(key.into());
                    }
                    None => {
                        let deleted = writer.delete_range(&range);
                        changed.extend(deleted.into_iter().map(|(key, _)| key));
                    }
                }
            }
            writer.end();
        }
        let events = writer.commit().unwrap();
        for group in &events {
            self.history.push(group.revision, group.events.iter().map(event).collect());
        }
        self.unpublished.extend(events);
    }

    fn publish(&mut self) {
        self.hub.publish(std::mem::take(&mut self.unpublished));
    }

    fn apply(&mut self, changes: &[Change]) -> i64 {
        self.commit(&[changes.to_vec()]);
        self.publish();
        self.store.revision().0
    }

    fn compact(&mut self, revision: i64) {
        let mut writer = self.store.writer();
        let done = writer.compact(Revision(revision));
        writer.commit().unwrap();
        if done.is_ok() {
            self.history.compact(Revision(revision));
            while self.store.compact_step(2) == Sweep::More {}
            self.store.remove_garbage(Revision(revision)).unwrap();
        }
    }

    fn open(&self) -> Client {
        let (handle, output) = self.hub.open();
        Client { handle, output, seen: Vec::new() }
    }
}

fn event(event: &mvcc::Event) -> Event {
    let kind = match event.kind {
        EventKind::Put => EventType::Put,
        EventKind::Delete => EventType::Delete,
    };
    let kv = KeyValue::decode(event.key_value.clone()).unwrap();
    Event { r#type: kind as i32, kv: Some(kv), prev_kv: None }
}

/// A client of one stream.
struct Client {
    handle: StreamHandle,
    output: StreamOutput,
    seen: Vec<WatchResponse>,
}

impl Client {
    /// Takes up to `count` messages that are there.
    fn read(&mut self, count: usize) -> Vec<WatchResponse> {
        let mut taken = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while taken.len() < count {
            let output = std::pin::Pin::new(&mut self.output);
            let Poll::Ready(Some(message)) = output.poll_next(&mut cx) else { break };
            let mut bytes = BytesMut::new();
            message.encode(ClusterId(1), MemberId(2), Term(3), &mut bytes);
            taken.push(WatchResponse::decode(bytes).unwrap());
        }
        self.seen.extend(taken.iter().cloned());
        taken
    }

    /// Reads everything that comes until nothing more does.
    async fn read_all(&mut self) -> Vec<WatchResponse> {
        let mut all = Vec::new();
        loop {
            idle().await;
            let some = self.read(usize::MAX);
            if some.is_empty() {
                return all;
            }
            all.extend(some);
        }
    }

    async fn watch(&mut self, watch: CreateWatch) -> Vec<WatchResponse> {
        self.handle.create(watch).await;
        self.read_all().await
    }
}

/// Lets the hub run until it has nothing to do: a paused clock moves only when every task waits.
async fn idle() {
    tokio::time::sleep(Duration::from_nanos(1)).await;
}

fn on(key: &'static str, range_end: &'static str) -> CreateWatch {
    CreateWatch {
        key: Bytes::from_static(key.as_bytes()),
        range_end: Bytes::from_static(range_end.as_bytes()),
        ..CreateWatch::default()
    }
}

fn revisions(responses: &[WatchResponse]) -> Vec<i64> {
    let events = responses.iter().flat_map(|response| &response.events);
    events.map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
}

fn header(response: &WatchResponse) -> i64 {
    response.header.as_ref().unwrap().revision
}
