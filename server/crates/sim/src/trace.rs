//! What happened, as one rolling hash and, of the last moments, as text.
//!
//! Every message, every step of a client and every fault goes through [`Trace::note`]; two runs of one
//! seed must end with the same hash. The text of the last notes is printed when a run fails.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::counts::{Counts, Event};

/// How many notes are kept for the report of a failure.
const KEPT: usize = 400;

/// The record of one run; clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    start: Instant,
    hash: u64,
    notes: u64,
    last: VecDeque<String>,
    /// Print every note as it comes.
    verbose: bool,
    violation: Option<String>,
    counts: Counts,
    counting: bool,
}

impl Trace {
    /// An empty record that begins now.
    pub fn new(verbose: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            notes: 0,
            last: VecDeque::new(),
            verbose,
            violation: None,
            counts: Counts::default(),
            counting: true,
        })))
    }

    /// Notes that something happened now.
    #[allow(clippy::print_stdout, reason = "the verbose trace is what was asked for")]
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let mut state = self.state();
        let line = format!("{:>9.3}s {what}", state.start.elapsed().as_secs_f64());
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        state.notes += 1;
        if state.verbose {
            println!("{line}");
        }
        if state.last.len() == KEPT {
            state.last.pop_front();
        }
        state.last.push_back(line);
    }

    /// Mixes a number into the hash without a note.
    pub fn mix(&self, number: u64) {
        let mut state = self.state();
        state.hash = (state.hash ^ number).wrapping_mul(0x0100_0000_01b3);
    }

    /// Counts what happened now.
    pub fn count(&self, event: Event) {
        self.count_times(event, 1);
    }

    /// Counts what happened several times.
    pub fn count_times(&self, event: Event, times: u64) {
        let mut state = self.state();
        if state.counting {
            state.counts.add(event, times);
        }
    }

    /// From now on nothing is counted.
    pub fn end_count(&self) {
        self.state().counting = false;
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Reports that a promise was broken; the first report is the one that counts.
    pub fn violation(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        let mut state = self.state();
        if state.violation.is_none() {
            state.violation = Some(what);
        }
    }

    /// The first broken promise.
    pub fn first_violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    /// The rolling hash so far.
    pub fn hash(&self) -> u64 {
        self.state().hash
    }

    /// How many notes there were.
    pub fn notes(&self) -> u64 {
        self.state().notes
    }

    /// The last notes, for a report.
    pub fn last(&self) -> Vec<String> {
        self.state().last.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
