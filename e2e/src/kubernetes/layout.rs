//! Where everything of the cluster is: files below one directory, fixed addresses, node names.
//!
//! ```text
//! <root>/kubeconfig          for people and tests: full rights
//! <root>/launcher            a copy of xtask, which starts everything else
//! <root>/pki/                certificates, keys and the components' kubeconfigs
//! <root>/store/              data of the cluster's own etcd
//! <root>/images/*.tar        imported by every node when it starts
//! <root>/nodes/nI/           containerd.toml, kubelet.yaml, proxy.yaml, cni/, varlib/, varlog/
//! <root>/csi/                controller socket and volume files
//! <root>/logs/               one file per process
//! ```
//!
//! The addresses are the same in every cluster; two clusters on one machine would disturb each
//! other, so the bridge carries the root as its alias and `network` refuses a foreign one.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The bridge's address: apiserver, DNS, and whatever a test serves to pods.
pub const HOST_ADDRESS: &str = "10.77.0.1";
pub const BRIDGE: &str = "keelson0";
pub const POD_NETWORK: &str = "10.244.0.0/16";
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
pub const API_SERVER: &str = "https://10.77.0.1:6443";
pub const STORE_CLIENT_URL: &str = "http://127.0.0.1:23790";
pub const STORE_PEER_URL: &str = "http://127.0.0.1:23800";

/// Unix sockets have at most 108 bytes of path; the longest of ours below the root has 28.
const LONGEST_ROOT: usize = 78;

/// A node, counted from 1. The number is also the last part of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNumber(pub u8);

impl NodeNumber {
    pub fn address(self) -> String {
        format!("10.77.0.1{}", self.0)
    }

    pub fn pod_subnet(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    /// The host's end of the node's cable.
    pub fn link(self) -> String {
        format!("keelson-{self}")
    }
}

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The cluster of a state directory. Nodes hide some directories of the machine behind their
    /// own, so the state must not lie in those.
    pub fn new(state: &Path) -> Result<Self> {
        let root = state.join("cluster");
        if !root.is_absolute() {
            bail!("the state directory {} must be an absolute path", state.display());
        }
        for hidden in ["/var/lib", "/var/log", "/run", "/var/run", "/proc", "/sys", "/dev"] {
            if root.starts_with(hidden) {
                bail!(
                    "{} lies in {hidden}, which every node replaces by its own: set KEELSON_STATE \
                     to a directory elsewhere",
                    state.display()
                );
            }
        }
        if root.as_os_str().len() > LONGEST_ROOT {
            bail!(
                "{} is too long a path for the unix sockets in it: set KEELSON_STATE to one of at \
                 most {} bytes",
                state.display(),
                LONGEST_ROOT - "/cluster".len()
            );
        }
        Ok(Self { root })
    }

    /// From a root that `new` has accepted; how the processes of a cluster are told where it is.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.join("kubeconfig")
    }

    pub fn pki(&self, file: &str) -> PathBuf {
        self.join("pki").join(file)
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.join("logs").join(format!("{process}.log"))
    }

    pub fn node(&self, node: NodeNumber, file: &str) -> PathBuf {
        self.join("nodes").join(node.to_string()).join(file)
    }

    pub fn volumes(&self) -> PathBuf {
        self.join("csi/volumes")
    }

    pub fn csi_socket(&self) -> PathBuf {
        self.join("csi/controller.sock")
    }

    pub fn launcher(&self) -> PathBuf {
        self.join("launcher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_that_nodes_hide_is_refused() {
        for bad in ["/var/lib/x", "/run/x", "relative", "/var/log"] {
            assert!(Layout::new(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(Layout::new(&PathBuf::from(format!("/{}", "x".repeat(80)))).is_err());
        let layout = Layout::new(Path::new("/work/target/keelson")).unwrap();
        assert_eq!(layout.kubeconfig(), Path::new("/work/target/keelson/cluster/kubeconfig"));
    }
}
