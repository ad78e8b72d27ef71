use serde_json::json;

use super::*;
use crate::cluster::{
    model::JoinReason,
    observe, report,
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
