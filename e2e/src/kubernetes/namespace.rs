//! A namespace for one test, and what tests do in it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::{Cluster, NodeNumber, wait};

const READY: Duration = Duration::from_secs(60);

/// A namespace that goes with the test.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    pub fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        cluster.access().kubectl(["create", "namespace", name]).run()?;
        wait::until("the namespace has its ServiceAccount", READY, || {
            cluster.access().kubectl(["-n", name, "get", "serviceaccount", "default"]).run()
        })?;
        Ok(Self { cluster, name: name.to_owned() })
    }

    /// One in which Kubernetes lets only Pods run that ask for as little as ours do.
    pub fn restricted(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = Self::new(cluster, name)?;
        let level = "pod-security.kubernetes.io/enforce=restricted";
        cluster.access().kubectl(["label", "namespace", name, level]).run()?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub fn kubectl(&self, line: &str) -> Result<String> {
        self.cluster.access().kubectl(["-n", &self.name]).words(line).run()
    }

    pub fn apply(&self, objects: &str) -> Result<()> {
        self.cluster
            .access()
            .kubectl(["-n", &self.name, "apply", "-f", "-"])
            .input(objects)
            .run()
            .map(drop)
    }

    /// Deletes objects and waits until they are gone.
    pub fn delete(&self, line: &str) -> Result<()> {
        self.cluster.access().delete(&format!("{line} -n {}", self.name))
    }

    /// Merges JSON into an object.
    pub fn patch(&self, object: &str, change: &Value) -> Result<()> {
        let patch = format!("--patch={change}");
        self.cluster
            .access()
            .kubectl(["-n", &self.name, "patch", object, "--type=merge", &patch])
            .run()
            .map(drop)
    }

    /// An object, or a list of them, as JSON.
    pub fn get(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get -o json {line}"))?;
        serde_json::from_str(&text).with_context(|| format!("read {line} as JSON"))
    }

    pub fn shell(&self, pod: &str, script: &str) -> Result<String> {
        self.exec(pod, &["sh", "-c", script])
    }

    /// Runs a program in a Pod.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let program = self.cluster.access().kubectl(["-n", &self.name, "exec", pod, "--"]);
        program.args(command).run().map(|output| output.trim().to_owned())
    }

    pub fn wait_for(
        &self,
        object: &str,
        jsonpath: &str,
        value: &str,
        limit: Duration,
    ) -> Result<()> {
        let object = format!("-n {} {object}", self.name);
        self.cluster.access().wait_for_value(&object, jsonpath, value, limit)
    }

    pub fn node_of(&self, pod: &str) -> Result<NodeNumber> {
        let name = self.kubectl(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"))?;
        let nodes = self.cluster.nodes().iter();
        nodes
            .copied()
            .find(|node| node.to_string() == name)
            .ok_or_else(|| anyhow!("{pod} is on {name:?}, which is no node"))
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let removed = self.cluster.access().delete(&format!("namespace {}", self.name));
        if let Err(error) = removed {
            eprintln!("namespace {}: {error:#}", self.name);
        }
    }
}
