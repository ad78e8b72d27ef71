//! Whether the machine itself stood still: a thread that wants to run ten times a second, and notes when it
//! could not.
//!
//! A virtual machine is now and then stopped for seconds, with all that is on it. Deadlines that pass
//! meanwhile say nothing about the program that was to meet them.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;

const BEAT: Duration = Duration::from_millis(100);
/// A beat that is so late counts.
const LATE: Duration = Duration::from_millis(500);
/// For so long after it a standstill shows in what other programs say: they all want to run at once.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The thread, while it runs.
pub(crate) struct Pulse {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Standstill>>,
}

/// A time in which nothing ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standstill {
    pub(crate) end: Timestamp,
    pub(crate) lasted: Duration,
}

impl Pulse {
    pub(crate) fn start() -> Pulse {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut found = Vec::new();
            loop {
                let begin = Instant::now();
                if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                    return found;
                }
                let lasted = begin.elapsed().saturating_sub(BEAT);
                if lasted >= LATE {
                    found.push(Standstill { end: Timestamp::now(), lasted });
                }
            }
        });
        Pulse { stop, thread }
    }

    /// Ends the thread, and tells what it has seen.
    pub(crate) fn end(self) -> Vec<Standstill> {
        drop(self.stop);
        self.thread.join().expect("the thread returns what it has found")
    }
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
        let standstill = Standstill { end, lasted: Duration::from_secs(3) };
        for (second, explained) in [(23, false), (24, true), (27, true), (29, true), (30, false)] {
            let time = format!("2026-11-23T13:55:{second}Z").parse().unwrap();
            assert_eq!(standstill.explains(time), explained, "{second}");
        }
    }
}
