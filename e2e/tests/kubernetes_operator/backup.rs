//! Backups by a schedule to an S3-compatible server, what is kept of them, and clusters made of one;
//! and a backup that lies on a volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::kubernetes::{Cluster, Namespace, object_store, wait};
use serde_json::{Value, json};

use crate::product::{Etcd, STEP, condition, kubernetes, text};

/// The next full minute, and a Job.
const NEXT_RUN: Duration = Duration::from_secs(120);

#[test]
fn scheduled_backups_are_pruned_and_a_new_cluster_is_equal_to_the_old_one() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "backup")?;
    let etcd =
        Etcd::create(&namespace, "main", 3, &json!({"backup": {"store": store("nightly")}}))?;
    namespace.apply(&credentials().to_string())?;
    let caller = etcd.caller()?;
    for number in 0..200 {
        caller.put(&format!("data/{number:03}"), &"x".repeat(1000))?;
    }

    namespace.apply(&schedule().to_string())?;
    let first = complete_backup(&namespace, &[])?;
    let first_name = text(&first["metadata"]["name"]);
    let first_files = stored(&cluster, &first)?;
    ensure!(first_files.iter().all(|file| file.exists()), "{first_files:?}");
    caller.put("data/later", "after the first backup")?;
    let hash = etcd.hash()?;

    // The next run of the schedule holds that write, and pushes the first one out.
    let second = complete_backup(&namespace, &[&first_name])?;
    let second_name = text(&second["metadata"]["name"]);
    ensure!(second["status"]["revision"] == hash.revision, "{second}");
    wait::until("the first backup is pruned", STEP, || {
        let names = namespace.kubectl("get etcdbackups -o name")?;
        ensure!(!names.contains(&first_name), "it is still there: {names}");
        match first_files.iter().find(|file| file.exists()) {
            None => Ok(()),
            Some(file) => Err(anyhow!("{} is still there", file.display())),
        }
    })?;
    ensure!(stored(&cluster, &second)?.iter().all(|file| file.exists()), "{second}");
    // No more runs while this test looks at the second.
    namespace.patch("etcdbackupschedule/nightly", &json!({"spec": {"suspend": true}}))?;
    etcd.wait_for("the cluster names its newest backup", STEP, |status| {
        status["backup"]["lastSuccessful"] == second_name.as_str()
    })?;

    recover(&namespace, &second_name, hash)?;
    let broken = namespace.get(&format!("etcdbackup {second_name}"))?;
    ensure!(condition(&broken["status"], "Complete")["status"] == "True", "{broken}");
    // With their objects the backups go from the store.
    let files = stored(&cluster, &second)?;
    namespace.delete("etcdbackupschedules,etcdbackups --all")?;
    ensure!(files.iter().all(|file| !file.exists()), "left in the store: {files:?}");
    Ok(())
}

/// A second cluster with the data of the backup, beside the first.
fn recover(namespace: &Namespace<'_>, backup: &str, hash: crate::product::Hash) -> Result<()> {
    let recovery = |bump: i64| {
        json!({"bootstrap": {"type": "Recovery", "recovery": {
            "backupRef": {"name": backup}, "bumpRevision": bump,
        }}})
    };
    let copy = Etcd::create(namespace, "copy", 3, &recovery(0))?;
    let copied = copy.hash()?;
    ensure!(copied == hash, "the copy has {copied:?}, the original {hash:?}");
    let caller = copy.caller()?;
    ensure!(caller.get("data/later")?.as_deref() == Some("after the first backup"));
    let ids = |etcd: &Etcd<'_>| -> Result<Value> { Ok(etcd.status()?["clusterID"].clone()) };
    ensure!(ids(&copy)? != ids(&Etcd::adopt(namespace, "main")?)?, "they have the same id");
    let next = caller.put("data/new", "of the copy")?;
    ensure!(next == hash.revision + 1, "{next} after {}", hash.revision);
    namespace.delete("etcdcluster copy")?;

    // As it is done for clients that saw the old cluster: revisions go on far above.
    let bumped = Etcd::create(namespace, "bumped", 1, &recovery(1_000_000))?;
    let caller = bumped.caller()?;
    ensure!(caller.get("data/later")?.as_deref() == Some("after the first backup"));
    let next = caller.put("data/new", "of the bumped one")?;
    ensure!(next > hash.revision + 1_000_000, "{next} after {}", hash.revision);
    Ok(())
}

/// Where there is no object store: a volume that the Job and the new member's first Pod mount. The
/// EtcdBackup may be long gone: the store and the path of the manifest are enough.
#[test]
fn a_new_cluster_is_made_of_what_lies_on_a_volume() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "backup-volume")?;
    let etcd = Etcd::create(&namespace, "main", 1, &json!({}))?;
    let caller = etcd.caller()?;
    for number in 0..200 {
        caller.put(&format!("data/{number:03}"), &"x".repeat(1000))?;
    }
    let hash = etcd.hash()?;
    let store = json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {
        "claimName": "backups", "prefix": "team/a",
    }});
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "backups"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}},
        },
    });
    let backup = json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdBackup",
        "metadata": {"name": "once"}, "spec": {"clusterRef": {"name": "main"}, "store": store},
    });
    namespace.apply(&claim.to_string())?;
    namespace.apply(&backup.to_string())?;
    let taken = complete_backup(&namespace, &[])?;
    ensure!(taken["status"]["revision"] == hash.revision, "{taken}");
    let manifest = text(&taken["status"]["manifest"]);
    // What is stored stays: that is the backup's deletionPolicy.
    namespace.delete("etcdbackup once")?;
    namespace.delete("etcdcluster main")?;

    let recovery = json!({"bootstrap": {"type": "Recovery", "recovery": {
        "objectStore": {"store": store, "manifest": manifest}, "bumpRevision": 0,
    }}});
    let copy = Etcd::create(&namespace, "copy", 1, &recovery)?;
    let copied = copy.hash()?;
    ensure!(copied == hash, "the copy has {copied:?}, the original {hash:?}");
    let next = copy.caller()?.put("data/new", "of the copy")?;
    ensure!(next == hash.revision + 1, "{next} after {}", hash.revision);
    Ok(())
}

fn store(prefix: &str) -> Value {
    json!({"type": "S3", "s3": {
        "bucket": object_store::BUCKET, "prefix": prefix, "endpoint": object_store::ENDPOINT,
        "region": object_store::REGION, "credentialsSecretRef": {"name": "backup-credentials"},
    }})
}

fn credentials() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "backup-credentials"},
        "stringData": {
            "accessKeyID": object_store::ACCESS_KEY, "secretAccessKey": object_store::SECRET_KEY,
        },
    })
}

fn schedule() -> Value {
    json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdBackupSchedule",
        "metadata": {"name": "nightly"},
        "spec": {
            "clusterRef": {"name": "main"}, "schedule": "* * * * *", "immediate": true,
            "retention": {"keepLast": 1},
        },
    })
}

/// The newest complete backup that is not one of those already known.
fn complete_backup(namespace: &Namespace<'_>, known: &[&str]) -> Result<Value> {
    wait::until("a backup is complete", NEXT_RUN, || {
        let list = namespace.get("etcdbackups --sort-by=.metadata.creationTimestamp")?;
        let backups = list["items"].as_array().cloned().unwrap_or_default();
        let complete = |backup: &&Value| {
            condition(&backup["status"], "Complete")["status"] == "True"
                && !known.contains(&text(&backup["metadata"]["name"]).as_str())
        };
        let found = backups.iter().rev().find(complete);
        found.cloned().ok_or_else(|| {
            let said = backups.iter().map(|backup| backup["status"]["conditions"].to_string());
            anyhow!("{:?}", said.collect::<Vec<_>>())
        })
    })
}

/// The files of a backup: the server's buckets are directories.
fn stored(cluster: &Cluster, backup: &Value) -> Result<Vec<PathBuf>> {
    let manifest = text(&backup["status"]["manifest"]);
    let bucket = object_store::bucket(cluster.layout(), object_store::BUCKET).join("nightly");
    let manifest = bucket.join(manifest);
    let folder: &Path = manifest.parent().context("it lies in a folder")?;
    let snapshot = folder.join("snapshot.db");
    if let Ok(found) = fs::metadata(&snapshot) {
        ensure!(backup["status"]["sizeBytes"] == found.len(), "{} bytes: {backup}", found.len());
    }
    Ok(vec![manifest, snapshot])
}
