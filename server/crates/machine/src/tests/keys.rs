//! Put, delete, compact; etcd `txn/put.go`, `txn/delete.go`, `mvcc/kvstore_txn.go`.

use proto::etcdserverpb as pb;
use types::{LogIndex, MemberId, RecordRevision};

use super::member::*;
use crate::*;

#[test]
fn an_empty_store_is_at_revision_one_and_each_put_is_one_more() {
    let mut member = Member::new();
    assert_eq!(member.revision(), 1);
    assert_eq!(member.put("a", "1"), 2);
    assert_eq!(member.put("a", "2"), 3);
    let kv = member.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
}

#[test]
fn a_put_answers_what_it_replaced_only_when_asked() {
    let mut member = Member::new();
    let asking = |value| pb::PutRequest { prev_kv: true, ..put("a", value) };
    assert_eq!(member.put_request(&asking("1")).unwrap().prev_kv, None);
    let previous = member.put_request(&asking("2")).unwrap().prev_kv.unwrap();
    assert_eq!((previous.value, previous.mod_revision), (bytes("1"), 2));
    assert_eq!(member.put_request(&put("a", "3")).unwrap().prev_kv, None);
}

#[test]
fn ignore_value_and_ignore_lease_keep_the_old_and_need_an_old() {
    let mut member = Member::new();
    let keep_value = pb::PutRequest { ignore_value: true, lease: 5, ..put("a", "") };
    let keep_lease = pb::PutRequest { ignore_lease: true, ..put("a", "2") };
    assert_eq!(member.put_request(&keep_value), Err(Refusal::LeaseNotFound), "asked first");
    member.grant(5, 60).unwrap();
    assert_eq!(member.put_request(&keep_value), Err(Refusal::KeyNotFound));
    assert_eq!(member.put_request(&keep_lease), Err(Refusal::KeyNotFound));
    assert_eq!(member.revision(), 1);
    member.put("a", "1");
    let response = member.put_request(&keep_value).unwrap();
    assert_eq!(response.prev_kv, None, "the old value was read but not asked for");
    let kv = member.get("a").unwrap();
    assert_eq!((kv.value, kv.lease), (bytes("1"), 5));
    member.put_request(&keep_lease).unwrap();
    let kv = member.get("a").unwrap();
    assert_eq!((kv.value, kv.lease), (bytes("2"), 5));
    let views = member.machine.views();
    assert_eq!(views.lease_keys(types::LeaseId(5)).unwrap(), [bytes("a")]);
}

#[test]
fn deleting_nothing_keeps_the_revision() {
    let mut member = Member::new();
    member.put("a", "1");
    let response = member.delete("b", "").unwrap();
    assert_eq!((response.deleted, response.header.unwrap().revision), (0, 2));
    let response = member.delete("z", "b").unwrap();
    assert_eq!((response.deleted, response.header.unwrap().revision), (0, 2));
}

#[test]
fn a_deletion_is_one_revision_with_records_in_key_order() {
    let mut member = Member::new();
    for key in ["c", "a", "b", "d"] {
        member.put(key, "1");
    }
    let (outcome, applied) =
        member.propose(Proposal::new(CommandKind::DeleteRange, &delete("a", "d")));
    let Outcome::DeleteRange(response) = outcome else { panic!("{outcome:?}") };
    assert_eq!((response.deleted, response.header.unwrap().revision), (3, 6));
    let previous: Vec<_> = response.prev_kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(previous, [bytes("a"), bytes("b"), bytes("c")]);
    let events = &applied.events[0].events;
    let places: Vec<_> = events.iter().map(|event| (event.key.clone(), event.record)).collect();
    let place = |sub| RecordRevision { main: 6, sub };
    assert_eq!(places, [(bytes("a"), place(0)), (bytes("b"), place(1)), (bytes("c"), place(2))]);
}

#[test]
fn a_range_end_of_one_zero_byte_deletes_from_the_key_on() {
    let mut member = Member::new();
    for key in ["a", "b", "c"] {
        member.put(key, "1");
    }
    assert_eq!(member.delete("b", "\0").unwrap().deleted, 2);
    assert_eq!(member.delete("\0", "\0").unwrap().deleted, 1);
}

#[test]
fn compaction_takes_revisions_between_the_last_one_and_now() {
    let mut member = Member::new();
    for value in ["1", "2", "3"] {
        member.put("a", value);
    }
    assert_eq!(member.compact(5), Err(Refusal::FutureRevision));
    assert_eq!(member.compact(3), Ok(4));
    assert_eq!(member.compact(3), Err(Refusal::Compacted));
    assert_eq!(member.compact(-1), Err(Refusal::Compacted));
    assert_eq!(member.compact(4), Ok(4));
    let view = member.machine.views().mvcc;
    assert!(matches!(view.get(b"a", 3), Err(mvcc::RangeError::Compacted)));
    assert!(view.get(b"a", 4).unwrap().is_some(), "reads at the compact revision go on");
}

#[test]
fn compaction_of_an_empty_store_takes_zero_and_one() {
    let mut member = Member::new();
    assert_eq!(member.compact(0), Ok(1));
    assert_eq!(member.compact(1), Ok(1));
}

#[test]
fn compaction_asks_for_a_sweep() {
    let mut member = Member::new();
    member.put("a", "1");
    let request = pb::CompactionRequest { revision: 2, physical: false };
    let (_, applied) = member.propose(Proposal::new(CommandKind::Compaction, &request));
    assert_eq!(applied.follow_ups, [FollowUp::Compact { revision: types::Revision(2) }]);
}

#[test]
fn t24_requests_of_one_entry_see_each_other() {
    let mut member = Member::new();
    let asking = pb::PutRequest { prev_kv: true, ..put("a", "2") };
    let applied = member.batch(&[
        Proposal::new(CommandKind::Put, &put("a", "1")),
        Proposal::new(CommandKind::Put, &asking),
        Proposal::new(CommandKind::DeleteRange, &delete("a", "")),
        Proposal::new(CommandKind::DeleteRange, &delete("a", "")),
    ]);
    let seqs: Vec<_> = applied.outcomes.iter().map(|(ticket, _)| ticket.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3]);
    let Outcome::Put(second) = &applied.outcomes[1].1 else { panic!() };
    assert_eq!(second.prev_kv.as_ref().unwrap().value, bytes("1"));
    let Outcome::DeleteRange(third) = &applied.outcomes[2].1 else { panic!() };
    assert_eq!((third.deleted, third.prev_kvs[0].value.clone()), (1, bytes("2")));
    let Outcome::DeleteRange(fourth) = &applied.outcomes[3].1 else { panic!() };
    assert_eq!((fourth.deleted, fourth.header.unwrap().revision), (0, 4));
    let revisions: Vec<_> = applied.events.iter().map(|event| event.revision.0).collect();
    assert_eq!(revisions, [2, 3, 4]);
}

#[test]
fn a_refused_request_leaves_the_others_of_its_entry_alone() {
    let mut member = Member::new();
    let refused = pb::PutRequest { lease: 9, ..put("a", "1") };
    let applied = member.batch(&[
        Proposal::new(CommandKind::Put, &refused),
        Proposal::new(CommandKind::Put, &put("b", "2")),
    ]);
    assert_eq!(applied.outcomes[0].1, Outcome::Refused(Refusal::LeaseNotFound));
    assert!(matches!(applied.outcomes[1].1, Outcome::Put(_)));
    assert_eq!((member.value("a"), member.revision()), (None, 2));
}

#[test]
fn a_member_that_answers_nobody_changes_its_state_just_the_same() {
    let (mut all, mut none) = (Member::new(), Member::new());
    none.machine.answer(Answers::Only(MemberId(99)));
    for member in [&mut all, &mut none] {
        member.append(AppliedPayload::Blank);
        member.batch(&[
            Proposal::new(CommandKind::Put, &put("a", "1")),
            Proposal::new(
                CommandKind::Put,
                &pb::PutRequest { prev_kv: true, ignore_value: true, ..put("a", "") },
            ),
            Proposal::new(CommandKind::DeleteRange, &delete("a", "")),
        ]);
    }
    assert_eq!(all.digest(), none.digest());
    assert!(none.batch(&[Proposal::new(CommandKind::Put, &put("b", "1"))]).outcomes.is_empty());
}

#[test]
fn entries_come_in_order_and_once() {
    let mut member = Member::new();
    member.put("a", "1");
    let again = member.log[0].clone();
    let error = member.machine.apply(std::slice::from_ref(&again)).unwrap_err();
    assert!(matches!(error, Fatal::OutOfOrder { applied: LogIndex(1), found: LogIndex(1) }));
    let error = member.machine.apply(&[again]).unwrap_err();
    assert!(matches!(error, Fatal::Stopped), "a machine that failed applies nothing more");
}

#[test]
fn an_entry_from_a_newer_program_stops_the_member_with_a_reason() {
    let position = LogPosition { term: types::Term(1), index: LogIndex(1) };
    for (payload, reason) in [
        (&[2u8, 0, 0, 0, 0][..], "batch format 2, this program reads format 1"),
        (&[1, 1, 0, 0, 0, 99][..], "command 99 in a batch of format 1"),
    ] {
        let payload = AppliedPayload::Batch(bytes::Bytes::copy_from_slice(payload));
        let mut member = Member::new();
        let error = member.machine.apply(&[AppliedEntry { position, payload }]).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(member.machine.applied(), None);
    }
}

#[test]
fn a_failed_disk_stops_the_member_and_shows_readers_nothing() {
    let mut member = Member::new();
    member.put("a", "1");
    member.records.break_disk();
    let batch = Batch::encode(&[(ticket(1), Proposal::new(CommandKind::Put, &put("a", "2")))]);
    let position = LogPosition { term: types::Term(1), index: LogIndex(2) };
    let entry = AppliedEntry { position, payload: AppliedPayload::Batch(batch) };
    let error = member.machine.apply(&[entry]).unwrap_err();
    assert!(matches!(error, Fatal::Store { .. }), "{error}");
    assert_eq!(member.machine.applied().unwrap().index, LogIndex(1));
    assert!(member.machine.views().mvcc.get(b"a", 0).is_err());
}
