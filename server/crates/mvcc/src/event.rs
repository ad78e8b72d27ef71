//! What a transaction changed, as watchers will hear of it.

use bytes::Bytes;
use types::{RecordRevision, Revision};

/// Whether a key was written or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub key: Bytes,
    /// The encoded `mvccpb.KeyValue` as it goes on the wire; of a deletion, key and mod revision.
    pub key_value: Bytes,
    /// Where the change stands in the history.
    pub record: RecordRevision,
    /// The version that the key had one revision earlier, if it existed and is not compacted. A key
    /// created by this event has none, whatever came before its creation in the same transaction.
    pub previous: Option<RecordRevision>,
    /// Whether this put created the key.
    pub create: bool,
}

/// All changes of one revision; never split and never merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    pub revision: Revision,
    pub events: Vec<Event>,
}
