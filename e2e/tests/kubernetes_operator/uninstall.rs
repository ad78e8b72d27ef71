//! The end: what was installed goes, and nothing of it is left. By its name the last of the tests.

use std::fs;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::kubernetes::{Namespace, wait};
use serde_json::json;

use crate::product::{Etcd, OPERATOR_NAMESPACE, RELEASE, STEP, kubernetes};

#[test]
fn uninstalling_leaves_nothing_behind() -> Result<()> {
    let cluster = kubernetes()?;
    let access = cluster.access();
    let namespace = Namespace::restricted(&cluster, "uninstall")?;
    let etcd = Etcd::create(&namespace, "main", 3, &json!({}))?;
    etcd.caller()?.put("some", "data")?;

    namespace.kubectl("delete etcdcluster main --timeout=60s")?;
    for kind in ["etcdmembers", "pods", "services", "persistentvolumeclaims", "secrets", "pdb"] {
        wait::until(&format!("no {kind} are left"), STEP, || {
            let left = namespace.kubectl(&format!("get {kind} -o name"))?;
            if left.is_empty() { Ok(()) } else { Err(anyhow!("{left}")) }
        })?;
    }
    drop(namespace);
    let everywhere = ["get", "etcdclusters,etcdmembers,etcdbackups,etcdbackupschedules", "-A"];
    let left = access.kubectl(everywhere).words("-o name").run()?;
    ensure!(left.is_empty(), "other tests have left {left}");

    access
        .helm(["uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE])
        .words("--wait --timeout 60s")
        .run()?;
    // The chart keeps the kinds, because with them go all clusters: who wants that says so.
    let kinds = || -> Result<Vec<String>> {
        let all = access.kubectl(["get", "customresourcedefinitions", "-o", "name"]).run()?;
        Ok(all
            .lines()
            .filter(|kind| kind.ends_with(".etcd.keelson.dev"))
            .map(str::to_owned)
            .collect())
    };
    ensure!(kinds()?.len() == 4, "the chart took the kinds with it: {:?}", kinds()?);
    for kind in kinds()? {
        access.kubectl(["delete", &kind, "--timeout=30s"]).run()?;
    }
    access
        .kubectl(["delete", "namespace", OPERATOR_NAMESPACE, "--timeout=60s"])
        .limit(Duration::from_secs(65))
        .run()?;

    let kinds = "clusterroles,clusterrolebindings,customresourcedefinitions,namespaces";
    let left = access.kubectl(["get", kinds, "-o", "name"]).run()?;
    let ours: Vec<&str> = left.lines().filter(|line| line.contains("etcd")).collect();
    ensure!(ours.is_empty(), "left: {ours:?}");
    // Each volume was a file.
    wait::until("no volume is left", STEP, || {
        let volumes = access.kubectl(["get", "persistentvolumes", "-o", "name"]).run()?;
        ensure!(volumes.is_empty(), "{volumes}");
        let files = fs::read_dir(cluster.layout().volumes())?.count();
        if files == 0 { Ok(()) } else { Err(anyhow!("{files} files of volumes")) }
    })
}
