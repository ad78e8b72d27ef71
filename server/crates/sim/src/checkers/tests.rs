//! The judges themselves: each promise broken once, by hand.

use bytes::Bytes;
use mvcc::{Event, EventKind, RevisionEvents};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use types::{MemberId, RecordRevision, Revision};

use super::linearizability;
use super::log::LogOrder;
use super::model::Model;
use crate::history::{Failure, History, Request, Response};
use crate::trace::Trace;

const MEMBER: MemberId = MemberId(1);

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

fn put(value: &'static str) -> Request {
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(value.as_bytes()));
    Request::Put(pb::PutRequest { key, value, ..pb::PutRequest::default() })
}

fn put_done(revision: i64) -> Result<Response, Failure> {
    Ok(Response::Put(pb::PutResponse { header: header(revision), prev_kv: None }))
}

fn get() -> Request {
    Request::Range(pb::RangeRequest { key: "k".into(), ..pb::RangeRequest::default() })
}

fn got(revision: i64, kv: Option<KeyValue>) -> Result<Response, Failure> {
    let kvs: Vec<_> = kv.into_iter().collect();
    let count = kvs.len() as i64;
    Ok(Response::Range(pb::RangeResponse { header: header(revision), kvs, more: false, count }))
}

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

/// A member publishes a put of `value`, or a deletion, at a revision.
fn publish(history: &History, member: u64, revision: i64, value: Option<&'static str>) {
    publish_change(history, member, revision, value.map(|value| version(value, revision)));
}

fn publish_change(history: &History, member: u64, revision: i64, put: Option<KeyValue>) {
    let kind = if put.is_some() { EventKind::Put } else { EventKind::Delete };
    let deletion = KeyValue { key: "k".into(), mod_revision: revision, ..KeyValue::default() };
    let event = Event {
        kind,
        key: "k".into(),
        key_value: put.unwrap_or(deletion).encode_to_vec().into(),
        record: RecordRevision { main: revision, sub: 0 },
        previous: None,
        create: revision == 2,
    };
    let group = RevisionEvents { revision: Revision(revision), events: vec![event] };
    history.published(MemberId(member), member, &[group]);
}

/// Two puts, the second of them after the first.
fn two_puts() -> History {
    let history = History::new(Trace::new(false));
    for (value, revision) in [("a", 2), ("b", 3)] {
        let id = history.call(1, MEMBER, 1, put(value));
        publish(&history, 1, revision, Some(value));
        history.answer(id, put_done(revision), None);
    }
    history
}

/// Judged without a log.
fn check(history: &History) -> Result<Model, String> {
    linearizability::check(history, &LogOrder::default())
}

#[track_caller]
fn broken(history: &History, expected: &str) {
    let violation = check(history).unwrap_err();
    assert!(violation.contains(expected), "{violation}");
}

#[test]
fn an_honest_history_passes() {
    let history = two_puts();
    let id = history.call(1, MEMBER, 1, get());
    history.answer(id, got(3, Some(version("b", 3))), None);
    assert_eq!(check(&history).unwrap().revision(), 3);
}

#[test]
fn a_read_of_an_old_revision_after_a_newer_one_was_told_is_stale() {
    let history = two_puts();
    let id = history.call(2, MEMBER, 1, get());
    history.answer(id, got(2, Some(version("a", 2))), None);
    broken(&history, "STALE");
}

#[test]
fn a_read_with_another_content_than_its_revision_is_wrong() {
    let history = two_puts();
    let id = history.call(2, MEMBER, 1, get());
    history.answer(id, got(3, Some(version("a", 2))), None);
    broken(&history, "should have been told");
}

#[test]
fn an_acknowledged_write_that_is_nowhere_is_lost() {
    let history = two_puts();
    let id = history.call(1, MEMBER, 1, put("c"));
    history.answer(id, put_done(4), None);
    broken(&history, "LOST");
}

#[test]
fn a_write_that_was_refused_must_not_happen() {
    let history = two_puts();
    let id = history.call(1, MEMBER, 1, put("c"));
    history.answer(id, Err(Failure::NotDone("no leader".into())), None);
    publish(&history, 1, 4, Some("c"));
    broken(&history, "failed, and yet");
}

#[test]
fn a_write_happens_at_most_once() {
    let history = two_puts();
    let id = history.call(1, MEMBER, 1, put("c"));
    history.answer(id, Err(Failure::Unknown("timed out".into())), None);
    publish(&history, 1, 4, Some("c"));
    assert!(check(&history).is_ok(), "what timed out may have happened");
    publish(&history, 1, 5, Some("c"));
    broken(&history, "happened twice");
}

#[test]
fn a_deletion_that_nobody_asked_for_is_found() {
    let history = two_puts();
    publish(&history, 1, 4, None);
    broken(&history, "nobody asked");
}

/// Two operations could have made the deletion; one of them began after it had been heard of.
#[test]
fn a_lease_without_keys_is_revoked_at_a_revision_that_another_operation_made() {
    const LEASE: i64 = 7;
    let history = History::new(Trace::new(false));
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"a"));
    let request = pb::PutRequest { key, value, lease: LEASE, ..pb::PutRequest::default() };
    let id = history.call(1, MEMBER, 1, Request::Put(request));
    publish_change(&history, 1, 2, Some(KeyValue { lease: LEASE, ..version("a", 2) }));
    history.answer(id, put_done(2), None);

    let request = pb::DeleteRangeRequest { key: "k".into(), ..pb::DeleteRangeRequest::default() };
    let id = history.call(1, MEMBER, 1, Request::Delete(request));
    publish(&history, 1, 3, None);
    history.answer(id, Err(Failure::Unknown("the member died".into())), None);
    let id = history.call(2, MEMBER, 1, get());
    history.answer(id, got(3, None), None);

    let id = history.call(1, MEMBER, 1, Request::Revoke(pb::LeaseRevokeRequest { id: LEASE }));
    history.answer(id, Ok(Response::Revoke(pb::LeaseRevokeResponse { header: header(3) })), None);
    assert_eq!(check(&history).unwrap().revision(), 3);
}

#[test]
fn members_that_disagree_about_a_revision_are_found() {
    let trace = Trace::new(false);
    let history = History::new(trace.clone());
    publish(&history, 1, 2, Some("a"));
    publish(&history, 2, 2, Some("a"));
    assert_eq!(trace.first_violation(), None);
    publish(&history, 1, 3, Some("b"));
    publish(&history, 2, 3, Some("c"));
    assert!(trace.first_violation().unwrap().contains("disagree"));
}
