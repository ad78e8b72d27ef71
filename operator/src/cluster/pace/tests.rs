//! When a cluster is looked at again, by what it waits for and since when.

use jiff::SignedDuration;

use super::*;
use crate::{
    cluster::{
        invariants::Refusal,
        model::{Claim, JoinReason, Kubelet, Names, Pod, Serial, Serving},
        plan::{Blocked, Ensure},
    },
    crd::InitialState,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn desired() -> Desired {
    Desired {
        names: Names {
            cluster: "main".to_owned(),
            namespace: "ns".to_owned(),
            tls: true,
            claim_suffix: "c".to_owned(),
        },
        replicas: 1,
        restored: false,
        template: "t1".to_owned(),
        paused: false,
        rolling: true,
        min_ready: SignedDuration::from_secs(10),
        lag_max: 100,
        replace_automatically: true,
        replacement_interval: SignedDuration::from_mins(30),
    }
}

fn serving_for(seconds: i64, lag: u64) -> Reach {
    let since = now() - SignedDuration::from_secs(seconds);
    Reach::Serving(Serving { since, lag, leader: false, version: "3.7.3".to_owned() })
}

fn observed(reach: Reach) -> Observed {
    let member = Member {
        serial: Serial(1),
        initial_state: InitialState::New,
        replacement: None,
        id: None,
        listed_since: None,
        voted: true,
        deletion_requested: false,
        join_refused: false,
        claim: Claim::Bound,
        pod: Some(Pod {
            uid: "pod-1".to_owned(),
            template: "t1".to_owned(),
            initial_cluster: String::new(),
            new_cluster: false,
            terminating: false,
            down: None,
            kubelet: Kubelet::Heard,
            serving: true,
        }),
        loss: None,
        loss_due: None,
        reach,
    };
    Observed { members: [(Serial(1), member)].into(), ..Observed::default() }
}

fn waiting(rule: &'static str, detail: &str) -> Plan {
    let refusal = Refusal { rule, detail: detail.to_owned() };
    Plan { blocked: vec![Blocked { action: "Promote", refusal }], ..Plan::default() }
}

fn seconds_after(plan: &Plan, waited: u64) -> u64 {
    let (observed, waited) = (observed(serving_for(3600, 0)), Duration::from_secs(waited));
    pause(&desired(), plan, &observed, false, waited, now()).as_secs()
}

#[test]
fn what_waits_is_looked_at_often_at_first_and_then_as_seldom_as_what_does_not() {
    assert_eq!(seconds_after(&Plan::default(), 0), 15);
    let plan = waiting("I4", "learner 4 has not caught up");
    for (waited, expected) in [(0, 2), (59, 2), (60, 6), (100, 10), (150, 15), (86_400, 15)] {
        assert_eq!(seconds_after(&plan, waited), expected, "after {waited} s");
    }
}

#[test]
fn what_is_done_is_followed_closely_unless_it_is_done_in_vain() {
    let action = Action::AddLearner { serial: Serial(4) };
    let doing = Plan { action: Some(action), ..Plan::default() };
    let ensures = vec![Ensure::Claim { serial: Serial(4) }];
    let making = Plan { ensures, ..Plan::default() };
    for plan in [doing, making] {
        assert_eq!((seconds_after(&plan, 0), seconds_after(&plan, 600)), (2, 15));
    }
    // Nothing was planned, and a Service could not be made.
    let pause = |waited| {
        let (observed, waited) = (observed(serving_for(3600, 0)), Duration::from_secs(waited));
        pause(&desired(), &Plan::default(), &observed, true, waited, now()).as_secs()
    };
    assert_eq!((pause(0), pause(600)), (2, 15));
}

/// Nothing tells of it when the time is over.
#[test]
fn a_silent_node_is_looked_at_when_its_member_counts_as_lost() {
    let pause = |due: i64, plan: &Plan| {
        let mut observed = observed(Reach::Silent(Silence::Timeout));
        let member = observed.members.get_mut(&Serial(1)).unwrap();
        member.loss_due = Some(now() + SignedDuration::from_secs(due));
        pause(&desired(), plan, &observed, false, Duration::from_secs(600), now()).as_secs()
    };
    let held_back = waiting("I2", "");
    for (due, expected) in [(4, 4), (14, 14), (300, 15)] {
        assert_eq!((pause(due, &Plan::default()), pause(due, &held_back)), (expected, expected));
    }
    let paused = Desired { paused: true, ..desired() };
    let observed = observed(Reach::Silent(Silence::Timeout));
    assert_eq!(super::pause(&paused, &held_back, &observed, false, Duration::ZERO, now()), SETTLED);
}

/// Only somebody who edits the cluster ends it, and that is an event.
#[test]
fn a_paused_cluster_is_looked_at_for_its_status_only() {
    let desired = Desired { paused: true, ..desired() };
    let observed = observed(serving_for(3, 0));
    let plan = waiting("Paused", "spec.paused is true");
    assert_eq!(pause(&desired, &plan, &observed, false, Duration::ZERO, now()), SETTLED);
}

#[test]
fn what_time_alone_decides_is_looked_at_when_it_is_due() {
    let waited = Duration::from_secs(3600);
    let plan = waiting("I3", "main-2 is not well");
    let desired = Desired { min_ready: SignedDuration::from_secs(300), ..desired() };
    let pause = |observed: &Observed| pause(&desired, &plan, observed, false, waited, now());
    assert_eq!(pause(&observed(serving_for(292, 0))).as_secs(), 8);
    assert_eq!(pause(&observed(serving_for(20, 0))), SETTLED);
    assert_eq!(pause(&observed(serving_for(300, 0))), SETTLED);
    let mut replaced = observed(serving_for(3600, 0));
    replaced.last_replacement = Some(now() - SignedDuration::from_secs(30 * 60 - 5));
    assert_eq!(pause(&replaced).as_secs(), 5);
}

/// The log that a learner is behind grows and shrinks with every pass, and a member that crashes is
/// started again and again: neither is something new. That a Pod has its address, and runs, and serves, is.
#[test]
fn a_cluster_stands_still_while_nothing_gets_any_further() {
    let behind = |lag| {
        let plan = waiting("I4", &format!("{lag} entries behind"));
        standing(&plan, &observed(serving_for(60, lag)))
    };
    assert_eq!(behind(100_000), behind(99_000));
    let plan = waiting("I4", "it does not answer");
    let silent = |silence| standing(&plan, &observed(Reach::Silent(silence)));
    assert_eq!(silent(Silence::Refused), silent(Silence::Timeout));
    let come = [
        silent(Silence::NoAddress),
        silent(Silence::Refused),
        silent(Silence::NoLeader),
        standing(&plan, &observed(serving_for(1, 0))),
        standing(&waiting("I1", "another rule"), &observed(serving_for(1, 0))),
    ];
    for (index, one) in come.iter().enumerate() {
        assert!(!come[..index].contains(one), "{one}");
    }
    let mut renewed = observed(serving_for(1, 0));
    renewed.members.get_mut(&Serial(1)).unwrap().pod.as_mut().unwrap().uid = "pod-2".to_owned();
    assert!(!come.contains(&standing(&plan, &renewed)));
}

/// Each try is given another serial, and fails as the one before.
#[test]
fn what_is_done_again_in_vain_is_nothing_new() {
    let observed = observed(serving_for(60, 0));
    let make = |serial| {
        let (serial, reason) = (Serial(serial), JoinReason::ScaleOut);
        let action = Some(Action::CreateMember { serial, reason });
        standing(&Plan { action, ..Plan::default() }, &observed)
    };
    assert_eq!(make(4), make(5));
}
