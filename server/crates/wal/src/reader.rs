//! Reading entries back, from any thread, while the owner appends.
//!
//! Only the short look-up of positions takes the lock; the bytes are read and verified outside it.
//! Meanwhile the owner may purge the entry and reuse its segment: then the bytes do not verify (the
//! segment's seed changed), a second look finds the entry gone, and the answer is "purged", never
//! wrong bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use disk::File;
use types::LogIndex;

use crate::limits::{READ_GAP_BYTES, RECORD_HEADER_BYTES};
use crate::log_index::{LogPositions, Position};
use crate::log_state::LogState;
use crate::record::{Content, LogEntry, LogId, Seed, decode};

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The entries are no longer in the log; a follower that needs them needs a snapshot.
    #[error("log entry {from} was purged, the log holds entries after {purged}")]
    Purged {
        /// The first entry asked for.
        from: LogIndex,
        /// The last entry that is gone.
        purged: LogIndex,
    },
    /// The disk gave an error.
    #[error("read log entry {index} in {file} at offset {offset}: {source}")]
    Io {
        /// The entry.
        index: LogIndex,
        /// The segment.
        file: PathBuf,
        /// Where the record starts.
        offset: u64,
        /// The disk's error.
        source: io::Error,
    },
    /// The bytes on the disk are not what was written. Nothing wrong was returned.
    #[error(
        "log entry {index} in {file} at offset {offset} is damaged; {}",
        crate::recover_error::WAY_BACK
    )]
    Damaged {
        /// The entry.
        index: LogIndex,
        /// The segment.
        file: PathBuf,
        /// Where the record starts.
        offset: u64,
    },
}

/// An open segment.
#[derive(Clone)]
pub(crate) struct OpenSegment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    pub(crate) seed: Seed,
    pub(crate) length: u64,
}

/// What readers see; the owner alone changes it.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) positions: LogPositions,
    pub(crate) segments: BTreeMap<u32, OpenSegment>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
}

impl View {
    /// Follows a record that was written at `position`; `state` has followed it already.
    pub(crate) fn follow(&mut self, content: &Content, position: Position, state: &LogState) {
        match content {
            Content::Entry { id, .. } => self.positions.push(*id, position),
            Content::Truncate { after } => {
                self.positions.truncate_after(after.map(|after| after.index));
            }
            Content::Purge { upto } => self.positions.purge(upto.index),
            Content::Vote(_) | Content::Committed(_) | Content::Mark(_) => {}
        }
        self.purged = state.purged;
        self.last = state.last;
    }

    pub(crate) fn log_id(&self, index: LogIndex) -> Option<LogId> {
        if let Some(purged) = self.purged
            && purged.index == index
        {
            return Some(purged);
        }
        self.positions.get(index).map(|(id, _)| id)
    }
}

/// A view shared between the owner and its readers. A panic of one holder leaves it as it was before
/// or after a whole change of one record, so a poisoned lock is simply taken.
#[derive(Clone, Default)]
pub(crate) struct SharedView(Arc<RwLock<View>>);

impl SharedView {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads entries; clones share the log.
#[derive(Clone)]
pub struct Reader {
    view: SharedView,
}

/// One read of the disk: entries that lie close together in one segment.
struct Stretch {
    segment: OpenSegment,
    entries: Vec<(LogId, Position)>,
}

impl Stretch {
    fn start(&self) -> u64 {
        self.entries.first().map_or(0, |(_, position)| u64::from(position.offset))
    }

    fn end(&self) -> u64 {
        self.entries.last().map_or(0, |(_, position)| end_of(*position))
    }
}

fn end_of(position: Position) -> u64 {
    let len = RECORD_HEADER_BYTES as u64 + u64::from(position.payload_len);
    (u64::from(position.offset) + len).next_multiple_of(crate::limits::RECORD_ALIGNMENT)
}

impl Reader {
    pub(crate) fn new(view: SharedView) -> Self {
        Self { view }
    }

    /// The entries from `from` up to, and without, `until`: as many as exist and as fit into
    /// `payload_bytes_max`, but at least the first. Entries that were appended but not yet synced are
    /// there too.
    pub fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        payload_bytes_max: u64,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let stretches = self.plan(from, until, payload_bytes_max)?;
        let mut entries = Vec::with_capacity(stretches.iter().map(|s| s.entries.len()).sum());
        for stretch in &stretches {
            self.read_stretch(stretch, from, &mut entries)?;
        }
        Ok(entries)
    }

    /// The identity of one entry; also of the last purged one.
    pub fn log_id(&self, index: LogIndex) -> Option<LogId> {
        self.view.read().log_id(index)
    }

    /// The first and the last index that can be read.
    pub fn range(&self) -> Option<(LogIndex, LogIndex)> {
        self.view.read().positions.range()
    }

    /// The last entry of the log, or the last purged one if there is none after it.
    pub fn last(&self) -> Option<LogId> {
        self.view.read().last
    }

    /// The last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        self.view.read().purged
    }

    fn plan(
        &self,
        from: LogIndex,
        until: LogIndex,
        payload_bytes_max: u64,
    ) -> Result<Vec<Stretch>, ReadError> {
        let view = self.view.read();
        if let Some(purged) = view.purged
            && from <= purged.index
            && from < until
        {
            return Err(ReadError::Purged { from, purged: purged.index });
        }
        let Some((first, last)) = view.positions.range() else { return Ok(Vec::new()) };
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut budget = payload_bytes_max;
        let end = until.0.min(last.0.saturating_add(1));
        for index in from.0.max(first.0)..end {
            let Some((id, position)) = view.positions.get(LogIndex(index)) else { break };
            let payload = u64::from(position.payload_len);
            if payload > budget && !stretches.is_empty() {
                break;
            }
            budget = budget.saturating_sub(payload);
            let near = stretches.last().is_some_and(|stretch| {
                let same = stretch.entries.last().is_some_and(|e| e.1.segment == position.segment);
                let gap = u64::from(position.offset).saturating_sub(stretch.end());
                same && gap <= READ_GAP_BYTES
            });
            match stretches.last_mut() {
                Some(stretch) if near => stretch.entries.push((id, position)),
                _ => {
                    let Some(segment) = view.segments.get(&position.segment) else { break };
                    let segment = segment.clone();
                    stretches.push(Stretch { segment, entries: vec![(id, position)] });
                }
            }
        }
        Ok(stretches)
    }

    fn read_stretch(
        &self,
        stretch: &Stretch,
        from: LogIndex,
        entries: &mut Vec<LogEntry>,
    ) -> Result<(), ReadError> {
        let start = stretch.start();
        let mut buffer = BytesMut::zeroed((stretch.end() - start) as usize);
        let outcome = stretch.segment.file.read_exact_at(&mut buffer, start);
        let buffer = buffer.freeze();
        for (id, position) in &stretch.entries {
            let offset = u64::from(position.offset);
            let at = (offset - start) as usize;
            if let (Ok(()), Some(entry)) = (&outcome, decode_entry(&buffer, at, stretch, *id)) {
                entries.push(entry);
                continue;
            }
            let (index, file) = (id.index, stretch.segment.path.clone());
            let view = self.view.read();
            if view.positions.get(index) != Some((*id, *position)) {
                let purged = view.purged.map_or(LogIndex(0), |purged| purged.index);
                return Err(ReadError::Purged { from, purged });
            }
            return Err(match outcome {
                Err(source) => ReadError::Io { index, file, offset, source },
                Ok(()) => ReadError::Damaged { index, file, offset },
            });
        }
        Ok(())
    }
}

/// Decodes the record at `at` of the buffer, and checks that it is the entry that the index promised.
fn decode_entry(buffer: &Bytes, at: usize, stretch: &Stretch, id: LogId) -> Option<LogEntry> {
    let offset = stretch.start() + at as u64;
    let decoded = decode(buffer.get(at..)?, offset, stretch.segment.seed).ok()?;
    match decoded.content {
        Content::Entry { id: found, kind } if found == id => {
            let start = at + RECORD_HEADER_BYTES;
            let payload = buffer.slice(start..start + decoded.payload_len as usize);
            Some(LogEntry { id, kind, payload })
        }
        _ => None,
    }
}
