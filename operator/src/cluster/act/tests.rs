use std::collections::BTreeMap;

use serde_json::json;
use types::ClusterId;

use super::*;
use crate::cluster::{
    model::{Entry, JoinReason, Membership},
    observe,
    plan::RemoveReason,
    report,
    validate::{self, Validated},
};

fn validated() -> Validated {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "u"}, "spec": {},
    }))
    .unwrap();
    validate::validate(&cluster).unwrap()
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + minute * 60).unwrap()
}

/// What a pass sees when the object of serial 4 was made at this minute, if it was.
fn seen(made: Option<(JoinReason, i64)>) -> Observed {
    let mut observed = Observed::default();
    if let Some((reason, minute)) = made {
        let mut object =
            build::member(&validated(), Serial(4), InitialState::Existing, Some(reason));
        object.metadata.creation_timestamp = Some(Time(at(minute)));
        let member = observe::tests::member(&validated(), &object);
        observed.members.insert(Serial(4), member);
    }
    observed
}

/// What is counted is members that were made, and not what came of them.
#[test]
fn attempts_to_join_are_counted_until_one_votes_or_none_is_wanted() {
    let create = Action::CreateMember { serial: Serial(4), reason: JoinReason::ScaleOut };
    let id = MemberId(0xab);
    let remove = |reason| Action::Remove { serial: Some(Serial(4)), id, reason };
    let mut status = EtcdClusterStatus::default();
    let mut after = |action: &Action| {
        let decision = &mutations(action)[0];
        decide(&mut status, &validated(), &Observed::default(), action, decision, at(0));
        status.join_attempts
    };
    for end in [Action::Promote { serial: Serial(4), id }, remove(RemoveReason::NotNeeded)] {
        assert_eq!(after(&create), 1);
        assert_eq!(after(&Action::AddLearner { serial: Serial(4) }), 1);
        assert_eq!(after(&remove(RemoveReason::NeverStarted)), 1);
        assert_eq!(after(&create), 2);
        assert_eq!(after(&end), 0, "{end:?}");
    }
}

/// The list is the last that says it: when the member has left there is none to ask.
#[test]
fn who_never_started_is_noted_while_etcd_lists_it_and_kept_when_it_has_left() {
    let mut object = build::member(&validated(), Serial(4), InitialState::Existing, None);
    assert!(never_started(&object), "it has no Pod before it has an id");
    let id = MemberId(0xab);
    object.status =
        Some(EtcdMemberStatus { member_id: Some(id.to_string()), ..EtcdMemberStatus::default() });
    assert!(!never_started(&object), "an older operator did not note it");
    let names = &validated().desired.names;
    let listed = |learner, started| {
        let (name, peer_url) = (String::new(), names.peer_url(Serial(4)));
        Some(Entry { id, name, peer_url, learner, started })
    };
    for (entry, expected) in [
        (listed(true, false), true),
        (None, true),
        (listed(true, true), false),
        (None, false),
        (listed(true, false), true),
        // A voter of the first start may have run and told nobody.
        (listed(false, false), false),
    ] {
        let member = observe::tests::member(&validated(), &object);
        let entries: Vec<Entry> = entry.into_iter().collect();
        let membership = Membership { cluster_id: ClusterId(1), entries, corrupt: false };
        let observation = Observation {
            observed: Observed { membership: Some(membership), ..Observed::default() },
            objects: BTreeMap::new(),
            pods: BTreeMap::new(),
            reports: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        let desired = &validated().desired;
        object.status = Some(report::member_status(&object, &member, &observation, desired, at(0)));
        assert_eq!(never_started(&object), expected, "{:?}", observation.observed);
    }
    object.spec.initial_state = InitialState::New;
    object.status = None;
    assert!(!never_started(&object), "it may have been written to");
}

/// Each step is a write of the cluster's status: what was seen before it, and when.
#[test]
fn a_replacement_is_in_the_status_before_its_object_can_be_gone_and_not_before_it_was_made() {
    let create = |reason| Action::CreateMember { serial: Serial(4), reason };
    let release = Action::Release { serial: Serial(4), keep_claim: false };
    let replaces = JoinReason::Replacement;
    let written = |steps: &[(&Action, Observed, i64)]| {
        let mut status = EtcdClusterStatus::default();
        for (action, observed, minute) in steps {
            let decision = &mutations(action)[0];
            decide(&mut status, &validated(), observed, action, decision, at(*minute));
        }
        (status.latest_member_serial, status.last_replacement_time.map(|time| time.0))
    };
    // The operator died before it made the object.
    assert_eq!(written(&[(&create(replaces), seen(None), 0)]), (4, None));
    // It was made, and no pass came between that and the decision that it goes.
    for (reason, noted) in [(replaces, Some(at(1))), (JoinReason::ScaleOut, None)] {
        let made = seen(Some((reason, 1)));
        let steps = [(&create(reason), seen(None), 0), (&release, made, 2)];
        assert_eq!(written(&steps), (4, noted), "{reason:?}");
        let [created, released] = steps;
        let next = Action::CreateMember { serial: Serial(5), reason };
        let steps = [created, released, (&next, seen(None), 3)];
        assert_eq!(written(&steps), (5, noted), "{reason:?}");
    }
    // A pass that decides nothing notes it as well, and none takes it back.
    let mut status = EtcdClusterStatus::default();
    for made in [seen(Some((replaces, 1))), seen(None)] {
        report::note_replacement(&mut status, &made);
        assert_eq!(status.last_replacement_time, Some(Time(at(1))));
    }
}
