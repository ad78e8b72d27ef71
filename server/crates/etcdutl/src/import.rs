//! `import`: a data directory of ours from one that Go etcd has left.
//!
//! What a member of Go etcd knows is its backend and, after a crash, the entries of its log that had
//! not reached the backend: it commits to the backend ten times a second, and only the log is synced
//! before a client is answered. So the backend is read like a snapshot, and then every entry of the log
//! above the backend's consistent index is applied by our own applier, which answers requests as etcd
//! does, so revisions come out the same.
//!
//! That includes entries of which the log does not say that they are committed: the answer to a client
//! can be out before it does. It is what this member would commit if it were elected with its log. Of
//! several members the one to import is therefore one that was stopped last, or the last leader: what
//! only others have is lost.
//!
//! Members and ids are those of the new cluster, as in [`crate::restore`], and each member of it is
//! imported from the same directory. Changes of the old cluster's members are passed over.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use disk::Disk;
use machine::{CommandKind, Proposal};
use prost::Message;
use proto::etcdserverpb::InternalRaftRequest;
use rustix::fs::FlockOperation;

use crate::go_wal::{self, Entry, WalError};

/// The least TTL that Go etcd grants with its default election timeout.
const MIN_LEASE_TTL: i64 = 2;

/// Why a data directory of Go etcd cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The words of Go's `os.Stat`.
    #[error("stat {}: no such file or directory", .0.display())]
    Missing(PathBuf),
    #[error("{} is in use by a running server: stop it first", .0.display())]
    InUse(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(
        "{}: the backend stands at index {consistent_index} and the log goes on at {first}: start Go \
         etcd on it once and stop it, so that it takes over the snapshot between them", path.display()
    )]
    Gap { path: PathBuf, consistent_index: u64, first: u64 },
    #[error(
        "{}: the log holds {count} requests that the backend lacks, and authentication is enabled or \
         about to be, so only Go etcd can tell which of them are permitted: start Go etcd on it once \
         and stop it", path.display()
    )]
    Auth { path: PathBuf, count: usize },
    #[error("{}: log entry {index} cannot be read: {source}", path.display())]
    Entry { path: PathBuf, index: u64, source: prost::DecodeError },
}

/// A data directory of Go etcd.
#[derive(Clone, Debug)]
pub struct GoDataDir {
    path: PathBuf,
    wal: PathBuf,
}

impl GoDataDir {
    /// Looks at the directory.
    ///
    /// # Errors
    /// There is no backend in it, or a server is running on it.
    pub fn open(path: &Path, wal_dir: Option<&Path>) -> Result<Self, ImportError> {
        let wal = wal_dir.map_or_else(|| path.join("member/wal"), Path::to_owned);
        let found = Self { path: path.to_owned(), wal };
        let backend = found.backend();
        let file = File::open(&backend).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImportError::Missing(backend.clone()),
            _ => ImportError::Io { path: backend.clone(), source },
        })?;
        // bbolt locks its file for as long as it is open.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(found),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ImportError::InUse(found.path)),
            Err(error) => Err(ImportError::Io { path: backend, source: error.into() }),
        }
    }

    /// The backend, a bbolt file without digest.
    pub fn backend(&self) -> PathBuf {
        self.path.join("member/snap/db")
    }

    /// The requests that the backend lacks, in order.
    pub fn requests_above(
        &self,
        disk: &dyn Disk,
        consistent_index: u64,
        has_auth: bool,
    ) -> Result<Vec<Proposal>, ImportError> {
        let tail = go_wal::read_tail(disk, &self.wal, consistent_index)?;
        let mut requests = Vec::new();
        let mut guarded = has_auth;
        let mut expected = consistent_index + 1;
        for (index, entry) in tail.entries {
            if index != expected {
                let path = self.path.clone();
                return Err(ImportError::Gap { path, consistent_index, first: index });
            }
            expected += 1;
            let Some(request) = self.request(entry)? else { continue };
            guarded |= changes_auth(&request);
            requests.push(request);
        }
        if tail.commit >= expected {
            let path = self.path.clone();
            return Err(ImportError::Gap { path, consistent_index, first: tail.commit });
        }
        if guarded && !requests.is_empty() {
            return Err(ImportError::Auth { path: self.path.clone(), count: requests.len() });
        }
        Ok(requests.iter().filter_map(proposal).collect())
    }

    fn request(&self, entry: Entry) -> Result<Option<InternalRaftRequest>, ImportError> {
        // Changes of the configuration have another kind, and a new leader's entry is empty.
        if entry.kind != 0 || entry.data.is_empty() {
            return Ok(None);
        }
        let request = InternalRaftRequest::decode(entry.data).map_err(|source| {
            ImportError::Entry { path: self.path.clone(), index: entry.index, source }
        })?;
        Ok(Some(request))
    }
}

/// Whether a request changes users, roles or whether they count.
fn changes_auth(request: &InternalRaftRequest) -> bool {
    request.auth_enable.is_some()
        || request.auth_disable.is_some()
        || request.auth_user_add.is_some()
        || request.auth_user_delete.is_some()
        || request.auth_user_change_password.is_some()
        || request.auth_user_grant_role.is_some()
        || request.auth_user_revoke_role.is_some()
        || request.auth_role_add.is_some()
        || request.auth_role_delete.is_some()
        || request.auth_role_grant_permission.is_some()
        || request.auth_role_revoke_permission.is_some()
}

/// A request of Go etcd's log in our terms; nothing for one that leaves the state as it is.
fn proposal(found: &InternalRaftRequest) -> Option<Proposal> {
    Some(if let Some(request) = &found.put {
        Proposal::new(CommandKind::Put, request)
    } else if let Some(request) = &found.delete_range {
        Proposal::new(CommandKind::DeleteRange, request)
    } else if let Some(request) = &found.txn {
        Proposal::new(CommandKind::Txn, request)
    } else if let Some(request) = &found.compaction {
        Proposal::new(CommandKind::Compaction, request)
    } else if let Some(request) = &found.lease_grant {
        let mut request = *request;
        request.ttl = request.ttl.max(MIN_LEASE_TTL);
        Proposal::new(CommandKind::LeaseGrant, &request)
    } else if let Some(request) = &found.lease_revoke {
        Proposal::new(CommandKind::LeaseRevoke, request)
    } else if let Some(request) = &found.lease_checkpoint {
        Proposal::new(CommandKind::LeaseCheckpoint, request)
    } else if let Some(request) = &found.alarm {
        Proposal::new(CommandKind::Alarm, request)
    } else if let Some(request) = &found.cluster_version_set {
        Proposal::new(CommandKind::ClusterVersionSet, request)
    } else if let Some(request) = &found.downgrade_info_set {
        Proposal::new(CommandKind::DowngradeInfoSet, request)
    } else {
        // Reads, and what the old members said about themselves.
        return None;
    })
}
