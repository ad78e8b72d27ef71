//! The product on a Kubernetes: the operator by its Helm chart, an example cluster of three members
//! with a backup schedule, and the proof that it works.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use e2e::kubernetes::{Access, wait};

use crate::progress::Progress;
use crate::workspace::Workspace;

const CHART: &str = "charts/etcd-operator";
const EXAMPLE: &str = "manifests/examples/three-members.yaml";
const NAMESPACE: &str = "etcd-operator";
const RELEASE: &str = "etcd-operator";

pub(crate) struct Operator<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) progress: &'a Progress,
    pub(crate) access: &'a Access,
}

impl Operator<'_> {
    /// Whether this clone has the operator's chart and example.
    pub(crate) fn is_here(workspace: &Workspace) -> bool {
        workspace.join(CHART).exists() && workspace.join(EXAMPLE).exists()
    }

    /// Installs the operator with this image, applies the example and waits until it is Ready.
    pub(crate) fn install(&self, image: &str) -> Result<()> {
        let (repository, tag) = image
            .rsplit_once(':')
            .with_context(|| format!("{image} has no tag: name it as repository:tag"))?;
        let chart = self.workspace.join(CHART).display().to_string();
        let (repository, tag) =
            (format!("image.repository={repository}"), format!("image.tag={tag}"));
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
        self.progress.working(&format!("wait until {cluster} is Ready"), || {
            self.access
                .kubectl(["wait", "--for=condition=Ready", "--timeout=300s", &cluster])
                .limit(Duration::from_secs(320))
                .run()
        })?;
        self.prove(&cluster)
    }

    /// Removes the example, then the operator, then its kinds: in this order, because only a running
    /// operator can take its finalizers off.
    pub(crate) fn remove(&self) -> Result<()> {
        let example = self.example();
        self.progress.working("delete the example", || {
            self.access
                .kubectl(["delete", "--ignore-not-found", "--wait=true", "-f", &example])
                .limit(Duration::from_secs(180))
                .run()
        })?;
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
