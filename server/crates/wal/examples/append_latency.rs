//! Measures one append with one sync through the log against a bare write with `fdatasync`.
//!
//! ```text
//! cargo run --release -p wal --example append_latency -- [directory]
//! ```
//!
//! Prints microseconds at the median and the 99th percentile, for several group sizes: into a bare
//! growing file, over bare zeros, through a new log (which fills its next segments with zeros as it
//! goes), and through a log that purges and so reuses its segments.
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

const SEGMENT_BYTES: usize = 16 * 1024 * 1024;

fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("wal-append-latency-{}", std::process::id()));
    OsDisk.create_dir_all(&root)?;
    let columns = ["growing file", "over zeros", "new log", "purged log"];
    println!("{:>8}  {}", "bytes", columns.map(|name| format!("{name:>20}")).join("  "));
    for bytes in [300, 4 * 1024, 64 * 1024, 512 * 1024] {
        let rounds = if bytes > 100_000 { ROUNDS / 8 } else { ROUNDS };
        let growing = bare(&root.join("growing"), bytes, rounds, false)?;
        let zeros = bare(&root.join("zeros"), bytes, rounds, true)?;
        let new = through_log(&root.join("wal"), bytes, rounds, 0)?;
        let purged = through_log(&root.join("wal"), bytes, rounds, 3 * SEGMENT_BYTES / bytes)?;
        let columns = [growing, zeros, new, purged].map(show);
        println!("{bytes:>8}  {}", columns.join("  "));
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

/// With `purge_every` above 0, the first entries are not measured: they grow the log until segments
/// are reused.
fn through_log(
    directory: &Path,
    bytes: usize,
    rounds: usize,
    purge_every: usize,
) -> anyhow::Result<Vec<Duration>> {
    let identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(1) };
    let options = Options {
        segment_bytes: SEGMENT_BYTES as u64,
        spare_segments_max: 4,
        ..Options::default()
    };
    let (mut wal, _) = Wal::open(Arc::new(OsDisk), directory, identity, options)?;
    while wal.prepare()? {}
    let warm_up = if purge_every > 0 { 5 * SEGMENT_BYTES / bytes } else { 0 };
    let payload = Bytes::from(vec![0xa5; bytes]);
    let mut times = Vec::with_capacity(rounds);
    for round in 0..warm_up + rounds {
        let id = LogId { term: Term(1), node: MemberId(1), index: LogIndex(round as u64) };
        let record = Record::Entry(LogEntry { id, kind: 0, payload: payload.clone() });
        let start = Instant::now();
        wal.append(&[record])?;
        if round < warm_up {
            continue;
        }
        wal.sync()?;
        times.push(start.elapsed());
        if purge_every > 0 && (round - warm_up) % purge_every == 0 {
            wal.purge(id)?;
        }
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
