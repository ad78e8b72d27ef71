//! The API: group `etcd.keelson.dev`, version `v1alpha1`, one kind per file.
//!
//! Every field here is in effect. A field whose behaviour is not built yet is absent, because a
//! field that silently does nothing is the worst answer an API can give. Values are checked by
//! CEL in the API server, so that no webhook has to be up for an edit to be accepted or refused;
//! what depends on the observed cluster (version skew, for one) is checked by the planner and
//! reported in the `SpecApplied` and `VersionAccepted` conditions.
//!
//! In: nothing. Out: the types, and [`definitions`], from which `manifests/` and the chart are
//! generated. Invariants: one served version, additive changes only. Deliberately absent: any
//! behaviour.

#![allow(clippy::duplicated_attributes, reason = "each printer column repeats the same keys")]
#![allow(unreachable_pub, reason = "the KubeSchema derive copies each struct into a private scope")]

mod backup;
mod backup_schedule;
mod cluster;
mod cluster_status;
mod member;
mod quantity;
mod store;

pub use backup::*;
pub use backup_schedule::*;
pub use cluster::*;
pub use cluster_status::*;
pub use member::*;
pub use quantity::*;
pub use store::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// The API group of all kinds.
pub const GROUP: &str = "etcd.keelson.dev";

/// The definitions of all kinds in the order in which they are installed.
///
/// The descriptions of embedded Kubernetes types are left out: they are most of the bytes, say
/// nothing about etcd, and would push a definition over the 256 KiB that a client-side
/// `kubectl apply` can store in its annotation.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [EtcdCluster::crd(), EtcdMember::crd(), EtcdBackup::crd(), EtcdBackupSchedule::crd()]
        .into_iter()
        .map(as_kubernetes_wants_it)
        .collect()
}

/// Leaves out the descriptions of embedded types, and the number formats that Kubernetes does not
/// know and would warn about.
fn as_kubernetes_wants_it(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    const EMBEDDED: [&str; 4] =
        ["affinity", "tolerations", "topologySpreadConstraints", "conditions"];
    fn visit(value: &mut Value, embedded: bool) {
        match value {
            Value::Object(map) => {
                if embedded && map.get("description").is_some_and(Value::is_string) {
                    map.remove("description");
                }
                if map.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint"))
                {
                    map.remove("format");
                }
                for (key, child) in map.iter_mut() {
                    visit(child, embedded || EMBEDDED.contains(&key.as_str()));
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| visit(item, embedded)),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(definition).expect("a definition is plain JSON");
    visit(&mut value, false);
    serde_json::from_value(value).expect("only descriptions and formats were removed")
}

/// A quantity is written as a string (`10Gi`) or as an integer, as everywhere in Kubernetes.
pub(crate) fn quantity_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true })
}

/// `resources` of a container: requests and limits, without claims, which etcd has no use for.
pub(crate) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "requests": {
                "type": "object",
                "additionalProperties": { "x-kubernetes-int-or-string": true }
            },
            "limits": {
                "type": "object",
                "additionalProperties": { "x-kubernetes-int-or-string": true }
            }
        }
    })
}

/// The schema of `metav1.Condition`, as a list with one entry per type.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 }
            }
        }
    })
}

#[cfg(test)]
mod tests;
