//! The vocabulary of the server: identities, positions and ranges that every room shares.
//!
//! [`go`] reads and writes numbers and quotes as Go does, for all programs.
//!
//! Nothing here does I/O, knows a wire format or waits. A value of these types is valid once it is
//! constructed, so a room that receives one does not check it again.

pub mod go;
mod id;
mod key_range;
mod planted;
mod position;

pub use id::{ClusterId, LeaseId, MemberId};
pub use key_range::{KeyRange, RangeEnd};
pub use planted::Planted;
pub use position::{LogIndex, RecordRevision, Revision, Term};
