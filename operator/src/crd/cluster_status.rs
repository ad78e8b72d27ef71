//! The status of an `EtcdCluster`: what the operator saw, intends and is held up by.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator saw, intends and is held up by.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When this status was last confirmed by an observation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// Hexadecimal, as etcd prints it; latched when the cluster first answered.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    #[serde(default)]
    pub latest_member_serial: i64,
    /// Members that were made to join since the last one that voted. A learner that never starts is
    /// replaced by another after ten minutes, and after twice as long each further time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub join_attempts: i32,
    /// The frozen plan of the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<BootstrapStatus>,
    /// Label selector of the members' Pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    #[serde(default)]
    pub replicas: i32,
    #[serde(default)]
    pub ready_replicas: i32,
    #[serde(default)]
    pub voters: i32,
    #[serde(default)]
    pub learners: i32,
    #[serde(default)]
    pub quorum: i32,
    /// Healthy voters minus quorum: how many more may fail.
    #[serde(default)]
    pub fault_tolerance: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    #[serde(rename = "dbSizeBytes", skip_serializing_if = "Option::is_none")]
    pub db_size_bytes: Option<i64>,
    /// Lowest version that a member reports, or reported last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// Version and image that members are rendered with: the spec's, once it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetStatus>,
    /// What is being done right now; written before it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// When a member was made in place of a lost one for the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_replacement_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<ClusterBackupStatus>,
    /// Why nothing happens although something should.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<BlockedBy>,
    // | condition | holds while | is unknown |
    // |---|---|---|
    // | `Ready` | a quorum answers; the reason says what is under way | unseen |
    // | `Available`, `QuorumHealthy` | a quorum answers | unseen |
    // | `FaultTolerant` | one more voter may fail | unseen |
    // | `MembersUpToDate` | every member runs the desired settings | unseen |
    // | `Progressing` | something is being done, or is due | never |
    // | `Degraded` | a member does not answer, a rollout is stuck, or the operator failed | never |
    // | `VersionAccepted`, `SpecApplied` | the version, every field, is in effect | never |
    // | `DataConsistent` | no member raised CORRUPT | before the first look |
    // | `StorageHealthy` | no member raised NOSPACE or uses 80 % of its quota | nobody answers |
    // | `CertificatesValid` | every certificate ends more than 14 days from now, or TLS is off | unseen |
    // | `BackupHealthy` | the last run of every schedule succeeded, and none is overdue | no run is due |
    // | `Recoverable` | enough voters have their data for a quorum, or there is a backup | not formed |
    // | `Paused` | `spec.paused` | never |
    //
    // Unseen: the pass that wrote this could not look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions_schema")]
    pub conditions: Vec<Condition>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it like that")]
fn is_zero(count: &i32) -> bool {
    *count == 0
}

/// The plan of the first start; every Pod of it is rendered from exactly this.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapStatus {
    /// Value of `--initial-cluster-token`; a new one for each attempt.
    pub token: String,
    pub attempt: i32,
    pub started_at: Time,
    pub members: Vec<BootstrapMember>,
}

/// One member of the first start.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapMember {
    pub name: String,
    pub serial: i64,
    #[serde(rename = "peerURL")]
    pub peer_url: String,
}

/// The leader as its members report it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LeaderStatus {
    pub member: String,
    #[serde(rename = "memberID")]
    pub member_id: String,
    pub term: i64,
}

/// The version and image in effect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    pub version: String,
    pub image: String,
}

/// The action that is under way.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    pub started_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a change has reached.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    pub hash: String,
    pub updated: i32,
    pub total: i32,
    /// When the number of updated, healthy members last grew.
    pub progressed_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_reason: Option<String>,
}

/// The newest backup of the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBackupStatus {
    pub last_successful: String,
    pub last_successful_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_revision: Option<i64>,
}

/// A rule that holds an action back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BlockedBy {
    pub action: String,
    /// `I1` to `I16`, or the name of another rule.
    pub invariant: String,
    pub detail: String,
}
