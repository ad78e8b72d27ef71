//! Measures the engines: `cargo run --release -p revlog --example measure -- [records] [value bytes]`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a measurement needs a clock"
)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use disk::OsDisk;
use revlog::{Record, RevLog, RevLogOptions, RevStore, SledOptions, SledStore};
use types::{LogIndex, RecordRevision};

const BATCH: i64 = 100;

fn at(main: i64) -> RecordRevision {
    RecordRevision { main, sub: 0 }
}

/// Where a part of the measurement begins, by the clock and by the CPU time of this thread.
struct Start {
    clock: Instant,
    cpu: f64,
}

impl Start {
    fn now() -> Self {
        Self { clock: Instant::now(), cpu: cpu_seconds() }
    }
}

/// The CPU time of this thread, as Linux counts it. On a busy machine it tells more than the clock.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn report(what: &str, count: i64, start: Start) {
    let (seconds, cpu) = (start.clock.elapsed().as_secs_f64(), cpu_seconds() - start.cpu);
    let (rate, cpu_rate) = (count as f64 / seconds / 1e6, count as f64 / cpu / 1e6);
    println!("{what:<24} {rate:>8.3} M/s in {seconds:.3} s; {cpu_rate:>8.3} M per CPU second");
}

fn measure(name: &str, records: i64, value: usize, open: &dyn Fn() -> Arc<dyn RevStore>) {
    println!("== {name}: {records} records of {value} bytes");
    let store = open();
    let payload: Bytes = (0..value).map(|i| (i * 7) as u8).collect::<Vec<u8>>().into();
    let start = Start::now();
    for first in (1..=records).step_by(BATCH as usize) {
        let batch: Vec<Record> = (first..first + BATCH)
            .map(|n| Record { revision: at(n), tombstone: false, key_value: payload.clone() })
            .collect();
        store.append(&batch).expect("append");
    }
    report("append, batches of 100", records, start);
    let start = Start::now();
    store.flush(LogIndex(1)).expect("flush");
    report("flush", records, start);
    let reads = records.min(2_000_000);
    let mut seed = 1u64;
    let start = Start::now();
    for _ in 0..reads {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let main = (seed >> 33) as i64 % records + 1;
        assert!(store.get(at(main)).expect("get").is_some());
    }
    report("get, random", reads, start);
    let start = Start::now();
    let mut seen = 0;
    let visit = &mut |_| {
        seen += 1;
        ControlFlow::Continue(())
    };
    store.scan(at(0), at(i64::MAX), visit).expect("scan");
    assert_eq!(seen, records);
    report("scan", records, start);
    let start = Start::now();
    let half: Vec<RecordRevision> = (1..=records / 2).map(at).collect();
    for chunk in half.chunks(10_000) {
        store.remove(chunk).expect("remove");
    }
    report("remove oldest half", records / 2, start);
    println!("size {:?}", store.size());
    drop(store);
    let start = Start::now();
    let store = open();
    report("reopen", records, start);
    drop(store);
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let records = arguments.next().unwrap_or(2_000_000);
    let value = arguments.next().unwrap_or(300) as usize;
    let root = tempfile::tempdir_in(".").expect("a directory");
    measure("revlog", records, value, &|| {
        let path = root.path().join("revlog");
        let options = RevLogOptions::default();
        Arc::new(RevLog::open(Arc::new(OsDisk::new()), path, options).expect("open"))
    });
    measure("sled", records / 10, value, &|| {
        Arc::new(SledStore::open(&root.path().join("sled"), SledOptions::default()).expect("open"))
    });
}
