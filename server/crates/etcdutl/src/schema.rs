//! What etcd keeps in which bucket of its backend (etcd `server/storage/schema`).
//!
//! | bucket | keys → values |
//! |---|---|
//! | `key` | revision, 17 bytes, and `t` behind that of a deletion → encoded `mvccpb.KeyValue` |
//! | `meta` | `consistent_index`, `term`: u64 BE; `confState`: JSON; `scheduledCompactRev`, `finishedCompactRev`: revision; `storageVersion`: text |
//! | `lease` | id i64 BE → `leasepb.Lease` |
//! | `alarm` | encoded `AlarmMember` → nothing |
//! | `auth` | `authEnabled`: one byte; `authRevision`: u64 BE |
//! | `authUsers`, `authRoles` | name → `authpb.User`, `authpb.Role` |
//! | `members` | id in hexadecimal → JSON; `members_removed`: id → `removed` |
//! | `cluster` | `clusterVersion`: text; `downgrade`: JSON |
//!
//! ```text
//! revision: | 0 main i64 BE | 8 '_' | 9 sub i64 BE | 17 't' of a deletion |
//! ```
//!
//! Files of every server since 3.4 are read: a bucket or key that is absent was not known to the
//! server that wrote the file, and gives nothing.

use std::collections::BTreeMap;

use bbolt::{Bbolt, ReadAt, ReadError};
use bytes::Bytes;
use machine::{Permission, PermissionKind, User};
use prost::Message;
use proto::authpb;
use proto::etcdserverpb::AlarmMember;
use serde::Deserialize;
use types::{KeyRange, LeaseId, MemberId, RecordRevision, Revision};

const REVISION_BYTES: usize = 17;
const TOMBSTONE_MARK: u8 = b't';

/// Why the content of a backend makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(transparent)]
    Bbolt(#[from] ReadError),
    #[error("bucket {bucket}: key {key:?}: {fault}")]
    Row { bucket: &'static str, key: Bytes, fault: Fault },
}

/// What is wrong with one row.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("invalid revision length: {0}")]
    RevisionLength(usize),
    #[error("invalid separator in bucket key: {0:?}")]
    Separator(char),
    #[error("negative revision: main={main} sub={sub}")]
    NegativeRevision { main: i64, sub: i64 },
    #[error("{0} bytes instead of 8")]
    NumberLength(usize),
    #[error("no text")]
    Text,
    #[error("no member id in hexadecimal")]
    MemberId,
    #[error("{0}")]
    Message(#[from] prost::DecodeError),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// One row of the `key` bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    pub revision: RecordRevision,
    pub tombstone: bool,
    /// The encoded `mvccpb.KeyValue`; empty in the row that `snapshot restore --bump-revision` adds.
    pub key_value: Bytes,
}

/// The `meta` bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub consistent_index: Option<u64>,
    pub term: Option<u64>,
    /// JSON of `raftpb.ConfState`.
    pub conf_state: Option<Bytes>,
    pub scheduled_compaction: Option<Revision>,
    pub finished_compaction: Option<Revision>,
    pub storage_version: Option<String>,
}

impl Meta {
    /// The compact revision: a compaction that was scheduled and not finished counts, as etcd
    /// finishes it at start.
    pub fn compact_revision(&self) -> Option<Revision> {
        self.scheduled_compaction.max(self.finished_compaction)
    }

    /// The revision of a store whose newest row is `newest`.
    pub fn store_revision(&self, newest: Option<RecordRevision>) -> Revision {
        let newest = newest.map(RecordRevision::revision);
        newest.max(self.compact_revision()).unwrap_or_default().max(Revision(1))
    }
}

/// One lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    pub id: LeaseId,
    pub ttl_seconds: i64,
    /// What a checkpoint left of it; 0 if there was none.
    pub remaining_seconds: i64,
}

/// Users, roles and whether they matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    pub enabled: bool,
    pub revision: u64,
    pub users: Vec<authpb::User>,
    pub roles: Vec<authpb::Role>,
}

impl Auth {
    /// The same as the server keeps it.
    pub fn table(self) -> Result<machine::Auth, SchemaError> {
        let mut users = BTreeMap::new();
        for user in self.users {
            let name = text(&user.name).map_err(at("authUsers", &user.name))?;
            let user = User {
                password_hash: user.password,
                roles: user.roles,
                no_password: user.options.map(|options| options.no_password),
            };
            users.insert(name, user);
        }
        let mut roles = BTreeMap::new();
        for role in self.roles {
            let name = text(&role.name).map_err(at("authRoles", &role.name))?;
            let permission = |permission: authpb::Permission| Permission {
                kind: PermissionKind(permission.perm_type),
                range: KeyRange::from_wire(permission.key, permission.range_end),
            };
            roles.insert(name, role.key_permission.into_iter().map(permission).collect());
        }
        Ok(machine::Auth::new(self.enabled, self.revision, users, roles))
    }
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// The buckets `members`, `members_removed` and `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub members: Vec<MemberRow>,
    pub removed: Vec<MemberId>,
    pub cluster_version: Option<String>,
    /// JSON with `target-version` and `enabled`.
    pub downgrade: Option<Bytes>,
}

/// `leasepb.Lease` (etcd `server/lease/leasepb`), which no API has.
#[derive(Clone, PartialEq, Message)]
struct LeaseMessage {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// The JSON of a member (etcd `membership.Member`).
#[derive(Deserialize)]
struct MemberJson {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(default, rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
    #[serde(default, rename = "isLearner")]
    is_learner: bool,
}

/// Reads a key of the `key` bucket: the revision, and whether it is a deletion.
pub fn parse_revision_key(key: &[u8]) -> Result<(RecordRevision, bool), Fault> {
    let tombstone = key.len() == REVISION_BYTES + 1 && key[REVISION_BYTES] == TOMBSTONE_MARK;
    if key.len() != REVISION_BYTES && key.len() != REVISION_BYTES + 1 {
        return Err(Fault::RevisionLength(key.len()));
    }
    if key[8] != b'_' {
        return Err(Fault::Separator(key[8].into()));
    }
    let main = number(&key[..8])? as i64;
    let sub = number(&key[9..REVISION_BYTES])? as i64;
    if main < 0 || sub < 0 {
        return Err(Fault::NegativeRevision { main, sub });
    }
    Ok((RecordRevision { main, sub }, tombstone))
}

/// The key of a row of the `key` bucket that is no deletion; a deletion's follows directly behind it.
pub fn revision_key(revision: RecordRevision) -> [u8; REVISION_BYTES] {
    let mut key = [0; REVISION_BYTES];
    key[..8].copy_from_slice(&revision.main.to_be_bytes());
    key[8] = b'_';
    key[9..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

fn number(bytes: &[u8]) -> Result<u64, Fault> {
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| Fault::NumberLength(bytes.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn text(bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Fault::Text)
}

/// Names the row that is at fault.
fn at(bucket: &'static str, key: &[u8]) -> impl FnOnce(Fault) -> SchemaError {
    let key = Bytes::copy_from_slice(key);
    move |fault| SchemaError::Row { bucket, key, fault }
}

/// The backend of an etcd server.
pub struct Backend<'a, R> {
    file: &'a Bbolt<R>,
}

impl<'a, R: ReadAt> Backend<'a, R> {
    /// Reads the buckets of this file.
    pub fn new(file: &'a Bbolt<R>) -> Self {
        Self { file }
    }

    /// The history, in order. What a compaction made unreachable may still be in it.
    pub fn keys(
        &self,
    ) -> Result<impl Iterator<Item = Result<KeyRow, SchemaError>> + use<'a, R>, SchemaError> {
        let bucket = self.file.bucket(b"key")?;
        let entries = bucket.into_iter().flat_map(|bucket| bucket.entries());
        Ok(entries.map(|entry| {
            let (key, key_value) = entry?;
            let (revision, tombstone) = parse_revision_key(&key).map_err(at("key", &key))?;
            Ok(KeyRow { revision, tombstone, key_value })
        }))
    }

    /// The `meta` bucket.
    pub fn meta(&self) -> Result<Meta, SchemaError> {
        const BUCKET: &str = "meta";
        let compaction = |key: &'static str| -> Result<Option<Revision>, SchemaError> {
            let Some(value) = self.value(BUCKET, key)? else { return Ok(None) };
            let (revision, _) = parse_revision_key(&value).map_err(at(BUCKET, key.as_bytes()))?;
            Ok(Some(revision.revision()))
        };
        Ok(Meta {
            consistent_index: self.number(BUCKET, "consistent_index")?,
            term: self.number(BUCKET, "term")?,
            conf_state: self.value(BUCKET, "confState")?,
            scheduled_compaction: compaction("scheduledCompactRev")?,
            finished_compaction: compaction("finishedCompactRev")?,
            storage_version: self.text(BUCKET, "storageVersion")?,
        })
    }

    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseRow>, SchemaError> {
        self.rows("lease", |_, value| {
            let lease = LeaseMessage::decode(value)?;
            Ok(LeaseRow {
                id: LeaseId(lease.id),
                ttl_seconds: lease.ttl,
                remaining_seconds: lease.remaining_ttl,
            })
        })
    }

    /// All alarms that were raised.
    pub fn alarms(&self) -> Result<Vec<AlarmMember>, SchemaError> {
        self.rows("alarm", |key, _| Ok(AlarmMember::decode(key)?))
    }

    /// Users and roles.
    pub fn auth(&self) -> Result<Auth, SchemaError> {
        let enabled = self.value("auth", "authEnabled")?;
        Ok(Auth {
            enabled: enabled.is_some_and(|value| value[..] == [1]),
            revision: self.number("auth", "authRevision")?.unwrap_or(0),
            users: self.rows("authUsers", |_, value| Ok(authpb::User::decode(value)?))?,
            roles: self.rows("authRoles", |_, value| Ok(authpb::Role::decode(value)?))?,
        })
    }

    /// The members and the version of the cluster.
    pub fn membership(&self) -> Result<Membership, SchemaError> {
        let members = self.rows("members", |_, value| {
            let member: MemberJson = serde_json::from_slice(&value)?;
            Ok(MemberRow {
                id: MemberId(member.id),
                name: member.name,
                peer_urls: member.peer_urls.unwrap_or_default(),
                client_urls: member.client_urls.unwrap_or_default(),
                is_learner: member.is_learner,
            })
        })?;
        let removed = self.rows("members_removed", |key, _| {
            let id = std::str::from_utf8(&key).ok();
            let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
            id.map(MemberId).ok_or(Fault::MemberId)
        })?;
        Ok(Membership {
            members,
            removed,
            cluster_version: self.text("cluster", "clusterVersion")?,
            downgrade: self.value("cluster", "downgrade")?,
        })
    }

    fn rows<T>(
        &self,
        name: &'static str,
        parse: impl Fn(Bytes, Bytes) -> Result<T, Fault>,
    ) -> Result<Vec<T>, SchemaError> {
        let Some(bucket) = self.file.bucket(name.as_bytes())? else { return Ok(Vec::new()) };
        let rows = bucket.entries().map(|entry| {
            let (key, value) = entry?;
            parse(key.clone(), value).map_err(at(name, &key))
        });
        rows.collect()
    }

    fn value(&self, bucket: &'static str, key: &str) -> Result<Option<Bytes>, SchemaError> {
        match self.file.bucket(bucket.as_bytes())? {
            Some(bucket) => Ok(bucket.get(key.as_bytes())?),
            None => Ok(None),
        }
    }

    fn number(&self, bucket: &'static str, key: &str) -> Result<Option<u64>, SchemaError> {
        let value = self.value(bucket, key)?;
        value.map(|value| number(&value).map_err(at(bucket, key.as_bytes()))).transpose()
    }

    fn text(&self, bucket: &'static str, key: &str) -> Result<Option<String>, SchemaError> {
        let value = self.value(bucket, key)?;
        value.map(|value| text(&value).map_err(at(bucket, key.as_bytes()))).transpose()
    }
}
