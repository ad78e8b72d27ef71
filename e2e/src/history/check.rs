//! The checks; the module above says why they suffice.

use std::collections::BTreeMap;

use thiserror::Error;

use super::{Answer, Call, Event, Key, KeyValue, Outcome, Request, Timeline};

/// Something that a correct store does not do. Calls are named by their place in the history.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// A watch from the beginning has left something out or gone back.
    #[error("the watch delivers revision {next} after {after}")]
    HistoryHasGap {
        /// The revision before.
        after: i64,
        /// The revision of the event.
        next: i64,
    },
    /// Version or create revision are not those that the earlier events lead to.
    #[error("{event:?} should have put {expected:?}")]
    EventDoesNotFollow {
        /// The event.
        event: Event,
        /// What it should be.
        expected: KeyValue,
    },
    /// A key that did not exist was deleted.
    #[error("{event:?} deletes what is not there")]
    DeleteOfNothing {
        /// The event.
        event: Event,
    },
    /// A write that was acknowledged is not in the history: lost, or never done.
    #[error("acknowledged write {call} is not at its revision {revision}: found {found:?}")]
    LostWrite {
        /// The call.
        call: usize,
        /// The revision it was acknowledged with.
        revision: i64,
        /// What is there.
        found: Vec<Event>,
    },
    /// A write took effect twice.
    #[error("write {call} took effect at revision {revision} and before")]
    WrittenTwice {
        /// The call.
        call: usize,
        /// The second revision.
        revision: i64,
    },
    /// An event that no call explains.
    #[error("nobody has written {event:?}")]
    Phantom {
        /// The event.
        event: Event,
    },
    /// A transaction wrote although its comparison did not hold.
    #[error("swap {call} wrote at revision {revision} although its key was at {found}")]
    WrongComparison {
        /// The call.
        call: usize,
        /// The revision.
        revision: i64,
        /// The modification revision of the key before.
        found: i64,
    },
    /// A read has answered what was not the state at its revision.
    #[error("call {call} read {found:?} at revision {revision}, where {expected:?} was")]
    WrongRead {
        /// The call.
        call: usize,
        /// The revision it was answered with.
        revision: i64,
        /// The answer.
        found: Vec<KeyValue>,
        /// The state.
        expected: Vec<KeyValue>,
    },
    /// A call has a revision that the store had left before the call began.
    #[error("call {call} has revision {revision}, but revision {floor} was seen before it began")]
    Stale {
        /// The call.
        call: usize,
        /// Its revision.
        revision: i64,
        /// The newest revision that was answered before.
        floor: i64,
    },
    /// A read has seen a write that had not begun.
    #[error("call {call} read revision {revision}, which began after it was answered")]
    FromTheFuture {
        /// The call.
        call: usize,
        /// Its revision.
        revision: i64,
    },
    /// The state of one member went back in time on one connection.
    #[error("call {call} read revision {revision} after {before} on the same connection")]
    WentBack {
        /// The call.
        call: usize,
        /// Its revision.
        revision: i64,
        /// An earlier read's.
        before: i64,
    },
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Calls in all.
    pub calls: usize,
    /// Calls that were answered.
    pub answered: usize,
    /// Writes that were acknowledged.
    pub acknowledged_writes: usize,
    /// Writes without an answer that took effect nevertheless.
    pub resolved_writes: usize,
    /// Reads, also those of comparisons that did not hold.
    pub reads: usize,
}

/// Checks a history against the states that the store has gone through.
pub fn check(calls: &[Call], timeline: &Timeline) -> (Checked, Vec<Violation>) {
    let mut checker = Checker::new(calls, timeline);
    checker.place_calls();
    checker.place_unanswered_deletes();
    checker.find_phantoms();
    checker.check_time();
    checker.check_serializable_reads();
    (checker.checked, checker.violations)
}

struct Checker<'a> {
    calls: &'a [Call],
    timeline: &'a Timeline,
    /// Where each linearizable call is in the order: its revision, and whether it made it.
    places: Vec<Option<Place>>,
    /// Which call made a revision.
    owners: BTreeMap<i64, usize>,
    checked: Checked,
    violations: Vec<Violation>,
}

#[derive(Clone, Copy)]
struct Place {
    revision: i64,
    writes: bool,
}

impl<'a> Checker<'a> {
    fn new(calls: &'a [Call], timeline: &'a Timeline) -> Checker<'a> {
        let answered = calls.iter().filter(|call| call.answered.is_some()).count();
        Checker {
            calls,
            timeline,
            places: vec![None; calls.len()],
            owners: BTreeMap::new(),
            checked: Checked { calls: calls.len(), answered, ..Checked::default() },
            violations: Vec::new(),
        }
    }

    fn place_calls(&mut self) {
        let mut written = BTreeMap::new();
        for (revision, events) in self.timeline.revisions() {
            for put in events.iter().filter_map(|event| event.put.as_ref()) {
                written.entry(put.value).or_insert_with(Vec::new).push(revision);
            }
        }
        for (index, call) in self.calls.iter().enumerate() {
            match &call.answered {
                Some((_, answer)) => self.place_answered(index, &call.request, answer),
                None => self.place_unanswered(index, &call.request, &written),
            }
            for (_, value) in call.request.puts() {
                for revision in written.get(&value).into_iter().flatten().skip(1) {
                    let revision = *revision;
                    self.violations.push(Violation::WrittenTwice { call: index, revision });
                    self.owners.insert(revision, index);
                }
            }
        }
    }

    fn place_answered(&mut self, index: usize, request: &Request, answer: &Answer) {
        let revision = answer.revision;
        match (&answer.outcome, request) {
            (Outcome::Written | Outcome::Deleted(true), _) => {
                self.checked.acknowledged_writes += 1;
                self.place_write(index, request, revision);
            }
            (Outcome::Deleted(false), Request::Delete { key }) => {
                self.place_read(index, revision, Some(*key), &[]);
            }
            (Outcome::Found(found), Request::Swap { key, expected, .. }) => {
                let at = self.timeline.at(*key, revision).map_or(0, |state| state.mod_revision);
                if at == *expected {
                    let found = at;
                    self.violations.push(Violation::WrongComparison {
                        call: index,
                        revision,
                        found,
                    });
                }
                self.place_read(index, revision, Some(*key), found);
            }
            (Outcome::Found(found), Request::Read { key, serializable }) => {
                self.check_read(index, revision, *key, found);
                if !serializable {
                    self.places[index] = Some(Place { revision, writes: false });
                }
            }
            (outcome, request) => unreachable!("{outcome:?} is no answer to {request:?}"),
        }
    }

    fn place_unanswered(
        &mut self,
        index: usize,
        request: &Request,
        written: &BTreeMap<u64, Vec<i64>>,
    ) {
        let first = request.puts().next().and_then(|(_, value)| written.get(&value)?.first());
        if let Some(revision) = first {
            self.checked.resolved_writes += 1;
            self.place_write(index, request, *revision);
        }
    }

    fn place_write(&mut self, index: usize, request: &Request, revision: i64) {
        let events = self.timeline.events(revision);
        let found = events.iter().map(|event| (event.key, event.put.as_ref().map(|put| put.value)));
        let mut found: Vec<(Key, Option<u64>)> = found.collect();
        let mut wanted: Vec<(Key, Option<u64>)> = match request {
            Request::Delete { key } => vec![(*key, None)],
            _ => request.puts().map(|(key, value)| (key, Some(value))).collect(),
        };
        found.sort_unstable();
        wanted.sort_unstable();
        if found != wanted {
            let found = events.to_vec();
            self.violations.push(Violation::LostWrite { call: index, revision, found });
            return;
        }
        if self.owners.insert(revision, index).is_some() {
            self.violations.push(Violation::WrittenTwice { call: index, revision });
        }
        if let Request::Swap { key, expected, .. } = request {
            let found = self.timeline.at(*key, revision - 1).map_or(0, |state| state.mod_revision);
            if found != *expected {
                self.violations.push(Violation::WrongComparison { call: index, revision, found });
            }
        }
        self.places[index] = Some(Place { revision, writes: true });
    }

    fn place_read(&mut self, index: usize, revision: i64, key: Option<Key>, found: &[KeyValue]) {
        self.check_read(index, revision, key, found);
        self.places[index] = Some(Place { revision, writes: false });
    }

    fn check_read(&mut self, index: usize, revision: i64, key: Option<Key>, found: &[KeyValue]) {
        self.checked.reads += 1;
        let expected = match key {
            Some(key) => self.timeline.at(key, revision).cloned().into_iter().collect(),
            None => self.timeline.state(revision),
        };
        if expected != found || revision > self.timeline.last() {
            let found = found.to_vec();
            self.violations.push(Violation::WrongRead { call: index, revision, found, expected });
        }
    }

    /// Deletes write no value that would tell who made them. The deletes of a key that nobody has
    /// acknowledged are given to its unanswered calls in order: the earliest call may have any of
    /// the revisions that a later one may have.
    fn place_unanswered_deletes(&mut self) {
        let mut unanswered: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for (index, call) in self.calls.iter().enumerate().rev() {
            if let (Request::Delete { key }, None) = (&call.request, &call.answered) {
                unanswered.entry(*key).or_default().push(index);
            }
        }
        for calls in unanswered.values_mut() {
            calls.sort_by_key(|index| std::cmp::Reverse(self.calls[*index].called));
        }
        for (revision, events) in self.timeline.revisions() {
            let [Event { key, put: None, .. }] = events else { continue };
            if self.owners.contains_key(&revision) {
                continue;
            }
            if let Some(index) = unanswered.get_mut(key).and_then(Vec::pop) {
                self.owners.insert(revision, index);
                self.places[index] = Some(Place { revision, writes: true });
                self.checked.resolved_writes += 1;
            }
        }
    }

    fn find_phantoms(&mut self) {
        for (revision, events) in self.timeline.revisions() {
            if !self.owners.contains_key(&revision) {
                let phantoms = events.iter().cloned().map(|event| Violation::Phantom { event });
                self.violations.extend(phantoms);
            }
        }
    }

    /// Calls that were answered before another began must not come after it in the order. This also
    /// finds a read of a write that began later: the write then has a revision below the read's.
    fn check_time(&mut self) {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (index, call) in self.calls.iter().enumerate() {
            if self.places[index].is_some() {
                moments.push((call.called, false, index));
                if let Some((returned, _)) = &call.answered {
                    moments.push((*returned, true, index));
                }
            }
        }
        // At the same instant a call begins before another ends: they overlap.
        moments.sort_unstable();
        let mut floor = 0;
        for (_, ends, index) in moments {
            let Some(place) = self.places[index] else { continue };
            if ends {
                floor = floor.max(place.revision);
            } else if place.revision < floor + i64::from(place.writes) {
                let revision = place.revision;
                self.violations.push(Violation::Stale { call: index, revision, floor });
            }
        }
    }

    fn check_serializable_reads(&mut self) {
        // By revision: when the last of the calls that made it and all before began.
        let mut latest = 0;
        let begun: BTreeMap<i64, u64> = self
            .owners
            .iter()
            .map(|(revision, owner)| {
                latest = self.calls[*owner].called.max(latest);
                (*revision, latest)
            })
            .collect();
        let mut newest: BTreeMap<(u32, u64), i64> = BTreeMap::new();
        let mut order: Vec<usize> = (0..self.calls.len()).collect();
        order.sort_by_key(|index| self.calls[*index].called);
        for call in order {
            let Call { request, answered: Some((returned, answer)), .. } = &self.calls[call] else {
                continue;
            };
            let Request::Read { serializable: true, .. } = request else { continue };
            let revision = answer.revision;
            if begun.get(&revision).is_some_and(|began| began > returned) {
                self.violations.push(Violation::FromTheFuture { call, revision });
            }
            let connection = (self.calls[call].client, self.calls[call].connection);
            let before = newest.entry(connection).or_insert(revision);
            if *before > revision {
                let before = *before;
                self.violations.push(Violation::WentBack { call, revision, before });
            }
            *before = revision.max(*before);
        }
    }
}

impl Request {
    /// What is put if all goes well.
    pub fn puts(&self) -> impl Iterator<Item = (Key, u64)> {
        let (one, many) = match self {
            Request::Put { key, value } => (Some((*key, *value)), &[][..]),
            Request::Swap { puts, .. } => (None, puts.as_slice()),
            Request::Delete { .. } | Request::Read { .. } => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().copied())
    }
}
