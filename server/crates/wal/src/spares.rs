//! Spare segments: files that are ready to become the next segment.
//!
//! A sync of bytes written over existing zeros costs one flush; into a growing or merely allocated
//! file it costs a journal commit too. So the next segment is filled with zeros ahead of time, a
//! little with every append, and segments that are no longer needed become spares again.
//!
//! The spare is also the reserve for a full disk. A new spare is begun right after the one before was
//! used; if the disk is full then, the log still has (at least half of) the segment it just began.
//! That is told by [`Space::Reserve`], so that the server can refuse writes and let deletes pass long
//! before an append fails.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, File, OpenMode, is_no_space};

use crate::limits::{FIRST_SEGMENT_BYTES, ZERO_FILL_BYTES};
use crate::segment::{spare_path, unfinished_spare_path};

/// How much room the log can count on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// The next segment is there or can be made.
    #[default]
    Ample,
    /// The disk had no room for a next segment: what is left of this one is all there is.
    Reserve,
}

/// A finished spare.
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    pub(crate) length: u64,
}

/// A spare that is being filled with zeros.
struct Filling {
    number: u64,
    file: Arc<dyn File>,
    filled: u64,
    length: u64,
}

/// All spares of a log.
pub(crate) struct Spares {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    ready: VecDeque<Spare>,
    filling: Option<Filling>,
    next_number: u64,
    space: Space,
    /// Bytes of the disk to leave free.
    space_kept: u64,
}

impl Spares {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        directory: &Path,
        next_number: u64,
        space_kept: u64,
    ) -> Self {
        Self {
            disk,
            directory: directory.to_path_buf(),
            ready: VecDeque::new(),
            filling: None,
            next_number,
            space: Space::Ample,
            space_kept,
        }
    }

    pub(crate) fn space(&self) -> Space {
        self.space
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes in a finished file: one found at start, or a segment no longer needed.
    pub(crate) fn adopt(&mut self, spare: Spare) {
        self.ready.push_back(spare);
        self.space = Space::Ample;
    }

    /// The name for a segment that becomes a spare.
    pub(crate) fn next_path(&mut self) -> PathBuf {
        let number = self.next_number;
        self.next_number += 1;
        spare_path(&self.directory, number)
    }

    /// Whether a spare is ready or the disk is full.
    pub(crate) fn is_settled(&self) -> bool {
        !self.ready.is_empty() || self.space == Space::Reserve
    }

    /// Does one bounded step towards having a spare of `length` bytes, if there is none.
    pub(crate) fn fill_step(&mut self, length: u64) -> io::Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let Some(length) = self.affordable(length)? else {
            self.space = Space::Reserve;
            return Ok(());
        };
        match self.try_fill_step(length) {
            Ok(()) => Ok(()),
            Err(error) if is_no_space(&error) => {
                self.give_up_filling();
                self.space = Space::Reserve;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The length for a new spare: as wanted, or halved until what is to be kept stays free. None when
    /// even a small one would not leave it.
    fn affordable(&self, wanted: u64) -> io::Result<Option<u64>> {
        if self.filling.is_some() || self.space_kept == 0 {
            return Ok(Some(wanted));
        }
        let free = self.disk.available_space(&self.directory)?;
        let room = free.saturating_sub(self.space_kept);
        let least = wanted.min(FIRST_SEGMENT_BYTES);
        let halves = std::iter::successors(Some(wanted), |length| Some((length / 2) & !4095));
        Ok(halves.take_while(|length| *length >= least).find(|length| *length <= room))
    }

    /// The bytes of the spare in the making.
    pub(crate) fn filled(&self) -> u64 {
        self.filling.as_ref().map_or(0, |filling| filling.filled)
    }

    /// Makes sure that `count` spares of at least `length_min` bytes are ready, waiting for as long as
    /// that takes. New ones get `length` bytes.
    ///
    /// # Errors
    /// "No space" leaves what there was.
    pub(crate) fn ensure(&mut self, count: usize, length_min: u64, length: u64) -> io::Result<()> {
        let length = length.max(length_min);
        while self.fitting(length_min) < count {
            if self.filling.as_ref().is_some_and(|filling| filling.length < length_min) {
                self.give_up_filling();
            }
            if let Err(error) = self.try_fill_step(length) {
                if is_no_space(&error) {
                    self.give_up_filling();
                    self.space = Space::Reserve;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn fitting(&self, length_min: u64) -> usize {
        self.ready.iter().filter(|spare| spare.length >= length_min).count()
    }

    /// Takes a spare of at least `length_min` bytes.
    pub(crate) fn take(&mut self, length_min: u64) -> Option<Spare> {
        let at = self.ready.iter().position(|spare| spare.length >= length_min)?;
        self.ready.remove(at)
    }

    /// Puts back a spare that was not used after all.
    pub(crate) fn put_back(&mut self, spare: Spare) {
        self.ready.push_front(spare);
    }

    /// Allows another attempt after the disk was full.
    pub(crate) fn retry(&mut self) {
        self.space = Space::Ample;
    }

    fn try_fill_step(&mut self, length: u64) -> io::Result<()> {
        if self.filling.is_none() {
            let number = self.next_number;
            self.next_number += 1;
            let path = unfinished_spare_path(&self.directory, number);
            let file = self.disk.open(&path, OpenMode::Create)?;
            self.filling = Some(Filling { number, file, filled: 0, length });
        }
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let step = ZERO_FILL_BYTES.min(filling.length - filling.filled);
        filling.file.write_all_at(&vec![0; step as usize], filling.filled)?;
        filling.file.sync_data()?;
        filling.filled += step;
        if filling.filled < filling.length {
            return Ok(());
        }
        filling.file.sync_all()?;
        let path = spare_path(&self.directory, filling.number);
        self.disk.rename(&unfinished_spare_path(&self.directory, filling.number), &path)?;
        self.disk.sync_dir(&self.directory)?;
        let (file, length) = (Arc::clone(&filling.file), filling.length);
        self.filling = None;
        self.adopt(Spare { path, file, length });
        Ok(())
    }

    /// Drops the unfinished file, so that its bytes are free for others.
    fn give_up_filling(&mut self) {
        if let Some(filling) = self.filling.take() {
            let path = unfinished_spare_path(&self.directory, filling.number);
            if let Err(error) = self.disk.remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "could not remove unfinished segment");
            }
        }
    }
}
