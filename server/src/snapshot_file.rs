//! The state as a bbolt file: what the Snapshot call streams, and what Go `etcdutl` accepts.
//!
//! The buckets and their encodings are etcd's (`server/storage/schema`). The records are exactly those
//! that a reader can still reach (`ReadView::backup`), not those that happen to be stored: space is
//! freed in no order, so a deletion may be gone while an older value of its key is still there, and a
//! reader that rebuilds its index from the rows would bring the key back.
//!
//! Invariants: HashKV of the file equals HashKV of the member at the file's revision; a compaction that
//! goes by while the file is written makes the writer begin again. The file never takes the room that the
//! member itself lives from: a backup must not raise the alarm that stops all writes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, stream};
use machine::{Auth, Views, WholeState};
use mvcc::StoreMeta;
use prost::Message;
use proto::authpb;
use proto::etcdserverpb::{AlarmMember, SnapshotResponse};
use revlog::Record;
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
    Io(#[source] io::Error),
    /// The bbolt file could not be built.
    #[error("write the snapshot: {0}")]
    Bbolt(#[source] bbolt::WriteError),
    /// The file would not leave the member enough.
    #[error(
        "etcdserver: no space for a snapshot: it is written beside the data first, {free} bytes are free \
         there, and the last {kept} of them are kept for the member; enlarge the volume, or ask another \
         member"
    )]
    NoSpace { free: u64, kept: u64 },
    /// The store could not be read.
    #[error("read the store: {0}")]
    Store(#[from] mvcc::RangeError),
}

impl From<io::Error> for SnapshotFileError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<NoSpace>()) {
            Some(NoSpace { free, kept }) => Self::NoSpace { free: *free, kept: *kept },
            None => Self::Io(error),
        }
    }
}

impl From<bbolt::WriteError> for SnapshotFileError {
    fn from(error: bbolt::WriteError) -> Self {
        match error {
            bbolt::WriteError::Io(error) => error.into(),
            error => Self::Bbolt(error),
        }
    }
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
    /// The etcd version of its schema.
    version: String,
}

impl SnapshotFile {
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }
}

/// What the file leaves free beside what the alarm is raised for: what others write between two looks at it.
const MARGIN_BYTES: u64 = 16 << 20;
/// How much is written between two looks at the free space.
const LOOK_BYTES: u64 = 4 << 20;

/// A file that stops growing while there is still space.
struct Bounded {
    file: File,
    kept: u64,
    /// Written since the last look.
    unseen: u64,
}

impl Bounded {
    fn new(file: File, kept: u64) -> Self {
        Self { file, kept, unseen: LOOK_BYTES }
    }

    fn look(&mut self) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(&self.file)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.kept.saturating_add(LOOK_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                NoSpace { free, kept: self.kept },
            ));
        }
        self.unseen = 0;
        Ok(())
    }
}

/// How [`Bounded`] tells it through those who write to it.
#[derive(Debug, thiserror::Error)]
#[error("{free} bytes are free")]
struct NoSpace {
    free: u64,
    kept: u64,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unseen >= LOOK_BYTES {
            self.look()?;
        }
        let written = self.file.write(bytes)?;
        self.unseen += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Bounded {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// How often compactions may overtake a file that is being written.
const ATTEMPTS: usize = 5;

/// Writes the file into `directory`, where it leaves the member's `reserve` of space alone; it has no name
/// and goes away with its handle.
pub(crate) fn write(
    views: &Views,
    directory: &Path,
    reserve: u64,
) -> Result<SnapshotFile, SnapshotFileError> {
    let kept = reserve.saturating_add(MARGIN_BYTES);
    retried(|| {
        let file = Bounded::new(tempfile::tempfile_in(directory)?, kept);
        let out = BufWriter::with_capacity(1 << 20, file);
        let mut writer = bbolt::Writer::new(out)?;
        write_buckets(views, &mut |bucket, entries| {
            writer.bucket(bucket)?;
            entries(&mut |key, value| Ok(writer.put(key, value)?))
        })?;
        let Bounded { mut file, .. } =
            writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let version = version::storage(views.tables().cluster_version);
        Ok(SnapshotFile { file, bytes, version })
    })
}

/// Begins again when a compaction went by.
fn retried<T>(
    mut attempt: impl FnMut() -> Result<T, SnapshotFileError>,
) -> Result<T, SnapshotFileError> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(SnapshotFileError::Store(mvcc::RangeError::Compacted)) => {}
            ended => return ended,
        }
    }
    attempt()
}

type Put<'p> = dyn FnMut(&[u8], &[u8]) -> Result<(), SnapshotFileError> + 'p;
type Entries<'e> = dyn FnMut(&mut Put<'_>) -> Result<(), SnapshotFileError> + 'e;
type Bucket<'b> = dyn FnMut(&[u8], &mut Entries<'_>) -> Result<(), SnapshotFileError> + 'b;

/// Hands every bucket, in the order of names, to `bucket`.
fn write_buckets(views: &Views, bucket: &mut Bucket<'_>) -> Result<(), SnapshotFileError> {
    // Users and roles must not be older than the keys that they guard, nor leases than those that hang on them.
    let WholeState { revision, leases, tables } = views.whole_state();
    let mut positions = None;
    bucket(b"alarm", &mut |put| {
        let mut keys: Vec<Vec<u8>> = tables
            .alarms
            .list(machine::AlarmKind::NONE)
            .map(|alarm| {
                AlarmMember { member_id: alarm.member.0, alarm: alarm.kind.0 }.encode_to_vec()
            })
            .collect();
        keys.sort();
        keys.iter().try_for_each(|key| put(key, b""))
    })?;
    put_auth(&tables.auth, bucket)?;
    bucket(b"cluster", &mut |put| {
        let cluster_version = tables.cluster_version.unwrap_or(version::release().cluster());
        put(b"clusterVersion", cluster_version.to_string().as_bytes())?;
        let target = tables.downgrade.target_version.clone();
        let enabled = target.is_some();
        let target = target.unwrap_or_default();
        let text = format!(r#"{{"target-version":"{target}","enabled":{enabled}}}"#);
        put(b"downgrade", text.as_bytes())
    })?;
    bucket(b"key", &mut |put| {
        positions = Some(put_records(views, revision, put)?);
        Ok(())
    })?;
    bucket(b"lease", &mut |put| {
        leases.iter().try_for_each(|(id, ttl, remaining_ttl)| {
            let record = LeaseRecord { id: id.0, ttl: *ttl, remaining_ttl: *remaining_ttl };
            put(&id.0.to_be_bytes(), &record.encode_to_vec())
        })
    })?;
    put_membership(&tables, bucket)?;
    let compacted = positions.map_or(Revision(-1), |positions| positions.compact_revision);
    bucket(b"meta", &mut |put| put_meta(compacted, &tables, put))
}

fn put_auth(auth: &Auth, bucket: &mut Bucket<'_>) -> Result<(), SnapshotFileError> {
    bucket(b"auth", &mut |put| {
        put(b"authEnabled", &[u8::from(auth.is_enabled())])?;
        put(b"authRevision", &auth.revision().to_be_bytes())
    })?;
    bucket(b"authRoles", &mut |put| {
        auth.roles().try_for_each(|(name, permissions)| {
            let name = Bytes::copy_from_slice(name.as_bytes());
            let key_permission = permissions.iter().map(machine::wire_permission).collect();
            let role = authpb::Role { name: name.clone(), key_permission };
            put(&name, &role.encode_to_vec())
        })
    })?;
    bucket(b"authUsers", &mut |put| {
        auth.users().try_for_each(|(name, user)| {
            let name = Bytes::copy_from_slice(name.as_bytes());
            let record = authpb::User {
                name: name.clone(),
                password: user.password_hash.clone(),
                roles: user.roles.clone(),
                options: user.no_password.map(|no_password| authpb::UserAddOptions { no_password }),
            };
            put(&name, &record.encode_to_vec())
        })
    })
}

fn put_records(
    views: &Views,
    revision: Revision,
    put: &mut Put<'_>,
) -> Result<StoreMeta, SnapshotFileError> {
    let mut result = Ok(());
    let mut visit = |record: Record| {
        result = put(&record_key(record.revision, record.tombstone), &record.key_value);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let positions = views.mvcc.backup(revision, &mut visit);
    result?;
    Ok(positions?)
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
            }
            if !member.client_urls.is_empty() {
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
    compacted: Revision,
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
    if compacted.0 > 0 {
        let revision = record_key(RecordRevision::first_of(compacted), false);
        put(b"finishedCompactRev", &revision)?;
        put(b"scheduledCompactRev", &revision)?;
    }
    put(b"storageVersion", version::storage(tables.cluster_version).as_bytes())?;
    put(b"term", &applied.map_or(0, |position| position.term.0).to_be_bytes())
}

/// The hash of the whole state as etcd's `Hash` call covers it: names of buckets, keys and values,
/// without what differs between members for no reason.
pub(crate) fn hash(views: &Views) -> Result<u32, SnapshotFileError> {
    retried(|| {
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
    })
}

/// The messages: the file in blobs, then its digest.
pub(crate) fn stream(
    file: SnapshotFile,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    let state = Some((file, Sha256::new(), 0));
    stream::try_unfold(state, |state| async move {
        let Some((mut file, mut digest, sent)) = state else { return Ok(None) };
        let mut blob = vec![0; BLOB_BYTES];
        let read =
            file.file.read(&mut blob).map_err(|error| Status::internal(error.to_string()))?;
        if read == 0 {
            let message = message(&file, digest.finalize().to_vec(), 0);
            return Ok(Some((message, None)));
        }
        blob.truncate(read);
        digest.update(&blob);
        let sent = sent + read as u64;
        // As in etcd, the digest that follows does not count (`v3rpc/maintenance.go`).
        let remaining = file.bytes - sent;
        Ok(Some((message(&file, blob, remaining), Some((file, digest, sent)))))
    })
}

fn message(file: &SnapshotFile, blob: Vec<u8>, remaining_bytes: u64) -> SnapshotResponse {
    SnapshotResponse {
        header: None,
        remaining_bytes,
        blob: Bytes::from(blob),
        version: file.version.clone(),
    }
}

#[cfg(test)]
mod tests;
