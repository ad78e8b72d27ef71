//! Clients that take one lease after the other: they attach a key, keep the lease alive for a while, and
//! then revoke it or leave it to its time.

use std::sync::Arc;
use std::time::Duration;

use history::leases::{Lease, Renewal, Told};
use machine::Refusal;
use proto::etcdserverpb as pb;
use tokio::sync::watch as signal;
use tokio::time::sleep;

use crate::chance::Chance;
use crate::history::{Failure, Request};
use crate::locker::TTL_MAX;
use crate::session::Session;
use crate::workload::Order;

const RENEWALS_MAX: u64 = 10;

/// One lease after the other.
pub struct Keeper {
    session: Arc<Session>,
    chance: Chance,
    order: signal::Receiver<Order>,
    puts: u64,
    /// Those that had a key.
    kept: Vec<Lease>,
    /// Those that it does not know enough about to say when they must be over.
    unsure: Vec<i64>,
}

impl Keeper {
    /// A client that has not begun.
    pub fn new(session: Arc<Session>, order: signal::Receiver<Order>) -> Self {
        let seed = session.cluster.plan.seed.wrapping_add(session.number << 32);
        let chance = Chance::new(seed, "keeper");
        Self { session, chance, order, puts: 0, kept: Vec::new(), unsure: Vec::new() }
    }

    /// Works until it is told to finish.
    pub async fn run(mut self) {
        while self.works() {
            sleep(Duration::from_millis(self.chance.between(1, 300))).await;
            let Some(mut lease) = self.take().await else { continue };
            self.keep_alive(&mut lease).await;
            if self.chance.hits(300) {
                self.revoke(&mut lease).await;
            }
            self.kept.push(lease);
        }
        self.clean_up().await;
        self.session.cluster.history.kept(self.kept);
    }

    fn works(&self) -> bool {
        *self.order.borrow() == Order::Work
    }

    fn now(&self) -> u64 {
        self.session.cluster.history.now()
    }

    /// A lease with a key.
    async fn take(&mut self) -> Option<Lease> {
        let service = self.session.any_service(&mut self.chance)?;
        let id = (self.chance.next_u64() >> 1).max(1) as i64;
        let ttl = self.chance.between(1, TTL_MAX as u64);
        let called = self.now();
        let grant = Request::Grant(pb::LeaseGrantRequest { id, ttl: ttl as i64 });
        let granted = self.session.ask(&service, grant).await;
        let renewal = Renewal { called, returned: self.now(), told: Told::Renewed };
        let ttl = Duration::from_secs(ttl).as_nanos() as u64;
        let mut lease = Lease { id, ttl, renewals: vec![renewal], revoked: None };
        self.puts += 1;
        // No other client writes keys that come before its own.
        let put = pb::PutRequest {
            key: format!("alive/{id}").into(),
            value: format!("a{}-{}", self.session.number, self.puts).into(),
            lease: id,
            ..pb::PutRequest::default()
        };
        let called = self.now();
        let attached = match granted {
            Ok(_) => self.session.ask(&service, Request::Put(put)).await,
            Err(failure) => Err(failure),
        };
        match attached {
            Ok(_) => Some(lease),
            Err(Failure::Refused(Refusal::LeaseNotFound)) => {
                lease.renewals.push(Renewal { called, returned: self.now(), told: Told::Gone });
                Some(lease)
            }
            Err(_) => {
                self.unsure.push(id);
                None
            }
        }
    }

    async fn keep_alive(&mut self, lease: &mut Lease) {
        let millis = lease.ttl / 1_000_000;
        for _ in 0..self.chance.below(RENEWALS_MAX + 1) {
            if !self.works() {
                return;
            }
            // Mostly in time, sometimes in the moment in which it ends.
            let late = if self.chance.hits(200) { millis + 100 } else { millis / 2 };
            sleep(Duration::from_millis(self.chance.between(50, late))).await;
            if self.renew(lease).await == Told::Gone {
                // What is gone stays gone.
                self.renew(lease).await;
                return;
            }
        }
    }

    async fn renew(&mut self, lease: &mut Lease) -> Told {
        let Some(service) = self.session.any_service(&mut self.chance) else {
            return Told::Nothing;
        };
        let called = self.now();
        let told = match self.session.keep_alive(&service, lease.id).await {
            None => Told::Nothing,
            Some(0) => Told::Gone,
            Some(_) => Told::Renewed,
        };
        lease.renewals.push(Renewal { called, returned: self.now(), told });
        told
    }

    /// Whether it is certain that the lease is gone.
    async fn revoke(&mut self, lease: &mut Lease) -> bool {
        let Some(service) = self.session.any_service(&mut self.chance) else { return false };
        lease.revoked.get_or_insert(self.now());
        let revoke = Request::Revoke(pb::LeaseRevokeRequest { id: lease.id });
        let told = self.session.ask(&service, revoke).await;
        matches!(told, Ok(_) | Err(Failure::Refused(Refusal::LeaseNotFound)))
    }

    /// Ends all leases, so that nothing is written any more when clients have finished; see
    /// [`crate::locker::Locker`].
    async fn clean_up(&mut self) {
        let unsure = std::mem::take(&mut self.unsure).into_iter();
        let unsure = unsure.map(|id| Lease { id, ttl: 0, renewals: Vec::new(), revoked: None });
        let mut kept = std::mem::take(&mut self.kept);
        for lease in &mut kept {
            self.end(lease).await;
        }
        for mut lease in unsure {
            self.end(&mut lease).await;
        }
        self.kept = kept;
    }

    async fn end(&mut self, lease: &mut Lease) {
        for _ in 0..crate::locker::CLEAN_UP_TRIES {
            if self.revoke(lease).await {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
