//! Damage: bit rot, lost and foreign files. The log is read back unchanged or refused with a reason.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod model;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, OpenMode, SimDisk, read_file, write_file_atomically};
use model::{
    Chance, DIRECTORY, Model, State, entry, identity, log_id, observe, open, options, step,
};
use proptest::prelude::*;
use types::{ClusterId, LogIndex, MemberId};
use wal::{Discontinuity, Identity, Proof, ReadError, Record, RecoverError, Wal, WalError};

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The files of the log and their lengths, sorted by name.
fn files(disk: &SimDisk) -> Vec<(PathBuf, u64)> {
    let entries = disk.list(Path::new(DIRECTORY)).unwrap();
    entries.into_iter().map(|entry| (path(&entry.name), entry.len)).collect()
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    files(disk).into_iter().map(|(path, _)| path).filter(is_segment).collect()
}

/// A log of several segments with every kind of record, cleanly closed.
fn closed_log(seed: u64) -> (SimDisk, State) {
    let disk = SimDisk::new(seed);
    let (mut model, mut chance) = (Model::default(), Chance(seed));
    let (mut wal, _) = open(&disk).unwrap();
    let mut steps = 0;
    while wal.stats().segments < 3 || steps < 40 {
        step(&mut wal, &mut model, &mut chance).unwrap();
        steps += 1;
    }
    model.sync(&mut wal).unwrap();
    wal.close().unwrap();
    disk.kill();
    (disk, model.state().clone())
}

/// A log whose last group was synced, and after which the process died at once.
fn killed_log() -> (SimDisk, Vec<State>) {
    let disk = SimDisk::new(1);
    let mut model = Model::default();
    let (mut wal, _) = open(&disk).unwrap();
    for index in 0..20 {
        model.append(&mut wal, &[Record::Entry(entry(1, index, 100))]).unwrap();
        model.sync(&mut wal).unwrap();
    }
    let mut states = vec![model.state().clone()];
    for index in 20..23 {
        model.append(&mut wal, &[Record::Entry(entry(1, index, 100))]).unwrap();
        states.push(model.state().clone());
    }
    model.sync(&mut wal).unwrap();
    drop(wal);
    disk.kill();
    (disk, states)
}

fn overwrite(disk: &SimDisk, path: &Path, bytes: &[u8], offset: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

fn refusal(disk: &SimDisk) -> RecoverError {
    match open(disk) {
        Ok(_) => panic!("the log was opened"),
        Err(error) => error,
    }
}

#[test]
fn a_flip_of_any_byte_of_a_closed_log_is_harmless_or_refused() {
    let mut chance = Chance(11);
    let (mut harmless, mut refused) = (0, 0);
    let (disk, expected) = closed_log(0);
    for (path, len) in files(&disk) {
        for byte in 0..len {
            let fork = disk.fork();
            let bit = byte * 8 + chance.below(8);
            fork.flip(&path, bit).unwrap();
            match open(&fork) {
                Ok((wal, _)) => {
                    harmless += 1;
                    assert_eq!(observe(&wal), expected, "{path:?} bit {bit}");
                }
                Err(RecoverError::Io { file, source }) => {
                    panic!("{path:?} bit {bit}: no reason given: {file:?} {source}")
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("data/wal"), "{error}");
                }
            }
        }
    }
    assert!(refused > 5_000, "{refused} refused, {harmless} harmless");
    assert!(harmless > 1_000, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_flip_in_a_log_that_was_not_closed_costs_at_most_the_unmarked_group() {
    let (disk, states) = killed_log();
    let segment = segments(&disk).pop().unwrap();
    let mut cut = 0;
    for byte in 0..12 * 1024 {
        let fork = disk.fork();
        fork.flip(&segment, byte * 8 + byte % 8).unwrap();
        if let Ok((wal, _)) = open(&fork) {
            let found = observe(&wal);
            assert!(states.contains(&found), "byte {byte}: {:?}", found.last);
            cut += u64::from(Some(&found) != states.last());
        }
    }
    assert!(cut > 300, "the last group is a torn write for all we know: {cut}");
}

#[test]
fn several_damaged_places_never_yield_a_changed_record() {
    for seed in 0..300 {
        let (disk, expected) = closed_log(seed % 5);
        let mut chance = Chance(seed);
        let all = files(&disk);
        for _ in 0..chance.below(6) + 1 {
            let (path, len) = &all[chance.below(all.len() as u64) as usize];
            let len = (*len).max(1);
            disk.flip(path, chance.below(len * 8)).unwrap();
        }
        if let Ok((wal, _)) = open(&disk) {
            let found = observe(&wal);
            for (index, entry) in &found.entries {
                assert_eq!(expected.entries.get(index), Some(entry), "seed {seed}");
            }
        }
    }
}

#[test]
fn a_block_written_to_the_wrong_place_is_refused() {
    let (disk, expected) = closed_log(3);
    let all = segments(&disk);
    let mut chance = Chance(3);
    for round in 0..400 {
        let fork = disk.fork();
        let from = &all[chance.below(all.len() as u64) as usize];
        let to = &all[chance.below(all.len() as u64) as usize];
        let bytes = read_file(&fork, from, 1 << 20).unwrap();
        let (source, target) = (chance.below(24) * 512, chance.below(24) * 512);
        if (source + 512) as usize > bytes.len() {
            continue;
        }
        let block = &bytes[source as usize..source as usize + 512];
        overwrite(&fork, to, block, target);
        if let Ok((wal, _)) = open(&fork) {
            assert_eq!(
                observe(&wal),
                expected,
                "round {round}: {from:?} {source} to {to:?} {target}"
            );
        }
    }
}

#[test]
fn damage_before_a_mark_is_refused_with_place_proof_and_way_back() {
    let (disk, _) = killed_log();
    let segment = segments(&disk).pop().unwrap();
    disk.flip(&segment, 8 * 4_140).unwrap();
    let error = refusal(&disk);
    let text = error.to_string();
    let RecoverError::DamagedRecord { file, offset, proof: Proof::Mark { offset: mark } } = error
    else {
        panic!("{text}")
    };
    assert_eq!(file, segment);
    assert!(offset <= 4_140 && mark > 4_140, "{text}");
    for part in
        [segment.to_str().unwrap(), "remove this member", "clear its data directory", "backup"]
    {
        assert!(text.contains(part), "{text}");
    }
    let again = refusal(&disk);
    assert!(matches!(again, RecoverError::DamagedRecord { .. }), "a refusal is not forgotten");
}

#[test]
fn damage_in_an_earlier_segment_is_proven_by_the_next_one() {
    let (disk, _) = closed_log(1);
    let first = segments(&disk).remove(0);
    disk.flip(&first, 8 * 4_096).unwrap();
    let error = refusal(&disk);
    let RecoverError::DamagedRecord { file, proof: Proof::NextSegment { .. }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(file, first);
}

#[test]
fn a_directory_of_another_cluster_or_member_is_refused_naming_both() {
    let (disk, _) = closed_log(1);
    let strangers = [
        Identity { cluster_id: ClusterId(0xbad), ..identity() },
        Identity { member_id: MemberId(0xb2), ..identity() },
    ];
    for stranger in strangers {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let Err(error) = Wal::open(disk, Path::new(DIRECTORY), stranger, options()) else {
            panic!("opened")
        };
        assert!(matches!(error, RecoverError::WrongIdentity { .. }), "{error}");
        let text = error.to_string();
        for part in [
            "member a1".to_string(),
            "cluster c0ffee".to_string(),
            format!("member {}", stranger.member_id),
            format!("cluster {}", stranger.cluster_id),
            "directory of another cluster or member".to_string(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
    }
}

#[test]
fn a_segment_of_another_member_among_ours_is_refused() {
    let (disk, _) = closed_log(1);
    let stranger = Identity { member_id: MemberId(0xb2), ..identity() };
    let other: Arc<dyn Disk> = Arc::new(disk.clone());
    drop(Wal::open(other, Path::new("data/other"), stranger, options()).unwrap());
    let last = segments(&disk).pop().unwrap();
    disk.rename(Path::new("data/other/0000000000000001.wal"), &last).unwrap();
    assert!(matches!(refusal(&disk), RecoverError::WrongIdentity { file, .. } if file == last));
}

#[test]
fn missing_files_are_refused_by_name() {
    let (disk, _) = closed_log(2);
    let all = segments(&disk);
    assert!(all.len() >= 3);

    let fork = disk.fork();
    fork.remove_file(&all[1]).unwrap();
    assert!(matches!(refusal(&fork), RecoverError::Missing { file } if file == all[1]));

    let fork = disk.fork();
    for segment in &all {
        fork.remove_file(segment).unwrap();
    }
    assert!(matches!(refusal(&fork), RecoverError::Missing { .. }), "votes are not forgotten");

    let fork = disk.fork();
    fork.remove_file(&path("FORMAT")).unwrap();
    assert!(matches!(refusal(&fork), RecoverError::Missing { file } if file == path("FORMAT")));
}

#[test]
fn a_missing_oldest_segment_is_a_hole() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    for index in 0..100 {
        wal.append(&[Record::Entry(entry(1, index, 400))]).unwrap();
        wal.sync().unwrap();
    }
    wal.close().unwrap();
    disk.remove_file(&segments(&disk)[0]).unwrap();
    let error = refusal(&disk);
    assert!(matches!(error, RecoverError::Hole { purged: None, .. }), "{error}");
}

#[test]
fn a_truncated_segment_is_refused() {
    let (disk, _) = closed_log(2);
    for segment in segments(&disk) {
        for len in [0, 100, 511, 512, 4_096, 8_191] {
            let fork = disk.fork();
            fork.open(&segment, OpenMode::ReadWrite).unwrap().set_len(len).unwrap();
            let error = refusal(&fork);
            assert!(matches!(error, RecoverError::Short { .. }), "{len}: {error}");
        }
    }
}

#[test]
fn a_format_of_another_version_is_refused_and_foreign_files_are_left_alone() {
    let (disk, expected) = closed_log(2);
    write_file_atomically(&disk, Path::new(DIRECTORY), "notes.txt", b"mine").unwrap();
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(observe(&wal), expected);
    assert_eq!(read_file(&disk, &path("notes.txt"), 9).unwrap(), b"mine");
    drop(wal);
    for bytes in [&b"keelson wal 2\n"[..], b"", b"\xff\xfe", &[b'x'; 4_096]] {
        write_file_atomically(&disk, Path::new(DIRECTORY), "FORMAT", bytes).unwrap();
        assert!(matches!(refusal(&disk), RecoverError::UnsupportedFormat { .. }));
    }
}

#[test]
fn damage_under_a_running_log_is_an_error_of_the_read_and_not_wrong_bytes() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    for index in 0..10 {
        wal.append(&[Record::Entry(entry(1, index, 100))]).unwrap();
    }
    wal.sync().unwrap();
    let segment = path("0000000000000001.wal");
    let bytes = read_file(&disk, &segment, 1 << 20).unwrap();
    let needle = &entry(1, 5, 100).payload[..];
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    disk.flip(&segment, at as u64 * 8).unwrap();
    let error = wal.read(LogIndex(0), LogIndex(10), u64::MAX).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { index: LogIndex(5), .. }), "{error}");
    assert_eq!(wal.read(LogIndex(6), LogIndex(10), u64::MAX).unwrap().len(), 4);
}

/// T25 (CVE-2020-15106, CVE-2020-15112): sizes and indexes at their limits.
#[test]
fn t25_the_largest_indexes_are_refused_or_survive_but_never_panic() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk).unwrap();
    let refused = |wal: &mut Wal, index: u64| {
        let error = wal.append(&[Record::Entry(entry(1, index, 1))]).unwrap_err();
        matches!(error, WalError::Discontinuous(Discontinuity::OutOfRange(_)))
    };
    assert!(refused(&mut wal, u64::MAX));
    assert!(wal.purge(log_id(1, u64::MAX)).is_err());
    let last = u64::MAX - 1;
    wal.append(&[Record::Entry(entry(1, last, 1))]).unwrap();
    assert!(refused(&mut wal, u64::MAX));
    assert!(wal.append(&[Record::Entry(entry(1, 0, 1))]).is_err());
    wal.sync().unwrap();
    drop(wal);
    disk.kill();
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.last, Some(log_id(1, last)));
    assert_eq!(wal.read(LogIndex(last), LogIndex(u64::MAX), 1).unwrap().len(), 1);
    wal.purge(log_id(1, last)).unwrap();
    let error = wal.read(LogIndex(0), LogIndex(u64::MAX), 1).unwrap_err();
    assert!(matches!(error, ReadError::Purged { .. }), "{error}");
    assert!(refused(&mut wal, u64::MAX));
    wal.close().unwrap();
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(wal.purged(), Some(log_id(1, last)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// T25: whatever stands in the files, opening gives an answer.
    #[test]
    fn t25_any_bytes_in_the_files_are_refused_or_read_as_a_prefix(
        seed in 0..3u64,
        writes in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0..12_288u64, proptest::collection::vec(any::<u8>(), 1..600)),
            1..4,
        ),
    ) {
        let (disk, expected) = closed_log(seed);
        let all = files(&disk);
        for (file, offset, bytes) in writes {
            let (file, _) = &all[file.index(all.len())];
            overwrite(&disk, file, &bytes, offset);
        }
        if let Ok((wal, _)) = open(&disk) {
            for (index, entry) in observe(&wal).entries {
                prop_assert_eq!(expected.entries.get(&index), Some(&entry));
            }
        }
    }
}
