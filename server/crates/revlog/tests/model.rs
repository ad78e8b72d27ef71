//! Random histories of calls against a `BTreeMap`, for both engines.
//!
//! What a store may forget is modelled exactly: after a reopening it holds some prefix of what was
//! appended that covers the last flush, and a removed record is either as it was or gone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use disk::{OsDisk, SimDisk};
use proptest::prelude::*;
use revlog::conformance::{all, at, record};
use revlog::{Record, RevLog, RevLogOptions, RevStore, SledOptions, SledStore};
use types::{LogIndex, RecordRevision, Revision};

#[derive(Clone, Debug)]
enum Step {
    /// Transactions, each with this many changes, of this size.
    Append {
        transactions: Vec<u8>,
        size: usize,
    },
    /// Removes records by their number in the history.
    Remove(Vec<prop::sample::Index>),
    /// Cuts the history at a part of its revisions.
    Truncate(prop::sample::Index),
    Flush,
    Defragment,
    Reopen,
    Get(prop::sample::Index),
    Scan(prop::sample::Index, prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = || any::<prop::sample::Index>();
    prop_oneof![
        8 => (prop::collection::vec(1u8..4, 1..12), 0usize..400)
            .prop_map(|(transactions, size)| Step::Append { transactions, size }),
        4 => prop::collection::vec(index(), 1..30).prop_map(Step::Remove),
        1 => index().prop_map(Step::Truncate),
        3 => Just(Step::Flush),
        1 => Just(Step::Defragment),
        1 => Just(Step::Reopen),
        3 => index().prop_map(Step::Get),
        2 => (index(), index()).prop_map(|(from, until)| Step::Scan(from, until)),
    ]
}

#[derive(Default)]
struct Model {
    records: BTreeMap<RecordRevision, Record>,
    removed: BTreeSet<RecordRevision>,
    newest: i64,
    flushed_newest: i64,
    flushed: u64,
}

impl Model {
    fn pick(&self, index: &prop::sample::Index) -> RecordRevision {
        let keys: Vec<RecordRevision> = self.records.keys().copied().collect();
        if keys.is_empty() { at(1, 0) } else { keys[index.index(keys.len())] }
    }

    fn cut(&mut self, newest: i64) {
        self.records.retain(|revision, _| revision.main <= newest);
        self.removed.retain(|revision| revision.main <= newest);
        self.newest = newest.min(self.newest);
        self.flushed_newest = self.newest.min(self.flushed_newest);
    }

    /// What the store holds is what the model says, but for removed records, which may linger.
    fn check(&self, held: &[Record], expected: &mut dyn Iterator<Item = &Record>) {
        let mut held = held.iter().peekable();
        for expected in expected {
            if held.next_if_eq(&expected).is_none() {
                let gone = self.removed.contains(&expected.revision);
                assert!(gone, "{} is missing; next is {:?}", expected.revision, held.peek());
            }
        }
        assert_eq!(held.next(), None, "a record that nobody appended");
    }
}

fn play(steps: &[Step], open: &mut dyn FnMut() -> Arc<dyn RevStore>) {
    let mut model = Model::default();
    let mut store = open();
    for step in steps {
        match step {
            Step::Append { transactions, size } => {
                let mut batch = Vec::new();
                for &changes in transactions {
                    model.newest += 1;
                    batch.extend((0..changes).map(|sub| record(model.newest, sub.into(), *size)));
                }
                store.append(&batch).unwrap();
                model.records.extend(batch.into_iter().map(|record| (record.revision, record)));
            }
            Step::Remove(which) => {
                let revisions: Vec<RecordRevision> = which
                    .iter()
                    .map(|index| model.pick(index))
                    // As in the server: only what a flush and the image after it cover.
                    .filter(|revision| revision.main <= model.flushed_newest)
                    .collect();
                store.remove(&revisions).unwrap();
                model.removed.extend(revisions);
            }
            Step::Truncate(index) => {
                let oldest = model.removed.last().map_or(0, |removed| removed.main);
                let newest = model.pick(index).main.max(oldest);
                store.truncate_above(Revision(newest)).unwrap();
                model.cut(newest);
            }
            Step::Flush => {
                model.flushed += 1;
                store.flush(LogIndex(model.flushed)).unwrap();
                model.flushed_newest = model.newest;
            }
            Step::Defragment => {
                store.defragment().unwrap();
                assert!(store.size().total >= store.size().in_use);
            }
            Step::Reopen => {
                drop(store);
                store = open();
                let newest = store.last().unwrap().map_or(0, |last| last.main);
                // The newest records may all have been removed, so the store may tell less.
                model.cut(newest.max(model.flushed_newest));
            }
            Step::Get(index) => {
                let revision = model.pick(index);
                let found = store.get(revision).unwrap();
                if found.is_some() || !model.removed.contains(&revision) {
                    assert_eq!(found.as_ref(), model.records.get(&revision), "{revision}");
                }
            }
            Step::Scan(from, until) => {
                let (from, until) = (model.pick(from), model.pick(until));
                let mut held = Vec::new();
                let visit = &mut |record| {
                    held.push(record);
                    ControlFlow::Continue(())
                };
                store.scan(from, until, visit).unwrap();
                if from < until {
                    model.check(&held, &mut model.records.range(from..until).map(|(_, one)| one));
                } else {
                    assert_eq!(held, []);
                }
            }
        }
        assert_eq!(store.flushed(), LogIndex(model.flushed));
        if !matches!(step, Step::Get(_) | Step::Scan(..)) {
            model.check(&all(&*store), &mut model.records.values());
        }
    }
}

fn options() -> impl Strategy<Value = RevLogOptions> {
    (500u32..5_000, 0usize..2_000, 0usize..4_000).prop_map(
        |(segment_bytes, write_bytes, recent_bytes)| RevLogOptions {
            segment_bytes,
            write_bytes,
            recent_bytes,
        },
    )
}

fn os_log(path: PathBuf, options: RevLogOptions) -> Arc<dyn RevStore> {
    Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, options).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn revlog_is_a_map(steps in prop::collection::vec(step(), 1..60), options in options()) {
        let root = tempfile::tempdir().unwrap();
        play(&steps, &mut || os_log(root.path().join("store"), options));
    }

    #[test]
    fn revlog_is_a_map_across_power_losses(
        steps in prop::collection::vec(step(), 1..60),
        options in options(),
        seed in any::<u64>(),
    ) {
        let disk = SimDisk::new(seed);
        play(&steps, &mut || {
            disk.crash();
            disk.restart();
            Arc::new(RevLog::open(Arc::new(disk.clone()), "store", options).unwrap())
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn sled_is_a_map(steps in prop::collection::vec(step(), 1..40)) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("store");
        play(&steps, &mut || Arc::new(SledStore::open(&path, SledOptions::default()).unwrap()));
    }
}
