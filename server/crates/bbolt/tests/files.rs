//! What is written can be read, and no damage of a file makes the reader panic or lie.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::Cursor;

use bbolt::{Bbolt, PAGE_BYTES, ReadError, WriteError, Writer};
use proptest::prelude::*;

type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

fn write(buckets: &Buckets) -> Vec<u8> {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    for (name, keys) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in keys {
            writer.put(key, value).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

fn read(file: &[u8]) -> Result<Buckets, ReadError> {
    let file = Bbolt::open(file)?;
    let mut buckets = Buckets::new();
    for name in file.buckets()? {
        let bucket = file.bucket(&name)?.expect("a listed bucket");
        let mut keys = BTreeMap::new();
        for entry in bucket.entries() {
            let (key, value) = entry?;
            keys.insert(key.to_vec(), value.to_vec());
        }
        buckets.insert(name.to_vec(), keys);
    }
    Ok(buckets)
}

/// Keys as etcd writes them, in `count` entries of about `size` bytes.
fn sample(count: u64, size: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    (0..count)
        .map(|n| {
            let mut key = (n * 3).to_be_bytes().to_vec();
            key.push(b'_');
            key.extend_from_slice(&0u64.to_be_bytes());
            (key, vec![n as u8; (n as usize * 7) % (size * 2 + 1)])
        })
        .collect()
}

fn etcd_like(count: u64, size: usize) -> Buckets {
    let mut buckets = Buckets::new();
    for name in ["alarm", "auth", "cluster", "lease", "members"] {
        buckets.insert(name.into(), BTreeMap::new());
    }
    buckets.insert(b"key".to_vec(), sample(count, size));
    let meta = [("consistent_index", vec![0, 0, 0, 0, 0, 0, 0, 9]), ("term", vec![0; 8])];
    let meta = meta.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value));
    buckets.insert(b"meta".to_vec(), meta.collect());
    buckets
}

#[test]
fn trees_of_every_height_come_back_and_pass_the_check() {
    for (count, size) in
        [(0, 0), (1, 10), (30, 40), (200, 300), (5_000, 20), (40_000, 30), (9, 20_000)]
    {
        let buckets = etcd_like(count, size);
        let file = write(&buckets);
        assert_eq!(file.len() % PAGE_BYTES, 0);
        assert_eq!(read(&file).unwrap(), buckets, "{count} keys of {size}");
        let open = Bbolt::open(&file).unwrap();
        assert_eq!(open.bytes(), file.len() as u64);
        open.check().unwrap();
        let keys = open.bucket(b"key").unwrap().unwrap();
        for (key, value) in buckets[&b"key".to_vec()].iter().step_by(97) {
            assert_eq!(keys.get(key).unwrap().unwrap(), value[..]);
            let mut after = key.clone();
            after.push(0);
            assert_eq!(keys.get(&after).unwrap(), None);
            let next = keys.entries_from(&after).next().map(|entry| entry.unwrap().0.to_vec());
            let expected = buckets[&b"key".to_vec()].range(after..).next();
            assert_eq!(next, expected.map(|(key, _)| key.clone()));
        }
        assert!(open.bucket(b"nothing").unwrap().is_none());
    }
}

#[test]
fn long_keys_make_deep_trees_that_come_back() {
    let keys = (0..3_000u32).map(|n| {
        (format!("{n:0width$}", width = 1_200 + n as usize % 800).into_bytes(), vec![1; 10])
    });
    let buckets = Buckets::from([(b"deep".to_vec(), keys.collect())]);
    let file = write(&buckets);
    assert_eq!(read(&file).unwrap(), buckets);
    Bbolt::open(&file).unwrap().check().unwrap();
}

#[test]
fn keys_out_of_order_and_beyond_the_limits_are_refused() {
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    assert!(matches!(writer.put(b"a", b""), Err(WriteError::NoBucket)));
    writer.bucket(b"b").unwrap();
    writer.put(b"k", b"v").unwrap();
    assert!(matches!(writer.put(b"k", b"v"), Err(WriteError::Order { .. })));
    assert!(matches!(writer.put(b"j", b"v"), Err(WriteError::Order { .. })));
    assert!(matches!(writer.put(b"", b"v"), Err(WriteError::KeyLength(0))));
    assert!(matches!(writer.put(&[b'z'; 32_769], b"v"), Err(WriteError::KeyLength(32_769))));
    assert!(matches!(writer.bucket(b"a"), Err(WriteError::Order { .. })));
}

#[test]
fn one_damaged_meta_page_is_survived_and_two_are_not() {
    let buckets = etcd_like(100, 50);
    let file = write(&buckets);
    for meta in [0, PAGE_BYTES] {
        for byte in [16, 20, 24, 33, 57, 64, 72, 79] {
            let mut damaged = file.clone();
            damaged[meta + byte] ^= 4;
            assert_eq!(read(&damaged).unwrap(), buckets, "meta at {meta}, byte {byte}");
        }
    }
    let mut damaged = file.clone();
    damaged[17] ^= 1;
    damaged[PAGE_BYTES + 17] ^= 1;
    assert!(matches!(read(&damaged), Err(ReadError::NoMeta)));
    assert!(matches!(read(b""), Err(ReadError::NoMeta)));
    assert!(matches!(read(&file[..file.len() - 1]), Err(ReadError::Cut { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_content_comes_back(
        buckets in prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..20),
            prop::collection::btree_map(
                prop::collection::vec(any::<u8>(), 1..300),
                prop::collection::vec(any::<u8>(), 0..3_000),
                0..40,
            ),
            0..6,
        ),
    ) {
        let file = write(&buckets);
        prop_assert_eq!(read(&file).unwrap(), buckets);
        Bbolt::open(&file).unwrap().check().unwrap();
    }

    #[test]
    fn no_damage_makes_the_reader_panic_or_run_for_ever(
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        near_headers in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = write(&etcd_like(400, 60));
        for (place, byte) in bytes {
            let mut place = place.index(file.len());
            if near_headers {
                // Where the structure is: headers and elements.
                place = place / PAGE_BYTES * PAGE_BYTES + place % 200;
            }
            file[place] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = read(&file);
        if let Ok(open) = Bbolt::open(&file) {
            let _ = open.check();
            let _ = open.bucket(b"key");
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        let _ = read(&bytes);
    }
}
