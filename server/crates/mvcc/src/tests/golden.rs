//! Histories that were run on Go etcd 3.7.3, with its answers to HashKV and Range.
//!
//! `etcd.golden` was recorded over the JSON gateway of one member. Lines:
//! ```text
//! fresh                                  a new store
//! put key value lease | del key end | txn op.. | compact revision (physical)
//! hash revision crc compact_revision hash_revision
//! range key end limit revision order target keys_only count_only min_mod max_mod min_create
//!       max_create  more count header_revision key/create/mod/version/value/lease,..
//! ```
//! `-` is the empty string, `0` in place of a key or end is one zero byte. Hashes at exactly the
//! revision of a compaction were taken after a restart, because Go answers them from a cache of
//! differently computed hashes before.

use std::sync::Arc;

use bytes::Bytes;
use types::{KeyRange, LeaseId, Revision};

use crate::memory::MemoryRevs;
use crate::{KeyValue, RangeError, RangeQuery, SortOrder, SortTarget, Store, Sweep};

struct Replay {
    store: Store,
    sweep: bool,
}

#[test]
fn answers_equal_those_of_go_etcd_with_compaction_finished() {
    replay(true);
}

#[test]
fn t11_answers_equal_those_of_go_etcd_with_compaction_not_even_begun() {
    replay(false);
}

fn replay(sweep: bool) {
    let mut replay = Replay { store: empty(), sweep };
    for (number, line) in include_str!("etcd.golden").lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let at = format!("line {}: {line}", number + 1);
        match words[0] {
            "fresh" => replay.store = empty(),
            "hash" => replay.hash(&words[1..], &at),
            "range" => replay.range(&words[1..], &at),
            "compact" => replay.compact(words[1].parse().unwrap()),
            _ => replay.write(&words),
        }
    }
}

fn empty() -> Store {
    Store::empty(Arc::new(MemoryRevs::default()))
}

fn text(word: &str) -> Bytes {
    match word {
        "-" => Bytes::new(),
        "0" => Bytes::from_static(b"\0"),
        _ => Bytes::copy_from_slice(word.as_bytes()),
    }
}

impl Replay {
    fn write(&mut self, words: &[&str]) {
        let mut writer = self.store.writer();
        writer.begin();
        let line = words.join(":");
        let ops = if words[0] == "txn" { words[1..].to_vec() } else { vec![line.as_str()] };
        for op in ops {
            let parts: Vec<&str> = op.split(':').collect();
            match parts[0] {
                "put" | "p" => {
                    let lease = LeaseId(parts[3].parse().unwrap());
                    writer.put(text(parts[1]), text(parts[2]), lease);
                }
                _ => {
                    drop(writer.delete_range(&KeyRange::from_wire(text(parts[1]), text(parts[2]))))
                }
            }
        }
        writer.end();
        writer.commit().unwrap();
    }

    fn compact(&mut self, revision: i64) {
        let mut writer = self.store.writer();
        writer.compact(Revision(revision)).unwrap();
        writer.commit().unwrap();
        if self.sweep {
            while self.store.compact_step(2) == Sweep::More {}
            self.store.remove_garbage(Revision(revision)).unwrap();
        }
    }

    fn hash(&self, words: &[&str], at: &str) {
        let found = match self.store.read().hash_kv(words[0].parse().unwrap()) {
            Ok(hash) => format!("{} {} {}", hash.hash, hash.compact_revision, hash.revision),
            Err(error) => name(&error),
        };
        assert_eq!(found, words[1..].join(" "), "{at}");
    }

    fn range(&self, words: &[&str], at: &str) {
        let number = |at: usize| words[at].parse::<i64>().unwrap();
        let query = RangeQuery {
            range: KeyRange::from_wire(text(words[0]), text(words[1])),
            limit: number(2),
            revision: number(3),
            sort_order: match words[4] {
                "NONE" => SortOrder::None,
                "ASCEND" => SortOrder::Ascend,
                _ => SortOrder::Descend,
            },
            sort_target: match words[5] {
                "KEY" => SortTarget::Key,
                "VERSION" => SortTarget::Version,
                "CREATE" => SortTarget::Create,
                "MOD" => SortTarget::Mod,
                _ => SortTarget::Value,
            },
            keys_only: words[6] == "1",
            count_only: words[7] == "1",
            min_mod: number(8),
            max_mod: number(9),
            min_create: number(10),
            max_create: number(11),
        };
        let found = match self.store.read().range(&query) {
            Ok(answer) => {
                let kvs: Vec<String> = answer.kvs.iter().map(show).collect();
                let kvs = if kvs.is_empty() { "-".to_owned() } else { kvs.join(",") };
                format!("{} {} {} {kvs}", u8::from(answer.more), answer.count, answer.revision)
            }
            Err(error) => name(&error),
        };
        assert_eq!(found, words[12..].join(" "), "{at}");
        let through_writer = self.store.writer().range(&query).map(|answer| answer.kvs).ok();
        assert_eq!(
            through_writer,
            self.store.read().range(&query).map(|answer| answer.kvs).ok(),
            "{at}"
        );
    }
}

fn name(error: &RangeError) -> String {
    match error {
        RangeError::Compacted => "error compacted".to_owned(),
        RangeError::FutureRevision => "error future".to_owned(),
        RangeError::Store(error) => error.to_string(),
    }
}

fn show(encoded: &Bytes) -> String {
    let kv = KeyValue::decode(encoded).unwrap();
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let value = if kv.value.is_empty() { "-".to_owned() } else { text(&kv.value) };
    let numbers = format!("{}/{}/{}", kv.create_revision, kv.mod_revision, kv.version);
    format!("{}/{numbers}/{value}/{}", text(&kv.key), kv.lease)
}
