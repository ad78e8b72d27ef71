//! The sizes of the log, and how they relate.

/// The first bytes of a segment belong to its header, so that no record shares its page.
pub(crate) const RECORDS_START: u64 = 4096;

/// Records start at multiples of this.
pub(crate) const RECORD_ALIGNMENT: u64 = 8;

/// Marks start at multiples of this. It is the sector size: while the log runs, no sector that
/// holds synced bytes is written again.
pub(crate) const MARK_ALIGNMENT: u64 = 512;

/// The largest index of an entry. One more must still be a number, so that "the index after the last"
/// always is one, whatever stands on the disk.
pub(crate) const INDEX_MAX: u64 = u64::MAX - 1;

/// The bytes of a record before its payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 40;

/// The bytes of a segment header that are checked.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 512;

/// The smallest segment that [`crate::Options`] accepts.
pub const SEGMENT_BYTES_MIN: u64 = 8 * 1024;

/// The largest segment, so that an offset fits 32 bits and a damaged length stays bounded.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The length of the first segment of a new log. Later ones double until the configured length, so
/// that a small cluster starts at once and stays small.
pub(crate) const FIRST_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Zeros written, and synced, in one go while a segment is prepared; this bounds how long one append
/// can be delayed by it.
pub(crate) const ZERO_FILL_BYTES: u64 = 256 * 1024;

/// Entries closer together than this are read by one call, with the bytes between them.
pub(crate) const READ_GAP_BYTES: u64 = 16 * 1024;

/// The encoding buffer shrinks back to this after a large append.
pub(crate) const BUFFER_KEPT_BYTES: usize = 4 * 1024 * 1024;

const _: () = assert!(RECORDS_START >= SEGMENT_HEADER_BYTES as u64);
const _: () = assert!(RECORDS_START.is_multiple_of(MARK_ALIGNMENT));
const _: () = assert!(MARK_ALIGNMENT.is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!((RECORD_HEADER_BYTES as u64).is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!(SEGMENT_BYTES_MIN > RECORDS_START + MARK_ALIGNMENT);
const _: () = assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(FIRST_SEGMENT_BYTES <= SEGMENT_BYTES_MAX);
