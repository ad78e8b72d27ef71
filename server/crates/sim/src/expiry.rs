//! The leader's clock over leases, as the edge of a member keeps it.
//!
//! What decides is the real [`lease::Expiry`]; this only feeds it, like `leases.rs` of the server does:
//! with what apply changed, with leadership, with the time; and proposes what it names. Leases are not
//! kept alive here, and nothing is checkpointed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lease::{Expiry, ExpiryOptions};
use machine::{LeaseChange, LeaseExpire};
use replica::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Leases that one entry ends at most; few, so that there are several entries.
const EXPIRED_PER_TURN_MAX: usize = 3;

/// How long a new leader waits before it looks again whether its first entry is applied.
const TERM_PAUSE: Duration = Duration::from_millis(10);

/// The deadlines of one process.
#[derive(Clone)]
pub struct LeaseClock {
    expiry: Arc<Mutex<Expiry>>,
    started: Instant,
    changed: Arc<Notify>,
}

impl LeaseClock {
    /// A clock that watches nothing.
    pub fn new() -> Self {
        let expiry = Expiry::new(ExpiryOptions::default());
        Self {
            expiry: Arc::new(Mutex::new(expiry)),
            started: Instant::now(),
            changed: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Expiry> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what apply did.
    pub fn apply(&self, changes: &[LeaseChange]) {
        let now = self.started.elapsed();
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
        self.changed.notify_one();
    }

    /// The state was replaced: what was known of leases is not true any more.
    pub fn forget(&self) {
        self.lock().demote();
        self.changed.notify_one();
    }

    fn follow_leadership(&self, handle: &Handle, extend: Duration) {
        let mut expiry = self.lock();
        let leads = handle.leads_with_its_term_applied();
        expiry.follow(leads, self.started.elapsed(), extend, || handle.views().leases());
    }

    /// Ends leases whose time is over, for as long as the process lives.
    pub async fn run(self, handle: Handle, election_timeout: Duration) {
        let mut status = handle.watch_status();
        loop {
            self.follow_leadership(&handle, election_timeout);
            let now = self.started.elapsed();
            let (primary, due, wake) = {
                let mut expiry = self.lock();
                let due = expiry.due(now, EXPIRED_PER_TURN_MAX);
                (expiry.primary(), due, expiry.next_wake())
            };
            if let Some(term) = primary.filter(|_| !due.is_empty()) {
                let revoke = LeaseExpire { term, ids: due }.proposal();
                // What did not arrive is named again.
                let _ = handle.propose(revoke).await;
                continue;
            }
            let waits_for_term = handle.leads() && self.lock().primary().is_none();
            let until_wake = match waits_for_term {
                true => TERM_PAUSE,
                false => wake.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now)),
            };
            tokio::select! {
                biased;
                changed = status.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = sleep(until_wake) => {}
            }
        }
    }
}

impl Default for LeaseClock {
    fn default() -> Self {
        Self::new()
    }
}
