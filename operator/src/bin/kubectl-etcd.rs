//! `kubectl etcd`: shows a cluster as the operator has last written it down. It reads Kubernetes only,
//! asks no member and plans nothing itself: `plan` prints the operation in the status and what holds the
//! next one back.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client, ResourceExt, api::ListParams};
use operator::{
    cluster::build::{member_selector, selector_text},
    crd::{EtcdCluster, EtcdClusterStatus, EtcdMember},
};

/// Looks at etcd clusters on Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "kubectl-etcd", version)]
struct Cli {
    /// Namespace of the cluster; the kubeconfig's own if not given.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Members, leader, version and conditions.
    Status { cluster: String },
    /// What the operator was doing when it last wrote the status, and the rules that held it back.
    Plan { cluster: String },
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider was installed before ring");
    }
    let client = Client::try_default().await.context("reach the Kubernetes API")?;
    let namespace = cli.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let (Command::Status { cluster } | Command::Plan { cluster }) = &cli.command;
    let clusters: Api<EtcdCluster> = Api::namespaced(client.clone(), &namespace);
    let object =
        clusters.get(cluster).await.with_context(|| format!("read EtcdCluster {cluster}"))?;
    let text = match &cli.command {
        Command::Status { .. } => {
            let members: Api<EtcdMember> = Api::namespaced(client, &namespace);
            let labels = selector_text(&member_selector(cluster));
            let members = members.list(&ListParams::default().labels(&labels)).await;
            status(&object, &members.context("list members")?.items)
        }
        Command::Plan { .. } => plan(&object),
    };
    use std::io::Write as _;
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

fn status(cluster: &EtcdCluster, members: &[EtcdMember]) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let mut text = String::new();
    let leader = status.leader.as_ref().map_or("none", |leader| leader.member.as_str());
    let version = status.current_version.as_deref().unwrap_or("unknown");
    line(&mut text, "cluster", &cluster.name_any());
    line(&mut text, "id", status.cluster_id.as_deref().unwrap_or("not formed"));
    line(
        &mut text,
        "members",
        &format!("{} of {} ready", status.ready_replicas, cluster.spec.replicas),
    );
    line(&mut text, "tolerates", &format!("{} failures", status.fault_tolerance.max(0)));
    line(&mut text, "leader", leader);
    line(&mut text, "version", version);
    let observed = status.observed_at.as_ref().map(|at| at.0.to_string());
    line(&mut text, "observed", observed.as_deref().unwrap_or("never"));
    text.push('\n');
    for member in members {
        let status = member.status.clone().unwrap_or_default();
        let role = status.role.map(|role| format!("{role:?}")).unwrap_or_default();
        let ready = condition(&status.conditions, "Ready").map_or("Unknown", |ready| &ready.reason);
        let lag = status.lag_entries.map(|lag| lag.to_string()).unwrap_or_default();
        let node = status.node.unwrap_or_default();
        let _ =
            writeln!(text, "{:<24} {role:<8} {ready:<8} lag {lag:<8} {node}", member.name_any());
    }
    text.push('\n');
    for condition in &status.conditions {
        let _ = writeln!(
            text,
            "{:<16} {:<8} {:<18} {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    text
}

fn plan(cluster: &EtcdCluster) -> String {
    let status: EtcdClusterStatus = cluster.status.clone().unwrap_or_default();
    let mut text = String::new();
    match &status.operation {
        Some(operation) => {
            let member = operation.member.as_deref().unwrap_or("the cluster");
            let reason = operation.reason.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "doing: {} on {member} {reason} since {}",
                operation.kind, operation.started_at.0
            );
        }
        None => text.push_str("doing: nothing\n"),
    }
    for blocked in &status.blocked_by {
        let _ = writeln!(
            text,
            "held back: {} by {}: {}",
            blocked.action, blocked.invariant, blocked.detail
        );
    }
    if let Some(rollout) = &status.rollout {
        let _ = writeln!(
            text,
            "rollout: {} of {} members run the desired settings",
            rollout.updated, rollout.total
        );
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<10} {value}");
}

fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cluster(status: Value) -> EtcdCluster {
        serde_json::from_value(json!({
            "metadata": {"name": "main", "namespace": "ns"}, "spec": {}, "status": status,
        }))
        .unwrap()
    }

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-22T00:00:00Z",
        })
    }

    fn member(serial: i64, status: Value) -> EtcdMember {
        serde_json::from_value(json!({
            "metadata": {"name": format!("main-{serial}")},
            "spec": {
                "clusterRef": {"name": "main"}, "serial": serial, "initialState": "New",
                "peerURL": "https://x:2380", "claimName": "x",
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn status_shows_the_cluster_its_members_and_its_conditions() {
        let cluster = cluster(json!({
            "clusterID": "cdf818194e3a8c32", "readyReplicas": 2, "faultTolerance": 0,
            "currentVersion": "3.7.3", "observedAt": "2026-11-22T12:00:00Z",
            "leader": {"member": "main-2", "memberID": "ab", "term": 4},
            "conditions": [
                condition("Ready", "True", "Changing", ""),
                condition("Degraded", "True", "MemberUnhealthy", "main-3: NotReady"),
            ],
        }));
        let serving = |lag: i64, role: &str| {
            let ready = condition("Ready", "True", "Serving", "");
            json!({"role": role, "lagEntries": lag, "node": "node-a", "conditions": [ready]})
        };
        let members = [member(1, serving(16, "Voter")), member(2, serving(0, "Voter"))];
        let members = [&members[..], &[member(3, json!({}))]].concat();
        is_printed(
            &status(&cluster, &members),
            "\
cluster    main
id         cdf818194e3a8c32
members    2 of 3 ready
tolerates  0 failures
leader     main-2
version    3.7.3
observed   2026-11-22T12:00:00Z

main-1                   Voter    Serving  lag 16       node-a
main-2                   Voter    Serving  lag 0        node-a
main-3                            Unknown  lag          .

Ready            True     Changing           .
Degraded         True     MemberUnhealthy    main-3: NotReady
",
        );
    }

    #[test]
    fn status_of_a_cluster_that_nobody_has_looked_at_says_so() {
        is_printed(
            &status(&cluster(json!({})), &[]),
            "\
cluster    main
id         not formed
members    0 of 3 ready
tolerates  0 failures
leader     none
version    unknown
observed   never


",
        );
    }

    #[test]
    fn plan_shows_what_is_done_what_is_held_back_and_how_far_a_rollout_is() {
        let busy = cluster(json!({
            "operation": {
                "kind": "RestartPod", "member": "main-1", "reason": "Rollout",
                "startedAt": "2026-11-22T12:00:00Z",
            },
            "rollout": {
                "hash": "h", "updated": 1, "total": 3, "progressedAt": "2026-11-22T12:00:00Z",
            },
            "blockedBy": [
                {"action": "MoveLeader", "invariant": "I3", "detail": "voter main-2 does not answer"},
                {"action": "Ensure", "invariant": "NotOurs", "detail": "Pod main-4 exists"},
            ],
        }));
        is_printed(
            &plan(&busy),
            "\
doing: RestartPod on main-1 Rollout since 2026-11-22T12:00:00Z
held back: MoveLeader by I3: voter main-2 does not answer
held back: Ensure by NotOurs: Pod main-4 exists
rollout: 1 of 3 members run the desired settings
",
        );
        is_printed(&plan(&cluster(json!({}))), "doing: nothing\n");
    }

    /// A dot stands for the nothing in the last column, which no editor keeps.
    fn is_printed(found: &str, expected: &str) {
        let lines = expected.split('\n').map(|line| line.strip_suffix('.').unwrap_or(line));
        assert_eq!(found, lines.collect::<Vec<_>>().join("\n"));
    }
}
