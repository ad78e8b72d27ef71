//! The manifest: which segments make up the store, and how far a flush has made them durable.
//!
//! ```text
//! | 0 magic "KEELRVLM" | 8 format u32 | 12 count u32 | 16 applied index u64 |
//! | 24 tail id u64 | 32 tail generation u32 | 36 tail length u32 |
//! | 40 count x ( id u64, generation u32, end of records u32 ) | .. crc u32 |
//! ```
//!
//! The *tail* is the segment that was being written at the flush; its first `tail length` bytes are
//! durable. The listed segments lie before the tail, are sealed and durable to their end. The file
//! is only ever replaced as a whole ([`disk::write_file_atomically`]), so the applied index, the
//! mark and the list change in one step.
//!
//! Bytes beyond the mark are never trusted at start: the pages under them may be ones that a failed
//! fsync left clean but not written. The Raft log brings those records again.

use std::path::Path;

use disk::Disk;
use types::LogIndex;

use super::format::SegmentName;
use crate::RevStoreError;
use crate::log::io_error;

/// The manifest's file.
pub(super) const MANIFEST_FILE: &str = "manifest";
/// No honest manifest is longer: it would list 64 million segments of 64 MiB.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

const MAGIC: [u8; 8] = *b"KEELRVLM";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 40;
const ENTRY_BYTES: usize = 16;

/// A segment and where its durable records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) name: SegmentName,
    pub(super) end: u32,
}

/// What a flush made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) applied: LogIndex,
    pub(super) tail: Extent,
    pub(super) sealed: Vec<Extent>,
}

impl Manifest {
    /// Puts the manifest in the place of the old one, durably.
    pub(super) fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<(), RevStoreError> {
        disk::write_file_atomically(disk, directory, MANIFEST_FILE, &self.encode())
            .map_err(io_error("write", &directory.join(MANIFEST_FILE)))
    }

    /// Reads the manifest; `None` if there is none.
    pub(super) fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Self>, RevStoreError> {
        let path = directory.join(MANIFEST_FILE);
        if !disk.exists(&path).map_err(io_error("look for", &path))? {
            return Ok(None);
        }
        let bytes =
            disk::read_file(disk, &path, MANIFEST_BYTES_MAX).map_err(io_error("read", &path))?;
        Self::decode(&bytes).map(Some).ok_or_else(|| RevStoreError::Damaged {
            path: path.display().to_string(),
            offset: 0,
            detail:
                "the manifest does not match its checksum; remove this member's data directory \
                     and let it rejoin, or restore a backup"
                    .to_string(),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.sealed.len() * ENTRY_BYTES + 4);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(self.sealed.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.applied.0.to_le_bytes());
        for extent in std::iter::once(&self.tail).chain(&self.sealed) {
            out.extend_from_slice(&extent.name.id.to_le_bytes());
            out.extend_from_slice(&extent.name.generation.to_le_bytes());
            out.extend_from_slice(&extent.end.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (format, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (applied, rest) = rest.split_first_chunk::<8>()?;
        if *magic != MAGIC || u32::from_le_bytes(*format) != FORMAT {
            return None;
        }
        let mut extents = rest.chunks_exact(ENTRY_BYTES).map_while(decode_extent);
        let tail = extents.next()?;
        let sealed: Vec<Extent> = extents.collect();
        let whole = sealed.len() == u32::from_le_bytes(*count) as usize
            && rest.len() == (sealed.len() + 1) * ENTRY_BYTES;
        let ordered = sealed.windows(2).all(|pair| pair[0].name.id < pair[1].name.id)
            && sealed.last().is_none_or(|last| last.name.id < tail.name.id);
        let applied = LogIndex(u64::from_le_bytes(*applied));
        (whole && ordered).then_some(Self { applied, tail, sealed })
    }
}

fn decode_extent(bytes: &[u8]) -> Option<Extent> {
    let (id, rest) = bytes.split_first_chunk::<8>()?;
    let (generation, rest) = rest.split_first_chunk::<4>()?;
    let (end, _) = rest.split_first_chunk::<4>()?;
    Some(Extent {
        name: SegmentName {
            id: u64::from_le_bytes(*id),
            generation: u32::from_le_bytes(*generation),
        },
        end: u32::from_le_bytes(*end),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(id: u64, generation: u32, end: u32) -> Extent {
        Extent { name: SegmentName { id, generation }, end }
    }

    #[test]
    fn a_manifest_comes_back_and_any_flipped_bit_makes_it_void() {
        let manifest = Manifest {
            applied: LogIndex(77),
            tail: extent(9, 0, 32),
            sealed: vec![extent(2, 1, 500), extent(5, 0, 600)],
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::decode(&damaged), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Manifest::decode(&bytes[..length]), None, "length {length}");
        }
    }
}
