//! Tests of the whole room: against recorded answers of Go etcd, and against a naive model.

mod compaction_hash;
mod golden;
mod model;
mod races;

use bytes::Bytes;
use types::KeyRange;

fn range(key: &str, end: &str) -> KeyRange {
    KeyRange::from_wire(
        Bytes::copy_from_slice(key.as_bytes()),
        Bytes::copy_from_slice(end.as_bytes()),
    )
}
