//! Transactions; etcd `txn/txn.go`, and the oddities that `etcd-surface` names.

use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;

use super::member::*;
use crate::*;

fn operation(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub(super) fn get(key: &str, range_end: &str) -> pb::RequestOp {
    operation(Request::RequestRange(range(key, range_end)))
}

fn get_at(key: &str, revision: i64) -> pb::RequestOp {
    operation(Request::RequestRange(pb::RangeRequest { revision, ..range(key, "") }))
}

pub(super) fn write(key: &str) -> pb::RequestOp {
    operation(Request::RequestPut(put(key, "new")))
}

pub(super) fn remove(key: &str, range_end: &str) -> pb::RequestOp {
    operation(Request::RequestDeleteRange(delete(key, range_end)))
}

pub(super) fn nest(
    compare: &[pb::Compare],
    success: &[pb::RequestOp],
    failure: &[pb::RequestOp],
) -> pb::RequestOp {
    operation(Request::RequestTxn(request(compare, success, failure)))
}

pub(super) fn request(
    compare: &[pb::Compare],
    success: &[pb::RequestOp],
    failure: &[pb::RequestOp],
) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: compare.to_vec(),
        success: success.to_vec(),
        failure: failure.to_vec(),
    }
}

const EQUAL: i32 = 0;
const GREATER: i32 = 1;
const LESS: i32 = 2;
const NOT_EQUAL: i32 = 3;

fn compare(key: &str, range_end: &str, result: i32, operand: TargetUnion) -> pb::Compare {
    let target = match operand {
        TargetUnion::Version(_) => 0,
        TargetUnion::CreateRevision(_) => 1,
        TargetUnion::ModRevision(_) => 2,
        TargetUnion::Value(_) => 3,
        TargetUnion::Lease(_) => 4,
    };
    let (key, range_end) = (bytes(key), bytes(range_end));
    pb::Compare { result, target, key, range_end, target_union: Some(operand) }
}

fn value(text: &str) -> TargetUnion {
    TargetUnion::Value(bytes(text))
}

/// Keys a and b, both of lease 5; a was written twice.
fn two_keys() -> Member {
    let mut member = Member::new();
    member.grant(5, 60).unwrap();
    for (key, text) in [("a", "0"), ("a", "1"), ("b", "1")] {
        member.put_request(&pb::PutRequest { lease: 5, ..put(key, text) }).unwrap();
    }
    member
}

fn responses(response: &pb::TxnResponse) -> Vec<&Response> {
    response.responses.iter().map(|response| response.response.as_ref().unwrap()).collect()
}

#[test]
fn comparisons_hold_as_in_etcd() {
    use TargetUnion::{CreateRevision, Lease, ModRevision, Version};
    let cases = [
        ("a", "", EQUAL, Version(2), true),
        ("a", "", NOT_EQUAL, Version(2), false),
        ("a", "", EQUAL, CreateRevision(2), true),
        ("a", "", GREATER, ModRevision(2), true),
        ("a", "", GREATER, ModRevision(3), false),
        ("a", "", LESS, ModRevision(4), true),
        ("a", "", EQUAL, Lease(5), true),
        ("a", "", EQUAL, value("1"), true),
        ("a", "", LESS, value("2"), true),
        ("a", "", GREATER, value(""), true),
        // Every key of the range must satisfy the comparison.
        ("a", "c", EQUAL, value("1"), true),
        ("a", "c", EQUAL, Version(2), false),
        ("a", "\0", GREATER, Version(0), true),
        ("b", "\0", EQUAL, CreateRevision(4), true),
        // A missing key compares as zeros, except that nothing holds of its value.
        ("x", "", EQUAL, Version(0), true),
        ("x", "", EQUAL, CreateRevision(0), true),
        ("x", "", EQUAL, ModRevision(0), true),
        ("x", "", EQUAL, Lease(0), true),
        ("x", "", LESS, Version(1), true),
        ("x", "", EQUAL, value(""), false),
        ("x", "", NOT_EQUAL, value("1"), false),
        ("x", "z", NOT_EQUAL, value("1"), false),
        ("x", "z", EQUAL, Version(0), true),
        ("c", "a", EQUAL, Version(0), true),
        // What nobody knows: the comparison holds, the target compares equal.
        ("a", "", 9, Version(77), true),
    ];
    let mut member = two_keys();
    for (key, range_end, result, operand, expected) in cases {
        let compare = compare(key, range_end, result, operand);
        let request = request(std::slice::from_ref(&compare), &[], &[]);
        assert_eq!(member.txn(&request).unwrap().succeeded, expected, "{compare:?}");
        let view = member.machine.views().mvcc;
        assert_eq!(read_only(&view, &request).unwrap().succeeded, expected, "{compare:?}");
    }
    let odd = pb::Compare { target: 9, key: bytes("a"), ..Default::default() };
    assert!(member.txn(&request(&[odd], &[], &[])).unwrap().succeeded);
    let operand_of_another_kind = pb::Compare { target: 0, ..compare("x", "", EQUAL, value("1")) };
    assert!(member.txn(&request(&[operand_of_another_kind], &[], &[])).unwrap().succeeded);
}

#[test]
fn no_comparison_is_success_and_no_write_keeps_the_revision() {
    let mut member = two_keys();
    let response = member.txn(&request(&[], &[get("a", "")], &[write("a")])).unwrap();
    assert!(response.succeeded);
    assert_eq!(response.header.unwrap().revision, 4);
    let response = member.txn(&request(&[], &[remove("x", "")], &[])).unwrap();
    assert_eq!(response.header.unwrap().revision, 4);
    let response = member.txn(&request(&[], &[], &[])).unwrap();
    assert_eq!((response.header.unwrap().revision, response.responses.len()), (4, 0));
}

#[test]
fn all_writes_share_a_revision_and_ranges_see_earlier_writes() {
    let mut member = two_keys();
    let request = request(
        &[],
        &[get("c", ""), write("c"), get("a", "\0"), remove("a", "b"), get("a", "\0")],
        &[],
    );
    let response = member.txn(&request).unwrap();
    assert_eq!(response.header.unwrap().revision, 5);
    let responses = responses(&response);
    let Response::ResponseRange(first) = responses[0] else { panic!() };
    assert_eq!((first.count, first.header.unwrap().revision), (0, 4), "nothing is written yet");
    let Response::ResponsePut(second) = responses[1] else { panic!() };
    assert_eq!(second.header.unwrap().revision, 5);
    let Response::ResponseRange(third) = responses[2] else { panic!() };
    let keys: Vec<_> = third.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
    assert_eq!(keys, [(bytes("a"), 3), (bytes("b"), 4), (bytes("c"), 5)]);
    assert_eq!(third.header.unwrap().revision, 5);
    let Response::ResponseDeleteRange(fourth) = responses[3] else { panic!() };
    assert_eq!((fourth.deleted, fourth.prev_kvs.len()), (1, 1));
    let Response::ResponseRange(fifth) = responses[4] else { panic!() };
    assert_eq!(fifth.count, 2);
    assert_eq!(member.get("c").unwrap().mod_revision, 5);
    let keys = member.machine.views().lease_keys(types::LeaseId(5)).unwrap();
    assert_eq!(keys, [bytes("b")], "the deleted key left its lease");
}

#[test]
fn a_nested_transaction_takes_its_own_path_and_answers_without_a_revision() {
    let mut member = two_keys();
    let missing = compare("x", "", GREATER, TargetUnion::Version(0));
    let deep = nest(std::slice::from_ref(&missing), &[], &[write("deep")]);
    let outer = request(
        &[],
        &[
            nest(std::slice::from_ref(&missing), &[write("no")], &[write("yes"), deep]),
            write("top"),
        ],
        &[],
    );
    let response = member.txn(&outer).unwrap();
    assert!(response.succeeded);
    let Response::ResponseTxn(inner) = responses(&response)[0] else { panic!() };
    assert!(!inner.succeeded);
    assert_eq!(inner.header, Some(pb::ResponseHeader::default()));
    let Response::ResponseTxn(deep) = responses(inner)[1] else { panic!() };
    assert!(!deep.succeeded && matches!(responses(deep)[0], Response::ResponsePut(_)));
    for (key, written) in [("no", false), ("yes", true), ("deep", true), ("top", true)] {
        assert_eq!(member.get(key).map(|kv| kv.mod_revision), written.then_some(5), "{key}");
    }
}

#[test]
fn comparisons_of_nested_transactions_do_not_see_the_outer_writes() {
    let mut member = two_keys();
    let created = compare("new", "", GREATER, TargetUnion::Version(0));
    let outer = request(&[], &[write("new"), nest(&[created], &[write("seen")], &[])], &[]);
    member.txn(&outer).unwrap();
    assert!(member.get("new").is_some() && member.get("seen").is_none());
}

#[test]
fn one_bad_range_or_put_on_the_path_refuses_everything() {
    let mut member = two_keys();
    member.compact(3).unwrap();
    let no_lease = operation(Request::RequestPut(pb::PutRequest { lease: 9, ..put("p", "1") }));
    let keep =
        |key| operation(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put(key, "") }));
    let cases = [
        (get_at("a", 5), Refusal::FutureRevision),
        (get_at("a", 2), Refusal::Compacted),
        (get_at("a", -1), Refusal::Compacted),
        (no_lease, Refusal::LeaseNotFound),
        (keep("x"), Refusal::KeyNotFound),
        (pb::RequestOp { request: None }, Refusal::KeyNotFound),
    ];
    for (bad, refusal) in cases {
        let nested = nest(&[], std::slice::from_ref(&bad), &[]);
        for path in [[write("w"), bad.clone()], [write("w"), nested]] {
            assert_eq!(member.txn(&request(&[], &path, &[])), Err(refusal), "{bad:?}");
            assert_eq!(member.revision(), 4, "nothing of it was written");
        }
        let other_path = request(&[], &[write("w")], std::slice::from_ref(&bad));
        let mut untaken = two_keys();
        untaken.compact(3).unwrap();
        assert!(untaken.txn(&other_path).is_ok(), "only the taken path counts");
    }
}

#[test]
fn a_range_sees_the_compact_revision_and_the_revision_before_the_transaction() {
    let mut member = two_keys();
    assert!(member.txn(&request(&[], &[get_at("a", -1), write("w")], &[])).is_ok());
    member.compact(3).unwrap();
    let response = member.txn(&request(&[], &[write("w"), get_at("a", 3)], &[])).unwrap();
    let Response::ResponseRange(old) = responses(&response)[1] else { panic!() };
    assert_eq!(old.kvs[0].value, bytes("1"));
    // Its own revision is still in the future when a transaction is checked.
    let own = request(&[], &[write("w"), get_at("w", member.revision() + 1)], &[]);
    assert_eq!(member.txn(&own), Err(Refusal::FutureRevision));
}

#[test]
fn t11_a_transaction_does_not_depend_on_how_far_a_sweep_has_come() {
    let (mut swept, mut unswept) = (two_keys(), two_keys());
    for member in [&mut swept, &mut unswept] {
        member.delete("b", "").unwrap();
        member.compact(5).unwrap();
    }
    swept.sweep();
    swept.machine.compactor().remove_garbage(types::Revision(5)).unwrap();
    assert!(swept.records.len() < unswept.records.len());
    for revision in [2, 3, 4, 5, 0] {
        let read = request(&[], &[get_at("a", revision), get_at("b", revision)], &[]);
        assert_eq!(swept.txn(&read), unswept.txn(&read), "at {revision}");
        let write = request(&[], &[get_at("a", revision), write("w")], &[]);
        assert_eq!(swept.txn(&write), unswept.txn(&write), "at {revision}");
    }
    assert_eq!(swept.digest(), unswept.digest());
}

#[test]
fn keeping_the_value_of_a_key_that_the_same_transaction_deletes_is_refused() {
    // Go etcd lets this through its check of overlaps and its members panic on it.
    let mut member = two_keys();
    let keep =
        operation(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("b", "") }));
    let after = request(&[], &[remove("a", "\0"), keep.clone()], &[]);
    assert_eq!(check::txn(&after, 128), Ok(()));
    assert_eq!(member.txn(&after), Err(Refusal::KeyNotFound));
    let nested = request(&[], &[nest(&[], &[remove("a", "\0")], &[]), keep.clone()], &[]);
    assert_eq!(member.txn(&nested), Err(Refusal::KeyNotFound));
    assert_eq!(member.revision(), 4);
    let before = request(&[], &[keep, remove("a", "\0")], &[]);
    assert_eq!(member.txn(&before).unwrap().header.unwrap().revision, 5);
}

#[test]
fn a_key_deleted_and_written_again_in_one_transaction_starts_anew() {
    let mut member = two_keys();
    member.txn(&request(&[], &[remove("a", "\0"), write("b")], &[])).unwrap();
    let kv = member.get("b").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (5, 5, 1, 0));
    assert!(member.machine.views().lease_keys(types::LeaseId(5)).unwrap().is_empty());
}

#[test]
fn a_read_only_transaction_answers_from_a_view_what_apply_would() {
    let mut member = two_keys();
    member.compact(3).unwrap();
    let view = member.machine.views().mvcc;
    for operation in [get("a", "\0"), get_at("a", 3), get_at("a", 4)] {
        let request = request(&[], &[operation.clone(), operation], &[]);
        assert!(check::is_read_only(&request));
        assert_eq!(read_only(&view, &request).unwrap(), member.txn(&request).unwrap());
    }
    for (revision, refusal) in
        [(5, Refusal::FutureRevision), (2, Refusal::Compacted), (-1, Refusal::Compacted)]
    {
        let request = request(&[], &[get_at("a", revision)], &[]);
        let error = read_only(&view, &request).unwrap_err();
        assert!(matches!(error, ReadOnlyError::Refused(found) if found == refusal), "{error}");
    }
    let writes = request(&[], &[write("a")], &[]);
    assert!(!check::is_read_only(&writes));
    assert!(matches!(read_only(&view, &writes), Err(ReadOnlyError::Writes)));
    assert!(!check::is_read_only(&request(&[], &[nest(&[], &[], &[])], &[])));
}
