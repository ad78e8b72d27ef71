//! Opening a log: what is believed, what is cut, and what is refused.
//!
//! | found | done |
//! |---|---|
//! | nothing | a new log; refused where the caller knows that there was one |
//! | a record that does not verify, and nothing that proves it was ever synced | the log ends before it |
//! | the same, but a later mark or segment proves that it was synced | refused: acknowledged records are lost |
//! | a segment missing, too short, or with a bad header | refused |
//! | records that verify but cannot follow each other, or of an unknown kind | refused |
//! | another cluster's or member's identity | refused |
//!
//! Refusing is safe and cutting is not: a member that forgets what it acknowledged can make the cluster
//! forget it too, or vote twice in one term. So the log is only cut where a crash explains it.
//!
//! Before anything is appended, the tail that no mark proves is written again and synced: the process
//! before may have died between write and sync, or after a *failed* sync, and then what was just read
//! is in the kernel's cache only, where a further sync would skip it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, OpenMode, read_file, write_file_atomically};
use types::LogIndex;

use crate::limits::{MARK_ALIGNMENT, RECORDS_START, SEGMENT_HEADER_BYTES};
use crate::log_index::Position;
use crate::log_state::LogState;
use crate::reader::{OpenSegment, SharedView, View};
use crate::record::{
    Content, Decoded, Identity, LogId, NotARecord, Seed, Vote, decode, decode_mark, mark_place,
};
use crate::recover_error::{Proof, RecoverError};
use crate::rotation::{InstallError, install};
use crate::segment::{FORMAT_FILE, FileName, NotAHeader, SegmentHeader, segment_path, spare_path};
use crate::spares::{Spare, Spares};
use crate::wal::{Active, Options, Wal, WalError, WalStats};

/// The content of the format file.
const FORMAT: &[u8] = b"keelson wal 1\n";

/// A format file is never longer.
const FORMAT_BYTES_MAX: u64 = 4096;

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last commit position.
    pub committed: Option<LogId>,
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The index of the first entry that can be read.
    pub first: Option<LogIndex>,
    /// The last entry, or the last purged one if there is none after it.
    pub last: Option<LogId>,
}

impl Wal {
    /// Opens the log in `directory`, or creates it. The caller holds the lock of the data directory.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<(Wal, Recovered), RecoverError> {
        let options = options.bounded();
        disk.create_dir_all(directory).map_err(io_error(directory))?;
        // The process before may have died between a rename and its sync: what is seen here may not
        // be durable yet, and everything below builds on it.
        for seen in [directory, directory.parent().unwrap_or(directory)] {
            disk.sync_dir(seen).map_err(io_error(seen))?;
        }
        let listing = Listing::read(&*disk, directory)?;
        let mut spares =
            Spares::new(Arc::clone(&disk), directory, listing.next_spare(), options.space_kept);
        let scan = if listing.segments.is_empty() {
            if listing.has_format {
                return Err(RecoverError::Missing { file: segment_path(directory, 1) });
            }
            if options.has_begun {
                return Err(RecoverError::Gone { directory: directory.to_path_buf() });
            }
            Scan::of_new_log(&*disk, directory, identity, &options, &mut spares)?
        } else {
            Scan::of_segments(&*disk, directory, identity, &listing)?
        };
        if !listing.has_format {
            // Creation was interrupted before the format file; until it is there, nothing is appended.
            if scan.has_records() {
                return Err(RecoverError::Missing { file: directory.join(FORMAT_FILE) });
            }
            write_file_atomically(&*disk, directory, FORMAT_FILE, FORMAT)
                .map_err(io_error(&directory.join(FORMAT_FILE)))?;
        }
        listing.tidy(&*disk, directory, &options, &mut spares)?;
        let mut wal = scan.into_wal(disk, directory, identity, options, spares);
        wal.secure_tail()?;
        let recovered = wal.recovered();
        Ok((wal, recovered))
    }

    /// Makes what was read durable, and begins a new incarnation.
    fn secure_tail(&mut self) -> Result<(), RecoverError> {
        let (from, to) = (self.active.synced, self.active.position);
        let segment = self.active.segment.clone();
        let result = (|| {
            let mut bytes = vec![0; (to - from) as usize];
            segment.file.read_exact_at(&mut bytes, from)?;
            segment.file.write_all_at(&bytes, from)?;
            segment.file.sync_data()
        })();
        result.map_err(io_error(&segment.path))?;
        self.active.synced = to;
        self.stats.syncs += 1;
        match self.renew_incarnation() {
            // The log can be read, and nothing can be appended until there is space: as promised.
            Ok(()) | Err(WalError::NoSpace { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.recycle()?;
        Ok(())
    }

    /// What the log holds now, in the terms of a start.
    pub fn recovered(&self) -> Recovered {
        Recovered {
            vote: self.state.vote,
            committed: self.state.committed,
            purged: self.state.purged,
            first: self.view.read().positions.range().map(|(first, _)| first),
            last: self.state.last,
        }
    }
}

fn io_error(file: &Path) -> impl Fn(io::Error) -> RecoverError + '_ {
    move |source| RecoverError::Io { file: file.to_path_buf(), source }
}

// === the directory ===

/// The names in the log's directory.
struct Listing {
    has_format: bool,
    /// Sequence numbers, ascending and without gaps.
    segments: Vec<u32>,
    /// Spare numbers and their lengths.
    spares: BTreeMap<u64, u64>,
    leftovers: Vec<PathBuf>,
    /// The largest number among the unfinished spares.
    unfinished_max: Option<u64>,
}

impl Listing {
    fn read(disk: &dyn Disk, directory: &Path) -> Result<Self, RecoverError> {
        let mut listing = Listing {
            has_format: false,
            segments: Vec::new(),
            spares: BTreeMap::new(),
            leftovers: Vec::new(),
            unfinished_max: None,
        };
        for entry in disk.list(directory).map_err(io_error(directory))? {
            match FileName::parse(&entry.name) {
                FileName::Format => listing.has_format = true,
                FileName::Segment(sequence) => listing.segments.push(sequence),
                FileName::Spare(number) => {
                    listing.spares.insert(number, entry.len);
                }
                FileName::Leftover => listing.leftovers.push(directory.join(&entry.name)),
                FileName::UnfinishedSpare(number) => {
                    listing.unfinished_max = listing.unfinished_max.max(Some(number));
                    listing.leftovers.push(directory.join(&entry.name));
                }
                FileName::Foreign => {
                    tracing::warn!(file = entry.name, "unknown file in the log's directory");
                }
            }
        }
        listing.segments.sort_unstable();
        for pair in listing.segments.windows(2) {
            if let [before, after] = pair
                && *after != before.saturating_add(1)
            {
                return Err(RecoverError::Missing { file: segment_path(directory, before + 1) });
            }
        }
        if listing.has_format {
            check_format(disk, &directory.join(FORMAT_FILE))?;
        }
        Ok(listing)
    }

    fn next_spare(&self) -> u64 {
        let used = self.spares.keys().next_back().copied().max(self.unfinished_max);
        used.map_or(0, |number| number.wrapping_add(1))
    }

    /// Removes what a crash left behind, and takes in the spares.
    fn tidy(
        &self,
        disk: &dyn Disk,
        directory: &Path,
        options: &Options,
        spares: &mut Spares,
    ) -> Result<(), RecoverError> {
        for leftover in &self.leftovers {
            if disk.exists(leftover).map_err(io_error(leftover))? {
                disk.remove_file(leftover).map_err(io_error(leftover))?;
            }
        }
        for (number, length) in &self.spares {
            let path = spare_path(directory, *number);
            let fits = *length >= crate::limits::SEGMENT_BYTES_MIN
                && *length <= options.segment_bytes
                && length.is_multiple_of(4096);
            if fits && spares.ready() < options.spare_segments_max.max(1) {
                let file = disk.open(&path, OpenMode::ReadWrite).map_err(io_error(&path))?;
                spares.adopt(Spare { path, file, length: *length });
            } else {
                disk.remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }
}

fn check_format(disk: &dyn Disk, file: &Path) -> Result<(), RecoverError> {
    let bytes = read_file(disk, file, FORMAT_BYTES_MAX).map_err(io_error(file))?;
    if bytes == FORMAT {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes);
    let found = text.lines().next().unwrap_or_default().chars().take(80).collect();
    Err(RecoverError::UnsupportedFormat { file: file.to_path_buf(), found })
}

// === the scan ===

/// What was read so far.
struct Scan {
    state: LogState,
    view: View,
    /// Entries up to here lie before the first segment; they must turn out to be purged.
    missing_upto: Option<LogIndex>,
    active: Active,
    records: u64,
}

impl Scan {
    fn of_new_log(
        disk: &dyn Disk,
        directory: &Path,
        identity: Identity,
        options: &Options,
        spares: &mut Spares,
    ) -> Result<Self, RecoverError> {
        let length = options.first_segment_bytes();
        spares.ensure(1, length, length).map_err(io_error(directory))?;
        let header = SegmentHeader {
            identity,
            sequence: 1,
            length,
            previous_end: 0,
            previous_crc: 0,
            state: LogState::default(),
        };
        let spare = spares.take(length);
        let spare = spare.ok_or_else(|| io_error(directory)(io::ErrorKind::NotFound.into()))?;
        let segment = install(disk, directory, &spare, &header)
            .map_err(InstallError::into_source)
            .map_err(io_error(&spare.path))?;
        let mut view = View::default();
        view.segments.insert(1, segment.clone());
        let active = Active::beginning(&header, segment);
        Ok(Self { state: header.state, view, missing_upto: None, active, records: 0 })
    }

    fn of_segments(
        disk: &dyn Disk,
        directory: &Path,
        identity: Identity,
        listing: &Listing,
    ) -> Result<Self, RecoverError> {
        let mut segments = Vec::with_capacity(listing.segments.len());
        for sequence in &listing.segments {
            segments.push(open_segment(disk, directory, identity, *sequence)?);
        }
        let mut scan: Option<Scan> = None;
        for (number, (header, segment)) in segments.iter().enumerate() {
            let mut current = match scan.take() {
                None => Scan::beginning(header, segment),
                Some(scan) => scan.continued(header, segment)?,
            };
            current.view.segments.insert(header.sequence, segment.clone());
            current.read_segment(segments.get(number + 1))?;
            scan = Some(current);
        }
        let scan =
            scan.ok_or_else(|| RecoverError::Missing { file: segment_path(directory, 1) })?;
        scan.check_complete(directory)?;
        Ok(scan)
    }

    fn beginning(header: &SegmentHeader, segment: &OpenSegment) -> Self {
        Self {
            state: header.state,
            view: View { purged: header.state.purged, last: header.state.last, ..View::default() },
            missing_upto: header.state.last.map(|last| last.index),
            active: Active::beginning(header, segment.clone()),
            records: u64::from(header.sequence) - 1,
        }
    }

    /// Goes to the next segment, whose header must agree with what was read before it.
    fn continued(
        self,
        header: &SegmentHeader,
        segment: &OpenSegment,
    ) -> Result<Self, RecoverError> {
        let same = LogState { incarnation: header.state.incarnation, ..self.state };
        let agrees = header.state == same
            && header.state.incarnation >= self.state.incarnation
            && header.previous_crc == self.active.previous;
        if !agrees {
            return Err(RecoverError::DamagedHeader { file: segment.path.clone() });
        }
        let active = Active::beginning(header, segment.clone());
        Ok(Self { state: header.state, active, ..self })
    }

    fn has_records(&self) -> bool {
        self.records > 0
    }

    /// Reads the records of the active segment: up to where `next` says it ended, or as far as they
    /// verify.
    fn read_segment(
        &mut self,
        next: Option<&(SegmentHeader, OpenSegment)>,
    ) -> Result<(), RecoverError> {
        let segment = self.active.segment.clone();
        let file = || segment.path.clone();
        let mut bytes = vec![0; segment.length as usize];
        segment.file.read_exact_at(&mut bytes, 0).map_err(io_error(&segment.path))?;
        let end = next.map(|(header, _)| header.previous_end);
        while end != Some(self.active.position) {
            let found = match self.find_record(&bytes, segment.seed) {
                Ok(found) => found,
                Err(NotARecord::Unknown { kind, flags }) => {
                    let offset = self.active.position;
                    return Err(RecoverError::UnknownRecord { file: file(), offset, kind, flags });
                }
                Err(NotARecord::Broken) => None,
            };
            let Some((offset, decoded)) = found else {
                return self.end_at_bad_record(&bytes, next);
            };
            self.state.check(&decoded.content).map_err(|source| RecoverError::Impossible {
                file: file(),
                offset,
                source,
            })?;
            self.follow(offset, &decoded);
            if end.is_some_and(|end| self.active.position > end) {
                return Err(RecoverError::DamagedRecord {
                    file: file(),
                    offset,
                    proof: next_segment_proof(next),
                });
            }
        }
        Ok(())
    }

    /// The record at the position, or the mark after zeros that continues the chain.
    fn find_record(&self, bytes: &[u8], seed: Seed) -> Result<Option<(u64, Decoded)>, NotARecord> {
        let position = self.active.position;
        let at = |offset: u64| {
            let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
            decode(rest.unwrap_or_default(), offset, seed)
        };
        let chained = |decoded: &Decoded| decoded.previous == self.active.previous;
        let outcome = at(position);
        if let Ok(decoded) = outcome
            && chained(&decoded)
        {
            return Ok(Some((position, decoded)));
        }
        let (aligned, _) = mark_place(position);
        if aligned != position
            && let Ok(decoded) = at(aligned)
            && matches!(decoded.content, Content::Mark(_))
            && chained(&decoded)
        {
            return Ok(Some((aligned, decoded)));
        }
        // A record that verifies but does not continue the chain was cut off by an earlier start.
        outcome.map(|_| None)
    }

    fn follow(&mut self, offset: u64, decoded: &Decoded) {
        let active = &mut self.active;
        active.position = offset + decoded.padded_len;
        active.previous = decoded.crc;
        if let Content::Mark(mark) = decoded.content {
            active.synced = active.synced.max(mark.synced_to.min(offset));
            active.mark_end = active.position;
        }
        if let Content::Truncate { after } = decoded.content {
            self.missing_upto = self.missing_upto.min(after.map(|after| after.index));
        }
        let position = Position {
            segment: active.sequence,
            offset: offset as u32,
            payload_len: decoded.payload_len,
        };
        self.state.follow(&decoded.content);
        self.view.follow(&decoded.content, position, &self.state);
        self.records += 1;
    }

    /// Decides about bytes at the position that are no record: the end of the log, or damage.
    fn end_at_bad_record(
        &self,
        bytes: &[u8],
        next: Option<&(SegmentHeader, OpenSegment)>,
    ) -> Result<(), RecoverError> {
        let (file, offset) = (self.active.segment.path.clone(), self.active.position);
        if next.is_some() {
            let proof = next_segment_proof(next);
            return Err(RecoverError::DamagedRecord { file, offset, proof });
        }
        let mut at = offset.next_multiple_of(MARK_ALIGNMENT);
        while let Some(rest) = usize::try_from(at).ok().and_then(|at| bytes.get(at..)) {
            if let Some(mark) = decode_mark(rest, at, self.active.segment.seed)
                && mark.synced_to > offset
                && mark.synced_to <= at
            {
                let proof = Proof::Mark { offset: at };
                return Err(RecoverError::DamagedRecord { file, offset, proof });
            }
            at += MARK_ALIGNMENT;
        }
        Ok(())
    }

    /// Checks that what lies before the first segment is purged.
    fn check_complete(&self, directory: &Path) -> Result<(), RecoverError> {
        let purged = self.state.purged.map(|purged| purged.index);
        match self.missing_upto {
            Some(upto) if purged < Some(upto) => {
                Err(RecoverError::Hole { directory: directory.to_path_buf(), purged, upto })
            }
            _ => Ok(()),
        }
    }

    fn into_wal(
        self,
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: Identity,
        options: Options,
        spares: Spares,
    ) -> Wal {
        let view = SharedView::default();
        *view.write() = self.view;
        Wal {
            disk,
            directory: directory.to_path_buf(),
            identity,
            options,
            view,
            state: self.state,
            active: self.active,
            spares,
            renew: true,
            poisoned: None,
            stats: WalStats::default(),
            buffer: Vec::new(),
        }
    }
}

impl Active {
    fn beginning(header: &SegmentHeader, segment: OpenSegment) -> Self {
        Self {
            sequence: header.sequence,
            segment,
            position: RECORDS_START,
            synced: RECORDS_START,
            previous: header.previous_crc,
            mark_end: 0,
        }
    }
}

fn next_segment_proof(next: Option<&(SegmentHeader, OpenSegment)>) -> Proof {
    Proof::NextSegment { file: next.map(|(_, segment)| segment.path.clone()).unwrap_or_default() }
}

fn open_segment(
    disk: &dyn Disk,
    directory: &Path,
    identity: Identity,
    sequence: u32,
) -> Result<(SegmentHeader, OpenSegment), RecoverError> {
    let path = segment_path(directory, sequence);
    let file = disk.open(&path, OpenMode::ReadWrite).map_err(io_error(&path))?;
    let found = file.len().map_err(io_error(&path))?;
    let expected = SEGMENT_HEADER_BYTES as u64;
    if found < expected {
        return Err(RecoverError::Short { file: path, found, expected });
    }
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(io_error(&path))?;
    let header = match SegmentHeader::decode(&bytes) {
        Ok(header) => header,
        Err(NotAHeader::Damaged) => return Err(RecoverError::DamagedHeader { file: path }),
        Err(NotAHeader::Version(version)) => {
            return Err(RecoverError::UnsupportedVersion { file: path, version });
        }
    };
    if header.identity != identity {
        let (found, expected) = (header.identity, identity);
        return Err(RecoverError::WrongIdentity { file: path, found, expected });
    }
    if header.sequence != sequence {
        return Err(RecoverError::DamagedHeader { file: path });
    }
    if found < header.length {
        return Err(RecoverError::Short { file: path, found, expected: header.length });
    }
    let seed = Seed::new(identity, sequence);
    Ok((header, OpenSegment { file, path, seed, length: header.length }))
}
