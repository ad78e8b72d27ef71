//! `snapshot restore`: a data directory from a snapshot.
//!
//! Keys with their revisions, leases, alarms, users and roles come from the snapshot; members and identities are
//! those of the cluster that the flags describe, with the ids that etcd computes. Every member of the
//! new cluster is restored from the same file.
//!
//! ```text
//! <data-dir>/member.restoring/        while it is built; nothing reads it
//!     store/0/                        the records
//!     image/<index>.image             everything else, over them
//!     identity.json                   which member of which cluster
//! <data-dir>/member/                  the same after one rename, when all of it is durable
//! ```
//!
//! It is built inside the data directory and not beside it, because the data directory may be the
//! root of a file system of its own and nothing can be renamed into or onto that.
//!
//! Invariant: whatever goes wrong, also power, `member/` is absent or whole. An error removes what
//! was built; the remains of a crash are removed by the next restore into the same directory.
//!
//! With `--bump-revision` a row without key or value is added at the new revision, as Go does it: no
//! client can read it, but HashKV covers it.
//!
//! [`Restore::drop_auth`] is ours: users and roles come back unless it says that they may go, as when
//! nobody knows the password of `root` any more.

mod fill;
mod staging;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bbolt::{Bbolt, ReadError};
use bytes::Bytes;
use disk::Disk;
use machine::{
    Alarm, AlarmKind, AppliedEntry, AppliedPayload, Auth, Batch, ClusterVersion, Downgrade, Fatal,
    ImportError, ImportedLease, LogPosition, Machine, MembershipEntry, MembershipNode, Proposal,
    Tables, Ticket,
};
use mvcc::StoreMeta;
use revlog::{Record, RevLog, RevLogOptions, RevStore, RevStoreError};
use serde::Deserialize;
use server::config::{ConfigError, InitialCluster};
use server::ids::{Founding, FoundingMember};
use server::urls::{Hosts, Url, UrlError};
use types::{LogIndex, MemberId, RecordRevision, Revision, Term};

use crate::import::{GoDataDir, ImportError as GoImportError, Requests};
use crate::schema::{Backend, SchemaError};
use crate::snapshot_file::{Content, SnapshotError, SnapshotFile};
use staging::Staging;

/// The newest storage version that is understood.
const STORAGE_VERSION: ClusterVersion = ClusterVersion { major: 3, minor: 7, patch: 0 };

/// etcd's compact revision of a store that was never compacted.
const NEVER_COMPACTED: Revision = Revision(-1);

/// The term of the entries that the restored state stands for, as in etcd.
const FIRST_TERM: Term = Term(1);

/// What to restore, and as whom.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The snapshot file.
    pub snapshot: PathBuf,
    /// This member's name.
    pub name: String,
    /// Where its data go; absent or empty.
    pub data_dir: PathBuf,
    /// A directory of its own for the log; absent.
    pub wal_dir: Option<PathBuf>,
    /// `name=url,..` of all members of the new cluster.
    pub initial_cluster: String,
    /// Makes the ids of this cluster different from those of others with the same URLs.
    pub initial_cluster_token: String,
    /// This member's peer URLs, with commas between.
    pub advertise_peer_urls: String,
    /// Do not compare the digest, nor require one.
    pub skip_hash_check: bool,
    /// How far beyond the snapshot's revision the store begins, with everything before compacted;
    /// 0 for at the snapshot's revision with its history.
    pub bump_revision: u64,
    /// Restore without users and roles.
    pub drop_auth: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error(transparent)]
    Cluster(#[from] ConfigError),
    #[error("data-dir {0:?} not empty or could not be read")]
    DataDir(PathBuf),
    #[error("data-dir {0:?} is in use by another process")]
    Busy(PathBuf),
    #[error("wal-dir {0:?} exists")]
    WalDir(PathBuf),
    /// The words of Go's `os.Open`.
    #[error("open {path}: no such file or directory")]
    Missing { path: String },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("snapshot {path} is damaged: {source}")]
    Damaged { path: String, source: ReadError },
    #[error("snapshot {path}: it has no bucket \"meta\": it is no backend of etcd")]
    NoBackend { path: String },
    #[error("snapshot {path} is damaged: {source}")]
    Content { path: String, source: SchemaError },
    #[error("snapshot {path} is damaged: row {revision} of bucket \"key\": {detail}")]
    Row { path: String, revision: RecordRevision, detail: &'static str },
    #[error("snapshot {path} is damaged: {source}")]
    State { path: String, source: ImportError },
    #[error("snapshot {path} is damaged: bucket \"cluster\": {what} cannot be read: {detail}")]
    ClusterRow { path: String, what: &'static str, detail: String },
    #[error(
        "snapshot {path} has storage version {found}, which is newer than {STORAGE_VERSION}: use the \
         etcdutl of that version"
    )]
    TooNew { path: String, found: ClusterVersion },
    #[error(transparent)]
    Import(#[from] GoImportError),
    #[error("applying the requests of the log: {0}")]
    Replay(#[from] Fatal),
    #[error("bumping revision {latest} by {amount} leaves no revisions to write at")]
    Bump { latest: i64, amount: u64 },
    #[error(transparent)]
    Store(#[from] RevStoreError),
    #[error("write {path}: {source}")]
    Write { path: String, source: io::Error },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub founding: Founding,
    pub member: MemberId,
    pub revision: Revision,
    pub compact_revision: Revision,
    /// Users and roles that were left out.
    pub dropped_auth: bool,
    /// Requests at the end of an imported log of which that does not say that they were committed.
    pub unsettled: usize,
}

/// Restores.
///
/// # Errors
/// In Go's order: the flags, the directories, the file, its content. The data directory is as it was.
pub fn restore(disk: &Arc<dyn Disk>, order: &Restore) -> Result<Restored, RestoreError> {
    let founding = founding(order)?;
    staging::check_directories(disk, order)?;
    let source = Source::open(&**disk, order)?;
    build(disk, order, founding, source, Requests { requests: Vec::new(), unsettled: 0 })
}

/// Restores from what a member of Go etcd has left: its backend instead of a snapshot, and the requests
/// of its log that the backend lacks. The snapshot that `order` names does not count, and users and roles
/// that are to be dropped still say which of those requests are permitted.
///
/// # Errors
/// As [`restore`]; also if the log cannot be read.
pub fn import(
    disk: &Arc<dyn Disk>,
    order: &Restore,
    from: &GoDataDir,
) -> Result<Restored, RestoreError> {
    let founding = founding(order)?;
    staging::check_directories(disk, order)?;
    let order = Restore { snapshot: from.backend(), skip_hash_check: true, ..order.clone() };
    let source = Source::open(&**disk, &order)?;
    let meta = source.backend().meta().map_err(source.content())?;
    let requests = from.requests_above(&**disk, meta.consistent_index.unwrap_or(0))?;
    build(disk, &order, founding, source, requests)
}

/// Builds the directory and makes it the member's.
fn build(
    disk: &Arc<dyn Disk>,
    order: &Restore,
    founding: Founding,
    source: Source,
    Requests { requests, unsettled }: Requests,
) -> Result<Restored, RestoreError> {
    let own = founding.member(&order.name).expect("the check of the initial cluster found it").id;
    let mut staging = Staging::begin(Arc::clone(disk), &order.data_dir)?;
    let directory = staging.path().to_owned();
    let at = |source| RestoreError::Write { path: directory.display().to_string(), source };

    let store = replica::initial_records_directory(&directory);
    disk.create_dir_all(&store).map_err(at)?;
    let records = RevLog::open(Arc::clone(disk), &store, RevLogOptions::default())?;
    let records: Arc<dyn RevStore> = Arc::new(records);
    let newest = source.fill(&*records)?;
    let meta = source.positions(newest, order.bump_revision)?;
    if order.bump_revision > 0 {
        let revision = RecordRevision::first_of(meta.compact_revision);
        let key_value = Bytes::new();
        records.append(&[Record { revision, tombstone: false, key_value }])?;
    }
    let tables = source.tables(&founding)?;
    let leases = source.leases()?;
    let mut machine = Machine::import(Arc::clone(&records), meta, leases, tables)
        .map_err(|error| RestoreError::State { path: source.path.clone(), source: error })?;
    replay(&mut machine, own, requests)?;
    // Not before the replay, for which they say who was permitted what.
    let dropped_auth = order.drop_auth && machine.drop_auth();
    let meta = machine.positions();
    replica::write_initial_state(Arc::clone(disk), &directory, founding.cluster_id, own, &machine)
        .map_err(at)?;
    records.flush(machine.views().applied_index())?;
    drop((machine, records));
    server::identity::write(&**disk, &directory, own, founding.cluster_id).map_err(at)?;
    staging.publish(order.wal_dir.as_deref()).map_err(at)?;
    Ok(Restored {
        founding,
        member: own,
        revision: meta.revision,
        compact_revision: meta.compact_revision,
        dropped_auth,
        unsettled,
    })
}

/// Applies requests, each as an entry of the log that the state stands for. One that is refused was
/// refused by the old cluster too.
fn replay(
    machine: &mut Machine,
    own: MemberId,
    requests: Vec<Proposal>,
) -> Result<(), RestoreError> {
    for (seq, request) in (1..).zip(requests) {
        let index = LogIndex(machine.applied().map_or(0, |applied| applied.index.0) + 1);
        let batch = Batch::encode(&[(Ticket { origin: own, seq }, request)]);
        let position = LogPosition { term: FIRST_TERM, index };
        machine.apply(&[AppliedEntry { position, payload: AppliedPayload::Batch(batch) }])?;
    }
    Ok(())
}

/// The new cluster, checked as etcd checks it.
fn founding(order: &Restore) -> Result<Founding, RestoreError> {
    let advertised: Result<Vec<Url>, UrlError> =
        order.advertise_peer_urls.split(',').map(|url| url.trim().parse()).collect();
    let mut advertised = advertised?;
    advertised.sort();
    let initial = InitialCluster::parse(&order.initial_cluster)?;
    initial.check_founding(&order.name, &advertised, &Hosts::patient())?;
    Ok(Founding::compute(&initial, &order.initial_cluster_token))
}

/// A snapshot that is intact as a file.
struct Source {
    path: String,
    file: Bbolt<Content>,
}

#[derive(Deserialize)]
struct DowngradeJson {
    #[serde(default, rename = "target-version")]
    target_version: String,
    #[serde(default)]
    enabled: bool,
}

impl Source {
    fn open(disk: &dyn Disk, order: &Restore) -> Result<Self, RestoreError> {
        let path = order.snapshot.display().to_string();
        let file = SnapshotFile::open(disk, &order.snapshot).map_err(|error| match error {
            SnapshotError::Missing { path } => RestoreError::Missing { path },
            other => other.into(),
        })?;
        if !order.skip_hash_check {
            file.verify_digest()?;
        }
        let damaged = |source| RestoreError::Damaged { path: path.clone(), source };
        let file = match file.bbolt() {
            Err(SnapshotError::Bbolt(source)) => return Err(damaged(source)),
            other => other?,
        };
        file.check().map_err(damaged)?;
        if file.bucket(b"meta").map_err(damaged)?.is_none() {
            return Err(RestoreError::NoBackend { path });
        }
        let source = Self { path, file };
        source.check_version()?;
        Ok(source)
    }

    fn backend(&self) -> Backend<'_, Content> {
        Backend::new(&self.file)
    }

    fn content(&self) -> impl Fn(SchemaError) -> RestoreError + use<'_> {
        |source| RestoreError::Content { path: self.path.clone(), source }
    }

    /// A file of a server before 3.6 names no version.
    fn check_version(&self) -> Result<(), RestoreError> {
        let meta = self.backend().meta().map_err(self.content())?;
        let version = meta.storage_version.and_then(|text| text.parse::<ClusterVersion>().ok());
        let minor = |version: &ClusterVersion| (version.major, version.minor);
        match version.filter(|version| minor(version) > minor(&STORAGE_VERSION)) {
            Some(found) => Err(RestoreError::TooNew { path: self.path.clone(), found }),
            None => Ok(()),
        }
    }

    fn auth(&self) -> Result<Auth, RestoreError> {
        self.backend().auth().and_then(crate::schema::Auth::table).map_err(self.content())
    }

    /// Where the store stands. A bump counts from the newest row, as in Go, and makes everything
    /// before it unreadable, so that watchers of the old cluster notice.
    fn positions(
        &self,
        newest: Option<RecordRevision>,
        bump: u64,
    ) -> Result<StoreMeta, RestoreError> {
        let meta = self.backend().meta().map_err(self.content())?;
        let mut revision = meta.store_revision(newest);
        let mut compact_revision = meta.compact_revision().unwrap_or(NEVER_COMPACTED);
        if bump > 0 {
            let latest = newest.map_or(0, |newest| newest.main);
            let bumped = i64::try_from(bump).ok().and_then(|bump| latest.checked_add(bump));
            let bumped = bumped.ok_or(RestoreError::Bump { latest, amount: bump })?;
            revision = revision.max(Revision(bumped));
            compact_revision = revision;
        }
        // The next write needs a revision, and so does the end of every range of revisions.
        if revision.0 >= i64::MAX - 1 {
            return Err(RestoreError::Bump { latest: revision.0, amount: bump });
        }
        Ok(StoreMeta { revision, compact_revision })
    }

    fn leases(&self) -> Result<Vec<ImportedLease>, RestoreError> {
        let rows = self.backend().leases().map_err(self.content())?;
        let lease = |row: crate::schema::LeaseRow| ImportedLease {
            id: row.id,
            granted_ttl: row.ttl_seconds,
            remaining_ttl: row.remaining_seconds,
        };
        Ok(rows.into_iter().map(lease).collect())
    }

    /// Alarms, users and versions of the snapshot, members of the new cluster. It stands where a log of one
    /// entry per member would have led, as etcd writes it.
    fn tables(&self, founding: &Founding) -> Result<Tables, RestoreError> {
        let mut tables = Tables::new(founding.cluster_id);
        let index = LogIndex(founding.members.len() as u64);
        let position = LogPosition { term: FIRST_TERM, index };
        tables.applied = Some(position);
        let node = |member: &FoundingMember| MembershipNode {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            voter_intent: true,
        };
        let entry = MembershipEntry {
            nodes: founding.members.iter().map(node).collect(),
            voters: vec![founding.members.iter().map(|member| member.id).collect()],
        };
        tables.membership.apply(position, &entry);
        for alarm in self.backend().alarms().map_err(self.content())? {
            let (kind, member) = (AlarmKind(alarm.alarm), MemberId(alarm.member_id));
            tables.alarms.activate(Alarm { kind, member });
        }
        self.versions(&mut tables)?;
        tables.auth = Arc::new(self.auth()?);
        Ok(tables)
    }

    fn versions(&self, tables: &mut Tables) -> Result<(), RestoreError> {
        let membership = self.backend().membership().map_err(self.content())?;
        let unreadable =
            |what, detail| RestoreError::ClusterRow { path: self.path.clone(), what, detail };
        if let Some(text) = membership.cluster_version {
            let version = text.parse::<ClusterVersion>();
            let version =
                version.map_err(|error| unreadable("clusterVersion", error.to_string()))?;
            tables.cluster_version = Some(version);
        }
        if let Some(json) = membership.downgrade {
            let downgrade: DowngradeJson = serde_json::from_slice(&json)
                .map_err(|error| unreadable("downgrade", error.to_string()))?;
            let target = Some(downgrade.target_version).filter(|_| downgrade.enabled);
            tables.downgrade = Downgrade { target_version: target };
        }
        Ok(())
    }
}

/// The directory that is used when none is named.
pub fn default_data_dir(name: &str) -> PathBuf {
    Path::new(&format!("{name}.etcd")).to_owned()
}
