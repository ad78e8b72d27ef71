use kube::CustomResourceExt;
use serde_json::json;

use super::*;

mod rules;

fn cluster(spec: Value) -> EtcdCluster {
    serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "default"}, "spec": spec,
    }))
    .unwrap()
}

fn refusal(spec: Value) -> String {
    match cluster(spec).validate_cel() {
        Ok(()) => "accepted".to_owned(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn an_empty_spec_is_a_cluster_of_three_with_tls() {
    let cluster = cluster(json!({}));
    assert_eq!(cluster.spec.replicas, 3);
    assert_eq!(cluster.spec.tls.mode, TlsMode::SelfManaged);
    assert_eq!(cluster.spec.deletion_policy, VolumePolicy::Retain);
    assert_eq!(refusal(json!({})), "accepted");
}

#[test]
fn wrong_values_are_refused_with_the_reason() {
    let table = [
        (json!({"replicas": 2}), "replicas must be 1, 3, 5 or 7"),
        (json!({"replicas": 0}), "replicas must be 1, 3, 5 or 7"),
        (json!({"extraArgs": {"listen-client-urls": "http://0.0.0.0:1"}}), "may not set a flag"),
        (json!({"extraArgs": {"name": "x"}}), "may not set a flag"),
        (json!({"extraArgs": {"peer-cert-file": "x"}}), "may not set a flag"),
        (json!({"extraArgs": {"--metrics": "x"}}), "without dashes"),
        (
            json!({"config": {"heartbeatIntervalMilliseconds": 500}}),
            "at least five times heartbeatIntervalMilliseconds",
        ),
        (json!({"storage": {"size": "ten"}}), "size must be a quantity"),
        (json!({"storage": {"size": "1Mi"}}), "size must be a quantity of at least 16Mi"),
        (json!({"bootstrap": {"type": "Recovery"}}), "recovery is required"),
        (
            json!({"bootstrap": {"type": "Recovery", "recovery": {}}}),
            "exactly one of backupRef and objectStore",
        ),
        (
            json!({"backup": {"store": {"type": "S3", "persistentVolumeClaim": {"claimName": "x"}}}}),
            "s3 is required when type is S3",
        ),
        (
            json!({"podTemplate": {"labels": {"etcd.keelson.dev/serving": "true"}}}),
            "set by the operator",
        ),
    ];
    for (spec, expected) in table {
        let refused = refusal(spec.clone());
        assert!(refused.contains(expected), "{spec}: {refused}");
    }
}

#[test]
fn right_values_are_accepted() {
    for spec in [
        json!({"replicas": 5, "version": "3.6.4", "storage": {"size": "1Gi"}}),
        json!({"extraArgs": {"max-concurrent-streams": "100"}}),
        json!({"bootstrap": {"type": "Recovery", "recovery": {"backupRef": {"name": "b"}}}}),
        json!({"backup": {"store": {"type": "S3", "s3": {"bucket": "backups"}}}}),
        json!({"quota": {"backend": "2Gi"}, "tls": {"mode": "Disabled"}}),
    ] {
        assert_eq!(refusal(spec.clone()), "accepted", "{spec}");
    }
}

#[test]
fn what_cannot_change_is_refused_on_update() {
    let old = cluster(json!({}));
    let table = [
        (
            json!({"bootstrap": {"type": "Recovery", "recovery": {"backupRef": {"name": "b"}}}}),
            "cannot be changed",
        ),
        (json!({"tls": {"mode": "Disabled"}}), "tls.mode cannot be changed"),
        (json!({"storage": {"size": "20Gi"}}), "size cannot be changed"),
        (json!({"storage": {"accessMode": "ReadWriteOncePod"}}), "accessMode cannot be changed"),
    ];
    for (spec, expected) in table {
        let refused = cluster(spec.clone()).validate_cel_update(&old).unwrap_err().to_string();
        assert!(refused.contains(expected), "{spec}: {refused}");
    }
    cluster(json!({"replicas": 5, "version": "3.7.4"})).validate_cel_update(&old).unwrap();
}

#[test]
fn long_names_are_refused() {
    let mut cluster = cluster(json!({}));
    cluster.metadata.name = Some("a".repeat(46));
    assert!(cluster.validate_cel().unwrap_err().to_string().contains("at most 45"));
}

#[test]
fn a_schedule_needs_five_fields() {
    let schedule = |text: &str| -> EtcdBackupSchedule {
        serde_json::from_value(json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdBackupSchedule",
            "metadata": {"name": "nightly"},
            "spec": {"clusterRef": {"name": "main"}, "schedule": text},
        }))
        .unwrap()
    };
    schedule("0 3 * * *").validate_cel().unwrap();
    schedule("@daily").validate_cel().unwrap();
    assert!(
        schedule("every day").validate_cel().unwrap_err().to_string().contains("five cron fields")
    );
}

#[test]
fn each_definition_fits_into_the_annotation_of_a_client_side_apply() {
    for definition in definitions() {
        let bytes = serde_json::to_vec(&definition).unwrap().len();
        assert!(bytes < 256 * 1024, "{:?} has {bytes} bytes", definition.metadata.name);
    }
}

/// A real API server refuses a definition whose defaults do not satisfy its own schema.
#[test]
fn defaults_satisfy_what_their_schema_requires() {
    fn visit(place: &str, schema: &Value) {
        let Some(schema) = schema.as_object() else { return };
        if let (Some(default), Some(required)) = (schema.get("default"), schema.get("required")) {
            for key in required.as_array().unwrap() {
                assert!(
                    default.get(key.as_str().unwrap()).is_some(),
                    "{place}: default lacks {key}"
                );
            }
        }
        for (key, child) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            visit(&format!("{place}.{key}"), child);
        }
    }
    for definition in definitions() {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        visit(&definition.spec.names.kind, &schema["openAPIV3Schema"]);
    }
}

#[test]
fn the_scale_subresource_reads_and_writes_replicas() {
    let definition = EtcdCluster::crd();
    let scale = definition.spec.versions[0].subresources.clone().unwrap().scale.unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.replicas");
    assert_eq!(scale.status_replicas_path, ".status.replicas");
}
