//! `snapshot status`: the sum of a snapshot, as Go's `etcdutl` 3.7 computes it.

use std::collections::BTreeSet;

use bbolt::{Bbolt, ReadAt, ReadError};
use bytes::Bytes;
use prost::Message;
use proto::mvccpb::KeyValue;
use serde::Serialize;

use crate::schema;

/// What is printed. The names and their order are those of Go's JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// CRC-32C over all buckets: each name, key and value, in order.
    pub hash: u32,
    /// Of the newest change.
    pub revision: i64,
    /// Keys that exist at that revision.
    pub total_key: u64,
    /// Bytes of the pages.
    pub total_size: u64,
    /// The storage version; empty before 3.6.
    pub version: String,
}

/// Why a snapshot has no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("snapshot file integrity check failed. 1 errors found.\n{0}")]
    Integrity(ReadError),
    #[error(transparent)]
    Bbolt(#[from] ReadError),
    #[error("the file has no bucket \"meta\": it is no backend of etcd")]
    NoMeta,
    #[error("cannot parse revision key: {key:?} err: {fault}")]
    Revision { key: Bytes, fault: schema::Fault },
    #[error("cannot unmarshal value, key: {key:?} err: {source}")]
    KeyValue { key: Bytes, source: prost::DecodeError },
}

/// Checks the file and sums it up.
pub fn status<R: ReadAt>(file: &Bbolt<R>) -> Result<Status, StatusError> {
    file.check().map_err(StatusError::Integrity)?;
    let meta = file.bucket(b"meta")?.ok_or(StatusError::NoMeta)?;
    let version = meta.get(b"storageVersion")?.and_then(|version| semantic_version(&version));
    let mut status = Status {
        hash: 0,
        revision: 0,
        total_key: 0,
        total_size: file.bytes(),
        version: version.unwrap_or_default(),
    };
    let mut existing = BTreeSet::new();
    for name in file.buckets()? {
        status.hash = crc32c::crc32c_append(status.hash, &name);
        let Some(bucket) = file.bucket(&name)? else { continue };
        for entry in bucket.entries() {
            let (key, value) = entry?;
            status.hash = crc32c::crc32c_append(status.hash, &key);
            status.hash = crc32c::crc32c_append(status.hash, &value);
            if name[..] == b"key"[..] {
                status.revision = count(&key, &value, &mut existing)?;
            }
        }
    }
    status.total_key = existing.len() as u64;
    Ok(status)
}

/// Follows one change and gives its revision.
fn count(key: &Bytes, value: &Bytes, existing: &mut BTreeSet<Bytes>) -> Result<i64, StatusError> {
    let (revision, tombstone) = schema::parse_revision_key(key)
        .map_err(|fault| StatusError::Revision { key: key.clone(), fault })?;
    let key_value = KeyValue::decode(value.clone())
        .map_err(|source| StatusError::KeyValue { key: key.clone(), source })?;
    if tombstone {
        existing.remove(&key_value.key);
    } else {
        // A copy: the decoded key would keep its whole page in memory.
        existing.insert(Bytes::copy_from_slice(&key_value.key));
    }
    Ok(revision.main)
}

/// The text, if it is `major.minor.patch`, perhaps with a pre-release or metadata behind.
fn semantic_version(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let core = text.split(['-', '+']).next()?;
    let numbers: Vec<&str> = core.split('.').collect();
    let valid = numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u64>().is_ok());
    valid.then(|| text.to_string())
}
