//! A model of the log, scripts of random steps, and the comparison of both.
#![allow(dead_code, reason = "each test binary uses its own part of the model")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use disk::SimDisk;
use types::{ClusterId, LogIndex, MemberId, Term};
use wal::{
    Identity, LogEntry, LogId, Options, Record, RecoverError, Recovered, Vote, Wal, WalError,
};

pub(crate) const DIRECTORY: &str = "data/wal";

pub(crate) fn identity() -> Identity {
    Identity { cluster_id: ClusterId(0xc0ffee), member_id: MemberId(0xa1) }
}

/// Segments small enough that a short script rotates, recycles and splits groups.
pub(crate) fn options() -> Options {
    Options { segment_bytes: 12 * 1024, spare_segments_max: 2, ..Options::default() }
}

pub(crate) fn open(disk: &SimDisk) -> Result<(Wal, Recovered), RecoverError> {
    Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), identity(), options())
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), node: MemberId(term % 3 + 1), index: LogIndex(index) }
}

pub(crate) fn entry(term: u64, index: u64, payload_len: usize) -> LogEntry {
    let payload: Vec<u8> = (0..payload_len)
        .map(|at| (index as usize).wrapping_mul(7).wrapping_add(at) as u8)
        .collect();
    LogEntry { id: log_id(term, index), kind: (index % 5) as u8, payload: Bytes::from(payload) }
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) entries: BTreeMap<u64, LogEntry>,
}

impl State {
    fn follow(&mut self, record: &Record) {
        match record {
            Record::Entry(entry) => {
                self.entries.insert(entry.id.index.0, entry.clone());
                self.last = Some(entry.id);
            }
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(committed) => self.committed = *committed,
            Record::Truncate { after } => {
                let after_index = after.map(|id| id.index.0);
                self.entries.retain(|index, _| Some(*index) <= after_index);
                self.last = *after;
            }
            Record::Purge { upto } => {
                self.entries.retain(|index, _| *index > upto.index.0);
                let reaches = |id: Option<LogId>| id.is_none_or(|id| id.index < upto.index);
                if reaches(self.purged) {
                    self.purged = Some(*upto);
                }
                if reaches(self.last) {
                    self.last = Some(*upto);
                }
            }
        }
    }
}

/// Everything that can be read from a log.
pub(crate) fn observe(wal: &Wal) -> State {
    let reader = wal.reader();
    let mut entries = BTreeMap::new();
    if let Some((first, last)) = reader.range() {
        let read = wal.read(first, LogIndex(last.0 + 1), u64::MAX).expect("live entries are read");
        assert_eq!(read.len() as u64, last.0 - first.0 + 1, "no hole");
        for entry in read {
            assert_eq!(reader.log_id(entry.id.index), Some(entry.id));
            entries.insert(entry.id.index.0, entry);
        }
    }
    assert_eq!(reader.last(), wal.last());
    assert_eq!(reader.purged(), wal.purged());
    State {
        vote: wal.vote(),
        committed: wal.committed(),
        purged: wal.purged(),
        last: wal.last(),
        entries,
    }
}

/// The states a log went through, and which of them a crash may leave.
#[derive(Clone)]
pub(crate) struct Model {
    /// The states since the last sync, the synced one first.
    states: Vec<State>,
    /// States of failed appends, which a crash may bring to light until the next append passes.
    unknown: Vec<State>,
    pub(crate) term: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self { states: vec![State::default()], unknown: Vec::new(), term: 1 }
    }
}

impl Model {
    pub(crate) fn state(&self) -> &State {
        self.states.last().expect("never empty")
    }

    pub(crate) fn synced_state(&self) -> &State {
        self.states.first().expect("never empty")
    }

    fn synced(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    /// Runs an append on both.
    pub(crate) fn append(&mut self, wal: &mut Wal, records: &[Record]) -> Result<(), WalError> {
        let mut states = Vec::new();
        let mut state = self.state().clone();
        for record in records {
            state.follow(record);
            states.push(state.clone());
        }
        match wal.append(records) {
            Ok(()) => {
                self.states.extend(states);
                self.unknown.clear();
                Ok(())
            }
            Err(error) => {
                self.unknown.extend(states);
                Err(error)
            }
        }
    }

    pub(crate) fn sync(&mut self, wal: &mut Wal) -> Result<(), WalError> {
        wal.sync()?;
        self.synced();
        Ok(())
    }

    pub(crate) fn purge(&mut self, wal: &mut Wal, upto: LogId) -> Result<(), WalError> {
        let mut state = self.state().clone();
        state.follow(&Record::Purge { upto });
        match wal.purge(upto) {
            Ok(()) => {
                self.states = vec![state];
                self.unknown.clear();
                Ok(())
            }
            Err(error) => {
                self.unknown.push(state);
                Err(error)
            }
        }
    }

    /// Checks what a start found: one of the states since the last sync, nothing else.
    pub(crate) fn check_recovered(&mut self, wal: &Wal, context: &str) {
        let found = observe(wal);
        let allowed = self.states.iter().chain(&self.unknown).any(|state| *state == found);
        if !allowed {
            let brief = |state: &State| {
                let range = state.entries.keys().next().zip(state.entries.keys().next_back());
                format!(
                    "vote {:?} committed {:?} purged {:?} last {:?} entries {range:?}",
                    state.vote, state.committed, state.purged, state.last
                )
            };
            panic!(
                "{context}: the start found what was never there\nfound  {}\nsynced {}\nlatest {}",
                brief(&found),
                brief(self.synced_state()),
                brief(self.state()),
            );
        }
        self.states = vec![found];
        self.unknown.clear();
    }
}

/// SplitMix64, so that a failing seed is the whole recipe.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One random step on the log and the model.
pub(crate) fn step(wal: &mut Wal, model: &mut Model, chance: &mut Chance) -> Result<(), WalError> {
    match chance.below(20) {
        0..=7 => {
            let count = chance.below(5) + 1;
            let next = model.state().last.map_or(0, |last| last.index.0 + 1);
            let mut records = Vec::new();
            for index in next..next + count {
                let payload_len = match chance.below(10) {
                    0 => 3_000,
                    1..=3 => 0,
                    _ => chance.below(400) as usize,
                };
                records.push(Record::Entry(entry(model.term, index, payload_len)));
            }
            if chance.below(4) == 0 {
                records.push(Record::Committed(model.state().last));
            }
            model.append(wal, &records)
        }
        8 | 9 => {
            model.term += chance.below(2);
            let committed = chance.below(2) == 0;
            let vote = Vote { term: Term(model.term), node: MemberId(3), committed };
            model.append(wal, &[Record::Vote(vote)])
        }
        10 => {
            let state = model.state();
            let lowest = state.entries.keys().next().copied();
            let Some((lowest, last)) = lowest.zip(state.last) else { return Ok(()) };
            let index = lowest + chance.below(last.index.0 - lowest + 1);
            let after = state.entries.get(&index).map(|entry| entry.id);
            model.term += 1;
            // A new leader's entries follow the cut in the same group, as openraft would have it.
            let records =
                [Record::Truncate { after }, Record::Entry(entry(model.term, index + 1, 50))];
            model.append(wal, &records)
        }
        11 | 12 => {
            let Some(last) = model.state().last else { return Ok(()) };
            let purged = model.state().purged.map_or(0, |purged| purged.index.0);
            if chance.below(8) == 0 {
                // After a snapshot the log goes on beyond its end.
                let ahead = chance.below(20) + 1;
                return model.purge(wal, log_id(model.term, last.index.0 + ahead));
            }
            let index = purged + chance.below(last.index.0.saturating_sub(purged) + 1);
            match model.state().entries.get(&index).map(|entry| entry.id) {
                Some(upto) => model.purge(wal, upto),
                None => Ok(()),
            }
        }
        13 => wal.mark(),
        14 => wal.prepare().map(|_| ()),
        _ => model.sync(wal),
    }
}
