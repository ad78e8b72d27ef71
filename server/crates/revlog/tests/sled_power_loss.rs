//! sled when the power fails: of what was written since a file was synced, any sectors may be there.
//!
//! sled opens its files by itself, so the simulated disk cannot hold them. What the adapter syncs is
//! watched instead: the bytes of a file at its last sync are certain, and so are the names in a directory
//! at its last sync. Of sled's own syncs those of its log count, which the adapter makes whole ones, and
//! those of its snapshots, which it syncs before it names them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use revlog::conformance::{all, at, record};
use revlog::{FileSync, OsFileSync, Record, RevStore, RevStoreError, SledOptions, SledStore};
use types::{LogIndex, RecordRevision};

const SECTOR: usize = 512;

/// What a power loss leaves in any case.
#[derive(Clone, Default)]
struct Certain {
    files: BTreeMap<PathBuf, Vec<u8>>,
    names: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Watching {
    certain: Mutex<Certain>,
    /// Pieces of sled's log that were written over since they were synced.
    used_again: AtomicUsize,
}

/// sled's log is made of pieces of this size.
const PIECE: usize = 512 * 1024;
const PIECE_HEADER: usize = 20;

fn used_again(before: &[u8], now: &[u8]) -> usize {
    let pieces = before.chunks_exact(PIECE).zip(now.chunks_exact(PIECE));
    pieces
        .map(|(before, now)| (&before[..PIECE_HEADER], &now[..PIECE_HEADER]))
        .filter(|(before, now)| before != now && before.iter().any(|byte| *byte != 0))
        .count()
}

impl FileSync for Watching {
    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        // One at a time, so that no older bytes follow newer ones, and none while the power fails: a sync
        // that has not returned has promised nothing. What is written while it goes on is not certain.
        let mut certain = self.certain.lock().unwrap();
        let is_directory = file.metadata()?.is_dir();
        let bytes = if is_directory { Vec::new() } else { std::fs::read(path)? };
        let names = if is_directory { names_in(path)? } else { Vec::new() };
        OsFileSync.sync(path, file)?;
        if is_directory {
            certain.names.retain(|name| name.parent() != Some(path));
            certain.names.extend(names);
        } else {
            let before = certain.files.get(path).map_or(&[][..], Vec::as_slice);
            self.used_again.fetch_add(used_again(before, &bytes), Ordering::Relaxed);
            certain.files.insert(path.to_path_buf(), bytes);
        }
        Ok(())
    }
}

fn names_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

/// xorshift64*, so that a seed is the same test everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    fn toss(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for path in names_in(directory).unwrap() {
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Any mixture of the two, sector by sector, with the length of one of them.
fn mixed(certain: &[u8], current: &[u8], chance: &mut Chance) -> Vec<u8> {
    let length = if chance.toss() { certain.len() } else { current.len() };
    let mut left = vec![0; length];
    for (number, sector) in left.chunks_mut(SECTOR).enumerate() {
        let from = if chance.toss() { certain } else { current };
        let from = from.get(number * SECTOR..).unwrap_or_default();
        let held = from.len().min(sector.len());
        sector[..held].copy_from_slice(&from[..held]);
    }
    left
}

/// Writes what a power loss at this moment leaves of `live` to `left`.
fn lose_power(live: &Path, certain: &Certain, left: &Path, chance: &mut Chance) {
    let mut current = Vec::new();
    files_below(live, &mut current);
    let current: BTreeSet<PathBuf> = current.into_iter().collect();
    let known: BTreeSet<PathBuf> = certain.files.keys().cloned().chain(current.clone()).collect();
    for path in known {
        let named = (certain.names.contains(&path), current.contains(&path));
        let remains = match named {
            (true, true) => true,
            (false, false) => false,
            _ => chance.toss(),
        };
        if !remains {
            continue;
        }
        let now = std::fs::read(&path).ok();
        let is_snapshot = path.file_name().unwrap().to_string_lossy().starts_with("snap.");
        let bytes = match (certain.files.get(&path), now) {
            (Some(certain), Some(now)) if !is_snapshot => mixed(certain, &now, chance),
            (None, Some(now)) if !is_snapshot => mixed(&[], &now, chance),
            (_, Some(now)) => now,
            (certain, None) => certain.cloned().unwrap_or_default(),
        };
        let path = left.join(path.strip_prefix(live).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn size(main: i64) -> usize {
    100 + (main as usize * 37) % 800
}

/// Whether this record outlives its time.
fn stays(main: i64) -> bool {
    main % 12 == 0
}

/// How many records each round appends, and how long most of them live.
const ROUND: i64 = 1_500;
const LIFETIME: i64 = 2_500;
const ROUNDS: i64 = 12;

/// One round of a store that is written and compacted all the time, so that sled uses space again.
fn round(store: &SledStore, number: i64) -> Result<(), RevStoreError> {
    for main in number * ROUND + 1..=(number + 1) * ROUND {
        store.append(&[record(main, 0, size(main))])?;
    }
    let old = (number - 1) * ROUND - LIFETIME..=(number + 1) * ROUND - LIFETIME;
    let gone: Vec<RecordRevision> =
        old.filter(|main| *main > 0 && !stays(*main)).map(|main| at(main, 0)).collect();
    store.remove(&gone)
}

/// What is lost of what was flushed at the end of a round; the next round may have removed records.
fn lost(directory: &Path, rounds: i64) -> Result<Vec<i64>, RevStoreError> {
    let store = SledStore::open(directory, SledOptions::default())?;
    if store.flushed() < LogIndex(rounds as u64) {
        let detail = format!(
            "{:?} of {rounds}, {:?}, {} records",
            store.flushed(),
            store.last(),
            all(&store).len()
        );
        return Err(RevStoreError::Engine { engine: "sled", detail });
    }
    let held: BTreeMap<RecordRevision, Record> =
        all(&store).into_iter().map(|record| (record.revision, record)).collect();
    let removed = (rounds + 1) * ROUND - LIFETIME;
    let expected = (1..=rounds * ROUND).filter(|main| stays(*main) || *main > removed);
    Ok(expected
        .filter(|main| held.get(&at(*main, 0)) != Some(&record(*main, 0, size(*main))))
        .collect())
}

#[test]
fn sled_keeps_what_was_flushed_when_the_power_fails_in_the_middle_of_a_round() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().canonicalize().unwrap().join("live");
    let watching = Arc::new(Watching::default());
    let options = SledOptions { file_sync: watching.clone(), ..SledOptions::default() };
    let store = SledStore::open(&live, options).unwrap();
    let (mut failures, mut losses) = (Vec::new(), 0);
    for number in 0..ROUNDS {
        round(&store, number).unwrap();
        if number > 0 {
            for seed in 1..=3 {
                let left = root.path().join("left");
                let mut chance = Chance(number as u64 * 100 + seed);
                // Held while files are copied: sled's threads go on, and what they use again must have
                // been synced by then, not a moment later. Not held longer, since stores share them.
                let certain = watching.certain.lock().unwrap();
                lose_power(&live, &certain, &left, &mut chance);
                drop(certain);
                losses += 1;
                match lost(&left, number) {
                    Ok(lost) if lost.is_empty() => {}
                    Ok(lost) => failures.push(format!("{number}, {seed}: {lost:?} lost")),
                    Err(error) => failures.push(format!("{number}, {seed}: {error}")),
                }
                std::fs::remove_dir_all(&left).unwrap();
            }
        }
        store.flush(LogIndex(number as u64 + 1)).unwrap();
    }
    let used_again = watching.used_again.load(Ordering::Relaxed);
    assert!(used_again > 0, "no space was used again");
    assert!(failures.is_empty(), "{} of {losses}: {failures:#?}", failures.len());
}
