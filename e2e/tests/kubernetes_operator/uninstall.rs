//! The end: what was installed goes, and nothing of it is left. By its name the last of the tests.

use std::fs;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::kubernetes::{Access, Namespace, wait};
use serde_json::json;

use crate::product::{Etcd, OPERATOR_NAMESPACE, RELEASE, STEP, kubernetes};

#[test]
fn uninstalling_leaves_nothing_behind() -> Result<()> {
    let cluster = kubernetes()?;
    let access = cluster.access();
    let namespace = Namespace::restricted(&cluster, "uninstall")?;
    let etcd = Etcd::create(&namespace, "main", 3, &json!({}))?;
    etcd.caller()?.put("some", "data")?;

    namespace.delete("etcdcluster main")?;
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
        .words("--wait --timeout 4m")
        .limit(Duration::from_secs(250))
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
        access.delete(&kind)?;
    }
    access.delete(&format!("namespace {OPERATOR_NAMESPACE}"))?;

    wait::until("nothing is left of any kind", STEP, || {
        let left = ours_of_every_kind(cluster.access())?;
        if left.is_empty() { Ok(()) } else { Err(anyhow!("{left:?}")) }
    })?;
    // Each volume was a file.
    wait::until("no volume is left", STEP, || {
        let volumes = access.kubectl(["get", "persistentvolumes", "-o", "name"]).run()?;
        ensure!(volumes.is_empty(), "{volumes}");
        let files = fs::read_dir(cluster.layout().volumes())?.count();
        if files == 0 { Ok(()) } else { Err(anyhow!("{files} files of volumes")) }
    })
}

/// The objects of all kinds, in all namespaces and outside of them, that have our name in theirs.
fn ours_of_every_kind(access: &Access) -> Result<Vec<String>> {
    let kinds = access.kubectl(["api-resources", "--verbs=list", "-o", "name"]).run()?;
    let kinds: Vec<&str> = kinds
        .split_whitespace()
        // The apiserver's own store is called etcd; and events are history, which expires.
        .filter(|kind| *kind != "componentstatuses" && !kind.starts_with("events"))
        .collect();
    ensure!(kinds.len() > 30, "there must be more kinds than {kinds:?}");
    let all = access.kubectl(["get", &kinds.join(","), "-A", "-o", "name"]).run()?;
    Ok(all.lines().filter(|name| name.contains("etcd")).map(str::to_owned).collect())
}
