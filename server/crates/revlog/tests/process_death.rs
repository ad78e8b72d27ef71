//! Both engines in a real process that is killed with SIGKILL: what it was told to be flushed is
//! there afterwards. And sled's adapter syncs every file before it says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use disk::OsDisk;
use revlog::conformance::{all, at, record};
use revlog::{
    FileSync, OsFileSync, Record, RevLog, RevLogOptions, RevStore, RevStoreError, SledOptions,
    SledStore,
};
use types::LogIndex;

const ENGINE: &str = "REVLOG_TEST_ENGINE";
const PATH: &str = "REVLOG_TEST_PATH";
const VICTIM: &str = "the_victim_appends_until_it_is_killed";
const SIZE: usize = 150;

fn open(engine: &str, path: &Path) -> Arc<dyn RevStore> {
    match engine {
        "revlog" => {
            let options =
                RevLogOptions { segment_bytes: 100_000, write_bytes: 5_000, recent_bytes: 20_000 };
            Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, options).unwrap())
        }
        _ => Arc::new(SledStore::open(path, SledOptions::default()).unwrap()),
    }
}

/// Not a test of its own: the process that [`kill_rounds`] starts and kills. Without its environment
/// it does nothing.
#[test]
fn the_victim_appends_until_it_is_killed() {
    let (Ok(engine), Ok(path)) = (std::env::var(ENGINE), std::env::var(PATH)) else { return };
    let store = open(&engine, Path::new(&path));
    let mut newest = store.last().unwrap().map_or(0, |last| last.main);
    loop {
        let batch: Vec<Record> = (newest + 1..newest + 40).map(|n| record(n, 0, SIZE)).collect();
        newest += 39;
        store.append(&batch).unwrap();
        if newest % 3 == 0 {
            let gone: Vec<_> =
                (newest - 400..newest - 200).filter(|n| n % 7 != 0).map(|n| at(n, 0)).collect();
            store.remove(&gone).unwrap();
        }
        store.flush(LogIndex(newest as u64)).unwrap();
        // The line goes out only after the flush: it is the promise.
        writeln!(io::stdout(), "flushed {newest}").unwrap();
        io::stdout().flush().unwrap();
    }
}

fn kill_rounds(engine: &str, rounds: usize) {
    let root = tempfile::tempdir().unwrap();
    let path: PathBuf = root.path().join("store");
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([VICTIM, "--exact", "--nocapture", "--test-threads=1"])
            .env(ENGINE, engine)
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut promised = 0;
        let mut promises = 0;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some((_, number)) = line.split_once("flushed ") else { continue };
            promised = number.parse::<i64>().unwrap();
            promises += 1;
            // Each round dies after another number of flushes, in the middle of the next.
            if promises > 3 + round * 5 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Promises that were on their way when the signal struck count as well.
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("flushed ").and_then(|n| n.parse().ok()) {
                promised = number;
            }
        }
        let store = open(engine, &path);
        assert!(store.flushed() >= LogIndex(promised as u64), "{engine} round {round}");
        let newest = store.last().unwrap().unwrap().main;
        assert!(newest >= promised, "{engine} round {round}: {newest} of {promised}");
        for main in 1..=newest {
            let found = store.get(at(main, 0)).unwrap();
            if found.is_some() || main % 7 == 0 || main > newest - 100 {
                assert_eq!(found, Some(record(main, 0, SIZE)), "{engine} round {round}: {main}");
            }
        }
    }
}

#[test]
fn revlog_keeps_what_was_flushed_when_killed() {
    kill_rounds("revlog", 6);
}

#[test]
fn sled_keeps_what_was_flushed_when_killed() {
    kill_rounds("sled", 5);
}

/// Notes what is synced, and fails on demand.
#[derive(Default)]
struct Watching {
    synced: Mutex<Vec<(PathBuf, u64)>>,
    fail: Mutex<bool>,
}

impl FileSync for Watching {
    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        if *self.fail.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(5));
        }
        OsFileSync.sync(path, file)?;
        let len = file.metadata()?.len();
        self.synced.lock().unwrap().push((path.to_path_buf(), len));
        Ok(())
    }
}

fn files_below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(directory.to_path_buf());
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.insert(path);
        }
    }
}

/// sled 0.34 hands its pages to the device without flushing the device's cache (sled#1452).
#[test]
fn sled_is_flushed_only_when_every_file_was_synced_at_its_full_length() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("store");
    let watching = Arc::new(Watching::default());
    let options = SledOptions { file_sync: watching.clone(), ..SledOptions::default() };
    let store = SledStore::open(&path, options).unwrap();
    for round in 1..=5i64 {
        // A large value goes into a file of its own.
        let big = record(round * 1_000, 0, 3_000_000);
        let mut batch: Vec<Record> =
            (round * 1_000 - 500..round * 1_000).map(|n| record(n, 0, 900)).collect();
        batch.push(big);
        store.append(&batch).unwrap();
        watching.synced.lock().unwrap().clear();
        store.flush(LogIndex(round as u64)).unwrap();
        let mut present = BTreeSet::new();
        files_below(&path, &mut present);
        assert!(present.len() >= 3, "{present:?}");
        let synced = watching.synced.lock().unwrap().clone();
        for file in present {
            let last = synced.iter().rev().find(|(path, _)| *path == file);
            let (_, len) = last.unwrap_or_else(|| panic!("{} was not synced", file.display()));
            if file.is_file() {
                assert_eq!(*len, file.metadata().unwrap().len(), "{}", file.display());
            }
        }
    }
    assert_eq!(all(&store).len(), 5 * 501);
}

#[test]
fn sled_is_not_flushed_when_a_sync_fails() {
    let root = tempfile::tempdir().unwrap();
    let watching = Arc::new(Watching::default());
    let options = SledOptions { file_sync: watching.clone(), ..SledOptions::default() };
    let store = SledStore::open(&root.path().join("store"), options).unwrap();
    store.append(&[record(1, 0, 100)]).unwrap();
    store.flush(LogIndex(1)).unwrap();
    store.append(&[record(2, 0, 100)]).unwrap();
    *watching.fail.lock().unwrap() = true;
    // sled's own sync of its log is the first to fail.
    assert!(matches!(store.flush(LogIndex(2)), Err(RevStoreError::Engine { engine: "sled", .. })));
    assert_eq!(store.flushed(), LogIndex(1));
}
