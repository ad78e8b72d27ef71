//! The suite that every [`RevStore`] has to pass.
//!
//! Each function is one claim of the contract and panics when the engine breaks it. An engine
//! brings a [`Bench`], which opens the same store again and again; [`run`] checks all claims.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use types::{LogIndex, RecordRevision, Revision};

use crate::{Record, RevStore};

/// Opens stores for the suite.
pub trait Bench {
    /// Opens the store: empty at first, and later with what the last one left. All handles of an
    /// earlier store are dropped before.
    fn open(&mut self) -> Arc<dyn RevStore>;
    /// Makes the next [`Bench::open`] open an empty store.
    fn clear(&mut self);
}

/// Panics if the engine breaks it.
type Claim = fn(&mut dyn Bench);

/// Checks every claim.
pub fn run(bench: &mut dyn Bench) {
    let claims: [(&str, Claim); 10] = [
        ("empty store", an_empty_store_has_nothing),
        ("read", what_was_appended_is_read_at_once),
        ("scan", scans_are_half_open_ordered_and_stoppable),
        ("concurrent", readers_follow_the_writer),
        ("flush", what_was_flushed_is_there_after_reopening),
        ("reopen", a_reopened_store_holds_a_prefix_and_goes_on),
        ("order", appends_out_of_order_are_refused),
        ("truncate", truncation_forgets_and_lets_the_log_bring_it_again),
        ("remove", removal_keeps_the_others_and_frees_space),
        ("defragment", defragmenting_changes_no_record),
    ];
    for (name, claim) in claims {
        tracing::debug!(name, "conformance");
        bench.clear();
        claim(bench);
    }
}

/// A place in the history.
pub fn at(main: i64, sub: i64) -> RecordRevision {
    RecordRevision { main, sub }
}

/// A record whose content follows from its place, of about `size` bytes.
pub fn record(main: i64, sub: i64, size: usize) -> Record {
    let mut value = format!("value of {main}/{sub} ").into_bytes();
    let mut byte = main as u8;
    while value.len() < size {
        byte = byte.wrapping_mul(31).wrapping_add(sub as u8 + 7);
        value.push(byte);
    }
    Record { revision: at(main, sub), tombstone: (main + sub) % 7 == 3, key_value: value.into() }
}

/// Every record of the store.
pub fn all(store: &dyn RevStore) -> Vec<Record> {
    let mut records = Vec::new();
    store
        .scan(at(0, 0), at(i64::MAX, i64::MAX), &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .expect("the store can be scanned");
    records
}

fn history(first: i64, last: i64, size: usize) -> Vec<Record> {
    (first..=last)
        .flat_map(|main| (0..1 + i64::from(main % 5 == 0) * 2).map(move |sub| (main, sub)))
        .map(|(main, sub)| record(main, sub, size))
        .collect()
}

fn append_in_batches(store: &dyn RevStore, records: &[Record]) {
    for batch in records.chunks(37) {
        store.append(batch).expect("appends go through");
    }
}

fn an_empty_store_has_nothing(bench: &mut dyn Bench) {
    for _ in 0..2 {
        let store = bench.open();
        let empty = store.size().in_use;
        assert_eq!(all(&*store), []);
        assert_eq!(store.get(at(1, 0)).expect("get"), None);
        assert_eq!(store.last().expect("last"), None);
        assert_eq!(store.flushed(), LogIndex(0));
        store.append(&[]).expect("nothing can be appended");
        store.remove(&[at(1, 0)]).expect("nothing can be removed");
        store.truncate_above(Revision(0)).expect("nothing can be truncated");
        store.defragment().expect("nothing can be defragmented");
        assert_eq!(store.size().in_use, empty);
    }
}

fn what_was_appended_is_read_at_once(bench: &mut dyn Bench) {
    let store = bench.open();
    let mut records = history(2, 400, 90);
    records.push(record(401, 0, 0));
    records.push(record(402, 0, 700_000));
    records.push(Record { key_value: Bytes::new(), ..record(403, 0, 0) });
    // A jump of revisions, as `snapshot restore --bump-revision` makes.
    records.push(record(9_000_000_000, 0, 10));
    records.push(record(9_000_000_001, 5, 10));
    for batch in records.chunks(3) {
        store.append(batch).expect("append");
        for record in batch {
            assert_eq!(store.get(record.revision).expect("get").as_ref(), Some(record));
        }
        assert_eq!(store.last().expect("last"), batch.last().map(|record| record.revision));
    }
    assert_eq!(all(&*store), records);
    let mut revisions: Vec<_> = records.iter().map(|record| record.revision).collect();
    let bytes: usize = records.iter().map(|record| record.key_value.len()).sum();
    for absent in [at(0, 0), at(1, 0), at(2, 1), at(404, 0), at(-1, 0), at(5, -1), at(5, 3)] {
        assert_eq!(store.get(absent).expect("get"), None, "{absent}");
        revisions.push(absent);
    }
    assert_eq!(store.key_value_bytes(&revisions).expect("lengths"), bytes as u64);
    assert!(store.size().in_use > 700_000);
    assert!(store.size().total >= store.size().in_use);
}

fn scans_are_half_open_ordered_and_stoppable(bench: &mut dyn Bench) {
    let store = bench.open();
    let records = history(10, 300, 60);
    append_in_batches(&*store, &records);
    let bounds = [
        (at(0, 0), at(1, 0)),
        (at(10, 0), at(11, 0)),
        (at(15, 1), at(20, 2)),
        (at(0, 0), at(i64::MAX, 0)),
        (at(-5, -5), at(40, 0)),
        (at(299, 0), at(300, 1)),
        (at(300, 3), at(400, 0)),
        (at(50, 0), at(50, 0)),
        (at(60, 0), at(50, 0)),
    ];
    for (from, until) in bounds {
        let mut found = Vec::new();
        store
            .scan(from, until, &mut |record| {
                found.push(record);
                ControlFlow::Continue(())
            })
            .expect("scan");
        let expected: Vec<Record> = records
            .iter()
            .filter(|record| record.revision >= from && record.revision < until)
            .cloned()
            .collect();
        assert_eq!(found, expected, "{from} to {until}");
    }
    let mut seen = 0;
    store
        .scan(at(0, 0), at(i64::MAX, 0), &mut |_| {
            seen += 1;
            if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("scan");
    assert_eq!(seen, 5);
}

fn readers_follow_the_writer(bench: &mut dyn Bench) {
    const REVISIONS: i64 = 3_000;
    let store = bench.open();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 0;
                while newest < REVISIONS {
                    newest = store.last().expect("last").map_or(0, |last| last.main);
                    if newest == 0 {
                        std::thread::yield_now();
                        continue;
                    }
                    let found = store.get(at(newest, 0)).expect("get");
                    assert_eq!(found, Some(record(newest, 0, 200)));
                    let from = (newest - 50).max(1);
                    let mut expected = from;
                    let visit = &mut |found: Record| {
                        assert_eq!(found, record(expected, 0, 200));
                        expected += 1;
                        ControlFlow::Continue(())
                    };
                    store.scan(at(from, 0), at(newest + 1, 0), visit).expect("scan");
                    assert_eq!(expected, newest + 1);
                }
            });
        }
        for main in 1..=REVISIONS {
            store.append(&[record(main, 0, 200)]).expect("append");
            if main % 500 == 0 {
                store.flush(LogIndex(main as u64)).expect("flush");
            }
        }
    });
}

fn what_was_flushed_is_there_after_reopening(bench: &mut dyn Bench) {
    let records = history(1, 200, 120);
    let store = bench.open();
    append_in_batches(&*store, &records);
    assert_eq!(store.flushed(), LogIndex(0));
    store.flush(LogIndex(55)).expect("flush");
    assert_eq!(store.flushed(), LogIndex(55));
    drop(store);
    let store = bench.open();
    assert_eq!(store.flushed(), LogIndex(55));
    assert_eq!(all(&*store), records);
    for record in &records {
        assert_eq!(store.get(record.revision).expect("get").as_ref(), Some(record));
    }
    assert_eq!(store.last().expect("last"), Some(at(200, 2)));
}

fn a_reopened_store_holds_a_prefix_and_goes_on(bench: &mut dyn Bench) {
    let records = history(1, 300, 80);
    let mut flushed = 0;
    for round in 0..3 {
        let store = bench.open();
        let held = all(&*store);
        assert!(held.len() >= flushed, "{} records of {flushed} flushed", held.len());
        assert_eq!(held, records[..held.len()]);
        let next = (held.len() + 90).min(records.len());
        append_in_batches(&*store, &records[held.len()..next]);
        store.flush(LogIndex(round)).expect("flush");
        flushed = next;
        let more = (next + 20).min(records.len());
        append_in_batches(&*store, &records[next..more]);
    }
}

fn appends_out_of_order_are_refused(bench: &mut dyn Bench) {
    for late in [at(7, 0), at(7, 1), at(6, 9)] {
        bench.clear();
        let store = bench.open();
        store.append(&[record(7, 1, 9)]).expect("append");
        assert!(store.append(&[Record { revision: late, ..record(1, 0, 9) }]).is_err(), "{late}");
    }
}

fn truncation_forgets_and_lets_the_log_bring_it_again(bench: &mut dyn Bench) {
    let records = history(1, 120, 150);
    for (cut, flush_before, reopen) in [
        (60, true, true),
        (60, false, false),
        (119, true, false),
        (0, true, true),
        (120, true, true),
    ] {
        bench.clear();
        let mut store = bench.open();
        append_in_batches(&*store, &records);
        if flush_before {
            store.flush(LogIndex(9)).expect("flush");
        }
        store.truncate_above(Revision(cut)).expect("truncate");
        let kept: Vec<Record> =
            records.iter().filter(|record| record.revision.main <= cut).cloned().collect();
        assert_eq!(all(&*store), kept, "cut at {cut}");
        assert_eq!(store.last().expect("last"), kept.last().map(|record| record.revision));
        assert_eq!(store.get(at(cut + 1, 0)).expect("get"), None);
        if reopen {
            drop(store);
            store = bench.open();
            store.truncate_above(Revision(cut)).expect("truncate");
            assert_eq!(all(&*store), kept, "cut at {cut}, reopened");
        }
        append_in_batches(&*store, &records[kept.len()..]);
        assert_eq!(all(&*store), records);
        store.flush(LogIndex(10)).expect("flush");
        drop(store);
        assert_eq!(all(&*bench.open()), records);
    }
}

fn removal_keeps_the_others_and_frees_space(bench: &mut dyn Bench) {
    let records = history(1, 600, 100);
    let store = bench.open();
    append_in_batches(&*store, &records);
    store.flush(LogIndex(1)).expect("flush");
    let before = store.size().in_use;
    let (gone, kept): (Vec<Record>, Vec<Record>) = records
        .iter()
        .cloned()
        .partition(|record| record.revision.main <= 400 && record.revision.main % 10 != 0);
    let gone: Vec<RecordRevision> = gone.iter().map(|record| record.revision).collect();
    for chunk in gone.chunks(50) {
        store.remove(chunk).expect("remove");
        store.remove(chunk).expect("remove twice");
    }
    assert!(store.size().in_use < before);
    let check = |store: &dyn RevStore| {
        for record in &kept {
            assert_eq!(store.get(record.revision).expect("get").as_ref(), Some(record));
        }
        let held: BTreeMap<RecordRevision, Record> =
            all(store).into_iter().map(|record| (record.revision, record)).collect();
        assert!(kept.iter().all(|record| held.get(&record.revision) == Some(record)));
        assert!(held.values().all(|record| records.contains(record)));
    };
    check(&*store);
    store.flush(LogIndex(2)).expect("flush");
    drop(store);
    let store = bench.open();
    check(&*store);
    store.remove(&gone).expect("remove what a crash may have brought back");
    check(&*store);
    let more = history(601, 700, 100);
    append_in_batches(&*store, &more);
    store.flush(LogIndex(3)).expect("flush");
    drop(store);
    let store = bench.open();
    assert_eq!(store.last().expect("last"), more.last().map(|record| record.revision));
}

fn defragmenting_changes_no_record(bench: &mut dyn Bench) {
    let records = history(1, 400, 100);
    let store = bench.open();
    append_in_batches(&*store, &records);
    store.flush(LogIndex(4)).expect("flush");
    let gone: Vec<RecordRevision> =
        (1..=380).filter(|main| main % 3 == 0).map(|main| at(main, 0)).collect();
    store.remove(&gone).expect("remove");
    let before = store.size().in_use;
    let kept: Vec<Record> =
        records.iter().filter(|record| !gone.contains(&record.revision)).cloned().collect();
    store.defragment().expect("defragment");
    assert_eq!(store.size().in_use, before);
    assert_eq!(all(&*store), kept);
    store.append(&[record(900, 0, 10)]).expect("append");
    store.flush(LogIndex(5)).expect("flush");
    drop(store);
    let store = bench.open();
    assert_eq!(store.flushed(), LogIndex(5));
    assert_eq!(store.last().expect("last"), Some(at(900, 0)));
    for record in &kept {
        assert_eq!(store.get(record.revision).expect("get").as_ref(), Some(record));
    }
}
