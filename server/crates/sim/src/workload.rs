//! Clients: they put, delete, compare and swap, read, compact and take leases.
//!
//! A client asks one thing at a time and never asks again for what may have happened. Every value it
//! puts is put only once, so that the history can tell whose it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::{authpb, etcdserverpb as pb};
use tokio::sync::watch as signal;
use tokio::time::sleep;
use types::MemberId;

use crate::auth::AuthRequest;
use crate::chance::Chance;
use crate::cluster::{Cluster, Service};
use crate::history::{Request, Response};
use crate::session::Session;

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
    session: Arc<Session>,
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
    pub fn new(session: Arc<Session>, order: signal::Receiver<Order>) -> Self {
        let cluster = session.cluster.clone();
        let seed = cluster.plan.seed.wrapping_add(session.number << 32);
        let chance = Chance::new(seed, "client");
        Self {
            session,
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
            let Some(service) = self.session.any_service(&mut self.chance) else {
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
            key: format!("proof{}", self.session.number).into(),
            value: self.value(),
            ..pb::PutRequest::default()
        });
        self.ask(service.clone(), put).await?;
        let range = pb::RangeRequest { key: "proof".into(), ..pb::RangeRequest::default() };
        self.ask(service, Request::Range(range)).await.map(|_| ())
    }

    async fn ask(&mut self, service: Service, request: Request) -> Result<Response, String> {
        match self.session.ask(&service, request.clone()).await {
            Ok(response) => {
                self.learn(&request, &response);
                Ok(response)
            }
            Err(failure) => Err(format!("{failure:?} by member {}", service.life.member.0)),
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
        // Whoever writes to a candidate's key takes it from its lease: that is not what locks are for.
        if key.starts_with(b"lock") || key.starts_with(b"election") {
            return;
        }
        self.seen.retain(|(known, _)| *known != key);
        self.seen.push((key, revision));
    }

    fn key(&mut self) -> Bytes {
        format!("k{:02}", self.chance.below(self.cluster.plan.workload.keys)).into()
    }

    fn value(&mut self) -> Bytes {
        self.puts += 1;
        let mut value = format!("c{}-{}-", self.session.number, self.puts).into_bytes();
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
        if self.session.user.is_some() && self.chance.hits(10) {
            return self.presumptuous();
        }
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

    /// What only administrators may do.
    fn presumptuous(&mut self) -> Request {
        Request::Other(match self.chance.below(3) {
            0 => AuthRequest::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
                name: "r1".to_owned(),
                perm: Some(authpb::Permission {
                    perm_type: authpb::permission::Type::Readwrite as i32,
                    key: self.key(),
                    range_end: Bytes::from_static(&[0]),
                }),
            }),
            1 => AuthRequest::Disable(pb::AuthDisableRequest {}),
            _ => AuthRequest::UserList(pb::AuthUserListRequest {}),
        })
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
