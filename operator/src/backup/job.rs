//! The Jobs and the init container that run agents. Pure.

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Container, EnvVar, EnvVarSource, PersistentVolumeClaimVolumeSource, PodTemplateSpec,
            ResourceRequirements, SecretKeySelector, SecretVolumeSource, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};

use super::store::{CA_MOUNT, VOLUME_MOUNT};
use crate::{
    cluster::build::{
        BACKUP_LABEL, cluster_labels, pull_secrets, restricted_container, restricted_pod,
    },
    crd::{BackupStore, BackupStoreType, EtcdBackup, LocalObjectReference},
};

/// Where agents find the client certificate.
pub const TLS_MOUNT: &str = "/etc/etcd/client-tls";
/// Names the Job on its Pods.
pub const JOB_LABEL: &str = "etcd.keelson.dev/job";
/// The variable with the store's description.
pub const STORE_VARIABLE: &str = "ETCD_BACKUP_STORE";
const AGENT: &str = "/usr/local/bin/etcd-operator";

/// What an agent's container needs.
#[derive(Clone, Debug)]
pub struct AgentContainer {
    pub container: Container,
    pub volumes: Vec<Volume>,
}

/// A container that runs the agent with access to the store.
pub fn agent_container(
    name: &str,
    image: &str,
    arguments: Vec<String>,
    store: &BackupStore,
) -> AgentContainer {
    let text = serde_json::to_string(store).expect("a store is plain JSON");
    let mut environment =
        vec![EnvVar { name: STORE_VARIABLE.to_owned(), value: Some(text), value_from: None }];
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    if let (BackupStoreType::S3, Some(s3)) = (store.kind, &store.s3) {
        if let Some(secret) = &s3.credentials_secret_ref {
            environment.extend([
                credential("AWS_ACCESS_KEY_ID", &secret.name, "accessKeyID", false),
                credential("AWS_SECRET_ACCESS_KEY", &secret.name, "secretAccessKey", false),
                credential("AWS_SESSION_TOKEN", &secret.name, "sessionToken", true),
            ]);
        }
        if let Some(secret) = &s3.ca_secret_ref {
            volumes.push(secret_volume("backup-ca", &secret.name));
            mounts.push(mount("backup-ca", CA_MOUNT, true));
        }
    }
    if let (BackupStoreType::PersistentVolumeClaim, Some(claim)) =
        (store.kind, &store.persistent_volume_claim)
    {
        volumes.push(Volume {
            name: "backup".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.claim_name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
        mounts.push(mount("backup", VOLUME_MOUNT, false));
    }
    let quantities = |cpu: &str, memory: &str| {
        [("cpu", cpu), ("memory", memory)]
            .map(|(name, size)| (name.to_owned(), Quantity(size.to_owned())))
            .into()
    };
    let container = Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        command: Some(vec![AGENT.to_owned()]),
        args: Some(arguments),
        env: Some(environment),
        resources: Some(ResourceRequirements {
            requests: Some(quantities("50m", "64Mi")),
            limits: Some([("memory".to_owned(), Quantity("256Mi".to_owned()))].into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted_container()),
        volume_mounts: Some(mounts),
        termination_message_policy: Some("File".to_owned()),
        ..Container::default()
    };
    AgentContainer { container, volumes }
}

/// What a Job does.
#[derive(Clone, Debug)]
pub struct JobOrder<'a> {
    pub name: String,
    pub image: &'a str,
    pub arguments: Vec<String>,
    pub store: &'a BackupStore,
    /// Secrets to pull the image with.
    pub pull_secrets: &'a [LocalObjectReference],
    /// Secret with the client certificate, if the cluster has TLS and the agent dials it.
    pub client_secret: Option<String>,
}

/// The Job of a backup.
pub fn job(backup: &EtcdBackup, order: JobOrder<'_>) -> Job {
    let mut agent = agent_container("agent", order.image, order.arguments, order.store);
    if let Some(secret) = &order.client_secret {
        agent.volumes.push(secret_volume("client-tls", secret));
        let mounts = agent.container.volume_mounts.get_or_insert_default();
        mounts.push(mount("client-tls", TLS_MOUNT, true));
    }
    let mut labels = cluster_labels(&backup.spec.cluster_ref.name, "backup");
    labels.insert(BACKUP_LABEL.to_owned(), backup.name_any());
    let mut pod = restricted_pod();
    pod.restart_policy = Some("Never".to_owned());
    pod.image_pull_secrets = pull_secrets(order.pull_secrets);
    pod.containers = vec![agent.container];
    pod.volumes = Some(agent.volumes);
    let mut pod_labels = labels.clone();
    // Set by us and not by the Job controller, so that the Pod is found by the Job's own name.
    pod_labels.insert(JOB_LABEL.to_owned(), order.name.clone());
    Job {
        metadata: ObjectMeta {
            name: Some(order.name),
            namespace: backup.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: EtcdBackup::api_version(&()).into_owned(),
                kind: EtcdBackup::kind(&()).into_owned(),
                name: backup.name_any(),
                uid: backup.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(backup.spec.attempts - 1),
            active_deadline_seconds: Some(backup.spec.deadline_seconds),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn credential(variable: &str, secret: &str, key: &str, optional: bool) -> EnvVar {
    EnvVar {
        name: variable.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: Some(optional),
            }),
            ..EnvVarSource::default()
        }),
    }
}

fn secret_volume(name: &str, secret: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
