//! The command line: `run` the operator, print the `crd`s, or act as an `agent`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::{
    backup::{
        agent::{self, AgentReport, BackupOrder, RestoreOrder},
        job::STORE_VARIABLE,
        store::{Credentials, open},
    },
    certificates::KeyPairPem,
    crd::{BackupStore, definitions},
    etcd::{ClientTls, GrpcAdmin, MemberAddress},
    manifests, run, telemetry,
};

/// Runs etcd clusters on Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "etcd-operator", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log, in the syntax of RUST_LOG.
    #[arg(long, global = true, env = "RUST_LOG", default_value = "info,kube_runtime=warn")]
    log: String,
    /// Log as JSON.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the operator.
    Run(RunArguments),
    /// Print the CustomResourceDefinitions as YAML.
    Crd,
    /// Work inside a backup Job or an init container.
    #[command(subcommand)]
    Agent(AgentCommand),
}

/// How the operator runs.
#[derive(Args, Debug)]
pub struct RunArguments {
    /// Namespaces to watch, separated by commas; empty means all.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Namespace of the leader lease: the operator's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of the leader lease: operators with the same one stand in for each other.
    #[arg(long, env = "LEASE_NAME", default_value = run::LEASE_NAME)]
    pub lease_name: String,
    /// Name of this process in the leader lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "etcd-operator")]
    pub identity: String,
    /// Do not take part in a leader election; only for a single operator.
    #[arg(long)]
    pub no_leader_election: bool,
    /// Image that backup Jobs and restores run: the operator's own.
    #[arg(long, env = "OPERATOR_IMAGE", default_value = "keelson/keelson:3.7.3")]
    pub agent_image: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    pub metrics_address: SocketAddr,
    /// How many clusters are worked on at once.
    #[arg(long, default_value_t = 8)]
    pub concurrency: u16,
}

#[derive(Subcommand, Debug)]
enum AgentCommand {
    /// Take a backup from one member.
    Backup(BackupArguments),
    /// Seed a data directory from a backup.
    Restore(RestoreArguments),
    /// Delete the objects of a backup.
    Delete(DeleteArguments),
}

#[derive(Args, Debug)]
struct BackupArguments {
    #[arg(long)]
    folder: String,
    #[arg(long)]
    backup_uid: String,
    #[arg(long)]
    cluster: String,
    #[arg(long)]
    member: String,
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    server_name: String,
    /// Directory with tls.crt, tls.key and ca.crt.
    #[arg(long)]
    tls_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct RestoreArguments {
    #[arg(long)]
    manifest: String,
    /// SHA-256 of the snapshot, as the backup's status has it.
    #[arg(long)]
    sha256: Option<String>,
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long)]
    initial_cluster: String,
    #[arg(long)]
    initial_cluster_token: String,
    #[arg(long)]
    initial_advertise_peer_urls: String,
    #[arg(long, default_value_t = 0)]
    bump_revision: i64,
    #[arg(long, default_value = "/usr/local/bin/etcdutl")]
    etcdutl: PathBuf,
}

#[derive(Args, Debug)]
struct DeleteArguments {
    #[arg(long)]
    manifest: String,
    #[arg(long)]
    backup_uid: String,
}

/// Does what the command line says.
///
/// # Errors
/// It could not be done; the message says what to do.
pub async fn main(cli: Cli) -> Result<()> {
    telemetry::start(&cli.log, cli.log_json);
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before ring");
    }
    match cli.command {
        Command::Run(arguments) => run::run(arguments).await,
        Command::Crd => {
            use std::io::Write;
            let text = manifests::yaml_documents(&definitions())?;
            std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
        }
        Command::Agent(command) => run_agent(command).await,
    }
}

async fn run_agent(command: AgentCommand) -> Result<()> {
    let result = agent_work(command).await;
    let report = match &result {
        Ok(report) => report.clone(),
        Err(error) => AgentReport::Failed { error: format!("{error:#}") },
    };
    let text = serde_json::to_string(&report).context("encode the report")?;
    // The kubelet reads at most 4096 bytes of it; a report is far smaller.
    if let Err(error) = tokio::fs::write("/dev/termination-log", &text).await {
        tracing::debug!(%error, "no termination log: not in a container");
    }
    tracing::info!(report = text, "agent is done");
    result.map(|_| ())
}

async fn agent_work(command: AgentCommand) -> Result<AgentReport> {
    let text = std::env::var(STORE_VARIABLE).with_context(|| {
        format!("the environment variable {STORE_VARIABLE} with the store is missing")
    })?;
    let store: BackupStore = serde_json::from_str(&text).context("read the store")?;
    let store = open(&store, &Credentials::from_environment())?;
    match command {
        AgentCommand::Backup(arguments) => {
            let tls = match &arguments.tls_dir {
                Some(directory) => Some(std::sync::Arc::new(client_tls(directory).await?)),
                None => None,
            };
            let order = BackupOrder {
                folder: arguments.folder,
                backup_uid: arguments.backup_uid,
                cluster: arguments.cluster,
                member: arguments.member,
                address: MemberAddress { url: arguments.endpoint, host: arguments.server_name },
            };
            let etcd = GrpcAdmin::new(tls);
            let manifest = agent::backup_until(&order, &etcd, &store, run::told_to_end()).await?;
            Ok(AgentReport::Backup(Box::new(manifest)))
        }
        AgentCommand::Restore(arguments) => {
            let pass_on = [
                ("--name", arguments.name),
                ("--initial-cluster", arguments.initial_cluster),
                ("--initial-cluster-token", arguments.initial_cluster_token),
                ("--initial-advertise-peer-urls", arguments.initial_advertise_peer_urls),
            ];
            let order = RestoreOrder {
                manifest: arguments.manifest,
                sha256: arguments.sha256,
                data_dir: arguments.data_dir,
                etcdutl: arguments.etcdutl,
                arguments: pass_on
                    .into_iter()
                    .flat_map(|(flag, value)| [flag.to_owned(), value])
                    .collect(),
                bump_revision: arguments.bump_revision,
            };
            Ok(AgentReport::Restored { revision: agent::restore(&order, store.objects).await? })
        }
        AgentCommand::Delete(arguments) => {
            agent::delete(&arguments.manifest, &arguments.backup_uid, &store).await?;
            Ok(AgentReport::Deleted)
        }
    }
}

async fn client_tls(directory: &std::path::Path) -> Result<ClientTls> {
    let read = async |name: &str| {
        let path = directory.join(name);
        tokio::fs::read_to_string(&path).await.with_context(|| format!("read {}", path.display()))
    };
    let identity = KeyPairPem { certificate: read("tls.crt").await?, key: read("tls.key").await? };
    Ok(ClientTls { ca: read("ca.crt").await?, identity })
}
