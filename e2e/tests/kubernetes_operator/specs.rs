//! What cannot work is refused by the API server, with the reason.

use anyhow::{Context, Result, ensure};
use e2e::kubernetes::Namespace;
use serde_json::{Value, json};

use crate::product::kubernetes;

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

#[test]
fn specs_that_cannot_work_are_refused_with_the_reason() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::new(&cluster, "specs")?;
    let access = cluster.access();
    let dry_run = |object: &str| {
        let line = ["-n", namespace.name(), "create", "--dry-run=server", "-f", "-"];
        access.kubectl(line).input(object).run()
    };
    let s3 = json!({"type": "S3", "persistentVolumeClaim": {"claimName": "x"}});
    let long = "n".repeat(46);
    for (kind, name, spec, reason) in [
        ("EtcdCluster", "a", json!({"replicas": 2}), "replicas must be 1, 3, 5 or 7"),
        ("EtcdCluster", "a", json!({"replicas": 9}), "replicas must be 1, 3, 5 or 7"),
        ("EtcdCluster", &long, json!({}), "at most 45 characters"),
        ("EtcdCluster", "a", json!({"version": "latest"}), "spec.version"),
        ("EtcdCluster", "a", json!({"storage": {"size": "15.9Mi"}}), "at least 16Mi"),
        ("EtcdCluster", "a", json!({"storage": {"size": "much"}}), "must be a quantity"),
        (
            "EtcdCluster",
            "a",
            json!({"extraArgs": {"data-dir": "/x"}}),
            "may not set a flag that the operator sets",
        ),
        (
            "EtcdCluster",
            "a",
            json!({"config": {"heartbeatIntervalMilliseconds": 500}}),
            "at least five times",
        ),
        ("EtcdCluster", "a", json!({"bootstrap": {"type": "Recovery"}}), "recovery is required"),
        (
            "EtcdCluster",
            "a",
            json!({"bootstrap": {"type": "Recovery", "recovery": {}}}),
            "exactly one of backupRef and objectStore",
        ),
        ("EtcdBackup", "a", json!({"clusterRef": {"name": "x"}, "store": s3}), "s3 is required"),
        (
            "EtcdBackupSchedule",
            "a",
            json!({"clusterRef": {"name": "x"}, "schedule": "sometimes"}),
            "five cron fields",
        ),
    ] {
        let object = object(kind, name, &spec);
        match dry_run(&object) {
            Ok(_) => anyhow::bail!("accepted: {object}"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(said.contains(reason), "{object}: {reason:?} is not in {said}");
            }
        }
    }
    ensure!(dry_run(&object("EtcdCluster", "a", &json!({}))).is_ok(), "the default is refused");
    let created = object("EtcdCluster", "fixed", &json!({"paused": true}));
    namespace.apply(&created)?;
    for (change, reason) in [
        (json!({"storage": {"size": "20Gi"}}), "size cannot be changed"),
        (json!({"storage": {"className": "other"}}), "className cannot be changed"),
        (json!({"tls": {"mode": "Disabled"}}), "tls.mode cannot be changed"),
        (
            json!({"bootstrap": {"type": "Recovery", "recovery": {"backupRef": {"name": "b"}}}}),
            "cannot be changed",
        ),
    ] {
        let refused = namespace.patch("etcdcluster/fixed", &json!({ "spec": change }));
        let said = format!("{:#}", refused.err().unwrap_or_else(|| anyhow::anyhow!("accepted")));
        ensure!(said.contains(reason), "{change}: {reason:?} is not in {said}");
    }
    namespace.delete("etcdcluster fixed")
}

/// The rules of CEL decide what gets in; the operator reads all of it.
#[test]
fn every_form_of_a_quantity_is_a_size() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::new(&cluster, "sizes")?;
    for size in [json!("1e10"), json!("1.23456Gi"), json!("20000000k"), json!(1_073_741_824)] {
        let spec = json!({"storage": {"size": size}});
        let line = ["-n", namespace.name(), "create", "--dry-run=server", "-f", "-"];
        let created = cluster.access().kubectl(line).input(object("EtcdCluster", "a", &spec)).run();
        created.with_context(|| format!("size {size}"))?;
    }
    Ok(())
}
