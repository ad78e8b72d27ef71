//! The programs of the local Kubernetes, built from Go modules that `e2e/peers` pins.
//!
//! Building is skipped while a stamp says that nothing has changed: it holds a digest of the module
//! files, our own Go files, the flags and the version of Go. All builds have the same CGO_ENABLED
//! and -trimpath, because otherwise Go's build cache shares nothing between them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::program::Program;

/// Kubernetes tells clients its version, which charts check, and a build from the module knows none.
const KUBERNETES_VERSION: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36 \
    -X k8s.io/component-base/version.gitTreeState=clean";
const STRIPPED: &str = "-s -w";
const BUILD_LIMIT: Duration = Duration::from_secs(50 * 60);

/// One Go module below `e2e/peers` and what it builds.
pub struct Module {
    pub directory: &'static str,
    pub link_flags: &'static str,
    /// (package, name of the program).
    pub builds: &'static [(&'static str, &'static str)],
    /// For people who wait.
    pub what: &'static str,
}

pub const MODULES: [Module; 6] = [
    Module {
        directory: "kubernetes",
        link_flags: KUBERNETES_VERSION,
        builds: &[
            ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
            ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
            ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
            ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
            ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
            ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
        ],
        what: "Kubernetes v1.36.3",
    },
    Module {
        directory: "csi",
        link_flags: STRIPPED,
        builds: &[
            ("github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher", "csi-attacher"),
            (
                "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
                "csi-provisioner",
            ),
            ("github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer", "csi-resizer"),
            ("./driver", "keelson-csi"),
        ],
        what: "the CSI driver and its sidecars",
    },
    Module { directory: "dns", link_flags: STRIPPED, builds: &[(".", "coredns")], what: "CoreDNS" },
    Module {
        directory: "helm",
        link_flags: STRIPPED,
        builds: &[("helm.sh/helm/v4/cmd/helm", "helm")],
        what: "Helm",
    },
    Module {
        directory: "s3",
        link_flags: STRIPPED,
        builds: &[("github.com/versity/versitygw/cmd/versitygw", "versitygw")],
        what: "an S3 server",
    },
    Module { directory: "pause", link_flags: STRIPPED, builds: &[(".", "pause")], what: "pause" },
];

impl Module {
    /// Builds what is missing or out of date; answers whether there was anything to do.
    pub fn build(&self, peers: &Path, programs: &Path) -> Result<bool> {
        let source = peers.join(self.directory);
        let stamp = programs.join(format!(".{}.stamp", self.directory));
        let wanted = self.fingerprint(&source)?;
        let present = self.builds.iter().all(|(_, name)| programs.join(name).exists());
        if present && fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
            return Ok(false);
        }
        fs::create_dir_all(programs).with_context(|| format!("make {}", programs.display()))?;
        // Packages whose last element is the program's name go together, so that what they share is
        // compiled once; a name of our own needs its own call.
        let (plain, named): (Vec<_>, Vec<_>) =
            self.builds.iter().partition(|(package, name)| package.ends_with(&format!("/{name}")));
        if !plain.is_empty() {
            let directory = format!("{}/", programs.display());
            let packages: Vec<&str> = plain.iter().map(|(package, _)| *package).collect();
            self.go_build(&source, &directory, &packages)?;
        }
        for (package, name) in named {
            self.go_build(&source, &programs.join(name).display().to_string(), &[package])?;
        }
        fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
        Ok(true)
    }

    fn go_build(&self, source: &Path, output: &str, packages: &[&str]) -> Result<()> {
        Program::new("go")
            .args(["-C".as_ref(), source.as_os_str()])
            .args(["build", "-ldflags", self.link_flags, "-o", output])
            .args(packages)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", go_flags())
            .env("GOWORK", "off")
            .limit(BUILD_LIMIT)
            .run()
            .with_context(|| format!("build {}", self.what))?;
        Ok(())
    }

    fn fingerprint(&self, source: &Path) -> Result<String> {
        let mut digest = Sha256::new();
        let version = Program::new("go").words("env GOVERSION GOARCH").run()?;
        digest.update(version);
        digest.update(self.link_flags);
        digest.update(format!("{:?}", self.builds));
        for file in source_files(source)? {
            digest.update(file.display().to_string());
            let path = source.join(&file);
            digest.update(fs::read(&path).with_context(|| path.display().to_string())?);
        }
        Ok(hex::encode(digest.finalize()))
    }
}

/// The user's own flags (such as `-p=1`) stay in force.
fn go_flags() -> String {
    let own = env::var("GOFLAGS").unwrap_or_default();
    format!("{own} -buildvcs=false -trimpath").trim().to_owned()
}

fn source_files(source: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![source.to_owned()];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(source).expect("it was listed below").to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
