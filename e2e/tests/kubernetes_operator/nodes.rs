//! Nodes that hang, lose their network or their power, under a client that writes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::kubernetes::{Cluster, Namespace, NodeNumber, wait};
use serde_json::json;

use crate::product::{Etcd, STEP, kubernetes};
use crate::writer::{NODE_DIES, Writer};

/// On a quiet machine the settings (6 s of grace, 5 s of toleration) make some 12 s of it. It proves
/// nothing of ours, and waits for kube-controller-manager and its store.
const NODE_LOSS: Duration = Duration::from_secs(120);

/// The client comes to the Service through this node, which must keep its network.
const GATEWAY: NodeNumber = NodeNumber(1);

#[test]
fn a_node_may_hang_lose_its_network_or_its_power_while_clients_write() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "nodes")?;
    // A dead node does not cost a member at once: first it has to come back. And each node has one
    // member; without a rule of its own a cluster only prefers that.
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "nodeTaintsPolicy": "Honor",
        "labelSelector": {"matchLabels": {"etcd.keelson.dev/component": "server"}},
    }]);
    let change = json!({
        "recovery": {"nodeLossForSeconds": 600},
        "podTemplate": {"topologySpreadConstraints": spread},
    });
    let began = Instant::now();
    let say = |what: &str| eprintln!("  {:>3} s: {what}", began.elapsed().as_secs());
    let etcd = Etcd::create(&namespace, "main", 3, &change)?;
    say("the members are there");
    let before = etcd.member_names()?;
    let repair = Repair(&cluster);
    let writer = Writer::start(&etcd, NODE_DIES)?;

    // The leader's node hangs: another one leads, and when it goes on, it follows.
    let leader = etcd.leader()?;
    let node = namespace.node_of(&leader)?;
    cluster.freeze(node)?;
    cluster.wait_for_node(node, "Unknown", NODE_LOSS)?;
    writer.wait_for_more()?;
    cluster.thaw(node)?;
    say("a node hung");
    cluster.wait_for_node(node, "True", STEP)?;
    etcd.wait_until_settled(3)?;
    say("and went on");

    // A node loses its network: its member cannot acknowledge anything meanwhile.
    let node = away_from_the_gateway(&etcd)?;
    cluster.partition(node)?;
    cluster.wait_for_node(node, "Unknown", NODE_LOSS)?;
    writer.wait_for_more()?;
    cluster.heal(node)?;
    say("a node had no network");
    cluster.wait_for_node(node, "True", STEP)?;
    etcd.wait_until_settled(3)?;
    say("and has one again");

    // A node loses its power and comes back with its disks.
    let node = away_from_the_gateway(&etcd)?;
    cluster.power_off(node)?;
    cluster.wait_for_node(node, "Unknown", NODE_LOSS)?;
    writer.wait_for_more()?;
    cluster.power_on(node)?;
    say("a node had no power");
    cluster.wait_for_node(node, "True", STEP)?;
    etcd.wait_until_settled(3)?;
    let after = etcd.member_names()?;
    ensure!(after == before, "the members were {before:?} and are {after:?}");

    say("all nodes are there again");
    // And once more for good: its member is replaced on another node.
    let node = away_from_the_gateway(&etcd)?;
    etcd.patch(&json!({"recovery": {"nodeLossForSeconds": 10}}))?;
    cluster.power_off(node)?;
    wait::until("its member is replaced", Duration::from_secs(300), || {
        let now = etcd.member_names()?;
        let gone = before.iter().any(|member| !now.contains(member));
        if gone && now.len() == 3 { Ok(()) } else { Err(anyhow!("the members are {now:?}")) }
    })?;
    writer.wait_for_more()?;
    say("a member was replaced");
    // Only then can the lost member's Pod end, which nobody but its kubelet can tell of.
    drop(repair);
    etcd.wait_until_settled(3)?;
    say("the nodes are whole");
    writer.finish(&etcd)?;
    etcd.hash().map(drop)
}

/// Whatever becomes of the test, the nodes are whole afterwards.
struct Repair<'a>(&'a Cluster);

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        for node in self.0.nodes() {
            // What is not broken cannot be repaired, and that is all right.
            let _ = self.0.thaw(*node);
            let _ = self.0.heal(*node);
            let _ = self.0.power_on(*node);
        }
        for node in self.0.nodes() {
            if let Err(error) = self.0.wait_for_node(*node, "True", STEP) {
                eprintln!("{node}: {error:#}");
            }
        }
    }
}

/// A node with one member and without the gateway; with the leader, if that is possible.
fn away_from_the_gateway(etcd: &Etcd<'_>) -> Result<NodeNumber> {
    let node_of = |member: &String| etcd.namespace.node_of(member);
    let nodes = etcd.member_names()?.iter().map(node_of).collect::<Result<Vec<_>>>()?;
    // Two members go with their node only together with the quorum.
    let alone = |node: &NodeNumber| nodes.iter().filter(|other| *other == node).count() == 1;
    let leaders = node_of(&etcd.leader()?)?;
    let mut candidates = std::iter::once(leaders).chain(nodes.iter().copied());
    candidates
        .find(|node| *node != GATEWAY && alone(node))
        .with_context(|| format!("the members are on {nodes:?}"))
}
