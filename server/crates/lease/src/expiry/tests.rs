use super::*;
use proptest::prelude::*;

const A: LeaseId = LeaseId(1);
const B: LeaseId = LeaseId(2);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn leader(options: ExpiryOptions) -> Expiry {
    let mut expiry = Expiry::new(options);
    expiry.promote(Term(1), at(0), at(0), []);
    expiry
}

#[test]
fn a_lease_is_due_at_its_deadline_and_not_before() {
    let mut expiry = leader(ExpiryOptions::default());
    expiry.granted(A, 10, at(5));
    assert_eq!(expiry.next_wake(), Some(at(15)));
    assert_eq!(expiry.due(at(15) - Duration::from_nanos(1), 10), []);
    assert_eq!(expiry.seconds_left(A, at(14)), Some(1));
    assert_eq!(expiry.due(at(15), 10), [A]);
    assert_eq!(expiry.seconds_left(A, at(15)), Some(0));
    let overdue = at(17) + Duration::from_millis(500);
    assert_eq!(expiry.seconds_left(A, overdue), Some(-2), "it lives until it is revoked");
    expiry.revoked(A);
    assert_eq!(expiry.seconds_left(A, overdue), None);
}

#[test]
fn a_due_lease_is_named_again_only_after_the_retry_interval() {
    let mut expiry = leader(ExpiryOptions::default());
    expiry.granted(A, 1, at(0));
    expiry.granted(B, 2, at(0));
    assert_eq!(expiry.due(at(9), 1), [A]);
    assert_eq!(expiry.due(at(9), 1), [B]);
    assert_eq!(expiry.due(at(11), 9), []);
    expiry.revoked(A);
    assert_eq!(expiry.due(at(12), 9), [B]);
}

#[test]
fn t19_no_keepalive_succeeds_once_a_lease_is_due_or_revoked() {
    let mut expiry = leader(ExpiryOptions::default());
    expiry.granted(A, 10, at(0));
    assert_eq!(expiry.renew(A, at(9)), Renewal::Renewed { ttl: 10 });
    assert_eq!(expiry.renew(A, at(19)), Renewal::Expired);
    assert_eq!(expiry.due(at(19), 9), [A]);
    assert_eq!(expiry.renew(A, at(18)), Renewal::Expired, "even if the clock were to step back");
    expiry.checkpointed(A, 0, at(19));
    assert_eq!(expiry.renew(A, at(19)), Renewal::Expired, "a late checkpoint revives nothing");
    expiry.revoked(A);
    assert_eq!(expiry.renew(A, at(19)), Renewal::NotFound);
}

#[test]
fn only_the_leader_keeps_deadlines() {
    let mut expiry = Expiry::new(ExpiryOptions::default());
    expiry.granted(A, 1, at(0));
    assert_eq!(expiry.renew(A, at(0)), Renewal::NotPrimary);
    assert_eq!(expiry.due(at(100), 9), []);
    expiry.promote(Term(1), at(100), at(1), [(A, 5, 0)]);
    assert_eq!(expiry.seconds_left(A, at(100)), Some(6));
    expiry.demote();
    assert_eq!(expiry.seconds_left(A, at(100)), None);
    assert_eq!((expiry.due(at(1000), 9), expiry.next_wake()), (vec![], None));
}

/// L1, T18: between two looks another member led and renewed the lease; the deadline of the time before
/// must not end it, nor refuse its renewal.
#[test]
fn a_member_that_is_elected_again_starts_the_deadlines_anew() {
    let mut expiry = Expiry::new(ExpiryOptions::default());
    expiry.follow(Some(Term(5)), at(0), at(1), || [(A, 10, 0)]);
    assert_eq!((expiry.primary(), expiry.next_wake()), (Some(Term(5)), Some(at(11))));
    expiry.follow(Some(Term(5)), at(8), at(1), || -> [_; 0] { panic!("the term is the same") });
    assert_eq!(expiry.next_wake(), Some(at(11)));
    expiry.follow(Some(Term(7)), at(20), at(1), || [(A, 10, 0)]);
    assert_eq!(expiry.primary(), Some(Term(7)));
    assert_eq!((expiry.due(at(20), 9), expiry.next_wake()), (vec![], Some(at(31))));
    assert_eq!(expiry.renew(A, at(20)), Renewal::Renewed { ttl: 10 });
    expiry.follow(None, at(21), at(1), || -> [_; 0] { panic!("nothing is promoted") });
    assert_eq!((expiry.primary(), expiry.next_wake()), (None, None));
}

#[test]
fn t22_a_checkpointed_ttl_survives_five_changes_of_leader() {
    let options = ExpiryOptions { checkpoint_interval: Some(at(60)), ..ExpiryOptions::default() };
    let (mut now, mut remaining) = (at(0), 0);
    for leader in 0..5i64 {
        let mut expiry = Expiry::new(options);
        expiry.promote(Term(1), now, at(0), [(A, 600, remaining)]);
        now += at(60);
        let due = expiry.due_checkpoints(now, 9);
        assert_eq!(due, [(A, 600 - 60 * (leader + 1))]);
        remaining = due[0].1;
        expiry.checkpointed(A, remaining, now);
        assert_eq!(expiry.due(now, 9), []);
    }
    assert_eq!(remaining, 300);
}

#[test]
fn a_renewal_takes_the_checkpoint_back_through_the_log_first() {
    let options = ExpiryOptions { checkpoint_interval: Some(at(60)), ..ExpiryOptions::default() };
    let mut expiry = Expiry::new(options);
    expiry.promote(Term(1), at(0), at(0), [(A, 600, 100)]);
    assert_eq!(expiry.renew(A, at(10)), Renewal::CheckpointFirst);
    expiry.checkpointed(A, 0, at(11));
    assert_eq!(expiry.renew(A, at(11)), Renewal::Renewed { ttl: 600 });
    assert_eq!(expiry.seconds_left(A, at(11)), Some(600));
}

/// L1: the checkpoint may be committed after the renewal, and then the leader be gone.
#[test]
fn a_renewal_takes_back_a_checkpoint_that_is_under_way() {
    let options = ExpiryOptions { checkpoint_interval: Some(at(60)), ..ExpiryOptions::default() };
    let mut expiry = leader(options);
    expiry.granted(A, 600, at(0));
    assert_eq!(expiry.due_checkpoints(at(60), 9), [(A, 540)]);
    assert_eq!(expiry.renew(A, at(61)), Renewal::CheckpointFirst);
    expiry.checkpointed(A, 540, at(62));
    assert_eq!(expiry.renew(A, at(62)), Renewal::CheckpointFirst);
    expiry.checkpointed(A, 0, at(63));
    assert_eq!(expiry.renew(A, at(63)), Renewal::Renewed { ttl: 600 });
}

#[test]
fn a_checkpoint_taken_back_under_the_old_leader_restarts_the_deadline() {
    let mut expiry = Expiry::new(ExpiryOptions::default());
    expiry.promote(Term(1), at(0), at(0), [(A, 600, 1)]);
    expiry.checkpointed(A, 0, at(0));
    assert_eq!(expiry.due(at(599), 9), []);
    assert_eq!(expiry.due(at(600), 9), [A]);
}

#[test]
fn a_lease_renewed_just_before_its_checkpoint_stays_on_the_schedule() {
    let options = ExpiryOptions { checkpoint_interval: Some(at(60)), ..ExpiryOptions::default() };
    let mut expiry = leader(options);
    expiry.granted(A, 600, at(0));
    assert_eq!(expiry.renew(A, at(60)), Renewal::Renewed { ttl: 600 });
    assert_eq!(expiry.due_checkpoints(at(60), 9), []);
    assert_eq!(expiry.due_checkpoints(at(120), 9), [(A, 540)]);
}

#[test]
fn the_longest_ttl_does_not_overflow() {
    let mut expiry = leader(ExpiryOptions::default());
    expiry.granted(A, crate::TTL_SECONDS_MAX, at(u32::MAX.into()));
    assert_eq!(expiry.renew(A, at(u32::MAX.into())), Renewal::Renewed { ttl: 9_000_000_000 });
}

#[test]
fn leases_list_in_order_of_deadline() {
    let mut expiry = leader(ExpiryOptions::default());
    expiry.granted(A, 10, at(0));
    expiry.granted(B, 5, at(0));
    assert_eq!(expiry.by_deadline(), [B, A]);
    expiry.renew(B, at(4));
    expiry.renew(B, at(6));
    assert_eq!(expiry.by_deadline(), [A, B]);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Grant(i64, i64),
    Renew(i64),
    Due,
    Apply,
    Leader,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..4000).prop_map(Step::Wait),
        2 => (1i64..6, 1i64..20).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        4 => (1i64..6).prop_map(Step::Renew),
        3 => Just(Step::Due),
        2 => Just(Step::Apply),
        1 => Just(Step::Leader),
        1 => Just(Step::Checkpoint),
    ]
}

/// The facts that the log would hold, and the promises made to clients.
#[derive(Default)]
struct Promises {
    leases: BTreeMap<LeaseId, (i64, i64)>,
    alive_until: BTreeMap<LeaseId, Duration>,
    revoking: Vec<LeaseId>,
    /// Checkpoints that are proposed and not applied yet.
    recording: Vec<(LeaseId, i64)>,
}

impl Promises {
    /// Commits the checkpoints that are under way, and says which.
    fn record(&mut self) -> Vec<(LeaseId, i64)> {
        let recorded = std::mem::take(&mut self.recording);
        for (id, remaining) in &recorded {
            if let Some(lease) = self.leases.get_mut(id) {
                lease.1 = *remaining;
            }
        }
        recorded
    }
}

proptest! {
    /// Promise L1: a lease never expires before its TTL since the last acknowledged keepalive, and
    /// no keepalive is acknowledged between the decision to revoke and the revocation.
    #[test]
    fn l1_no_lease_expires_early(steps in prop::collection::vec(step(), 1..200)) {
        let options = ExpiryOptions {
            checkpoint_interval: Some(at(3)),
            ..ExpiryOptions::default()
        };
        let mut expiry = leader(options);
        let mut now = at(0);
        let mut world = Promises::default();
        for step in steps {
            match step {
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Grant(id, ttl) => grant(&mut expiry, &mut world, LeaseId(id), ttl, now),
                Step::Renew(id) => renew(&mut expiry, &mut world, LeaseId(id), now),
                Step::Due => {
                    for id in expiry.due(now, 3) {
                        prop_assert!(now >= world.alive_until[&id], "{id} expired early");
                        world.revoking.push(id);
                    }
                }
                Step::Apply => {
                    for (id, remaining) in world.record() {
                        expiry.checkpointed(id, remaining, now);
                    }
                    for id in world.revoking.drain(..) {
                        world.leases.remove(&id);
                        world.alive_until.remove(&id);
                        expiry.revoked(id);
                    }
                }
                Step::Leader => {
                    // The new leader refuses the old one's revocations (they carry its term).
                    world.revoking.clear();
                    // What it proposed besides may be committed without it.
                    world.record();
                    let facts = world.leases.iter().map(|(id, (ttl, left))| (*id, *ttl, *left));
                    expiry = Expiry::new(options);
                    expiry.promote(Term(1), now, at(1), facts);
                }
                Step::Checkpoint => {
                    world.recording.extend(expiry.due_checkpoints(now, 9));
                }
            }
        }
    }
}

fn grant(expiry: &mut Expiry, world: &mut Promises, id: LeaseId, ttl: i64, now: Duration) {
    if world.leases.contains_key(&id) {
        return;
    }
    world.leases.insert(id, (ttl, 0));
    world.alive_until.insert(id, now + seconds(ttl));
    expiry.granted(id, ttl, now);
}

fn renew(expiry: &mut Expiry, world: &mut Promises, id: LeaseId, now: Duration) {
    let mut renewal = expiry.renew(id, now);
    if renewal == Renewal::CheckpointFirst {
        for (id, remaining) in world.record() {
            expiry.checkpointed(id, remaining, now);
        }
        world.leases.get_mut(&id).unwrap().1 = 0;
        expiry.checkpointed(id, 0, now);
        renewal = expiry.renew(id, now);
    }
    match renewal {
        Renewal::Renewed { ttl } => {
            assert!(!world.revoking.contains(&id), "{id} renewed while it is being revoked");
            assert_eq!(world.leases[&id].0, ttl);
            world.alive_until.insert(id, now + seconds(ttl));
        }
        Renewal::Expired => assert!(now >= world.alive_until[&id], "{id} refused early"),
        Renewal::NotFound => assert!(!world.leases.contains_key(&id)),
        other => panic!("{other:?}"),
    }
}
