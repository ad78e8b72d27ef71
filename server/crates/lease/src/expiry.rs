//! The leader's deadlines.
//!
//! Every method takes `now`, the leader's monotonic clock as a duration since any fixed instant. A
//! wall clock must not be used: etcd's leases once went negative when it stepped (#12291, T23).
//!
//! What the caller has to do, because only it can:
//! - call [`Expiry::promote`] once the new leader has applied the first entry of its own term. By
//!   then every checkpoint and revocation of earlier terms is in the facts it passes in. A member that
//!   was deposed and elected again is a new leader: another may have renewed leases meanwhile.
//! - before it acknowledges a renewal, make sure that it is still the leader (one ReadIndex round
//!   serves all renewals that wait). A deposed leader's word would not bind its successor.
//! - propose the revocation of what [`Expiry::due`] names with the term of the promotion, so that apply
//!   can refuse it after a change of leader (#15247, T18).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::{LeaseId, Term};

/// How the leader watches leases.
#[derive(Clone, Copy, Debug)]
pub struct ExpiryOptions {
    /// How long to wait before a due lease whose revocation did not come through is named again
    /// (etcd: `defaultExpiredleaseRetryInterval`, 3 s).
    pub retry: Duration,
    /// How often a lease's remaining TTL is checkpointed; `None` turns checkpoints off, as etcd does
    /// by default.
    pub checkpoint_interval: Option<Duration>,
}

impl Default for ExpiryOptions {
    fn default() -> Self {
        Self { retry: Duration::from_secs(3), checkpoint_interval: None }
    }
}

/// What a request to renew came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives for its whole TTL again, in seconds.
    Renewed { ttl: i64 },
    /// A checkpoint says that less than the TTL is left. It must be taken back through the log (a
    /// checkpoint of 0), then renew again; else the next leader would expire the lease early.
    CheckpointFirst,
    /// The deadline has passed. Wait until the lease is revoked (then it is not found) or another
    /// leader takes over: answering "renewed" or "gone" now could both turn out wrong.
    Expired,
    /// There is no such lease.
    NotFound,
    /// This member is not the leader, so it knows no deadlines.
    NotPrimary,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    ttl: i64,
    remaining_ttl: i64,
    deadline: Duration,
    /// Its place in `queue`: the deadline, or the next retry once it was named due.
    wake: Duration,
    /// Whether it was named due; from then on nothing moves the deadline.
    named: bool,
    checkpoint: Option<Duration>,
}

/// Deadlines of all leases, while this member leads.
#[derive(Debug)]
pub struct Expiry {
    options: ExpiryOptions,
    /// The term in which this member was promoted.
    primary: Option<Term>,
    leases: BTreeMap<LeaseId, Watched>,
    queue: BTreeSet<(Duration, LeaseId)>,
    checkpoints: BTreeSet<(Duration, LeaseId)>,
}

impl Expiry {
    /// A follower's view: no deadlines until [`Expiry::promote`].
    pub fn new(options: ExpiryOptions) -> Self {
        Self {
            options,
            primary: None,
            leases: BTreeMap::new(),
            queue: BTreeSet::new(),
            checkpoints: BTreeSet::new(),
        }
    }

    /// Starts all deadlines anew: each lease gets its checkpointed remaining TTL, or all of its TTL,
    /// plus `extend` for the time the cluster was without a leader. `leases` yields id, granted TTL
    /// and remaining TTL.
    pub fn promote(
        &mut self,
        term: Term,
        now: Duration,
        extend: Duration,
        leases: impl IntoIterator<Item = (LeaseId, i64, i64)>,
    ) {
        self.demote();
        self.primary = Some(term);
        for (id, ttl, remaining_ttl) in leases {
            let left = if remaining_ttl > 0 { remaining_ttl } else { ttl };
            self.watch(id, ttl, remaining_ttl, now + seconds(left) + extend);
            self.schedule_checkpoint(id, now);
        }
    }

    /// Forgets all deadlines: another member leads.
    pub fn demote(&mut self) {
        self.primary = None;
        self.leases.clear();
        self.queue.clear();
        self.checkpoints.clear();
    }

    /// Promotes when this member leads in a term in which it was not promoted yet, demotes when it does
    /// not lead; `leases` is asked only for a promotion.
    pub fn follow<L: IntoIterator<Item = (LeaseId, i64, i64)>>(
        &mut self,
        leads: Option<Term>,
        now: Duration,
        extend: Duration,
        leases: impl FnOnce() -> L,
    ) {
        if leads == self.primary {
            return;
        }
        match leads {
            Some(term) => self.promote(term, now, extend, leases()),
            None => self.demote(),
        }
    }

    /// The term since whose beginning this member keeps the deadlines, if it does.
    pub fn primary(&self) -> Option<Term> {
        self.primary
    }

    /// A grant was applied.
    pub fn granted(&mut self, id: LeaseId, ttl: i64, now: Duration) {
        if self.primary.is_some() && !self.leases.contains_key(&id) {
            self.watch(id, ttl, 0, now + seconds(ttl));
            self.schedule_checkpoint(id, now);
        }
    }

    /// A revocation was applied.
    pub fn revoked(&mut self, id: LeaseId) {
        if let Some(watched) = self.leases.remove(&id) {
            self.queue.remove(&(watched.wake, id));
            if let Some(at) = watched.checkpoint {
                self.checkpoints.remove(&(at, id));
            }
        }
    }

    /// A checkpoint was applied. Taking a checkpoint back (0) means that somebody is renewing: if it
    /// was written under an earlier leader, the deadline counted from the old checkpoint is too
    /// early, so it starts anew.
    pub fn checkpointed(&mut self, id: LeaseId, remaining_ttl: i64, now: Duration) {
        let Some(watched) = self.leases.get_mut(&id) else { return };
        let taken_back = watched.remaining_ttl > 0 && remaining_ttl == 0;
        watched.remaining_ttl = remaining_ttl;
        if taken_back && !watched.named {
            let deadline = now + seconds(watched.ttl);
            self.move_deadline(id, deadline);
        }
        self.schedule_checkpoint(id, now);
    }

    /// Somebody asks to keep the lease alive.
    pub fn renew(&mut self, id: LeaseId, now: Duration) -> Renewal {
        if self.primary.is_none() {
            return Renewal::NotPrimary;
        }
        let Some(watched) = self.leases.get(&id) else { return Renewal::NotFound };
        if watched.named || watched.deadline <= now {
            return Renewal::Expired;
        }
        if watched.remaining_ttl > 0 {
            return Renewal::CheckpointFirst;
        }
        let ttl = watched.ttl;
        self.move_deadline(id, now + seconds(ttl));
        Renewal::Renewed { ttl }
    }

    /// At most `max` leases whose time is over, the longest overdue first. A lease is named again
    /// only when its revocation has not been applied within the retry interval.
    pub fn due(&mut self, now: Duration, max: usize) -> Vec<LeaseId> {
        let mut due = Vec::new();
        while due.len() < max {
            let Some(&(wake, id)) = self.queue.first() else { break };
            if wake > now {
                break;
            }
            self.queue.pop_first();
            let watched = self.leases.get_mut(&id).expect("the queue holds only watched leases");
            assert!(watched.deadline <= now, "lease {id} named before its deadline");
            watched.named = true;
            watched.wake = now + self.options.retry;
            self.queue.insert((watched.wake, id));
            due.push(id);
        }
        due
    }

    /// When [`Expiry::due`] or [`Expiry::due_checkpoints`] will next have something to say.
    pub fn next_wake(&self) -> Option<Duration> {
        let queue = self.queue.first().map(|(at, _)| *at);
        let checkpoint = self.checkpoints.first().map(|(at, _)| *at);
        match (queue, checkpoint) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// At most `max` checkpoints to propose: lease and remaining TTL in seconds, rounded up.
    pub fn due_checkpoints(&mut self, now: Duration, max: usize) -> Vec<(LeaseId, i64)> {
        let mut due = Vec::new();
        while due.len() < max {
            let Some(&(at, id)) = self.checkpoints.first() else { break };
            if at > now {
                break;
            }
            self.checkpoints.pop_first();
            let watched = self.leases.get_mut(&id).expect("only watched leases are scheduled");
            watched.checkpoint = None;
            let remaining = seconds_rounded_up(watched.deadline.saturating_sub(now));
            if watched.named || remaining == 0 {
                continue;
            }
            if remaining < watched.ttl {
                // It counts from now on: a renewal before it is applied must take it back as well.
                watched.remaining_ttl = remaining;
                due.push((id, remaining));
            }
            // etcd drops a lease that was renewed this very second from its schedule for good; it
            // stays on ours. One whose checkpoint was proposed comes back when it is applied, and
            // here too in case it is lost.
            self.schedule_checkpoint(id, now);
        }
        due
    }

    /// The whole seconds that a lease has left, negative once it is overdue; `None` if it is unknown
    /// here.
    pub fn seconds_left(&self, id: LeaseId, now: Duration) -> Option<i64> {
        let deadline = self.leases.get(&id)?.deadline;
        Some(match deadline.checked_sub(now) {
            Some(left) => whole_seconds(left),
            None => -whole_seconds(now.saturating_sub(deadline)),
        })
    }

    /// All leases in order of their deadlines, as `LeaseLeases` lists them.
    pub fn by_deadline(&self) -> Vec<LeaseId> {
        let mut leases: Vec<_> = self.leases.iter().map(|(id, w)| (w.deadline, *id)).collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    fn watch(&mut self, id: LeaseId, ttl: i64, remaining_ttl: i64, deadline: Duration) {
        let watched = Watched {
            ttl,
            remaining_ttl,
            deadline,
            wake: deadline,
            named: false,
            checkpoint: None,
        };
        self.leases.insert(id, watched);
        self.queue.insert((deadline, id));
    }

    fn move_deadline(&mut self, id: LeaseId, deadline: Duration) {
        if let Some(watched) = self.leases.get_mut(&id) {
            self.queue.remove(&(watched.wake, id));
            watched.deadline = deadline.max(watched.deadline);
            watched.wake = watched.deadline;
            self.queue.insert((watched.wake, id));
        }
    }

    fn schedule_checkpoint(&mut self, id: LeaseId, now: Duration) {
        let Some(interval) = self.options.checkpoint_interval else { return };
        let Some(watched) = self.leases.get_mut(&id) else { return };
        if watched.checkpoint.is_none() && watched.deadline.saturating_sub(now) > interval {
            // An interval of zero would schedule the lease for ever within one call.
            let at = now + interval.max(Duration::from_secs(1));
            watched.checkpoint = Some(at);
            self.checkpoints.insert((at, id));
        }
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn seconds_rounded_up(left: Duration) -> i64 {
    whole_seconds(left).saturating_add(i64::from(left.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests;
