//! From the spec to what the planner and the builders need, checked once.
//!
//! What the API server could check, CEL has checked. Here is what depends on the cluster as it is:
//! whether the version may be taken from the present one (I13), and whether the quota fits the
//! volume (I14). A field that cannot take effect does not stop the others: it is named in
//! [`Validated::refused`], which becomes `SpecApplied=False`, and the last accepted value stays.
//!
//! Pure. In: the object. Out: a [`Validated`] cluster; after this nobody reads the spec.

use jiff::SignedDuration;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::model::{Desired, Names, claim_suffix};
use crate::crd::{
    BootstrapType, EtcdCluster, EtcdClusterSpec, EtcdClusterStatus, MemberReplacement,
    TargetStatus, TlsMode, UpdateStrategyType, quantity_bytes,
};

/// Version of the way Pods are rendered. It is part of the template hash, and is raised only when
/// a running member needs the new rendering: an upgrade of the operator alone restarts nobody.
const TEMPLATE_REVISION: u32 = 1;

/// The checked cluster.
#[derive(Clone, Debug)]
pub struct Validated {
    pub desired: Desired,
    pub spec: EtcdClusterSpec,
    /// Uid of the object, for owner references and tokens.
    pub uid: String,
    /// The version and image in effect.
    pub target: TargetStatus,
    pub quota_bytes: u64,
    pub refused: Vec<RefusedField>,
}

/// A field that is not in effect, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedField {
    pub field: &'static str,
    pub reason: String,
}

/// A spec that cannot be worked with at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSpec {
    #[error("the object has no {0}")]
    Missing(&'static str),
    #[error("spec.{field}: {source}")]
    Quantity { field: &'static str, source: crate::crd::QuantityError },
}

/// Checks the cluster against what is known about it.
///
/// # Errors
/// Nothing can be rendered from this object.
pub fn validate(cluster: &EtcdCluster) -> Result<Validated, InvalidSpec> {
    let name = cluster.metadata.name.clone().ok_or(InvalidSpec::Missing("name"))?;
    let namespace = cluster.metadata.namespace.clone().ok_or(InvalidSpec::Missing("namespace"))?;
    let uid = cluster.metadata.uid.clone().ok_or(InvalidSpec::Missing("uid"))?;
    let spec = cluster.spec.clone();
    let status = cluster.status.clone().unwrap_or_default();
    let names = Names {
        cluster: name,
        namespace,
        tls: spec.tls.mode == TlsMode::SelfManaged,
        claim_suffix: claim_suffix(&uid).to_owned(),
    };

    let mut refused = Vec::new();
    let target = accept_version(&spec, &status, &mut refused);
    let quota_bytes = quota(&spec, &mut refused)?;
    let seconds = SignedDuration::from_secs;
    let desired = Desired {
        names,
        replicas: usize::try_from(spec.replicas).unwrap_or(1),
        restored: spec.bootstrap.kind == BootstrapType::Recovery,
        template: template_hash(&spec, &target, quota_bytes, is_seeding(&spec, &status)),
        paused: spec.paused,
        rolling: spec.update_strategy.kind == UpdateStrategyType::RollingUpdate,
        min_ready: seconds(spec.update_strategy.min_ready_seconds),
        lag_max: u64::try_from(spec.update_strategy.max_lag_entries).unwrap_or(0),
        replace_automatically: spec.recovery.member_replacement == MemberReplacement::Automatic,
        replacement_interval: seconds(spec.recovery.min_replacement_interval_seconds),
    };
    Ok(Validated { desired, spec, uid, target, quota_bytes, refused })
}

/// I13: one minor version up at a time, and never down.
fn accept_version(
    spec: &EtcdClusterSpec,
    status: &EtcdClusterStatus,
    refused: &mut Vec<RefusedField>,
) -> TargetStatus {
    let wanted = TargetStatus { version: spec.version.clone(), image: image(spec) };
    let (Some(current), Some(accepted)) = (&status.current_version, &status.target) else {
        return wanted;
    };
    let Some(reason) = version_refusal(current, &spec.version) else { return wanted };
    refused.push(RefusedField { field: "version", reason });
    accepted.clone()
}

fn version_refusal(current: &str, wanted: &str) -> Option<String> {
    let ((major, minor, patch), wanted_parts) = (parse(current)?, parse(wanted)?);
    let (wanted_major, wanted_minor, wanted_patch) = wanted_parts;
    if (wanted_major, wanted_minor) < (major, minor) {
        return Some(format!(
            "{wanted} is older than {current}, which members run; going back a minor version is not supported"
        ));
    }
    if wanted_major != major || wanted_minor > minor + 1 {
        return Some(format!(
            "{wanted} is more than one minor version above {current}; go through {major}.{} first",
            minor + 1
        ));
    }
    let _ = (patch, wanted_patch);
    None
}

fn parse(version: &str) -> Option<(u64, u64, u64)> {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// The image reference: digest, else tag, else version.
fn image(spec: &EtcdClusterSpec) -> String {
    let image = &spec.image;
    match (&image.digest, &image.tag) {
        (Some(digest), _) => format!("{}@{digest}", image.repository),
        (None, Some(tag)) => format!("{}:{tag}", image.repository),
        (None, None) => format!("{}:{}", image.repository, spec.version),
    }
}

/// I14: the database gets at most nine tenths of the volume.
fn quota(spec: &EtcdClusterSpec, refused: &mut Vec<RefusedField>) -> Result<u64, InvalidSpec> {
    let bytes = |field, quantity| {
        quantity_bytes(quantity).map_err(|source| InvalidSpec::Quantity { field, source })
    };
    let size = bytes("storage.size", &spec.storage.size)?;
    let automatic = size / 4 * 3;
    let Some(wanted) = &spec.quota.backend else { return Ok(automatic) };
    let wanted = bytes("quota.backend", wanted)?;
    let limit = size / 10 * 9;
    if wanted > limit {
        let reason =
            format!("{wanted} bytes are more than nine tenths of storage.size ({limit} bytes)");
        refused.push(RefusedField { field: "quota.backend", reason });
        return Ok(limit);
    }
    Ok(wanted)
}

/// Hash of everything whose change must reach a running member by a restart. Identity, addresses
/// and the member list are not in it: they belong to a member and do not change with the spec.
fn template_hash(
    spec: &EtcdClusterSpec,
    target: &TargetStatus,
    quota_bytes: u64,
    seeding: bool,
) -> String {
    let mut inputs = json!({
        "revision": TEMPLATE_REVISION,
        "image": target.image,
        "pullSecrets": spec.image.pull_secrets,
        "distribution": spec.image.distribution,
        "quota": quota_bytes,
        "config": spec.config,
        "extraArgs": spec.extra_args,
        "tls": spec.tls.mode,
        "podTemplate": spec.pod_template,
        "resources": spec.resources,
    });
    if seeding {
        inputs["seeding"] = json!(true);
    }
    let digest = Sha256::digest(inputs.to_string().as_bytes());
    hex::encode(&digest[..8])
}

/// The first member of a recovered cluster starts in a Pod that needs the backup store: its
/// credentials, its volume. Once the cluster is formed that Pod is outdated by this, and is rolled out
/// anew as one that needs nothing of it.
fn is_seeding(spec: &EtcdClusterSpec, status: &EtcdClusterStatus) -> bool {
    spec.bootstrap.kind == BootstrapType::Recovery && status.cluster_id.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(spec: serde_json::Value, status: serde_json::Value) -> EtcdCluster {
        serde_json::from_value(json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
            "metadata": {"name": "main", "namespace": "ns", "uid": "u"},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn versions_go_up_by_one_minor_and_never_down() {
        let status =
            json!({"currentVersion": "3.6.4", "target": {"version": "3.6.4", "image": "i:3.6.4"}});
        for (version, accepted) in [
            ("3.6.4", true),
            ("3.6.9", true),
            ("3.6.1", true),
            ("3.7.3", true),
            ("3.8.0", false),
            ("3.5.9", false),
            ("4.0.0", false),
        ] {
            let validated =
                validate(&cluster(json!({"version": version}), status.clone())).unwrap();
            assert_eq!(
                validated.refused.is_empty(),
                accepted,
                "{version}: {:?}",
                validated.refused
            );
            let image =
                if accepted { format!("keelson/keelson:{version}") } else { "i:3.6.4".to_owned() };
            assert_eq!(validated.target.image, image);
        }
    }

    #[test]
    fn the_quota_leaves_room_on_the_volume() {
        let quota = |spec| {
            let validated = validate(&cluster(spec, json!({}))).unwrap();
            (validated.quota_bytes, validated.refused.len())
        };
        assert_eq!(quota(json!({"storage": {"size": "4Gi"}})), (3 << 30, 0));
        assert_eq!(
            quota(json!({"storage": {"size": "4Gi"}, "quota": {"backend": "2Gi"}})),
            (2 << 30, 0)
        );
        let (limited, refused) =
            quota(json!({"storage": {"size": "4Gi"}, "quota": {"backend": "4Gi"}}));
        assert!(limited < 4 << 30);
        assert_eq!(refused, 1);
    }

    #[test]
    fn the_pod_that_seeds_a_recovered_cluster_is_outdated_once_that_is_formed() {
        let template = |kind: &str, status| {
            let mut bootstrap = json!({"type": kind});
            if kind == "Recovery" {
                bootstrap["recovery"] = json!({"backupRef": {"name": "b"}});
            }
            validate(&cluster(json!({"bootstrap": bootstrap}), status)).unwrap().desired.template
        };
        let (forming, formed) = (json!({}), json!({"clusterID": "ab"}));
        assert_eq!(template("New", forming.clone()), template("New", formed.clone()));
        assert_ne!(template("Recovery", forming), template("Recovery", formed.clone()));
        // Nobody else is restarted by it, and no operator that learns of it restarts anybody.
        assert_eq!(template("Recovery", formed.clone()), template("New", formed));
    }

    #[test]
    fn only_what_needs_a_restart_changes_the_template() {
        let template = |spec| validate(&cluster(spec, json!({}))).unwrap().desired.template;
        let base = template(json!({}));
        for same in [
            json!({"replicas": 5}),
            json!({"paused": true}),
            json!({"deletionPolicy": "Delete"}),
            json!({"services": {"client": {"type": "NodePort"}}}),
            json!({"tls": {"extraSANs": ["x"]}}),
            json!({"updateStrategy": {"minReadySeconds": 1}}),
        ] {
            assert_eq!(template(same.clone()), base, "{same}");
        }
        for other in [
            json!({"version": "3.7.4"}),
            json!({"image": {"tag": "x"}}),
            json!({"config": {"logLevel": "Debug"}}),
            json!({"extraArgs": {"metrics": "extensive"}}),
            json!({"resources": {"requests": {"cpu": "1"}}}),
            json!({"quota": {"backend": "1Gi"}}),
            json!({"podTemplate": {"labels": {"a": "b"}}}),
        ] {
            assert_ne!(template(other.clone()), base, "{other}");
        }
    }
}
