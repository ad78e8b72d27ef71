//! Clients that only watch.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use history::watches::WatchRecord;
use prost::Message;
use proto::etcdserverpb as pb;
use tokio::sync::watch as signal;
use tokio::time::sleep;
use types::{ClusterId, MemberId, Term};
use watch::{CreateWatch, WatchMessage};

use crate::chance::Chance;
use crate::cluster::{Cluster, Service};
use crate::counts::Event;
use crate::workload::Order;

/// A message of the hub as a client reads it.
pub fn response_of(message: &WatchMessage, member: MemberId) -> pb::WatchResponse {
    let mut bytes = BytesMut::new();
    message.encode(ClusterId(1), member, Term(1), &mut bytes);
    pb::WatchResponse::decode(bytes.freeze()).expect("the hub encodes what can be decoded")
}

/// A client that only watches.
pub struct Watcher {
    cluster: Arc<Cluster>,
    chance: Chance,
    order: signal::Receiver<Order>,
}

/// How long a watch without news counts as having everything.
const QUIET: Duration = Duration::from_millis(500);

impl Watcher {
    /// A watcher that has not begun.
    pub fn new(number: u64, cluster: Arc<Cluster>, order: signal::Receiver<Order>) -> Self {
        let chance = Chance::new(cluster.plan.seed.wrapping_add(number << 32), "watcher");
        Self { cluster, chance, order }
    }

    /// Watches one thing after the other until it is told to finish.
    pub async fn run(mut self) {
        while !matches!(*self.order.borrow(), Order::Finish(_)) {
            let running = self.cluster.running();
            let service = self.chance.pick(&running).and_then(|id| self.cluster.service(*id));
            match service {
                Some(service) => self.watch(service).await,
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn watch(&mut self, service: Service) {
        let Some(hub) = service.hub.clone() else {
            sleep(Duration::from_millis(50)).await;
            return;
        };
        let request = self.request(&service);
        let newest = service.handle.views().mvcc.revision().0;
        let (handle, mut output) = hub.open();
        handle.create(request.clone()).await;
        let until = Duration::from_millis(self.chance.between(200, 6000));
        let slow = if self.chance.hits(300) { self.chance.between(1, 200) } else { 0 };
        let ends = sleep(until);
        tokio::pin!(ends);
        let member = service.life.member;
        let mut record =
            WatchRecord { member: member.0, request, responses: Vec::new(), complete: None };
        let mut finish = None;
        loop {
            let wait = async {
                match finish {
                    Some(_) => sleep(QUIET).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = service.life.ended() => break,
                message = output.next() => match message {
                    None => break,
                    Some(message) => {
                        record.responses.push(response_of(&message, member));
                        sleep(Duration::from_millis(slow)).await;
                    }
                },
                () = wait => {
                    record.complete = finish;
                    break;
                }
                () = &mut ends, if finish.is_none() => {
                    match *self.order.borrow() {
                        Order::Work | Order::Settle => break,
                        Order::Finish(revision) => finish = Some(revision),
                    }
                }
                changed = self.order.changed(), if finish.is_none() => {
                    if changed.is_err() {
                        break;
                    }
                    if let Order::Finish(revision) = *self.order.borrow() {
                        finish = Some(revision);
                    }
                }
            }
        }
        drop(handle);
        let over = record.responses.last().is_some_and(|last| last.canceled);
        self.cluster.trace.note(format_args!(
            "watch on {} from {} over: {} responses, cancelled: {over}",
            member.0,
            record.request.start_revision,
            record.responses.len()
        ));
        self.count(&record, newest);
        if !record.responses.is_empty() {
            self.cluster.history.watched(record);
        }
    }

    /// Counts what is special about a watch that began when `newest` was the last revision.
    fn count(&self, record: &WatchRecord<u64>, newest: i64) {
        let trace = &self.cluster.trace;
        let events = record.responses.iter().flat_map(|response| &response.events);
        let mut changes = events.filter_map(|event| event.kv.as_ref());
        if changes.any(|kv| kv.mod_revision <= newest) {
            trace.count(Event::WatchResumed);
        }
        if record.responses.iter().any(|response| response.compact_revision > 0) {
            trace.count(Event::WatchCompacted);
        }
    }

    fn request(&mut self, service: &Service) -> CreateWatch {
        let view = service.handle.views().mvcc;
        let (newest, compacted) = (view.revision().0, view.compact_revision().0);
        let start_revision = match self.chance.below(6) {
            0 => 0,
            1 | 2 => compacted.max(1),
            3 => newest + self.chance.between(1, 10) as i64,
            4 => (newest - self.chance.below(40) as i64).max(1),
            _ => 1,
        };
        let (key, range_end) = match self.chance.below(3) {
            0 => (format!("k{:02}", self.chance.below(3)).into(), Bytes::new()),
            _ => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
        };
        CreateWatch {
            key,
            range_end,
            start_revision,
            progress_notify: self.chance.hits(500),
            no_put: self.chance.hits(100),
            no_delete: self.chance.hits(100),
            prev_kv: self.chance.hits(500),
            fragment: self.chance.hits(200),
            watch_id: 0,
        }
    }
}
