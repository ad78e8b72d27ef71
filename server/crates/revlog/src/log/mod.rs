//! The default engine: a log of records in segment files.
//!
//! ```text
//! append → staging → write buffer (RAM) ──full──→ file, in big writes ──flush──→ fsync, manifest
//!                         │                          │
//! get, scan ──────────────┴──── recent writes (RAM) ─┴──→ file (page cache), checksum compared
//! ```
//!
//! # Invariants
//!
//! * Segments in order of id hold strictly increasing revisions; inside a segment records lie
//!   without gaps, so a record's length is the distance to the next.
//! * A record can be read from the moment [`RevStore::append`] returns: its place and its bytes in
//!   the buffer are published under one lock.
//! * [`manifest`] says what is durable. At start everything it covers must be there, whole and
//!   valid, and everything beyond it is removed: the Raft log brings that again.
//! * Only segments before the manifest's tail are dropped or rewritten ([`reclaim`]), and only by
//!   way of the manifest: a crash at any step leaves the old files or the new ones.
//!
//! # Locks
//!
//! Taken in this order: `maintenance` (held through a whole flush or reclaim, which are background
//! work and may wait for the disk), `writer` (held by the one appender, also while it writes the
//! full buffer out), `state` (held for moments, never across I/O). So a flush does not stop the
//! appender, and no I/O of either stops a reader.
//!
//! # When the disk is full
//!
//! A write that finds no space loses nothing: the bytes stay in the buffer, reads go on, and
//! [`RevStore::append`] succeeds until the buffer holds [`UNWRITTEN_BYTES_MAX`]. `flush` reports the
//! error, so no image is written and the Raft log is kept.

mod dead;
mod format;
mod manifest;
mod open;
mod positions;
mod read;
mod recent;
mod reclaim;
mod segment;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use disk::Disk;
use types::{LogIndex, RecordRevision, Revision};

use crate::{Record, RevStore, RevStoreError, StoreSize};
use format::{RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentName};
use manifest::{Extent, Manifest};
use recent::Recent;
use segment::{Segment, SegmentFile};

/// The buffer may grow to this while the disk has no space; then an append fails.
const UNWRITTEN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A segment may grow beyond its goal while no new file can be created, but never beyond this.
const SEGMENT_BYTES_LIMIT: u64 = 2 << 30;

const _: () = assert!(SEGMENT_BYTES_LIMIT + RECORD_BYTES_MAX as u64 + 64 < u32::MAX as u64);

/// The sizes that trade memory against system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevLogOptions {
    /// A segment is sealed when it reaches this; at most 2 GiB.
    pub segment_bytes: u32,
    /// The buffer is written to the file when it holds this much.
    pub write_bytes: usize,
    /// How much of what was written last is kept in memory for readers.
    pub recent_bytes: usize,
}

impl Default for RevLogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            write_bytes: 1024 * 1024,
            recent_bytes: 8 * 1024 * 1024,
        }
    }
}

/// A [`RevStore`] of segment files in one directory.
pub struct RevLog {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    options: RevLogOptions,
    /// Guards the files and the manifest against two flushes or reclaims at once; the value is what
    /// the manifest on disk says. A std mutex: it is held across file I/O by background threads.
    maintenance: Mutex<Manifest>,
    /// Guards the order of appends. A std mutex: there is one appender, which never waits for it
    /// but while a flush takes the buffer.
    writer: Mutex<Writer>,
    /// What readers look at; held for moments.
    state: RwLock<State>,
    flushed: AtomicU64,
    /// Set by the first write or sync that failed: nothing is written after it.
    broken: AtomicBool,
}

/// What only the appender needs.
struct Writer {
    staging: Vec<u8>,
    staged: Vec<(RecordRevision, u32)>,
    /// Where the next record will begin in the active segment, staged ones counted.
    end: u32,
    /// The transaction of the active segment's first record, staged ones counted.
    first_main: Option<i64>,
    /// The active segment's.
    seed: u32,
    last: Option<RecordRevision>,
    /// Segments sealed since the last flush: their files are not synced yet.
    unsynced: Vec<Arc<SegmentFile>>,
}

impl Writer {
    fn new(active: &Segment, last: Option<RecordRevision>) -> Self {
        let mut writer = Self {
            staging: Vec::new(),
            staged: Vec::new(),
            end: 0,
            first_main: None,
            seed: 0,
            last,
            unsynced: Vec::new(),
        };
        writer.follow(active);
        writer
    }

    /// Goes on in this segment, with nothing staged.
    fn follow(&mut self, active: &Segment) {
        self.end = active.positions.end();
        self.first_main = active.positions.first().map(|first| first.main);
        self.seed = active.file.seed;
    }
}

/// What readers see.
struct State {
    /// Before the active one, in order; none is empty.
    sealed: Vec<Segment>,
    active: Segment,
    /// The end of the active segment, not yet in its file.
    buffer: Vec<u8>,
    /// Where the buffer begins in the active segment.
    buffer_start: u32,
    /// How much of the active segment is in its file. Less than `buffer_start` only while a full
    /// buffer is being written; readers find those bytes in `recent`.
    written: u32,
    recent: Recent,
}

impl State {
    /// The segments in order of revision.
    fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.sealed.iter().chain(std::iter::once(&self.active))
    }
}

/// Turns an I/O error into one that says what was done to which file.
fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> RevStoreError + use<> {
    let path = path.display().to_string();
    move |source| RevStoreError::Io { operation, path, source }
}

fn is_no_space(error: &RevStoreError) -> bool {
    matches!(error, RevStoreError::Io { source, .. } if disk::is_no_space(source))
}

impl RevLog {
    /// Opens the store in `directory`, creating it if there is none.
    ///
    /// # Errors
    /// `Damaged` if something that a flush made durable is gone or changed; the message says which
    /// file, where, and what to do. Nothing is changed on disk in that case.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: impl Into<PathBuf>,
        options: RevLogOptions,
    ) -> Result<Self, RevStoreError> {
        let directory = directory.into();
        disk.create_dir_all(&directory).map_err(io_error("create", &directory))?;
        let (manifest, sealed, active) = match Manifest::read(&*disk, &directory)? {
            Some(manifest) => open::load(&*disk, &directory, manifest)?,
            None => open::create(&*disk, &directory)?,
        };
        let last = sealed
            .iter()
            .chain(std::iter::once(&active))
            .rev()
            .find_map(|segment| segment.positions.last());
        let flushed = AtomicU64::new(manifest.applied.0);
        let buffer_start = active.positions.end();
        let recent = Recent::new(options.recent_bytes);
        Ok(Self {
            disk,
            directory,
            options,
            maintenance: Mutex::new(manifest),
            writer: Mutex::new(Writer::new(&active, last)),
            state: RwLock::new(State {
                sealed,
                active,
                buffer: Vec::new(),
                buffer_start,
                written: buffer_start,
                recent,
            }),
            flushed,
            broken: AtomicBool::new(false),
        })
    }

    /// Reads every record and compares its checksum; for a scrub in the background.
    pub fn verify(&self) -> Result<(), RevStoreError> {
        let from = RecordRevision { main: 0, sub: 0 };
        let until = RecordRevision { main: i64::MAX, sub: i64::MAX };
        self.scan(from, until, &mut |_| ControlFlow::Continue(()))
    }

    // A panic while a lock is held can leave no half-made change that matters: every change is
    // published by its last step. So poison is not passed on.
    fn maintenance(&self) -> MutexGuard<'_, Manifest> {
        self.maintenance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses everything that writes once a write or sync has failed.
    fn check_usable(&self) -> Result<(), RevStoreError> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        let source = std::io::Error::other("an earlier write or sync failed; restart this member");
        Err(io_error("write to", &self.directory)(source))
    }

    /// Notes an error after which what is on disk is unknown. A full disk is not one.
    fn note<T>(&self, result: Result<T, RevStoreError>) -> Result<T, RevStoreError> {
        if let Err(error) = &result
            && !is_no_space(error)
        {
            self.broken.store(true, Ordering::Release);
        }
        result
    }
}

// === append ===

impl RevLog {
    fn stage(&self, writer: &mut Writer, record: &Record) -> Result<(), RevStoreError> {
        let revision = record.revision;
        let sub = u32::try_from(revision.sub).ok();
        let ordered = writer.last.is_none_or(|last| last < revision) && revision.main >= 0;
        let Some(sub) = sub.filter(|_| ordered && record.key_value.len() <= RECORD_BYTES_MAX)
        else {
            return Err(RevStoreError::Engine {
                engine: "revlog",
                detail: format!(
                    "record {revision} of {} bytes after {:?} breaks the order or the limits",
                    record.key_value.len(),
                    writer.last
                ),
            });
        };
        if self.must_seal(writer, revision) {
            self.publish(writer);
            self.seal(writer)?;
        }
        format::encode_record(&mut writer.staging, writer.seed, writer.end, sub, record);
        let bytes = format::record_bytes(&record.key_value) as u32;
        writer.staged.push((revision, bytes));
        writer.end += bytes;
        writer.first_main.get_or_insert(revision.main);
        writer.last = Some(revision);
        Ok(())
    }

    fn must_seal(&self, writer: &Writer, revision: RecordRevision) -> bool {
        let Some(first_main) = writer.first_main else { return false };
        let goal = u64::from(self.options.segment_bytes).min(SEGMENT_BYTES_LIMIT);
        u64::from(writer.end) >= goal || u32::try_from(revision.main - first_main).is_err()
    }

    /// Shows the staged records to the readers.
    fn publish(&self, writer: &mut Writer) {
        let mut state = self.state_mut();
        state.buffer.extend_from_slice(&writer.staging);
        for (revision, bytes) in writer.staged.drain(..) {
            state.active.positions.push(revision, bytes);
        }
        writer.staging.clear();
    }

    /// Writes the buffer to the file. Readers find its bytes in `recent` meanwhile.
    fn write_buffer(&self) -> Result<(), RevStoreError> {
        let (file, start, bytes) = {
            let mut state = self.state_mut();
            let bytes = Bytes::from(std::mem::take(&mut state.buffer));
            let start = state.buffer_start;
            state.buffer_start += bytes.len() as u32;
            let file = state.active.file.clone();
            state.recent.push(file.name, start, bytes.clone());
            (file, start, bytes)
        };
        let written = file.file.write_all_at(&bytes, u64::from(start));
        let mut state = self.state_mut();
        match written {
            Ok(()) => {
                state.written = start + bytes.len() as u32;
                // The room of an old write serves again: fresh memory would be cleared page by page.
                state.buffer = state.recent.evict();
                Ok(())
            }
            Err(error) => {
                state.recent.pop();
                state.buffer_start = start;
                state.buffer = Vec::from(bytes);
                Err(io_error("write", &file.path)(error))
            }
        }
    }

    /// Ends the active segment and begins the next. The footer need not be durable: a sealed
    /// segment without one is scanned.
    fn seal(&self, writer: &mut Writer) -> Result<(), RevStoreError> {
        let sealed = self.try_seal(writer);
        match self.note(sealed) {
            Err(error) if is_no_space(&error) => {
                tracing::warn!(%error, "no space for a new segment: go on in the old one");
                if u64::from(writer.end) < SEGMENT_BYTES_LIMIT { Ok(()) } else { Err(error) }
            }
            other => other,
        }
    }

    fn try_seal(&self, writer: &mut Writer) -> Result<(), RevStoreError> {
        self.write_buffer()?;
        let (file, footer) = {
            let state = self.state();
            let file = state.active.file.clone();
            (file.clone(), format::encode_footer(file.seed, &state.active.positions))
        };
        let name = SegmentName { id: file.name.id + 1, generation: 0 };
        let next = open::create_tail(&*self.disk, &self.directory, name)?;
        let end = self.state().buffer_start;
        let wrote = file.file.write_all_at(&footer, u64::from(end));
        wrote.map_err(io_error("write", &file.path))?;
        writer.unsynced.push(file);
        let mut state = self.state_mut();
        let mut old = std::mem::replace(&mut state.active, next);
        old.footer_bytes = footer.len() as u64;
        state.sealed.push(old);
        state.buffer_start = SEGMENT_HEADER_BYTES;
        state.written = SEGMENT_HEADER_BYTES;
        writer.follow(&state.active);
        Ok(())
    }
}

// === flush and truncate ===

impl RevLog {
    /// Makes everything appended so far durable. The caller holds `maintenance` and gives what the
    /// manifest says now.
    fn flush_locked(
        &self,
        manifest: &mut Manifest,
        applied: LogIndex,
    ) -> Result<(), RevStoreError> {
        let (sealed, tail, mut unsynced, active) = {
            let mut writer = self.writer();
            self.write_buffer()?;
            let state = self.state();
            let sealed: Vec<Extent> = state.sealed.iter().map(Segment::extent).collect();
            let unsynced = std::mem::take(&mut writer.unsynced);
            (sealed, state.active.extent(), unsynced, state.active.file.clone())
        };
        let synced = unsynced.iter().chain(std::iter::once(&active)).try_for_each(|file| {
            // A failed sync never heals, not even one for lack of space: see the disk's contract.
            let result = file.file.sync_data().map_err(io_error("sync", &file.path));
            if result.is_err() {
                self.broken.store(true, Ordering::Release);
            }
            result
        });
        let names_changed =
            tail.name != manifest.tail.name || manifest.tail.end < SEGMENT_HEADER_BYTES;
        let next = Manifest { applied, tail, sealed };
        let done = synced
            .and_then(|()| if names_changed { self.sync_directory() } else { Ok(()) })
            .and_then(|()| next.write(&*self.disk, &self.directory));
        if let Err(error) = done {
            self.writer().unsynced.append(&mut unsynced);
            return Err(error);
        }
        *manifest = next;
        self.flushed.store(applied.0, Ordering::Release);
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), RevStoreError> {
        self.disk.sync_dir(&self.directory).map_err(io_error("sync", &self.directory))
    }

    /// Finds the first record above `revision`: its segment's index (the active one comes last) and
    /// its ordinal.
    fn first_above(state: &State, revision: Revision) -> Option<(usize, usize)> {
        let from = RecordRevision { main: revision.0.checked_add(1)?, sub: 0 };
        state.segments().enumerate().find_map(|(index, segment)| {
            let ordinal = segment.positions.lower_bound(from);
            (ordinal < segment.positions.len()).then_some((index, ordinal))
        })
    }

    fn truncate_locked(
        &self,
        manifest: &mut Manifest,
        writer: &mut Writer,
        revision: Revision,
    ) -> Result<(), RevStoreError> {
        self.write_buffer()?;
        let (kept, cut) = {
            let state = self.state();
            let Some((index, ordinal)) = Self::first_above(&state, revision) else {
                return Ok(());
            };
            let segments: Vec<&Segment> = state.segments().collect();
            let end = segments[index].positions.offset(ordinal);
            let cut = Extent { name: segments[index].file.name, end };
            (segments[..index].iter().map(|kept| kept.extent()).collect::<Vec<_>>(), cut)
        };
        // Durable records are given up by the manifest first; the files follow. A crash between
        // leaves bytes beyond the mark, which the next start cuts off.
        if (cut.name.id, cut.end) < (manifest.tail.name.id, manifest.tail.end) {
            let next = Manifest { applied: manifest.applied, tail: cut, sealed: kept };
            next.write(&*self.disk, &self.directory)?;
            *manifest = next;
        }
        let removed = {
            let mut state = self.state_mut();
            let removed = Self::cut_state(&mut state, cut);
            writer.last = state.segments().rev().find_map(|segment| segment.positions.last());
            writer.follow(&state.active);
            removed
        };
        writer.unsynced.retain(|file| file.name.id < cut.name.id);
        for file in &removed {
            self.disk.remove_file(&file.path).map_err(io_error("remove", &file.path))?;
        }
        let state = self.state();
        let active = &state.active.file;
        active.file.set_len(u64::from(cut.end)).map_err(io_error("cut", &active.path))
    }

    /// Makes the segment at the cut the active one and gives back the files of those after it.
    fn cut_state(state: &mut State, cut: Extent) -> Vec<Arc<SegmentFile>> {
        let mut removed = Vec::new();
        while state.active.file.name != cut.name {
            let previous = state.sealed.pop().expect("the cut lies in one of the segments");
            removed.push(std::mem::replace(&mut state.active, previous).file);
        }
        let active = &mut state.active;
        let count = active.positions.lower_bound_offset(cut.end);
        active.dead = active.dead.truncated(count, &active.positions);
        active.positions.truncate(count);
        active.footer_bytes = 0;
        state.buffer.clear();
        state.buffer_start = cut.end;
        state.written = cut.end;
        state.recent.clear();
        removed
    }
}

impl RevStore for RevLog {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        self.check_usable()?;
        let mut writer = self.writer();
        for record in records {
            let staged = self.stage(&mut writer, record);
            self.note(staged)?;
        }
        self.publish(&mut writer);
        let buffered = self.state().buffer.len();
        if buffered < self.options.write_bytes {
            return Ok(());
        }
        let written = self.write_buffer();
        match self.note(written) {
            Err(error) if is_no_space(&error) && buffered < UNWRITTEN_BYTES_MAX => Ok(()),
            other => other,
        }
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        self.read_one(revision)
    }

    fn key_value_bytes(&self, revisions: &[RecordRevision]) -> Result<u64, RevStoreError> {
        Ok(self.lengths(revisions))
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        self.read_range(from, until, visit)
    }

    /// Space comes back when a whole segment is dead, or more than half of one. A disk too full for
    /// a rewrite is no error here: the space comes back later.
    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError> {
        self.check_usable()?;
        let mut manifest = self.maintenance();
        self.mark_dead(revisions);
        let done = self.reclaim(&mut manifest, reclaim::Goal::HalfDead);
        match self.note(done) {
            Err(error) if is_no_space(&error) => {
                tracing::warn!(%error, "no space to rewrite a segment");
                Ok(())
            }
            other => other,
        }
    }

    /// Called at start, before readers come: a reader that holds a place in what is cut gets an
    /// error. [`RevStore::flushed`] stays: it tells of the last flush, and the log brings again what
    /// is cut here.
    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError> {
        self.check_usable()?;
        let mut manifest = self.maintenance();
        let mut writer = self.writer();
        let done = self.truncate_locked(&mut manifest, &mut writer, revision);
        self.note(done)
    }

    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError> {
        self.check_usable()?;
        let mut manifest = self.maintenance();
        let done = self.flush_locked(&mut manifest, applied);
        self.note(done)?;
        self.save_dead(&manifest)
    }

    fn flushed(&self) -> LogIndex {
        LogIndex(self.flushed.load(Ordering::Acquire))
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        Ok(self.state().segments().rev().find_map(|segment| segment.positions.last()))
    }

    fn size(&self) -> StoreSize {
        let state = self.state();
        // Of the headers one: that of the segment that is written, which an empty store has, too.
        let least = StoreSize { total: 0, in_use: u64::from(SEGMENT_HEADER_BYTES) };
        state.segments().fold(least, |size, segment| StoreSize {
            total: size.total + segment.file_bytes(),
            in_use: size.in_use + segment.live_bytes(),
        })
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        self.check_usable()?;
        let mut manifest = self.maintenance();
        let done = self.reclaim_all(&mut manifest);
        self.note(done)
    }
}
