//! The log on a real file system.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod model;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::OsDisk;
use model::{Chance, Model, entry, identity, log_id, observe, step};
use types::LogIndex;
use wal::{Options, ReadError, Record, RecoverError, Recovered, Wal};

fn open(directory: &Path) -> Result<(Wal, Recovered), RecoverError> {
    let options = Options { segment_bytes: 64 * 1024, spare_segments_max: 2, ..Options::default() };
    Wal::open(Arc::new(OsDisk), directory, identity(), options)
}

#[test]
fn a_log_on_a_real_disk_behaves_as_its_model() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("member/wal");
    let (mut model, mut chance) = (Model::default(), Chance(1));
    for life in 0..5 {
        let (mut wal, _) = open(&directory).unwrap();
        model.check_recovered(&wal, "real disk");
        for _ in 0..200 {
            step(&mut wal, &mut model, &mut chance).unwrap();
        }
        model.sync(&mut wal).unwrap();
        assert_eq!(&observe(&wal), model.state());
        if life % 2 == 0 {
            wal.close().unwrap();
        }
    }
}

/// Readers race with purges that recycle the very segments they read from.
#[test]
fn readers_on_other_threads_see_right_entries_or_purged() {
    let root = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(&root.path().join("wal")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let reader = wal.reader();
                let done = &done;
                scope.spawn(move || {
                    let (mut read, mut purged) = (0u64, 0u64);
                    while !done.load(Ordering::Acquire) || read == 0 {
                        let Some((first, last)) = reader.range() else { continue };
                        match reader.read(first, LogIndex(last.0 + 1), 100_000) {
                            Ok(entries) => {
                                for found in entries {
                                    assert_eq!(found, entry(1, found.id.index.0, 500));
                                    read += 1;
                                }
                            }
                            Err(ReadError::Purged { .. }) => purged += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    (read, purged)
                })
            })
            .collect();
        for index in 0..6_000 {
            wal.append(&[Record::Entry(entry(1, index, 500))]).unwrap();
            if index % 50 == 49 {
                wal.purge(log_id(1, index - 20)).unwrap();
            }
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            let (read, _) = reader.join().unwrap();
            assert!(read > 0);
        }
    });
    assert!(wal.stats().recycled > 10, "{:?}", wal.stats());
}

#[test]
fn a_first_segment_is_small_and_later_ones_grow_to_the_configured_length() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 16 * 1024 * 1024, ..Options::default() };
    let directory = root.path().join("wal");
    let (mut wal, _) = Wal::open(Arc::new(OsDisk), &directory, identity(), options).unwrap();
    let length = |sequence: u64| {
        let name = directory.join(format!("{sequence:016x}.wal"));
        std::fs::metadata(name).unwrap().len() >> 20
    };
    assert_eq!(length(1), 4);
    while wal.prepare().unwrap() {}
    assert_eq!(wal.stats().spares, 1);
    for index in 0..40 {
        wal.append(&[Record::Entry(entry(1, index, 1_000_000))]).unwrap();
    }
    wal.sync().unwrap();
    assert_eq!([length(1), length(2), length(3)], [4, 8, 16]);
    assert_eq!(wal.stats().segments, 4);
    drop(wal);
    let (wal, _) = Wal::open(Arc::new(OsDisk), &directory, identity(), options).unwrap();
    assert_eq!(wal.last(), Some(log_id(1, 39)));
}
