//! The init container that seeds the first member of a recovered cluster.

use super::job::agent_container;
use crate::{
    cluster::{
        build::{DATA_VOLUME, RestoreStep},
        model::Serial,
        validate::Validated,
    },
    crd::{BackupStore, EtcdBackup, RecoverySource},
    kubernetes::{Kubernetes, KubernetesError},
};
use k8s_openapi::api::core::v1::VolumeMount;

/// A recovery that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RestoreStepError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(
        "bootstrap.recovery: EtcdBackup {0} does not exist; name an existing one or use objectStore"
    )]
    NoBackup(String),
    #[error("bootstrap.recovery: EtcdBackup {0} is not complete")]
    Incomplete(String),
    #[error("bootstrap.recovery names no source")]
    NoSource,
}

/// Finds the backup and renders the step.
///
/// # Errors
/// The backup does not exist or is not complete.
pub async fn build(
    kubernetes: &Kubernetes,
    validated: &Validated,
    serial: Serial,
    initial_cluster: &str,
    token: &str,
    agent_image: &str,
) -> Result<RestoreStep, RestoreStepError> {
    let recovery = validated.spec.bootstrap.recovery.as_ref().ok_or(RestoreStepError::NoSource)?;
    let source = source(kubernetes, validated, recovery).await?;
    let arguments =
        arguments(validated, serial, &source, initial_cluster, token, recovery.bump_revision);
    let mut agent = agent_container("restore", agent_image, arguments, &source.store);
    agent.container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: DATA_VOLUME.to_owned(),
        mount_path: "/var/lib/etcd".to_owned(),
        ..VolumeMount::default()
    });
    // etcdutl holds the whole index of the snapshot in memory; the member's own limits fit it.
    agent.container.resources = Some(validated.spec.resources.clone());
    Ok(RestoreStep { container: agent.container, volumes: agent.volumes })
}

/// Where the backup is.
struct Source {
    store: BackupStore,
    manifest: String,
    /// Of the snapshot, as the agent said it when it was taken; whoever can write to the store can write a
    /// manifest, but not this.
    sha256: Option<String>,
}

async fn source(
    kubernetes: &Kubernetes,
    validated: &Validated,
    recovery: &RecoverySource,
) -> Result<Source, RestoreStepError> {
    if let Some(source) = &recovery.object_store {
        let (store, manifest) = (source.store.clone(), source.manifest.clone());
        return Ok(Source { store, manifest, sha256: None });
    }
    let name = &recovery.backup_ref.as_ref().ok_or(RestoreStepError::NoSource)?.name;
    let namespace = &validated.desired.names.namespace;
    let backup = kubernetes.get::<EtcdBackup>(namespace, name).await?;
    let backup = backup.ok_or_else(|| RestoreStepError::NoBackup(name.clone()))?;
    let status = backup.status.filter(|status| status.completed_at.is_some());
    let found = status.and_then(|status| {
        let (store, manifest) = status.store.zip(status.manifest)?;
        Some(Source { store, manifest, sha256: status.sha256 })
    });
    found.ok_or_else(|| RestoreStepError::Incomplete(name.clone()))
}

fn arguments(
    validated: &Validated,
    serial: Serial,
    source: &Source,
    initial_cluster: &str,
    token: &str,
    bump_revision: i64,
) -> Vec<String> {
    let names = &validated.desired.names;
    let values = [
        ("manifest", source.manifest.clone()),
        ("data-dir", "/var/lib/etcd/data".to_owned()),
        ("name", names.member(serial)),
        ("initial-cluster", initial_cluster.to_owned()),
        ("initial-cluster-token", token.to_owned()),
        ("initial-advertise-peer-urls", names.peer_url(serial)),
        ("bump-revision", bump_revision.to_string()),
    ];
    let digest = source.sha256.clone().map(|sha256| ("sha256", sha256));
    let flags = values.into_iter().chain(digest);
    let flags = flags.map(|(name, value)| format!("--{name}={value}"));
    ["agent".to_owned(), "restore".to_owned()].into_iter().chain(flags).collect()
}
