//! How a cluster begins, and begins again.

use super::*;

#[test]
fn a_first_start_freezes_its_plan_and_latches_the_cluster() {
    let mut situation = situation(3);
    let formed = std::mem::take(&mut situation.observed);
    let first = plan(&situation.desired, &situation.observed, now());
    let serials = vec![Serial(1), Serial(2), Serial(3)];
    assert_eq!(
        first.action,
        Some(Action::FreezeBootstrap { serials: serials.clone(), attempt: 1 })
    );
    let started_at = now();
    let token = "token".to_owned();
    situation.observed.bootstrap = Some(Bootstrap { token, attempt: 1, started_at, serials });
    situation.observed.latest_serial = Serial(3);
    let members = plan(&situation.desired, &situation.observed, now()).ensures;
    assert_eq!(members.len(), 3, "{members:?}");
    situation.observed.membership = formed.membership;
    let latch = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(latch, Some(Action::LatchCluster { cluster_id: ClusterId(1) }));
}

/// Three members that have not formed a cluster yet, in the attempt that began so many minutes ago.
fn starting(attempt: i32, minutes: i64) -> Situation {
    let mut situation = situation(3);
    situation.observed.cluster_id = None;
    situation.observed.membership = None;
    let started_at = now() - SignedDuration::from_mins(minutes);
    let serials = vec![Serial(1), Serial(2), Serial(3)];
    let token = "token".to_owned();
    situation.observed.bootstrap = Some(Bootstrap { token, attempt, started_at, serials });
    situation
}

#[test]
fn a_first_start_that_lost_a_volume_is_tried_again_under_a_new_token_and_new_names() {
    let mut situation = starting(1, 0);
    situation.member(2).loss = Some(Loss::Claim);
    let again = plan(&situation.desired, &situation.observed, now()).action;
    let serials = vec![Serial(4), Serial(5), Serial(6)];
    assert_eq!(again, Some(Action::FreezeBootstrap { serials, attempt: 2 }));
}

/// On nodes that go as fast as they come, each attempt cost three volumes and the next one followed at once.
#[test]
fn a_first_start_that_loses_members_again_is_tried_again_more_and_more_seldom() {
    let begins = |attempt: i32, minutes: i64, change: fn(&mut Member)| {
        let mut situation = starting(attempt, minutes);
        change(situation.member(2));
        match plan(&situation.desired, &situation.observed, now()) {
            Plan { action: Some(Action::FreezeBootstrap { .. }), .. } => true,
            Plan { action: None, blocked, .. } => {
                let detail = &blocked[0].refusal.detail;
                assert!(detail.contains("the next attempt is made at 2027-01-15T"), "{detail}");
                false
            }
            other => panic!("{other:?}"),
        }
    };
    for loss in [
        |member: &mut Member| member.loss = Some(Loss::Claim),
        |member: &mut Member| member.loss = Some(Loss::NodeGone),
    ] {
        assert!(begins(1, 0, loss));
        for (attempt, minutes) in [(2, 10), (3, 20), (4, 40), (1000, 1280)] {
            assert!(!begins(attempt, minutes - 1, loss));
            assert!(begins(attempt, minutes, loss));
        }
    }
    assert!(begins(3, 0, |member| member.deletion_requested = true), "somebody asks for it");
}

/// A first start whose members crash made three more claims every ten minutes, for as long as nobody looked.
#[test]
fn a_first_start_that_crashes_is_tried_again_more_and_more_seldom_and_a_seed_not_at_all() {
    let says = |attempt: i32, minutes: i64, down: Cause, restored: bool| {
        let mut situation = starting(attempt, minutes);
        situation.desired.restored = restored;
        for serial in 1..=3 {
            situation.silence(serial, Some(down.clone()));
        }
        let plan = plan(&situation.desired, &situation.observed, now());
        match plan.action {
            Some(Action::FreezeBootstrap { attempt, .. }) => format!("attempt {attempt}"),
            Some(action) => format!("{action:?}"),
            None => plan.blocked[0].refusal.detail.clone(),
        }
    };
    let crash = || Cause::Crash("exit 1".to_owned());
    let day = 24 * 60;
    for (attempt, minutes) in [(1, 10), (2, 20), (3, 40), (8, 1280), (9, 1280), (1000, 1280)] {
        let waits = says(attempt, minutes - 1, crash(), false);
        assert!(waits.contains("the next attempt is made at 2027-01-15T"), "{waits}");
        let again = says(attempt, minutes, crash(), false);
        assert_eq!(again, format!("attempt {}", attempt + 1));
    }
    // Its image may come yet, and would come to no other member.
    for cause in [Cause::Image("no such image".to_owned()), Cause::NotReady] {
        let waits = says(1, day, cause, false);
        assert!(waits.starts_with("waiting for a quorum") && !waits.contains("attempt"), "{waits}");
    }
    let seed = says(1, day, Cause::Crash("restore exited with 1".to_owned()), true);
    assert!(seed.contains("another seed would be made of the same backup"), "{seed}");
}

/// Serial 4 was given out and the operator died, before its object was made or after. Whatever came of
/// it, the serial is not given out again, and only an object is a replacement.
#[test]
fn a_serial_is_given_out_once_and_counts_as_a_replacement_when_its_member_is_made() {
    let minutes_ago = |minutes| Some(now() - SignedDuration::from_mins(minutes));
    let unused = |s: &mut Situation| s.observed.latest_serial = Serial(4);
    let growing = |s: &mut Situation| {
        unused(s);
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, growing), "CreateMember 5");
    let lose = |s: &mut Situation, serial| {
        s.silence(serial, Some(Cause::NotReady));
        s.member(serial).loss = Some(Loss::NodeGone);
    };
    let replacing = |s: &mut Situation| {
        unused(s);
        lose(s, 2);
    };
    assert_eq!(says(3, replacing), "CreateMember 5");
    // Another action came in between, and the lost one came back: nothing is due any more.
    assert_eq!(says(3, unused), "nothing");
    // The object was made, at once or late.
    let made = |s: &mut Situation, serial: i64, minutes| {
        let joining = Member {
            id: None,
            initial_state: InitialState::Existing,
            replacement: minutes_ago(minutes),
            pod: None,
            claim: Claim::Unborn,
            reach: Reach::Silent(Silence::NoAddress),
            ..member(serial)
        };
        s.observed.members.insert(Serial(serial), joining);
    };
    let joining = |s: &mut Situation| {
        replacing(s);
        made(s, 4, 0);
    };
    assert_eq!(says(3, joining), "AddLearner 4");
    // It was made so late that the next one was there already, which then is not needed.
    let twice = |s: &mut Situation| {
        joining(s);
        s.observed.latest_serial = Serial(5);
        made(s, 5, 1);
    };
    assert_eq!(says(3, twice), "AddLearner 4");
    let done = |s: &mut Situation, minutes| {
        twice(s);
        s.join(4, false);
        s.observed.latest_serial = Serial(5);
        s.member(4).replacement = minutes_ago(minutes);
        s.observed.membership.as_mut().unwrap().entries.remove(1);
        s.observed.members.remove(&Serial(2));
    };
    assert_eq!(says(3, |s| done(s, 0)), "Release 5");
    // It votes, and another is lost, before and after the interval.
    let next = |s: &mut Situation, minutes| {
        done(s, minutes);
        s.observed.members.remove(&Serial(5));
        lose(s, 3);
    };
    assert_eq!(says(3, |s| next(s, 29)), "CreateMember waits for I11");
    assert_eq!(says(3, |s| next(s, 30)), "CreateMember 6");
    // Its object has left again: that is in the status.
    let left = |s: &mut Situation| {
        replacing(s);
        s.observed.last_replacement = minutes_ago(29);
    };
    assert_eq!(says(3, left), "CreateMember waits for I11");
}

/// Found by the simulator: the quorum was lost before the ids were latched, and a Pod that was made anew
/// named its own member only. With that a member that had not started yet never did.
#[test]
fn while_nobody_answers_the_members_of_the_first_start_know_each_other() {
    let mut situation = situation(3);
    situation.observed.membership = None;
    for member in situation.observed.members.values_mut() {
        member.id = None;
        member.reach = Reach::Silent(Silence::NoLeader);
    }
    situation.member(3).pod = None;
    let ensures = plan(&situation.desired, &situation.observed, now()).ensures;
    let Some(Ensure::Pod { serial: Serial(3), initial_cluster, new_cluster: false }) =
        ensures.first()
    else {
        panic!("{ensures:?}")
    };
    let names: Vec<_> =
        initial_cluster.split(',').filter_map(|pair| pair.split('=').next()).collect();
    assert_eq!(names, ["main-1", "main-2", "main-3"]);
}

#[test]
fn a_recovered_cluster_starts_with_one_member() {
    let mut situation = situation(3);
    situation.observed = Observed::default();
    situation.desired.restored = true;
    let first = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(first, Some(Action::FreezeBootstrap { serials: vec![Serial(1)], attempt: 1 }));
}

/// Found by the simulator: the members of the first attempt formed a cluster after the second
/// attempt was frozen, and the planner waited for ever for them to be the second's.
#[test]
fn an_attempt_that_was_given_up_is_cleared_away_even_if_it_formed_a_cluster_since() {
    let mut situation = situation(3);
    situation.observed.cluster_id = None;
    situation.observed.latest_serial = Serial(6);
    let serials = vec![Serial(4), Serial(5), Serial(6)];
    let token = "token-2".to_owned();
    situation.observed.bootstrap =
        Some(Bootstrap { token, attempt: 2, started_at: now(), serials });
    let next = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(next, Some(Action::Release { serial: Serial(1), keep_claim: false }));
}

/// What a client may have written is nowhere else: whatever the policy says, it stays.
#[test]
fn the_claim_of_a_first_start_that_was_given_up_is_kept() {
    let serial = Serial(1);
    for (initial_state, had_an_id, keep_claim) in [
        (InitialState::New, false, true),
        (InitialState::Restored, false, true),
        // It was in the list of the cluster that goes on, and others have what it had.
        (InitialState::New, true, false),
        // It never got an id, so its server never started.
        (InitialState::Existing, false, false),
    ] {
        let mut situation = situation(3);
        situation.observed.cluster_id = None;
        situation.observed.membership = None;
        situation.observed.latest_serial = Serial(6);
        let serials = vec![Serial(4), Serial(5), Serial(6)];
        let token = "token-2".to_owned();
        situation.observed.bootstrap =
            Some(Bootstrap { token, attempt: 2, started_at: now(), serials });
        let member = situation.member(1);
        member.initial_state = initial_state;
        member.id = had_an_id.then(|| id(1));
        let Situation { desired, observed } = &situation;
        let next = plan(desired, observed, now()).action.unwrap();
        assert_eq!(next, Action::Release { serial, keep_claim }, "{initial_state:?}");
        let retires = |action: &Action| {
            let retire = crate::cluster::mutation::Mutation::RetireClaim { serial };
            crate::cluster::mutation::mutations(action).contains(&retire)
        };
        assert_eq!(retires(&next), !keep_claim);
        // Nor does a planner that thinks otherwise get it done.
        let delete = Action::Release { serial, keep_claim: false };
        let permitted = invariants::permit(&delete, desired, observed, now());
        assert_eq!(permitted.is_ok(), !keep_claim, "{permitted:?}");
    }
}

#[test]
fn only_the_cluster_that_was_planned_and_answers_is_latched() {
    let planned = |attempt: i64| {
        let serials = (1..=3).map(|number| Serial(number + 3 * (attempt - 1))).collect();
        let token = format!("token-{attempt}");
        Some(Bootstrap { token, attempt: 1, started_at: now(), serials })
    };
    let latch = Action::LatchCluster { cluster_id: ClusterId(1) };
    let permitted = |change: &dyn Fn(&mut Observed)| {
        let mut situation = situation(3);
        situation.observed.cluster_id = None;
        situation.observed.bootstrap = planned(1);
        change(&mut situation.observed);
        invariants::permit(&latch, &situation.desired, &situation.observed, now()).is_ok()
    };
    assert!(permitted(&|_| {}));
    assert!(!permitted(&|observed| observed.cluster_id = Some(ClusterId(1))));
    assert!(!permitted(&|observed| observed.membership = None));
    assert!(!permitted(&|observed| observed.bootstrap = planned(2)));
    assert!(!permitted(&|observed| {
        observed.membership.as_mut().unwrap().cluster_id = ClusterId(2);
    }));
}
