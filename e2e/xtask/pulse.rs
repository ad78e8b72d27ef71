//! Whether the machine itself stood still, or its disk: two threads do next to nothing a few times a second,
//! and note when it took long.
//!
//! A virtual machine is now and then stopped with all that is on it, and its disk makes everybody wait while
//! a large file system is unmounted or a large file removed. Deadlines that pass meanwhile say nothing about
//! the program that was to meet them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;

const BEAT: Duration = Duration::from_millis(100);
/// A beat that is so late counts.
const LATE: Duration = Duration::from_millis(500);
/// Between two writes to the disk.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// A write that takes so long counts: a request that comes during one waits for that and for its own.
const SLOW: Duration = Duration::from_millis(400);
/// For so long after it a standstill shows in what other programs say: they all want to run at once.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The threads, while they run.
pub(crate) struct Pulse {
    /// Closed at the end.
    running: Vec<Sender<()>>,
    threads: Vec<JoinHandle<Vec<Standstill>>>,
}

/// A time in which something stood still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standstill {
    pub(crate) what: &'static str,
    pub(crate) end: Timestamp,
    pub(crate) lasted: Duration,
}

impl Pulse {
    /// Begins, with a file of its own in the directory.
    pub(crate) fn start(directory: &Path) -> Result<Pulse> {
        let what = || format!("write in {}", directory.display());
        let file = tempfile::tempfile_in(directory).with_context(what)?;
        // What is written over again needs no space, as a log that has its space.
        flush(&file).with_context(what)?;
        let (machine_runs, stopped) = mpsc::channel();
        let machine = thread::spawn(move || of_the_machine(&stopped));
        let (disk_runs, stopped) = mpsc::channel();
        let disk = thread::spawn(move || of_the_disk(&stopped, &file));
        Ok(Pulse { running: vec![machine_runs, disk_runs], threads: vec![machine, disk] })
    }

    /// Ends the threads, and tells what they have seen.
    pub(crate) fn end(self) -> Vec<Standstill> {
        drop(self.running);
        let found = self.threads.into_iter().map(|thread| thread.join());
        found.flat_map(|found| found.expect("the threads return what they have found")).collect()
    }
}

/// Waits, and answers whether it goes on.
fn goes_on(stopped: &Receiver<()>, pause: Duration) -> bool {
    stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
}

fn of_the_machine(stopped: &Receiver<()>) -> Vec<Standstill> {
    let mut found = Vec::new();
    loop {
        let begin = Instant::now();
        if !goes_on(stopped, BEAT) {
            return found;
        }
        let lasted = begin.elapsed().saturating_sub(BEAT);
        if lasted >= LATE {
            found.push(Standstill { what: "the machine", end: Timestamp::now(), lasted });
        }
    }
}

fn of_the_disk(stopped: &Receiver<()>, file: &File) -> Vec<Standstill> {
    let mut found = Vec::new();
    while goes_on(stopped, FLUSH_EVERY) {
        let begin = Instant::now();
        // A disk that fails is the store's matter: it stops.
        let _ = flush(file);
        let lasted = begin.elapsed();
        if lasted >= SLOW {
            found.push(Standstill { what: "the disk", end: Timestamp::now(), lasted });
        }
    }
    found
}

fn flush(file: &File) -> io::Result<()> {
    file.write_all_at(&[0; 4096], 0)?;
    file.sync_data()
}

impl Standstill {
    /// Whether what happened at this time may come from it.
    pub(crate) fn explains(&self, time: Timestamp) -> bool {
        self.end - self.lasted <= time && time <= self.end + AFTERMATH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_explains_what_happens_in_it_and_shortly_after() {
        let end: Timestamp = "2026-11-23T13:55:27Z".parse().unwrap();
        let standstill = Standstill { what: "the disk", end, lasted: Duration::from_secs(3) };
        for (second, explained) in [(23, false), (24, true), (27, true), (29, true), (30, false)] {
            let time = format!("2026-11-23T13:55:{second}Z").parse().unwrap();
            assert_eq!(standstill.explains(time), explained, "{second}");
        }
    }

    #[test]
    fn the_threads_end_when_they_are_told() {
        let directory = tempfile::tempdir().unwrap();
        Pulse::start(directory.path()).unwrap().end();
        assert!(Pulse::start(&directory.path().join("missing")).is_err());
    }
}
