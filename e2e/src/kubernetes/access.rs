//! Talking to a Kubernetes, ours or somebody else's: kubectl and helm command lines with the right
//! kubeconfig and context, and with their caches in our own directory.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::program::Program;
use super::wait;

/// Longest time until deleted objects are gone: finalizers, grace periods, and whoever sees to them.
const GONE: Duration = Duration::from_secs(180);

/// How to reach a Kubernetes.
#[derive(Clone, Debug)]
pub struct Access {
    /// Absolute, or a name to be looked up in PATH.
    pub kubectl: PathBuf,
    pub helm: PathBuf,
    /// None: kubectl's own rules.
    pub kubeconfig: Option<PathBuf>,
    /// None: the kubeconfig's current one.
    pub context: Option<String>,
    pub caches: PathBuf,
}

impl Access {
    /// A kubectl command line, to be run.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Program {
        let mut program = Program::new(&self.kubectl)
            .args(["--cache-dir".as_ref(), self.caches.join("kubectl").as_os_str()]);
        if let Some(kubeconfig) = &self.kubeconfig {
            program = program.env("KUBECONFIG", kubeconfig);
        }
        if let Some(context) = &self.context {
            program = program.args(["--context", context]);
        }
        program.args(arguments)
    }

    /// A helm command line, to be run.
    pub fn helm<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Program {
        let mut program = Program::new(&self.helm);
        // KUBECACHEDIR: Kubernetes' client library, for what it learns about the apiserver.
        for (name, directory) in [
            ("KUBECACHEDIR", "kubectl"),
            ("HELM_CACHE_HOME", "helm/cache"),
            ("HELM_CONFIG_HOME", "helm/config"),
            ("HELM_DATA_HOME", "helm/data"),
        ] {
            program = program.env(name, self.caches.join(directory));
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            program = program.env("KUBECONFIG", kubeconfig);
        }
        if let Some(context) = &self.context {
            program = program.args(["--kube-context", context]);
        }
        program.args(arguments)
    }

    /// Applies objects given as YAML or JSON.
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.kubectl(["apply", "-f", "-"]).input(objects).run().map(drop)
    }

    /// Deletes objects and waits until they are gone.
    pub fn delete(&self, line: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", GONE.as_secs());
        let program = self.kubectl(["delete"]).words(line).args([timeout]);
        program.limit(GONE + Duration::from_secs(10)).run().map(drop)
    }

    /// Waits until kubectl's jsonpath of an object has this value.
    pub fn wait_for_value(
        &self,
        object: &str,
        jsonpath: &str,
        value: &str,
        limit: Duration,
    ) -> Result<()> {
        wait::until(&format!("{object} {jsonpath} is {value:?}"), limit, || {
            let path = format!("jsonpath={jsonpath}");
            let line = ["get"].into_iter().chain(object.split_whitespace()).chain(["-o", &path]);
            let found = self.kubectl(line).limit(Duration::from_secs(30)).run()?;
            if found == value { Ok(()) } else { Err(anyhow!("it is {found:?}")) }
        })
    }
}
