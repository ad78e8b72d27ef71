//! The index from the records alone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use revlog::{Record, RevStore};
use types::RecordRevision;

use crate::compaction::Sweeper;
use crate::history::{KeyHistory, Version};
use crate::image::RestoreError;
use crate::index::Index;
use crate::key_value::KeyValue;
use crate::store::StoreMeta;

pub(crate) fn scan(
    revs: Arc<dyn RevStore>,
    meta: StoreMeta,
) -> Result<(Index, Sweeper), RestoreError> {
    let (revision, compacted) = (meta.revision.0, meta.compact_revision.0);
    if revision < 1 || compacted > revision {
        return Err(RestoreError::Meta { revision, compact_revision: compacted });
    }
    let mut keys: BTreeMap<Box<[u8]>, KeyHistory> = BTreeMap::new();
    let mut failure = None;
    let mut visit = |record: Record| match add(&mut keys, &record, revision) {
        Ok(()) => ControlFlow::Continue(()),
        Err(detail) => {
            failure = Some(RestoreError::Record { record: record.revision, detail });
            ControlFlow::Break(())
        }
    };
    let from = RecordRevision { main: 0, sub: 0 };
    let until = RecordRevision { main: i64::MAX, sub: i64::MAX };
    revs.scan(from, until, &mut visit)?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let mut dead = Vec::new();
    keys.retain(|_, history| !history.compact(compacted, &mut dead));
    let sweeper = Sweeper::new(compacted).with_garbage(compacted, dead);
    Ok((Index::new(revs, revision, compacted).with_keys(keys), sweeper))
}

fn add(
    keys: &mut BTreeMap<Box<[u8]>, KeyHistory>,
    record: &Record,
    newest: i64,
) -> Result<(), String> {
    let main = record.revision.main;
    if main > newest {
        return Err(format!("lies above the revision {newest} that the store should be at"));
    }
    let sub = u32::try_from(record.revision.sub).map_err(|_| "its number is out of range")?;
    let kv = KeyValue::decode(&record.key_value).map_err(|error| error.to_string())?;
    let version = match record.tombstone {
        true => Version::tombstone(main, sub),
        // What Go's `snapshot restore --bump-revision` leaves at the new revision: a record without
        // content, which stands for a key without a name that no client can ask for. HashKV covers it.
        false if record.key_value.is_empty() => {
            Version { main, create: 0, version: 0, lease: 0, sub, tombstone: false }
        }
        false if kv.mod_revision != main => {
            return Err(format!("holds a key-value of revision {}", kv.mod_revision));
        }
        false => Version {
            main,
            create: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
            sub,
            tombstone: false,
        },
    };
    match keys.get_mut(kv.key.as_ref()) {
        Some(history) => history.push(version),
        None => {
            keys.insert(kv.key.as_ref().into(), KeyHistory::new(version));
        }
    }
    Ok(())
}
