//! What was answered for a revision just before a compaction to it is answered after it.

use std::sync::Arc;

use bytes::Bytes;
use types::{KeyRange, LeaseId, Revision};

use crate::memory::MemoryRevs;
use crate::{Store, Sweep};

fn put(store: &Store, key: &'static str, value: i64) {
    let mut writer = store.writer();
    writer.begin();
    writer.put(Bytes::from_static(key.as_bytes()), value.to_string().into(), LeaseId(0));
    writer.end();
    writer.commit().unwrap();
}

fn delete(store: &Store, key: &'static str) {
    let mut writer = store.writer();
    writer.begin();
    let range = KeyRange::from_wire(Bytes::from_static(key.as_bytes()), Bytes::new());
    drop(writer.delete_range(&range));
    writer.end();
    writer.commit().unwrap();
}

fn compact(store: &Store, revision: i64) {
    let mut writer = store.writer();
    writer.compact(Revision(revision)).unwrap();
    writer.commit().unwrap();
}

fn sweep(store: &Store, revision: i64) {
    while store.compact_step(2) == Sweep::More {}
    store.remove_garbage(Revision(revision)).unwrap();
}

/// Revisions up to 30 of keys that are replaced and deleted; every fifth revision is a deletion.
fn history() -> Store {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    for revision in 2..=30 {
        match revision % 5 {
            0 => delete(&store, "a"),
            1 | 3 => put(&store, "a", revision),
            _ => put(&store, "b", revision),
        }
    }
    store
}

#[test]
fn the_hash_of_a_compacted_revision_stays() {
    // Of revision 10, which is a deletion, and of one that is none.
    for at in [10, 13] {
        let store = history();
        let before = store.read().hash_kv(at).unwrap();
        compact(&store, at);
        store.hash_compactions();
        sweep(&store, at);
        let after = store.read().hash_of_compaction(at).expect("it was taken");
        assert_eq!((after.hash, after.compact_revision), (before.hash, Revision(-1)));
        assert_eq!(after.revision, Revision(at));
        assert_eq!(after.current_revision, Revision(30));
        assert_ne!(store.read().hash_kv(at).unwrap().hash, before.hash, "it left something out");

        // The next one is relative to it, and takes nothing away.
        let before = store.read().hash_kv(22).unwrap();
        assert_eq!(before.compact_revision, Revision(at));
        compact(&store, 22);
        store.hash_compactions();
        sweep(&store, 22);
        let next = store.read().hash_of_compaction(22).expect("it was taken");
        assert_eq!((next.hash, next.compact_revision), (before.hash, Revision(at)));
        assert_eq!(store.read().hash_of_compaction(at), Some(after));
        assert_eq!(store.read().hash_of_compaction(at + 1), None);
    }
}

/// Two compactions before anybody had time for the first.
#[test]
fn compactions_that_wait_together_are_hashed_one_after_the_other() {
    let (one, other) = (history(), history());
    compact(&one, 12);
    one.hash_compactions();
    sweep(&one, 12);
    compact(&one, 21);
    one.hash_compactions();
    compact(&other, 12);
    compact(&other, 21);
    other.hash_compactions();
    for at in [12, 21] {
        let hash = one.read().hash_of_compaction(at);
        assert!(hash.is_some());
        assert_eq!(other.read().hash_of_compaction(at), hash, "{at}");
    }
}

#[test]
fn what_was_swept_before_it_was_hashed_has_no_hash() {
    let store = history();
    compact(&store, 12);
    sweep(&store, 12);
    store.hash_compactions();
    assert_eq!(store.read().hash_of_compaction(12), None);
}
