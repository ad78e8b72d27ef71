//! Records: what callers append, and its bytes.
//!
//! ```text
//!  0        4        8        12   13   14   15   16       24       32       40
//!  ┌────────┬────────┬────────┬────┬────┬────┬────┬────────┬────────┬────────┬─────────┬───────┐
//!  │ length │ crc    │previous│kind│sub │flag│ 0  │ term   │ node   │ index  │ payload │ zeros │
//!  └────────┴────────┴────────┴────┴────┴────┴────┴────────┴────────┴────────┴─────────┴───────┘
//!   u32 LE   u32 LE   u32 LE   u8   u8   u8   u8   u64 LE   u64 LE   u64 LE   length    to 8
//! ```
//!
//! * `length` counts the payload only. The next record starts at the next multiple of 8.
//! * `crc` is CRC-32C over the segment's *seed* (cluster id, member id, segment sequence number), the
//!   record's offset, and every byte of the record but `crc` itself, padding included. So a record
//!   verifies only in the segment and at the place it was written for: bytes of a recycled segment,
//!   of another member's log, or of a misdirected write do not.
//! * `previous` is the `crc` of the record before, across segments. It is covered by `crc`, which
//!   makes the chain: a record proves all records before it.
//! * `sub` is the caller's kind of an entry's payload; `flag` bit 0 says that the optional value is
//!   present, bit 1 that a vote is committed.
//!
//! | kind | record | term, node, index |
//! |---|---|---|
//! | 1 | entry | its log id; payload |
//! | 2 | vote | term and node; flag bit 1 |
//! | 3 | committed | a log id, if flag bit 0 |
//! | 4 | truncate | the log id that is now the last, if flag bit 0 |
//! | 5 | purge | the last log id that is gone |
//! | 6 | mark | incarnation; the offset up to which this segment is known to be synced; 0 |
//!
//! A **mark** starts at a multiple of 512; up to 511 bytes before it are unused. It is the first record
//! after a sync, and says that the sync succeeded; recovery uses it to tell a torn tail from rot. The
//! *incarnation* grows at every start and after every failed append, and such a mark is synced before
//! anything follows it. As the chain runs through it, no record that an earlier, cut-off life left
//! behind can ever chain to one written later.

use bytes::Bytes;
use types::{ClusterId, LogIndex, MemberId, Term};

use crate::limits::{MARK_ALIGNMENT, RECORD_ALIGNMENT, RECORD_HEADER_BYTES};

/// The identity of a log entry: who proposed it in which term, and where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term of the leader that proposed the entry.
    pub term: Term,
    /// That leader.
    pub node: MemberId,
    /// The position in the log.
    pub index: LogIndex,
}

/// A vote: the highest term this member has seen and whom it follows in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: Term,
    /// The candidate or leader.
    pub node: MemberId,
    /// Whether a quorum granted it, so that `node` leads.
    pub committed: bool,
}

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its identity.
    pub id: LogId,
    /// What the payload is; the log does not look at it.
    pub kind: u8,
    /// The payload; the log does not look at it.
    pub payload: Bytes,
}

/// Whatever can be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry; its index must follow the last one.
    Entry(LogEntry),
    /// The vote; the last one counts.
    Vote(Vote),
    /// The last entry known to be committed; the last record counts.
    Committed(Option<LogId>),
    /// Every entry after this one is void; `None` voids all.
    Truncate {
        /// The entry that is now the last.
        after: Option<LogId>,
    },
    /// Entries up to and with this one are no longer needed.
    Purge {
        /// The last entry that may go; it may lie beyond the end of the log, after a snapshot.
        upto: LogId,
    },
}

/// Who a log belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The member.
    pub member_id: MemberId,
}

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_COMMITTED: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_MARK: u8 = 6;

const FLAG_PRESENT: u8 = 1;
const FLAG_VOTE_COMMITTED: u8 = 2;

/// What binds every checksum of a segment to that segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(identity: Identity, sequence: u32) -> Self {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&identity.cluster_id.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&identity.member_id.0.to_le_bytes());
        bytes[16..].copy_from_slice(&u64::from(sequence).to_le_bytes());
        Self(crc32c::crc32c(&bytes))
    }

    fn checksum(self, offset: u64, record: &[u8]) -> u32 {
        let crc = crc32c::crc32c_append(self.0, &offset.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &record[..4]);
        crc32c::crc32c_append(crc, &record[8..])
    }
}

/// A mark's content; see the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) incarnation: u64,
    pub(crate) synced_to: u64,
}

// === encoding ===

/// The bytes of a record in the log.
pub(crate) fn encoded_len(record: &Record) -> u64 {
    let payload = match record {
        Record::Entry(entry) => entry.payload.len() as u64,
        _ => 0,
    };
    padded_len(payload)
}

fn padded_len(payload: u64) -> u64 {
    (RECORD_HEADER_BYTES as u64 + payload).next_multiple_of(RECORD_ALIGNMENT)
}

/// The offset of a mark written at `position`, and where it ends.
pub(crate) fn mark_place(position: u64) -> (u64, u64) {
    let start = position.next_multiple_of(MARK_ALIGNMENT);
    (start, start + RECORD_HEADER_BYTES as u64)
}

/// Encodes records that follow each other from `position` on.
pub(crate) struct Encoder<'a> {
    pub(crate) buffer: &'a mut Vec<u8>,
    pub(crate) seed: Seed,
    /// The offset of the next record in the segment.
    pub(crate) position: u64,
    /// The checksum of the record before.
    pub(crate) previous: u32,
}

impl Encoder<'_> {
    /// Adds a record. The caller has checked that the payload's length fits.
    pub(crate) fn record(&mut self, record: &Record) {
        let none = LogId::default();
        match record {
            Record::Entry(entry) => {
                self.put(KIND_ENTRY, entry.kind, 0, entry.id, &entry.payload);
            }
            Record::Vote(vote) => {
                let flags = if vote.committed { FLAG_VOTE_COMMITTED } else { 0 };
                let id = LogId { term: vote.term, node: vote.node, index: LogIndex(0) };
                self.put(KIND_VOTE, 0, flags, id, &[]);
            }
            Record::Committed(id) => {
                let flags = if id.is_some() { FLAG_PRESENT } else { 0 };
                self.put(KIND_COMMITTED, 0, flags, id.unwrap_or(none), &[]);
            }
            Record::Truncate { after } => {
                let flags = if after.is_some() { FLAG_PRESENT } else { 0 };
                self.put(KIND_TRUNCATE, 0, flags, after.unwrap_or(none), &[]);
            }
            Record::Purge { upto } => self.put(KIND_PURGE, 0, 0, *upto, &[]),
        }
    }

    /// Adds a mark at the next multiple of 512, zeros before it.
    pub(crate) fn mark(&mut self, mark: Mark) {
        let (start, _) = mark_place(self.position);
        let zeros = (start - self.position) as usize;
        self.buffer.resize(self.buffer.len() + zeros, 0);
        self.position = start;
        let id = LogId {
            term: Term(mark.incarnation),
            node: MemberId(mark.synced_to),
            index: LogIndex(0),
        };
        self.put(KIND_MARK, 0, 0, id, &[]);
    }

    fn put(&mut self, kind: u8, sub: u8, flags: u8, id: LogId, payload: &[u8]) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&self.previous.to_le_bytes());
        self.buffer.extend_from_slice(&[kind, sub, flags, 0]);
        self.buffer.extend_from_slice(&id.term.0.to_le_bytes());
        self.buffer.extend_from_slice(&id.node.0.to_le_bytes());
        self.buffer.extend_from_slice(&id.index.0.to_le_bytes());
        self.buffer.extend_from_slice(payload);
        let padded = padded_len(payload.len() as u64) as usize;
        self.buffer.resize(start + padded, 0);
        let crc = self.seed.checksum(self.position, &self.buffer[start..]);
        self.buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        self.previous = crc;
        self.position += padded as u64;
    }
}

// === decoding ===

/// A record whose checksum verified, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) crc: u32,
    pub(crate) previous: u32,
    pub(crate) content: Content,
    pub(crate) payload_len: u32,
    /// Where the next record may start, relative to this one's start.
    pub(crate) padded_len: u64,
}

/// What a verified record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Entry { id: LogId, kind: u8 },
    Vote(Vote),
    Committed(Option<LogId>),
    Truncate { after: Option<LogId> },
    Purge { upto: LogId },
    Mark(Mark),
}

impl Content {
    /// What the record will say once it is written.
    pub(crate) fn of(record: &Record) -> Self {
        match record {
            Record::Entry(entry) => Content::Entry { id: entry.id, kind: entry.kind },
            Record::Vote(vote) => Content::Vote(*vote),
            Record::Committed(id) => Content::Committed(*id),
            Record::Truncate { after } => Content::Truncate { after: *after },
            Record::Purge { upto } => Content::Purge { upto: *upto },
        }
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotARecord {
    /// The checksum does not fit, or the record would end beyond the bytes at hand.
    Broken,
    /// The checksum fits, but the content has no meaning here: a newer version wrote it.
    Unknown { kind: u8, flags: u8 },
}

/// Decodes the record at the start of `bytes`, which lies at `offset` in its segment. Any bytes are
/// allowed; a length is believed only after it was compared with what is there (CVE-2020-15106).
pub(crate) fn decode(bytes: &[u8], offset: u64, seed: Seed) -> Result<Decoded, NotARecord> {
    let header: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk().ok_or(NotARecord::Broken)?;
    let payload_len = u32_at(header, 0);
    let padded = padded_len(u64::from(payload_len));
    let record =
        usize::try_from(padded).ok().and_then(|len| bytes.get(..len)).ok_or(NotARecord::Broken)?;
    let crc = u32_at(header, 4);
    if seed.checksum(offset, record) != crc {
        return Err(NotARecord::Broken);
    }
    let [kind, sub, flags, reserved] = [header[12], header[13], header[14], header[15]];
    let id = LogId {
        term: Term(u64_at(header, 16)),
        node: MemberId(u64_at(header, 24)),
        index: LogIndex(u64_at(header, 32)),
    };
    let present = (flags == FLAG_PRESENT).then_some(id);
    let content = match (kind, flags) {
        (KIND_ENTRY, 0) => Content::Entry { id, kind: sub },
        (KIND_VOTE, 0 | FLAG_VOTE_COMMITTED) => {
            let committed = flags == FLAG_VOTE_COMMITTED;
            Content::Vote(Vote { term: id.term, node: id.node, committed })
        }
        (KIND_COMMITTED, 0 | FLAG_PRESENT) => Content::Committed(present),
        (KIND_TRUNCATE, 0 | FLAG_PRESENT) => Content::Truncate { after: present },
        (KIND_PURGE, 0) => Content::Purge { upto: id },
        (KIND_MARK, 0) => Content::Mark(Mark { incarnation: id.term.0, synced_to: id.node.0 }),
        // No version writes kind 0: these are zeros whose checksum is 0 by accident.
        (0, _) => return Err(NotARecord::Broken),
        _ => return Err(NotARecord::Unknown { kind, flags }),
    };
    let is_entry = matches!(content, Content::Entry { .. });
    if reserved != 0 || (!is_entry && (payload_len != 0 || sub != 0)) {
        return Err(NotARecord::Unknown { kind, flags });
    }
    let previous = u32_at(header, 8);
    Ok(Decoded { crc, previous, content, payload_len, padded_len: padded })
}

/// Decodes a mark, and only a mark. Unlike [`decode`] this looks at a fixed number of bytes, so that a
/// search through a whole segment stays linear whatever bytes a client made us store.
pub(crate) fn decode_mark(bytes: &[u8], offset: u64, seed: Seed) -> Option<Mark> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    if header[..4] != [0; 4] {
        return None;
    }
    match decode(header, offset, seed).ok()?.content {
        Content::Mark(mark) => Some(mark),
        _ => None,
    }
}

pub(crate) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seed(sequence: u32) -> Seed {
        let identity = Identity { cluster_id: ClusterId(0xc1), member_id: MemberId(0xa1) };
        Seed::new(identity, sequence)
    }

    fn encode(records: &[Record], sequence: u32, position: u64) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut encoder =
            Encoder { buffer: &mut buffer, seed: seed(sequence), position, previous: 77 };
        for record in records {
            encoder.record(record);
        }
        buffer
    }

    fn id(term: u64, node: u64, index: u64) -> LogId {
        LogId { term: Term(term), node: MemberId(node), index: LogIndex(index) }
    }

    #[test]
    fn every_kind_reads_back() {
        let entry = LogEntry { id: id(1, 2, 3), kind: 9, payload: Bytes::from_static(b"abc") };
        let vote = Vote { term: Term(4), node: MemberId(5), committed: true };
        let cases = [
            (Record::Entry(entry), Content::Entry { id: id(1, 2, 3), kind: 9 }),
            (Record::Vote(vote), Content::Vote(vote)),
            (Record::Committed(None), Content::Committed(None)),
            (Record::Committed(Some(id(1, 1, 1))), Content::Committed(Some(id(1, 1, 1)))),
            (Record::Truncate { after: None }, Content::Truncate { after: None }),
            (
                Record::Truncate { after: Some(id(0, 0, 0)) },
                Content::Truncate { after: Some(id(0, 0, 0)) },
            ),
            (Record::Purge { upto: id(7, 8, 9) }, Content::Purge { upto: id(7, 8, 9) }),
        ];
        for (record, expected) in cases {
            let bytes = encode(std::slice::from_ref(&record), 1, 4096);
            assert_eq!(bytes.len() as u64, encoded_len(&record));
            let decoded = decode(&bytes, 4096, seed(1)).unwrap();
            assert_eq!(decoded.content, expected);
            assert_eq!(decoded.previous, 77);
            assert_eq!(decoded.padded_len, bytes.len() as u64);
        }
    }

    #[test]
    fn the_layout_of_an_entry_is_fixed() {
        let entry = LogEntry { id: id(1, 2, 3), kind: 9, payload: Bytes::from_static(b"abc") };
        let bytes = encode(&[Record::Entry(entry)], 1, 4096);
        let expected = [
            3, 0, 0, 0, 0xc6, 0x6c, 0x41, 0x8c, 77, 0, 0, 0, 1, 9, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2,
            0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c', 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_record_verifies_only_at_its_place_in_its_segment() {
        let bytes = encode(&[Record::Purge { upto: id(1, 1, 1) }], 5, 4096);
        assert!(decode(&bytes, 4096, seed(5)).is_ok());
        assert_eq!(decode(&bytes, 4104, seed(5)), Err(NotARecord::Broken), "misdirected");
        for sequence in (0..5).chain(6..200) {
            assert_eq!(decode(&bytes, 4096, seed(sequence)), Err(NotARecord::Broken), "recycled");
        }
        let other = Identity { cluster_id: ClusterId(0xc1), member_id: MemberId(0xa2) };
        assert_eq!(decode(&bytes, 4096, Seed::new(other, 5)), Err(NotARecord::Broken));
    }

    #[test]
    fn t25_a_length_beyond_the_bytes_at_hand_is_broken() {
        let mut bytes = encode(&[Record::Purge { upto: id(1, 1, 1) }], 5, 4096);
        for length in [1, 8, 1 << 20, u32::MAX - 7, u32::MAX] {
            bytes[..4].copy_from_slice(&u32::to_le_bytes(length));
            assert_eq!(decode(&bytes, 4096, seed(5)), Err(NotARecord::Broken));
        }
    }

    #[test]
    fn a_verified_record_of_unknown_kind_is_told_from_damage() {
        let mut bytes = encode(&[Record::Purge { upto: id(1, 1, 1) }], 5, 4096);
        bytes[12] = 99;
        let crc = seed(5).checksum(4096, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes, 4096, seed(5)), Err(NotARecord::Unknown { kind: 99, flags: 0 }));
    }

    proptest! {
        #[test]
        fn t25_decoding_any_bytes_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            offset in any::<u64>(),
        ) {
            let _ = decode(&bytes, offset, seed(1));
            let _ = decode_mark(&bytes, offset, seed(1));
        }

        #[test]
        fn a_flipped_bit_never_verifies(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            bit in any::<proptest::sample::Index>(),
        ) {
            let entry = LogEntry { id: id(1, 2, 3), kind: 1, payload: payload.into() };
            let mut bytes = encode(&[Record::Entry(entry)], 1, 8192);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&bytes, 8192, seed(1)), Err(NotARecord::Broken));
        }
    }
}
