//! The log itself: append, sync, truncate, purge.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use disk::{Disk, is_no_space};
use types::LogIndex;

use crate::limits::{
    BUFFER_KEPT_BYTES, FIRST_SEGMENT_BYTES, RECORD_HEADER_BYTES, RECORDS_START, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
};
use crate::log_index::Position;
use crate::log_state::{Discontinuity, LogState};
use crate::reader::{OpenSegment, ReadError, Reader, SharedView};
use crate::record::{
    Content, Encoder, Identity, LogEntry, LogId, Mark, Record, Vote, encoded_len, mark_place,
};
use crate::segment::capacity;
use crate::spares::{Space, Spares};

/// The knobs of a log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The length of a full-grown segment; one entry with its header must fit into it.
    pub segment_bytes: u64,
    /// How many segments no longer needed are kept for reuse instead of being removed.
    pub spare_segments_max: usize,
    /// Bytes of the disk that segments made ahead of time leave free. A segment that is needed at once
    /// may take them.
    pub space_kept: u64,
    /// Whether the caller knows that this log had begun. Nothing in its place is then refused.
    pub has_begun: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            spare_segments_max: 3,
            space_kept: 0,
            has_begun: false,
        }
    }
}

impl Options {
    /// The options with every value inside its limits.
    pub(crate) fn bounded(self) -> Self {
        let segment_bytes = self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        Self { segment_bytes: segment_bytes & !4095, ..self }
    }

    pub(crate) fn first_segment_bytes(&self) -> u64 {
        self.segment_bytes.min(FIRST_SEGMENT_BYTES)
    }
}

/// Why the log refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk is full. Nothing of this call is in the log, and the log goes on working: purging, or
    /// freeing space, lets a later call pass.
    #[error("no space for {needed} bytes of log in {directory}; free space on this disk")]
    NoSpace {
        /// The bytes that the call needed.
        needed: u64,
        /// The log's directory.
        directory: PathBuf,
    },
    /// One record is larger than a segment. Nothing was appended.
    #[error("a log entry of {bytes} bytes does not fit into a segment, which takes {bytes_max}")]
    TooLarge {
        /// The size of the record.
        bytes: u64,
        /// The largest size.
        bytes_max: u64,
    },
    /// A record does not continue the log. Nothing was appended.
    #[error(transparent)]
    Discontinuous(#[from] Discontinuity),
    /// A write or sync failed. What is on the disk is unknown until the next start: stop the process.
    #[error("{operation} {file}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        file: PathBuf,
        /// The disk's error.
        source: io::Error,
    },
    /// An earlier call failed with [`WalError::Io`].
    #[error("the log failed earlier: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
}

/// Numbers for metrics; the caller measures durations, as this room has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Records appended.
    pub records: u64,
    /// Bytes appended, headers and padding included.
    pub bytes: u64,
    /// Syncs of log bytes.
    pub syncs: u64,
    /// Segments begun.
    pub rotations: u64,
    /// Segments given back for reuse.
    pub recycled: u64,
    /// Segments removed.
    pub removed: u64,
    /// Entries that can be read.
    pub entries: u64,
    /// Segments that hold the log.
    pub segments: u64,
    /// Segments ready for use.
    pub spares: u64,
    /// Bytes appended and not yet synced.
    pub unsynced_bytes: u64,
    /// How much room the log can count on.
    pub space: Space,
}

/// The segment that is being written.
pub(crate) struct Active {
    pub(crate) sequence: u32,
    pub(crate) segment: OpenSegment,
    /// Where the next record goes.
    pub(crate) position: u64,
    /// Everything before this offset is durable.
    pub(crate) synced: u64,
    /// The checksum of the last record.
    pub(crate) previous: u32,
    /// Where the last mark ends; 0 if there is none.
    pub(crate) mark_end: u64,
}

/// The log. One owner appends and syncs; any number of [`Reader`]s read.
pub struct Wal {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) directory: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) view: SharedView,
    pub(crate) state: LogState,
    pub(crate) active: Active,
    pub(crate) spares: Spares,
    /// Whether a new incarnation must be on the disk before anything else is appended.
    pub(crate) renew: bool,
    pub(crate) poisoned: Option<String>,
    pub(crate) stats: WalStats,
    pub(crate) buffer: Vec<u8>,
}

/// What a group of records that goes into one segment needs.
struct Piece {
    records: Range<usize>,
    bytes: u64,
    new_segment: bool,
}

impl Wal {
    /// Appends records: they are written and can be read, but they are durable only after
    /// [`Wal::sync`].
    ///
    /// # Errors
    /// Only [`WalError::Io`] and [`WalError::Poisoned`] are fatal. After any other error the log is as
    /// it was before the call.
    pub fn append(&mut self, records: &[Record]) -> Result<(), WalError> {
        self.check_poisoned()?;
        self.validate(records)?;
        if records.is_empty() {
            return Ok(());
        }
        if self.renew {
            self.renew_incarnation()?;
        }
        let pieces = self.plan(records)?;
        let rotations = pieces.iter().filter(|piece| piece.new_segment).count();
        let largest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
        if rotations > 0 {
            self.ensure_spares(rotations, RECORDS_START + largest)?;
        }
        for (number, piece) in pieces.iter().enumerate() {
            let written = self.append_piece(&records[piece.records.clone()], piece);
            if number > 0 && matches!(written, Err(WalError::NoSpace { .. })) {
                // The pieces before are in the log already; "nothing happened" would be a lie.
                let cause = io::ErrorKind::StorageFull.into();
                return Err(self.poison("append to", &self.active.segment.path.clone(), cause));
            }
            written?;
        }
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        self.stats.records += records.len() as u64;
        self.stats.bytes += bytes;
        self.keep_pace()
    }

    /// Makes everything appended so far durable, by one `fdatasync`.
    ///
    /// # Errors
    /// Any error is fatal: what was appended may or may not survive, and a second try proves nothing.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_poisoned()?;
        if self.active.synced == self.active.position {
            return Ok(());
        }
        if let Err(source) = self.active.segment.file.sync_data() {
            return Err(self.poison("sync", &self.active.segment.path.clone(), source));
        }
        self.active.synced = self.active.position;
        self.stats.syncs += 1;
        Ok(())
    }

    /// Appends the vote. It must be synced before it is told to anybody.
    pub fn save_vote(&mut self, vote: Vote) -> Result<(), WalError> {
        self.append(&[Record::Vote(vote)])
    }

    /// Appends the commit position. It needs no sync of its own: an older one is always safe.
    pub fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), WalError> {
        self.append(&[Record::Committed(committed)])
    }

    /// Voids every entry after `after`; `None` voids all. It takes effect for readers at once, and on
    /// the disk with the next sync.
    pub fn truncate_after(&mut self, after: Option<LogId>) -> Result<(), WalError> {
        self.append(&[Record::Truncate { after }])
    }

    /// Gives up entries up to and with `upto`, syncs, and then reuses or removes the segments that hold
    /// nothing else. `upto` may lie beyond the last entry: then the log continues after it.
    ///
    /// The order matters (etcd #10219): were a segment gone before the purge is durable, a crash would
    /// leave a hole.
    pub fn purge(&mut self, upto: LogId) -> Result<(), WalError> {
        if self.state.purged.is_some_and(|purged| purged.index >= upto.index) {
            return self.check_poisoned();
        }
        self.append(&[Record::Purge { upto }])?;
        self.sync()?;
        self.recycle()?;
        self.spares.retry();
        Ok(())
    }

    /// Reads entries; see [`Reader::read`].
    pub fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        payload_bytes_max: u64,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.reader().read(from, until, payload_bytes_max)
    }

    /// A handle for reading from other threads.
    pub fn reader(&self) -> Reader {
        Reader::new(self.view.clone())
    }

    /// Does one bounded step of work that makes later appends faster: fills the next segment. Returns
    /// whether more is left. For idle moments; appends do it too, at their own pace.
    pub fn prepare(&mut self) -> Result<bool, WalError> {
        self.check_poisoned()?;
        self.spares.retry();
        self.fill_step()?;
        Ok(!self.spares.is_settled())
    }

    /// Appends a mark that everything synced so far was synced, unless one is there already. With it,
    /// damage to the last group can be told from a torn write. For idle moments; needs no sync.
    pub fn mark(&mut self) -> Result<(), WalError> {
        self.check_poisoned()?;
        let at_mark = self.active.synced == RECORDS_START || self.ends_with_mark();
        if self.renew || at_mark || self.active.synced != self.active.position {
            return Ok(());
        }
        let (_, end) = mark_place(self.active.position);
        if end > self.active.segment.length {
            return Ok(());
        }
        self.write_mark(self.state.incarnation)
    }

    /// Syncs, and marks the log as cleanly closed.
    pub fn close(mut self) -> Result<(), WalError> {
        self.sync()?;
        self.mark()?;
        self.sync()
    }

    /// The last vote.
    pub fn vote(&self) -> Option<Vote> {
        self.state.vote
    }

    /// The last commit position.
    pub fn committed(&self) -> Option<LogId> {
        self.state.committed
    }

    /// The last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        self.state.purged
    }

    /// The last entry, or the last purged one if there is none after it.
    pub fn last(&self) -> Option<LogId> {
        self.state.last
    }

    /// How much room the log can count on.
    pub fn space(&self) -> Space {
        self.spares.space()
    }

    /// The numbers for metrics.
    pub fn stats(&self) -> WalStats {
        let view = self.view.read();
        WalStats {
            entries: view.positions.len() as u64,
            segments: view.segments.len() as u64,
            spares: self.spares.ready() as u64,
            unsynced_bytes: self.active.position - self.active.synced,
            space: self.spares.space(),
            ..self.stats
        }
    }

    // === appending ===

    /// Checks that the records continue the log.
    fn validate(&self, records: &[Record]) -> Result<(), WalError> {
        let mut state = self.state;
        for record in records {
            let content = Content::of(record);
            state.check(&content)?;
            state.follow(&content);
        }
        Ok(())
    }

    /// Splits the records into pieces, each of which goes into one segment. A group that does not fit
    /// into this segment goes into the next as a whole, if it can.
    fn plan(&self, records: &[Record]) -> Result<Vec<Piece>, WalError> {
        let room = capacity(self.options.segment_bytes);
        let mut total = 0;
        for record in records {
            let bytes = encoded_len(record);
            if bytes > room {
                return Err(WalError::TooLarge { bytes, bytes_max: room });
            }
            total += bytes;
        }
        let start = if self.needs_mark() {
            mark_place(self.active.position).1
        } else {
            self.active.position
        };
        let whole = 0..records.len();
        if start + total <= self.active.segment.length {
            return Ok(vec![Piece { records: whole, bytes: total, new_segment: false }]);
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for (number, record) in records.iter().enumerate() {
            let bytes = encoded_len(record);
            match pieces.last_mut() {
                Some(piece) if piece.bytes + bytes <= room => {
                    piece.records.end = number + 1;
                    piece.bytes += bytes;
                }
                _ => {
                    pieces.push(Piece { records: number..number + 1, bytes, new_segment: true });
                }
            }
        }
        Ok(pieces)
    }

    /// Whether the next group starts with a mark: the first one after a sync does. At the start of a
    /// segment the header says as much.
    fn needs_mark(&self) -> bool {
        let active = &self.active;
        active.synced == active.position
            && active.position != RECORDS_START
            && !self.ends_with_mark()
    }

    /// Whether the last record is a mark that was written after the last sync's bytes.
    fn ends_with_mark(&self) -> bool {
        self.active.mark_end == self.active.position
    }

    fn append_piece(&mut self, records: &[Record], piece: &Piece) -> Result<(), WalError> {
        if piece.new_segment {
            self.rotate(RECORDS_START + piece.bytes, self.state.incarnation)?;
        }
        let (marked, start) = (self.needs_mark(), self.active.position);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut placed = Vec::with_capacity(records.len());
        let mut encoder = Encoder {
            buffer: &mut buffer,
            seed: self.active.segment.seed,
            position: self.active.position,
            previous: self.active.previous,
        };
        if marked {
            encoder
                .mark(Mark { incarnation: self.state.incarnation, synced_to: self.active.synced });
        }
        for record in records {
            placed.push(encoder.position as u32);
            encoder.record(record);
        }
        let (position, previous) = (encoder.position, encoder.previous);
        // The zeros before the mark stay unwritten: their sector holds synced bytes.
        let unwritten = if marked { (mark_place(start).0 - start) as usize } else { 0 };
        let written = self.write(&buffer[unwritten..], start + unwritten as u64);
        buffer.shrink_to(BUFFER_KEPT_BYTES);
        self.buffer = buffer;
        written?;
        self.active.position = position;
        self.active.previous = previous;
        if marked {
            self.active.mark_end = mark_place(start).1;
        }
        let mut view = self.view.write();
        for (record, offset) in records.iter().zip(placed) {
            let payload_len = match record {
                Record::Entry(entry) => entry.payload.len() as u32,
                _ => 0,
            };
            let content = Content::of(record);
            self.state.follow(&content);
            let position = Position { segment: self.active.sequence, offset, payload_len };
            view.follow(&content, position, &self.state);
        }
        Ok(())
    }

    /// Writes bytes that begin at `position`. "No space" leaves the log as it was.
    fn write(&mut self, bytes: &[u8], position: u64) -> Result<(), WalError> {
        let file = &self.active.segment.file;
        match file.write_all_at(bytes, position) {
            Ok(()) => Ok(()),
            Err(error) if is_no_space(&error) => {
                // A part may be there. It was not acknowledged, so finding it after a crash would be
                // allowed, but it is better gone; and nothing may ever chain to it.
                let zeros = [0; RECORD_HEADER_BYTES];
                let _ = file.write_all_at(&zeros[..bytes.len().min(zeros.len())], position);
                self.renew = true;
                Err(self.no_space(bytes.len() as u64))
            }
            Err(error) => Err(self.poison("write", &self.active.segment.path.clone(), error)),
        }
    }

    /// Writes a mark of a new incarnation and syncs it, after which no leftover of the past can chain.
    pub(crate) fn renew_incarnation(&mut self) -> Result<(), WalError> {
        let incarnation = self.state.incarnation + 1;
        let (_, end) = mark_place(self.active.position);
        if end <= self.active.segment.length {
            self.write_mark(incarnation)?;
            self.sync()?;
        } else {
            self.ensure_spares(1, SEGMENT_BYTES_MIN)?;
            self.rotate(SEGMENT_BYTES_MIN, incarnation)?;
        }
        self.renew = false;
        Ok(())
    }

    fn write_mark(&mut self, incarnation: u64) -> Result<(), WalError> {
        let mut buffer = Vec::new();
        let mut encoder = Encoder {
            buffer: &mut buffer,
            seed: self.active.segment.seed,
            position: self.active.position,
            previous: self.active.previous,
        };
        encoder.mark(Mark { incarnation, synced_to: self.active.synced });
        let (position, previous) = (encoder.position, encoder.previous);
        // A new incarnation follows a failed append or a crash: what lies before the mark then may be
        // the start of a record that must never be found again, so the zeros are written. Otherwise
        // they are not, because their sector holds synced bytes.
        let start = self.active.position;
        let renewing = incarnation != self.state.incarnation;
        let unwritten = if renewing { 0 } else { (mark_place(start).0 - start) as usize };
        self.write(&buffer[unwritten..], start + unwritten as u64)?;
        self.active.position = position;
        self.active.mark_end = position;
        self.active.previous = previous;
        self.state.incarnation = incarnation;
        self.stats.bytes += buffer.len() as u64;
        Ok(())
    }
}
