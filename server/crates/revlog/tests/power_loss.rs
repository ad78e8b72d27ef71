//! The revision log when the power, a write, a sync or the space fails at any single operation.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use disk::{Disk, Fault, OpenMode, SimDisk};
use revlog::conformance::{all, at, record};
use revlog::{Record, RevLog, RevLogOptions, RevStore, RevStoreError};
use types::{LogIndex, RecordRevision, Revision};

const OPTIONS: RevLogOptions =
    RevLogOptions { segment_bytes: 1_500, write_bytes: 400, recent_bytes: 600 };
const DIRECTORY: &str = "member/revlog";

fn open(disk: &SimDisk) -> Result<RevLog, RevStoreError> {
    RevLog::open(Arc::new(disk.clone()), DIRECTORY, OPTIONS)
}

/// What a run had been promised when it ended.
#[derive(Default)]
struct Promise {
    /// The newest revision that a flush covered.
    flushed: i64,
    applied: u64,
    /// The newest revision given to an append, successful or not.
    appended: i64,
    removed: Vec<RecordRevision>,
}

/// A life of a store: appends, flushes, removals with rewrites, a truncation with replay.
fn live(disk: &SimDisk, promise: &mut Promise) -> Result<(), RevStoreError> {
    let store = open(disk)?;
    let append = |promise: &mut Promise, last: i64| -> Result<(), RevStoreError> {
        for main in promise.appended + 1..=last {
            promise.appended = main;
            store.append(&[record(main, 0, 90), record(main, 1, 30)])?;
        }
        Ok(())
    };
    append(promise, 30)?;
    flush(&store, promise, 10)?;
    append(promise, 60)?;
    let gone: Vec<RecordRevision> =
        (1..=25).filter(|main| main % 6 != 0).flat_map(|main| [at(main, 0), at(main, 1)]).collect();
    promise.removed.extend(&gone);
    store.remove(&gone)?;
    flush(&store, promise, 20)?;
    // What a start does: cut, and let the log bring the rest again.
    promise.flushed = promise.flushed.min(40);
    store.truncate_above(Revision(40))?;
    promise.appended = 40;
    append(promise, 70)?;
    flush(&store, promise, 30)?;
    let gone: Vec<RecordRevision> = (26..=69).map(|main| at(main, 1)).collect();
    promise.removed.extend(&gone);
    store.remove(&gone)?;
    store.defragment()?;
    // It flushes, too; what it makes durable counts under the applied index it found.
    promise.flushed = promise.appended;
    append(promise, 75)?;
    flush(&store, promise, 40)
}

fn flush(store: &RevLog, promise: &mut Promise, applied: u64) -> Result<(), RevStoreError> {
    let newest = promise.appended;
    store.flush(LogIndex(applied))?;
    promise.flushed = newest;
    promise.applied = applied;
    Ok(())
}

/// The store opens, holds what was promised and nothing that was not appended, and can go on.
fn check(disk: &SimDisk, promise: &Promise, context: &str) {
    let store = open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let applied = store.flushed().0;
    assert!(applied >= promise.applied, "{context}: {applied} of {} applied", promise.applied);
    let held: BTreeMap<RecordRevision, Record> =
        all(&store).into_iter().map(|record| (record.revision, record)).collect();
    for main in 1..=promise.flushed {
        for (sub, size) in [(0, 90), (1, 30)] {
            let place = at(main, sub);
            let found = held.get(&place);
            if found.is_none() && promise.removed.contains(&place) {
                continue;
            }
            assert_eq!(found, Some(&record(main, sub, size)), "{context}: {place}");
        }
    }
    let newest = store.last().unwrap().map_or(0, |last| last.main);
    let mut expected = promise.flushed;
    for (place, found) in held.range(at(promise.flushed + 1, 0)..) {
        assert_eq!(found, &record(place.main, place.sub, if place.sub == 0 { 90 } else { 30 }));
        assert!(place.main <= expected + 1, "{context}: a hole before {place}");
        expected = place.main;
    }
    store.append(&[record(newest + 1, 0, 90)]).unwrap();
    store.flush(LogIndex(applied + 1)).unwrap();
    store.verify().unwrap_or_else(|error| panic!("{context}: {error}"));
}

/// How many changing operations a life without faults makes.
fn operations() -> u64 {
    let disk = SimDisk::new(1);
    live(&disk, &mut Promise::default()).unwrap();
    disk.mutations()
}

#[test]
fn t05_a_power_loss_at_any_operation_also_of_a_defragmentation_keeps_what_was_flushed() {
    for operation in 1..=operations() {
        for seed in 0..6 {
            let disk = SimDisk::new(operation * 1_000 + seed);
            disk.inject(Fault::CrashAt(operation));
            let mut promise = Promise::default();
            live(&disk, &mut promise).unwrap_err();
            disk.restart();
            check(&disk, &promise, &format!("crash at {operation}, seed {seed}"));
        }
    }
}

#[test]
fn a_second_power_loss_during_recovery_keeps_what_was_flushed() {
    for operation in (1..=operations()).step_by(3) {
        for second in 1..8 {
            let disk = SimDisk::new(operation * 100 + second);
            disk.inject(Fault::CrashAt(operation));
            let mut promise = Promise::default();
            live(&disk, &mut promise).unwrap_err();
            disk.restart();
            disk.inject(Fault::CrashAt(disk.mutations() + second));
            let opened = open(&disk).and_then(|store| {
                let newest = store.last()?.map_or(0, |last| last.main);
                store.append(&[record(newest + 1, 0, 90)])
            });
            drop(opened);
            disk.clear_faults();
            disk.restart();
            promise.appended += 1;
            check(&disk, &promise, &format!("crashes at {operation} and {second} later"));
        }
    }
}

#[test]
fn an_io_error_stops_all_writes_and_loses_nothing_flushed() {
    for operation in 1..=operations() {
        let disk = SimDisk::new(operation);
        disk.inject(Fault::FailAt(operation));
        let mut promise = Promise::default();
        // Removing files of dropped segments may fail without harm; everything else must stop.
        let _ = live(&disk, &mut promise);
        disk.crash();
        disk.restart();
        check(&disk, &promise, &format!("EIO at {operation}"));
    }
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more() {
    let disk = SimDisk::new(3);
    let store = open(&disk).unwrap();
    store.append(&[record(1, 0, 50)]).unwrap();
    // The flush writes the buffer, then syncs.
    disk.inject(Fault::FailAt(disk.mutations() + 2));
    assert!(matches!(store.flush(LogIndex(1)), Err(RevStoreError::Io { operation: "sync", .. })));
    let before = disk.mutations();
    assert!(store.flush(LogIndex(1)).is_err());
    assert!(store.append(&[record(2, 0, 50)]).is_err());
    assert!(store.remove(&[at(1, 0)]).is_err());
    assert!(store.defragment().is_err());
    assert_eq!(disk.mutations(), before);
    assert_eq!(store.flushed(), LogIndex(0));
    assert_eq!(store.get(at(1, 0)).unwrap(), Some(record(1, 0, 50)), "reads go on");
}

#[test]
fn no_space_at_any_operation_loses_nothing() {
    for operation in 1..=operations() {
        let disk = SimDisk::new(operation);
        disk.inject(Fault::NoSpaceAt(operation));
        let mut promise = Promise::default();
        let _ = live(&disk, &mut promise);
        disk.crash();
        disk.restart();
        check(&disk, &promise, &format!("ENOSPC at {operation}"));
    }
}

/// What was to be written down was taken for written, and counted as live again after the next start.
#[test]
fn removals_that_a_full_disk_did_not_take_are_written_down_by_the_next_flush() {
    let mut tried_again = 0;
    for step in 1..30 {
        let disk = SimDisk::new(step);
        let store = open(&disk).unwrap();
        (1..=20).for_each(|main| store.append(&[record(main, 0, 90)]).unwrap());
        store.flush(LogIndex(1)).unwrap();
        store.remove(&(1..=20).step_by(7).map(|main| at(main, 0)).collect::<Vec<_>>()).unwrap();
        let in_use = store.size().in_use;
        disk.inject(Fault::NoSpaceAt(disk.mutations() + step));
        let refused = store.flush(LogIndex(2)).is_err();
        disk.clear_faults();
        if store.flush(LogIndex(2)).is_err() {
            continue; // It was a sync that failed, which is for good.
        }
        tried_again += u32::from(refused);
        drop(store);
        assert_eq!(open(&disk).unwrap().size().in_use, in_use, "without space at step {step}");
    }
    assert!(tried_again > 0, "no step was tried again");
}

#[test]
fn a_full_disk_keeps_reads_and_appends_going_until_there_is_space() {
    let disk = SimDisk::new(5);
    let store = open(&disk).unwrap();
    store.append(&[record(1, 0, 100)]).unwrap();
    store.flush(LogIndex(1)).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    for main in 2..=60 {
        store.append(&[record(main, 0, 100)]).unwrap();
        assert_eq!(store.get(at(main, 0)).unwrap(), Some(record(main, 0, 100)));
    }
    assert!(store.flush(LogIndex(2)).is_err());
    assert_eq!(store.flushed(), LogIndex(1));
    disk.set_capacity(None);
    store.append(&[record(61, 0, 100)]).unwrap();
    store.flush(LogIndex(2)).unwrap();
    disk.crash();
    disk.restart();
    let store = open(&disk).unwrap();
    assert_eq!(store.flushed(), LogIndex(2));
    let expected: Vec<Record> = (1..=61).map(|main| record(main, 0, 100)).collect();
    assert_eq!(all(&store), expected);
}

/// A flushed store of a few segments and a tail.
fn flushed_store(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let store = open(&disk).unwrap();
    for main in 1..=40 {
        store.append(&[record(main, 0, 100)]).unwrap();
    }
    store.flush(LogIndex(1)).unwrap();
    disk
}

#[test]
fn a_flipped_bit_below_the_mark_is_refused_or_reported_and_never_read() {
    let names: Vec<(String, u64)> = {
        let entries = flushed_store(1).list(Path::new(DIRECTORY)).unwrap();
        entries.into_iter().map(|entry| (entry.name, entry.len)).collect()
    };
    assert!(names.len() > 3, "{names:?}");
    for (name, len) in names {
        let path = Path::new(DIRECTORY).join(&name);
        for bit in (0..len * 8).step_by(97) {
            let disk = flushed_store(1);
            disk.flip(&path, bit).unwrap();
            let store = match open(&disk) {
                Ok(store) => store,
                Err(RevStoreError::Damaged { path: named, detail, .. }) => {
                    assert!(named.contains(&name), "{named} for {name}");
                    assert!(detail.contains("rejoin"), "the error says what to do: {detail}");
                    continue;
                }
                Err(other) => panic!("{name} bit {bit}: {other}"),
            };
            let mut damaged = 0;
            for main in 1..=40 {
                match store.get(at(main, 0)) {
                    Ok(found) => assert_eq!(found, Some(record(main, 0, 100)), "{name} bit {bit}"),
                    Err(RevStoreError::Damaged { .. }) => damaged += 1,
                    Err(other) => panic!("{name} bit {bit}: {other}"),
                }
            }
            assert!(damaged <= 1, "{name} bit {bit}");
            assert_eq!(store.verify().is_err(), damaged == 1, "{name} bit {bit}");
        }
    }
}

#[test]
fn a_lost_or_cut_file_refuses_to_open() {
    let entries = flushed_store(1).list(Path::new(DIRECTORY)).unwrap();
    for entry in &entries {
        let path = Path::new(DIRECTORY).join(&entry.name);
        let disk = flushed_store(1);
        disk.remove_file(&path).unwrap();
        assert!(matches!(open(&disk), Err(RevStoreError::Damaged { .. })), "{}", entry.name);
    }
    for entry in &entries {
        let path = Path::new(DIRECTORY).join(&entry.name);
        let disk = flushed_store(1);
        disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(entry.len / 3).unwrap();
        assert!(matches!(open(&disk), Err(RevStoreError::Damaged { .. })), "{}", entry.name);
    }
}

#[test]
fn what_lies_beyond_the_mark_is_cut() {
    let disk = flushed_store(1);
    let entries = disk.list(Path::new(DIRECTORY)).unwrap();
    let tail = entries.iter().rfind(|entry| entry.name.ends_with(".seg")).unwrap();
    let file = disk.open(&Path::new(DIRECTORY).join(&tail.name), OpenMode::ReadWrite).unwrap();
    file.write_all_at(&[0xa5; 700], tail.len).unwrap();
    let store = open(&disk).unwrap();
    assert_eq!(all(&store).len(), 40);
    assert_eq!(file.len().unwrap(), tail.len);
}

#[test]
fn removed_records_stay_removed_across_restarts_and_their_space_comes_back() {
    let disk = SimDisk::new(9);
    let store = open(&disk).unwrap();
    for main in 1..=100 {
        store.append(&[record(main, 0, 100)]).unwrap();
    }
    store.flush(LogIndex(1)).unwrap();
    let full = store.size().total;
    // A third of each segment: not enough for a rewrite.
    let third: Vec<RecordRevision> = (1..=100).filter(|n| n % 3 == 0).map(|n| at(n, 0)).collect();
    store.remove(&third).unwrap();
    store.flush(LogIndex(2)).unwrap();
    drop(store);
    disk.restart();
    let store = open(&disk).unwrap();
    assert!(third.iter().all(|&place| store.get(place).unwrap().is_none()));
    // With another third it is, but only if the first is remembered.
    let other: Vec<RecordRevision> = (1..=90).filter(|n| n % 3 == 1).map(|n| at(n, 0)).collect();
    store.remove(&other).unwrap();
    assert!(store.size().total < full * 6 / 10, "{:?} of {full}", store.size());
    let rest: Vec<RecordRevision> = (1..=90).map(|n| at(n, 0)).collect();
    store.remove(&rest).unwrap();
    assert!(store.size().total < full / 3, "{:?} of {full}", store.size());
    assert!(disk.used_bytes() < full * 2 / 3, "{} of {full} on disk", disk.used_bytes());
    store.verify().unwrap();
}

#[test]
fn defragmenting_returns_what_is_dead_also_in_the_newest_segment() {
    let disk = SimDisk::new(13);
    let store = open(&disk).unwrap();
    let records: Vec<Record> = (1..=100).map(|main| record(main, 0, 100)).collect();
    store.append(&records).unwrap();
    store.flush(LogIndex(1)).unwrap();
    let gone: Vec<_> = (1..=100).filter(|n| n % 4 == 0).map(|n| at(n, 0)).collect();
    store.remove(&gone).unwrap();
    let before = store.size();
    assert!(before.total > before.in_use * 5 / 4, "{before:?}");
    store.defragment().unwrap();
    let after = store.size();
    assert_eq!(after.in_use, before.in_use);
    // Only headers and footers are left beside the records.
    assert!(after.total < after.in_use * 5 / 4, "{after:?}");
    assert_eq!(all(&store).len(), 75);
}

#[test]
fn the_number_of_segments_follows_the_live_bytes_and_not_the_history() {
    let disk = SimDisk::new(11);
    let store = open(&disk).unwrap();
    for main in 1..=3_000 {
        store.append(&[record(main, 0, 60)]).unwrap();
        if main % 50 == 0 {
            store.flush(LogIndex(main as u64)).unwrap();
            let old = (main - 100).max(0)..=main - 20;
            // One key in a hundred lives for ever.
            let gone: Vec<_> = old.filter(|n| n % 100 != 0).map(|n| at(n, 0)).collect();
            store.remove(&gone).unwrap();
        }
    }
    let entries = disk.list(Path::new(DIRECTORY)).unwrap();
    let segments = entries.iter().filter(|entry| entry.name.ends_with(".seg")).count();
    assert!(segments < 20, "{segments} segments for 30 old and 20 new records");
    for main in (100..=2_900).step_by(100) {
        assert_eq!(store.get(at(main, 0)).unwrap(), Some(record(main, 0, 60)));
    }
}
