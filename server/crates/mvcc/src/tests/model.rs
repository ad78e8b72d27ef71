//! Random histories against a model that keeps a whole copy of the key space for every revision.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use revlog::RevStore;
use types::{KeyRange, LeaseId, LogIndex, RecordRevision, Revision};

use crate::memory::MemoryRevs;
use crate::{
    EventKind, KeyValue, RangeError, RangeQuery, ReadView, RevisionEvents, SortOrder, SortTarget,
    Store, StoreMeta, Sweep, Writer,
};

#[derive(Clone, Debug)]
enum Op {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete(KeyRange),
    Read(RangeQuery),
}

#[derive(Clone, Debug)]
enum Entry {
    /// One Raft entry: transactions, and perhaps a compaction this far below the newest revision.
    Batch { transactions: Vec<Vec<Op>>, compact: Option<i64> },
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Entry),
    Sweep(usize),
    Image {
        remove: bool,
    },
    /// Restart from the last image and replay what came after it.
    Restart,
    Rebuild,
    Check {
        query: RangeQuery,
        from: i64,
        max_events: usize,
    },
}

#[derive(Clone, Default)]
struct Model {
    /// The key space after each revision, from revision 1 on.
    snapshots: Vec<BTreeMap<Bytes, KeyValue>>,
    /// Event kind, key, record of each revision.
    changes: Vec<Vec<(EventKind, Bytes, RecordRevision)>>,
    compacted: i64,
}

impl Model {
    fn new() -> Self {
        Self { snapshots: vec![BTreeMap::new(); 2], changes: vec![Vec::new(); 2], compacted: -1 }
    }

    fn revision(&self) -> i64 {
        self.snapshots.len() as i64 - 1
    }

    fn at(&self, revision: i64) -> &BTreeMap<Bytes, KeyValue> {
        &self.snapshots[revision as usize]
    }

    fn newest(&self) -> &BTreeMap<Bytes, KeyValue> {
        self.at(self.revision())
    }

    /// What a range over `space`, whose newest revision is `newest`, answers.
    fn range(
        &self,
        query: &RangeQuery,
        space: &BTreeMap<Bytes, KeyValue>,
        newest: i64,
    ) -> Result<(Vec<KeyValue>, bool, i64), RangeError> {
        if query.revision > newest {
            return Err(RangeError::FutureRevision);
        }
        if query.revision > 0 && query.revision < self.compacted {
            return Err(RangeError::Compacted);
        }
        let old = query.revision > 0 && query.revision < newest;
        let space = if old { self.at(query.revision) } else { space };
        let all: Vec<_> =
            space.values().filter(|kv| query.range.contains(&kv.key)).cloned().collect();
        let count = all.len() as i64;
        if query.count_only {
            return Ok((Vec::new(), false, count));
        }
        let (mut kvs, more) = sort_and_cut(query, all);
        for kv in kvs.iter_mut().filter(|_| query.keys_only) {
            kv.value = Bytes::new();
            if query.sort_target != SortTarget::Value {
                kv.lease = 0;
            }
        }
        Ok((kvs, more, count))
    }
}

fn sort_and_cut(query: &RangeQuery, mut kvs: Vec<KeyValue>) -> (Vec<KeyValue>, bool) {
    let filtered = [query.min_mod, query.max_mod, query.min_create, query.max_create] != [0; 4];
    let by_key = query.sort_target == SortTarget::Key;
    let default_order =
        query.sort_order == SortOrder::None || (by_key && query.sort_order == SortOrder::Ascend);
    if default_order && !filtered && query.limit > 0 {
        kvs.truncate(query.limit as usize + 1);
    }
    kvs.retain(|kv| {
        (query.max_mod == 0 || kv.mod_revision <= query.max_mod)
            && (query.min_mod == 0 || kv.mod_revision >= query.min_mod)
            && (query.max_create == 0 || kv.create_revision <= query.max_create)
            && (query.min_create == 0 || kv.create_revision >= query.min_create)
    });
    kvs.sort_by(|a, b| {
        let order = match query.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if query.sort_order == SortOrder::Descend { order.reverse() } else { order }
    });
    let more = query.limit > 0 && kvs.len() > query.limit as usize;
    if more {
        kvs.truncate(query.limit as usize);
    }
    (kvs, more)
}

/// A transaction in the model.
struct OpenTxn {
    space: BTreeMap<Bytes, KeyValue>,
    changes: Vec<(EventKind, Bytes, RecordRevision)>,
    main: i64,
}

impl OpenTxn {
    fn next(&self) -> RecordRevision {
        RecordRevision { main: self.main, sub: self.changes.len() as i64 }
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: i64) {
        let old = self.space.get(key);
        let kv = KeyValue {
            key: key.clone(),
            create_revision: old.map_or(self.main, |old| old.create_revision),
            mod_revision: self.main,
            version: old.map_or(0, |old| old.version) + 1,
            value: value.clone(),
            lease,
        };
        self.changes.push((EventKind::Put, key.clone(), self.next()));
        self.space.insert(key.clone(), kv);
    }

    fn delete(&mut self, range: &KeyRange) -> Vec<Bytes> {
        let doomed: Vec<Bytes> =
            self.space.keys().filter(|key| range.contains(key)).cloned().collect();
        for key in &doomed {
            self.space.remove(key);
            self.changes.push((EventKind::Delete, key.clone(), self.next()));
        }
        doomed
    }
}

struct Run {
    store: Store,
    revs: Arc<MemoryRevs>,
    model: Model,
    log: Vec<Entry>,
    /// The newest image with the number of entries it covers.
    image: (Vec<u8>, usize),
}

impl Run {
    fn new() -> Self {
        let revs = Arc::new(MemoryRevs::default());
        let store = Store::empty(revs.clone());
        let mut image = Vec::new();
        store.write_image(&mut image).unwrap();
        Self { store, revs, model: Model::new(), log: Vec::new(), image: (image, 0) }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(entry) => {
                self.log.push(entry.clone());
                self.apply(entry);
            }
            Step::Sweep(keys) => drop(self.store.compact_step(*keys)),
            Step::Image { remove } => self.write_image(*remove),
            Step::Restart => self.restart(),
            Step::Rebuild => self.rebuild(),
            Step::Check { query, from, max_events } => {
                check_range(&self.model, &self.store.read(), query);
                check_stream(&self.store.read(), query, *max_events);
                check_history(&self.model, &self.store.read(), *from, *max_events);
            }
        }
    }

    fn apply(&mut self, entry: &Entry) {
        let Entry::Batch { transactions, compact } = entry;
        let before = self.model.revision();
        let mut writer = self.store.writer();
        for ops in transactions {
            transact(&mut self.model, &mut writer, ops);
        }
        if let Some(below) = compact {
            let revision = self.model.revision() - below;
            let moved = writer.compact(Revision(revision)).is_ok();
            assert_eq!(moved, revision > self.model.compacted && revision <= self.model.revision());
            if moved {
                self.model.compacted = revision;
            }
        }
        let events = writer.commit().unwrap();
        check_events(&self.model, before + 1, before, &events);
        assert_eq!(events.len() as i64, self.model.revision() - before);
        assert_eq!(self.store.key_count(), self.model.newest().len() as u64);
    }

    fn write_image(&mut self, remove: bool) {
        self.revs.flush(LogIndex(self.log.len() as u64)).unwrap();
        let mut image = Vec::new();
        let meta = self.store.write_image(&mut image).unwrap();
        self.image = (image, self.log.len());
        if remove {
            self.store.remove_garbage(meta.compact_revision).unwrap();
        }
    }

    fn restart(&mut self) {
        self.revs.crash();
        let mut rest = self.image.0.as_slice();
        let (revision, compacted) = image_positions(rest);
        self.revs.truncate_above(Revision(revision)).unwrap();
        self.store = Store::restore(self.revs.clone(), &mut rest).unwrap();
        assert!(rest.is_empty());
        self.model.snapshots.truncate(revision as usize + 1);
        self.model.changes.truncate(revision as usize + 1);
        self.model.compacted = compacted;
        for entry in self.log.split_off(self.image.1) {
            self.log.push(entry.clone());
            self.apply(&entry);
        }
    }

    fn rebuild(&mut self) {
        let meta = StoreMeta {
            revision: self.store.revision(),
            compact_revision: self.store.compact_revision(),
        };
        self.check_rebuilt(Arc::new(self.revs.copy()), meta);
        let backup = Arc::new(MemoryRevs::default());
        let mut visit = |record| {
            backup.append(&[record]).unwrap();
            ControlFlow::Continue(())
        };
        assert_eq!(self.store.read().backup(meta.revision, &mut visit).unwrap(), meta);
        self.check_rebuilt(backup, meta);
    }

    fn check_rebuilt(&self, revs: Arc<MemoryRevs>, meta: StoreMeta) {
        let rebuilt = Store::rebuild(revs, meta).unwrap();
        let (new, old) = (rebuilt.read(), self.store.read());
        for revision in meta.compact_revision.0.max(1)..=meta.revision.0 {
            for keys_only in [true, false] {
                let all = RangeQuery::all(super::range("\0", "\0"));
                let query = RangeQuery { revision, keys_only, ..all };
                assert_eq!(new.range(&query).unwrap(), old.range(&query).unwrap());
            }
            assert_eq!(new.hash_kv(revision).unwrap(), old.hash_kv(revision).unwrap());
        }
        assert_eq!(rebuilt.key_count(), self.store.key_count());
    }
}

fn image_positions(image: &[u8]) -> (i64, i64) {
    let number = |at: usize| i64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    (number(12), number(20))
}

fn transact(model: &mut Model, writer: &mut Writer<'_>, ops: &[Op]) {
    let before = model.revision();
    let (space, main) = (model.newest().clone(), before + 1);
    let mut open = OpenTxn { space, changes: Vec::new(), main };
    writer.begin();
    for op in ops {
        match op {
            Op::Put { key, value, lease } => {
                let old = open.space.get(key).cloned();
                let put = writer.put(key.clone(), value.clone(), LeaseId(*lease));
                open.put(key, value, *lease);
                let head =
                    put.previous.map(|head| (head.create_revision.0, head.version, head.lease.0));
                assert_eq!(head, old.map(|kv| (kv.create_revision, kv.version, kv.lease)));
                let head = writer.head(key).unwrap();
                let stored = writer.key_value(head.mod_revision).unwrap();
                assert_eq!(KeyValue::decode(&stored).unwrap(), open.space[key]);
            }
            Op::Delete(range) => {
                let deleted = writer.delete_range(range).into_iter().map(|(key, _)| key);
                assert_eq!(deleted.collect::<Vec<_>>(), open.delete(range));
            }
            Op::Read(query) => {
                let newest = before + i64::from(!open.changes.is_empty());
                let found = writer
                    .range(query)
                    .map(|answer| decoded(&answer.kvs, answer.more, answer.count));
                compare(query, found, model.range(query, &open.space, newest));
            }
        }
    }
    let written = !open.changes.is_empty();
    if written {
        model.snapshots.push(open.space);
        model.changes.push(open.changes);
    }
    assert_eq!(writer.end(), Revision(before + i64::from(written)));
}

type Answer = (Vec<KeyValue>, bool, i64);

fn decoded(kvs: &[Bytes], more: bool, count: i64) -> Answer {
    (kvs.iter().map(|kv| KeyValue::decode(kv).unwrap()).collect(), more, count)
}

fn compare(
    query: &RangeQuery,
    found: Result<Answer, RangeError>,
    expected: Result<Answer, RangeError>,
) {
    let plain = |result: Result<Answer, RangeError>| result.map_err(|error| error.to_string());
    assert_eq!(plain(found), plain(expected), "{query:?}");
}

fn check_range(model: &Model, view: &ReadView, query: &RangeQuery) {
    let found = view.range(query).map(|answer| decoded(&answer.kvs, answer.more, answer.count));
    compare(query, found, model.range(query, model.newest(), model.revision()));
    check_selection(view, query);
}

/// What is selected has the bytes that it says before they are read, and is read to the same answer.
fn check_selection(view: &ReadView, query: &RangeQuery) {
    let Ok(answer) = view.range(query) else { return };
    let mut selection = view.select(query).unwrap();
    assert_eq!(selection.sorts_by_value(), query.sort_target == SortTarget::Value);
    selection.sort_by_value().unwrap();
    let mut left = selection.bytes_left().unwrap();
    let mut kvs = Vec::new();
    while let Some(key_value) = selection.next_key_value().unwrap() {
        left -= key_value.len() as u64;
        assert_eq!(selection.bytes_left().unwrap(), left, "{query:?}");
        kvs.push(key_value);
    }
    assert_eq!(left, 0, "{query:?}");
    assert!(selection.is_empty());
    let selected = (kvs, selection.more(), selection.count(), selection.revision());
    assert_eq!(selected, (answer.kvs, answer.more, answer.count, answer.revision), "{query:?}");
}

/// The parts of a stream merge to the answer of the range.
fn check_stream(view: &ReadView, query: &RangeQuery, part: usize) {
    if !query.is_plain() || query.sort_target != SortTarget::Key {
        return;
    }
    let streamed = view.range_stream(query.clone()).and_then(|mut cursor| {
        let mut kvs = Vec::new();
        loop {
            let is_last = cursor.is_at_end()?;
            let part = cursor.next(part.max(1))?;
            assert_eq!(part.is_empty(), is_last, "{query:?}");
            if part.is_empty() {
                break;
            }
            kvs.extend(part);
        }
        let (count, more) = cursor.finish()?;
        Ok((kvs, more, count))
    });
    let whole = view.range(query).map(|answer| (answer.kvs, answer.more, answer.count));
    assert_eq!(streamed.map_err(|e| e.to_string()), whole.map_err(|e| e.to_string()), "{query:?}");
}

fn check_history(model: &Model, view: &ReadView, from: i64, max_events: usize) {
    let mut next = from;
    while next <= model.revision() {
        let events = match view.history(Revision(next), Revision(i64::MAX), max_events) {
            Err(RangeError::Compacted) => return assert!(next < model.compacted),
            found => found.unwrap(),
        };
        assert!(next >= model.compacted);
        let Some(last) = events.last() else {
            assert!(model.changes[next.max(0) as usize..].iter().all(Vec::is_empty));
            return;
        };
        check_events(model, next, model.compacted, &events);
        next = last.revision.0 + 1;
    }
}

/// Events from `from` on, whole revisions without a gap. Previous versions below `readable` are gone.
fn check_events(model: &Model, from: i64, readable: i64, events: &[RevisionEvents]) {
    let mut expected =
        (from.max(2)..).filter(|revision| !model.changes[*revision as usize].is_empty());
    for group in events {
        assert_eq!(Some(group.revision.0), expected.next());
        let changes = &model.changes[group.revision.0 as usize];
        let found: Vec<_> = group
            .events
            .iter()
            .map(|event| (event.kind, event.key.clone(), event.record))
            .collect();
        assert_eq!(&found, changes);
        let (before, after) = (model.at(group.revision.0 - 1), model.at(group.revision.0));
        for event in &group.events {
            let kv = KeyValue::decode(&event.key_value).unwrap();
            let last =
                changes.iter().rfind(|(_, key, _)| *key == event.key).unwrap().2 == event.record;
            match event.kind {
                EventKind::Put if last => assert_eq!(&kv, &after[&event.key]),
                EventKind::Put => {}
                EventKind::Delete => {
                    let key = event.key.clone();
                    let mod_revision = group.revision.0;
                    assert_eq!(kv, KeyValue { key, mod_revision, ..KeyValue::default() });
                }
            }
            let create = event.kind == EventKind::Put && kv.create_revision == group.revision.0;
            assert_eq!(event.create, create);
            let visible = before.get(&event.key).filter(|_| !create && group.revision.0 > readable);
            let previous = visible.map(|kv| kv.mod_revision);
            assert_eq!(event.previous.map(|record| record.main), previous);
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "aa", "b", "c", "ca", "d"])
        .prop_map(|key| Bytes::from_static(key.as_bytes()))
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    let end = prop::sample::select(vec!["", "", "\0", "b", "ca", "z"]);
    (key(), end).prop_map(|(key, end)| KeyRange::from_wire(key, Bytes::from_static(end.as_bytes())))
}

fn bound() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(0), 1 => 1..20i64]
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let revision = prop_oneof![Just(0), Just(-4), 1..40i64];
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.1));
    let bounds = (bound(), bound(), bound(), bound());
    (key_range(), -1..5i64, revision, order, target, flags, bounds).prop_map(
        |(range, limit, revision, sort_order, sort_target, (keys_only, count_only), bounds)| {
            let (min_mod, max_mod, min_create, max_create) = bounds;
            let all = RangeQuery::all(range);
            let all = RangeQuery { limit, revision, sort_order, sort_target, keys_only, ..all };
            RangeQuery { count_only, min_mod, max_mod, min_create, max_create, ..all }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop::sample::select(vec!["", "1", "2", "3"]);
    let lease = prop::sample::select(vec![0, 0, 7, 8]);
    prop_oneof![
        4 => (key(), value, lease).prop_map(|(key, value, lease)| {
            Op::Put { key, value: Bytes::from_static(value.as_bytes()), lease }
        }),
        2 => key_range().prop_map(Op::Delete),
        1 => query().prop_map(Op::Read),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let transaction = prop::collection::vec(op(), 0..4);
    let compact = prop_oneof![5 => Just(None), 1 => (0..8i64).prop_map(Some)];
    (prop::collection::vec(transaction, 0..4), compact)
        .prop_map(|(transactions, compact)| Entry::Batch { transactions, compact })
}

fn step() -> impl Strategy<Value = Step> {
    let check = (query(), 0..40i64, 0..6usize);
    prop_oneof![
        6 => entry().prop_map(Step::Apply),
        3 => (1..8usize).prop_map(Step::Sweep),
        1 => any::<bool>().prop_map(|remove| Step::Image { remove }),
        1 => Just(Step::Restart),
        1 => Just(Step::Rebuild),
        4 => check.prop_map(|(query, from, max_events)| Step::Check { query, from, max_events }),
    ]
}

proptest! {
    #[test]
    fn the_store_equals_the_model_at_every_revision(steps in prop::collection::vec(step(), 1..40)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        while run.store.compact_step(3) == Sweep::More {}
        for revision in 0..=run.model.revision() + 1 {
            let query = RangeQuery { revision, ..RangeQuery::all(super::range("\0", "\0")) };
            check_range(&run.model, &run.store.read(), &query);
            check_history(&run.model, &run.store.read(), revision, 3);
        }
        run.rebuild();
    }

    #[test]
    fn a_damaged_image_is_refused_and_never_panics(
        steps in prop::collection::vec(entry(), 1..10), at in any::<prop::sample::Index>(), bit in 0..8u32,
    ) {
        let mut run = Run::new();
        for entry in &steps {
            run.apply(entry);
        }
        let mut image = Vec::new();
        run.store.write_image(&mut image).unwrap();
        let cut = at.index(image.len());
        prop_assert!(Store::restore(run.revs.clone(), &mut &image[..cut]).is_err());
        image[cut] ^= 1 << bit;
        drop(Store::restore(run.revs.clone(), &mut image.as_slice()));
    }
}
