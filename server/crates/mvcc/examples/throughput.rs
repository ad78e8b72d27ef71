//! What the index costs: `cargo run --release -p mvcc --example throughput [keys]`.
//!
//! The record store is a vector that forgets values, so that what is measured is this room.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use mvcc::{RangeQuery, Store, Sweep};
use revlog::{Record, RevStore, RevStoreError, StoreSize};
use types::{KeyRange, LeaseId, LogIndex, RecordRevision, Revision};

/// Keeps the newest record only; answers every read with it.
#[derive(Default)]
struct Trivial {
    newest: Mutex<Option<Record>>,
}

impl Trivial {
    fn newest(&self) -> Option<Record> {
        self.newest.lock().expect("nothing panics under this lock").clone()
    }
}

impl RevStore for Trivial {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        *self.newest.lock().expect("nothing panics under this lock") = records.last().cloned();
        Ok(())
    }
    fn get(&self, _: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        Ok(self.newest())
    }
    fn scan(
        &self,
        _: RecordRevision,
        _: RecordRevision,
        _: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        Ok(())
    }
    fn remove(&self, _: &[RecordRevision]) -> Result<(), RevStoreError> {
        Ok(())
    }
    fn truncate_above(&self, _: Revision) -> Result<(), RevStoreError> {
        Ok(())
    }
    fn flush(&self, _: LogIndex) -> Result<(), RevStoreError> {
        Ok(())
    }
    fn flushed(&self) -> LogIndex {
        LogIndex(0)
    }
    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        Ok(self.newest().map(|record| record.revision))
    }
    fn size(&self) -> StoreSize {
        StoreSize::default()
    }
    fn defragment(&self) -> Result<(), RevStoreError> {
        Ok(())
    }
}

static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[allow(unsafe_code, reason = "an allocator that counts is the only exact measure of memory")]
// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A walk through all numbers below `count` in a scattered order.
fn scattered(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |number| (number.wrapping_mul(0x9E37_79B1)) % count)
}

fn key(number: usize) -> Bytes {
    format!("/registry/pods/namespace-{:04}/pod-{number:012}", number % 1000).into()
}

fn report(what: &str, count: usize, start: Instant) {
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("{what:<44} {rate:>12.0} /s");
}

fn put_all(store: &Store, keys: &[Bytes], value: &Bytes, batch: usize) {
    for batch in keys.chunks(batch) {
        let mut writer = store.writer();
        for key in batch {
            writer.begin();
            writer.put(key.clone(), value.clone(), LeaseId(0));
            writer.end();
        }
        black_box(writer.commit().expect("the trivial store does not fail"));
    }
}

fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let keys: Vec<Bytes> = scattered(count).map(key).collect();
    let value = Bytes::from(vec![b'v'; 100]);
    let store = Store::empty(Arc::new(Trivial::default()));

    let (held, start) = (HELD.load(Ordering::Relaxed), Instant::now());
    put_all(&store, &keys, &value, 100);
    report("put new keys, scattered, 100 per commit", count, start);
    let per_key = (HELD.load(Ordering::Relaxed) - held) / count;
    println!("{:<44} {per_key:>12} B, {} of them the key", "memory per key", keys[0].len());

    let start = Instant::now();
    put_all(&store, &keys, &value, 100);
    report("put again, scattered, 100 per commit", count, start);
    let start = Instant::now();
    put_all(&store, &keys, &value, 1);
    report("put again, scattered, 1 per commit", count, start);
    let hot = &keys[..1000.min(count)];
    let start = Instant::now();
    for _ in 0..count / hot.len() {
        put_all(&store, hot, &value, 100);
    }
    report("put 1000 hot keys, 100 per commit", count, start);

    let view = store.read();
    let start = Instant::now();
    for key in &keys {
        black_box(view.head(key));
    }
    report("head, scattered", count, start);
    let all =
        KeyRange::from_wire(Bytes::from_static(b"/registry/"), Bytes::from_static(b"/registry0"));
    let counting = RangeQuery { count_only: true, ..RangeQuery::all(all.clone()) };
    let start = Instant::now();
    black_box(view.range(&counting).expect("the newest revision can be read"));
    report("count", count, start);
    let start = Instant::now();
    let listing = RangeQuery { keys_only: true, ..RangeQuery::all(all.clone()) };
    black_box(view.range(&listing).expect("the newest revision can be read"));
    report("list keys only", count, start);

    let mut writer = store.writer();
    let revision = writer.revision();
    writer.compact(revision).expect("nothing was compacted before");
    writer.commit().expect("the trivial store does not fail");
    let (start, mut longest) = (Instant::now(), 0);
    loop {
        let step = Instant::now();
        let more = store.compact_step(500) == Sweep::More;
        longest = longest.max(step.elapsed().as_micros());
        if !more {
            break;
        }
    }
    report("sweep, keys", count, start);
    println!("{:<44} {longest:>12} us, garbage {}", "longest step of 500", store.garbage().len());

    let (mut image, start) = (Vec::new(), Instant::now());
    store.write_image(&mut image).expect("a vector takes everything");
    report("write image, keys", count, start);
    println!("{:<44} {:>12} B", "image", image.len());
    let start = Instant::now();
    let revs = Arc::new(Trivial::default());
    black_box(Store::restore(revs, &mut image.as_slice()).expect("the image was just written"));
    report("restore image, keys", count, start);
}
