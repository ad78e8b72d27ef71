//! Which records of a segment were removed, in memory and in the file beside the segment.
//!
//! ```text
//! | 0 magic "KEELRVLD" | 8 count u32 | 12 digest u32 | 16 bitmap, (count + 63) / 64 x u64 | .. crc u32 |
//! ```
//!
//! The digest is the CRC-32C of the places of the segment's first `count` records. A file whose
//! digest does not match is about other records and is ignored: the records then count as live,
//! which costs space and never data. So the file needs no order with the rest, and losing it is
//! harmless; it is only written so that a restart does not forget what may be freed.

use super::positions::{PLACE_BYTES, Positions};

const MAGIC: [u8; 8] = *b"KEELRVLD";

/// The removed records of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dead {
    bits: Vec<u64>,
    records: usize,
    bytes: u64,
    /// Whether records were removed since the file was written.
    changed: bool,
}

impl Dead {
    /// How many records are removed.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// The bytes of the removed records.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(super) fn set_saved(&mut self) {
        self.changed = false;
    }

    pub(super) fn contains(&self, ordinal: usize) -> bool {
        self.bits.get(ordinal / 64).is_some_and(|word| word & (1 << (ordinal % 64)) != 0)
    }

    /// Marks a record of `bytes` bytes; marking it again changes nothing.
    pub(super) fn insert(&mut self, ordinal: usize, bytes: u32) {
        if self.contains(ordinal) {
            return;
        }
        if self.bits.len() <= ordinal / 64 {
            self.bits.resize(ordinal / 64 + 1, 0);
        }
        self.bits[ordinal / 64] |= 1 << (ordinal % 64);
        self.records += 1;
        self.bytes += u64::from(bytes);
        self.changed = true;
    }

    /// The same set without the records from `ordinal` on.
    pub(super) fn truncated(&self, ordinal: usize, positions: &Positions) -> Self {
        let mut kept = Self::default();
        for dead in (0..ordinal).filter(|&dead| self.contains(dead)) {
            kept.insert(dead, positions.bytes(dead));
        }
        kept.changed = true;
        kept
    }

    /// The file about the segment's first `count` records.
    pub(super) fn encode(&self, count: usize, positions: &Positions) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + count.div_ceil(64) * 8 + 4);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(count as u32).to_le_bytes());
        out.extend_from_slice(&digest(count, positions).to_le_bytes());
        for index in 0..count.div_ceil(64) {
            let mut word = self.bits.get(index).copied().unwrap_or(0);
            let covered = count - index * 64;
            if covered < 64 {
                word &= (1 << covered) - 1;
            }
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads a file; `None` if it is damaged or about other records.
    pub(super) fn decode(bytes: &[u8], positions: &Positions) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (stored_digest, rest) = rest.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        if *magic != MAGIC || count > positions.len() || rest.len() != count.div_ceil(64) * 8 {
            return None;
        }
        if u32::from_le_bytes(*stored_digest) != digest(count, positions) {
            return None;
        }
        let mut dead = Self::default();
        for (index, word) in rest.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            for bit in (0..64).filter(|bit| word & (1 << bit) != 0) {
                let ordinal = index * 64 + bit;
                if ordinal < count {
                    dead.insert(ordinal, positions.bytes(ordinal));
                }
            }
        }
        dead.changed = false;
        Some(dead)
    }
}

fn digest(count: usize, positions: &Positions) -> u32 {
    let mut places = Vec::with_capacity(count * PLACE_BYTES);
    positions.encode_places(count, &mut places);
    crc32c::crc32c_append(positions.first_main() as u32, &places)
}

#[cfg(test)]
mod tests {
    use types::RecordRevision;

    use super::*;

    fn positions(first: i64, count: i64) -> Positions {
        let mut positions = Positions::new(32);
        for main in first..first + count {
            positions.push(RecordRevision { main, sub: 0 }, 30);
        }
        positions
    }

    #[test]
    fn removed_records_come_back_only_for_the_same_records() {
        let here = positions(5, 200);
        let mut dead = Dead::default();
        for ordinal in [0, 63, 64, 130, 199] {
            dead.insert(ordinal, 30);
            dead.insert(ordinal, 30);
        }
        assert_eq!((dead.records(), dead.bytes()), (5, 150));
        let file = dead.encode(150, &here);
        let back = Dead::decode(&file, &here).expect("the file is whole");
        let found: Vec<usize> = (0..200).filter(|&ordinal| back.contains(ordinal)).collect();
        assert_eq!(found, [0, 63, 64, 130]);
        assert_eq!(Dead::decode(&file, &positions(6, 200)), None);
        assert_eq!(Dead::decode(&file, &positions(5, 149)), None);
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Dead::decode(&damaged, &here), None, "bit {bit}");
        }
    }

    #[test]
    fn truncation_keeps_what_is_before_it() {
        let here = positions(1, 100);
        let mut dead = Dead::default();
        dead.insert(10, 30);
        dead.insert(70, 30);
        let kept = dead.truncated(70, &here);
        assert!(kept.contains(10) && !kept.contains(70));
        assert_eq!(kept.bytes(), 30);
    }
}
