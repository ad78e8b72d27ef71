//! Leases through the log; etcd `lease/lessor.go`.

use proto::etcdserverpb as pb;
use types::{LeaseId, Term};

use super::member::*;
use crate::*;

fn attach(key: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { lease, ..put(key, "v") }
}

fn revoke(member: &mut Member, id: i64) -> Result<i64, Refusal> {
    match member.request(CommandKind::LeaseRevoke, &pb::LeaseRevokeRequest { id }) {
        Outcome::LeaseRevoke(response) => Ok(response.header.unwrap().revision),
        Outcome::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

fn keys_of(member: &Member, id: i64) -> Vec<bytes::Bytes> {
    member.machine.views().lease_keys(LeaseId(id)).unwrap()
}

#[test]
fn a_grant_answers_the_ttl_and_leaves_the_revision_alone() {
    let mut member = Member::new();
    let response = member.grant(7, 60).unwrap();
    assert_eq!((response.id, response.ttl, response.header.unwrap().revision), (7, 60, 1));
    assert_eq!(member.grant(7, 60), Err(Refusal::LeaseExists));
    assert_eq!(member.grant(0, 60), Err(Refusal::LeaseNotFound));
    assert_eq!(member.grant(8, 9_000_000_001), Err(Refusal::LeaseTtlTooLarge));
}

#[test]
fn the_edge_raises_a_short_ttl_so_that_members_need_no_common_minimum() {
    let raised = check::lease_grant(&pb::LeaseGrantRequest { id: 1, ttl: -5 }, 2).unwrap();
    assert_eq!(raised, pb::LeaseGrantRequest { id: 1, ttl: 2 });
    let kept = check::lease_grant(&pb::LeaseGrantRequest { id: 1, ttl: 60 }, 2).unwrap();
    assert_eq!(kept.ttl, 60);
    let long = pb::LeaseGrantRequest { id: 1, ttl: i64::MAX };
    assert_eq!(check::lease_grant(&long, 2), Err(Refusal::LeaseTtlTooLarge));
}

#[test]
fn each_put_moves_its_key_to_the_new_lease() {
    let mut member = Member::new();
    member.grant(1, 60).unwrap();
    member.grant(2, 60).unwrap();
    member.put_request(&attach("a", 1)).unwrap();
    member.put_request(&attach("b", 1)).unwrap();
    assert_eq!(keys_of(&member, 1), [bytes("a"), bytes("b")]);
    member.put_request(&attach("a", 2)).unwrap();
    assert_eq!((keys_of(&member, 1), keys_of(&member, 2)), (vec![bytes("b")], vec![bytes("a")]));
    member.put("a", "no lease");
    assert!(keys_of(&member, 2).is_empty());
    member.delete("b", "").unwrap();
    assert!(keys_of(&member, 1).is_empty());
    member.put("b", "again");
    assert_eq!(revoke(&mut member, 1), Ok(member.revision()), "nothing is attached any more");
    assert_eq!(member.value("b").as_deref(), Some("again"));
}

#[test]
fn l2_a_revocation_is_one_revision_over_its_keys_in_order() {
    let mut member = Member::new();
    member.grant(1, 60).unwrap();
    for key in ["c", "a", "b"] {
        member.put_request(&attach(key, 1)).unwrap();
    }
    let proposal = Proposal::new(CommandKind::LeaseRevoke, &pb::LeaseRevokeRequest { id: 1 });
    let (outcome, applied) = member.propose(proposal);
    let Outcome::LeaseRevoke(response) = outcome else { panic!("{outcome:?}") };
    assert_eq!(response.header.unwrap().revision, 5);
    assert_eq!(applied.events.len(), 1);
    let keys: Vec<_> = applied.events[0].events.iter().map(|event| event.key.clone()).collect();
    assert_eq!(keys, [bytes("a"), bytes("b"), bytes("c")]);
    assert_eq!(applied.lease_changes, [LeaseChange::Revoked { id: LeaseId(1) }]);
    assert_eq!(revoke(&mut member, 1), Err(Refusal::LeaseNotFound));
}

#[test]
fn many_leases_expire_in_one_entry_each_in_its_own_revision() {
    let mut member = Member::new();
    for id in 1..=4 {
        member.grant(id, 60).unwrap();
        member.put_request(&attach(&format!("k{id}"), id)).unwrap();
    }
    revoke(&mut member, 2).unwrap();
    let ids = vec![LeaseId(3), LeaseId(2), LeaseId(1), LeaseId(77)];
    let (outcome, applied) = member.propose(LeaseExpire { term: Term(1), ids }.proposal());
    assert_eq!(outcome, Outcome::LeaseExpire { revoked: vec![LeaseId(3), LeaseId(1)] });
    let events: Vec<_> =
        applied.events.iter().map(|e| (e.revision.0, e.events[0].key.clone())).collect();
    assert_eq!(events, [(7, bytes("k3")), (8, bytes("k1"))]);
    assert!(member.get("k4").is_some());
}

#[test]
fn t18_an_expiry_of_an_earlier_term_is_refused() {
    let mut member = Member::new();
    member.grant(1, 60).unwrap();
    member.put_request(&attach("a", 1)).unwrap();
    member.term = 5;
    let expire = |term| LeaseExpire { term: Term(term), ids: vec![LeaseId(1)] }.proposal();
    let (outcome, applied) = member.propose(expire(4));
    let stale = Refusal::StaleTerm { proposed: Term(4), applied: Term(5) };
    assert_eq!(outcome, Outcome::Refused(stale));
    assert!(applied.lease_changes.is_empty() && member.get("a").is_some());
    let (outcome, _) = member.propose(expire(5));
    assert_eq!(outcome, Outcome::LeaseExpire { revoked: vec![LeaseId(1)] });
    assert!(member.get("a").is_none());
}

#[test]
fn a_checkpoint_is_a_replicated_fact_and_ignores_unknown_leases() {
    let mut member = Member::new();
    member.grant(1, 600).unwrap();
    let checkpoint = |id, remaining_ttl| pb::LeaseCheckpoint { id, remaining_ttl };
    let request =
        pb::LeaseCheckpointRequest { checkpoints: vec![checkpoint(9, 5), checkpoint(1, 240)] };
    let (outcome, applied) = member.propose(Proposal::new(CommandKind::LeaseCheckpoint, &request));
    assert!(matches!(outcome, Outcome::LeaseCheckpoint(_)));
    let change = LeaseChange::Checkpointed { id: LeaseId(1), remaining_ttl: 240 };
    assert_eq!(applied.lease_changes, [change]);
    assert_eq!(member.machine.views().leases(), [(LeaseId(1), 600, 240)]);
}

#[test]
fn a_lease_of_an_aborted_put_stays_unattached() {
    let mut member = Member::new();
    member.grant(1, 60).unwrap();
    let keep = pb::PutRequest { ignore_value: true, lease: 1, ..put("a", "") };
    assert_eq!(member.put_request(&keep), Err(Refusal::KeyNotFound));
    assert!(keys_of(&member, 1).is_empty());
}
