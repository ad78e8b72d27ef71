//! The installation agrees with the Rust types: what is generated has not drifted, what is written
//! by hand is accepted by the CRDs, and each chart's values agree with its schema.
//!
//! `UPDATE_EXPECT=1 cargo test -p operator` writes the generated files again.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use operator::{
    crd::{EtcdBackup, EtcdBackupSchedule, EtcdCluster},
    manifests::generated,
};
use serde::Deserialize;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

#[test]
fn generated_files_have_not_drifted() {
    let update = std::env::var("UPDATE_EXPECT").is_ok_and(|value| value == "1");
    for file in generated().unwrap() {
        let path = root().join(&file.path);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &file.content).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == file.content,
            "{} has drifted; run UPDATE_EXPECT=1 cargo test -p operator",
            file.path
        );
    }
}

#[test]
fn nothing_else_lies_among_the_generated_definitions() {
    let known: Vec<PathBuf> =
        generated().unwrap().iter().map(|file| root().join(&file.path)).collect();
    for directory in ["manifests/crds", "charts/etcd-operator/templates/crds"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            assert!(known.contains(&path), "{} is not generated", path.display());
        }
    }
}

#[test]
fn every_example_is_accepted_by_the_rules_of_its_kind() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("manifests/examples")).unwrap() {
        let path = entry.unwrap().path();
        for document in documents(&path) {
            let name = path.display();
            let result = match document["kind"].as_str().unwrap() {
                "EtcdCluster" => {
                    serde_json::from_value::<EtcdCluster>(document).unwrap().validate_cel()
                }
                "EtcdBackup" => {
                    serde_json::from_value::<EtcdBackup>(document).unwrap().validate_cel()
                }
                "EtcdBackupSchedule" => {
                    serde_json::from_value::<EtcdBackupSchedule>(document).unwrap().validate_cel()
                }
                "Secret" | "PersistentVolumeClaim" => Ok(()),
                other => panic!("{name}: {other} is not expected among the examples"),
            };
            assert!(result.is_ok(), "{name}: {}", result.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 8, "only {seen} examples");
}

#[test]
fn the_values_of_each_chart_agree_with_its_schema() {
    for chart in ["etcd-operator", "etcd-cluster"] {
        let directory = root().join("charts").join(chart);
        let values = documents(&directory.join("values.yaml")).remove(0);
        let schema: Value = serde_json::from_str(
            &fs::read_to_string(directory.join("values.schema.json")).unwrap(),
        )
        .unwrap();
        agree(chart, &values, &schema);
    }
}

/// Every value is described, and everything described has a default that shows it.
fn agree(place: &str, values: &Value, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (key, value) in values.as_object().unwrap() {
        assert!(properties.contains_key(key), "{place}.{key} is not in the schema");
        agree(&format!("{place}.{key}"), value, &properties[key]);
    }
    for key in properties.keys().filter(|key| *key != "global") {
        assert!(values.get(key).is_some(), "{place}.{key} is in the schema and has no default");
    }
}

/// Every `.Values.x.y` in a template names a value that exists.
#[test]
fn templates_use_values_that_exist() {
    for chart in ["etcd-operator", "etcd-cluster"] {
        let directory = root().join("charts").join(chart);
        let values = documents(&directory.join("values.yaml")).remove(0);
        for entry in fs::read_dir(directory.join("templates")).unwrap() {
            let path = entry.unwrap().path();
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for used in text.split(".Values.").skip(1) {
                let end = used
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '.')
                    .unwrap_or(used.len());
                let found = used[..end].split('.').try_fold(&values, |value, key| value.get(key));
                assert!(
                    found.is_some(),
                    "{}: .Values.{} has no default",
                    path.display(),
                    &used[..end]
                );
            }
        }
    }
}

/// An alert on a metric that does not exist never fires.
#[test]
fn alerts_are_off_by_default_and_name_metrics_that_exist() {
    let chart = root().join("charts/etcd-operator");
    let values = documents(&chart.join("values.yaml")).remove(0);
    assert_eq!(values["metrics"]["prometheusRule"], false);
    let text = fs::read_to_string(chart.join("templates/alerts.yaml")).unwrap();
    assert!(text.starts_with("{{- if .Values.metrics.prometheusRule }}"), "{text}");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("{{"));
    let plain: Vec<String> = lines.map(|line| line.replace("{{", "").replace("}}", "")).collect();
    let rule: Value = serde_yaml::from_str(&plain.join("\n")).unwrap();
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let alerts: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();

    let sources = ["operator/src/metrics.rs", "server/src/ops/metrics.rs"]
        .map(|path| fs::read_to_string(root().join(path)).unwrap());
    let mut used = Vec::new();
    for alert in &alerts {
        let expression = alert["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics: Vec<&str> = words
            .filter(|word| word.starts_with("etcd_") || word.starts_with("keelson_"))
            .collect();
        assert_eq!(metrics.len(), 1, "{expression}");
        let quoted = format!("\"{}\"", metrics[0]);
        let exists = sources.iter().any(|source| source.contains(&quoted));
        assert!(exists, "{expression}: there is no such metric");
        used.push(metrics[0]);
    }
    for wanted in [
        "etcd_server_has_leader",
        "etcd_debugging_server_alarms",
        "keelson_corruption_checks_incomplete_in_a_row",
        "etcd_operator_cluster_last_backup_timestamp_seconds",
    ] {
        assert!(used.contains(&wanted), "{wanted} is in no alert: {used:?}");
    }
    assert!(alerts.len() >= 7, "{} alerts", alerts.len());
}
