//! From one segment to the next, and what becomes of old ones.
//!
//! ```text
//! sync the full segment → header into a spare → sync it → rename it → sync the directory → append
//! ```
//!
//! After that order a segment with a name has a valid header, and everything before it is durable.

use std::io;
use std::path::Path;
use std::sync::Arc;

use disk::{Disk, is_no_space};

use crate::limits::{RECORDS_START, ZERO_FILL_BYTES};
use crate::log_state::LogState;
use crate::reader::OpenSegment;
use crate::record::Seed;
use crate::segment::{SegmentHeader, capacity, segment_path};
use crate::spares::Spare;
use crate::wal::{Active, Wal, WalError};

/// How far [`install`] came.
pub(crate) enum InstallError {
    /// The spare is as good as before.
    Unchanged(io::Error),
    /// It is unknown which name the file has, or whether its header is durable.
    Unknown(io::Error),
}

impl InstallError {
    pub(crate) fn into_source(self) -> io::Error {
        match self {
            InstallError::Unchanged(source) | InstallError::Unknown(source) => source,
        }
    }
}

/// Turns a spare into a segment.
pub(crate) fn install(
    disk: &dyn Disk,
    directory: &Path,
    spare: &Spare,
    header: &SegmentHeader,
) -> Result<OpenSegment, InstallError> {
    let judge = |error: io::Error| {
        if is_no_space(&error) {
            InstallError::Unchanged(error)
        } else {
            InstallError::Unknown(error)
        }
    };
    spare.file.write_all_at(&header.encode(), 0).map_err(judge)?;
    spare.file.sync_data().map_err(InstallError::Unknown)?;
    let path = segment_path(directory, header.sequence);
    disk.rename(&spare.path, &path).map_err(judge)?;
    disk.sync_dir(directory).map_err(InstallError::Unknown)?;
    let seed = Seed::new(header.identity, header.sequence);
    Ok(OpenSegment { file: Arc::clone(&spare.file), path, seed, length: header.length })
}

impl Wal {
    /// Goes to the next segment, whose spare the caller has made sure of.
    pub(crate) fn rotate(&mut self, length_min: u64, incarnation: u64) -> Result<(), WalError> {
        self.sync()?;
        let Some(spare) = self.spares.take(length_min) else {
            return Err(self.no_space(length_min));
        };
        let sequence = self.active.sequence.checked_add(1).ok_or_else(|| self.no_space(0))?;
        let state = LogState { incarnation, ..self.state };
        let header = SegmentHeader {
            identity: self.identity,
            sequence,
            length: spare.length,
            previous_end: self.active.position,
            previous_crc: self.active.previous,
            state,
        };
        let segment = match install(&*self.disk, &self.directory, &spare, &header) {
            Ok(segment) => segment,
            Err(InstallError::Unchanged(_)) => {
                self.spares.put_back(spare);
                return Err(self.no_space(length_min));
            }
            Err(InstallError::Unknown(source)) => {
                return Err(self.poison("begin segment", &spare.path, source));
            }
        };
        self.view.write().segments.insert(sequence, segment.clone());
        self.state = state;
        self.active = Active {
            sequence,
            segment,
            position: RECORDS_START,
            synced: RECORDS_START,
            previous: self.active.previous,
            mark_end: 0,
        };
        self.stats.rotations += 1;
        Ok(())
    }

    /// The length of the next segment: twice this one's, until the configured length.
    fn next_length(&self) -> u64 {
        self.active.segment.length.saturating_mul(2).min(self.options.segment_bytes)
    }

    pub(crate) fn ensure_spares(&mut self, count: usize, length_min: u64) -> Result<(), WalError> {
        let next = self.next_length();
        let length = if next < length_min { self.options.segment_bytes } else { next };
        match self.spares.ensure(count, length_min, length) {
            Ok(()) => Ok(()),
            Err(error) if is_no_space(&error) => Err(self.no_space(length_min)),
            Err(error) => Err(self.poison("prepare segment in", &self.directory.clone(), error)),
        }
    }

    /// Fills the next segment in proportion to the use of this one, so that it is ready when this one
    /// is half full, and no append waits for more than a few steps.
    pub(crate) fn keep_pace(&mut self) -> Result<(), WalError> {
        let length = self.next_length();
        let used = self.active.position - RECORDS_START;
        let due = (2 * used).saturating_mul(length) / capacity(self.active.segment.length);
        while !self.spares.is_settled() {
            let filled = self.spares.filled();
            if filled + ZERO_FILL_BYTES.min(length.saturating_sub(filled)) > due {
                break;
            }
            self.fill_step()?;
        }
        Ok(())
    }

    pub(crate) fn fill_step(&mut self) -> Result<(), WalError> {
        let length = self.next_length();
        match self.spares.fill_step(length) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.poison("prepare segment in", &self.directory.clone(), error)),
        }
    }

    /// Gives back the segments before the one that holds the first entry. Everything that says so must
    /// be durable already. One at a time, oldest first, each rename made durable: otherwise a crash
    /// could leave a gap in the sequence, or a file whose name and header disagree.
    pub(crate) fn recycle(&mut self) -> Result<(), WalError> {
        loop {
            let oldest = {
                let view = self.view.read();
                let first = view.positions.first_segment().unwrap_or(self.active.sequence);
                let first = first.min(self.active.sequence);
                view.segments
                    .range(..first)
                    .next()
                    .map(|(number, segment)| (*number, segment.clone()))
            };
            let Some((sequence, segment)) = oldest else { return Ok(()) };
            let keep = self.spares.ready() < self.options.spare_segments_max
                && segment.length == self.options.segment_bytes;
            let outcome = if keep {
                let path = self.spares.next_path();
                self.disk.rename(&segment.path, &path).map(|()| Some(path))
            } else {
                self.disk.remove_file(&segment.path).map(|()| None)
            };
            let spare = match outcome {
                Ok(spare) => spare,
                // The segment stays; a later purge tries again.
                Err(error) if is_no_space(&error) => return Ok(()),
                Err(error) => return Err(self.poison("recycle", &segment.path, error)),
            };
            if let Err(error) = self.disk.sync_dir(&self.directory) {
                return Err(self.poison("sync", &self.directory.clone(), error));
            }
            self.view.write().segments.remove(&sequence);
            match spare {
                Some(path) => {
                    self.stats.recycled += 1;
                    let OpenSegment { file, length, .. } = segment;
                    self.spares.adopt(Spare { path, file, length });
                }
                None => self.stats.removed += 1,
            }
        }
    }

    // === failing ===

    pub(crate) fn check_poisoned(&self) -> Result<(), WalError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(WalError::Poisoned { cause: cause.clone() }),
        }
    }

    pub(crate) fn poison(
        &mut self,
        operation: &'static str,
        file: &Path,
        source: io::Error,
    ) -> WalError {
        let error = WalError::Io { operation, file: file.to_path_buf(), source };
        self.poisoned.get_or_insert_with(|| error.to_string());
        error
    }

    pub(crate) fn no_space(&self, needed: u64) -> WalError {
        WalError::NoSpace { needed, directory: self.directory.clone() }
    }
}
