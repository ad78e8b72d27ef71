//! `EtcdCluster`: the desired cluster. Its status is in [`super::EtcdClusterStatus`].

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackupStore, EtcdClusterStatus, LocalObjectReference};

/// The etcd version that a cluster runs if it does not say.
pub const DEFAULT_VERSION: &str = "3.7.3";

/// The desired cluster.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "etcd.keelson.dev",
    version = "v1alpha1",
    kind = "EtcdCluster",
    plural = "etcdclusters",
    namespaced,
    status = "EtcdClusterStatus",
    derive = "PartialEq",
    shortname = "etcd",
    category = "keelson",
    category = "all",
    cel,
    doc = "An etcd cluster: its members, their storage and security, and how they change.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.metadata.name.size() <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("the name must be a DNS label of at most 45 characters that starts with a letter, because members and Services are named after it"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Tolerance", type_ = "integer", json_path = ".status.faultTolerance"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader.member"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.currentVersion"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Backup", type_ = "date", json_path = ".status.backup.lastSuccessfulTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Cluster ID", type_ = "string", json_path = ".status.clusterID", priority = 1),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision", priority = 1),
    printcolumn(name = "DB Size", type_ = "integer", json_path = ".status.dbSizeBytes", priority = 1),
    printcolumn(name = "Operation", type_ = "string", json_path = ".status.operation.kind", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdClusterSpec {
    /// Number of voting members.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = Rule::new("self in [1, 3, 5, 7]").message("replicas must be 1, 3, 5 or 7: an even number tolerates no more failures than the odd number below it"))]
    pub replicas: i32,
    /// Version of etcd's API that the members serve; also the image's tag unless `image` says
    /// otherwise. Changing it rolls the members one by one.
    #[serde(default = "default_version")]
    #[schemars(regex(pattern = r"^\d+\.\d+\.\d+$"))]
    pub version: String,
    /// The image of the members.
    #[serde(default)]
    pub image: ImageSpec,
    /// The volume of each member.
    #[serde(default)]
    pub storage: StorageSpec,
    /// Limit of the database.
    #[serde(default)]
    pub quota: QuotaSpec,
    /// Settings of the server.
    #[serde(default)]
    pub config: ServerConfig,
    /// Further flags of the server, without the leading dashes. Flags that the operator needs for
    /// itself are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(
        validation = Rule::new("self.all(flag, flag.matches('^[a-z][a-z0-9-]*$'))").message("extraArgs are flag names without dashes in front, such as max-concurrent-streams"),
        validation = Rule::new("self.all(flag, !(flag in ['name', 'data-dir', 'wal-dir', 'config-file', 'force-new-cluster', 'quota-backend-bytes', 'auto-tls', 'peer-auto-tls', 'expect-cluster-id', 'expect-member-id', 'strict-reconfig-check', 'log-level', 'heartbeat-interval', 'election-timeout', 'snapshot-count', 'max-request-bytes', 'max-txn-ops', 'auto-compaction-mode', 'auto-compaction-retention']) && !flag.startsWith('listen-') && !flag.startsWith('advertise-') && !flag.startsWith('initial-') && !flag.startsWith('discovery') && !flag.contains('cert') && !flag.contains('key-file') && !flag.contains('trusted-ca'))").message("extraArgs may not set a flag that the operator sets: name, data-dir, wal-dir, config-file, listen-*, advertise-*, initial-*, discovery*, certificates, force-new-cluster, or a flag that has its own field in config, quota or tls")
    )]
    pub extra_args: BTreeMap<String, String>,
    /// Encryption and authentication of all connections.
    #[serde(default)]
    pub tls: TlsSpec,
    /// How the cluster is born. It cannot be changed afterwards.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("bootstrap describes how the cluster was born and cannot be changed"))]
    pub bootstrap: BootstrapSpec,
    /// Where backups of this cluster go unless a backup says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupSpec>,
    /// How changes reach the members.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// What is done about members that are lost.
    #[serde(default)]
    pub recovery: RecoverySpec,
    /// Further settings of the members' Pods.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// Requests and limits of the etcd container.
    #[serde(default = "default_resources")]
    #[schemars(schema_with = "super::resources_schema")]
    pub resources: ResourceRequirements,
    /// The Services of the cluster.
    #[serde(default)]
    pub services: ServicesSpec,
    /// Protection against voluntary disruptions.
    #[serde(default)]
    pub disruption: DisruptionSpec,
    /// While true the operator changes nothing and only keeps the status current. A cluster that is
    /// deleted goes all the same.
    #[serde(default)]
    pub paused: bool,
    /// What happens to the volumes when the cluster is deleted. `Delete` is about all claims of the
    /// cluster: also those that members which left, and first starts that were given up, have left behind.
    #[serde(default)]
    pub deletion_policy: VolumePolicy,
}

/// Which image the members run. `digest` wins over `tag`, `tag` over `spec.version`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    #[serde(default = "default_repository")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[a-f0-9]{64}$"))]
    pub digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<LocalObjectReference>,
    /// Whose server the image holds. `Etcd` leaves out the flags that only Keelson knows.
    #[serde(default)]
    pub distribution: Distribution,
}

/// Whose server an image holds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    #[default]
    Keelson,
    Etcd,
}

/// When the kubelet pulls the image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The volume of each member. It cannot be changed yet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
// Not at the field: a rule of an optional field is skipped when the field is added or taken away.
#[x_kube(validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("className cannot be changed"))]
pub struct StorageSpec {
    #[serde(default = "default_size")]
    #[schemars(schema_with = "super::quantity_schema")]
    #[x_kube(
        validation = Rule::new("isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('16Mi'))").message("size must be a quantity of at least 16Mi, such as 10Gi"),
        validation = Rule::new("string(self) == string(oldSelf)").message("size cannot be changed")
    )]
    pub size: Quantity,
    /// StorageClass; absent means the default class of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("accessMode cannot be changed"))]
    pub access_mode: AccessMode,
    #[serde(default)]
    pub retention: RetentionSpec,
}

/// Access modes that suit a member's volume.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    #[default]
    ReadWriteOnce,
    ReadWriteOncePod,
}

/// What happens to the volume of a member that left the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RetentionSpec {
    /// After scaling in and after a replacement. `Retain` keeps the claim, unused, under its name, until
    /// the cluster is deleted with `deletionPolicy: Delete`. The claim of a member that was to join and
    /// never started goes in any case.
    #[serde(default)]
    pub when_scaled: VolumePolicy,
}

/// Keep a volume or delete it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumePolicy {
    #[default]
    Retain,
    Delete,
}

/// Limit of the database.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct QuotaSpec {
    /// Absent means three quarters of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::quantity_schema")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))").message("backend must be a positive quantity such as 8Gi"))]
    pub backend: Option<Quantity>,
}

/// Settings of the server; absent means the server's own default.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.electionTimeoutMilliseconds) ? self.electionTimeoutMilliseconds : 1000) >= 5 * (has(self.heartbeatIntervalMilliseconds) ? self.heartbeatIntervalMilliseconds : 100)").message("electionTimeoutMilliseconds (default 1000) must be at least five times heartbeatIntervalMilliseconds (default 100)"))]
pub struct ServerConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10000))]
    pub heartbeat_interval_milliseconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 50000))]
    pub election_timeout_milliseconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub snapshot_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 104857600))]
    pub max_request_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_txn_ops: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_compaction: Option<AutoCompaction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
}

/// Automatic compaction of old revisions.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'Periodic' || self.retention.matches('^[0-9]+$')").message("retention is a number of revisions in mode Revision"))]
pub struct AutoCompaction {
    pub mode: AutoCompactionMode,
    /// A duration such as `1h` in mode `Periodic`, a number of revisions in mode `Revision`.
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(ms|s|m|h)?$"))]
    pub retention: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompactionMode {
    Periodic,
    Revision,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// Encryption and authentication of connections.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("tls.mode cannot be changed on a running cluster"))]
    pub mode: TlsMode,
    /// Further DNS names and addresses in the certificates that the members show to clients.
    #[serde(rename = "extraSANs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9*._:-]+$'))").message("extraSANs are DNS names, such as *.example.com, and IP addresses"))]
    pub extra_sans: Vec<String>,
}

/// Who issues the certificates.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// The operator keeps one CA for clients and one for peers, and issues all certificates.
    #[default]
    SelfManaged,
    /// Plain text.
    Disabled,
}

/// How the cluster is born; `type` says which member is filled in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("(self.type == 'Recovery') == has(self.recovery)").message("recovery is required when type is Recovery and not allowed otherwise")
)]
pub struct BootstrapSpec {
    #[serde(rename = "type", default)]
    pub kind: BootstrapType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoverySource>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootstrapType {
    /// An empty cluster.
    #[default]
    New,
    /// A new cluster with the data of a backup.
    Recovery,
}

/// The backup that a new cluster starts from; exactly one source.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.objectStore)").message("give exactly one of backupRef and objectStore"))]
pub struct RecoverySource {
    /// A completed `EtcdBackup` in the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalObjectReference>,
    /// A manifest in a store, when the `EtcdBackup` object no longer exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStoreSource>,
    /// Added to the revision, so that clients that saw writes after the backup cannot see
    /// revisions go back.
    #[serde(default = "default_bump_revision")]
    #[schemars(range(min = 0))]
    pub bump_revision: i64,
}

/// A manifest in a store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStoreSource {
    pub store: BackupStore,
    /// Path of the manifest inside the store, as in `EtcdBackup.status.manifest`.
    #[schemars(length(min = 1, max = 1024))]
    pub manifest: String,
}

/// Where backups go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    pub store: BackupStore,
}

/// How changes reach the members.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    #[serde(rename = "type", default)]
    pub kind: UpdateStrategyType,
    /// How long a member must have served before the next one is touched.
    #[serde(default = "default_min_ready")]
    #[schemars(range(min = 0, max = 3600))]
    pub min_ready_seconds: i64,
    /// How many log entries a member may be behind the leader and still count as healthy.
    #[serde(default = "default_max_lag")]
    #[schemars(range(min = 0))]
    pub max_lag_entries: i64,
    /// After this time without progress the rollout is reported as stuck.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 30, max = 86400))]
    pub progress_deadline_seconds: i64,
}

impl Default for UpdateStrategy {
    fn default() -> Self {
        UpdateStrategy {
            kind: UpdateStrategyType::default(),
            min_ready_seconds: default_min_ready(),
            max_lag_entries: default_max_lag(),
            progress_deadline_seconds: default_progress_deadline(),
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateStrategyType {
    /// Member by member, followers first, the leader moved and restarted last.
    #[default]
    RollingUpdate,
    /// A member takes the change when its Pod is deleted by somebody.
    OnDelete,
}

/// What is done about members that are lost.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RecoverySpec {
    #[serde(default)]
    pub member_replacement: MemberReplacement,
    /// How long a node must be not ready before its member counts as lost. A node that was
    /// deleted or tainted out-of-service counts at once.
    #[serde(default = "default_node_loss")]
    #[schemars(range(min = 10, max = 86400))]
    pub node_loss_for_seconds: i64,
    /// At most one automatic replacement in this time.
    #[serde(default = "default_replacement_interval")]
    #[schemars(range(min = 0, max = 86400))]
    pub min_replacement_interval_seconds: i64,
}

impl Default for RecoverySpec {
    fn default() -> Self {
        RecoverySpec {
            member_replacement: MemberReplacement::default(),
            node_loss_for_seconds: default_node_loss(),
            min_replacement_interval_seconds: default_replacement_interval(),
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberReplacement {
    #[default]
    Automatic,
    /// Only when its `EtcdMember` is deleted.
    Manual,
}

/// Further settings of the members' Pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.contains('etcd.keelson.dev/') && !key.startsWith('app.kubernetes.io/'))").message("labels of etcd.keelson.dev/ and app.kubernetes.io/ are set by the operator"))]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.contains('etcd.keelson.dev/'))").message("annotations of etcd.keelson.dev/ are set by the operator"))]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Absent means: spread over hosts and zones where possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub termination_grace_period_seconds: Option<i64>,
}

/// The Services of the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServicesSpec {
    #[serde(default)]
    pub client: ClientServiceSpec,
}

/// The Service that clients use.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClientServiceSpec {
    #[serde(rename = "type", default)]
    pub kind: ClientServiceType,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// Protection against voluntary disruptions.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionSpec {
    #[serde(default)]
    pub pod_disruption_budget: Switch,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    #[default]
    Enabled,
    Disabled,
}

impl Default for ImageSpec {
    fn default() -> Self {
        ImageSpec {
            repository: default_repository(),
            tag: None,
            digest: None,
            pull_policy: None,
            pull_secrets: Vec::new(),
            distribution: Distribution::default(),
        }
    }
}

impl Default for StorageSpec {
    fn default() -> Self {
        StorageSpec {
            size: default_size(),
            class_name: None,
            access_mode: AccessMode::default(),
            retention: RetentionSpec::default(),
        }
    }
}

fn default_replicas() -> i32 {
    3
}

fn default_version() -> String {
    DEFAULT_VERSION.to_owned()
}

fn default_repository() -> String {
    "keelson/keelson".to_owned()
}

fn default_size() -> Quantity {
    Quantity("10Gi".to_owned())
}

fn default_resources() -> ResourceRequirements {
    let quantities = [("cpu", "250m"), ("memory", "512Mi")];
    let requests = quantities.map(|(name, size)| (name.to_owned(), Quantity(size.to_owned())));
    ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }
}

fn default_bump_revision() -> i64 {
    1_000_000_000
}

fn default_min_ready() -> i64 {
    10
}

fn default_max_lag() -> i64 {
    1000
}

fn default_progress_deadline() -> i64 {
    600
}

fn default_node_loss() -> i64 {
    300
}

fn default_replacement_interval() -> i64 {
    1800
}
