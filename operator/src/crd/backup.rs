//! `EtcdBackup`: one backup, from the request to the manifest in the store.
//!
//! It does not belong to its cluster (no owner reference), so that deleting a cluster keeps the
//! means to bring it back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackupStore, LocalObjectReference};

/// How long a backup may take if it does not say; those of a schedule do not.
pub const DEFAULT_DEADLINE_SECONDS: i64 = 3600;

/// One backup of one cluster. The spec cannot be changed.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "etcd.keelson.dev",
    version = "v1alpha1",
    kind = "EtcdBackup",
    plural = "etcdbackups",
    namespaced,
    status = "EtcdBackupStatus",
    derive = "PartialEq",
    shortname = "etcdb",
    category = "keelson",
    category = "all",
    cel,
    doc = "A backup of an EtcdCluster in an object store or on a volume.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("the name must have at most 52 characters, because the Job is named after it"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.sizeBytes"),
    printcolumn(name = "Duration", type_ = "integer", json_path = ".status.durationSeconds", description = "Seconds from the start to the last byte in the store"),
    printcolumn(name = "Member", type_ = "string", json_path = ".status.member", priority = 1),
    printcolumn(name = "Complete", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Complete\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a backup cannot be changed; create another one"))]
pub struct EtcdBackupSpec {
    /// The cluster to back up.
    pub cluster_ref: LocalObjectReference,
    /// Where to put it; absent means the cluster's `spec.backup.store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<BackupStore>,
    /// Which member is asked for the snapshot. A follower, because the leader has other work.
    #[serde(default)]
    pub from: BackupSource,
    /// What happens to the stored objects when this object is deleted.
    #[serde(default)]
    pub deletion_policy: BackupDeletionPolicy,
    /// How often a failed Job is started again before the backup counts as failed.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: i32,
    /// A backup that runs longer than this is stopped and fails.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 30, max = 604800))]
    pub deadline_seconds: i64,
}

/// Which member is dialled.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupSource {
    #[default]
    PreferFollower,
    Leader,
}

/// What deleting an `EtcdBackup` does to the stored objects.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupDeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// What became of the backup.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The store as it was when the backup started, so that later edits of the cluster do not
    /// make the backup unreachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<BackupStore>,
    /// Secrets to pull the image of the backup's Jobs with: those of the cluster when it started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<LocalObjectReference>,
    /// Path of the manifest inside the store; a recovery starts from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Member that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The snapshot holds at least every write up to this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// From `startedAt` to `completedAt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions_schema")]
    pub conditions: Vec<Condition>,
}

fn default_attempts() -> i32 {
    3
}

fn default_deadline() -> i64 {
    DEFAULT_DEADLINE_SECONDS
}
