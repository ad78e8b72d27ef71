//! `EtcdBackupSchedule`: creates `EtcdBackup` objects by a cron expression and prunes old ones.
//!
//! Field names and meanings follow `batch/v1 CronJob` where the idea is the same.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackupDeletionPolicy, BackupSource, BackupStore, LocalObjectReference};

/// When backups are taken and how many are kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "etcd.keelson.dev",
    version = "v1alpha1",
    kind = "EtcdBackupSchedule",
    plural = "etcdbackupschedules",
    namespaced,
    status = "EtcdBackupScheduleStatus",
    derive = "PartialEq",
    shortname = "etcdbs",
    category = "keelson",
    category = "all",
    cel,
    doc = "Takes backups of an EtcdCluster on a schedule and keeps as many as wanted.",
    validation = Rule::new("self.metadata.name.size() <= 41").message("the name must have at most 41 characters, because each backup is named <schedule>-<unix time>"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Time Zone", type_ = "string", json_path = ".spec.timeZone"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last Success", type_ = "date", json_path = ".status.lastSuccessfulTime"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduledTime"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextScheduledTime", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupScheduleSpec {
    /// The cluster to back up.
    pub cluster_ref: LocalObjectReference,
    /// Five cron fields (minute, hour, day of month, month, day of week) or @hourly, @daily,
    /// @weekly, @monthly, @yearly.
    #[x_kube(validation = Rule::new("self.matches('^(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|[^ ]+( +[^ ]+){4})$')").message("schedule must be five cron fields or one of @hourly, @daily, @weekly, @monthly, @yearly"))]
    #[schemars(length(min = 5, max = 128))]
    pub schedule: String,
    /// IANA time zone in which the schedule is read.
    #[serde(default = "default_time_zone")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// No new backups while true; running ones go on.
    #[serde(default)]
    pub suspend: bool,
    /// Take the first backup when the schedule is created, without waiting for its first time.
    #[serde(default)]
    pub immediate: bool,
    /// What happens when a backup is due while the one before is still running.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// A run that was missed (operator down, schedule suspended) is made up for if it is at most
    /// this old; of several missed runs only the newest.
    #[serde(default = "default_starting_deadline")]
    #[schemars(range(min = 10, max = 604800))]
    pub starting_deadline_seconds: i64,
    /// Which finished backups are kept.
    #[serde(default)]
    pub retention: RetentionPolicy,
    /// How many failed backups are kept for inspection.
    #[serde(default = "default_failed_history")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_history_limit: i32,
    /// How each backup is made.
    #[serde(default)]
    pub template: BackupTemplate,
}

/// What to do when runs overlap.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyPolicy {
    /// The new run waits for the running one, and is skipped once it is older than
    /// `startingDeadlineSeconds`.
    #[default]
    Forbid,
    /// Delete the running backup and start the new one.
    Replace,
}

/// A backup is kept if any rule keeps it; with no rule at all every backup is kept. The newest
/// successful backup is always kept, and that of each older cluster of the same name too.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetentionPolicy {
    /// The newest so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub keep_last: Option<u32>,
    /// The newest of each of the last so many hours that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub hourly: Option<u32>,
    /// The newest of each of the last so many days that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub daily: Option<u32>,
    /// The newest of each of the last so many ISO weeks that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub weekly: Option<u32>,
    /// The newest of each of the last so many months that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub monthly: Option<u32>,
    /// The newest of each of the last so many years that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub yearly: Option<u32>,
    /// Nothing younger than this is deleted, whatever the rules say.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_age_seconds: i64,
}

/// The part of a backup's spec that the schedule fills in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupTemplate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<BackupStore>,
    #[serde(default)]
    pub from: BackupSource,
    /// `Delete` lets retention free space in the store; with `Retain` only the objects in
    /// Kubernetes are pruned.
    #[serde(default = "delete")]
    pub deletion_policy: BackupDeletionPolicy,
}

impl Default for BackupTemplate {
    fn default() -> Self {
        BackupTemplate { store: None, from: BackupSource::default(), deletion_policy: delete() }
    }
}

/// What the schedule did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupScheduleStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Scheduled time of the newest run that was started or skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_scheduled_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_scheduled_time: Option<Time>,
    /// Backups that are running.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions_schema")]
    pub conditions: Vec<Condition>,
}

fn delete() -> BackupDeletionPolicy {
    BackupDeletionPolicy::Delete
}

fn default_time_zone() -> String {
    "Etc/UTC".to_owned()
}

fn default_starting_deadline() -> i64 {
    600
}

fn default_failed_history() -> i32 {
    3
}
