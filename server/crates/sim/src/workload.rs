//! Clients: they put, delete, compare and swap, read, compact, take leases, and watch.
//!
//! A client asks one thing at a time and never asks again for what may have happened. Every value it
//! puts is put only once, so that the history can tell whose it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use machine::{CommandKind, Outcome, Proposal, Refusal};
use mvcc::{RangeError, RangeQuery};
use prost::Message;
use proto::etcdserverpb as pb;
use replica::Unavailable;
use tokio::sync::watch as signal;
use tokio::time::{sleep, timeout};
use types::{ClusterId, KeyRange, MemberId, Term};
use watch::CreateWatch;

use crate::chance::Chance;
use crate::cluster::{Cluster, Service};
use crate::history::{Failure, Request, Response, WatchRecord, decode};

/// What clients are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Work,
    /// Write no more; who watches goes on.
    Settle,
    /// Nothing more will be written after this revision: finish.
    Finish(i64),
}

/// One client.
pub struct Client {
    number: u64,
    cluster: Arc<Cluster>,
    chance: Chance,
    order: signal::Receiver<Order>,
    puts: u64,
    /// What it knows: mod revisions to compare with, the newest revision seen, one to compact at.
    seen: Vec<(Bytes, i64)>,
    newest: i64,
    deleted_at: i64,
    leases: Vec<i64>,
}

impl Client {
    /// A client that has not begun.
    pub fn new(number: u64, cluster: Arc<Cluster>, order: signal::Receiver<Order>) -> Self {
        let chance = Chance::new(cluster.plan.seed.wrapping_add(number << 32), "client");
        Self {
            number,
            cluster,
            chance,
            order,
            puts: 0,
            seen: Vec::new(),
            newest: 1,
            deleted_at: 0,
            leases: Vec::new(),
        }
    }

    /// Works until it is told to finish.
    pub async fn run(mut self) {
        while *self.order.borrow() == Order::Work {
            let think = self.chance.below(self.cluster.plan.workload.think_max_millis * 1000);
            sleep(Duration::from_micros(think)).await;
            // Frozen members are asked too: a client does not know.
            let running = self.cluster.running();
            let Some(service) = self.chance.pick(&running).and_then(|id| self.cluster.service(*id))
            else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let request = self.next_request();
            // The history has it; a client goes on whatever came of it.
            let _ = self.ask(service, request).await;
        }
    }

    /// Puts a value through one member and reads it back there.
    ///
    /// # Errors
    /// What went wrong; a service without faults has no excuse.
    pub async fn prove_service(&mut self, member: MemberId) -> Result<(), String> {
        let Some(service) = self.cluster.service(member) else {
            return Err(format!("member {} does not run", member.0));
        };
        let put = Request::Put(pb::PutRequest {
            key: format!("proof{}", self.number).into(),
            value: self.value(),
            ..pb::PutRequest::default()
        });
        self.ask(service.clone(), put).await?;
        let range = pb::RangeRequest { key: "proof".into(), ..pb::RangeRequest::default() };
        self.ask(service, Request::Range(range)).await.map(|_| ())
    }

    async fn ask(&mut self, service: Service, request: Request) -> Result<Response, String> {
        let history = self.cluster.history.clone();
        let (member, life) = (service.life.member, service.life.clone());
        let id = history.call(self.number, member, life.number, request.clone());
        let asked = request.clone();
        // Longer than any request may take: whoever does not answer until then is frozen.
        let patience = self.cluster.plan.request_timeout * 2;
        let work = life.run(async move { serve(&service, asked).await });
        let result = match timeout(patience, work).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Failure::Unknown("the member died".into())),
            Err(_) => Err(Failure::Unknown("no answer at all".into())),
        };
        history.answer(id, result.clone());
        match result {
            Ok(response) => {
                self.learn(&request, &response);
                Ok(response)
            }
            Err(failure) => Err(format!("{failure:?} by member {}", member.0)),
        }
    }

    fn learn(&mut self, request: &Request, response: &Response) {
        self.newest = self.newest.max(response.revision());
        match (request, response) {
            (Request::Put(put), Response::Put(response)) => {
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                self.remember(put.key.clone(), revision);
            }
            (Request::Range(_), Response::Range(response)) => {
                for kv in &response.kvs {
                    self.remember(kv.key.clone(), kv.mod_revision);
                }
            }
            (Request::Delete(_), Response::Delete(deleted)) if deleted.deleted > 0 => {
                self.deleted_at = response.revision();
            }
            (Request::Grant(grant), _) => self.leases.push(grant.id),
            (Request::Revoke(revoke), _) => self.leases.retain(|id| *id != revoke.id),
            _ => {}
        }
    }

    fn remember(&mut self, key: Bytes, revision: i64) {
        self.seen.retain(|(known, _)| *known != key);
        self.seen.push((key, revision));
    }

    fn key(&mut self) -> Bytes {
        format!("k{:02}", self.chance.below(self.cluster.plan.workload.keys)).into()
    }

    fn value(&mut self) -> Bytes {
        self.puts += 1;
        let mut value = format!("c{}-{}-", self.number, self.puts).into_bytes();
        let padding = self.chance.below(self.cluster.plan.workload.value_bytes_max);
        value.resize(value.len() + padding as usize, b'.');
        value.into()
    }

    fn next_request(&mut self) -> Request {
        let plan = self.cluster.plan.workload.clone();
        let weights = [
            plan.put,
            plan.delete,
            plan.txn,
            plan.range,
            plan.serializable,
            plan.past,
            plan.compact,
            plan.lease,
        ];
        match self.chance.weighted(&weights) {
            0 => Request::Put(self.put()),
            1 => Request::Delete(self.delete()),
            2 => Request::Txn(self.txn()),
            3 => Request::Range(self.range()),
            4 => Request::Range(pb::RangeRequest { serializable: true, ..self.range() }),
            5 => {
                let revision = (self.newest - self.chance.below(20) as i64).max(1);
                let serializable = self.chance.hits(500);
                Request::Range(pb::RangeRequest { revision, serializable, ..self.range() })
            }
            6 => self.compact(),
            _ => self.lease(),
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        let lease = match self.chance.hits(200) {
            true => self.chance.pick(&self.leases).copied().unwrap_or(0),
            false => 0,
        };
        let (key, value, prev_kv) = (self.key(), self.value(), self.chance.hits(500));
        pb::PutRequest { key, value, lease, prev_kv, ..pb::PutRequest::default() }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = self.interval(150);
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.chance.hits(500) }
    }

    /// One key, or sometimes several.
    fn interval(&mut self, several_per_mille: u64) -> (Bytes, Bytes) {
        let key = self.key();
        if !self.chance.hits(several_per_mille) {
            return (key, Bytes::new());
        }
        match self.chance.below(3) {
            0 => (Bytes::from_static(b"k"), Bytes::from_static(b"l")),
            1 => (key, Bytes::from_static(b"\0")),
            _ => {
                let other = self.key();
                (key.clone().min(other.clone()), key.max(other))
            }
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, range_end) = self.interval(500);
        let limit = if self.chance.hits(200) { self.chance.between(1, 4) as i64 } else { 0 };
        pb::RangeRequest { key, range_end, limit, ..pb::RangeRequest::default() }
    }

    fn txn(&mut self) -> pb::TxnRequest {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        use pb::request_op::Request as Op;
        let op = |request| pb::RequestOp { request: Some(request) };
        let (key, expected) = match self.chance.pick(&self.seen).cloned() {
            Some(seen) => seen,
            None => (self.key(), 0),
        };
        let compare = pb::Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(expected)),
            ..pb::Compare::default()
        };
        let mut success =
            vec![op(Op::RequestPut(pb::PutRequest { key: key.clone(), ..self.put() }))];
        let other = self.key();
        if other != key {
            success.push(match self.chance.hits(500) {
                true => op(Op::RequestPut(pb::PutRequest { key: other, ..self.put() })),
                false => op(Op::RequestDeleteRange(pb::DeleteRangeRequest {
                    key: other,
                    ..pb::DeleteRangeRequest::default()
                })),
            });
        }
        success.push(op(Op::RequestRange(self.range())));
        let mut failure = vec![op(Op::RequestRange(self.range()))];
        if self.chance.hits(200) {
            let delete = self.delete();
            failure.push(op(Op::RequestDeleteRange(delete)));
        }
        pb::TxnRequest { compare: vec![compare], success, failure }
    }

    fn compact(&mut self) -> Request {
        // At a deletion as often as not: that is where events get lost.
        let revision = match self.deleted_at > 0 && self.chance.hits(500) {
            true => self.deleted_at,
            false => (self.newest - self.chance.below(30) as i64).max(1),
        };
        Request::Compact(pb::CompactionRequest { revision, physical: false })
    }

    fn lease(&mut self) -> Request {
        match self.chance.pick(&self.leases).copied().filter(|_| self.chance.hits(500)) {
            Some(id) => Request::Revoke(pb::LeaseRevokeRequest { id }),
            None => {
                let id = (self.chance.next_u64() >> 1).max(1) as i64;
                Request::Grant(pb::LeaseGrantRequest { id, ttl: 1000 })
            }
        }
    }
}

/// Whether a reason says that nothing was proposed.
fn failure(reason: Unavailable) -> Failure {
    match reason {
        Unavailable::TooManyRequests | Unavailable::NoLeader | Unavailable::NotLeader => {
            Failure::NotDone(reason.to_string())
        }
        reason => Failure::Unknown(reason.to_string()),
    }
}

/// What a handler of the edge does with a request.
async fn serve(service: &Service, request: Request) -> Result<Response, Failure> {
    let proposal = match &request {
        Request::Range(range) => return serve_range(service, range).await,
        Request::Put(put) => Proposal::new(CommandKind::Put, put),
        Request::Delete(delete) => Proposal::new(CommandKind::DeleteRange, delete),
        Request::Txn(txn) => Proposal::new(CommandKind::Txn, txn),
        Request::Compact(compact) => Proposal::new(CommandKind::Compaction, compact),
        Request::Grant(grant) => Proposal::new(CommandKind::LeaseGrant, grant),
        Request::Revoke(revoke) => Proposal::new(CommandKind::LeaseRevoke, revoke),
    };
    match service.handle.propose(proposal).await.map_err(failure)? {
        Outcome::Put(response) => Ok(Response::Put(response)),
        Outcome::DeleteRange(response) => Ok(Response::Delete(response)),
        Outcome::Txn(response) => Ok(Response::Txn(response)),
        Outcome::Compaction(response) => Ok(Response::Compact(response)),
        Outcome::LeaseGrant(response) => Ok(Response::Grant(response)),
        Outcome::LeaseRevoke(response) => Ok(Response::Revoke(response)),
        Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
        other => Err(Failure::Unknown(format!("an answer to another request: {other:?}"))),
    }
}

async fn serve_range(service: &Service, range: &pb::RangeRequest) -> Result<Response, Failure> {
    if !range.serializable {
        service.handle.read_index().await.map_err(failure)?;
    }
    let keys = KeyRange::from_wire(range.key.clone(), range.range_end.clone());
    let query =
        RangeQuery { limit: range.limit, revision: range.revision, ..RangeQuery::all(keys) };
    match service.handle.views().mvcc.range(&query) {
        Ok(answer) => Ok(Response::Range(pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                revision: answer.revision.0,
                ..pb::ResponseHeader::default()
            }),
            kvs: answer.kvs.iter().map(decode).collect(),
            more: answer.more,
            count: answer.count,
        })),
        Err(RangeError::Compacted) => Err(Failure::Refused(Refusal::Compacted)),
        Err(RangeError::FutureRevision) => Err(Failure::Refused(Refusal::FutureRevision)),
        Err(RangeError::Store(error)) => Err(Failure::NotDone(error.to_string())),
    }
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
        let (handle, mut output) = hub.open();
        handle.create(request.clone()).await;
        let until = Duration::from_millis(self.chance.between(200, 6000));
        let slow = if self.chance.hits(300) { self.chance.between(1, 200) } else { 0 };
        let ends = sleep(until);
        tokio::pin!(ends);
        let member = service.life.member;
        let mut record = WatchRecord { member, request, responses: Vec::new(), complete: None };
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
                        let mut bytes = BytesMut::new();
                        message.encode(ClusterId(1), member, Term(1), &mut bytes);
                        let response = pb::WatchResponse::decode(bytes.freeze())
                            .expect("the hub encodes what can be decoded");
                        record.responses.push(response);
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
        if !record.responses.is_empty() {
            self.cluster.history.watched(record);
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
