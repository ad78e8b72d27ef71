//! Events read back from the history, for watchers that start in the past or fell behind.

use std::ops::ControlFlow;
use std::sync::Arc;

use revlog::Record;
use types::{RecordRevision, Revision};

use crate::event::{Event, EventKind, RevisionEvents};
use crate::index::{before, fault};
use crate::key_value::{KeyValue, encode_deletion};
use crate::query::RangeError;
use crate::store::{CHUNK, Shared};

/// Where reading stops: after the revision that reaches either.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

pub(crate) fn between(
    shared: &Shared,
    from: i64,
    until: i64,
    limits: Limits,
) -> Result<Vec<RevisionEvents>, RangeError> {
    let (revs, until) = {
        let index = shared.read();
        index.check()?;
        if from < index.compact_revision {
            return Err(RangeError::Compacted);
        }
        (Arc::clone(&index.revs), until.min(index.revision + 1))
    };
    if from >= until {
        return Ok(Vec::new());
    }
    let (mut records, mut bytes) = (Vec::new(), 0);
    let mut visit = |record: Record| {
        let full = records.len() >= limits.events.max(1) || bytes >= limits.bytes;
        let splits = |last: &Record| last.revision.main == record.revision.main;
        if full && !records.last().is_some_and(splits) {
            return ControlFlow::Break(());
        }
        bytes += record.key_value.len();
        records.push(record);
        ControlFlow::Continue(())
    };
    let first = RecordRevision::first_of(Revision(from));
    let scanned = revs.scan(first, RecordRevision::first_of(Revision(until)), &mut visit);
    let events = records.into_iter().map(event).collect::<Result<Vec<_>, _>>();
    let events = events.and_then(|mut events| find_previous(shared, &mut events).map(|()| events));
    // Only now is it known that no compaction took records away while they were read.
    if from < shared.read().compact_revision {
        return Err(RangeError::Compacted);
    }
    scanned?;
    Ok(group(events?))
}

/// The event of a record, without its previous version.
fn event(record: Record) -> Result<Event, RangeError> {
    let kv = KeyValue::decode(&record.key_value)
        .map_err(|error| fault(format!("record {}: {error}", record.revision)))?;
    let main = record.revision.main;
    let (kind, key_value) = match record.tombstone {
        true => (EventKind::Delete, encode_deletion(&kv.key, main)),
        false => (EventKind::Put, record.key_value),
    };
    let create = kind == EventKind::Put && kv.create_revision == main;
    Ok(Event { kind, key: kv.key, key_value, record: record.revision, previous: None, create })
}

fn find_previous(shared: &Shared, events: &mut [Event]) -> Result<(), RangeError> {
    for chunk in events.chunks_mut(CHUNK) {
        let index = shared.read();
        index.check()?;
        for event in chunk.iter_mut().filter(|event| !event.create) {
            if event.record.main > index.compact_revision {
                let history = index.get(&event.key);
                let previous = history.and_then(|history| before(history, event.record.main));
                event.previous = previous.map(|version| version.record());
            }
        }
    }
    Ok(())
}

fn group(events: Vec<Event>) -> Vec<RevisionEvents> {
    let mut groups: Vec<RevisionEvents> = Vec::new();
    for event in events {
        let revision = event.record.revision();
        match groups.last_mut().filter(|group| group.revision == revision) {
            Some(group) => group.events.push(event),
            None => groups.push(RevisionEvents { revision, events: vec![event] }),
        }
    }
    groups
}
