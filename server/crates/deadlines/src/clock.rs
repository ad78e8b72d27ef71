//! The deadlines, shared by apply, by those who serve leases and by the loop that ends them.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use lease::{Expiry, ExpiryOptions, Renewal};
use machine::{CommandKind, LeaseChange, LeaseExpire, Outcome, Proposal};
use prometheus::Counter;
use proto::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest};
use proto::peerpb;
use replica::{Status, Unavailable};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use types::{LeaseId, Planted, Term};

use crate::member::Member;

/// Checkpoints proposed in one entry (etcd: `maxLeaseCheckpointBatchSize`).
const CHECKPOINTS_PER_TURN_MAX: usize = 1000;

/// How long a new leader waits before it looks again whether its first entry is applied.
const TERM_PAUSE: Duration = Duration::from_millis(10);

/// How long a question for the leader waits before it is asked again, of the new one (as etcd's renewals).
const LEADER_PAUSE: Duration = Duration::from_millis(50);

/// How long the loop sleeps at most.
const IDLE: Duration = Duration::from_secs(3600);

/// What a member answers for a lease it does not know.
const NOT_FOUND_TTL: i64 = -1;

/// How a clock runs.
#[derive(Clone, Copy, Debug)]
pub struct ClockOptions {
    /// How often a lease's remaining TTL is recorded for the next leader, if at all.
    pub checkpoint_interval: Option<Duration>,
    /// What every lease gets on top when a leader begins, for the time without one.
    pub extend: Duration,
    /// How long a renewal, or a question for what is left, may take.
    pub patience: Duration,
    /// Leases revoked by one entry; more wait for the next turn.
    pub expired_per_turn_max: usize,
}

/// What a clock counts.
#[derive(Clone, Debug)]
pub struct Counters {
    pub renewed: Counter,
    pub expired: Counter,
}

/// The deadlines of one process; clones share them.
#[derive(Clone)]
pub struct LeaseClock {
    // A std mutex: apply reports changes synchronously, and nobody awaits while holding it.
    expiry: Arc<Mutex<Expiry>>,
    options: ClockOptions,
    started: Instant,
    /// Wakes the loop.
    changed: Arc<Notify>,
    /// Wakes those who wait for the end of a lease, or of a term.
    ended: Arc<Notify>,
    counters: Counters,
}

/// What the loop does in one turn.
struct Turn {
    office: Option<Term>,
    due: Vec<LeaseId>,
    checkpoints: Vec<(LeaseId, i64)>,
    wake: Option<Duration>,
}

impl LeaseClock {
    /// A clock that watches nothing yet.
    pub fn new(options: ClockOptions, counters: Counters) -> Self {
        let expiry = Expiry::new(ExpiryOptions {
            checkpoint_interval: options.checkpoint_interval,
            ..ExpiryOptions::default()
        });
        Self {
            expiry: Arc::new(Mutex::new(expiry)),
            options,
            started: Instant::now(),
            changed: Arc::new(Notify::new()),
            ended: Arc::new(Notify::new()),
            counters,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Expiry> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadlines, after they have followed the leadership.
    fn look(&self, member: &impl Member) -> MutexGuard<'_, Expiry> {
        let mut expiry = self.lock();
        let before = expiry.primary();
        let office = match before {
            Some(_) if Planted::ExpiryOfOldTerm.is_made() => before,
            _ => member.office(),
        };
        expiry.follow(office, self.now(), self.options.extend, || member.leases());
        if expiry.primary() != before {
            self.ended.notify_waiters();
        }
        expiry
    }

    /// Takes note of what apply did.
    pub fn apply(&self, changes: &[LeaseChange]) {
        let now = self.now();
        let mut expiry = self.lock();
        let mut revoked = false;
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => expiry.granted(id, ttl, now),
                LeaseChange::Revoked { id } => {
                    expiry.revoked(id);
                    revoked = true;
                }
                LeaseChange::Checkpointed { id, remaining_ttl } => {
                    expiry.checkpointed(id, remaining_ttl, now);
                }
            }
        }
        drop(expiry);
        self.changed.notify_one();
        if revoked {
            self.ended.notify_waiters();
        }
    }

    /// The state was replaced: what was known of leases is not true any more.
    pub fn forget(&self) {
        self.lock().demote();
        self.changed.notify_one();
        self.ended.notify_waiters();
    }

    /// Leases in order of their deadlines, if this member keeps them.
    pub fn by_deadline(&self, member: &impl Member) -> Option<Vec<LeaseId>> {
        let expiry = self.look(member);
        expiry.primary().map(|_| expiry.by_deadline())
    }

    /// Renews leases on the leader, wherever it is, and goes on there if it changes: a renewal that is
    /// made twice only gives more time. The answer has one TTL per id; 0 for a lease that is gone.
    ///
    /// # Errors
    /// When no leader answered in time.
    pub async fn renew(
        &self,
        member: &impl Member,
        ids: &[LeaseId],
    ) -> Result<Vec<i64>, Unavailable> {
        let (here, there) = (|| self.renew_here(member, ids), || member.renew_at_leader(ids));
        self.at_leader(member, here, there).await
    }

    /// What the leader knows of leases, wherever it is; a new one is asked again.
    ///
    /// # Errors
    /// When no leader answered in time.
    pub async fn time_to_live(
        &self,
        member: &impl Member,
        ids: &[LeaseId],
        keys: bool,
    ) -> Result<Vec<peerpb::LeaseState>, Unavailable> {
        let here = || self.states_here(member, ids, keys);
        self.at_leader(member, here, || member.leases_at_leader(ids, keys)).await
    }

    /// Asks the leader, which is this member or another, and asks again where there is none or it changes:
    /// only for what may be asked twice.
    async fn at_leader<T, H, A>(
        &self,
        member: &impl Member,
        here: impl Fn() -> H,
        there: impl Fn() -> A,
    ) -> Result<T, Unavailable>
    where
        H: Future<Output = Result<T, Unavailable>>,
        A: Future<Output = Result<T, Unavailable>>,
    {
        use Unavailable::{LeaderChanged, NoLeader, NotLeader, TimeoutConnectionLost};
        let status = member.watch_status();
        let attempts = async {
            loop {
                let leads = status.borrow().is_leader();
                let answer = match leads {
                    true => here().await,
                    false => there().await,
                };
                match answer {
                    Err(LeaderChanged | NoLeader | NotLeader | TimeoutConnectionLost) => {
                        sleep(LEADER_PAUSE).await;
                    }
                    answer => return answer,
                }
            }
        };
        match timeout(self.options.patience, attempts).await {
            Ok(answer) => answer,
            Err(_) if status.borrow().answered_leader().is_none() => Err(NoLeader),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    /// Renews leases on this leader.
    ///
    /// # Errors
    /// [`Unavailable::NotLeader`] if it does not keep the deadlines, and why it could not make sure
    /// that it still does.
    pub async fn renew_here(
        &self,
        member: &impl Member,
        ids: &[LeaseId],
    ) -> Result<Vec<i64>, Unavailable> {
        // All at a time: one that is due waits for its revocation, and the others must not.
        let renewals = try_join_all(ids.iter().map(|id| self.renew_one(member, *id)));
        timeout(self.options.patience, renewals).await.unwrap_or(Err(Unavailable::Timeout))
    }

    async fn renew_one(&self, member: &impl Member, id: LeaseId) -> Result<i64, Unavailable> {
        let mut status = member.watch_status();
        loop {
            // Again after each wait below: a deposed leader must not promise time that its successor
            // does not know of.
            member.confirm().await?;
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let (renewal, office) = {
                let mut expiry = self.look(member);
                (expiry.renew(id, self.now()), expiry.primary())
            };
            match renewal {
                Renewal::Renewed { ttl } => {
                    self.counters.renewed.inc();
                    return Ok(ttl);
                }
                Renewal::NotFound => return Ok(0),
                Renewal::NotPrimary => return Err(Unavailable::NotLeader),
                // The remaining time that was recorded for the next leader is no longer true.
                Renewal::CheckpointFirst => {
                    let office = office.ok_or(Unavailable::NotLeader)?;
                    propose_checkpoints(member, office, &[(id, 0)]).await?;
                }
                Renewal::Expired => tokio::select! {
                    biased;
                    () = ended => {}
                    left = left_office(&mut status, office) => left?,
                },
            }
        }
    }

    /// What this leader knows of leases.
    ///
    /// # Errors
    /// When this member does not keep the deadlines, so that it cannot know, or could not make sure that
    /// it knows of every lease.
    pub async fn states_here(
        &self,
        member: &impl Member,
        ids: &[LeaseId],
        with_keys: bool,
    ) -> Result<Vec<peerpb::LeaseState>, Unavailable> {
        member.confirm().await?;
        let found = member.look_up(ids);
        // Only now, so that whoever was deposed during the look-up does not answer (as etcd does).
        let left = self.seconds_left(member, ids)?;
        let state =
            |((id, lease), left): ((&LeaseId, _), Option<i64>)| match Option::zip(lease, left) {
                None => peerpb::LeaseState {
                    id: id.0,
                    ttl: NOT_FOUND_TTL,
                    ..peerpb::LeaseState::default()
                },
                Some((lease, ttl)) => {
                    let lease: Arc<lease::Lease> = lease;
                    let keys = if with_keys { lease.keys().cloned().collect() } else { Vec::new() };
                    peerpb::LeaseState { id: id.0, ttl, granted_ttl: lease.granted_ttl, keys }
                }
            };
        Ok(ids.iter().zip(found).zip(left).map(state).collect())
    }

    /// The whole seconds that each lease has left, negative for one that is overdue; none for a lease
    /// that does not exist.
    fn seconds_left(
        &self,
        member: &impl Member,
        ids: &[LeaseId],
    ) -> Result<Vec<Option<i64>>, Unavailable> {
        let (expiry, now) = (self.look(member), self.now());
        match expiry.primary() {
            None => Err(Unavailable::LeaderChanged),
            Some(_) => Ok(ids.iter().map(|id| expiry.seconds_left(*id, now)).collect()),
        }
    }

    fn turn(&self, member: &impl Member) -> Turn {
        let mut expiry = self.look(member);
        let now = self.now();
        Turn {
            office: expiry.primary(),
            due: expiry.due(now, self.options.expired_per_turn_max),
            checkpoints: expiry.due_checkpoints(now, CHECKPOINTS_PER_TURN_MAX),
            wake: expiry.next_wake().map(|at| at.saturating_sub(now)),
        }
    }

    /// Revokes what is due and records what is left whenever this member leads, until it stops.
    pub async fn run(self, member: impl Member) {
        let mut status = member.watch_status();
        loop {
            let leads = status.borrow_and_update().is_leader();
            let turn = self.turn(&member);
            if !turn.due.is_empty() || !turn.checkpoints.is_empty() {
                tokio::select! {
                    biased;
                    () = self.carry_out(&member, &turn) => {}
                    left = left_office(&mut status, turn.office) => if left.is_err() { return },
                }
                continue;
            }
            let pause = match leads && turn.office.is_none() {
                true => TERM_PAUSE,
                false => turn.wake.unwrap_or(IDLE).min(IDLE),
            };
            tokio::select! {
                biased;
                changed = status.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Proposes what a turn asks for. What does not come through is named again.
    async fn carry_out(&self, member: &impl Member, turn: &Turn) {
        let Some(office) = turn.office else { return };
        if !turn.due.is_empty() {
            let term = match Planted::ExpiryOfOldTerm.is_made() {
                true => member.watch_status().borrow().term,
                false => office,
            };
            let revoke = LeaseExpire { term, ids: turn.due.clone() }.proposal();
            match member.propose(revoke).await {
                Ok(Outcome::LeaseExpire { revoked }) => {
                    let revoked = u32::try_from(revoked.len()).unwrap_or(0);
                    self.counters.expired.inc_by(f64::from(revoked));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "expired leases were not revoked; trying again");
                }
            }
        }
        if !turn.checkpoints.is_empty()
            && let Err(error) = propose_checkpoints(member, office, &turn.checkpoints).await
        {
            tracing::warn!(%error, "lease checkpoints were not recorded");
        }
    }
}

/// Returns when the member does not lead any more in that term.
async fn left_office(
    status: &mut watch::Receiver<Status>,
    office: Option<Term>,
) -> Result<(), Unavailable> {
    let left = |status: &Status| {
        let leads = status.is_leader() && office == Some(status.term);
        !leads && !Planted::ExpiryOfOldTerm.is_made()
    };
    status.wait_for(left).await.map(|_| ()).map_err(|_| Unavailable::Stopped)
}

/// They are of the term whose deadlines they tell: applied later, one would shorten what the next leader
/// has promised since.
async fn propose_checkpoints(
    member: &impl Member,
    office: Term,
    checkpoints: &[(LeaseId, i64)],
) -> Result<(), Unavailable> {
    let request = LeaseCheckpointRequest {
        checkpoints: checkpoints
            .iter()
            .map(|(id, remaining)| LeaseCheckpoint { id: id.0, remaining_ttl: *remaining })
            .collect(),
    };
    let proposal = Proposal::new(CommandKind::LeaseCheckpoint, &request);
    member.propose_in(office, proposal).await.map(|_| ())
}

#[cfg(test)]
mod tests;
