//! Reading: find the place under the lock, fetch the bytes without it.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use types::RecordRevision;

use super::format::{self, Flaw, RECORD_HEADER_BYTES, Trust};
use super::segment::{Segment, SegmentFile};
use super::{RevLog, State};
use crate::{Record, RevStoreError};

/// Bytes fetched at once by a scan. Records of one scan share such a buffer: whoever keeps a few of
/// them for long should copy them.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Bytes copied out of memory at once: the copy is made under the lock.
const MEMORY_CHUNK_BYTES: usize = 64 * 1024;

/// Some records that lie one after the other.
struct Run {
    file: Arc<SegmentFile>,
    offset: u32,
    length: usize,
    /// The bytes, if they are in memory.
    memory: Option<Bytes>,
    /// The last record of the run.
    last: RecordRevision,
    /// The ordinals, counted from the run's first record, of those that were removed.
    dead: Vec<usize>,
}

impl Run {
    fn fetch(self) -> Result<(Bytes, Trust, Vec<usize>), RevStoreError> {
        match self.memory {
            Some(bytes) => Ok((bytes, Trust::Memory, self.dead)),
            None => Ok((self.file.read(self.offset, self.length)?, Trust::File, self.dead)),
        }
    }
}

impl State {
    /// The segment that holds the first record at or above `revision`, and that record's ordinal.
    fn seek(&self, revision: RecordRevision) -> Option<(&Segment, usize)> {
        let index = self.sealed.partition_point(|segment| {
            segment.positions.last().is_some_and(|last| last < revision)
        });
        let segment = self.sealed.get(index).unwrap_or(&self.active);
        let ordinal = segment.positions.lower_bound(revision);
        (ordinal < segment.positions.len()).then_some((segment, ordinal))
    }

    /// The segment that holds exactly this record, and its ordinal.
    pub(super) fn find(&self, revision: RecordRevision) -> Option<(usize, usize)> {
        let index = self.sealed.partition_point(|segment| {
            segment.positions.last().is_some_and(|last| last < revision)
        });
        let segment = self.sealed.get(index).unwrap_or(&self.active);
        segment.positions.find(revision).map(|ordinal| (index, ordinal))
    }

    /// The bytes in memory from `offset` of this segment on; `length` of them or fewer.
    fn memory(&self, segment: &Segment, offset: u32, length: usize) -> Option<Bytes> {
        let name = segment.file.name;
        if name == self.active.file.name && offset >= self.buffer_start {
            let rest = &self.buffer[(offset - self.buffer_start) as usize..];
            return Some(Bytes::copy_from_slice(&rest[..length.min(rest.len())]));
        }
        let mut bytes = self.recent.find(name, offset)?;
        bytes.truncate(length);
        Some(bytes)
    }

    /// The records from `ordinal` on that can be fetched in one piece: at least one, none at or
    /// above `until` but perhaps the first.
    fn run_at(&self, segment: &Segment, ordinal: usize, until: RecordRevision) -> Run {
        let positions = &segment.positions;
        let offset = positions.offset(ordinal);
        let mut memory = self.memory(segment, offset, MEMORY_CHUNK_BYTES);
        let mut limit = u64::from(offset) + CHUNK_BYTES;
        if let Some(bytes) = &mut memory {
            let whole = positions.bytes(ordinal) as usize;
            if bytes.len() < whole {
                // One record longer than a chunk; writes never divide a record.
                *bytes = self.memory(segment, offset, whole).unwrap_or_default();
            }
            limit = u64::from(offset) + bytes.len() as u64;
        } else if segment.file.name == self.active.file.name {
            limit = limit.min(u64::from(self.written));
        }
        let beyond = positions.ordinal_beyond(ordinal, limit).max(ordinal + 1);
        let end = beyond.min(positions.lower_bound(until)).max(ordinal + 1);
        let length = (positions.offset(end) - offset) as usize;
        if let Some(bytes) = &mut memory {
            // A copy: the slice would keep the whole write alive.
            *bytes = Bytes::copy_from_slice(&bytes[..length]);
        }
        let dead = if segment.dead.records() == 0 {
            Vec::new()
        } else {
            (ordinal..end)
                .filter(|&one| segment.dead.contains(one))
                .map(|one| one - ordinal)
                .collect()
        };
        let last = positions.revision(end - 1);
        Run { file: segment.file.clone(), offset, length, memory, last, dead }
    }
}

impl RevLog {
    pub(super) fn read_one(
        &self,
        revision: RecordRevision,
    ) -> Result<Option<Record>, RevStoreError> {
        let (file, offset, length, memory) = {
            let state = self.state();
            let Some((index, ordinal)) = state.find(revision) else { return Ok(None) };
            let segment = state.sealed.get(index).unwrap_or(&state.active);
            if segment.dead.contains(ordinal) {
                return Ok(None);
            }
            let offset = segment.positions.offset(ordinal);
            let length = segment.positions.bytes(ordinal) as usize;
            (segment.file.clone(), offset, length, state.memory(segment, offset, length))
        };
        let (mut bytes, trust) = match memory {
            Some(bytes) => (Bytes::copy_from_slice(&bytes), Trust::Memory),
            None => (file.read(offset, length)?, Trust::File),
        };
        let record = format::decode_record(&mut bytes, file.seed, offset, trust)
            .map_err(|flaw| file.flaw(offset, flaw))?;
        if record.revision != revision || !bytes.is_empty() {
            return Err(file.flaw(offset, Flaw::Misplaced));
        }
        Ok(Some(record))
    }

    /// The bytes of the key-values of these records, from the places alone.
    pub(super) fn lengths(&self, revisions: &[RecordRevision]) -> u64 {
        let state = self.state();
        let length = |revision: &RecordRevision| {
            let Some((index, ordinal)) = state.find(*revision) else { return 0 };
            let segment = state.sealed.get(index).unwrap_or(&state.active);
            u64::from(segment.positions.bytes(ordinal)) - RECORD_HEADER_BYTES as u64
        };
        revisions.iter().map(length).sum()
    }

    pub(super) fn read_range(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        let mut next = from;
        while next < until {
            let run = {
                let state = self.state();
                let Some((segment, ordinal)) = state.seek(next) else { return Ok(()) };
                if segment.positions.revision(ordinal) >= until {
                    return Ok(());
                }
                state.run_at(segment, ordinal, until)
            };
            let last = run.last;
            if self.visit_run(run, visit)?.is_break() {
                return Ok(());
            }
            next = RecordRevision { main: last.main, sub: last.sub + 1 };
        }
        Ok(())
    }

    fn visit_run(
        &self,
        run: Run,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, RevStoreError> {
        let file = run.file.clone();
        let mut offset = run.offset;
        let (mut bytes, trust, dead) = run.fetch()?;
        let mut dead = dead.into_iter().peekable();
        let mut ordinal = 0;
        while !bytes.is_empty() {
            let before = bytes.len();
            let record = format::decode_record(&mut bytes, file.seed, offset, trust)
                .map_err(|flaw| file.flaw(offset, flaw))?;
            offset += (before - bytes.len()) as u32;
            if dead.next_if_eq(&ordinal).is_none() && visit(record).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            ordinal += 1;
        }
        Ok(ControlFlow::Continue(()))
    }
}
