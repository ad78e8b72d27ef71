//! Measures one append with one sync through the log against a bare write with `fdatasync`.
//!
//! ```text
//! cargo run --release -p wal --example append_latency -- [directory]
//! ```
//!
//! Prints microseconds at the median and the 99th percentile, for several group sizes: into a bare
//! growing file, over bare zeros, and through the log with its checksums, marks and segment changes.
#![allow(
    clippy::disallowed_methods,
    reason = "a measuring program reads the clock; the log itself never does"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Disk, OpenMode, OsDisk};
use types::{ClusterId, LogIndex, MemberId, Term};
use wal::{Identity, LogEntry, LogId, Options, Record, Wal};

const ROUNDS: usize = 2_000;

fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("wal-append-latency-{}", std::process::id()));
    OsDisk.create_dir_all(&root)?;
    println!("{:>8}  {:>20}  {:>20}  {:>20}", "bytes", "growing file", "over zeros", "log");
    for bytes in [300, 4 * 1024, 64 * 1024, 512 * 1024] {
        let rounds = if bytes > 100_000 { ROUNDS / 8 } else { ROUNDS };
        let growing = bare(&root.join("growing"), bytes, rounds, false)?;
        let zeros = bare(&root.join("zeros"), bytes, rounds, true)?;
        let log = through_log(&root.join("wal"), bytes, rounds)?;
        println!("{bytes:>8}  {}  {}  {}", show(growing), show(zeros), show(log));
    }
    OsDisk.remove_dir_all(&root)?;
    Ok(())
}

fn bare(
    path: &Path,
    bytes: usize,
    rounds: usize,
    zero_fill: bool,
) -> anyhow::Result<Vec<Duration>> {
    let file = OsDisk.open(path, OpenMode::Create)?;
    if zero_fill {
        for round in 0..rounds {
            file.write_all_at(&vec![0; bytes], (round * bytes) as u64)?;
        }
        file.sync_all()?;
    }
    let payload = vec![0xa5; bytes];
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let start = Instant::now();
        file.write_all_at(&payload, (round * bytes) as u64)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    OsDisk.remove_file(path)?;
    Ok(times)
}

fn through_log(directory: &Path, bytes: usize, rounds: usize) -> anyhow::Result<Vec<Duration>> {
    let identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(1) };
    let (mut wal, _) = Wal::open(Arc::new(OsDisk), directory, identity, Options::default())?;
    while wal.prepare()? {}
    let payload = Bytes::from(vec![0xa5; bytes]);
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let id = LogId { term: Term(1), node: MemberId(1), index: LogIndex(round as u64) };
        let record = Record::Entry(LogEntry { id, kind: 0, payload: payload.clone() });
        let start = Instant::now();
        wal.append(&[record])?;
        wal.sync()?;
        times.push(start.elapsed());
    }
    drop(wal);
    OsDisk.remove_dir_all(directory)?;
    Ok(times)
}

fn show(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |per_cent: usize| times[(times.len() - 1) * per_cent / 100].as_micros();
    format!("{:>7} / {:>7} us", at(50), at(99))
}
