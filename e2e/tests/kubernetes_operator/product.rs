//! The operator on the local Kubernetes, and one etcd cluster of it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::kubernetes::{Cluster, Namespace, wait};
use serde_json::{Value, json};

use crate::caller::Caller;

/// What xtask has loaded into the nodes: the image, and the one that reports the next version.
pub(crate) const REPOSITORY: &str = "docker.io/keelson/keelson";
pub(crate) const VERSION: &str = "3.7.3";
pub(crate) const NEXT_VERSION: &str = "3.7.4";

pub(crate) const OPERATOR_NAMESPACE: &str = "etcd-operator";
pub(crate) const RELEASE: &str = "etcd-operator";

/// Longest time for a step of a cluster: a start, a change of size by one, a restart. It takes seconds;
/// the limit is for a machine that stands still in between, and for an operator that then loses its
/// lease and hands over to the other, which waits for 15 s before it takes it.
pub(crate) const STEP: Duration = Duration::from_secs(180);

/// The local Kubernetes with the operator on it, installed by its chart.
pub(crate) fn kubernetes() -> Result<Cluster> {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let cluster = Cluster::of_environment()?;
    let installed =
        INSTALLED.get_or_init(|| install(&cluster).map_err(|error| format!("{error:#}")));
    installed.clone().map_err(|error| anyhow!("install the operator: {error}"))?;
    Ok(cluster)
}

fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, "rbac.create=true")
}

/// Installs or changes the release, with these values and the chart's own.
pub(crate) fn install_with(cluster: &Cluster, values: &str) -> Result<()> {
    let chart = repository().join("charts/etcd-operator");
    cluster
        .access()
        .helm(["upgrade", "--install", RELEASE])
        .args([chart.as_os_str()])
        .args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait"])
        .args(["--set", &format!("image.repository={REPOSITORY},image.tag={VERSION},{values}")])
        .words("--timeout 4m")
        .limit(Duration::from_secs(250))
        .run()
        .map(drop)
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// One EtcdCluster.
pub(crate) struct Etcd<'a> {
    pub(crate) namespace: &'a Namespace<'a>,
    pub(crate) name: &'static str,
    /// The files of the client's certificate.
    secrets: tempfile::TempDir,
}

impl<'a> Etcd<'a> {
    /// Creates the cluster with settings that make tests quick, and what `change` adds.
    pub(crate) fn create(
        namespace: &'a Namespace<'a>,
        name: &'static str,
        replicas: u8,
        change: &Value,
    ) -> Result<Self> {
        let mut spec = json!({
            "replicas": replicas,
            "storage": {"size": "300Mi", "retention": {"whenScaled": "Delete"}},
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
            "updateStrategy": {"minReadySeconds": 1},
            "recovery": {"nodeLossForSeconds": 10, "minReplacementIntervalSeconds": 0},
            "deletionPolicy": "Delete",
        });
        merge(&mut spec, change);
        let object = json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
            "metadata": {"name": name}, "spec": spec,
        });
        namespace.apply(&object.to_string())?;
        let etcd = Self { namespace, name, secrets: tempfile::tempdir()? };
        etcd.wait_until_settled(usize::from(replicas))?;
        Ok(etcd)
    }

    /// A cluster that something else has created.
    pub(crate) fn adopt(namespace: &'a Namespace<'a>, name: &'static str) -> Result<Self> {
        Ok(Self { namespace, name, secrets: tempfile::tempdir()? })
    }

    pub(crate) fn patch(&self, spec: &Value) -> Result<()> {
        self.namespace.patch(&format!("etcdcluster/{}", self.name), &json!({ "spec": spec }))
    }

    pub(crate) fn status(&self) -> Result<Value> {
        let object = self.namespace.get(&format!("etcdcluster {}", self.name))?;
        Ok(object["status"].clone())
    }

    /// All members vote, answer and run what is wanted, as of the newest spec.
    pub(crate) fn wait_until_settled(&self, voters: usize) -> Result<()> {
        let what = format!("{} has {voters} healthy voters", self.name);
        wait::until(&what, STEP, || {
            let object = self.namespace.get(&format!("etcdcluster {}", self.name))?;
            let status = &object["status"];
            let seen = status["observedGeneration"] == object["metadata"]["generation"];
            let ready = condition(status, "Ready");
            let settled = seen
                && status["voters"] == voters
                && status["readyReplicas"] == voters
                && status["learners"] == 0
                && ready["reason"] == "Healthy";
            if settled {
                return self.ask_all(voters);
            }
            Err(anyhow!(
                "voters {}, ready {}, operation {}, blocked by {}, Ready is {}: {}",
                status["voters"],
                status["readyReplicas"],
                status["operation"],
                status["blockedBy"],
                ready["reason"],
                ready["message"]
            ))
        })
        .with_context(|| self.story())
    }

    /// The status may be older than what happened to the operator's own node: the members
    /// themselves know.
    fn ask_all(&self, voters: usize) -> Result<()> {
        let line = format!("pods -l etcd.keelson.dev/cluster={}", self.name);
        let pods = self.namespace.get(&format!("{line},etcd.keelson.dev/component=server"))?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        ensure!(pods.len() == voters, "there are {} Pods", pods.len());
        for pod in &pods {
            let name = text(&pod["metadata"]["name"]);
            ensure!(pod["metadata"]["deletionTimestamp"].is_null(), "{name} is going");
            ensure!(condition(&pod["status"], "Ready")["status"] == "True", "{name} is not ready");
            let caller = self.caller_of_now(&name)?;
            let status = caller.status_within(Duration::from_secs(3))?;
            ensure!(status.leader != 0 && status.errors.is_empty(), "{name}: {:?}", status.errors);
        }
        Ok(())
    }

    /// Waits for something in the status.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(&format!("{}: {what}", self.name), limit, || {
            let status = self.status()?;
            if holds(&status) { Ok(status) } else { Err(anyhow!("the status is {status}")) }
        })
        .with_context(|| self.story())
    }

    /// What the operator did and what the members said: for people who read a failed test.
    pub(crate) fn story(&self) -> String {
        let namespace = self.namespace;
        let mut story = String::new();
        for line in [
            "get etcdmembers,pods,persistentvolumeclaims -o wide",
            "get events --sort-by=.metadata.creationTimestamp -o custom-columns=T:.lastTimestamp,O:.involvedObject.name,R:.reason,M:.message",
            "logs --selector etcd.keelson.dev/component=server --tail=15 --prefix",
        ] {
            story.push_str(&format!("\n--- {line}\n"));
            story.push_str(&namespace.kubectl(line).unwrap_or_else(|error| format!("{error:#}")));
        }
        story
    }

    /// The members' objects.
    pub(crate) fn members(&self) -> Result<Vec<Value>> {
        let list = self
            .namespace
            .get(&format!("etcdmembers -l etcd.keelson.dev/cluster={}", self.name))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn member_names(&self) -> Result<Vec<String>> {
        Ok(self.members()?.iter().map(|member| text(&member["metadata"]["name"])).collect())
    }

    pub(crate) fn leader(&self) -> Result<String> {
        let status = self.wait_for("a leader", STEP, |status| status["leader"].is_object())?;
        Ok(text(&status["leader"]["member"]))
    }

    /// What the operator has told of the cluster, oldest first.
    pub(crate) fn told(&self) -> Result<Vec<Told>> {
        let about = format!("involvedObject.kind=EtcdCluster,involvedObject.name={}", self.name);
        let list = self.namespace.get(&format!("events --field-selector {about}"))?;
        let mut told: Vec<Told> =
            list["items"].as_array().into_iter().flatten().map(Told::of).collect();
        told.sort_by(|one, other| one.at.cmp(&other.at));
        Ok(told)
    }

    /// The operator said that it moved the leader off this member, at the first attempt.
    pub(crate) fn was_told_of_the_move(&self, from: &str) -> Result<()> {
        let told = self.told()?;
        let beginning = format!("from {from} to ");
        let mut attempts = told
            .iter()
            .filter(|told| told.action == "MoveLeader" && told.note.starts_with(&beginning))
            .peekable();
        let was_tried = attempts.peek().is_some();
        ensure!(
            was_tried && attempts.all(|told| told.reason == "LeaderMoved"),
            "the leader was not moved off {from}: {told:#?}"
        );
        Ok(())
    }

    /// A client of the Service, by its cluster address and under its DNS name.
    pub(crate) fn caller(&self) -> Result<Caller> {
        let service = self.namespace.get(&format!("service {}-client", self.name))?;
        let address = text(&service["spec"]["clusterIP"]);
        let name = format!("{}-client.{}.svc", self.name, self.namespace.name());
        Caller::connected(&address, &name, self.certificates()?)
    }

    /// A client of one member.
    pub(crate) fn caller_of(&self, member: &str) -> Result<Caller> {
        let (address, host) = self.place_of(member)?;
        Caller::connected(&address, &host, self.certificates()?)
    }

    /// The same without waiting for a connection.
    fn caller_of_now(&self, member: &str) -> Result<Caller> {
        let (address, host) = self.place_of(member)?;
        Caller::new(&address, &host, self.certificates()?)
    }

    fn place_of(&self, member: &str) -> Result<(String, String)> {
        let pod = self.namespace.get(&format!("pod {member}"))?;
        let host = format!("{member}.{}-peers.{}.svc", self.name, self.namespace.name());
        Ok((text(&pod["status"]["podIP"]), host))
    }

    /// The Secret that the operator makes for clients, as files.
    pub(crate) fn certificates(&self) -> Result<PathBuf> {
        let directory = self.secrets.path();
        let secret = self.namespace.get(&format!("secret {}-client-tls", self.name))?;
        for file in ["tls.crt", "tls.key", "ca.crt"] {
            let data = secret["data"][file].as_str().with_context(|| format!("no {file}"))?;
            std::fs::write(directory.join(file), STANDARD.decode(data)?)?;
        }
        Ok(directory.to_owned())
    }

    /// Every member has the same data: the same hash at the same revision.
    pub(crate) fn hash(&self) -> Result<Hash> {
        let members = self.member_names()?;
        let revision = self.caller()?.revision()?;
        let mut hashes = Vec::new();
        for member in &members {
            let caller = self.caller_of(member)?;
            // A follower may be a moment behind.
            let hash = wait::until(&format!("{member} reaches {revision}"), STEP, || {
                caller.hash_kv(revision)
            })?;
            hashes.push(hash);
        }
        let first = *hashes.first().context("there are no members")?;
        ensure!(hashes.iter().all(|hash| *hash == first), "{members:?} have {hashes:?}");
        Ok(Hash { revision, hash: first })
    }
}

/// An event.
#[derive(Debug)]
pub(crate) struct Told {
    /// In a form that sorts by time.
    at: String,
    action: String,
    pub(crate) reason: String,
    pub(crate) note: String,
}

impl Told {
    fn of(event: &Value) -> Told {
        let [at, action, reason, note] =
            ["eventTime", "action", "reason", "message"].map(|field| text(&event[field]));
        Told { at, action, reason, note }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash {
    pub(crate) revision: i64,
    pub(crate) hash: u32,
}

pub(crate) fn condition<'v>(status: &'v Value, kind: &str) -> &'v Value {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}
