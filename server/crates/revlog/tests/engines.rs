//! Both engines pass the conformance suite, also with sizes that make every boundary occur.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::sync::Arc;

use disk::{OsDisk, SimDisk};
use revlog::conformance::{self, Bench};
use revlog::{RevLog, RevLogOptions, RevStore, SledOptions, SledStore};

/// Sizes so small that a few records seal a segment, fill the buffer and leave the cache.
const TINY: RevLogOptions =
    RevLogOptions { segment_bytes: 2_000, write_bytes: 300, recent_bytes: 900 };

struct OsBench {
    root: tempfile::TempDir,
    store: u32,
    open: fn(PathBuf) -> Arc<dyn RevStore>,
}

impl Bench for OsBench {
    fn open(&mut self) -> Arc<dyn RevStore> {
        (self.open)(self.root.path().join(self.store.to_string()))
    }

    fn clear(&mut self) {
        self.store += 1;
    }
}

fn run(open: fn(PathBuf) -> Arc<dyn RevStore>) {
    let root = tempfile::tempdir().unwrap();
    conformance::run(&mut OsBench { root, store: 0, open });
}

#[test]
fn revlog_with_default_sizes_conforms() {
    run(|path| {
        Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, RevLogOptions::default()).unwrap())
    });
}

#[test]
fn revlog_with_tiny_sizes_conforms() {
    run(|path| Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, TINY).unwrap()));
}

#[test]
fn revlog_without_buffer_or_cache_conforms() {
    run(|path| {
        let options = RevLogOptions { write_bytes: 0, recent_bytes: 0, ..TINY };
        Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, options).unwrap())
    });
}

#[test]
fn sled_conforms() {
    run(|path| Arc::new(SledStore::open(&path, SledOptions::default()).unwrap()));
}

struct SimBench {
    disk: SimDisk,
    store: u32,
}

impl Bench for SimBench {
    /// The power fails before each opening but the first.
    fn open(&mut self) -> Arc<dyn RevStore> {
        self.disk.crash();
        self.disk.restart();
        let path = format!("store-{}", self.store);
        Arc::new(RevLog::open(Arc::new(self.disk.clone()), path, TINY).unwrap())
    }

    fn clear(&mut self) {
        self.store += 1;
    }
}

#[test]
fn revlog_conforms_when_the_power_fails_at_each_reopening() {
    for seed in 0..4 {
        conformance::run(&mut SimBench { disk: SimDisk::new(seed), store: 0 });
    }
}
