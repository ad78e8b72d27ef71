//! The bytes of a segment file: header, records, footer.
//!
//! All numbers are little-endian. A segment is named by its id, which grows with the revisions it
//! holds, and its generation, which grows each time it is rewritten without its dead records.
//!
//! ```text
//! segment header, 32 bytes
//! | 0  magic "KEELRVL1" | 8  id u64 | 16 generation u32 | 20 format u32 | 24 zero u32 | 28 crc u32 |
//!
//! record, 21 bytes and the key-value
//! | 0 length u32 | 4 crc u32 | 8 main i64 | 16 sub u32 | 20 flags u8 | 21 key_value .. |
//!   length: of key_value.  flags: bit 0 tombstone, others zero.
//!
//! footer of a sealed segment, directly after its last record
//! | 0 tag FFFFFFFF | 4 count u32 | 8 first main i64 | 16 end of records u32 | 20 zero u32 |
//! | 24 count x ( main - first main u32, sub u32, offset u32 ) |
//! | .. crc u32 | footer length u32 | magic "KEELFOOT" |
//! ```
//!
//! Every checksum is CRC-32C. Those of records and footers are seeded with the checksum of the
//! segment's header, and those of records also cover the record's own offset, so that a block which
//! the disk put into another file or at another place does not pass for a record (reliability: a
//! misdirected write). The tag cannot be a record's length, which stays below [`RECORD_BYTES_MAX`].

use bytes::{Buf, Bytes};
use types::RecordRevision;

use super::positions::{PLACE_BYTES, Positions};
use crate::Record;

/// Bytes of the segment header.
pub(super) const SEGMENT_HEADER_BYTES: u32 = 32;
/// Bytes of a record before its key-value.
pub(super) const RECORD_HEADER_BYTES: usize = 21;
/// The longest key-value. etcd's default request limit is 1.5 MiB; this only guards the offsets.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 30;
/// Bytes at the end of a sealed segment that tell where its footer begins.
pub(super) const TRAILER_BYTES: usize = 16;

const SEGMENT_MAGIC: [u8; 8] = *b"KEELRVL1";
const FOOTER_MAGIC: [u8; 8] = *b"KEELFOOT";
const FORMAT: u32 = 1;
const FOOTER_TAG: u32 = u32::MAX;
const FOOTER_HEAD_BYTES: usize = 24;
const FLAG_TOMBSTONE: u8 = 1;

const _: () = assert!(RECORD_BYTES_MAX + RECORD_HEADER_BYTES < FOOTER_TAG as usize);

/// Which file: segments are ordered by id, and of one id the highest listed generation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub(super) id: u64,
    pub(super) generation: u32,
}

impl SegmentName {
    /// The name of the file of records.
    pub(super) fn segment_file(self) -> String {
        format!("{:016x}-{:08x}.seg", self.id, self.generation)
    }

    /// The name of the file that remembers removed records.
    pub(super) fn dead_file(self) -> String {
        format!("{:016x}-{:08x}.dead", self.id, self.generation)
    }

    /// The segment header.
    pub(super) fn header(self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        header[..8].copy_from_slice(&SEGMENT_MAGIC);
        header[8..16].copy_from_slice(&self.id.to_le_bytes());
        header[16..20].copy_from_slice(&self.generation.to_le_bytes());
        header[20..24].copy_from_slice(&FORMAT.to_le_bytes());
        let checksum = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// What the checksums inside this segment start from.
    pub(super) fn seed(self) -> u32 {
        // Without the header's own checksum: over that, the result would be the same for all.
        crc32c::crc32c(&self.header()[..28])
    }
}

/// What is wrong with the bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("the record ends after the data")]
    Short,
    #[error("the length {0} is impossible")]
    Length(u32),
    #[error("the checksum is {found:08x} and should be {stored:08x}")]
    Checksum { stored: u32, found: u32 },
    #[error("unknown flags {0:02x}")]
    Flags(u8),
    #[error("the record is not the one that belongs here")]
    Misplaced,
}

/// The bytes that a record of this key-value takes.
pub(super) fn record_bytes(key_value: &[u8]) -> usize {
    RECORD_HEADER_BYTES + key_value.len()
}

/// Appends a record that will stand at `offset` of the segment with this seed.
pub(super) fn encode_record(out: &mut Vec<u8>, seed: u32, offset: u32, sub: u32, record: &Record) {
    let start = out.len();
    let length = record.key_value.len() as u32;
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&record.revision.main.to_le_bytes());
    header[16..20].copy_from_slice(&sub.to_le_bytes());
    header[20] = if record.tombstone { FLAG_TOMBSTONE } else { 0 };
    out.extend_from_slice(&header);
    out.extend_from_slice(&record.key_value);
    let checksum = record_checksum(seed, offset, length, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

fn record_checksum(seed: u32, offset: u32, length: u32, rest: &[u8]) -> u32 {
    let place = (u64::from(offset) << 32) | u64::from(length);
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &place.to_le_bytes()), rest)
}

/// Whether a checksum still has to be compared; memory of our own is not checked again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Memory,
    File,
}

/// Takes one record off the front of `bytes`, which begins at `offset` of its segment.
pub(super) fn decode_record(
    bytes: &mut Bytes,
    seed: u32,
    offset: u32,
    trust: Trust,
) -> Result<Record, Flaw> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err(Flaw::Short);
    };
    let length = u32_at(header, 0);
    if length as usize > RECORD_BYTES_MAX {
        return Err(Flaw::Length(length));
    }
    let end = RECORD_HEADER_BYTES + length as usize;
    if bytes.len() < end {
        return Err(Flaw::Short);
    }
    if trust == Trust::File {
        let stored = u32_at(header, 4);
        let found = record_checksum(seed, offset, length, &bytes[8..end]);
        if stored != found {
            return Err(Flaw::Checksum { stored, found });
        }
    }
    let flags = header[20];
    if flags & !FLAG_TOMBSTONE != 0 {
        return Err(Flaw::Flags(flags));
    }
    let revision = RecordRevision { main: i64_at(header, 8), sub: i64::from(u32_at(header, 16)) };
    let mut key_value = bytes.split_to(end);
    key_value.advance(RECORD_HEADER_BYTES);
    Ok(Record { revision, tombstone: flags & FLAG_TOMBSTONE != 0, key_value })
}

/// The footer of a segment whose records are at these positions.
pub(super) fn encode_footer(seed: u32, positions: &Positions) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(FOOTER_HEAD_BYTES + positions.len() * PLACE_BYTES + 4 + TRAILER_BYTES);
    out.extend_from_slice(&FOOTER_TAG.to_le_bytes());
    out.extend_from_slice(&(positions.len() as u32).to_le_bytes());
    out.extend_from_slice(&positions.first_main().to_le_bytes());
    out.extend_from_slice(&positions.end().to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    positions.encode_places(positions.len(), &mut out);
    let checksum = crc32c::crc32c_append(seed, &out);
    out.extend_from_slice(&checksum.to_le_bytes());
    let length = out.len() as u32 + TRAILER_BYTES as u32 - 4;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&FOOTER_MAGIC);
    out
}

/// The length of the footer, told by the last [`TRAILER_BYTES`] of a file.
pub(super) fn footer_bytes(trailer: &[u8; TRAILER_BYTES]) -> Option<u32> {
    (trailer[8..] == FOOTER_MAGIC).then(|| u32_at(trailer, 4))
}

/// Reads a footer; `None` if it is not a whole and valid one, in which case a scan of the records
/// takes its place.
pub(super) fn decode_footer(seed: u32, footer: &[u8]) -> Option<Positions> {
    let body_end = footer.len().checked_sub(TRAILER_BYTES)?;
    let (body, trailer) = footer.split_at(body_end);
    if body.len() < FOOTER_HEAD_BYTES || u32_at(body, 0) != FOOTER_TAG {
        return None;
    }
    if u32_at(trailer, 0) != crc32c::crc32c_append(seed, body) {
        return None;
    }
    let places = &body[FOOTER_HEAD_BYTES..];
    if places.len() != (u32_at(body, 4) as usize).checked_mul(PLACE_BYTES)? {
        return None;
    }
    let positions = Positions::decode(i64_at(body, 8), u32_at(body, 16), places);
    positions.is_valid().then_some(positions)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    i64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: SegmentName = SegmentName { id: 7, generation: 2 };

    fn record(main: i64, sub: i64, value: &'static [u8]) -> Record {
        Record {
            revision: RecordRevision { main, sub },
            tombstone: main % 2 == 0,
            key_value: Bytes::from_static(value),
        }
    }

    fn decode(bytes: &[u8], name: SegmentName, offset: u32) -> Result<Record, Flaw> {
        let mut bytes = Bytes::copy_from_slice(bytes);
        decode_record(&mut bytes, name.seed(), offset, Trust::File)
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_leaves_the_next_one() {
        let mut out = Vec::new();
        encode_record(&mut out, NAME.seed(), 32, 3, &record(8, 3, b"one"));
        let second = 32 + out.len() as u32;
        encode_record(&mut out, NAME.seed(), second, 0, &record(9, 0, b""));
        let mut bytes = Bytes::from(out);
        let first = decode_record(&mut bytes, NAME.seed(), 32, Trust::File);
        assert_eq!(first, Ok(record(8, 3, b"one")));
        let next = decode_record(&mut bytes, NAME.seed(), second, Trust::File);
        assert_eq!(next, Ok(record(9, 0, b"")));
        assert!(bytes.is_empty());
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let mut out = Vec::new();
        encode_record(&mut out, NAME.seed(), 99, 0, &record(5, 0, b"some value"));
        for bit in 0..out.len() * 8 {
            let mut damaged = out.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, NAME, 99).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_at_another_place_or_in_another_file_is_refused() {
        let mut out = Vec::new();
        encode_record(&mut out, NAME.seed(), 99, 0, &record(5, 0, b"v"));
        assert!(decode(&out, NAME, 99).is_ok());
        assert!(decode(&out, NAME, 100).is_err());
        assert!(decode(&out, SegmentName { id: 8, ..NAME }, 99).is_err());
        assert!(decode(&out, SegmentName { generation: 3, ..NAME }, 99).is_err());
        for length in 0..out.len() {
            assert_eq!(decode(&out[..length], NAME, 99), Err(Flaw::Short));
        }
    }

    #[test]
    fn a_footer_comes_back_and_any_flipped_bit_makes_it_void() {
        let mut positions = Positions::new(SEGMENT_HEADER_BYTES);
        for (main, sub) in [(3, 0), (4, 0), (4, 1), (90, 0)] {
            positions.push(RecordRevision { main, sub }, 25);
        }
        let footer = encode_footer(NAME.seed(), &positions);
        let trailer = footer.last_chunk::<TRAILER_BYTES>().expect("a footer has a trailer");
        assert_eq!(footer_bytes(trailer), Some(footer.len() as u32));
        assert_eq!(decode_footer(NAME.seed(), &footer), Some(positions));
        for bit in 0..(footer.len() - 12) * 8 {
            let mut damaged = footer.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_footer(NAME.seed(), &damaged), None, "bit {bit}");
        }
    }
}
