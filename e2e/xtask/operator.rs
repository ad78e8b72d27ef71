//! The product on a Kubernetes: the operator by its Helm chart, an example cluster of three members
//! with a backup schedule, and the proof that it works.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, iter};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::kubernetes::{Access, program::Program, wait};
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::workspace::Workspace;

const CHART: &str = "charts/etcd-operator";
const EXAMPLE: &str = "manifests/examples/three-members.yaml";
/// On all that belongs to the example: its name is in the file.
const EXAMPLE_LABEL: &str = "etcd.keelson.dev/cluster=example";
/// All kinds that go with the operator.
const KINDS: &str = "etcdclusters,etcdmembers,etcdbackups,etcdbackupschedules";
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

    /// All of `up` and `down` on a Kubernetes that has nothing of ours, and has nothing of it afterwards:
    /// as who has this one calls them, by the name of its context.
    pub(crate) fn come_and_go(&self, image: &str) -> Result<()> {
        let context = self.access.kubectl(["config", "current-context"]).run()?;
        let context = context.trim();
        let line = ["up", "--context", context];
        let Err(refused) = self.command(&line)?.run() else { bail!("{line:?} needs no image") };
        ensure!(format!("{refused:#}").contains("--image REPOSITORY:TAG"), "{refused:#}");
        self.progress.working(&format!("up --context {context}"), || {
            self.command(&["up", "--context", context, "--image", image])?.run()
        })?;
        self.stay_for_others()?;
        self.progress.working(&format!("down --context {context}"), || {
            self.command(&["down", "--context", context])?.run()
        })?;
        if self.knows_our_kinds()? {
            bail!("the kinds are left");
        }
        Ok(())
    }

    /// A command of this very program, which finds the Kubernetes and its tools as they are found on the
    /// machine of somebody who has them.
    fn command(&self, line: &[&str]) -> Result<Program> {
        let own = self.access.kubeconfig.as_ref().context("the Kubernetes is ours")?;
        let path = env::var_os("PATH").unwrap_or_default();
        let path = iter::once(self.workspace.peers()).chain(env::split_paths(&path));
        Ok(Program::new("/proc/self/exe")
            .args(line)
            .env("KUBECONFIG", own)
            .env("PATH", env::join_paths(path)?)
            .env("KEELSON_STATE", self.workspace.state())
            .limit(Duration::from_secs(1200)))
    }

    /// Removes the example, then the operator, then its kinds: in this order, because only a running
    /// operator can take its finalizers off.
    ///
    /// # Errors
    /// Before anything is done, if there is more than the example: with its kind it would go as well.
    /// And after the example has gone, if anything has come in the meantime.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.knows_our_kinds()? {
            let namespace = self.namespace()?;
            self.refuse(|object| !is_of_example(object, &namespace))?;
            self.progress.working("delete the example", || self.delete_example())?;
            self.refuse(|_| true)?;
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

    /// Everything of our kinds, in all namespaces, that the operator has to be kept for.
    fn refuse(&self, is_kept_for: impl Fn(&Value) -> bool) -> Result<()> {
        let all = self.access.kubectl(["get", KINDS, "-A", "-o", "json"]).run()?;
        let all: Value = serde_json::from_str(&all).context("read what kubectl lists")?;
        let others = all["items"].as_array().into_iter().flatten();
        let others: Vec<String> =
            others.filter(|object| is_kept_for(object)).map(described).collect();
        match others.is_empty() {
            true => Ok(()),
            false => bail!(
                "the operator also keeps {}: delete these first, or keep the operator",
                others.join(", ")
            ),
        }
    }

    /// Where the example is: kubectl's own namespace.
    fn namespace(&self) -> Result<String> {
        let path = "jsonpath={.contexts[0].context.namespace}";
        let found = self.access.kubectl(["config", "view", "--minify", "-o", path]).run()?;
        Ok(if found.is_empty() { "default".to_owned() } else { found })
    }

    /// What belongs to others is not removed, and neither is the operator that keeps it: a backup of
    /// theirs, and a cluster with the name of the example.
    fn stay_for_others(&self) -> Result<()> {
        const OTHERS: &str = "others";
        let namespace = self.namespace()?;
        self.access.kubectl(["create", "namespace", OTHERS]).run()?;
        for (kind, name, spec) in [
            ("EtcdBackup", "kept", json!({"clusterRef": {"name": "example"}})),
            // Paused: it is there, and needs nothing.
            ("EtcdCluster", "example", json!({"paused": true})),
        ] {
            let object = json!({
                "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": kind,
                "metadata": {"name": name, "namespace": OTHERS}, "spec": spec,
            });
            self.access.apply(&object.to_string())?;
            let Err(refused) = self.remove() else { bail!("{kind} {OTHERS}/{name} was removed") };
            let named = format!("{kind} {OTHERS}/{name}");
            ensure!(refused.to_string().contains(&named), "{named} is not named: {refused:#}");
            for (kind, name, namespace) in [
                (kind, name, OTHERS),
                ("EtcdCluster", "example", namespace.as_str()),
                ("Deployment", RELEASE, NAMESPACE),
            ] {
                let kind = kind.to_lowercase();
                self.access.kubectl(["get", &kind, name, "--namespace", namespace]).run()?;
            }
            self.access.delete(&format!("{} {name} --namespace {OTHERS}", kind.to_lowercase()))?;
        }
        self.access.delete(&format!("namespace {OTHERS}"))
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
        // The Pods of backup Jobs bear the name of the cluster, too.
        let selector = format!("etcd.keelson.dev/cluster={name},etcd.keelson.dev/component=server");
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

/// Whether the object is one that `delete_example` deletes or that goes with it.
fn is_of_example(object: &Value, namespace: &str) -> bool {
    let metadata = &object["metadata"];
    let name = match object["kind"].as_str() {
        Some("EtcdCluster") => &metadata["name"],
        _ => &metadata["labels"]["etcd.keelson.dev/cluster"],
    };
    metadata["namespace"] == namespace && name == "example"
}

fn described(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (kind, namespace, name) =
        (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
    format!("{kind} {namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_example_where_the_example_is_belongs_to_it() {
        let object = |kind: &str, namespace: &str, name: &str, cluster: &str| {
            let labels = json!({"etcd.keelson.dev/cluster": cluster});
            json!({"kind": kind, "metadata": {
                "namespace": namespace, "name": name, "labels": labels,
            }})
        };
        for (object, belongs) in [
            (object("EtcdCluster", "default", "example", ""), true),
            (object("EtcdMember", "default", "example-1", "example"), true),
            (object("EtcdBackup", "default", "example-hourly-1", "example"), true),
            (object("EtcdCluster", "other", "example", ""), false),
            (object("EtcdCluster", "default", "other", "example"), false),
            (object("EtcdBackup", "default", "by-hand", ""), false),
            (object("EtcdBackup", "other", "example-hourly-1", "example"), false),
            (object("EtcdBackupSchedule", "default", "nightly", "other"), false),
        ] {
            assert_eq!(is_of_example(&object, "default"), belongs, "{}", described(&object));
        }
    }
}
