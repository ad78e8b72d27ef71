//! Opening: what the manifest covers is loaded, everything else is removed.

use std::collections::BTreeSet;
use std::path::Path;

use disk::Disk;
use types::LogIndex;

use super::format::{self, SEGMENT_HEADER_BYTES, SegmentName};
use super::io_error;
use super::manifest::{Extent, Manifest};
use super::segment::{Segment, SegmentFile};
use crate::RevStoreError;

/// Makes a new store: first the manifest, then the first segment, so that segments without a
/// manifest are always the sign of a lost file.
pub(super) fn create(
    disk: &dyn Disk,
    directory: &Path,
) -> Result<(Manifest, Vec<Segment>, Segment), RevStoreError> {
    let entries = disk.list(directory).map_err(io_error("list", directory))?;
    if let Some(foreign) = entries.iter().find(|entry| entry.name.ends_with(".seg")) {
        return Err(RevStoreError::Damaged {
            path: directory.join(&foreign.name).display().to_string(),
            offset: 0,
            detail: "there are segments but no manifest; remove this member's data directory and \
                     let it rejoin, or restore a backup"
                .to_string(),
        });
    }
    let name = SegmentName { id: 1, generation: 0 };
    let manifest =
        Manifest { applied: LogIndex(0), tail: Extent { name, end: 0 }, sealed: Vec::new() };
    manifest.write(disk, directory)?;
    let active = create_tail(disk, directory, name)?;
    Ok((manifest, Vec::new(), active))
}

/// Creates the file of an empty tail.
pub(super) fn create_tail(
    disk: &dyn Disk,
    directory: &Path,
    name: SegmentName,
) -> Result<Segment, RevStoreError> {
    let file = SegmentFile::create(disk, directory, name)?;
    file.file.write_all_at(&name.header(), 0).map_err(io_error("write", &file.path))?;
    Ok(Segment::empty(file))
}

/// Loads what the manifest covers and removes everything else.
pub(super) fn load(
    disk: &dyn Disk,
    directory: &Path,
    manifest: Manifest,
) -> Result<(Manifest, Vec<Segment>, Segment), RevStoreError> {
    let mut sealed = Vec::with_capacity(manifest.sealed.len());
    for extent in &manifest.sealed {
        sealed.push(Segment::load_sealed(disk, directory, *extent)?);
    }
    let active = if manifest.tail.end < SEGMENT_HEADER_BYTES {
        // Nothing of the tail was durable, perhaps not even its name.
        create_tail(disk, directory, manifest.tail.name)?
    } else {
        Segment::load_tail(disk, directory, manifest.tail)?
    };
    let firsts = sealed.iter().chain(std::iter::once(&active));
    let mut last = None;
    for segment in firsts {
        if let (Some(last), Some(first)) = (last, segment.positions.first())
            && first <= last
        {
            return Err(segment.file.flaw(0, format::Flaw::Misplaced));
        }
        last = segment.positions.last().or(last);
    }
    remove_strangers(disk, directory, &manifest)?;
    Ok((manifest, sealed, active))
}

/// Removes the remains of crashes: whatever looks like ours and is not listed.
fn remove_strangers(
    disk: &dyn Disk,
    directory: &Path,
    manifest: &Manifest,
) -> Result<(), RevStoreError> {
    let listed: BTreeSet<String> = std::iter::once(&manifest.tail)
        .chain(&manifest.sealed)
        .flat_map(|extent| [extent.name.segment_file(), extent.name.dead_file()])
        .collect();
    for entry in disk.list(directory).map_err(io_error("list", directory))? {
        let ours = [".seg", ".dead", ".tmp"].iter().any(|end| entry.name.ends_with(end));
        if ours && !listed.contains(&entry.name) {
            let path = directory.join(&entry.name);
            disk.remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}
