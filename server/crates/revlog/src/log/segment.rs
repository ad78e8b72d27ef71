//! One segment: its file, the places of its records, which of them are dead; and how it is loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use disk::{Disk, File, OpenMode};

use super::dead::Dead;
use super::format::{self, Flaw, SEGMENT_HEADER_BYTES, SegmentName, TRAILER_BYTES, Trust};
use super::io_error;
use super::manifest::Extent;
use super::positions::Positions;
use crate::RevStoreError;

/// Bytes read at once when a segment is scanned.
const SCAN_BYTES: usize = 1024 * 1024;
/// No bitmap is longer: it has a bit per record and a record has 21 bytes of a 4 GiB file.
const DEAD_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A segment's file, shared with the readers that found a place in it.
pub(super) struct SegmentFile {
    pub(super) name: SegmentName,
    pub(super) seed: u32,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
}

impl SegmentFile {
    /// Creates the file. What may stand under the name is the remains of an attempt that failed.
    pub(super) fn create(
        disk: &dyn Disk,
        directory: &Path,
        name: SegmentName,
    ) -> Result<Self, RevStoreError> {
        let path = directory.join(name.segment_file());
        let file = disk
            .open(&path, OpenMode::CreateOrOpen)
            .and_then(|file| file.set_len(0).map(|()| file))
            .map_err(io_error("create", &path))?;
        Ok(Self { name, seed: name.seed(), path, file })
    }

    fn open(disk: &dyn Disk, directory: &Path, name: SegmentName) -> Result<Self, RevStoreError> {
        let path = directory.join(name.segment_file());
        let file = match disk.open(&path, OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(&path, 0, "the manifest lists this segment but it is missing"));
            }
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        Ok(Self { name, seed: name.seed(), path, file })
    }

    /// Reads exactly these bytes; a file that ends before them is damaged.
    pub(super) fn read(&self, offset: u32, length: usize) -> Result<Bytes, RevStoreError> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, u64::from(offset)) {
            Ok(()) => Ok(Bytes::from(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(damaged(&self.path, offset, "the file ends inside durable records"))
            }
            Err(error) => Err(io_error("read", &self.path)(error)),
        }
    }

    pub(super) fn flaw(&self, offset: u32, flaw: Flaw) -> RevStoreError {
        damaged(&self.path, offset, flaw)
    }
}

/// The error for bytes that were durable and are not what they were.
fn damaged(path: &Path, offset: u32, detail: impl std::fmt::Display) -> RevStoreError {
    RevStoreError::Damaged {
        path: path.display().to_string(),
        offset: u64::from(offset),
        detail: format!(
            "{detail}; the disk lost data that it had confirmed: remove this member's data \
             directory and let it rejoin, or restore a backup"
        ),
    }
}

/// A segment as readers and the writer know it.
pub(super) struct Segment {
    pub(super) file: Arc<SegmentFile>,
    pub(super) positions: Positions,
    pub(super) dead: Dead,
    /// Bytes of the records' file beyond the records: the footer.
    pub(super) footer_bytes: u64,
}

impl Segment {
    /// A segment without records.
    pub(super) fn empty(file: SegmentFile) -> Self {
        Self {
            file: Arc::new(file),
            positions: Positions::new(SEGMENT_HEADER_BYTES),
            dead: Dead::default(),
            footer_bytes: 0,
        }
    }

    /// Opens a sealed segment by its footer, or by reading all records if the footer is no good.
    pub(super) fn load_sealed(
        disk: &dyn Disk,
        directory: &Path,
        extent: Extent,
    ) -> Result<Self, RevStoreError> {
        let file = SegmentFile::open(disk, directory, extent.name)?;
        check_header(&file)?;
        let length = file.file.len().map_err(io_error("measure", &file.path))?;
        let positions = match read_footer(&file, length, extent.end)? {
            Some(positions) => positions,
            None => {
                tracing::warn!(path = %file.path.display(), "segment without valid footer: scan");
                scan_records(&file, extent.end)?
            }
        };
        let dead = load_dead(disk, directory, extent.name, &positions);
        let footer_bytes = length.saturating_sub(u64::from(extent.end));
        Ok(Self { file: Arc::new(file), positions, dead, footer_bytes })
    }

    /// Opens the segment that was being written: everything up to the mark must be there, and what
    /// lies beyond is cut off.
    pub(super) fn load_tail(
        disk: &dyn Disk,
        directory: &Path,
        extent: Extent,
    ) -> Result<Self, RevStoreError> {
        let file = SegmentFile::open(disk, directory, extent.name)?;
        check_header(&file)?;
        let positions = scan_records(&file, extent.end)?;
        let length = file.file.len().map_err(io_error("measure", &file.path))?;
        if length > u64::from(extent.end) {
            file.file.set_len(u64::from(extent.end)).map_err(io_error("cut", &file.path))?;
        }
        let dead = load_dead(disk, directory, extent.name, &positions);
        Ok(Self { file: Arc::new(file), positions, dead, footer_bytes: 0 })
    }

    /// Bytes of records that are not dead.
    pub(super) fn live_bytes(&self) -> u64 {
        u64::from(self.positions.end() - SEGMENT_HEADER_BYTES) - self.dead.bytes()
    }

    /// Bytes of the file of records.
    pub(super) fn file_bytes(&self) -> u64 {
        u64::from(self.positions.end()) + self.footer_bytes
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { name: self.file.name, end: self.positions.end() }
    }
}

fn check_header(file: &SegmentFile) -> Result<(), RevStoreError> {
    let header = file.read(0, SEGMENT_HEADER_BYTES as usize)?;
    if header[..] == file.name.header() {
        return Ok(());
    }
    Err(damaged(&file.path, 0, "the segment header is not the one of this segment"))
}

fn read_footer(
    file: &SegmentFile,
    length: u64,
    end: u32,
) -> Result<Option<Positions>, RevStoreError> {
    let footer_length = length.saturating_sub(u64::from(end));
    if footer_length < TRAILER_BYTES as u64 || footer_length > u64::from(u32::MAX) {
        return Ok(None);
    }
    let footer = file.read(end, footer_length as usize)?;
    let Some(trailer) = footer.last_chunk::<TRAILER_BYTES>() else { return Ok(None) };
    if format::footer_bytes(trailer).map(u64::from) != Some(footer_length) {
        return Ok(None);
    }
    Ok(format::decode_footer(file.seed, &footer).filter(|positions| positions.end() == end))
}

/// Reads every record up to `end`, where the last one must end.
fn scan_records(file: &SegmentFile, end: u32) -> Result<Positions, RevStoreError> {
    let mut positions = Positions::new(SEGMENT_HEADER_BYTES);
    let mut window = Bytes::new();
    let mut window_end = SEGMENT_HEADER_BYTES;
    while positions.end() < end {
        let offset = positions.end();
        match format::decode_record(&mut window, file.seed, offset, Trust::File) {
            Ok(record) => {
                let ordered = positions.last().is_none_or(|last| last < record.revision)
                    && record.revision.main >= 0
                    && positions.fits(record.revision);
                if !ordered {
                    return Err(file.flaw(offset, Flaw::Misplaced));
                }
                let bytes = format::record_bytes(&record.key_value);
                positions.push(record.revision, bytes as u32);
            }
            Err(Flaw::Short) if window_end < end => {
                // Read on from the record that the window cuts; it may be longer than a window.
                let wanted = (window.len() * 2).max(SCAN_BYTES);
                let length = wanted.min((end - offset) as usize);
                window = file.read(offset, length)?;
                window_end = offset + length as u32;
            }
            Err(flaw) => return Err(file.flaw(offset, flaw)),
        }
    }
    if positions.end() == end {
        return Ok(positions);
    }
    Err(file.flaw(end, Flaw::Misplaced))
}

/// The removed records of a segment, as far as a file remembers them.
fn load_dead(disk: &dyn Disk, directory: &Path, name: SegmentName, positions: &Positions) -> Dead {
    let path = directory.join(name.dead_file());
    match disk::read_file(disk, &path, DEAD_FILE_BYTES_MAX) {
        Ok(bytes) => Dead::decode(&bytes, positions).unwrap_or_else(|| {
            tracing::warn!(path = %path.display(), "ignore the list of removed records");
            Dead::default()
        }),
        Err(_) => Dead::default(),
    }
}
