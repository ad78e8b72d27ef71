//! What is stored of a backup: two objects under a path that no other backup has.
//!
//! ```text
//! <namespace>/<cluster>/<backup name>-<uid>/snapshot.db    etcd's snapshot, as the Snapshot RPC sends it
//! <namespace>/<cluster>/<backup name>-<uid>/manifest.json  written last: without it there is no backup
//! ```
//!
//! The snapshot is the file that `etcdctl snapshot save` writes: a bbolt database of whole
//! 512-byte sectors, followed by the SHA-256 of it. `etcdutl snapshot restore` takes it as it is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of the manifest's format that is written; older ones must stay readable.
pub const FORMAT: u32 = 1;
/// Length of the digest at the end of a snapshot.
const TRAILER: usize = 32;

/// What the store says about a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub format: u32,
    /// Uid of the `EtcdBackup`; objects are deleted only for the backup that wrote them.
    pub backup_uid: String,
    pub cluster: String,
    pub cluster_id: String,
    pub member: String,
    pub member_id: String,
    /// The snapshot holds at least every write up to this revision.
    pub revision: i64,
    pub raft_term: u64,
    pub raft_index: u64,
    pub server_version: String,
    /// Path of the snapshot, relative to the store.
    pub snapshot: String,
    pub size_bytes: u64,
    /// SHA-256 of the whole object.
    pub sha256: String,
    pub started_at: Timestamp,
    pub completed_at: Timestamp,
}

/// Folder of a backup.
pub fn folder(namespace: &str, cluster: &str, backup: &str, uid: &str) -> String {
    format!("{namespace}/{cluster}/{backup}-{uid}")
}

/// Path of the manifest in a backup's folder.
pub fn manifest_path(folder: &str) -> String {
    format!("{folder}/manifest.json")
}

/// Path of the snapshot in a backup's folder.
pub fn snapshot_path(folder: &str) -> String {
    format!("{folder}/snapshot.db")
}

/// Checks a snapshot while it streams by: the digest at its end must be that of what came before.
/// Holds back the last 32 bytes only, so memory stays constant.
#[derive(Default)]
pub struct SnapshotCheck {
    database: Sha256,
    whole: Sha256,
    tail: Vec<u8>,
    size: u64,
}

/// A snapshot that is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error(
        "the snapshot has {0} bytes, which is not a number of 512-byte sectors and a digest: it was cut off"
    )]
    Size(u64),
    #[error("the snapshot's digest does not match its content: it was damaged")]
    Digest,
}

impl SnapshotCheck {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.size += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
        let database = self.tail.len().saturating_sub(TRAILER);
        self.database.update(&self.tail[..database]);
        self.tail.drain(..database);
    }

    /// Size and digest of the whole, if it is whole.
    ///
    /// # Errors
    /// It was cut off or damaged.
    pub fn finish(self) -> Result<(u64, String), SnapshotError> {
        if self.size % 512 != TRAILER as u64 {
            return Err(SnapshotError::Size(self.size));
        }
        if self.database.finalize().as_slice() != self.tail {
            return Err(SnapshotError::Digest);
        }
        Ok((self.size, hex::encode(self.whole.finalize())))
    }
}

#[cfg(test)]
pub(crate) fn sample_snapshot(sectors: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..sectors * 512).map(|i| (i * 7 % 251) as u8).collect();
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// The manifest of a backup `uid` of the cluster `main`, in this folder.
#[cfg(test)]
pub(crate) fn sample_manifest(folder: &str, size_bytes: u64, sha256: String) -> Manifest {
    Manifest {
        format: FORMAT,
        backup_uid: "uid".to_owned(),
        cluster: "main".to_owned(),
        cluster_id: "1".to_owned(),
        member: "main-1".to_owned(),
        member_id: "2".to_owned(),
        revision: 7,
        raft_term: 2,
        raft_index: 9,
        server_version: "3.7.3".to_owned(),
        snapshot: snapshot_path(folder),
        size_bytes,
        sha256,
        started_at: Timestamp::UNIX_EPOCH,
        completed_at: Timestamp::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], chunk: usize) -> Result<(u64, String), SnapshotError> {
        let mut check = SnapshotCheck::default();
        bytes.chunks(chunk).for_each(|chunk| check.update(chunk));
        check.finish()
    }

    #[test]
    fn a_whole_snapshot_passes_however_it_is_cut_into_chunks() {
        let snapshot = sample_snapshot(40);
        for chunk in [1, 31, 32, 33, 512, 4096, 1 << 20] {
            let (size, digest) = check(&snapshot, chunk).unwrap();
            assert_eq!(size, snapshot.len() as u64);
            assert_eq!(digest, hex::encode(Sha256::digest(&snapshot)));
        }
    }

    #[test]
    fn a_snapshot_that_is_cut_off_or_damaged_is_found() {
        let snapshot = sample_snapshot(4);
        for cut in [0, 1, 31, 32, 512, 1000, snapshot.len() - 1] {
            assert!(check(&snapshot[..cut], 100).is_err(), "cut to {cut}");
        }
        // Cut off at a sector boundary plus the length of a digest: the size alone does not tell.
        assert_eq!(check(&snapshot[..512 * 2 + 32], 100), Err(SnapshotError::Digest));
        for at in [0, 700, snapshot.len() - 1] {
            let mut damaged = snapshot.clone();
            damaged[at] ^= 1;
            assert_eq!(check(&damaged, 100), Err(SnapshotError::Digest), "at {at}");
        }
    }
}
