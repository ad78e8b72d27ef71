//! The product on a Kubernetes: the operator by its Helm chart, an example cluster of three members
//! with a backup schedule, and the proof that it works.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use e2e::kubernetes::{Access, wait};
use serde_json::json;

use crate::progress::Progress;
use crate::workspace::Workspace;

const CHART: &str = "charts/etcd-operator";
const EXAMPLE: &str = "manifests/examples/three-members.yaml";
/// On all that belongs to the example: its name is in the file.
const EXAMPLE_LABEL: &str = "etcd.keelson.dev/cluster=example";
const NAMESPACE: &str = "etcd-operator";
const RELEASE: &str = "etcd-operator";

pub(crate) struct Operator<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) progress: &'a Progress,
    pub(crate) access: &'a Access,
}

impl Operator<'_> {
    /// Installs the operator with this image, applies the example and waits until it is Ready.
    pub(crate) fn install(&self, image: &str) -> Result<()> {
        let named = image
            .rsplit_once(':')
            .with_context(|| format!("{image} has no tag: name it as repository:tag"))?;
        let chart = self.workspace.join(CHART).display().to_string();
        let (repository, tag) =
            (format!("image.repository={}", named.0), format!("image.tag={}", named.1));
        self.progress.working("install the operator with its Helm chart", || {
            self.access
                .helm(["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE])
                .words("--create-namespace --wait --timeout 3m")
                .args(["--set", &repository, "--set", &tag])
                .limit(Duration::from_secs(240))
                .run()
        })?;
        let example = self.example();
        self.progress.working("apply the example: three members and a backup schedule", || {
            self.access.kubectl(["apply", "-f", &example]).run()
        })?;
        let cluster = self.cluster()?;
        // The example names no image, because its default is what we ship.
        let (repository, tag) = named;
        let spec = json!({ "spec": { "image": { "repository": repository, "tag": tag } } });
        let patch = format!("--patch={spec}");
        self.access.kubectl(["patch", &cluster, "--type=merge", &patch]).run()?;
        self.progress.working(&format!("wait until {cluster} is Ready"), || {
            self.access
                .kubectl(["wait", "--for=condition=Ready", "--timeout=300s", &cluster])
                .limit(Duration::from_secs(320))
                .run()
        })?;
        self.prove(&cluster)?;
        self.progress.working("wait for the first backup", || self.first_backup())
    }

    /// All of `up` and `down` on a Kubernetes that has nothing of ours, and has nothing of it afterwards.
    pub(crate) fn come_and_go(&self, image: &str) -> Result<()> {
        self.install(image)?;
        self.remove()?;
        if self.knows_our_kinds()? {
            bail!("the kinds are left");
        }
        Ok(())
    }

    /// Removes the example, then the operator, then its kinds: in this order, because only a running
    /// operator can take its finalizers off.
    ///
    /// # Errors
    /// Before anything is done, if other clusters are there: with their kind they would go as well.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.knows_our_kinds()? {
            self.refuse_clusters_of_others()?;
            self.progress.working("delete the example", || self.delete_example())?;
        }
        self.progress.working("uninstall the operator", || {
            self.access
                .helm(["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"])
                .words("--ignore-not-found")
                .limit(Duration::from_secs(180))
                .run()?;
            let kinds =
                self.access.kubectl(["get", "customresourcedefinitions", "-o", "name"]).run()?;
            for kind in kinds.lines().filter(|kind| kind.ends_with(".etcd.keelson.dev")) {
                self.access.kubectl(["delete", kind]).run()?;
            }
            self.access.kubectl(["delete", "namespace", NAMESPACE, "--ignore-not-found"]).run()
        })?;
        Ok(())
    }

    fn refuse_clusters_of_others(&self) -> Result<()> {
        let names = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}";
        let found = self.access.kubectl(["get", "etcdclusters", "-A", "-o", names]).run()?;
        let others: Vec<&str> =
            found.split_whitespace().filter(|name| !name.ends_with("/example")).collect();
        match others.is_empty() {
            true => Ok(()),
            false => bail!(
                "the operator also keeps {}: delete these EtcdClusters first, or keep the operator",
                others.join(", ")
            ),
        }
    }

    fn knows_our_kinds(&self) -> Result<bool> {
        let line = ["get", "customresourcedefinition", "etcdclusters.etcd.keelson.dev"];
        let found = self.access.kubectl(line).words("--ignore-not-found -o name").run()?;
        Ok(!found.is_empty())
    }

    /// The schedule first, so that it makes no more backups; then those it has made, which outlive
    /// it, while the volume that they are on is still there.
    fn delete_example(&self) -> Result<()> {
        for kind in ["etcdbackupschedules", "etcdbackups"] {
            self.access
                .kubectl(["delete", kind, "--ignore-not-found", "--wait=true"])
                .args(["--selector", EXAMPLE_LABEL, "--timeout=150s"])
                .limit(Duration::from_secs(180))
                .run()?;
        }
        self.access
            .kubectl(["delete", "--ignore-not-found", "--wait=true", "-f", &self.example()])
            .limit(Duration::from_secs(180))
            .run()
            .map(drop)
    }

    fn example(&self) -> String {
        let path: PathBuf = self.workspace.join(EXAMPLE);
        path.display().to_string()
    }

    /// The example's EtcdCluster, as kubectl names objects.
    fn cluster(&self) -> Result<String> {
        let names = self.access.kubectl(["get", "-o", "name", "-f", &self.example()]).run()?;
        let cluster = names.lines().find(|name| name.starts_with("etcdcluster."));
        cluster.map(str::to_owned).ok_or_else(|| anyhow!("{EXAMPLE} has no EtcdCluster"))
    }

    /// The schedule of the example takes its first backup at once.
    fn first_backup(&self) -> Result<()> {
        let complete = r#"jsonpath={.items[*].status.conditions[?(@.type=="Complete")].status}"#;
        wait::until("the first backup is complete", Duration::from_secs(120), || {
            let kubectl = self.access.kubectl(["get", "etcdbackups", "-o", complete]);
            let found = kubectl.args(["--selector", EXAMPLE_LABEL]).run()?;
            if found.contains("True") { Ok(()) } else { Err(anyhow!("it is {found:?}")) }
        })
    }

    /// A key goes in through one member and comes out of another.
    fn prove(&self, cluster: &str) -> Result<()> {
        let name = cluster.split_once('/').map_or(cluster, |(_, name)| name);
        let selector = format!("etcd.keelson.dev/cluster={name}");
        let pods = self
            .access
            .kubectl(["get", "pods", "--selector", &selector, "-o", "name"])
            .words("--field-selector=status.phase=Running")
            .run()?;
        let pods: Vec<&str> = pods.lines().collect();
        let (Some(first), Some(last)) = (pods.first(), pods.last()) else {
            bail!("no running pod has the label {selector}");
        };
        self.progress.working("put through one member, get through another", || {
            let etcdctl = |pod: &str, line: &str| {
                self.access.kubectl(["exec", pod, "--", "etcdctl"]).words(line).run()
            };
            wait::until("etcdctl put is answered", Duration::from_secs(30), || {
                etcdctl(first, "put hello keelson")
            })?;
            let found = etcdctl(last, "get hello --print-value-only")?;
            if found.trim() == "keelson" { Ok(()) } else { Err(anyhow!("get answered {found:?}")) }
        })
    }
}
