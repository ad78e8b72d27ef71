//! The state as a bbolt file: what the Snapshot call streams, and what Go `etcdutl` accepts.
//!
//! The buckets and their encodings are etcd's (`server/storage/schema`). History that compaction has
//! made dead but that is not freed yet may be in the file; `scheduledCompactRev` without a matching
//! `finishedCompactRev` tells every reader, Go etcd included, to finish the compaction first.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, stream};
use machine::Views;
use revlog::Record;
use prost::Message;
use proto::etcdserverpb::{AlarmMember, SnapshotResponse};
use sha2::{Digest, Sha256};
use tonic::Status;
use types::{RecordRevision, Revision};

use crate::version;

/// Bytes of one message of the stream.
const BLOB_BYTES: usize = 32 << 10;

/// Why a snapshot file could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotFileError {
    /// The file system refused.
    #[error("write the snapshot: {0}")]
    Io(#[from] io::Error),
    /// The bbolt file could not be built.
    #[error("write the snapshot: {0}")]
    Bbolt(#[from] bbolt::WriteError),
    /// The store could not be read.
    #[error("read the store: {0}")]
    Store(#[from] mvcc::RangeError),
}

/// `leasepb.Lease` (`server/lease/leasepb/lease.proto`).
#[derive(Clone, PartialEq, prost::Message)]
struct LeaseRecord {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// A written file, at its beginning.
pub(crate) struct SnapshotFile {
    file: File,
    bytes: u64,
}

impl SnapshotFile {
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }
}

/// Writes the file into `directory`; it has no name and goes away with its handle.
pub(crate) fn write(views: &Views, directory: &Path) -> Result<SnapshotFile, SnapshotFileError> {
    let out = BufWriter::with_capacity(1 << 20, tempfile::tempfile_in(directory)?);
    let mut writer = bbolt::Writer::new(out)?;
    write_buckets(views, &mut |bucket, entries| {
        writer.bucket(bucket)?;
        entries(&mut |key, value| Ok(writer.put(key, value)?))
    })?;
    let mut file = writer.finish()?.into_inner().map_err(|error| error.into_error())?;
    let bytes = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(SnapshotFile { file, bytes })
}

type Put<'p> = dyn FnMut(&[u8], &[u8]) -> Result<(), SnapshotFileError> + 'p;
type Entries<'e> = dyn FnMut(&mut Put<'_>) -> Result<(), SnapshotFileError> + 'e;
type Bucket<'b> =
    dyn FnMut(&[u8], &mut Entries<'_>) -> Result<(), SnapshotFileError> + 'b;

/// Hands every bucket, in the order of names, to `bucket`.
fn write_buckets(views: &Views, bucket: &mut Bucket<'_>) -> Result<(), SnapshotFileError> {
    let tables = views.tables();
    let leases = views.leases();
    let revision = views.mvcc.revision();
    bucket(b"alarm", &mut |put| {
        let mut keys: Vec<Vec<u8>> = views
            .alarms(machine::AlarmKind::NONE)
            .iter()
            .map(|alarm| {
                AlarmMember { member_id: alarm.member.0, alarm: alarm.kind.0 }.encode_to_vec()
            })
            .collect();
        keys.sort();
        keys.iter().try_for_each(|key| put(key, b""))
    })?;
    bucket(b"auth", &mut |put| {
        put(b"authEnabled", &[0])?;
        put(b"authRevision", &1u64.to_be_bytes())
    })?;
    bucket(b"authRoles", &mut |_| Ok(()))?;
    bucket(b"authUsers", &mut |_| Ok(()))?;
    bucket(b"cluster", &mut |put| {
        let cluster_version = tables.cluster_version.map(|version| version.to_string());
        put(b"clusterVersion", cluster_version.as_deref().unwrap_or(version::CLUSTER).as_bytes())?;
        put(b"downgrade", br#"{"target-version":"","enabled":false}"#)
    })?;
    bucket(b"key", &mut |put| put_records(views, revision, put))?;
    bucket(b"lease", &mut |put| {
        leases.iter().try_for_each(|(id, ttl, remaining_ttl)| {
            let record = LeaseRecord { id: id.0, ttl: *ttl, remaining_ttl: *remaining_ttl };
            put(&id.0.to_be_bytes(), &record.encode_to_vec())
        })
    })?;
    put_membership(&tables, bucket)?;
    bucket(b"meta", &mut |put| put_meta(views, &tables, put))
}

fn put_records(
    views: &Views,
    revision: Revision,
    put: &mut Put<'_>,
) -> Result<(), SnapshotFileError> {
    let until = RecordRevision { main: revision.0 + 1, sub: 0 };
    let mut result = Ok(());
    let mut visit = |record: Record| {
        result = put(&record_key(record.revision, record.tombstone), &record.key_value);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    views.mvcc.records(RecordRevision::default(), until, &mut visit)?;
    result
}

/// `main _ sub`, and `t` behind a tombstone (`server/storage/mvcc/revision.go`).
fn record_key(revision: RecordRevision, tombstone: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend(revision.main.to_be_bytes());
    key.push(b'_');
    key.extend(revision.sub.to_be_bytes());
    if tombstone {
        key.push(b't');
    }
    key
}

fn put_membership(
    tables: &machine::Tables,
    bucket: &mut Bucket<'_>,
) -> Result<(), SnapshotFileError> {
    let mut members: Vec<(String, String)> = tables
        .membership
        .members()
        .map(|member| {
            let mut json = serde_json::Map::new();
            json.insert("id".into(), member.id.0.into());
            json.insert("peerURLs".into(), member.peer_urls.clone().into());
            if !member.voter_intent {
                json.insert("isLearner".into(), true.into());
            }
            if !member.name.is_empty() {
                json.insert("name".into(), member.name.clone().into());
                json.insert("clientURLs".into(), member.client_urls.clone().into());
            }
            (format!("{:x}", member.id.0), serde_json::Value::Object(json).to_string())
        })
        .collect();
    members.sort();
    bucket(b"members", &mut |put| {
        members.iter().try_for_each(|(id, json)| put(id.as_bytes(), json.as_bytes()))
    })?;
    let mut removed: Vec<String> =
        tables.membership.removed().map(|id| format!("{:x}", id.0)).collect();
    removed.sort();
    bucket(b"members_removed", &mut |put| {
        removed.iter().try_for_each(|id| put(id.as_bytes(), b"removed"))
    })
}

fn put_meta(
    views: &Views,
    tables: &machine::Tables,
    put: &mut Put<'_>,
) -> Result<(), SnapshotFileError> {
    let applied = tables.applied;
    let voters: Vec<u64> = tables
        .membership
        .members()
        .filter(|member| !member.is_learner)
        .map(|member| member.id.0)
        .collect();
    let conf_state = serde_json::json!({ "voters": voters, "auto_leave": false }).to_string();
    put(b"confState", conf_state.as_bytes())?;
    put(b"consistent_index", &applied.map_or(0, |position| position.index.0).to_be_bytes())?;
    let compacted = views.mvcc.compact_revision();
    if compacted.0 > 0 {
        put(b"scheduledCompactRev", &record_key(RecordRevision::first_of(compacted), false))?;
    }
    put(b"storageVersion", version::STORAGE.as_bytes())?;
    put(b"term", &applied.map_or(0, |position| position.term.0).to_be_bytes())
}

/// The hash of the whole state as etcd's `Hash` call covers it: names of buckets, keys and values,
/// without what differs between members for no reason.
pub(crate) fn hash(views: &Views) -> Result<u32, SnapshotFileError> {
    let mut sum = 0;
    write_buckets(views, &mut |name, entries| {
        sum = crc32c::crc32c_append(sum, name);
        entries(&mut |key, value| {
            let ignored = name == b"meta"
                && [&b"consistent_index"[..], b"term", b"storageVersion"].contains(&key);
            if !ignored {
                sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, key), value);
            }
            Ok(())
        })
    })?;
    Ok(sum)
}

/// The messages: the file in blobs, then its digest.
pub(crate) fn stream(
    file: SnapshotFile,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    let state = Some((file, Sha256::new(), 0));
    stream::try_unfold(state, |state| async move {
        let Some((mut file, mut digest, sent)) = state else { return Ok(None) };
        let mut blob = vec![0; BLOB_BYTES];
        let read = file.file.read(&mut blob).map_err(|error| Status::internal(error.to_string()))?;
        if read == 0 {
            let message = message(digest.finalize().to_vec(), 0);
            return Ok(Some((message, None)));
        }
        blob.truncate(read);
        digest.update(&blob);
        let sent = sent + read as u64;
        // The digest that follows counts as what remains, as in etcd.
        let remaining = file.bytes - sent + Sha256::output_size() as u64;
        Ok(Some((message(blob, remaining), Some((file, digest, sent)))))
    })
}

fn message(blob: Vec<u8>, remaining_bytes: u64) -> SnapshotResponse {
    SnapshotResponse {
        header: None,
        remaining_bytes,
        blob: Bytes::from(blob),
        version: version::STORAGE.to_owned(),
    }
}
