//! A real Kubernetes on this machine, from nothing to Ready in about ten seconds.
//!
//! What comes in: the programs (built from Go modules, see `programs`), the `etcd` that the
//! apiserver keeps its objects in, and a directory. What comes out: a kubeconfig, and nodes that can
//! be frozen, cut off, powered off and started again.
//!
//! The control plane is plain processes; a node is one process tree in namespaces of its own, with
//! containerd, kubelet, kube-proxy and a CSI driver at their default paths. So containers, volumes,
//! probes, evictions and Services are those of any Kubernetes. Needs root and Linux.
//!
//! Invariants:
//! - every process is in a control group below `keelson`, so `sweep` ends all of them and nothing
//!   else, whatever state a crash has left;
//! - every file is below the layout's root, every link is named `keelson*`;
//! - every wait has a limit.
//!
//! Deliberately absent: a registry (images are imported), NetworkPolicy (the bridge plugin enforces
//! none), load balancers, IPv6, several apiservers.

mod access;
pub mod cgroup;
mod control_plane;
pub mod images;
pub mod launch;
pub mod layout;
mod namespace;
pub mod network;
mod node;
pub mod node_init;
pub mod object_store;
mod pki;
pub mod program;
pub mod programs;
mod settings;
mod sweep;
mod traces;
pub mod wait;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

pub use access::Access;
use cgroup::Cgroups;
pub use launch::Lifetime;
use launch::Started;
pub use layout::{Layout, NodeNumber};
pub use namespace::Namespace;
use program::Program;
use rustix::process::{Pid, Signal, kill_process};
pub use sweep::sweep;
pub use traces::Traces;

const BASE_OBJECTS: &str = include_str!("kubernetes/base.yaml");

/// What a cluster is made of.
pub struct Settings {
    /// The state directory; the cluster is in `cluster/` below it.
    pub state: PathBuf,
    /// Where `programs` has built to.
    pub programs: PathBuf,
    /// The `etcd` that is the cluster's own store.
    pub store: PathBuf,
    pub nodes: u8,
    pub lifetime: Lifetime,
}

/// A running cluster, of this process or of another one.
pub struct Cluster {
    layout: Layout,
    cgroups: Cgroups,
    programs: PathBuf,
    access: Access,
    nodes: Vec<NodeNumber>,
    lifetime: Lifetime,
    /// Kept only to be reaped: who lives is read from the control groups.
    children: Mutex<Vec<Started>>,
}

impl Cluster {
    /// Removes what an earlier cluster has left, starts a new one and waits until it is ready.
    /// `report` hears what is being done.
    pub fn start(settings: Settings, report: &dyn Fn(&str)) -> Result<Self> {
        let layout = Layout::new(&settings.state)?;
        sweep(&layout)?;
        let nodes: Vec<NodeNumber> = (1..=settings.nodes).map(NodeNumber).collect();
        let cluster = Self {
            cgroups: Cgroups::detect()?,
            access: access(&layout, &settings.programs),
            programs: settings.programs,
            nodes,
            lifetime: settings.lifetime,
            children: Mutex::default(),
            layout,
        };
        cluster.prepare(&settings.store)?;
        report("starting the store, the apiserver and the nodes");
        let starter = control_plane::Starter {
            layout: &cluster.layout,
            programs: &cluster.programs,
            store: &settings.store,
            lifetime: settings.lifetime,
        };
        cluster.keep(starter.store_and_api_server()?);
        for node in &cluster.nodes {
            cluster.boot(*node)?;
        }
        cluster.wait_for_api_server()?;
        report("the apiserver is ready; starting the controllers, DNS and storage");
        cluster.access.apply(BASE_OBJECTS)?;
        cluster.keep(starter.controllers()?);
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// The cluster that a test is to run on.
    pub fn of_environment() -> Result<Self> {
        let state = env::var_os("KEELSON_STATE")
            .context("KEELSON_STATE is not set: run `cargo xtask test --only kubernetes`")?;
        Self::attach(&PathBuf::from(state))
    }

    /// The cluster that is running on a state directory.
    pub fn attach(state: &Path) -> Result<Self> {
        let layout = Layout::new(state)?;
        let cgroups = Cgroups::detect()?;
        if cgroups.processes(cgroup::CONTROL_PLANE).is_empty() || !layout.kubeconfig().exists() {
            bail!(
                "no local Kubernetes of {} is running: `cargo xtask up` starts one",
                state.display()
            );
        }
        sweep::refuse_foreign(&layout)?;
        let programs = fs::read_to_string(layout.join("programs"))
            .context("read where the cluster's programs are")?;
        let count = fs::read_dir(layout.join("nodes"))?.count();
        let nodes = (1..=u8::try_from(count)?).map(NodeNumber).collect();
        let lifetime = Lifetime::Detached;
        let programs = PathBuf::from(programs);
        let access = access(&layout, &programs);
        Ok(Self { layout, cgroups, programs, access, nodes, lifetime, children: Mutex::default() })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn nodes(&self) -> &[NodeNumber] {
        &self.nodes
    }

    /// kubectl and helm on this cluster.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Makes an image known to every node, also to one that starts later.
    pub fn load_image(&self, tarball: &Path) -> Result<()> {
        let name = tarball.file_name().with_context(|| tarball.display().to_string())?;
        let copy = self.layout.join("images").join(name);
        if copy.exists() {
            fs::remove_file(&copy).with_context(|| format!("replace {}", copy.display()))?;
        }
        // A link where it can be one: images are large.
        if fs::hard_link(tarball, &copy).is_err() {
            fs::copy(tarball, &copy)
                .with_context(|| format!("copy {} to {}", tarball.display(), copy.display()))?;
        }
        for node in &self.nodes {
            let Some(init) = node::init_process(&self.cgroups, *node) else { continue };
            Program::new("nsenter")
                .args(["-t", &init.to_string(), "-m"])
                .words("ctr -n k8s.io images import")
                .args([&copy])
                .run()
                .with_context(|| format!("import an image into {node}"))?;
        }
        Ok(())
    }

    /// Stops every process of a node where it is, as a machine that hangs.
    pub fn freeze(&self, node: NodeNumber) -> Result<()> {
        self.cgroups.freeze(node, true)
    }

    pub fn thaw(&self, node: NodeNumber) -> Result<()> {
        self.cgroups.freeze(node, false)
    }

    /// Pulls the network cable of a node.
    pub fn partition(&self, node: NodeNumber) -> Result<()> {
        network::set_cable(node, false)
    }

    pub fn heal(&self, node: NodeNumber) -> Result<()> {
        network::set_cable(node, true)
    }

    /// Kills a node's PID 1, and so everything in it. Its disks stay.
    pub fn power_off(&self, node: NodeNumber) -> Result<()> {
        node::power_off(&self.cgroups, node)?;
        self.reap();
        Ok(())
    }

    /// Boots a node that is off, on its old disks.
    pub fn power_on(&self, node: NodeNumber) -> Result<()> {
        if node::init_process(&self.cgroups, node).is_some() {
            bail!("{node} is on");
        }
        self.boot(node)
    }

    /// Kills the processes of a Pod that run this program, which learn nothing of it, waits until they
    /// are gone and answers how many there were. The kubelet starts their containers again.
    pub fn crash(&self, pod_uid: &str, program: &str) -> Result<usize> {
        let group = format!("/pod{pod_uid}/");
        let is_meant = |pid: &u32| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let file = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            groups.contains(&group) && file.ends_with(program)
        };
        let of_nodes =
            self.nodes.iter().flat_map(|node| self.cgroups.processes(&cgroup::node_group(*node)));
        let meant: Vec<u32> = of_nodes.filter(is_meant).collect();
        for pid in &meant {
            let pid = Pid::from_raw(i32::try_from(*pid)?).context("a process has an id")?;
            kill_process(pid, Signal::KILL).with_context(|| format!("kill {program}"))?;
        }
        wait::until(&format!("{program} is gone"), Duration::from_secs(20), || {
            let left = meant.iter().filter(|pid| cgroup::is_live(**pid)).count();
            if left == 0 { Ok(meant.len()) } else { Err(anyhow!("{left} are left")) }
        })
    }

    /// Waits until a node's Ready condition has this status: True, False or Unknown.
    pub fn wait_for_node(&self, node: NodeNumber, status: &str, limit: Duration) -> Result<()> {
        let path = r#"{.status.conditions[?(@.type=="Ready")].status}"#;
        self.access.wait_for_value(&format!("node {node}"), path, status, limit)
    }

    /// Ends the cluster and removes it.
    pub fn stop(self) -> Result<()> {
        let swept = sweep(&self.layout);
        self.reap();
        swept
    }

    fn prepare(&self, store: &Path) -> Result<()> {
        for directory in ["pki", "logs", "images", "store", "csi/volumes"] {
            let path = self.layout.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        fs::set_permissions(self.layout.join("store"), fs::Permissions::from_mode(0o700))?;
        object_store::make_bucket(&self.layout, object_store::BUCKET)?;
        if !store.exists() {
            bail!("the store's program {} does not exist", store.display());
        }
        fs::write(self.layout.join("programs"), self.programs.as_os_str().as_encoded_bytes())?;
        // A copy, because cargo may replace xtask while the cluster runs; and of this process, not
        // of the file, because compiling the tests may have replaced it already.
        fs::copy("/proc/self/exe", self.layout.launcher()).context("copy xtask")?;
        pki::write(&self.layout, &self.nodes)?;
        fs::write(self.layout.join("Corefile"), settings::corefile(&self.layout))?;
        images::write_own(&self.layout, &self.programs)?;
        network::create_bridge(&self.layout)
    }

    fn boot(&self, node: NodeNumber) -> Result<()> {
        node::prepare(&self.layout, node)?;
        let holder = node::spawn(&self.layout, &self.cgroups, node, &self.programs, self.lifetime)?;
        let process = holder.child.id();
        self.keep(vec![holder]);
        node::connect(&self.cgroups, node, process, &self.nodes)
    }

    fn wait_for_api_server(&self) -> Result<()> {
        // Without the store, or one of the nodes, waiting would be in vain.
        wait::until("the apiserver is ready", Duration::from_secs(90), || {
            if let Some(ended) = self.first_ended() {
                return Ok(Err(anyhow!("{ended} has ended: {}", self.logs_hint(&ended))));
            }
            let ready = self.access.kubectl(["get", "--raw=/readyz"]);
            ready.limit(Duration::from_secs(5)).run().map(|_| Ok(()))
        })
        .with_context(|| self.logs_hint("kube-apiserver"))?
    }

    /// Ready is: every node with its volumes driver, and pods can be made in `default`.
    fn wait_until_ready(&self) -> Result<()> {
        let limit = Duration::from_secs(120);
        for node in &self.nodes {
            self.wait_for_node(*node, "True", limit)
                .with_context(|| self.logs_hint(&format!("{node}-kubelet")))?;
            let driver = "{.spec.drivers[*].name}";
            self.access
                .wait_for_value(&format!("csinode {node}"), driver, "csi.keelson.dev", limit)
                .with_context(|| self.logs_hint(&format!("{node}-csi")))?;
        }
        wait::until("the namespace default has its ServiceAccount", limit, || {
            self.access.kubectl(["get", "serviceaccount", "default"]).run()
        })
        .with_context(|| self.logs_hint("kube-controller-manager"))
        .map(drop)
    }

    fn logs_hint(&self, process: &str) -> String {
        format!("see {}", self.layout.log(process).display())
    }

    fn keep(&self, started: Vec<Started>) {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).extend(started);
    }

    /// A process that this one has started and that does not run any more.
    fn first_ended(&self) -> Option<String> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.iter_mut().find_map(|started| match started.child.try_wait() {
            Ok(Some(_)) => Some(started.name.clone()),
            _ => None,
        })
    }

    /// Takes note of children that have ended, so that they do not stay as zombies.
    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|started| !matches!(started.child.try_wait(), Ok(Some(_))));
    }
}

fn access(layout: &Layout, programs: &Path) -> Access {
    Access {
        kubectl: programs.join("kubectl"),
        helm: programs.join("helm"),
        kubeconfig: Some(layout.kubeconfig()),
        context: None,
        caches: layout.join("caches"),
    }
}
