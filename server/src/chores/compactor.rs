//! Automatic compaction, in etcd's two modes (`server/etcdserver/api/v3compactor`).
//!
//! *Periodic*: the revision is noted ten times per period (at least every six minutes); when a period
//! has passed, the oldest note is compacted, then again every period, or every hour if the period is
//! longer. *Revision*: every five minutes everything but the newest N revisions is compacted.
//!
//! Every member counts the time and notes the revisions, from its start; only the leader compacts. So a
//! period does not begin anew with each leader: with leaders that change more often than that, nothing
//! would ever be compacted. When to compact is decided by values ([`Periodic`], [`ByRevision`]), the loop
//! around them only waits and proposes.

use std::collections::VecDeque;
use std::time::Duration;

use machine::{CommandKind, Outcome, Proposal, Refusal};
use proto::etcdserverpb::CompactionRequest;
use replica::{Handle, Unavailable};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::Revision;

use crate::config::Retention;

const HOUR: Duration = Duration::from_secs(3600);
/// Notes per period.
const NOTES: u32 = 10;
/// How often the mode `revision` looks.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// When the mode `periodic` compacts.
#[derive(Debug)]
pub struct Periodic {
    period: Duration,
    notes: VecDeque<Revision>,
    last_success: Duration,
    last_revision: Option<Revision>,
    first_done: bool,
}

impl Periodic {
    /// `now` and all later times count from any fixed moment.
    pub fn new(period: Duration, now: Duration) -> Self {
        Self {
            period,
            notes: VecDeque::new(),
            last_success: now,
            last_revision: None,
            first_done: false,
        }
    }

    /// The time between two notes.
    pub fn interval(&self) -> Duration {
        self.period.min(HOUR) / NOTES
    }

    /// Notes the revision and forgets what is older than the period.
    pub fn note(&mut self, revision: Revision) {
        self.notes.push_back(revision);
        let kept = self.period.as_nanos() / self.interval().as_nanos().max(1) + 1;
        if self.notes.len() as u128 > kept {
            self.notes.pop_front();
        }
    }

    /// The revision to compact now, if it is time: the first time after a whole period, later more
    /// often if the period is longer than an hour.
    pub fn due(&self, now: Duration) -> Option<Revision> {
        let wait = if self.first_done { self.period.min(HOUR) } else { self.period };
        let oldest = *self.notes.front()?;
        let is_time = now.saturating_sub(self.last_success) >= wait;
        (is_time && self.last_revision != Some(oldest)).then_some(oldest)
    }

    /// The compaction was done.
    pub fn done(&mut self, revision: Revision, now: Duration) {
        self.last_revision = Some(revision);
        self.last_success = now;
        self.first_done = true;
    }
}

/// When the mode `revision` compacts.
#[derive(Debug)]
pub struct ByRevision {
    kept: i64,
    last: Option<Revision>,
}

impl ByRevision {
    pub fn new(kept: i64) -> Self {
        Self { kept, last: None }
    }

    /// The revision to compact when the store is at `current`.
    pub fn due(&self, current: Revision) -> Option<Revision> {
        let revision = Revision(current.0.saturating_sub(self.kept));
        (revision.0 > 0 && self.last != Some(revision)).then_some(revision)
    }

    pub fn done(&mut self, revision: Revision) {
        self.last = Some(revision);
    }
}

/// Compacts while this member leads.
pub async fn run(handle: Handle, retention: Retention, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keep(&handle, retention) => {}
    }
}

/// What is compacted.
trait Store {
    fn revision(&self) -> Revision;
    /// Whether it is for this member to compact.
    fn leads(&self) -> bool;
    async fn compact(&self, revision: Revision) -> Result<Outcome, Unavailable>;
}

impl Store for Handle {
    fn revision(&self) -> Revision {
        self.with_views(|views| views.mvcc.revision())
    }

    fn leads(&self) -> bool {
        self.watch_status().borrow().is_leader()
    }

    async fn compact(&self, revision: Revision) -> Result<Outcome, Unavailable> {
        let request = CompactionRequest { revision: revision.0, physical: false };
        self.propose(Proposal::new(CommandKind::Compaction, &request)).await
    }
}

async fn keep(store: &impl Store, retention: Retention) {
    let started = Instant::now();
    match retention {
        Retention::Period(period) => {
            let mut periodic = Periodic::new(period, Duration::ZERO);
            loop {
                periodic.note(store.revision());
                tokio::time::sleep(periodic.interval()).await;
                let Some(revision) = periodic.due(started.elapsed()) else { continue };
                if store.leads() && compact(store, revision, "periodic").await {
                    periodic.done(revision, started.elapsed());
                }
            }
        }
        Retention::Revisions(kept) => {
            let mut by_revision = ByRevision::new(kept);
            loop {
                tokio::time::sleep(REVISION_INTERVAL).await;
                let Some(revision) = by_revision.due(store.revision()) else { continue };
                if store.leads() && compact(store, revision, "revision").await {
                    by_revision.done(revision);
                }
            }
        }
    }
}

/// Whether the revision is compacted now. One that was compacted before by somebody else counts.
async fn compact(store: &impl Store, revision: Revision, mode: &'static str) -> bool {
    let (at, began) = (revision.0, Instant::now());
    tracing::info!(revision = at, "starting auto {mode} compaction");
    let error = match store.compact(revision).await {
        Ok(Outcome::Compaction(_) | Outcome::Refused(Refusal::Compacted)) => {
            let took = began.elapsed();
            tracing::info!(revision = at, ?took, "completed auto {mode} compaction");
            return true;
        }
        Ok(Outcome::Refused(refusal)) => refusal.to_string(),
        Ok(other) => format!("a compaction was answered with {other:?}"),
        Err(error) => error.to_string(),
    };
    tracing::warn!(revision = at, error, "failed auto {mode} compaction");
    false
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Plays `minutes` of a store that gains one revision per minute; what was compacted, and when.
    fn play(period: Duration, minutes: u32) -> Vec<(u32, i64)> {
        let mut periodic = Periodic::new(period, Duration::ZERO);
        let mut compacted = Vec::new();
        let step = periodic.interval();
        let mut now = Duration::ZERO;
        while now < MINUTE * minutes {
            periodic.note(Revision(i64::try_from(now.as_secs() / 60).unwrap()));
            now += step;
            if let Some(revision) = periodic.due(now) {
                periodic.done(revision, now);
                compacted.push((u32::try_from(now.as_secs() / 60).unwrap(), revision.0));
            }
        }
        compacted
    }

    #[test]
    fn a_short_period_compacts_once_per_period_and_keeps_one() {
        assert_eq!(play(MINUTE * 10, 35), [(10, 0), (20, 9), (30, 19)]);
    }

    #[test]
    fn a_long_period_compacts_every_hour_after_the_first() {
        let compacted = play(HOUR * 3, 60 * 6);
        let times: Vec<u32> = compacted.iter().map(|(minute, _)| *minute).collect();
        assert_eq!(times, [180, 240, 300, 360]);
        for (minute, revision) in compacted {
            assert!(i64::from(minute) - revision >= 174, "{minute}: {revision} is too new");
        }
    }

    #[test]
    fn a_store_that_stands_still_is_compacted_once() {
        let mut periodic = Periodic::new(MINUTE * 10, Duration::ZERO);
        let mut count = 0;
        for minute in 1..60 {
            periodic.note(Revision(5));
            if let Some(revision) = periodic.due(MINUTE * minute) {
                periodic.done(revision, MINUTE * minute);
                count += 1;
            }
        }
        assert_eq!(count, 1);
    }

    /// A store whose revisions come with time, and what was asked of it, with the second.
    struct Clockwork {
        began: Instant,
        revisions: Vec<(u64, i64)>,
        asked: RefCell<Vec<(u64, i64)>>,
        answers: RefCell<Vec<Result<Outcome, Unavailable>>>,
        /// From when until when, in seconds, somebody else leads.
        follows: std::ops::Range<u64>,
    }

    impl Store for Clockwork {
        fn revision(&self) -> Revision {
            let now = self.began.elapsed().as_secs();
            Revision(self.revisions.iter().rfind(|(at, _)| *at <= now).unwrap().1)
        }

        fn leads(&self) -> bool {
            !self.follows.contains(&self.began.elapsed().as_secs())
        }

        async fn compact(&self, revision: Revision) -> Result<Outcome, Unavailable> {
            self.asked.borrow_mut().push((self.began.elapsed().as_secs(), revision.0));
            self.answers.borrow_mut().pop().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_in_mode_revision_looks_every_five_minutes_until_it_has_succeeded() {
        let compacted = || Ok(Outcome::Refused(Refusal::Compacted));
        let answers = vec![compacted(), compacted(), Err(Unavailable::Timeout)];
        let store = Clockwork {
            began: Instant::now(),
            revisions: vec![(0, 90), (301, 250), (1300, 300)],
            asked: RefCell::default(),
            answers: RefCell::new(answers),
            follows: 0..0,
        };
        let kept = tokio::time::timeout(MINUTE * 31, keep(&store, Retention::Revisions(100)));
        assert!(kept.await.is_err(), "it goes on until it is stopped");
        // 90 is too few; 600 s fails; 900 s does what 1200 s need not do again.
        assert_eq!(*store.asked.borrow(), [(600, 150), (900, 150), (1500, 200)]);
    }

    /// As in etcd. With a period of its own for each leader, a day's history would never be compacted where
    /// a leader is moved every night.
    #[tokio::test(start_paused = true)]
    async fn a_new_leader_compacts_a_period_after_its_start_and_not_after_its_election() {
        let compacted = || Ok(Outcome::Refused(Refusal::Compacted));
        for retention in [Retention::Period(MINUTE * 90), Retention::Revisions(1)] {
            let store = Clockwork {
                began: Instant::now(),
                revisions: vec![(0, 2), (1, 3)],
                asked: RefCell::default(),
                answers: RefCell::new(vec![compacted(), compacted()]),
                follows: 0..5390,
            };
            let kept = tokio::time::timeout(MINUTE * 91, keep(&store, retention));
            assert!(kept.await.is_err(), "it goes on until it is stopped");
            let asked = store.asked.borrow();
            assert_eq!(asked.first(), Some(&(5400, 2)), "{retention:?}: {asked:?}");
        }
    }

    #[test]
    fn the_mode_revision_keeps_the_newest() {
        let mut by_revision = ByRevision::new(100);
        assert_eq!(by_revision.due(Revision(100)), None);
        assert_eq!(by_revision.due(Revision(250)), Some(Revision(150)));
        by_revision.done(Revision(150));
        assert_eq!(by_revision.due(Revision(250)), None);
        assert_eq!(by_revision.due(Revision(251)), Some(Revision(151)));
    }
}
