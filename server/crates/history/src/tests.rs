//! The judges themselves: a right history passes, and each promise is broken once, by hand.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::mvccpb::{self, KeyValue};
use watch::CreateWatch;

use super::watches::WatchRecord;
use super::*;

const LEASE: i64 = 7;

/// What clients and members say, put together by hand.
#[derive(Default)]
struct Story {
    clock: u64,
    operations: Vec<Operation>,
    revisions: Revisions,
}

impl Story {
    fn call(&mut self, process: u64, request: Request) -> usize {
        self.clock += 1;
        let (id, called) = (self.operations.len(), self.clock);
        let operation = Operation { id, process, called, returned: None, request, result: None };
        self.operations.push(operation);
        id
    }

    fn answer(&mut self, id: usize, result: Result<Response, Failure>) {
        self.clock += 1;
        self.operations[id].returned = Some(self.clock);
        self.operations[id].result = Some(result);
    }

    /// A call that is answered before anything else happens.
    fn ask(&mut self, request: Request, result: Result<Response, Failure>) -> usize {
        let id = self.call(1, request);
        self.answer(id, result);
        id
    }

    fn happened(&mut self, revision: i64, changes: &[Change]) {
        self.revisions.insert(revision, changes.to_vec());
    }

    fn judge(&self) -> Result<linearizability::Judged, String> {
        linearizability::check(&self.operations, &self.revisions, &BTreeMap::new())
    }

    #[track_caller]
    fn broken(&self, expected: &str) {
        let violation = self.judge().unwrap_err();
        assert!(violation.contains(expected), "{violation}");
    }
}

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

fn put_request(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..pb::PutRequest::default() }
}

fn put(value: &'static str) -> Request {
    Request::Put(put_request("k", value))
}

fn put_done(revision: i64) -> Result<Response, Failure> {
    Ok(Response::Put(pb::PutResponse { header: header(revision), prev_kv: None }))
}

fn delete() -> Request {
    Request::Delete(pb::DeleteRangeRequest { key: "k".into(), ..Default::default() })
}

fn deleted(revision: i64, deleted: i64) -> Result<Response, Failure> {
    let (header, prev_kvs) = (header(revision), Vec::new());
    Ok(Response::Delete(pb::DeleteRangeResponse { header, deleted, prev_kvs }))
}

fn range() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), ..pb::RangeRequest::default() }
}

fn get() -> Request {
    Request::Range(range())
}

fn stale_get() -> Request {
    Request::Range(pb::RangeRequest { serializable: true, ..range() })
}

fn get_at(revision: i64) -> Request {
    Request::Range(pb::RangeRequest { revision, ..range() })
}

fn got(revision: i64, kv: Option<KeyValue>) -> Result<Response, Failure> {
    let kvs: Vec<_> = kv.into_iter().collect();
    let count = kvs.len() as i64;
    Ok(Response::Range(pb::RangeResponse { header: header(revision), kvs, more: false, count }))
}

fn compact(revision: i64) -> Request {
    Request::Compact(pb::CompactionRequest { revision, physical: false })
}

fn compacted(revision: i64) -> Result<Response, Failure> {
    Ok(Response::Compact(pb::CompactionResponse { header: header(revision) }))
}

fn revoke() -> Request {
    Request::Revoke(pb::LeaseRevokeRequest { id: LEASE })
}

/// The first key that was put at revision 2, at every revision since.
fn version(value: &'static str, revision: i64) -> KeyValue {
    KeyValue {
        key: "k".into(),
        value: value.into(),
        create_revision: 2,
        mod_revision: revision,
        version: revision - 1,
        lease: 0,
    }
}

fn change(value: &'static str, revision: i64) -> Change {
    Change { delete: false, key_value: version(value, revision) }
}

fn deletion(revision: i64) -> Change {
    let key = Bytes::from_static(b"k");
    let key_value = KeyValue { key, mod_revision: revision, ..KeyValue::default() };
    Change { delete: true, key_value }
}

/// If the key is at a revision, put two keys at once; else read it.
fn swap(expected: i64, value: &'static str, other: &'static str) -> Request {
    use pb::compare::{CompareTarget, TargetUnion};
    use pb::request_op::Request as Op;
    let op = |request| pb::RequestOp { request: Some(request) };
    Request::Txn(pb::TxnRequest {
        compare: vec![pb::Compare {
            target: CompareTarget::Mod as i32,
            key: "k".into(),
            target_union: Some(TargetUnion::ModRevision(expected)),
            ..pb::Compare::default()
        }],
        success: vec![
            op(Op::RequestPut(put_request("k", value))),
            op(Op::RequestPut(put_request("l", other))),
        ],
        failure: vec![op(Op::RequestRange(range()))],
    })
}

fn swapped(revision: i64) -> Result<Response, Failure> {
    use pb::response_op::Response as Answer;
    let put = pb::ResponseOp { response: Some(Answer::ResponsePut(pb::PutResponse::default())) };
    let responses = vec![put.clone(), put];
    Ok(Response::Txn(pb::TxnResponse { header: header(revision), succeeded: true, responses }))
}

/// What the swap of the second revision does at the third.
fn both() -> [Change; 2] {
    let other = KeyValue {
        key: "l".into(),
        value: "y".into(),
        create_revision: 3,
        mod_revision: 3,
        version: 1,
        lease: 0,
    };
    [change("x", 3), Change { delete: false, key_value: other }]
}

/// Two puts, the second of them after the first.
fn two_puts() -> Story {
    let mut story = Story::default();
    for (value, revision) in [("a", 2), ("b", 3)] {
        story.ask(put(value), put_done(revision));
        story.happened(revision, &[change(value, revision)]);
    }
    story
}

/// A put with a lease; what ends it is up to the test.
fn leased() -> Story {
    let mut story = Story::default();
    let request = pb::PutRequest { lease: LEASE, ..put_request("k", "a") };
    story.ask(Request::Put(request), put_done(2));
    let key_value = KeyValue { lease: LEASE, ..version("a", 2) };
    story.happened(2, &[Change { delete: false, key_value }]);
    story
}

#[test]
fn an_honest_history_passes() {
    let mut story = two_puts();
    story.ask(get(), got(3, Some(version("b", 3))));
    story.ask(stale_get(), got(3, Some(version("b", 3))));
    story.ask(get_at(2), got(3, Some(version("a", 2))));
    story.ask(compact(3), compacted(3));
    story.ask(get_at(2), Err(Failure::Compacted));
    story.ask(get_at(9), Err(Failure::FutureRevision));
    story.ask(delete(), deleted(4, 1));
    story.happened(4, &[deletion(4)]);
    story.ask(delete(), deleted(4, 0));
    assert_eq!(story.judge().unwrap().model.revision(), 4);
}

#[test]
fn a_read_of_an_old_revision_after_a_newer_one_was_told_is_stale() {
    let mut story = two_puts();
    let id = story.call(2, get());
    story.answer(id, got(2, Some(version("a", 2))));
    story.broken("STALE");
    story.operations[id].request = stale_get();
    assert!(story.judge().is_ok(), "another process may be behind");
}

#[test]
fn a_process_that_goes_back_in_time_is_found() {
    let mut story = two_puts();
    story.ask(stale_get(), got(3, Some(version("b", 3))));
    story.ask(stale_get(), got(2, Some(version("a", 2))));
    story.broken("went back behind");
}

#[test]
fn a_read_with_another_content_than_its_revision_is_wrong() {
    for request in [get(), stale_get(), get_at(3)] {
        let mut story = two_puts();
        story.ask(request, got(3, Some(version("a", 2))));
        story.broken("should have been told");
    }
}

#[test]
fn a_read_of_a_write_that_had_not_begun_is_found() {
    let mut story = two_puts();
    let id = story.call(2, stale_get());
    story.answer(id, got(4, Some(version("c", 4))));
    story.ask(put("c"), put_done(4));
    story.happened(4, &[change("c", 4)]);
    story.broken("STALE");
}

#[test]
fn a_read_of_what_was_compacted_is_found() {
    let mut story = two_puts();
    story.ask(compact(3), compacted(3));
    story.ask(get_at(2), got(3, Some(version("a", 2))));
    story.broken("COMPACTED");
}

#[test]
fn a_refusal_without_a_reason_is_found() {
    for failure in [Failure::Compacted, Failure::FutureRevision] {
        let mut story = two_puts();
        story.ask(get_at(2), Err(failure));
        story.broken("no reason to be refused");
    }
}

#[test]
fn an_acknowledged_write_that_is_nowhere_is_lost() {
    let mut story = two_puts();
    story.ask(put("c"), put_done(4));
    story.broken("LOST");
    let mut story = two_puts();
    story.ask(delete(), deleted(3, 1));
    story.broken("LOST");
}

#[test]
fn writes_in_the_wrong_order_are_found() {
    let mut story = two_puts();
    story.operations[0].result = Some(put_done(3));
    story.operations[1].result = Some(put_done(2));
    story.happened(2, &[change("b", 2)]);
    story.happened(3, &[change("a", 3)]);
    story.broken("STALE");
}

#[test]
fn a_revision_that_is_missing_is_found() {
    let mut story = two_puts();
    story.happened(5, &[change("d", 5)]);
    story.broken("revision 5 follows 3");
}

#[test]
fn a_write_that_was_refused_must_not_happen() {
    let mut story = two_puts();
    story.ask(put("c"), Err(Failure::NotDone));
    story.happened(4, &[change("c", 4)]);
    story.broken("failed, and yet");
}

#[test]
fn a_write_happens_at_most_once() {
    let mut story = two_puts();
    story.ask(put("c"), Err(Failure::Unknown));
    story.happened(4, &[change("c", 4)]);
    assert_eq!(story.judge().unwrap().resolved, 1, "what timed out may have happened");
    story.happened(5, &[change("c", 5)]);
    story.broken("happened twice");
}

#[test]
fn a_write_that_nobody_asked_for_is_found() {
    let mut story = two_puts();
    story.happened(4, &[change("z", 4)]);
    story.broken("nobody asked");
}

#[test]
fn a_deletion_that_nobody_asked_for_is_found() {
    let mut story = two_puts();
    story.happened(4, &[deletion(4)]);
    story.broken("nobody asked");
}

#[test]
fn a_deletion_without_an_answer_is_whose_who_may_have_made_it() {
    let mut story = two_puts();
    story.happened(4, &[deletion(4)]);
    let id = story.call(1, delete());
    assert_eq!(story.judge().unwrap().writers[&4], Writer::Operation(id));
    // The same operation began too late if the revision had been told before.
    let read = story.call(1, get());
    story.operations[read].called = 0;
    story.operations[read].returned = Some(1);
    story.operations[read].result = Some(got(4, None));
    story.broken("nobody asked");
}

#[test]
fn a_transaction_against_its_comparison_is_found() {
    let mut story = two_puts();
    story.operations[1] = Operation {
        request: swap(2, "x", "y"),
        result: Some(swapped(3)),
        ..story.operations[1].clone()
    };
    story.happened(3, &both());
    assert!(story.judge().is_ok());
    story.operations[1].request = swap(1, "x", "y");
    story.broken("should be []");
}

#[test]
fn a_torn_transaction_is_found() {
    let mut story = two_puts();
    story.operations[1] = Operation {
        request: swap(2, "x", "y"),
        result: Some(swapped(3)),
        ..story.operations[1].clone()
    };
    story.happened(3, &both()[..1]);
    story.broken("revision 3 should be");
}

/// Two operations could have made the deletion; one of them began after it had been heard of.
#[test]
fn a_lease_without_keys_is_revoked_at_a_revision_that_another_operation_made() {
    let mut story = leased();
    let id = story.call(1, delete());
    story.happened(3, &[deletion(3)]);
    story.answer(id, Err(Failure::Unknown));
    let id = story.call(2, get());
    story.answer(id, got(3, None));
    let revoked = pb::LeaseRevokeResponse { header: header(3) };
    story.ask(revoke(), Ok(Response::Revoke(revoked)));
    assert_eq!(story.judge().unwrap().model.revision(), 3);
}

#[test]
fn keys_go_by_the_end_of_their_lease_without_anybody_asking() {
    let mut story = leased();
    story.happened(3, &[deletion(3)]);
    let judged = story.judge().unwrap();
    assert_eq!(judged.writers[&3], Writer::Expiry(LEASE));
    let ends = leases::ends(&story.operations, &judged, &BTreeMap::from([(3, 99)]));
    assert_eq!(ends, BTreeMap::from([(LEASE, leases::End { seen: 99, by_time: true })]));
}

#[test]
fn the_end_of_a_lease_takes_all_of_its_keys_and_no_others() {
    let mut story = leased();
    story.ask(Request::Put(put_request("l", "b")), put_done(3));
    let other = KeyValue {
        key: "l".into(),
        value: "b".into(),
        create_revision: 3,
        mod_revision: 3,
        version: 1,
        lease: 0,
    };
    story.happened(3, &[Change { delete: false, key_value: other }]);
    let also = KeyValue { key: "l".into(), mod_revision: 4, ..KeyValue::default() };
    story.happened(4, &[deletion(4), Change { delete: true, key_value: also }]);
    story.broken("nobody asked");
}

#[test]
fn an_event_that_a_watch_has_left_out_is_found() {
    let story = two_puts();
    let request = CreateWatch { key: "k".into(), start_revision: 1, ..CreateWatch::default() };
    let created =
        pb::WatchResponse { header: header(1), created: true, ..pb::WatchResponse::default() };
    let event = mvccpb::Event { r#type: 0, kv: Some(version("b", 3)), prev_kv: None };
    let late = pb::WatchResponse { header: header(3), events: vec![event], ..Default::default() };
    let mut record =
        WatchRecord { member: 1, request, responses: vec![created, late], complete: None };
    let found = watches::check(std::slice::from_ref(&record), &story.revisions, -1).unwrap_err();
    assert!(found.contains("not resumable"), "{found}");
    record.request.start_revision = 3;
    assert_eq!(watches::check(&[record], &story.revisions, -1), Ok(()));
}
