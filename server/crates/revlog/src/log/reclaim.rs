//! Giving space back: dead segments are dropped, mostly dead ones rewritten.
//!
//! ```text
//! write new segments → fsync each → fsync directory → manifest → swap in memory → remove old files
//! ```
//! A crash before the manifest leaves new files that nobody lists, one after it old files that
//! nobody lists; either are removed at the next start.
//!
//! Only segments before the manifest's tail take part: they are durable, so the manifest's mark
//! never points into a file that changed. Neighbours that have become small are merged, so that the
//! number of files stays in proportion to the live bytes and not to the history.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use types::RecordRevision;

use super::dead::Dead;
use super::format::{self, SEGMENT_HEADER_BYTES, SegmentName, Trust};
use super::manifest::Manifest;
use super::positions::Positions;
use super::segment::{Segment, SegmentFile};
use super::{RevLog, io_error, is_no_space};
use crate::RevStoreError;

/// Records marked between two looks of the readers.
const MARK_RECORDS: usize = 1_000;
/// A segment with less than this part of its goal in live bytes joins its neighbour's rewrite.
const SMALL_DIVISOR: u64 = 8;
/// Bytes of live records gathered before they are written.
const COPY_BYTES: usize = 1024 * 1024;

/// How much dead there must be for a rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// More than half: rewriting then costs at most one byte for each one gained.
    HalfDead,
    /// Any: somebody asked for the space.
    Everything,
}

/// What becomes of some neighbouring sealed segments.
struct Plan {
    segments: Range<usize>,
    live_bytes: u64,
    first_main: i64,
    /// Whether something in it reaches the goal.
    wanted: bool,
}

impl Plan {
    /// Whether the segment may join: what comes of it must still be a segment.
    fn takes(&self, segment: &Segment, segment_bytes: u64) -> bool {
        let last_main = segment.positions.last().map_or(self.first_main, |last| last.main);
        self.live_bytes + segment.live_bytes() <= segment_bytes
            && u32::try_from(last_main - self.first_main).is_ok()
    }
}

/// What the copier needs of one segment, taken under the lock.
struct Source {
    file: Arc<SegmentFile>,
    positions: Positions,
    dead: Dead,
}

impl RevLog {
    /// Marks records as removed. The caller holds `maintenance`, so no rewrite runs.
    pub(super) fn mark_dead(&self, revisions: &[RecordRevision]) {
        for chunk in revisions.chunks(MARK_RECORDS) {
            let mut state = self.state_mut();
            for &revision in chunk {
                let Some((index, ordinal)) = state.find(revision) else { continue };
                let state = &mut *state;
                let segment = state.sealed.get_mut(index).unwrap_or(&mut state.active);
                let bytes = segment.positions.bytes(ordinal);
                segment.dead.insert(ordinal, bytes);
            }
        }
    }

    /// Drops and rewrites what the goal asks for.
    pub(super) fn reclaim(&self, manifest: &mut Manifest, goal: Goal) -> Result<(), RevStoreError> {
        // From the end to the front, so that the indexes of plans to come stay right.
        let mut outcome = Ok(());
        for plan in self.plans(manifest, goal).into_iter().rev() {
            match self.carry_out(manifest, plan) {
                // Another plan may need less, or free some.
                Err(error) if is_no_space(&error) => outcome = Err(error),
                done => done?,
            }
        }
        outcome
    }

    /// Everything dead goes, also what lies in the active segment.
    pub(super) fn reclaim_all(&self, manifest: &mut Manifest) -> Result<(), RevStoreError> {
        {
            let mut writer = self.writer();
            if self.state().active.dead.records() > 0 {
                self.try_seal(&mut writer)?;
            }
        }
        let applied = manifest.applied;
        self.flush_locked(manifest, applied)?;
        self.reclaim(manifest, Goal::Everything)
    }

    /// Groups neighbours that are worth rewriting together. A group is kept if at least one of its
    /// segments reaches the goal; small ones beside it come along.
    fn plans(&self, manifest: &Manifest, goal: Goal) -> Vec<Plan> {
        let state = self.state();
        let segment_bytes = u64::from(self.options.segment_bytes);
        let mut plans: Vec<Plan> = Vec::new();
        let mut open: Option<Plan> = None;
        for (index, segment) in state.sealed.iter().enumerate() {
            if segment.file.name.id >= manifest.tail.name.id {
                break;
            }
            let (live_bytes, dead_bytes) = (segment.live_bytes(), segment.dead.bytes());
            let wanted = match goal {
                Goal::HalfDead => dead_bytes > live_bytes,
                Goal::Everything => dead_bytes > 0,
            };
            let joins = wanted || live_bytes < segment_bytes / SMALL_DIVISOR;
            if let Some(plan) = open.take() {
                if joins && plan.takes(segment, segment_bytes) {
                    open = Some(Plan {
                        segments: plan.segments.start..index + 1,
                        live_bytes: plan.live_bytes + live_bytes,
                        wanted: plan.wanted || wanted,
                        ..plan
                    });
                    continue;
                }
                plans.push(plan);
            }
            if joins {
                let first_main = segment.positions.first_main();
                open = Some(Plan { segments: index..index + 1, live_bytes, first_main, wanted });
            }
        }
        plans.extend(open);
        plans.retain(|plan| plan.wanted);
        plans
    }

    fn carry_out(&self, manifest: &mut Manifest, plan: Plan) -> Result<(), RevStoreError> {
        let replacement = if plan.live_bytes == 0 { None } else { Some(self.rewrite(&plan)?) };
        let mut next = manifest.clone();
        let extent = replacement.as_ref().map(Segment::extent);
        next.sealed.splice(plan.segments.clone(), extent);
        self.sync_directory()?;
        next.write(&*self.disk, &self.directory)?;
        *manifest = next;
        let old: Vec<Segment> =
            self.state_mut().sealed.splice(plan.segments, replacement).collect();
        for segment in old {
            self.remove_files(segment.file.name);
        }
        Ok(())
    }

    /// Copies the live records of some segments into a new one and syncs it.
    fn rewrite(&self, plan: &Plan) -> Result<Segment, RevStoreError> {
        let sources: Vec<Source> = self.state().sealed[plan.segments.clone()]
            .iter()
            .map(|segment| Source {
                file: segment.file.clone(),
                positions: segment.positions.clone(),
                dead: segment.dead.clone(),
            })
            .collect();
        let id = sources[0].file.name.id;
        let generation = sources[0].file.name.generation + 1;
        let name = SegmentName { id, generation };
        let file = SegmentFile::create(&*self.disk, &self.directory, name)?;
        let copied = copy_live(&sources, file);
        if copied.is_err() {
            self.remove_files(name);
        }
        copied
    }

    /// Removes the files of a segment that is no longer listed. They may as well stay: the next
    /// start removes them.
    fn remove_files(&self, name: SegmentName) {
        for file in [name.segment_file(), name.dead_file()] {
            let path = self.directory.join(file);
            match self.disk.remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a dropped segment stays");
                }
            }
        }
    }

    /// Writes down which durable records were removed, so that a restart does not forget them. The
    /// caller holds `maintenance`.
    pub(super) fn save_dead(&self, manifest: &Manifest) -> Result<(), RevStoreError> {
        let tail = manifest.tail;
        let files: Vec<(SegmentName, Vec<u8>)> = {
            let state = self.state();
            state
                .sealed
                .iter()
                .chain(std::iter::once(&state.active))
                .filter(|segment| segment.dead.is_changed() && segment.file.name.id <= tail.name.id)
                .map(|segment| {
                    let positions = &segment.positions;
                    let mut count = positions.len();
                    if segment.file.name == tail.name {
                        count = positions.lower_bound_offset(tail.end);
                    }
                    (segment.file.name, segment.dead.encode(count, positions))
                })
                .collect()
        };
        for (name, bytes) in files {
            let file = name.dead_file();
            disk::write_file_atomically(&*self.disk, &self.directory, &file, &bytes)
                .map_err(io_error("write", &self.directory.join(&file)))?;
            // Not before: on a full disk this is tried again. Nothing is marked dead meanwhile, which would
            // need `maintenance`; but the active segment may have been sealed.
            let mut state = self.state_mut();
            let state = &mut *state;
            let mut segments = state.sealed.iter_mut().chain(std::iter::once(&mut state.active));
            if let Some(segment) = segments.find(|segment| segment.file.name == name) {
                segment.dead.set_saved();
            }
        }
        Ok(())
    }
}

/// A piece of a segment that is read from front to back.
struct Window<'a> {
    source: &'a Source,
    start: u32,
    bytes: Bytes,
}

impl Window<'_> {
    /// The record at this place; reads on when it lies outside of the piece.
    fn read(&mut self, offset: u32, length: u32) -> Result<Bytes, RevStoreError> {
        let end = u64::from(offset) + u64::from(length);
        if end > u64::from(self.start) + self.bytes.len() as u64 {
            let rest = self.source.positions.end() - offset;
            self.bytes = self
                .source
                .file
                .read(offset, (length.max(COPY_BYTES as u32)).min(rest) as usize)?;
            self.start = offset;
        }
        let start = (offset - self.start) as usize;
        Ok(self.bytes.slice(start..start + length as usize))
    }
}

fn copy_live(sources: &[Source], file: SegmentFile) -> Result<Segment, RevStoreError> {
    let mut positions = Positions::new(SEGMENT_HEADER_BYTES);
    let mut out = Vec::from(file.name.header());
    let mut written = 0;
    let mut write_out = |out: &mut Vec<u8>| {
        let wrote = file.file.write_all_at(out, written);
        written += out.len() as u64;
        out.clear();
        wrote.map_err(io_error("write", &file.path))
    };
    for source in sources {
        let mut window = Window { source, start: 0, bytes: Bytes::new() };
        for ordinal in (0..source.positions.len()).filter(|&one| !source.dead.contains(one)) {
            let offset = source.positions.offset(ordinal);
            let length = source.positions.bytes(ordinal);
            let mut bytes = window.read(offset, length)?;
            let record = format::decode_record(&mut bytes, source.file.seed, offset, Trust::File)
                .map_err(|flaw| source.file.flaw(offset, flaw))?;
            if record.revision != source.positions.revision(ordinal) || !bytes.is_empty() {
                return Err(source.file.flaw(offset, format::Flaw::Misplaced));
            }
            let sub = record.revision.sub as u32;
            format::encode_record(&mut out, file.seed, positions.end(), sub, &record);
            positions.push(record.revision, length);
            if out.len() >= COPY_BYTES {
                write_out(&mut out)?;
            }
        }
    }
    let footer = format::encode_footer(file.seed, &positions);
    out.extend_from_slice(&footer);
    write_out(&mut out)?;
    file.file.sync_data().map_err(io_error("sync", &file.path))?;
    Ok(Segment {
        file: Arc::new(file),
        positions,
        dead: Dead::default(),
        footer_bytes: footer.len() as u64,
    })
}
