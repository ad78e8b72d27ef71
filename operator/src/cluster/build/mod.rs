//! From the checked cluster to Kubernetes objects: one file per kind, all of them functions.
//!
//! In: a [`Validated`] cluster and, for what belongs to a member, its serial and identity. Out:
//! whole objects, ready for server-side apply. Names and labels are made here and nowhere else.

mod claim;
mod member;
mod pod;
mod pod_disruption_budget;
mod service;

pub use claim::claim;
pub use member::member;
pub(crate) use pod::pull_secrets;
pub use pod::{
    DATA_VOLUME, MemberPod, RestoreStep, pod, restricted_container, restricted_pod, starts_cluster,
};
pub use pod_disruption_budget::pod_disruption_budget;
pub use service::{client_service, peer_service};

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use super::{model::Serial, validate::Validated};
use crate::crd::{EtcdCluster, EtcdMember};

pub const CLUSTER_LABEL: &str = "etcd.keelson.dev/cluster";
pub const MEMBER_LABEL: &str = "etcd.keelson.dev/member";
pub const SERIAL_LABEL: &str = "etcd.keelson.dev/serial";
pub const COMPONENT_LABEL: &str = "etcd.keelson.dev/component";
pub const SERVING_LABEL: &str = "etcd.keelson.dev/serving";
pub const BACKUP_LABEL: &str = "etcd.keelson.dev/backup";
pub const SCHEDULE_LABEL: &str = "etcd.keelson.dev/schedule";
pub const TEMPLATE_ANNOTATION: &str = "etcd.keelson.dev/template-hash";
pub const INITIAL_CLUSTER_ANNOTATION: &str = "etcd.keelson.dev/initial-cluster";
pub const FINALIZER: &str = "etcd.keelson.dev/operator";

pub const CLIENT_PORT: i32 = 2379;
pub const PEER_PORT: i32 = 2380;
pub const METRICS_PORT: i32 = 2381;

/// Labels of everything that belongs to the cluster.
pub fn cluster_labels(cluster: &str, component: &str) -> BTreeMap<String, String> {
    let labels = [
        ("app.kubernetes.io/name", "etcd"),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/managed-by", "etcd-operator"),
        (CLUSTER_LABEL, cluster),
        (COMPONENT_LABEL, component),
    ];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Labels of everything that belongs to one member.
pub fn member_labels(validated: &Validated, serial: Serial) -> BTreeMap<String, String> {
    let names = &validated.desired.names;
    let mut labels = cluster_labels(&names.cluster, "server");
    labels.insert(MEMBER_LABEL.to_owned(), names.member(serial));
    labels.insert(SERIAL_LABEL.to_owned(), serial.to_string());
    labels
}

/// Labels that select the members' Pods, and no Job's.
pub fn member_selector(cluster: &str) -> BTreeMap<String, String> {
    let labels = [(CLUSTER_LABEL, cluster), (COMPONENT_LABEL, "server")];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// A label selector as text.
pub fn selector_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Makes the cluster the owner of an object.
pub fn owned_by_cluster(validated: &Validated) -> OwnerReference {
    OwnerReference {
        api_version: EtcdCluster::api_version(&()).into_owned(),
        kind: EtcdCluster::kind(&()).into_owned(),
        name: validated.desired.names.cluster.clone(),
        uid: validated.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Makes a member the owner of an object.
pub fn owned_by_member(validated: &Validated, serial: Serial, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: EtcdMember::api_version(&()).into_owned(),
        kind: EtcdMember::kind(&()).into_owned(),
        name: validated.desired.names.member(serial),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Metadata of an object that belongs to the cluster as a whole.
pub fn cluster_metadata(validated: &Validated, name: String, component: &str) -> ObjectMeta {
    let names = &validated.desired.names;
    ObjectMeta {
        name: Some(name),
        namespace: Some(names.namespace.clone()),
        labels: Some(cluster_labels(&names.cluster, component)),
        owner_references: Some(vec![owned_by_cluster(validated)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
