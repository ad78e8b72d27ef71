//! A full disk: a clear error, nothing half done, a reserve, and a way back.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod model;

use std::path::Path;
use std::sync::Arc;

use disk::{Disk, Fault, SimDisk};
use model::{Chance, Model, entry, log_id, observe, open, step};
use types::{ClusterId, LogIndex, MemberId};
use wal::{Discontinuity, Identity, Options, Record, RecoverError, Space, Wal, WalError};

#[test]
fn the_reserve_is_announced_long_before_an_append_fails() {
    let disk = SimDisk::new(1);
    let mut model = Model::default();
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(60 * 1024));
    let mut index = 0;
    let mut after_notice = 0;
    let error = loop {
        let record = Record::Entry(entry(1, index, 200));
        match model.append(&mut wal, &[record]) {
            Ok(()) => {}
            Err(error) => break error,
        }
        model.sync(&mut wal).unwrap();
        index += 1;
        after_notice += u64::from(wal.stats().space == Space::Reserve);
    };
    assert!(matches!(error, WalError::NoSpace { .. }), "{error}");
    assert!(after_notice * 512 >= 4 * 1024, "{after_notice} groups passed in the reserve");
    assert_eq!(&observe(&wal), model.state(), "the failed append left no trace");
    for _ in 0..3 {
        let again = model.append(&mut wal, &[Record::Entry(entry(1, index, 200))]);
        assert!(matches!(again, Err(WalError::NoSpace { .. })));
    }

    // A start on the full disk works, too: what is there can be read.
    model.sync(&mut wal).unwrap();
    drop(wal);
    disk.restart();
    let (mut wal, _) = open(&disk).unwrap();
    model.check_recovered(&wal, "full disk");
    assert_eq!(wal.last(), Some(log_id(1, index - 1)));

    // The way back on a disk that stays full: give up entries. Their segments are the new space. The
    // purge itself needs room for one record, which the disk's owner must grant once.
    disk.set_capacity(Some(72 * 1024));
    model.purge(&mut wal, log_id(1, index - 2)).unwrap();
    disk.set_capacity(Some(60 * 1024));
    for _ in 0..20 {
        model.append(&mut wal, &[Record::Entry(entry(1, index, 200))]).unwrap();
        model.sync(&mut wal).unwrap();
        index += 1;
    }
    assert_eq!(&observe(&wal), model.state());
}

#[test]
fn a_purge_in_the_reserve_frees_the_log_without_any_new_space() {
    let disk = SimDisk::new(1);
    let mut model = Model::default();
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(60 * 1024));
    let mut index = 0;
    while wal.stats().space == Space::Ample {
        model.append(&mut wal, &[Record::Entry(entry(1, index, 200))]).unwrap();
        model.sync(&mut wal).unwrap();
        index += 1;
    }
    model.purge(&mut wal, log_id(1, index - 1)).unwrap();
    assert_eq!(wal.stats().space, Space::Ample);
    for _ in 0..30 {
        model.append(&mut wal, &[Record::Entry(entry(1, index, 200))]).unwrap();
        model.sync(&mut wal).unwrap();
        index += 1;
    }
}

/// "No space" at every single operation, on file systems that need space even to overwrite: the log
/// goes on, and a crash afterwards brings nothing back that was reported as failed and passed over.
#[test]
fn no_space_at_any_operation_leaves_the_log_as_it_was() {
    let (mut refusals, mut fatal) = (0, 0);
    for seed in 0..12 {
        for at in 1.. {
            let disk = SimDisk::new(seed * 1_000 + at);
            let (mut model, mut chance) = (Model::default(), Chance(seed));
            let context = format!("seed {seed} operation {at}");
            let (mut wal, _) = open(&disk).unwrap();
            disk.inject(Fault::NoSpaceAt(disk.mutations() + at));
            disk.inject(Fault::NoSpaceAt(disk.mutations() + at + 2));
            let first = disk.mutations();
            let mut poisoned = false;
            for _ in 0..60 {
                match step(&mut wal, &mut model, &mut chance) {
                    Ok(()) => {}
                    Err(WalError::NoSpace { .. }) => {
                        refusals += 1;
                        assert_eq!(&observe(&wal), model.state(), "{context}");
                    }
                    // A sync that says "no space" has lost bytes that were accepted before.
                    Err(WalError::Io { .. }) => {
                        poisoned = true;
                        break;
                    }
                    Err(error) => panic!("{context}: {error}"),
                }
            }
            fatal += u64::from(poisoned);
            if disk.mutations() < first + at {
                break;
            }
            disk.clear_faults();
            if !poisoned {
                assert_eq!(&observe(&wal), model.state(), "{context}");
            }
            drop(wal);
            disk.restart();
            let (mut wal, _) = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            model.check_recovered(&wal, &context);
            for _ in 0..10 {
                step(&mut wal, &mut model, &mut chance).unwrap();
            }
        }
    }
    assert!(refusals > 300, "{refusals} refusals, {fatal} fatal");
    assert!(fatal > 100, "{refusals} refusals, {fatal} fatal");
}

#[test]
fn creation_on_a_full_disk_is_refused_and_works_later() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(4 * 1024));
    let Err(RecoverError::Io { source, .. }) = open(&disk) else { panic!("opened") };
    assert!(disk::is_no_space(&source));
    disk.set_capacity(None);
    open(&disk).unwrap();
}

#[test]
fn an_entry_larger_than_a_segment_is_refused_and_a_larger_group_is_split() {
    let disk = SimDisk::new(1);
    let mut model = Model::default();
    let (mut wal, _) = open(&disk).unwrap();
    let largest = 12 * 1024 - 4_096 - 40;
    let error = wal.append(&[Record::Entry(entry(1, 0, largest + 1))]).unwrap_err();
    assert!(matches!(error, WalError::TooLarge { bytes: 8_200, bytes_max: 8_192 }), "{error}");
    model.append(&mut wal, &[Record::Entry(entry(1, 0, largest))]).unwrap();
    let group: Vec<Record> = (1..20).map(|index| Record::Entry(entry(1, index, 3_000))).collect();
    model.append(&mut wal, &group).unwrap();
    assert!(wal.stats().segments > 8);
    assert_eq!(&observe(&wal), model.state());
    model.sync(&mut wal).unwrap();
    drop(wal);
    disk.restart();
    let (wal, _) = open(&disk).unwrap();
    model.check_recovered(&wal, "split group");
}

#[test]
fn records_that_do_not_continue_the_log_are_refused_whole() {
    let disk = SimDisk::new(1);
    let mut model = Model::default();
    let (mut wal, _) = open(&disk).unwrap();
    model
        .append(&mut wal, &[Record::Entry(entry(1, 5, 1)), Record::Entry(entry(1, 6, 1))])
        .unwrap();
    let bad = [
        vec![Record::Entry(entry(1, 7, 1)), Record::Entry(entry(1, 9, 1))],
        vec![Record::Entry(entry(1, 6, 1))],
        vec![Record::Truncate { after: Some(log_id(1, 7)) }],
        vec![Record::Purge { upto: log_id(1, 5) }, Record::Truncate { after: None }],
    ];
    for records in bad {
        let error = wal.append(&records).unwrap_err();
        let WalError::Discontinuous(reason) = &error else { panic!("{error}") };
        assert!(matches!(reason, Discontinuity::Entry { .. } | Discontinuity::Truncate { .. }));
        assert_eq!(&observe(&wal), model.state());
    }
}

#[test]
fn reads_are_bounded_in_bytes_and_tell_what_was_purged() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    let group: Vec<Record> = (0..50).map(|index| Record::Entry(entry(1, index, 1_000))).collect();
    wal.append(&group).unwrap();
    let count =
        |from, until, bytes| wal.read(LogIndex(from), LogIndex(until), bytes).unwrap().len();
    assert_eq!(count(0, 50, u64::MAX), 50);
    assert_eq!(count(0, 50, 0), 1, "at least one");
    assert_eq!(count(0, 50, 2_999), 2);
    assert_eq!(count(10, 20, u64::MAX), 10);
    assert_eq!(count(49, 90, u64::MAX), 1);
    assert_eq!(count(50, 90, u64::MAX), 0);
    assert_eq!(count(20, 20, u64::MAX), 0);
    wal.purge(log_id(1, 9)).unwrap();
    assert!(wal.read(LogIndex(9), LogIndex(20), 1).is_err());
    assert_eq!(wal.read(LogIndex(10), LogIndex(20), u64::MAX).unwrap().len(), 10);
    assert_eq!(wal.reader().log_id(LogIndex(9)), Some(log_id(1, 9)));
    assert_eq!(wal.reader().log_id(LogIndex(8)), None);
}

/// A failed append that left whole records behind. `twice` makes the clean-up fail too.
fn log_with_failed_append(seed: u64, twice: bool) -> (SimDisk, wal::Wal) {
    let disk = SimDisk::new(seed);
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[Record::Entry(entry(1, 0, 100))]).unwrap();
    disk.inject(Fault::NoSpaceAt(disk.mutations() + 1));
    if twice {
        disk.inject(Fault::NoSpaceAt(disk.mutations() + 2));
    }
    let lens = [(1, 10), (2, 100), (3, 100), (4, 3_000)];
    let group = lens.map(|(index, len)| Record::Entry(entry(1, index, len)));
    assert!(matches!(wal.append(&group), Err(WalError::NoSpace { .. })));
    disk.clear_faults();
    (disk, wal)
}

#[test]
fn a_failed_append_is_not_found_by_the_next_start() {
    for seed in 0..50 {
        let (disk, wal) = log_with_failed_append(seed, false);
        drop(wal);
        disk.kill();
        let (wal, _) = open(&disk).unwrap();
        assert_eq!(wal.last(), Some(log_id(1, 0)), "seed {seed}");
    }
}

#[test]
fn the_rest_of_a_failed_append_never_follows_its_repeated_beginning() {
    for seed in 0..100 {
        let (disk, mut wal) = log_with_failed_append(seed, seed % 2 == 0);
        wal.append(&[Record::Entry(entry(1, 1, 10))]).unwrap();
        wal.sync().unwrap();
        drop(wal);
        disk.restart();
        let (wal, _) = open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(wal.last(), Some(log_id(1, 1)), "seed {seed}");
    }
}

#[test]
fn a_segment_made_ahead_of_time_leaves_free_what_the_owner_keeps() {
    let disk = SimDisk::new(1);
    let options = Options { space_kept: 40 * 1024, ..model::options() };
    let identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(2) };
    let (mut wal, _) =
        Wal::open(Arc::new(disk.clone()), Path::new("wal"), identity, options).unwrap();
    disk.set_capacity(Some(60 * 1024));
    let mut index = 0;
    let mut append = |wal: &mut Wal| {
        wal.append(&[Record::Entry(entry(1, index, 200))]).unwrap();
        wal.sync().unwrap();
        index += 1;
        index
    };
    while wal.space() == Space::Ample {
        append(&mut wal);
    }
    let free = disk.available_space(Path::new("wal")).unwrap();
    assert!(free >= 28 * 1024, "only {free} bytes are left at the notice");
    // The log itself goes on into what was kept.
    let notice = append(&mut wal);
    while disk.available_space(Path::new("wal")).unwrap() == free {
        assert!(append(&mut wal) < notice + 60, "no segment is begun");
    }
}
