//! A node seen from the host: it is started, connected, disturbed and ended here.
//!
//! One node is one process tree under `unshare`, with its own network, mount, process, host name,
//! IPC and control-group namespaces; its PID 1 is `node_init`. Killing that one process is what
//! pulling the plug of a machine is: everything in the node is gone at once.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::{Cgroups, node_group};
use super::launch::{self, Lifetime};
use super::layout::{Layout, NodeNumber};
use super::{network, settings, wait};

/// Where Debian and others put the CNI programs.
const CNI_PROGRAMS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Writes what the node's programs read, and makes its directories.
pub(super) fn prepare(layout: &Layout, node: NodeNumber) -> Result<()> {
    for directory in ["varlib", "varlog", "cni"] {
        fs::create_dir_all(layout.node(node, directory)).context("make a node's directories")?;
    }
    let cni_programs = CNI_PROGRAMS
        .into_iter()
        .find(|directory| Path::new(directory).join("bridge").exists())
        .ok_or_else(|| anyhow!("the CNI programs are in none of {CNI_PROGRAMS:?}"))?;
    for (file, text) in [
        ("containerd.toml", settings::containerd(layout, node, cni_programs)),
        ("cni/10-bridge.conflist", settings::cni(node)),
        ("kubelet.yaml", settings::kubelet(layout, node)),
        ("proxy.yaml", settings::kube_proxy(layout, node)),
    ] {
        let path = layout.node(node, file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Starts the node's process tree. It waits inside for `connect`.
pub(super) fn spawn(
    layout: &Layout,
    cgroups: &Cgroups,
    node: NodeNumber,
    programs: &Path,
    lifetime: Lifetime,
) -> Result<Child> {
    cgroups.remove(&node_group(node))?;
    let mut line: Vec<std::ffi::OsString> =
        "unshare --net --mount --pid --uts --ipc --cgroup --fork --kill-child --mount-proc"
            .split(' ')
            .map(Into::into)
            .collect();
    line.push(layout.launcher().into());
    line.extend(["internal", "node-init", "--node"].map(Into::into));
    line.push(node.0.to_string().into());
    line.push("--root".into());
    line.push(layout.root().into());
    line.push("--programs".into());
    line.push(programs.into());
    launch::start(layout, &node_group(node), lifetime, &node.to_string(), &line)
}

/// Waits for the node's PID 1 and plugs the network in.
pub(super) fn connect(
    cgroups: &Cgroups,
    node: NodeNumber,
    holder: u32,
    all: &[NodeNumber],
) -> Result<()> {
    let init = wait::until(&format!("{node} has its PID 1"), Duration::from_secs(10), || {
        init_process(cgroups, node).ok_or_else(|| anyhow!("no process is PID 1 in {node}"))
    })?;
    cgroups.set_holder_aside(holder)?;
    network::connect(node, init, all)
}

/// The host's process id of the node's PID 1: the one of its processes that has an id in exactly one
/// more process namespace than ours, and there the id 1.
pub(super) fn init_process(cgroups: &Cgroups, node: NodeNumber) -> Option<u32> {
    cgroups.processes(&node_group(node)).into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        ids.len() == 2 && ids[1] == "1"
    })
}

/// Power off: nothing in the node gets to say goodbye.
pub(super) fn power_off(cgroups: &Cgroups, node: NodeNumber) -> Result<()> {
    // A frozen process does not die.
    if init_process(cgroups, node).is_some() {
        cgroups.freeze(node, false)?;
    }
    if let Some(init) = init_process(cgroups, node)
        && let Some(pid) = Pid::from_raw(i32::try_from(init)?)
    {
        kill_process(pid, Signal::KILL).with_context(|| format!("kill the init of {node}"))?;
    }
    wait::until(&format!("{node} is off"), Duration::from_secs(20), || {
        let left = cgroups.processes(&node_group(node)).len();
        if left == 0 { Ok(()) } else { Err(anyhow!("{left} of its processes are left")) }
    })
}
