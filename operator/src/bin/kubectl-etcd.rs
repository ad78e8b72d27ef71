//! `kubectl etcd`: shows a cluster as the operator sees it, and what the operator does next or
//! what holds it back. It reads Kubernetes only and changes nothing.

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
    /// What the operator is doing, or the rule that holds the next step back.
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
