//! An operator that may work in one namespace only does so, and knows nothing of the others.

use anyhow::{Result, ensure};
use e2e::kubernetes::{Cluster, Namespace};
use serde_json::json;

use crate::product::{Etcd, OPERATOR_NAMESPACE, RELEASE, install_with, kubernetes};

#[test]
fn an_operator_of_one_namespace_runs_clusters_there_and_touches_no_other() -> Result<()> {
    let cluster = kubernetes()?;
    let watched = Namespace::restricted(&cluster, "watched")?;
    let other = Namespace::restricted(&cluster, "unwatched")?;
    let everywhere = Everywhere(&cluster);
    install_with(
        &cluster,
        &format!("watchNamespaces={{{}}},rbac.nodeAccess=false", watched.name()),
    )?;
    // No right reaches further than its namespace: the one with clusters, and the operator's own.
    let of_release = format!("app.kubernetes.io/instance={RELEASE}");
    let rights = ["get", "clusterroles,clusterrolebindings", "-o", "name", "-l", &of_release];
    let rights = cluster.access().kubectl(rights).run()?;
    ensure!(rights.is_empty(), "{rights} are left");

    let elsewhere = json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main"}, "spec": {
            "replicas": 1, "storage": {"size": "300Mi"}, "deletionPolicy": "Delete",
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        },
    });
    other.apply(&elsewhere.to_string())?;
    // The other one was there first, and would be on its way by the time this one is ready.
    let etcd = Etcd::create(&watched, "main", 1, &json!({}))?;
    etcd.caller()?.put("some", "data")?;
    let untouched = other.get("etcdcluster main")?;
    ensure!(untouched["status"].is_null(), "{untouched}");
    ensure!(untouched["metadata"]["finalizers"].is_null(), "{untouched}");
    let pods = other.kubectl("get pods,persistentvolumeclaims,secrets -o name")?;
    ensure!(pods.is_empty(), "{pods}");

    let line = ["-n", OPERATOR_NAMESPACE, "logs", "--tail=-1", "--prefix", "--selector"];
    let said = cluster.access().kubectl(line).args([of_release]).run()?;
    ensure!(said.contains("became the leader"), "not the operator's log: {said}");
    let refused = said.lines().find(|line| line.to_lowercase().contains("forbidden"));
    ensure!(refused.is_none(), "{refused:?}");

    // As soon as it may, it does what it was asked for there as well.
    drop(everywhere);
    Etcd::adopt(&other, "main")?.wait_until_settled(1)
}

/// Whatever becomes of the test, the operator works in all namespaces again.
struct Everywhere<'a>(&'a Cluster);

impl Drop for Everywhere<'_> {
    fn drop(&mut self) {
        if let Err(error) = install_with(self.0, "rbac.nodeAccess=true") {
            eprintln!("the operator is left with one namespace: {error:#}");
        }
    }
}
