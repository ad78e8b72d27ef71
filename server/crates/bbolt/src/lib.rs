//! Reading and writing bbolt files, the format of Go etcd's backend and of its snapshots.
//!
//! The server keeps its own data elsewhere; this room exists so that a snapshot taken from Keelson
//! can be read by Go's tools, and one from Go etcd can be restored here. It knows pages, buckets
//! and keys, and nothing of what etcd puts into them.
//!
//! [`Writer`] makes a file in one pass: buckets in order of name, keys in order, with memory for one
//! page per level. [`Bbolt`] reads one, from anything that implements [`ReadAt`], and trusts no
//! byte: whatever the file says, the answer is data or a [`ReadError`].
//!
//! # The format (go.etcd.io/bbolt, internal/common; numbers are little-endian)
//!
//! ```text
//! page, of the page size in the meta page (4096 here) and `overflow` times more
//! | 0 id u64 | 8 flags u16 | 10 count u16 | 12 overflow u32 | 16 .. |
//!   flags: 1 branch, 2 leaf, 4 meta, 16 freelist
//!
//! meta (pages 0 and 1; the valid one with the greater transaction id counts)
//! | 16 magic ED0CDAED | 20 version 2 | 24 page size u32 | 28 flags u32 |
//! | 32 root page u64 | 40 root sequence u64 | 48 freelist page u64 | 56 pages u64 |
//! | 64 transaction id u64 | 72 FNV-1a of bytes 16 to 72, u64 |
//!
//! leaf:   count x ( flags u32, pos u32, key length u32, value length u32 ), then keys and values
//! branch: count x ( pos u32, key length u32, page u64 ), then keys
//!         pos counts from the element itself; leaf flag 1: the value is a bucket
//! bucket: | 0 root page u64 | 8 sequence u64 |, and with root 0 the bucket's only page follows
//! freelist: count x page u64; count FFFF: the first number is the count
//! ```
//!
//! # Deliberately absent
//!
//! Changing a file, nested buckets (etcd has none), file locks, memory maps.

mod page;
mod read;
mod write;

pub use page::PAGE_BYTES;
pub use read::{Bbolt, Bucket, Entries, ReadAt, ReadError};
pub use write::{WriteError, Writer};
