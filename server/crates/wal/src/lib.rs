//! The write-ahead log: Raft entries, votes and positions, durable and in order.
//!
//! The log is a directory of segments. One owner ([`Wal`]) appends records and syncs them in groups:
//! whatever was appended between two syncs becomes durable by one `fdatasync`. Any number of
//! [`Reader`]s read entries meanwhile. The log knows nothing of what entries mean; a payload is bytes.
//!
//! ```text
//! wal/FORMAT                     "keelson wal 1"
//! wal/0000000000000007.wal       segments, by sequence number
//! wal/0000000000000008.wal
//! wal/spare-0000000000000003     ready to become the next segment
//! ```
//!
//! In go [`Record`]s; out come a [`Recovered`] at start and [`LogEntry`]s by index. A worked example:
//!
//! ```
//! use std::{path::Path, sync::Arc};
//! use bytes::Bytes;
//! use types::{ClusterId, LogIndex, MemberId, Term};
//! use wal::{Identity, LogEntry, LogId, Options, Record, Wal};
//!
//! let disk = Arc::new(disk::SimDisk::new(1));
//! let identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(2) };
//! let open = || Wal::open(disk.clone(), Path::new("wal"), identity, Options::default()).unwrap();
//!
//! let (mut wal, _) = open();
//! let id = LogId { term: Term(1), node: MemberId(2), index: LogIndex(1) };
//! let entry = LogEntry { id, kind: 0, payload: Bytes::from_static(b"put") };
//! wal.append(&[Record::Entry(entry.clone())]).unwrap();
//! wal.sync().unwrap();
//!
//! disk.restart(); // the power fails
//! let (wal, recovered) = open();
//! assert_eq!(recovered.last, Some(id));
//! assert_eq!(wal.read(LogIndex(1), LogIndex(2), 1 << 20).unwrap(), [entry]);
//! ```
//!
//! # Invariants
//!
//! 1. What was appended before a [`Wal::sync`] that returned `Ok` is found at every later start, or the
//!    start is refused. What is found is always a prefix of what was appended: never a hole, never a
//!    changed byte, never bytes of an earlier use of the file.
//! 2. The only record that recovery may drop silently is one that no sync covered. See [`RecoverError`].
//! 3. After a failed write or sync every call fails: the owner stops the process.
//! 4. Entries have contiguous indexes. A purge is durable before any segment is given up.
//! 5. No bytes on the disk, whatever they are, make this room panic or allocate beyond a file's length.
//!
//! One gap is known and inherent: if the very last group before a crash was synced but nothing was
//! written after it, damage to exactly that group looks like a torn write. [`Wal::mark`] (for idle
//! moments) and [`Wal::close`] narrow it.
//!
//! # Deliberately absent
//!
//! No thread, no clock, no async (the owner has a thread and measures), no compression, no lock on the
//! directory (the data directory's lock covers it), no repair of damage: another member's copy is the
//! repair.

mod limits;
mod log_index;
mod log_state;
mod reader;
mod record;
mod recover;
mod recover_error;
mod rotation;
mod segment;
mod spares;
mod wal;

pub use limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use log_state::Discontinuity;
pub use reader::{ReadError, Reader};
pub use record::{Identity, LogEntry, LogId, Record, Vote};
pub use recover::Recovered;
pub use recover_error::{Proof, RecoverError};
pub use spares::Space;
pub use wal::{Options, Wal, WalError, WalStats};
