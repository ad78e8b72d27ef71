//! Alarms; etcd `apply/capped.go`, `apply/corrupt.go`, `apply/uber_applier.go`.

use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::membershippb;
use types::{LeaseId, Term};

use super::member::*;
use super::txns::{get, nest, request, write};
use crate::*;

fn alarm(member: &mut Member, action: AlarmAction, id: u64, kind: AlarmKind) -> Vec<(u64, i32)> {
    let request = pb::AlarmRequest { action: action as i32, member_id: id, alarm: kind.0 };
    match member.request(CommandKind::Alarm, &request) {
        Outcome::Alarm(response) => {
            response.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn alarms_answer_what_they_changed() {
    use AlarmAction::{Activate, Deactivate, Get};
    let (none, space) = (AlarmKind::NONE, AlarmKind::NO_SPACE);
    let mut member = Member::new();
    assert_eq!(alarm(&mut member, Activate, 7, none), []);
    assert_eq!(alarm(&mut member, Activate, 7, space), [(7, 1)]);
    assert_eq!(alarm(&mut member, Activate, 7, space), [(7, 1)], "again is as good as once");
    assert_eq!(alarm(&mut member, Activate, 3, AlarmKind::CORRUPT), [(3, 2)]);
    assert_eq!(alarm(&mut member, Get, 0, none), [(7, 1), (3, 2)]);
    assert_eq!(alarm(&mut member, Get, 0, space), [(7, 1)]);
    assert_eq!(alarm(&mut member, Deactivate, 8, space), []);
    assert_eq!(alarm(&mut member, Deactivate, 7, none), []);
    assert_eq!(alarm(&mut member, Deactivate, 7, space), [(7, 1)]);
    let unknown = pb::AlarmRequest { action: 9, member_id: 7, alarm: 1 };
    let outcome = member.request(CommandKind::Alarm, &unknown);
    assert!(matches!(outcome, Outcome::Alarm(response) if response.alarms.is_empty()));
}

/// Every command, with what it says while no alarm, NOSPACE, or CORRUPT is on.
fn matrix() -> Vec<(&'static str, Proposal, bool, bool)> {
    let ok_always = (true, true);
    let no_space = (false, false);
    let only_corrupt = (true, false);
    let command = |name, kind, request: &dyn Fn() -> bytes::Bytes, (space, corrupt)| {
        let proposal = Proposal { kind, body: request(), caller: Caller::default() };
        (name, proposal, space, corrupt)
    };
    let reads = request(&[], &[get("a", "")], &[]);
    let writes = request(&[], &[write("a")], &[]);
    let buried = request(&[], &[], &[nest(&[], &[write("a")], &[])]);
    let deletes = request(&[], &[super::txns::remove("zz", "")], &[]);
    let attributes = membershippb::ClusterMemberAttrSetRequest::default();
    let version = membershippb::ClusterVersionSetRequest { ver: "3.7.0".to_owned() };
    let downgrade = membershippb::DowngradeInfoSetRequest::default();
    macro_rules! row {
        ($name:literal, $kind:ident, $request:expr, $row:expr) => {
            command(
                $name,
                CommandKind::$kind,
                &|| prost::Message::encode_to_vec(&$request).into(),
                $row,
            )
        };
    }
    let expire = LeaseExpire { term: Term(1), ids: vec![LeaseId(2)] }.proposal();
    vec![
        row!("put", Put, put("a", "2"), no_space),
        row!("delete", DeleteRange, delete("zz", ""), only_corrupt),
        row!("txn that reads", Txn, reads, only_corrupt),
        row!("txn that deletes", Txn, deletes, only_corrupt),
        row!("txn that puts", Txn, writes, no_space),
        row!("txn that puts in a nested branch", Txn, buried, no_space),
        row!(
            "compaction",
            Compaction,
            pb::CompactionRequest { revision: 2, physical: false },
            only_corrupt
        ),
        row!("lease grant", LeaseGrant, pb::LeaseGrantRequest { id: 9, ttl: 5 }, no_space),
        row!("lease revoke", LeaseRevoke, pb::LeaseRevokeRequest { id: 1 }, only_corrupt),
        ("lease expire", expire, true, false),
        row!("lease checkpoint", LeaseCheckpoint, pb::LeaseCheckpointRequest::default(), ok_always),
        row!("alarm", Alarm, pb::AlarmRequest::default(), ok_always),
        row!("member attributes", MemberAttributes, attributes, ok_always),
        row!("cluster version", ClusterVersionSet, version, ok_always),
        row!("downgrade", DowngradeInfoSet, downgrade, ok_always),
    ]
}

#[test]
fn t33_the_alarm_matrix() {
    let alarms: [(&[AlarmKind], Option<Refusal>); 4] = [
        (&[], None),
        (&[AlarmKind::NO_SPACE], Some(Refusal::NoSpace)),
        (&[AlarmKind::CORRUPT], Some(Refusal::Corrupt)),
        (&[AlarmKind::NO_SPACE, AlarmKind::CORRUPT], Some(Refusal::Corrupt)),
    ];
    for (name, proposal, passes_space, passes_corrupt) in matrix() {
        for (kinds, refusal) in alarms {
            let mut member = Member::new();
            member.put("a", "1");
            member.grant(1, 60).unwrap();
            member.grant(2, 60).unwrap();
            for kind in kinds {
                alarm(&mut member, AlarmAction::Activate, 1, *kind);
            }
            let passes = match refusal {
                None => true,
                Some(Refusal::NoSpace) => passes_space,
                Some(_) => passes_corrupt,
            };
            let before = member.revision();
            let (outcome, _) = member.propose(proposal.clone());
            let refused = match outcome {
                Outcome::Refused(Refusal::MemberNotFound) => None,
                Outcome::Refused(refusal) => Some(refusal),
                _ => None,
            };
            assert_eq!(refused, refusal.filter(|_| !passes), "{name} under {kinds:?}");
            if refused.is_some() {
                assert_eq!(member.revision(), before, "{name} changed something");
            }
        }
    }
}

#[test]
fn t33_deleting_and_disarming_ends_a_full_store() {
    let mut member = Member::new();
    member.put("a", "1");
    alarm(&mut member, AlarmAction::Activate, 1, AlarmKind::NO_SPACE);
    assert_eq!(member.put_request(&put("a", "2")), Err(Refusal::NoSpace));
    assert_eq!(member.delete("a", "").unwrap().deleted, 1);
    assert_eq!(member.compact(3), Ok(3));
    alarm(&mut member, AlarmAction::Deactivate, 1, AlarmKind::NO_SPACE);
    assert_eq!(member.put("a", "2"), 4);
}

#[test]
fn an_alarm_counts_from_the_next_request_of_its_own_entry() {
    let mut member = Member::new();
    let raise = pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 };
    let applied = member.batch(&[
        Proposal::new(CommandKind::Put, &put("a", "1")),
        Proposal::new(CommandKind::Alarm, &raise),
        Proposal::new(CommandKind::Put, &put("a", "2")),
    ]);
    assert!(matches!(applied.outcomes[0].1, Outcome::Put(_)));
    assert_eq!(applied.outcomes[2].1, Outcome::Refused(Refusal::NoSpace));
    assert_eq!(applied.follow_ups, [FollowUp::AlarmsChanged]);
}
