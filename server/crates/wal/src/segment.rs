//! Segments: the files of the log, their names and headers.
//!
//! ```text
//!  0 ┌──────────────────────────────────────────────────────────────┐
//!    │ header (512 bytes checked, the rest of the page unused)      │
//! 4096 ├─────────┬────────┬───┬──────────────┬──────┬────────┬────────┤
//!    │ record  │ record │ … │ up to 512    │ mark │ record │ …      │
//!    ├─────────┴────────┴───┴──────────────┴──────┴────────┴────────┤
//!    │ zeros, or bytes of an earlier life that do not verify here   │
//! length └──────────────────────────────────────────────────────────┘
//! ```
//!
//! The header:
//!
//! ```text
//!   0  magic "KEELSWAL"        40  member id u64          112  purged: log id
//!   8  version u32             48  previous end u64       136  last: log id
//!  12  crc u32                 56  previous crc u32       160  zeros to 512
//!  16  sequence u64            60  flags u32
//!  24  length u64              64  incarnation u64        log id = term, node, index: 3 × u64
//!  32  cluster id u64          72  vote: term, node       flags: 1 vote present, 2 vote committed,
//!                              88  committed: log id             4 committed, 8 purged, 16 last present
//! ```
//!
//! `crc` is CRC-32C over the 512 bytes but itself. `previous end` and `previous crc` say where the
//! segment before ended and with which record. The rest is the whole state of the log at the
//! segment's start, so that no earlier segment is needed for anything but its entries.
//!
//! A header is written and synced while the file is still called `spare-…`; only then the file gets
//! its name. So a file with a segment's name and a bad header is damage, never a torn write.

use std::path::{Path, PathBuf};

use types::{ClusterId, LogIndex, MemberId, Term};

use crate::limits::{RECORDS_START, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES};
use crate::log_state::LogState;
use crate::record::{Identity, LogId, Vote, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"KEELSWAL";
const VERSION: u32 = 1;

const FLAG_VOTE: u32 = 1;
const FLAG_VOTE_COMMITTED: u32 = 2;
const FLAG_COMMITTED: u32 = 4;
const FLAG_PURGED: u32 = 8;
const FLAG_LAST: u32 = 16;
const FLAGS_ALL: u32 = 31;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) sequence: u32,
    /// The bytes of the file that belong to the segment.
    pub(crate) length: u64,
    pub(crate) previous_end: u64,
    pub(crate) previous_crc: u32,
    pub(crate) state: LogState,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAHeader {
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let state = &self.state;
        let mut flags = 0;
        let mut flag = |set: bool, bit: u32| flags |= if set { bit } else { 0 };
        flag(state.vote.is_some(), FLAG_VOTE);
        flag(state.vote.is_some_and(|vote| vote.committed), FLAG_VOTE_COMMITTED);
        flag(state.committed.is_some(), FLAG_COMMITTED);
        flag(state.purged.is_some(), FLAG_PURGED);
        flag(state.last.is_some(), FLAG_LAST);

        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        put_u32(&mut bytes, 8, VERSION);
        put_u64(&mut bytes, 16, u64::from(self.sequence));
        put_u64(&mut bytes, 24, self.length);
        put_u64(&mut bytes, 32, self.identity.cluster_id.0);
        put_u64(&mut bytes, 40, self.identity.member_id.0);
        put_u64(&mut bytes, 48, self.previous_end);
        put_u32(&mut bytes, 56, self.previous_crc);
        put_u32(&mut bytes, 60, flags);
        put_u64(&mut bytes, 64, state.incarnation);
        if let Some(vote) = state.vote {
            put_u64(&mut bytes, 72, vote.term.0);
            put_u64(&mut bytes, 80, vote.node.0);
        }
        for (at, id) in [(88, state.committed), (112, state.purged), (136, state.last)] {
            let id = id.unwrap_or_default();
            put_u64(&mut bytes, at, id.term.0);
            put_u64(&mut bytes, at + 8, id.node.0);
            put_u64(&mut bytes, at + 16, id.index.0);
        }
        let crc = checksum(&bytes);
        put_u32(&mut bytes, 12, crc);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, NotAHeader> {
        if bytes[..8] != MAGIC || checksum(bytes) != u32_at(bytes, 12) {
            return Err(NotAHeader::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(NotAHeader::Version(version));
        }
        let flags = u32_at(bytes, 60);
        let length = u64_at(bytes, 24);
        let lengths = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        let sequence = u32::try_from(u64_at(bytes, 16)).map_err(|_| NotAHeader::Damaged)?;
        if flags & !FLAGS_ALL != 0 || !lengths.contains(&length) {
            return Err(NotAHeader::Damaged);
        }
        let log_id = |at: usize, flag: u32| {
            (flags & flag != 0).then(|| LogId {
                term: Term(u64_at(bytes, at)),
                node: MemberId(u64_at(bytes, at + 8)),
                index: LogIndex(u64_at(bytes, at + 16)),
            })
        };
        Ok(Self {
            identity: Identity {
                cluster_id: ClusterId(u64_at(bytes, 32)),
                member_id: MemberId(u64_at(bytes, 40)),
            },
            sequence,
            length,
            previous_end: u64_at(bytes, 48),
            previous_crc: u32_at(bytes, 56),
            state: LogState {
                vote: (flags & FLAG_VOTE != 0).then(|| Vote {
                    term: Term(u64_at(bytes, 72)),
                    node: MemberId(u64_at(bytes, 80)),
                    committed: flags & FLAG_VOTE_COMMITTED != 0,
                }),
                committed: log_id(88, FLAG_COMMITTED),
                purged: log_id(112, FLAG_PURGED),
                last: log_id(136, FLAG_LAST),
                incarnation: u64_at(bytes, 64),
            },
        })
    }
}

fn checksum(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

fn put_u32(bytes: &mut [u8; SEGMENT_HEADER_BYTES], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8; SEGMENT_HEADER_BYTES], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// The room for records in a segment of this length.
pub(crate) fn capacity(length: u64) -> u64 {
    length - RECORDS_START
}

// === names ===

/// What a name in the log's directory means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileName {
    Format,
    Segment(u32),
    Spare(u64),
    UnfinishedSpare(u64),
    /// Remains of a crash; may be removed.
    Leftover,
    Foreign,
}

pub(crate) const FORMAT_FILE: &str = "FORMAT";

impl FileName {
    pub(crate) fn parse(name: &str) -> Self {
        let number = |digits: &str| {
            (digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        if name == FORMAT_FILE {
            return FileName::Format;
        }
        if let Some(sequence) = name.strip_suffix(".wal").and_then(number) {
            return u32::try_from(sequence).map_or(FileName::Foreign, FileName::Segment);
        }
        match name.strip_prefix("spare-") {
            Some(rest) => match (number(rest), rest.strip_suffix(".tmp").and_then(number)) {
                (Some(spare), _) => FileName::Spare(spare),
                (None, Some(spare)) => FileName::UnfinishedSpare(spare),
                (None, None) => FileName::Foreign,
            },
            None if name == format!("{FORMAT_FILE}.tmp") => FileName::Leftover,
            None => FileName::Foreign,
        }
    }
}

pub(crate) fn segment_path(directory: &Path, sequence: u32) -> PathBuf {
    directory.join(format!("{sequence:016x}.wal"))
}

pub(crate) fn spare_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("spare-{number:016x}"))
}

pub(crate) fn unfinished_spare_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("spare-{number:016x}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        let id = |n: u64| LogId { term: Term(n), node: MemberId(n + 1), index: LogIndex(n + 2) };
        SegmentHeader {
            identity: Identity { cluster_id: ClusterId(1), member_id: MemberId(2) },
            sequence: 3,
            length: 1 << 20,
            previous_end: 5_000,
            previous_crc: 6,
            state: LogState {
                vote: Some(Vote { term: Term(7), node: MemberId(8), committed: true }),
                committed: Some(id(10)),
                purged: Some(id(20)),
                last: Some(id(30)),
                incarnation: 9,
            },
        }
    }

    #[test]
    fn headers_read_back() {
        let full = header();
        let bare = SegmentHeader { state: LogState::default(), ..full };
        for header in [full, bare] {
            assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_found() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), Err(NotAHeader::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = header().encode();
        put_u32(&mut bytes, 8, 2);
        let crc = checksum(&bytes);
        put_u32(&mut bytes, 12, crc);
        assert_eq!(SegmentHeader::decode(&bytes), Err(NotAHeader::Version(2)));
    }

    #[test]
    fn names_are_told_apart() {
        let cases = [
            ("FORMAT", FileName::Format),
            ("FORMAT.tmp", FileName::Leftover),
            ("0000000000000001.wal", FileName::Segment(1)),
            ("00000000000000ff.wal", FileName::Segment(255)),
            ("00000000000000FF.wal", FileName::Foreign),
            ("+000000000000001.wal", FileName::Foreign),
            ("f000000000000001.wal", FileName::Foreign),
            ("1.wal", FileName::Foreign),
            ("spare-000000000000000a", FileName::Spare(10)),
            ("spare-000000000000000a.tmp", FileName::UnfinishedSpare(10)),
            ("spare-x", FileName::Foreign),
            ("lost+found", FileName::Foreign),
        ];
        for (name, expected) in cases {
            assert_eq!(FileName::parse(name), expected, "{name}");
        }
    }
}
