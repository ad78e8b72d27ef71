//! What a reader sees while a writer writes, a compaction passes or an image is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use types::{LeaseId, Revision};

use super::range;
use crate::memory::MemoryRevs;
use crate::{KeyValue, RangeError, RangeQuery, Store, StoreMeta, Sweep};

fn put(store: &Store, key: String, value: String) -> i64 {
    let mut writer = store.writer();
    writer.begin();
    writer.put(key.into(), value.into(), LeaseId(0));
    writer.end();
    writer.commit().unwrap().last().unwrap().revision.0
}

/// 2,000 keys; every round writes all of them in one transaction.
fn rounds(store: &Store, round: usize) {
    let mut writer = store.writer();
    writer.begin();
    for key in 0..2000 {
        writer.put(format!("key{key:05}").into(), round.to_string().into(), LeaseId(0));
    }
    writer.end();
    writer.commit().unwrap();
}

#[test]
fn a_range_in_chunks_is_one_snapshot_or_compacted_while_writes_and_compactions_pass() {
    let store = Arc::new(Store::empty(Arc::new(MemoryRevs::default())));
    rounds(&store, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        thread::spawn(move || {
            for round in 1..60 {
                rounds(&store, round);
                let mut writer = store.writer();
                writer.compact(writer.revision()).unwrap();
                writer.commit().unwrap();
                while store.compact_step(700) == Sweep::More {}
                store.remove_garbage(store.compact_revision()).unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        })
    };
    let view = store.read();
    let (mut whole, mut compacted) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        let revision = view.revision().0;
        for query_revision in [0, revision] {
            let all = RangeQuery::all(range("key", "kez"));
            match view.range(&RangeQuery { revision: query_revision, ..all }) {
                Ok(answer) => {
                    let values: Vec<_> =
                        answer.kvs.iter().map(|kv| KeyValue::decode(kv).unwrap().value).collect();
                    assert_eq!((values.len(), answer.count), (2000, 2000));
                    assert!(values.iter().all(|value| *value == values[0]), "a torn read");
                    whole += 1;
                }
                Err(RangeError::Compacted) => compacted += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    writing.join().unwrap();
    assert!(whole > 0, "{compacted} reads were compacted, none was whole");
}

#[test]
fn a_stream_that_a_compaction_overtakes_ends_with_compacted() {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    rounds(&store, 0);
    let mut cursor = store.read().range_stream(RangeQuery::all(range("key", "kez"))).unwrap();
    assert_eq!(cursor.next(10).unwrap().len(), 10);
    rounds(&store, 1);
    assert_eq!(cursor.next(10).unwrap().len(), 10);
    let mut writer = store.writer();
    writer.compact(Revision(3)).unwrap();
    writer.commit().unwrap();
    assert!(matches!(cursor.next(10), Err(RangeError::Compacted)));
    assert!(matches!(cursor.finish(), Err(RangeError::Compacted)));
}

#[test]
fn readers_see_nothing_of_an_entry_before_its_commit_and_all_of_it_after() {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    let mut writer = store.writer();
    for key in ["a", "b"] {
        writer.begin();
        writer.put(key.into(), Bytes::from_static(b"1"), LeaseId(0));
        writer.end();
    }
    let view = store.read();
    let reading = thread::spawn(move || view.range(&RangeQuery::all(range("a", "z"))).unwrap());
    writer.commit().unwrap();
    let seen = reading.join().unwrap();
    assert_eq!((seen.count, seen.revision), (2, Revision(3)));
}

#[test]
fn t24_a_delete_inside_a_batch_is_seen_by_the_next_read_of_the_batch() {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    put(&store, "a".into(), "1".into());
    let mut writer = store.writer();
    writer.begin();
    writer.delete_range(&range("a", ""));
    assert_eq!(writer.range(&RangeQuery::all(range("a", ""))).unwrap().count, 0);
    writer.put("a".into(), "2".into(), LeaseId(3));
    let again = writer.range(&RangeQuery::all(range("a", ""))).unwrap();
    let kv = KeyValue::decode(&again.kvs[0]).unwrap();
    assert_eq!((kv.version, kv.create_revision, kv.lease), (1, 3, 3));
    writer.end();
    writer.commit().unwrap();
}

#[test]
fn a_writer_dropped_with_changes_makes_the_store_refuse() {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    let mut writer = store.writer();
    writer.begin();
    writer.put("a".into(), "1".into(), LeaseId(0));
    drop(writer);
    assert!(matches!(
        store.read().range(&RangeQuery::all(range("a", ""))),
        Err(RangeError::Store(_))
    ));
    assert!(store.writer().commit().is_err());
}

#[test]
fn t06_the_revision_survives_when_the_last_record_is_a_compacted_tombstone() {
    let revs = Arc::new(MemoryRevs::default());
    let store = Store::empty(revs.clone());
    put(&store, "a".into(), "1".into());
    let mut writer = store.writer();
    writer.begin();
    writer.delete_range(&range("a", ""));
    writer.end();
    writer.begin();
    writer.put("b".into(), "1".into(), LeaseId(0));
    writer.end();
    writer.begin();
    writer.delete_range(&range("b", ""));
    writer.end();
    writer.compact(Revision(5)).unwrap();
    writer.commit().unwrap();
    while store.compact_step(10) == Sweep::More {}
    store.remove_garbage(Revision(5)).unwrap();
    let mut image = Vec::new();
    let meta = store.write_image(&mut image).unwrap();
    assert_eq!(meta, StoreMeta { revision: Revision(5), compact_revision: Revision(5) });
    let restored = Store::restore(revs.clone(), &mut image.as_slice()).unwrap();
    assert_eq!(restored.revision(), Revision(5));
    assert_eq!(Store::rebuild(revs, meta).unwrap().revision(), Revision(5));
}

#[test]
fn an_image_written_beside_a_writer_is_the_state_at_its_start() {
    let revs = Arc::new(MemoryRevs::default());
    let store = Arc::new(Store::empty(revs.clone()));
    rounds(&store, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        thread::spawn(move || {
            for round in 1.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                rounds(&store, round);
                put(&store, format!("new{round}"), "x".into());
            }
        })
    };
    for _ in 0..10 {
        let mut image = Vec::new();
        let meta = store.write_image(&mut image).unwrap();
        let copy = Arc::new(revs.copy());
        revlog::RevStore::truncate_above(&*copy, meta.revision).unwrap();
        let restored = Store::restore(copy, &mut image.as_slice()).unwrap().read();
        let all = RangeQuery { revision: meta.revision.0, ..RangeQuery::all(range("\0", "\0")) };
        let (old, new) = (store.read().range(&all).unwrap(), restored.range(&all).unwrap());
        assert_eq!((old.kvs, old.count), (new.kvs, new.count));
        assert_eq!(restored.revision(), meta.revision);
    }
    stop.store(true, Ordering::SeqCst);
    writing.join().unwrap();
}

#[test]
fn views_read_the_new_content_after_an_install() {
    let (store, other) = (
        Store::empty(Arc::new(MemoryRevs::default())),
        Store::empty(Arc::new(MemoryRevs::default())),
    );
    put(&other, "a".into(), "1".into());
    put(&other, "b".into(), "2".into());
    let view = store.read();
    let mut cursor = view.range_stream(RangeQuery::all(range("a", "z"))).unwrap();
    store.install(other);
    assert_eq!(view.revision(), Revision(3));
    assert_eq!(view.range(&RangeQuery::all(range("a", "z"))).unwrap().count, 2);
    assert!(matches!(cursor.next(1), Err(RangeError::Compacted)));
}

#[test]
fn attachments_are_those_of_the_keys_that_exist() {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    let mut writer = store.writer();
    writer.begin();
    for (key, lease) in [("a", 1), ("b", 2), ("c", 0), ("d", 2)] {
        writer.put(key.into(), "".into(), LeaseId(lease));
    }
    writer.end();
    writer.begin();
    writer.delete_range(&range("b", ""));
    writer.end();
    writer.commit().unwrap();
    let mut found = Vec::new();
    store.attachments(&mut |lease, key| found.push((lease.0, key.to_vec())));
    assert_eq!(found, [(1, b"a".to_vec()), (2, b"d".to_vec())]);
}

#[test]
fn garbage_that_could_not_be_removed_is_kept_for_the_next_try() {
    let revs = Arc::new(MemoryRevs::default());
    let store = Store::empty(revs.clone());
    for round in 0..3 {
        rounds(&store, round);
    }
    let mut writer = store.writer();
    writer.compact(Revision(4)).unwrap();
    writer.commit().unwrap();
    while store.compact_step(100) == Sweep::More {}
    assert_eq!(store.garbage().len(), 4000);
    revs.fail_removals_after(3);
    assert!(store.remove_garbage(Revision(4)).is_err());
    assert_eq!(store.garbage().len(), 1000);
    revs.fail_removals_after(usize::MAX);
    assert_eq!(store.remove_garbage(Revision(3)).unwrap(), 0, "garbage of a later compaction");
    assert_eq!(store.remove_garbage(Revision(4)).unwrap(), 1000);
    assert_eq!(store.garbage(), []);
}

#[test]
fn an_image_of_an_earlier_position_is_that_position_or_is_refused() {
    let revs = Arc::new(MemoryRevs::default());
    let store = Store::empty(revs.clone());
    for round in 0..3 {
        put(&store, "a".into(), round.to_string());
    }
    let meta = store.meta();
    put(&store, "a".into(), "later".into());
    put(&store, "b".into(), "later".into());
    let mut writer = store.writer();
    writer.compact(Revision(6)).unwrap();
    writer.commit().unwrap();
    let mut image = Vec::new();
    store.write_image_at(meta, &mut image).unwrap();
    let copy = Arc::new(revs.copy());
    revlog::RevStore::truncate_above(&*copy, meta.revision).unwrap();
    let restored = Store::restore(copy, &mut image.as_slice()).unwrap();
    assert_eq!(restored.meta(), meta);
    assert_eq!((restored.key_count(), restored.garbage()), (1, Vec::new()));
    for revision in 1..=4 {
        let value = restored.read().get(b"a", revision).unwrap();
        let value = value.map(|kv| KeyValue::decode(&kv).unwrap().value);
        let expected = (revision > 1).then(|| Bytes::from((revision - 2).to_string()));
        assert_eq!(value, expected, "at {revision}");
    }
    while store.compact_step(10) == Sweep::More {}
    let refused = store.write_image_at(meta, &mut Vec::new());
    assert!(matches!(refused, Err(crate::ImageError::Overtaken { .. })));
    let ahead = StoreMeta { revision: Revision(7), ..store.meta() };
    assert!(store.write_image_at(ahead, &mut Vec::new()).is_err());
}
