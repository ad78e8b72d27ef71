//! Crashes: whatever was synced is there afterwards, and nothing that was never appended.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod model;

use std::path::Path;

use disk::{Disk, Fault, SimDisk, is_simulated_crash};
use model::{Chance, Model, entry, log_id, observe, open, step};
use types::{LogIndex, MemberId, Term};
use wal::{Record, RecoverError, Vote, Wal, WalError};

const STEPS: usize = 60;

/// Whether a start failed only because the power went off again.
fn lost_power(error: &RecoverError) -> bool {
    match error {
        RecoverError::Io { source, .. } => is_simulated_crash(source),
        RecoverError::Unusable(WalError::Io { source, .. }) => is_simulated_crash(source),
        _ => false,
    }
}

/// Runs steps until they are done or one fails.
fn run(
    wal: &mut Wal,
    model: &mut Model,
    chance: &mut Chance,
    steps: usize,
) -> Result<(), WalError> {
    for _ in 0..steps {
        step(wal, model, chance)?;
        if chance.below(8) == 0 {
            assert_eq!(&observe(wal), model.state(), "readers see every append at once");
        }
    }
    Ok(())
}

/// Starts until a start succeeds; starts may be crashed too.
fn reopen(disk: &SimDisk, model: &mut Model, context: &str) -> Wal {
    loop {
        match open(disk) {
            Ok((wal, recovered)) => {
                assert_eq!(recovered.last, wal.last());
                assert_eq!(recovered.vote, wal.vote());
                model.check_recovered(&wal, context);
                return wal;
            }
            Err(error) => {
                assert!(lost_power(&error), "{context}: a start was refused: {error}");
                disk.restart();
            }
        }
    }
}

#[test]
fn a_log_behaves_as_its_model_without_faults() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (mut model, mut chance) = (Model::default(), Chance(seed));
        let mut wal = reopen(&disk, &mut model, "first");
        for life in 0..4 {
            run(&mut wal, &mut model, &mut chance, STEPS).unwrap();
            assert_eq!(&observe(&wal), model.state());
            model.sync(&mut wal).unwrap();
            if life % 2 == 0 {
                wal.close().unwrap();
            }
            disk.kill();
            wal = reopen(&disk, &mut model, &format!("seed {seed} life {life}"));
        }
    }
}

/// T02, T27: the power fails at every single changing operation of a script, and then once more while
/// the log is opened again.
#[test]
fn t02_t27_the_synced_prefix_survives_a_crash_at_every_operation() {
    let mut crashes = 0;
    for seed in 0..24 {
        for at in 1.. {
            let disk = SimDisk::new(seed * 1_000 + at);
            let (mut model, mut chance) = (Model::default(), Chance(seed));
            let context = format!("seed {seed}, crash at operation {at}");
            let mut wal = reopen(&disk, &mut model, &context);
            disk.inject(Fault::CrashAt(disk.mutations() + at));
            let result = run(&mut wal, &mut model, &mut chance, STEPS);
            if result.is_ok() && !disk.is_crashed() {
                break;
            }
            crashes += 1;
            disk.restart();
            disk.inject(Fault::CrashAt(disk.mutations() + 1 + at % 6));
            let mut wal = reopen(&disk, &mut model, &context);
            disk.clear_faults();
            disk.restart();
            drop(wal);
            wal = reopen(&disk, &mut model, &context);
            run(&mut wal, &mut model, &mut chance, 15).unwrap();
            assert_eq!(&observe(&wal), model.state(), "{context}");
            disk.restart();
            reopen(&disk, &mut model, &context);
        }
    }
    assert!(crashes > 1_000, "the sweep crashed {crashes} times");
}

#[test]
fn many_lives_with_random_power_losses_and_deaths_leave_no_trace_of_cut_records() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (mut model, mut chance) = (Model::default(), Chance(seed ^ 0xabcd));
        for life in 0..12 {
            let context = format!("seed {seed} life {life}");
            let mut wal = reopen(&disk, &mut model, &context);
            disk.inject(Fault::CrashAt(disk.mutations() + 1 + chance.below(60)));
            let ended = run(&mut wal, &mut model, &mut chance, STEPS);
            disk.clear_faults();
            if ended.is_ok() && chance.below(2) == 0 {
                disk.kill();
            } else {
                disk.restart();
            }
        }
        reopen(&disk, &mut model, &format!("seed {seed} end"));
    }
}

/// A failed write or sync: every later call fails, and a start after it, with or without a power loss,
/// and after one more power loss, finds every synced record.
#[test]
fn a_failed_operation_poisons_and_loses_nothing_synced() {
    let mut failures = 0;
    for seed in 0..8 {
        for at in 1.. {
            let disk = SimDisk::new(seed * 1_000 + at);
            let (mut model, mut chance) = (Model::default(), Chance(seed));
            let context = format!("seed {seed}, failure at operation {at}");
            let mut wal = reopen(&disk, &mut model, &context);
            disk.inject(Fault::FailAt(disk.mutations() + at));
            let Err(error) = run(&mut wal, &mut model, &mut chance, STEPS) else { break };
            failures += 1;
            assert!(matches!(error, WalError::Io { .. }), "{context}: {error}");
            let vote = Vote { term: Term(99), node: MemberId(1), committed: false };
            assert!(matches!(wal.save_vote(vote), Err(WalError::Poisoned { .. })), "{context}");
            assert!(matches!(wal.sync(), Err(WalError::Poisoned { .. })), "{context}");
            assert!(matches!(wal.prepare(), Err(WalError::Poisoned { .. })), "{context}");
            if at % 2 == 0 {
                disk.kill();
            } else {
                disk.restart();
            }
            drop(reopen(&disk, &mut model, &context));
            // What that start reported must be durable now, whatever the kernel believed.
            disk.restart();
            reopen(&disk, &mut model, &context);
        }
    }
    assert!(failures > 300, "{failures}");
}

/// T26 (etcd #10219): segments go only after the purge is durable.
#[test]
fn t26_a_crash_anywhere_in_a_purge_leaves_no_hole() {
    for at in 1..40 {
        for seed in 0..25 {
            let disk = SimDisk::new(seed);
            let mut model = Model::default();
            let mut wal = reopen(&disk, &mut model, "first");
            for index in 0..120 {
                model.append(&mut wal, &[Record::Entry(entry(1, index, 300))]).unwrap();
                model.sync(&mut wal).unwrap();
            }
            assert!(wal.stats().segments > 3);
            disk.inject(Fault::CrashAt(disk.mutations() + at));
            let outcome = model.purge(&mut wal, log_id(1, 110));
            disk.restart();
            disk.clear_faults();
            let wal = reopen(&disk, &mut model, &format!("operation {at} seed {seed}"));
            if outcome.is_ok() {
                assert_eq!(wal.purged(), Some(log_id(1, 110)));
            }
        }
    }
}

/// T28 (etcd PR#14429), of the log alone: starting, reading and losing power, over and over, changes nothing.
#[test]
fn t28_a_start_that_only_reads_survives_power_loss() {
    let disk = SimDisk::new(28);
    let (mut model, mut chance) = (Model::default(), Chance(28));
    let mut wal = reopen(&disk, &mut model, "first");
    run(&mut wal, &mut model, &mut chance, STEPS).unwrap();
    model.sync(&mut wal).unwrap();
    let expected = model.state().clone();
    for _ in 0..50 {
        disk.restart();
        let wal = reopen(&disk, &mut model, "reading");
        assert_eq!(observe(&wal), expected);
    }
}

#[test]
fn an_entry_cut_as_torn_stays_gone_when_the_same_entry_is_written_again() {
    // Entries 0 and 1 are appended and not synced; the crash loses 0 and keeps 1. Then 0 is appended
    // again with the very same bytes. Without incarnations the old 1 would chain to it.
    let mut nothing_found = 0;
    for seed in 0..400 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = open(&disk).unwrap();
        wal.append(&[Record::Entry(entry(1, 0, 900)), Record::Entry(entry(1, 1, 900))]).unwrap();
        drop(wal);
        disk.restart();
        let (mut wal, recovered) = open(&disk).unwrap();
        if recovered.last.is_some() {
            continue;
        }
        nothing_found += 1;
        wal.append(&[Record::Entry(entry(1, 0, 900))]).unwrap();
        wal.sync().unwrap();
        drop(wal);
        disk.restart();
        let (_, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.last, Some(log_id(1, 0)), "seed {seed}");
    }
    assert!(nothing_found > 50);
}

#[test]
fn recycled_segments_never_show_their_old_bytes() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let mut model = Model::default();
        let mut wal = reopen(&disk, &mut model, "first");
        let mut index = 0;
        for _round in 0..6 {
            for _ in 0..60 {
                model.append(&mut wal, &[Record::Entry(entry(1, index, 500))]).unwrap();
                model.sync(&mut wal).unwrap();
                index += 1;
            }
            model.purge(&mut wal, log_id(1, index - 3)).unwrap();
        }
        assert!(wal.stats().recycled > 3, "{:?}", wal.stats());
        model.append(&mut wal, &[Record::Entry(entry(1, index, 100))]).unwrap();
        drop(wal);
        // The tail of the last segment still holds whole records of its earlier life.
        disk.restart();
        reopen(&disk, &mut model, &format!("seed {seed}"));
    }
}

#[test]
fn creation_interrupted_anywhere_is_taken_up_again() {
    for at in 1..30 {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            disk.inject(Fault::CrashAt(at));
            let mut model = Model::default();
            let mut wal = reopen(&disk, &mut model, &format!("operation {at} seed {seed}"));
            disk.clear_faults();
            disk.restart();
            drop(wal);
            wal = reopen(&disk, &mut model, "after creation");
            model.append(&mut wal, &[Record::Entry(entry(1, 0, 1))]).unwrap();
            model.sync(&mut wal).unwrap();
            disk.restart();
            let wal = reopen(&disk, &mut model, "after the first entry");
            assert_eq!(wal.last(), Some(log_id(1, 0)));
            assert!(disk.exists(Path::new("data/wal/FORMAT")).unwrap());
        }
    }
}

#[test]
fn a_script_gives_one_hash_of_disk_operations() {
    let run_once = || {
        let disk = SimDisk::new(5);
        let (mut model, mut chance) = (Model::default(), Chance(5));
        let mut wal = reopen(&disk, &mut model, "first");
        run(&mut wal, &mut model, &mut chance, 200).unwrap();
        disk.operations_hash()
    };
    assert_eq!(run_once(), run_once());
}

#[test]
fn a_read_error_refuses_the_start_and_changes_nothing() {
    let disk = SimDisk::new(3);
    let (mut model, mut chance) = (Model::default(), Chance(3));
    let mut wal = reopen(&disk, &mut model, "first");
    run(&mut wal, &mut model, &mut chance, STEPS).unwrap();
    model.sync(&mut wal).unwrap();
    drop(wal);
    disk.kill();
    let mut failed = 0;
    for read in 1..6 {
        disk.inject(Fault::FailReadAt(disk.reads() + read));
        match open(&disk) {
            Ok(_) => {}
            Err(RecoverError::Io { .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
        disk.clear_faults();
        disk.kill();
    }
    assert!(failed >= 3);
    let wal = reopen(&disk, &mut model, "after read errors");
    assert_eq!(wal.read(LogIndex(0), LogIndex(0), 1).unwrap(), []);
}
