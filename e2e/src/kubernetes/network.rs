//! The cluster's network: a bridge on the machine, a cable from it to each node's network
//! namespace, and routes. The host is not a router; pods of different nodes meet over the nodes'
//! addresses, and the host reaches pods and Services directly, which tests rely on.

use std::fs;

use anyhow::{Context, Result, bail};

use super::layout::{BRIDGE, HOST_ADDRESS, Layout, NodeNumber, SERVICE_NETWORK};
use super::program::Program;

/// Makes the bridge. Its alias says whose it is.
pub fn create_bridge(layout: &Layout) -> Result<()> {
    let addresses = ip("-4 -o address show")?;
    if let Some(line) = addresses.lines().find(|line| line.contains(" 10.77.0.")) {
        bail!(
            "the network 10.77.0.0/24, which the local Kubernetes uses, is in use on this machine: \
             {}",
            line.trim()
        );
    }
    ip(&format!("link add {BRIDGE} type bridge"))?;
    let alias = layout.root().display().to_string();
    Program::new("ip").args(["link", "set", BRIDGE, "alias", &alias]).run()?;
    ip(&format!("address add {HOST_ADDRESS}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    Ok(())
}

/// The root of the cluster whose bridge is on this machine, if there is one.
pub fn owner() -> Option<String> {
    let link = format!("/sys/class/net/{BRIDGE}");
    fs::metadata(&link).ok()?;
    let alias = fs::read_to_string(format!("{link}/ifalias")).unwrap_or_default();
    Some(alias.trim().to_owned())
}

/// Whether any node is connected to the bridge.
pub fn has_cables() -> bool {
    let cables = fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif"));
    cables.is_ok_and(|mut cables| cables.next().is_some())
}

/// Connects a node, whose network namespace is that of the process `init`, to the bridge.
pub fn connect(node: NodeNumber, init: u32, nodes: &[NodeNumber]) -> Result<()> {
    let link = node.link();
    ip(&format!("link add {link} type veth peer name eth0 netns {init}"))?;
    ip(&format!("link set {link} master {BRIDGE} up"))?;
    let inside =
        |line: &str| Program::new("nsenter").words(&format!("-t {init} -n ip {line}")).run();
    inside("link set lo up")?;
    inside(&format!("address add {}/24 dev eth0", node.address()))?;
    inside("link set eth0 up")?;
    for other in nodes.iter().filter(|other| **other != node) {
        inside(&format!("route add {} via {}", other.pod_subnet(), other.address()))?;
    }
    let sysctl = |name: &str| {
        Program::new("nsenter").words(&format!("-t {init} -n sysctl -q -w net.{name}=1")).run()
    };
    sysctl("ipv4.ip_forward")?;
    // Absent where the kernel has no br_netfilter; kube-proxy then works between nodes all the same.
    if fs::metadata("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok() {
        sysctl("bridge.bridge-nf-call-iptables")?;
    }
    ip(&format!("route replace {} via {}", node.pod_subnet(), node.address()))?;
    if node == NodeNumber(1) {
        ip(&format!("route replace {SERVICE_NETWORK} via {}", node.address()))?;
    }
    // Last, because the node's init waits for it.
    inside(&format!("route add default via {HOST_ADDRESS}"))?;
    Ok(())
}

/// Pulls or plugs the cable of a node.
pub fn set_cable(node: NodeNumber, plugged: bool) -> Result<()> {
    ip(&format!("link set {} {}", node.link(), if plugged { "up" } else { "down" }))?;
    if plugged {
        // Routes through a link go when it goes down.
        ip(&format!("route replace {} via {}", node.pod_subnet(), node.address()))?;
    }
    Ok(())
}

/// Removes every link; routes and addresses go with them.
pub fn remove() -> Result<()> {
    let Ok(links) = fs::read_dir("/sys/class/net") else { return Ok(()) };
    for link in links.flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        if (name == BRIDGE || name.starts_with("keelson-n")) && link.path().exists() {
            // A cable may go by itself meanwhile, when its node's namespace ends.
            let removed = ip(&format!("link delete {name}"));
            if link.path().exists() {
                removed.with_context(|| format!("remove the network link {name}"))?;
            }
        }
    }
    Ok(())
}

fn ip(line: &str) -> Result<String> {
    Program::new("ip").words(line).run()
}
