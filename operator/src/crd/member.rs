//! `EtcdMember`: one etcd identity, with its Pod and its volume. Written by the operator only.
//!
//! Per-member facts live here and not in a list inside the cluster's status, so that they survive
//! an operator that dies between two writes and can be looked at with `kubectl get etcdmembers`.
//! A user may delete one: that means "replace this member".

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalObjectReference;

/// One member of a cluster. Serials are never used twice, so neither are names.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "etcd.keelson.dev",
    version = "v1alpha1",
    kind = "EtcdMember",
    plural = "etcdmembers",
    namespaced,
    status = "EtcdMemberStatus",
    derive = "PartialEq",
    shortname = "etcdm",
    category = "keelson",
    category = "all",
    cel,
    doc = "A member of an EtcdCluster; managed by the operator. Deleting it replaces the member.",
    printcolumn(name = "Role", type_ = "string", json_path = ".status.role"),
    printcolumn(name = "Leader", type_ = "boolean", json_path = ".status.leader"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lagEntries"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(
        name = "Member ID",
        type_ = "string",
        json_path = ".status.memberID",
        priority = 1
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("members are managed by the operator and cannot be edited"))]
pub struct EtcdMemberSpec {
    pub cluster_ref: LocalObjectReference,
    #[schemars(range(min = 1))]
    pub serial: i64,
    /// How the data directory comes to be.
    pub initial_state: InitialState,
    #[serde(rename = "peerURL")]
    pub peer_url: String,
    /// Claim that holds the data.
    pub claim_name: String,
    /// Why it joins; absent for members of the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_reason: Option<JoinReason>,
}

/// How a member's data directory comes to be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// Part of the frozen bootstrap plan.
    New,
    /// Joins a running cluster as a learner.
    Existing,
    /// Seeded from a backup.
    Restored,
}

/// Why a member joins a cluster that runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinReason {
    ScaleOut,
    Replacement,
}

/// What is known about the member.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMemberStatus {
    /// Hexadecimal, as etcd prints it; latched once known.
    #[serde(rename = "memberID", skip_serializing_if = "Option::is_none")]
    pub member_id: Option<String>,
    /// Since when etcd has had it in its list; latched with the id. A learner that has not started ten
    /// minutes later is taken out again; the next one in a row has twice as long, and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listed_since: Option<Time>,
    /// Uid of the claim the member's data was first written to; latched. Another uid means that
    /// the data is gone.
    #[serde(rename = "claimUID", skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,
    /// It was added as a learner and has not run since. Its claim goes with it, whatever
    /// `spec.storage.retention.whenScaled` of the cluster says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never_started: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<MemberRole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_entries: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How often the containers of the present Pod were started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i32>,
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    #[serde(rename = "dbSizeBytes", skip_serializing_if = "Option::is_none")]
    pub db_size_bytes: Option<i64>,
    /// Since when the member answers without a break.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<Time>,
    /// Set when etcd refused to add the learner because another member is down; then the dead
    /// member is removed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_refused: Option<String>,
    /// What the member said when it found nothing of the data that it had; kept until it serves again,
    /// since the Pod that said it may be gone before the member is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_gone: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// What the member is in etcd's membership.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    Voter,
    Learner,
    /// Not, or no longer, in the membership.
    None,
}
