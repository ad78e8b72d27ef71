//! The simulated disk must itself be trusted: it keeps what was synced, and it does lose the rest.

use super::*;
use crate::{is_no_space, read_file, write_file_atomically};

fn synced_file(disk: &SimDisk, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.open(Path::new(name), OpenMode::Create).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    file
}

#[test]
fn what_was_synced_survives_every_seed() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let bytes: Vec<u8> = (0..3_000u32).map(|i| (i % 255) as u8 + 1).collect();
        let file = synced_file(&disk, "a", &bytes);
        file.write_all_at(&[0xee; 700], 3_000).unwrap();
        disk.crash();
        disk.restart();
        let back = read_file(&disk, Path::new("a"), 10_000).unwrap();
        assert_eq!(&back[..3_000], &bytes[..], "seed {seed}");
        assert!(back.len() <= 3_700);
    }
}

#[test]
fn unsynced_sectors_are_lost_kept_and_torn() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let file = synced_file(&disk, "a", &[1; 512]);
        file.write_all_at(&[2; 512], 0).unwrap();
        disk.restart();
        let back = read_file(&disk, Path::new("a"), 512).unwrap();
        match (back.iter().all(|b| *b == 1), back.iter().all(|b| *b == 2)) {
            (true, _) => old += 1,
            (_, true) => new += 1,
            _ => torn += 1,
        }
    }
    assert!(old > 20, "{old}");
    assert!(new > 20, "{new}");
    assert!(torn > 5, "{torn}");
}

#[test]
fn a_name_without_a_directory_sync_may_vanish_or_stay() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let file = disk.open(Path::new("a"), OpenMode::Create).unwrap();
        file.sync_all().unwrap();
        disk.restart();
        seen.insert(disk.exists(Path::new("a")).unwrap());
    }
    assert_eq!(seen.len(), 2, "both outcomes occur");
}

#[test]
fn a_rename_never_loses_both_names() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        synced_file(&disk, "old", b"x");
        disk.rename(Path::new("old"), Path::new("new")).unwrap();
        disk.rename(Path::new("new"), Path::new("newer")).unwrap();
        disk.restart();
        let names: Vec<String> =
            disk.list(Path::new("")).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 1, "seed {seed}: {names:?}");
        outcomes.insert(names);
    }
    assert_eq!(outcomes.len(), 3);
}

#[test]
fn an_atomic_write_leaves_the_old_or_the_new_file_at_every_crash_point() {
    let directory = Path::new("d");
    let mut finished = false;
    for step in 1.. {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            disk.create_dir_all(directory).unwrap();
            write_file_atomically(&disk, directory, "f", &[1; 1_500]).unwrap();
            disk.inject(Fault::CrashAt(disk.mutations() + step));
            let result = write_file_atomically(&disk, directory, "f", &[2; 2_500]);
            finished = result.is_ok();
            disk.restart();
            let back = read_file(&disk, &directory.join("f"), 9_999).unwrap();
            let is_old = back == [1; 1_500];
            let is_new = back == [2; 2_500];
            assert!(is_old || is_new, "step {step} seed {seed}: torn file");
            assert!(is_new || !finished, "step {step} seed {seed}: acknowledged but lost");
        }
        if finished {
            break;
        }
    }
    assert!(finished);
}

#[test]
fn a_failed_sync_poisons_until_restart() {
    let disk = SimDisk::new(1);
    let file = synced_file(&disk, "a", b"x");
    file.write_all_at(b"y", 0).unwrap();
    disk.inject(Fault::FailAt(disk.mutations() + 1));
    assert!(file.sync_data().is_err());
    assert!(file.sync_data().is_err(), "the second try must not report success");
    assert!(file.write_all_at(b"z", 0).is_err());
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    disk.kill();
    let file = disk.open(Path::new("a"), OpenMode::ReadWrite).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn sectors_dropped_by_a_failed_sync_need_writing_again() {
    let lost_after = |write_again: bool| {
        (0..60).any(|seed| {
            let disk = SimDisk::new(seed);
            let file = synced_file(&disk, "a", b"old");
            file.write_all_at(b"new", 0).unwrap();
            disk.inject(Fault::FailAt(disk.mutations() + 1));
            assert!(file.sync_data().is_err());
            disk.kill();
            assert_eq!(read_file(&disk, Path::new("a"), 9).unwrap(), b"new");
            let file = disk.open(Path::new("a"), OpenMode::ReadWrite).unwrap();
            if write_again {
                file.write_all_at(b"new", 0).unwrap();
            }
            file.sync_data().unwrap();
            disk.restart();
            read_file(&disk, Path::new("a"), 9).unwrap() != b"new"
        })
    };
    assert!(lost_after(false), "the trap exists in the simulation");
    assert!(!lost_after(true));
}

#[test]
fn a_full_disk_cuts_writes_short_but_overwrites_go_on() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(1_024));
    let file = disk.open(Path::new("a"), OpenMode::Create).unwrap();
    let error = file.write_all_at(&[1; 2_000], 0).unwrap_err();
    assert!(is_no_space(&error));
    assert_eq!(file.len().unwrap(), 1_024);
    file.write_all_at(&[2; 1_024], 0).unwrap();
    assert_eq!(disk.available_space(Path::new("a")).unwrap(), 0);
    drop(file);
    disk.remove_file(Path::new("a")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn a_removed_file_stays_readable_through_its_handle() {
    let disk = SimDisk::new(1);
    let file = synced_file(&disk, "a", b"bytes");
    disk.remove_file(Path::new("a")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    let mut back = [0; 5];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"bytes");
}

#[test]
fn handles_and_locks_die_with_the_process() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("d")).unwrap();
    let file = disk.open(Path::new("d/a"), OpenMode::Create).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    let lock = disk.lock(Path::new("d")).unwrap();
    assert_eq!(disk.lock(Path::new("d")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    disk.kill();
    assert!(is_simulated_crash(&file.len().unwrap_err()));
    let _held = disk.lock(Path::new("d")).unwrap();
    drop(lock);
    assert_eq!(disk.lock(Path::new("d")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(read_file(&disk, Path::new("d/a"), 9).unwrap(), b"kept");
}

#[test]
fn a_flipped_bit_is_read_back() {
    let disk = SimDisk::new(1);
    synced_file(&disk, "a", &[0; 600]);
    disk.flip(Path::new("a"), 8 * 599 + 3).unwrap();
    assert_eq!(read_file(&disk, Path::new("a"), 600).unwrap()[599], 8);
    assert!(disk.flip(Path::new("a"), 8 * 600).is_err());
}

#[test]
fn one_seed_gives_one_hash_and_one_outcome() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        let file = synced_file(&disk, "a", &[1; 4_096]);
        for i in 0..50u64 {
            file.write_all_at(&[i as u8; 300], i * 100).unwrap();
        }
        disk.restart();
        let bytes = read_file(&disk, Path::new("a"), 1 << 20).unwrap();
        (disk.operations_hash(), bytes)
    };
    assert!(run(3) == run(3));
    assert!(run(3).1 != run(4).1);
}

#[test]
fn a_shortened_file_grows_back_with_zeros() {
    let disk = SimDisk::new(1);
    let file = synced_file(&disk, "a", &[7; 1_300]);
    file.set_len(600).unwrap();
    file.set_len(1_300).unwrap();
    let back = read_file(&disk, Path::new("a"), 2_000).unwrap();
    assert!(back[..600].iter().all(|b| *b == 7));
    assert!(back[600..].iter().all(|b| *b == 0));
}

#[test]
fn a_fork_lives_its_own_life() {
    let disk = SimDisk::new(1);
    let file = synced_file(&disk, "a", b"one");
    let fork = disk.fork();
    file.write_all_at(b"two", 0).unwrap();
    fork.remove_file(Path::new("a")).unwrap();
    assert_eq!(read_file(&disk, Path::new("a"), 9).unwrap(), b"two");
    assert!(!fork.exists(Path::new("a")).unwrap());
}

#[test]
fn a_removed_name_that_comes_back_after_a_process_death_and_a_power_loss_has_its_file() {
    let mut came_back = 0;
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        drop(synced_file(&disk, "a", b"kept"));
        disk.remove_file(Path::new("a")).unwrap();
        disk.kill();
        disk.crash();
        disk.restart();
        if disk.exists(Path::new("a")).unwrap() {
            assert_eq!(read_file(&disk, Path::new("a"), 9).unwrap(), b"kept", "seed {seed}");
            came_back += 1;
        }
    }
    assert!(came_back > 10, "{came_back}");
}

#[test]
fn what_a_dead_process_tidies_up_does_not_hit_the_next_one() {
    for end in [SimDisk::kill, SimDisk::restart] {
        let disk = SimDisk::new(1);
        let before = disk.of_this_process();
        before.open(Path::new("a"), OpenMode::Create).unwrap();
        end(&disk);
        let now = disk.of_this_process();
        now.open(Path::new("a"), OpenMode::CreateOrOpen).unwrap();
        assert!(is_simulated_crash(&before.remove_file(Path::new("a")).unwrap_err()));
        assert!(before.open(Path::new("b"), OpenMode::Create).is_err());
        assert!(now.exists(Path::new("a")).unwrap() && !now.exists(Path::new("b")).unwrap());
    }
}
