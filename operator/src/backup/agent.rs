//! The programs inside Jobs and init containers: take a backup, restore one, delete one.
//!
//! Agents have no access to Kubernetes. They learn what to do from their arguments and tell what
//! became of it in the container's termination message, as JSON. Each can be run again at any
//! time: a backup whose manifest exists is done, a data directory that exists is restored, and a
//! manifest is deleted after the objects that it names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, path::Path as ObjectPath,
};
use proto::etcdserverpb::{SnapshotRequest, maintenance_client::MaintenanceClient};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::{
    manifest::{FORMAT, Manifest, SnapshotCheck, SnapshotError, manifest_path, snapshot_path},
    uploads::Store,
};
use crate::etcd::{EtcdAdmin, EtcdError, GrpcAdmin, MemberAddress, refusal};

/// Size of a part; S3 wants at least 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts in flight. With the part size this bounds the memory of an upload.
const PARTS_MAX: usize = 4;

/// What a backup is made of.
#[derive(Clone, Debug)]
pub struct BackupOrder {
    pub folder: String,
    pub backup_uid: String,
    pub cluster: String,
    pub member: String,
    pub address: MemberAddress,
}

/// What an agent tells the operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentReport {
    Backup(Box<Manifest>),
    /// The revision is absent where the data was there before.
    Restored {
        revision: Option<i64>,
    },
    Deleted,
    Failed {
        error: String,
    },
}

/// An agent's work that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("ask member {member}: {source}")]
    Etcd { member: String, source: EtcdError },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("store: {0}")]
    Store(#[from] object_store::Error),
    #[error("{path} in the store has {found} bytes instead of {expected}")]
    SizeInStore { path: String, found: u64, expected: u64 },
    #[error("{path} is not a manifest of format {FORMAT}: {detail}")]
    Manifest { path: String, detail: String },
    #[error("the manifest belongs to backup {found} and not to {expected}; nothing was deleted")]
    ForeignManifest { found: String, expected: String },
    #[error("snapshot in the store has SHA-256 {found} instead of {expected}")]
    DigestInStore { found: String, expected: String },
    #[error(
        "the manifest in the store is not the one of the backup: it names SHA-256 {found} instead of {expected}"
    )]
    OtherManifest { found: String, expected: String },
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: String, source: std::io::Error },
    #[error("etcdutl snapshot restore ended with {status}: {output}")]
    Restore { status: String, output: String },
    #[error("told to end before the backup was taken")]
    Stopped,
}

// === Backup ===

/// Takes a backup, or finds it taken, unless the end comes first; then it leaves no unfinished upload.
///
/// # Errors
/// As [`backup`], and when the end came.
pub async fn backup_until(
    order: &BackupOrder,
    etcd: &GrpcAdmin,
    store: &Store,
    end: impl Future<Output = ()>,
) -> Result<Manifest, AgentError> {
    tokio::select! {
        taken = backup(order, etcd, store) => return taken,
        () = end => {}
    }
    // The deadline of its Job: perhaps nobody comes after it who would abort what it began.
    store.discard(&order.folder).await?;
    Err(AgentError::Stopped)
}

/// Takes a backup, or finds it taken.
///
/// # Errors
/// Nothing that counts as a backup was left in the store: the manifest is written last.
pub async fn backup(
    order: &BackupOrder,
    etcd: &GrpcAdmin,
    store: &Store,
) -> Result<Manifest, AgentError> {
    let objects = &store.objects;
    let manifest_path = ObjectPath::from(manifest_path(&order.folder));
    // An attempt before this one may have been killed in the middle. A backup is worth more than the
    // space that is freed.
    if let Err(error) = store.discard(&order.folder).await {
        tracing::warn!(%error, folder = order.folder, "an unfinished upload was not aborted");
    }
    match read_manifest(objects, &manifest_path).await {
        Ok(manifest) => {
            check_size(objects, &manifest).await?;
            return Ok(manifest);
        }
        Err(AgentError::Store(object_store::Error::NotFound { .. })) => {}
        Err(error) => return Err(error),
    }
    let asked = |source| AgentError::Etcd { member: order.member.clone(), source };
    let started_at = Timestamp::now();
    let report = etcd.status(&order.address).await.map_err(asked)?;
    let snapshot = snapshot_path(&order.folder);
    let (size_bytes, sha256) = upload(order, etcd, store, &snapshot).await?;
    let manifest = Manifest {
        format: FORMAT,
        backup_uid: order.backup_uid.clone(),
        cluster: order.cluster.clone(),
        cluster_id: report.cluster_id.to_string(),
        member: order.member.clone(),
        member_id: report.member_id.to_string(),
        revision: report.revision,
        raft_term: report.term,
        raft_index: report.applied_index,
        server_version: report.version,
        snapshot,
        size_bytes,
        sha256,
        started_at,
        completed_at: Timestamp::now(),
    };
    check_size(objects, &manifest).await?;
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain JSON");
    objects.put(&manifest_path, PutPayload::from(text)).await?;
    Ok(manifest)
}

/// Streams the snapshot into the store. What is not whole is aborted and leaves nothing behind.
async fn upload(
    order: &BackupOrder,
    etcd: &GrpcAdmin,
    store: &Store,
    path: &str,
) -> Result<(u64, String), AgentError> {
    let asked = |source| AgentError::Etcd { member: order.member.clone(), source };
    let channel = etcd.connect(&order.address).await.map_err(asked)?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let stream =
        client.snapshot(SnapshotRequest {}).await.map_err(|status| asked(refusal(status)))?;
    let mut stream = stream.into_inner();
    let upload = store.begin(&order.folder).await?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let mut check = SnapshotCheck::default();
    let received: Result<(), AgentError> = async {
        while let Some(part) = stream.message().await.map_err(|status| asked(refusal(status)))? {
            check.update(&part.blob);
            upload.wait_for_capacity(PARTS_MAX).await?;
            upload.put(part.blob);
        }
        Ok(())
    }
    .await;
    match received.and_then(|()| Ok(check.finish()?)) {
        Ok(facts) => {
            upload.finish().await?;
            if let Err(error) = store.discard(&order.folder).await {
                tracing::warn!(%error, path, "the note of the upload stays");
            }
            Ok(facts)
        }
        Err(error) => {
            if let Err(abort) = upload.abort().await {
                tracing::warn!(%abort, path, "the unfinished upload was not aborted");
            } else if let Err(note) = store.discard(&order.folder).await {
                tracing::warn!(%note, path, "the note of the aborted upload stays");
            }
            Err(error)
        }
    }
}

async fn check_size(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<(), AgentError> {
    let found = store.head(&ObjectPath::from(manifest.snapshot.as_str())).await?.size;
    if found == manifest.size_bytes {
        return Ok(());
    }
    let (path, expected) = (manifest.snapshot.clone(), manifest.size_bytes);
    Err(AgentError::SizeInStore { path, found, expected })
}

async fn read_manifest(
    store: &Arc<dyn ObjectStore>,
    path: &ObjectPath,
) -> Result<Manifest, AgentError> {
    let bytes = store.get(path).await?.bytes().await?;
    let wrong = |detail: String| AgentError::Manifest { path: path.to_string(), detail };
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if manifest.format != FORMAT {
        return Err(wrong(format!("its format is {}", manifest.format)));
    }
    Ok(manifest)
}

// === Restore ===

/// How a data directory is seeded.
#[derive(Clone, Debug)]
pub struct RestoreOrder {
    pub manifest: String,
    /// What the snapshot must be, if it is known from elsewhere than the store.
    pub sha256: Option<String>,
    pub data_dir: PathBuf,
    pub etcdutl: PathBuf,
    /// Passed on to `etcdutl snapshot restore`: name, initial cluster, token, peer URL.
    pub arguments: Vec<String>,
    pub bump_revision: i64,
}

/// Seeds the data directory unless it exists, and returns the revision that it is seeded with. The
/// directory appears by a rename, so a restore that was interrupted is started again from nothing; and
/// once it is there, its Pod may start as often as it has to, whatever becomes of the store.
///
/// # Errors
/// The backup cannot be read or is damaged, or `etcdutl` refused it. The directory does not exist
/// then.
pub async fn restore(
    order: &RestoreOrder,
    store: Arc<dyn ObjectStore>,
) -> Result<Option<i64>, AgentError> {
    let file = |action: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |source| AgentError::File { action, path, source }
    };
    if tokio::fs::try_exists(&order.data_dir).await.map_err(file("look for", &order.data_dir))? {
        return Ok(None);
    }
    let manifest = read_manifest(&store, &ObjectPath::from(order.manifest.as_str())).await?;
    if let Some(expected) = order.sha256.as_ref().filter(|known| **known != manifest.sha256) {
        let (found, expected) = (manifest.sha256, expected.clone());
        return Err(AgentError::OtherManifest { found, expected });
    }
    let staging = order.data_dir.with_extension("restoring");
    match tokio::fs::remove_dir_all(&staging).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("remove", &staging)(error));
        }
        _ => {}
    }
    tokio::fs::create_dir_all(&staging).await.map_err(file("create", &staging))?;
    let snapshot = staging.join("snapshot.db");
    download(&store, &manifest, &snapshot).await?;
    let restored = staging.join("data");
    run_etcdutl(order, &snapshot, &restored).await?;
    tokio::fs::remove_file(&snapshot).await.map_err(file("remove", &snapshot))?;
    tokio::fs::rename(&restored, &order.data_dir).await.map_err(file("rename", &restored))?;
    if let Some(parent) = order.data_dir.parent() {
        let parent_directory = tokio::fs::File::open(parent).await.map_err(file("open", parent))?;
        parent_directory.sync_all().await.map_err(file("sync", parent))?;
    }
    tokio::fs::remove_dir_all(&staging).await.map_err(file("remove", &staging))?;
    Ok(Some(manifest.revision))
}

async fn download(
    store: &Arc<dyn ObjectStore>,
    manifest: &Manifest,
    into: &Path,
) -> Result<(), AgentError> {
    let failed = |action: &'static str| {
        let path = into.display().to_string();
        move |source| AgentError::File { action, path, source }
    };
    let mut output = tokio::fs::File::create(into).await.map_err(failed("create"))?;
    let mut input = store.get(&ObjectPath::from(manifest.snapshot.as_str())).await?.into_stream();
    let mut check = SnapshotCheck::default();
    while let Some(chunk) = input.try_next().await? {
        check.update(&chunk);
        output.write_all(&chunk).await.map_err(failed("write"))?;
    }
    output.sync_all().await.map_err(failed("sync"))?;
    let (_, found) = check.finish()?;
    if found != manifest.sha256 {
        return Err(AgentError::DigestInStore { found, expected: manifest.sha256.clone() });
    }
    Ok(())
}

async fn run_etcdutl(order: &RestoreOrder, snapshot: &Path, into: &Path) -> Result<(), AgentError> {
    let mut command = tokio::process::Command::new(&order.etcdutl);
    command.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(into);
    command.args(&order.arguments);
    if order.bump_revision > 0 {
        // Watchers must see a compaction and never an old revision again.
        command.arg("--bump-revision").arg(order.bump_revision.to_string()).arg("--mark-compacted");
    }
    let output = command.output().await.map_err(|source| AgentError::File {
        action: "run",
        path: order.etcdutl.display().to_string(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let tail: String =
        text.chars().rev().take(1500).collect::<Vec<_>>().into_iter().rev().collect();
    Err(AgentError::Restore { status: output.status.to_string(), output: tail })
}

// === Delete ===

/// Deletes what the manifest of this backup names, and then the manifest (I15), and what an agent left
/// unfinished of it.
///
/// # Errors
/// The manifest is another backup's, or the store refused. Running it again goes on.
pub async fn delete(
    manifest_path: &str,
    backup_uid: &str,
    store: &Store,
) -> Result<(), AgentError> {
    let path = ObjectPath::from(manifest_path);
    // Its folder bears its uid: what is unfinished there is its own, and so is a snapshot that ended before its
    // manifest was written.
    let folder = manifest_path.rsplit_once('/').map(|(folder, _)| folder);
    let own = folder.filter(|folder| !backup_uid.is_empty() && folder.ends_with(backup_uid));
    if let Some(folder) = own {
        store.discard(folder).await?;
    }
    let store = &store.objects;
    let manifest = match read_manifest(store, &path).await {
        Err(AgentError::Store(object_store::Error::NotFound { .. })) => {
            return match own {
                Some(folder) => delete_if_there(store, &snapshot_path(folder)).await,
                None => Ok(()),
            };
        }
        other => other?,
    };
    if manifest.backup_uid != backup_uid {
        let (found, expected) = (manifest.backup_uid, backup_uid.to_owned());
        return Err(AgentError::ForeignManifest { found, expected });
    }
    delete_if_there(store, &manifest.snapshot).await?;
    store.delete(&path).await?;
    Ok(())
}

async fn delete_if_there(store: &Arc<dyn ObjectStore>, path: &str) -> Result<(), AgentError> {
    match store.delete(&ObjectPath::from(path)).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod backup_tests;

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::backup::manifest::{sample_manifest, sample_snapshot};

    async fn stored(store: &Arc<dyn ObjectStore>, bytes: &[u8]) -> Manifest {
        let mut check = SnapshotCheck::default();
        check.update(bytes);
        let (size_bytes, sha256) = check.finish().unwrap();
        let manifest = sample_manifest("f", size_bytes, sha256);
        store
            .put(&ObjectPath::from("f/snapshot.db"), PutPayload::from(bytes.to_vec()))
            .await
            .unwrap();
        let text = serde_json::to_vec(&manifest).unwrap();
        store.put(&ObjectPath::from("f/manifest.json"), PutPayload::from(text)).await.unwrap();
        manifest
    }

    /// Stands for etcdutl: it copies the snapshot into the directory that it is told to make, and
    /// writes its arguments beside it.
    pub(super) fn copying_etcdutl(directory: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.join("etcdutl");
        let script = "#!/bin/sh\nset -e\nmkdir -p \"$5\"\ncp \"$3\" \"$5/db\"\necho \"$@\" > \"$5/arguments\"\n";
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn order(directory: &Path) -> RestoreOrder {
        RestoreOrder {
            manifest: "f/manifest.json".to_owned(),
            sha256: None,
            data_dir: directory.join("data"),
            etcdutl: copying_etcdutl(directory),
            arguments: vec!["--name".to_owned(), "main-1".to_owned()],
            bump_revision: 1000,
        }
    }

    #[tokio::test]
    async fn a_restore_that_was_interrupted_starts_again_and_a_finished_one_does_nothing() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let snapshot = sample_snapshot(5);
        stored(&store, &snapshot).await;
        let directory = tempfile::tempdir().unwrap();
        let order = order(directory.path());
        // The rest of an interrupted attempt.
        std::fs::create_dir_all(directory.path().join("data.restoring/data")).unwrap();
        assert_eq!(restore(&order, store.clone()).await.unwrap(), Some(7));
        assert_eq!(std::fs::read(directory.path().join("data/db")).unwrap(), snapshot);
        let arguments = std::fs::read_to_string(directory.path().join("data/arguments")).unwrap();
        assert!(arguments.contains("--bump-revision 1000 --mark-compacted"), "{arguments}");
        assert!(!directory.path().join("data.restoring").exists());
        std::fs::write(directory.path().join("data/db"), b"written since").unwrap();
        // The Pod starts again, and the store has nothing any more.
        let empty: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        assert_eq!(restore(&order, empty).await.unwrap(), None);
        assert_eq!(std::fs::read(directory.path().join("data/db")).unwrap(), b"written since");
    }

    /// Who may read and write is part of what was backed up: whatever `etcdutl` advises people to do,
    /// nothing that nobody asked for opens the new cluster to everybody.
    #[tokio::test]
    async fn users_are_never_left_out() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        stored(&store, &sample_snapshot(5)).await;
        let directory = tempfile::tempdir().unwrap();
        let order = order(directory.path());
        let calls = directory.path().join("calls");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\necho 'auth is enabled; use --drop-auth' >&2\nexit 1\n",
            calls.display()
        );
        std::fs::write(&order.etcdutl, script).unwrap();
        let error = restore(&order, store).await.unwrap_err();
        assert!(error.to_string().contains("auth is enabled"), "{error}");
        let calls = std::fs::read_to_string(calls).unwrap();
        assert_eq!(calls.lines().count(), 1, "{calls}");
        assert!(!calls.contains("--drop-auth"), "{calls}");
        assert!(!order.data_dir.exists());
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_not_restored() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut snapshot = sample_snapshot(5);
        stored(&store, &snapshot).await;
        snapshot[100] ^= 1;
        store.put(&ObjectPath::from("f/snapshot.db"), PutPayload::from(snapshot)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let error = restore(&order(directory.path()), store).await.unwrap_err();
        assert!(matches!(error, AgentError::Snapshot(SnapshotError::Digest)), "{error}");
        assert!(!directory.path().join("data").exists());
    }

    /// Each is whole by itself, and its manifest fits it: only who took the backup knows which it was.
    #[tokio::test]
    async fn another_snapshot_in_the_place_of_the_backup_is_not_restored() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let taken = stored(&store, &sample_snapshot(5)).await;
        let directory = tempfile::tempdir().unwrap();
        let order = RestoreOrder { sha256: Some(taken.sha256), ..order(directory.path()) };
        stored(&store, &sample_snapshot(6)).await;
        let error = restore(&order, store.clone()).await.unwrap_err();
        assert!(matches!(error, AgentError::OtherManifest { .. }), "{error}");
        assert!(!order.data_dir.exists());
        stored(&store, &sample_snapshot(5)).await;
        assert_eq!(restore(&order, store).await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn only_the_backup_that_wrote_objects_deletes_them() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        stored(&store, &sample_snapshot(1)).await;
        let whole = Store::plain(store.clone());
        let error = delete("f/manifest.json", "other", &whole).await.unwrap_err();
        assert!(matches!(error, AgentError::ForeignManifest { .. }), "{error}");
        assert!(store.head(&ObjectPath::from("f/snapshot.db")).await.is_ok());
        delete("f/manifest.json", "uid", &whole).await.unwrap();
        assert!(store.head(&ObjectPath::from("f/snapshot.db")).await.is_err());
        delete("f/manifest.json", "uid", &whole).await.unwrap();
    }

    /// The Job was killed between the end of the upload and the manifest.
    #[tokio::test]
    async fn a_snapshot_without_a_manifest_goes_with_its_own_backup_only() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let path = ObjectPath::from("now-uid/snapshot.db");
        store.put(&path, PutPayload::from_static(b"data")).await.unwrap();
        let whole = Store::plain(store.clone());
        delete("now-uid/manifest.json", "other", &whole).await.unwrap();
        assert!(store.head(&path).await.is_ok());
        delete("now-uid/manifest.json", "uid", &whole).await.unwrap();
        assert!(store.head(&path).await.is_err());
    }
}
