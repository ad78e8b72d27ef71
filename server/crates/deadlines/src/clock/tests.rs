use std::collections::BTreeMap;
use std::future::pending;

use futures_util::FutureExt;
use types::{ClusterId, LogIndex, MemberId};

use super::*;

const A: LeaseId = LeaseId(7);
const TTL: i64 = 10;
const EXTEND: Duration = Duration::from_secs(1);
const US: MemberId = MemberId(1);
const OTHER: MemberId = MemberId(2);

/// A member whose elections and log the test decides.
struct Stage {
    status: watch::Sender<Status>,
    /// Whose own entry is applied.
    applied: Mutex<Term>,
    /// What it proposed; nothing of it is ever committed.
    proposed: Mutex<Vec<Proposal>>,
    /// The terms of what it proposed for one term only.
    terms: Mutex<Vec<Term>>,
    /// Whether a checkpoint that is proposed is committed at once, after which another leads.
    deposed_by_checkpoint: bool,
}

#[derive(Clone)]
struct Actor(Arc<Stage>);

impl Actor {
    fn new(deposed_by_checkpoint: bool) -> Self {
        let status = watch::Sender::new(Status {
            member_id: US,
            cluster_id: ClusterId(1),
            leader: None,
            term: Term(0),
            committed: LogIndex(0),
            applied: LogIndex(0),
            leads_quorum: false,
            isolated: false,
            is_learner: false,
            removed: false,
            nodes: BTreeMap::new(),
            voters: vec![US, OTHER],
            fatal: None,
        });
        let (applied, proposed, terms) = (Mutex::new(Term(0)), Mutex::default(), Mutex::default());
        Self(Arc::new(Stage { status, applied, proposed, terms, deposed_by_checkpoint }))
    }

    /// A member is elected, and its first entry is applied.
    fn elect(&self, leader: MemberId, term: u64) {
        *self.0.applied.lock().unwrap() = Term(term);
        self.0.status.send_modify(|status| {
            status.leader = Some(leader);
            status.term = Term(term);
        });
    }

    fn proposed(&self) -> Vec<Proposal> {
        self.0.proposed.lock().unwrap().clone()
    }
}

impl Member for Actor {
    fn watch_status(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    fn office(&self) -> Option<Term> {
        let status = self.0.status.borrow();
        let applied = *self.0.applied.lock().unwrap();
        (status.is_leader() && status.term == applied).then_some(applied)
    }

    fn leases(&self) -> Vec<(LeaseId, i64, i64)> {
        vec![(A, TTL, if self.0.deposed_by_checkpoint { 5 } else { 0 })]
    }

    fn look_up(&self, ids: &[LeaseId]) -> Vec<Option<Arc<lease::Lease>>> {
        vec![None; ids.len()]
    }

    async fn confirm(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn propose(&self, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.0.proposed.lock().unwrap().push(proposal);
        if self.0.deposed_by_checkpoint {
            self.elect(OTHER, 2);
            return Ok(Outcome::LeaseExpire { revoked: Vec::new() });
        }
        pending().await
    }

    async fn propose_in(&self, term: Term, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.0.terms.lock().unwrap().push(term);
        self.propose(proposal).await
    }

    async fn renew_at_leader(&self, ids: &[LeaseId]) -> Result<Vec<i64>, Unavailable> {
        match self.0.status.borrow().leader {
            Some(OTHER) => Ok(vec![TTL; ids.len()]),
            _ => Err(Unavailable::NoLeader),
        }
    }

    async fn leases_at_leader(
        &self,
        ids: &[LeaseId],
        _: bool,
    ) -> Result<Vec<peerpb::LeaseState>, Unavailable> {
        let (leader, term) = {
            let status = self.0.status.borrow();
            (status.leader, status.term)
        };
        match (leader, term) {
            // It has been deposed already.
            (Some(OTHER), Term(2)) => Err(Unavailable::LeaderChanged),
            (Some(OTHER), _) => {
                let state = |id: &LeaseId| peerpb::LeaseState { id: id.0, ..Default::default() };
                Ok(ids.iter().map(state).collect())
            }
            (Some(_), _) => Err(Unavailable::TimeoutConnectionLost),
            (None, _) => Err(Unavailable::NoLeader),
        }
    }
}

fn clock() -> LeaseClock {
    clock_with(None)
}

fn clock_with(checkpoint_interval: Option<Duration>) -> LeaseClock {
    let counter = |name: &str| Counter::new(name, "a test").unwrap();
    let options = ClockOptions {
        checkpoint_interval,
        extend: EXTEND,
        patience: Duration::from_secs(7),
        expired_per_turn_max: 10,
    };
    LeaseClock::new(options, Counters { renewed: counter("renewed"), expired: counter("expired") })
}

/// A leader of term 1 that has just named the lease due; its revocation is never committed.
async fn leader_with_a_due_lease() -> (LeaseClock, Actor) {
    let (clock, member) = (clock(), Actor::new(false));
    member.elect(US, 1);
    tokio::spawn(clock.clone().run(member.clone()));
    sleep(Duration::from_secs(TTL as u64) + EXTEND - Duration::from_millis(1)).await;
    assert_eq!(member.proposed(), []);
    sleep(Duration::from_millis(2)).await;
    assert_eq!(member.proposed(), [LeaseExpire { term: Term(1), ids: vec![A] }.proposal()]);
    (clock, member)
}

#[tokio::test(start_paused = true)]
async fn a_due_lease_whose_revocation_fails_is_renewed_at_the_next_leader() {
    let (clock, member) = leader_with_a_due_lease().await;
    let mut renewal = Box::pin(clock.renew(&member, &[A]));
    for _ in 0..5 {
        assert_eq!((&mut renewal).now_or_never(), None, "nobody knows yet how it ends");
        sleep(Duration::from_secs(1)).await;
    }
    member.elect(OTHER, 2);
    assert_eq!(renewal.await, Ok(vec![TTL]));
    assert_eq!(clock.by_deadline(&member), None, "it has followed the leadership by itself");
}

#[tokio::test(start_paused = true)]
async fn a_due_lease_is_gone_once_it_is_revoked() {
    let (clock, member) = leader_with_a_due_lease().await;
    let mut renewal = Box::pin(clock.renew(&member, &[A]));
    assert_eq!((&mut renewal).now_or_never(), None);
    clock.apply(&[LeaseChange::Revoked { id: A }]);
    assert_eq!(renewal.now_or_never(), Some(Ok(vec![0])));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_nothing_decides_ends_without_an_answer() {
    let (clock, member) = leader_with_a_due_lease().await;
    let began = Instant::now();
    assert_eq!(clock.renew(&member, &[A]).await, Err(Unavailable::Timeout));
    assert_eq!(began.elapsed(), clock.options.patience);
    member.0.status.send_modify(|status| status.leader = None);
    assert_eq!(clock.renew(&member, &[A]).await, Err(Unavailable::NoLeader));
}

/// L1, T18: its loop waits for the entry of term 1 while another member leads in term 2, and perhaps
/// renews the lease. The first entry of term 3 is its own again.
#[tokio::test(start_paused = true)]
async fn a_leader_that_was_deposed_unawares_revokes_nothing_by_old_deadlines() {
    let (clock, member) = leader_with_a_due_lease().await;
    member.elect(OTHER, 2);
    member.elect(US, 3);
    let elected = Instant::now();
    assert_eq!(clock.renew(&member, &[A]).await, Ok(vec![TTL]));
    assert_eq!(elected.elapsed(), Duration::ZERO);
    let whole = Duration::from_secs(TTL as u64) + EXTEND;
    sleep(whole - Duration::from_millis(1)).await;
    assert_eq!(member.proposed().len(), 1);
    sleep(Duration::from_millis(2)).await;
    let again = LeaseExpire { term: Term(3), ids: vec![A] }.proposal();
    assert_eq!(member.proposed().last(), Some(&again));
}

/// The checkpoint is taken back, but by then another member leads, whose deadline is not this one's.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_waited_for_its_checkpoint_looks_again_who_leads() {
    let (clock, member) = (clock(), Actor::new(true));
    member.elect(US, 1);
    assert_eq!(clock.renew_here(&member, &[A]).await, Err(Unavailable::NotLeader));
    let kinds = member.proposed().into_iter().map(|proposal| proposal.kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [CommandKind::LeaseCheckpoint]);
    assert_eq!(*member.0.terms.lock().unwrap(), [Term(1)]);
}

/// Another leader may have renewed the lease before the checkpoint is in the log.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_of_the_term_whose_deadlines_it_tells() {
    let (clock, member) = (clock_with(Some(Duration::from_secs(3))), Actor::new(false));
    member.elect(US, 4);
    tokio::spawn(clock.run(member.clone()));
    sleep(Duration::from_secs(4)).await;
    let kinds = member.proposed().into_iter().map(|proposal| proposal.kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [CommandKind::LeaseCheckpoint]);
    assert_eq!(*member.0.terms.lock().unwrap(), [Term(4)]);
}

/// etcd's follower asks for as long as a request may take (`leaseTimeToLive`); ours once said at once that
/// there was no leader, that it had changed, or that the connection to it was lost.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_lease_is_asked_until_a_leader_answers() {
    let (clock, member) = (clock(), Actor::new(false));
    let mut asked = Box::pin(clock.time_to_live(&member, &[A], false));
    for (leader, term) in [(None, 1), (Some(MemberId(3)), 1), (Some(OTHER), 2)] {
        member.0.status.send_modify(|status| {
            status.leader = leader;
            status.term = Term(term);
        });
        assert_eq!((&mut asked).now_or_never(), None, "{leader:?}");
        sleep(Duration::from_secs(1)).await;
    }
    member.elect(OTHER, 3);
    assert_eq!(asked.await.unwrap()[0].id, A.0);

    member.0.status.send_modify(|status| status.leader = None);
    let began = Instant::now();
    let refused = clock.time_to_live(&member, &[A], false).await;
    assert_eq!((refused, began.elapsed()), (Err(Unavailable::NoLeader), clock.options.patience));
    member.elect(US, 4);
    let unknown = clock.time_to_live(&member, &[LeaseId(8)], false).await.unwrap();
    assert_eq!(unknown[0].ttl, NOT_FOUND_TTL);
}

#[tokio::test(start_paused = true)]
async fn only_who_keeps_the_deadlines_says_that_a_lease_does_not_exist() {
    let (clock, member) = (clock(), Actor::new(false));
    let unknown = LeaseId(8);
    let ask = || clock.seconds_left(&member, &[A, unknown]);
    assert_eq!(ask(), Err(Unavailable::LeaderChanged));
    member.elect(US, 1);
    assert_eq!(ask(), Ok(vec![Some(11), None]));
    sleep(Duration::from_secs(13)).await;
    assert_eq!(ask(), Ok(vec![Some(-2), None]), "it is not revoked yet");
    member.elect(OTHER, 2);
    assert_eq!(ask(), Err(Unavailable::LeaderChanged));
    // Elected, but it may not know yet of what the other has done.
    member.0.status.send_modify(|status| {
        status.leader = Some(US);
        status.term = Term(3);
    });
    assert_eq!(ask(), Err(Unavailable::LeaderChanged));
}

/// One that is due waits for its end; it must not hold up the others of the same request.
#[tokio::test(start_paused = true)]
async fn leases_that_are_renewed_together_do_not_wait_for_each_other() {
    let (clock, member) = leader_with_a_due_lease().await;
    let b = LeaseId(9);
    clock.apply(&[LeaseChange::Granted { id: b, ttl: TTL }]);
    let both = [A, b];
    let mut renewal = Box::pin(clock.renew(&member, &both));
    assert_eq!((&mut renewal).now_or_never(), None);
    sleep(Duration::from_secs(4)).await;
    assert_eq!((&mut renewal).now_or_never(), None);
    assert_eq!(clock.counters.renewed.get() as u64, 1, "the other is renewed");
}
