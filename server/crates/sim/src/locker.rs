//! Clients that lock and campaign, by the recipes that the server's services run.
//!
//! A candidate takes a lease for a few seconds and nobody keeps it alive, so that it may be over at any
//! step. What it does as the holder it does fenced, and through any member.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use concurrency::{Calls, Place};
use machine::Refusal;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::{self as pb, ResponseHeader};
use proto::mvccpb::event::EventType;
use tokio::sync::watch as signal;
use tokio::time::{sleep, timeout};
use types::LeaseId;
use watch::CreateWatch;

use crate::chance::Chance;
use crate::cluster::Service;
use crate::history::{Claim, Failure, Request, Response};
use crate::session::Session;
use crate::watcher::response_of;
use crate::workload::Order;

/// How long a candidate waits for its turn.
const PATIENCE: Duration = Duration::from_secs(6);

/// How often a lease is revoked at the end until that is certain.
pub(crate) const CLEAN_UP_TRIES: usize = 100;

/// The longest lease of a candidate, or of who keeps leases alive, in seconds. Those of other clients
/// outlast every run.
pub const TTL_MAX: i64 = 3;

/// One candidate after the other.
pub struct Locker {
    session: Arc<Session>,
    chance: Chance,
    order: signal::Receiver<Order>,
    puts: u64,
    /// Leases that it asked for.
    leases: Vec<i64>,
}

/// The recipes' calls, all of them to one member.
struct MemberCalls<'s> {
    session: &'s Session,
    service: &'s Service,
}

impl MemberCalls<'_> {
    async fn ask(&self, request: Request) -> Result<Response, Failure> {
        self.session.ask(self.service, request).await
    }
}

fn unexpected(response: &Response) -> Failure {
    Failure::Unknown(format!("an answer to another request: {response:?}"))
}

impl Calls for MemberCalls<'_> {
    type Error = Failure;

    async fn txn(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
        match self.ask(Request::Txn(txn)).await? {
            Response::Txn(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn range(&self, range: pb::RangeRequest) -> Result<pb::RangeResponse, Failure> {
        match self.ask(Request::Range(range)).await? {
            Response::Range(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    }

    async fn wait_for_deletion(&self, key: Bytes, revision: i64) -> Result<(), Failure> {
        let lost = || Failure::NotDone("the watch has ended".to_owned());
        let hub = self.service.hub.clone().ok_or_else(lost)?;
        let (handle, mut output) = hub.open();
        let request = CreateWatch { key, start_revision: revision, ..CreateWatch::default() };
        handle.create(request).await;
        loop {
            let message = tokio::select! {
                biased;
                () = self.service.life.ended() => return Err(lost()),
                message = output.next() => message.ok_or_else(lost)?,
            };
            let response = response_of(&message, self.service.life.member);
            if response.canceled {
                return Err(lost());
            }
            if response.events.iter().any(|event| event.r#type() == EventType::Delete) {
                return Ok(());
            }
        }
    }
}

/// A candidate whose turn it is.
struct Turn {
    place: Place,
    lease: LeaseId,
    election: bool,
}

impl Locker {
    /// A client that has not begun.
    pub fn new(session: Arc<Session>, order: signal::Receiver<Order>) -> Self {
        let seed = session.cluster.plan.seed.wrapping_add(session.number << 32);
        Self { session, chance: Chance::new(seed, "locker"), order, puts: 0, leases: Vec::new() }
    }

    /// Works until it is told to finish.
    pub async fn run(mut self) {
        while self.works() {
            sleep(Duration::from_millis(self.chance.between(1, 300))).await;
            if let Some(turn) = self.wait_for_turn().await {
                self.use_turn(&turn).await;
                self.end_turn(&turn).await;
            }
        }
        self.clean_up().await;
    }

    /// Ends all leases, so that nothing is written any more when clients have finished. Time alone
    /// may not end them: each new leader gives them all of their time again, and where messages take
    /// longer than a heartbeat interval leaders change more often than that.
    async fn clean_up(&mut self) {
        for id in std::mem::take(&mut self.leases) {
            for _ in 0..CLEAN_UP_TRIES {
                let ended = match self.session.any_service(&mut self.chance) {
                    None => false,
                    Some(service) => {
                        let revoke = Request::Revoke(pb::LeaseRevokeRequest { id });
                        let told = self.session.ask(&service, revoke).await;
                        matches!(told, Ok(_) | Err(Failure::Refused(Refusal::LeaseNotFound)))
                    }
                };
                if ended {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn works(&self) -> bool {
        *self.order.borrow() == Order::Work
    }

    fn value(&mut self) -> Bytes {
        self.puts += 1;
        format!("l{}-{}", self.session.number, self.puts).into()
    }

    async fn wait_for_turn(&mut self) -> Option<Turn> {
        let service = self.session.any_service(&mut self.chance)?;
        let lease = LeaseId((self.chance.next_u64() >> 1).max(1) as i64);
        let ttl = self.chance.between(1, TTL_MAX as u64) as i64;
        self.leases.push(lease.0);
        let grant = Request::Grant(pb::LeaseGrantRequest { id: lease.0, ttl });
        self.session.ask(&service, grant).await.ok()?;
        let election = self.chance.hits(400);
        let number = self.chance.below(self.session.cluster.plan.locks.names);
        let name = format!("{}{number}", if election { "election" } else { "lock" });
        let session = self.session.clone();
        let calls = MemberCalls { session: &session, service: &service };
        let place = match election {
            true => {
                let value = self.value();
                timeout(PATIENCE, campaign(&calls, name.as_bytes(), lease, value)).await
            }
            false => timeout(PATIENCE, self.lock(&calls, name.as_bytes(), lease)).await,
        };
        Some(Turn { place: place.ok()?.ok()??, lease, election })
    }

    /// As the server's service does it.
    async fn lock(
        &self,
        calls: &MemberCalls<'_>,
        name: &[u8],
        lease: LeaseId,
    ) -> Result<Option<Place>, Failure> {
        let entered = concurrency::enter(calls, name, lease).await?;
        let place = entered.place;
        if entered.first {
            self.claim(&place, lease, revision(entered.header), false);
            return Ok(Some(place));
        }
        match place.wait(calls).await {
            Ok(()) => {}
            Err(failure) => {
                let key = place.key.clone();
                let leave = pb::DeleteRangeRequest { key, ..Default::default() };
                // If it fails, the key goes with its lease.
                let _ = calls.ask(Request::Delete(leave)).await;
                return Err(failure);
            }
        }
        let Some(header) = place.confirm(calls).await? else { return Ok(None) };
        self.claim(&place, lease, revision(header), false);
        Ok(Some(place))
    }

    fn claim(&self, place: &Place, lease: LeaseId, revision: i64, wrote: bool) {
        let (client, place) = (self.session.number, place.clone());
        let claim = Claim { client, place, lease: lease.0, revision, wrote };
        self.session.cluster.history.claimed(claim);
    }

    /// Writes as the holder, some time after it became it.
    async fn use_turn(&mut self, turn: &Turn) {
        for _ in 0..self.chance.between(1, 5) {
            sleep(Duration::from_millis(self.chance.between(1, 900))).await;
            let Some(service) = self.session.any_service(&mut self.chance) else { return };
            let value = self.value();
            let txn = match turn.election && self.chance.hits(500) {
                true => turn.place.proclaim(value, turn.lease),
                false => turn.place.guard(vec![pb::RequestOp {
                    request: Some(Operation::RequestPut(pb::PutRequest {
                        key: [b"done-", turn.place.directory.as_ref()].concat().into(),
                        value,
                        ..Default::default()
                    })),
                }]),
            };
            match self.session.ask(&service, Request::Txn(txn)).await {
                Ok(Response::Txn(done)) if done.succeeded => {
                    self.claim(&turn.place, turn.lease, revision(done.header), true);
                }
                // It holds it no more.
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    /// Gives it up, in one way or another, or leaves that to the lease.
    async fn end_turn(&mut self, turn: &Turn) {
        let Some(service) = self.session.any_service(&mut self.chance) else { return };
        let end = match self.chance.below(4) {
            0 => Request::Delete(pb::DeleteRangeRequest {
                key: turn.place.key.clone(),
                ..Default::default()
            }),
            1 => Request::Txn(turn.place.resign()),
            2 => Request::Revoke(pb::LeaseRevokeRequest { id: turn.lease.0 }),
            _ => return,
        };
        // Whatever came of it, the lease ends.
        let _ = self.session.ask(&service, end).await;
    }
}

/// As the server's service does it; that a candidate whose lease ended meanwhile is told that it leads
/// is etcd's way too, and why it must proclaim before it believes it.
async fn campaign(
    calls: &MemberCalls<'_>,
    name: &[u8],
    lease: LeaseId,
    value: Bytes,
) -> Result<Option<Place>, Failure> {
    let entered = concurrency::campaign(calls, name, lease, value).await?;
    entered.place.wait(calls).await?;
    Ok(Some(entered.place))
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
