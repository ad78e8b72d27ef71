//! The leader's clock over leases.
//!
//! What a lease is and which keys hang on it is replicated and lives in the state machine; when it
//! ends is known only to the leader, on its monotonic clock (`lease::Expiry`). This file feeds that
//! clock with what apply changed, starts it anew when leadership comes here, and proposes the
//! revocation of what is due: one entry for all leases of a turn, carrying the term whose deadlines have
//! passed, so that a leader that was deposed meanwhile revokes nothing, even if it was elected again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lease::{Expiry, ExpiryOptions, Renewal};
use machine::{CommandKind, LeaseChange, LeaseExpire, Outcome, Proposal};
use prometheus::Counter;
use proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest};
use proto::peerpb;
use replica::{Handle, Unavailable};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::LeaseId;

use crate::ops::metrics::Metrics;

/// Leases revoked by one entry; more wait for the next turn.
const EXPIRED_PER_TURN_MAX: usize = 10_000;

/// Checkpoints proposed in one entry (etcd: `maxLeaseCheckpointBatchSize`).
const CHECKPOINTS_PER_TURN_MAX: usize = 1000;

/// How long a new leader waits before it looks again whether its first entry is applied.
const TERM_PAUSE: Duration = Duration::from_millis(10);

/// What a member answers for a lease it does not know.
const NOT_FOUND_TTL: i64 = -1;

/// The deadlines, shared by apply, the lease service and the expiry loop.
#[derive(Clone)]
pub(crate) struct LeaseClock {
    // A std mutex: apply reports changes synchronously, and nobody awaits while holding it.
    expiry: Arc<Mutex<Expiry>>,
    started: Instant,
    changed: Arc<Notify>,
    renewed: Counter,
    expired: Counter,
}

impl LeaseClock {
    pub(crate) fn new(checkpoint_interval: Option<Duration>, metrics: &Metrics) -> Self {
        let options = ExpiryOptions { checkpoint_interval, ..ExpiryOptions::default() };
        Self {
            expiry: Arc::new(Mutex::new(Expiry::new(options))),
            started: Instant::now(),
            changed: Arc::new(Notify::new()),
            renewed: metrics.leases_renewed.clone(),
            expired: metrics.leases_expired.clone(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Expiry> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what apply did.
    pub(crate) fn apply(&self, changes: &[LeaseChange]) {
        let now = self.now();
        let mut expiry = self.lock();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => expiry.granted(id, ttl, now),
                LeaseChange::Revoked { id } => expiry.revoked(id),
                LeaseChange::Checkpointed { id, remaining_ttl } => {
                    expiry.checkpointed(id, remaining_ttl, now);
                }
            }
        }
        drop(expiry);
        self.changed.notify_one();
    }

    /// The time a lease has left, if this member keeps its deadline.
    pub(crate) fn remaining(&self, id: LeaseId) -> Option<Duration> {
        self.lock().remaining(id, self.now())
    }

    /// Leases in order of their deadlines, if this member keeps them.
    pub(crate) fn by_deadline(&self) -> Option<Vec<LeaseId>> {
        let expiry = self.lock();
        expiry.primary().map(|_| expiry.by_deadline())
    }

    /// Renews leases on the leader, wherever it is. The answer has one TTL per id; 0 for a lease
    /// that does not exist or whose time is over.
    ///
    /// # Errors
    /// When no leader could be asked.
    pub(crate) async fn renew(
        &self,
        handle: &Handle,
        ids: &[LeaseId],
    ) -> Result<Vec<i64>, Unavailable> {
        if handle.leads() {
            return self.renew_here(handle, ids).await;
        }
        handle.renew_at_leader(ids).await
    }

    /// Renews leases on this leader, once a quorum has confirmed that it leads: a deposed leader
    /// must not promise time that its successor does not know of.
    pub(crate) async fn renew_here(
        &self,
        handle: &Handle,
        ids: &[LeaseId],
    ) -> Result<Vec<i64>, Unavailable> {
        handle.read_index().await?;
        let mut ttls = Vec::with_capacity(ids.len());
        for id in ids {
            ttls.push(self.renew_one(handle, *id).await?);
        }
        Ok(ttls)
    }

    async fn renew_one(&self, handle: &Handle, id: LeaseId) -> Result<i64, Unavailable> {
        loop {
            let renewal = self.lock().renew(id, self.now());
            match renewal {
                Renewal::Renewed { ttl } => {
                    self.renewed.inc();
                    return Ok(ttl);
                }
                Renewal::NotFound | Renewal::Expired => return Ok(0),
                Renewal::NotPrimary => return Err(Unavailable::NotLeader),
                // The remaining time that was recorded for the next leader is no longer true.
                Renewal::CheckpointFirst => propose_checkpoints(handle, &[(id, 0)]).await?,
            }
        }
    }

    /// What the leader knows of leases, for the peer protocol.
    pub(crate) fn states(
        &self,
        handle: &Handle,
        ids: &[LeaseId],
        with_keys: bool,
    ) -> Vec<peerpb::LeaseState> {
        let views = handle.views();
        ids.iter()
            .map(|id| {
                let Some(lease) = views.lease(*id) else {
                    return peerpb::LeaseState {
                        id: id.0,
                        ttl: NOT_FOUND_TTL,
                        ..Default::default()
                    };
                };
                let Some(left) = self.remaining(*id) else {
                    return peerpb::LeaseState {
                        id: id.0,
                        ttl: NOT_FOUND_TTL,
                        ..Default::default()
                    };
                };
                peerpb::LeaseState {
                    id: id.0,
                    ttl: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    granted_ttl: lease.granted_ttl,
                    keys: if with_keys { lease.keys().cloned().collect() } else { Vec::new() },
                }
            })
            .collect()
    }

    /// The state was replaced: what was known of leases is not true any more.
    pub(crate) fn forget(&self) {
        self.lock().demote();
        self.changed.notify_one();
    }

    fn follow_leadership(&self, handle: &Handle, extend: Duration) {
        let mut expiry = self.lock();
        let leads = handle.leads_with_its_term_applied();
        expiry.follow(leads, self.now(), extend, || handle.views().leases());
    }
}

async fn propose_checkpoints(
    handle: &Handle,
    checkpoints: &[(LeaseId, i64)],
) -> Result<(), Unavailable> {
    let request = LeaseCheckpointRequest {
        checkpoints: checkpoints
            .iter()
            .map(|(id, remaining)| LeaseCheckpoint { id: id.0, remaining_ttl: *remaining })
            .collect(),
    };
    handle.propose(Proposal::new(CommandKind::LeaseCheckpoint, &request)).await.map(|_| ())
}

/// Revokes what is due and records what is left, for as long as this member leads.
pub(crate) async fn expire_leases(
    clock: LeaseClock,
    handle: Handle,
    election_timeout: Duration,
    stop: CancellationToken,
) {
    let mut status = handle.watch_status();
    loop {
        clock.follow_leadership(&handle, election_timeout);
        let (primary, due, checkpoints, wake) = {
            let (now, mut expiry) = (clock.now(), clock.lock());
            let due = expiry.due(now, EXPIRED_PER_TURN_MAX);
            let checkpoints = expiry.due_checkpoints(now, CHECKPOINTS_PER_TURN_MAX);
            (expiry.primary(), due, checkpoints, expiry.next_wake())
        };
        if let Some(term) = primary.filter(|_| !due.is_empty()) {
            // It is named again if its revocation does not arrive in time.
            let revoke = LeaseExpire { term, ids: due }.proposal();
            match handle.propose(revoke).await {
                Ok(Outcome::LeaseExpire { revoked }) => {
                    clock.expired.inc_by(f64::from(u32::try_from(revoked.len()).unwrap_or(0)));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "expired leases were not revoked; trying again");
                }
            }
            continue;
        }
        if !checkpoints.is_empty() {
            if let Err(error) = propose_checkpoints(&handle, &checkpoints).await {
                tracing::warn!(%error, "lease checkpoints were not recorded");
            }
            continue;
        }
        let waits_for_term = handle.leads() && clock.lock().primary().is_none();
        let until_wake = match waits_for_term {
            true => TERM_PAUSE,
            false => wake.map_or(Duration::MAX, |at| at.saturating_sub(clock.now())),
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            () = clock.changed.notified() => {}
            () = tokio::time::sleep(until_wake.min(Duration::from_secs(3600))) => {}
        }
    }
}
