//! Every rule of every definition refuses what it is there to refuse, and only that: one row per
//! rule, and a rule without a row fails the test.

use std::collections::BTreeSet;

use kube::{
    CustomResourceExt,
    core::cel::{validate_cel, validate_cel_update},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::super::*;

/// What a rule is known by: its kind, the path of its field, and what it says.
type Rule = (String, String, String);

/// Puts a store where an object describes one.
type Put<'a> = &'a dyn Fn(Value) -> Value;

/// A rule, with an object that breaks it and one that just does not.
struct Row {
    kind: &'static str,
    path: String,
    message: &'static str,
    /// The object before, for rules about changes.
    old: Option<Value>,
    refused: Value,
    accepted: Value,
}

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "main", "namespace": "default"}, "spec": spec,
    })
}

fn cluster(spec: Value) -> Value {
    object("EtcdCluster", spec)
}

fn backup(attempts: i32) -> Value {
    object("EtcdBackup", json!({"clusterRef": {"name": "main"}, "attempts": attempts}))
}

fn schedule(cron: &str) -> Value {
    object("EtcdBackupSchedule", json!({"clusterRef": {"name": "main"}, "schedule": cron}))
}

fn member(serial: i64) -> Value {
    object(
        "EtcdMember",
        json!({
            "clusterRef": {"name": "main"}, "serial": serial, "initialState": "New",
            "peerURL": "https://x:2380", "claimName": "x",
        }),
    )
}

fn named(mut object: Value, name: &str) -> Value {
    object["metadata"]["name"] = json!(name);
    object
}

fn rows() -> Vec<Row> {
    let mut rows = stores();
    rows.extend(names());
    rows.extend(changes());
    rows.extend(flags());
    rows.extend(values());
    rows.extend(births());
    rows
}

fn row(
    kind: &'static str,
    path: &str,
    message: &'static str,
    refused: Value,
    accepted: Value,
) -> Row {
    Row { kind, path: path.to_owned(), message, old: None, refused, accepted }
}

/// The rules of a store, wherever one is described.
fn stores() -> Vec<Row> {
    let recovery = |store: Value| {
        cluster(json!({"bootstrap": {"type": "Recovery", "recovery": {
            "objectStore": {"manifest": "m", "store": store},
        }}}))
    };
    let in_backup = |store: Value| {
        let mut object = backup(3);
        object["spec"]["store"] = store;
        object
    };
    let in_status = |store: Value| {
        let mut object = backup(3);
        object["status"] = json!({ "store": store });
        object
    };
    let in_schedule = |store: Value| {
        let mut object = schedule("@daily");
        object["spec"]["template"] = json!({ "store": store });
        object
    };
    let in_cluster = |store: Value| cluster(json!({"backup": {"store": store}}));
    let places: [(&str, &str, Put<'_>); 5] = [
        ("EtcdBackup", "spec.store", &in_backup),
        ("EtcdBackup", "status.store", &in_status),
        ("EtcdBackupSchedule", "spec.template.store", &in_schedule),
        ("EtcdCluster", "spec.backup.store", &in_cluster),
        ("EtcdCluster", "spec.bootstrap.recovery.objectStore.store", &recovery),
    ];
    let bucket = json!({"type": "S3", "s3": {"bucket": "backups"}});
    let claim = |prefix: &str| {
        let claim = json!({"claimName": "x", "prefix": prefix});
        json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": claim})
    };
    let mut rows = Vec::new();
    for (kind, path, put) in places {
        rows.push(row(
            kind,
            path,
            "s3 is required when type is S3 and not allowed otherwise",
            put(json!({"type": "S3"})),
            put(bucket.clone()),
        ));
        rows.push(row(
            kind,
            path,
            "persistentVolumeClaim is required when type is PersistentVolumeClaim and not allowed otherwise",
            put(json!({"type": "PersistentVolumeClaim"})),
            put(claim("")),
        ));
        let prefix = format!("{path}.persistentVolumeClaim.prefix");
        let message = "prefix must be a relative path without '..'";
        for wrong in ["/absolute", "a/../../b"] {
            rows.push(row(kind, &prefix, message, put(claim(wrong)), put(claim("a/b"))));
        }
    }
    rows
}

fn names() -> Vec<Row> {
    let long = |length: usize| "n".repeat(length);
    let label = "the name must be a DNS label of at most 45 characters that starts with a letter, because members and Services are named after it";
    let cluster = || cluster(json!({}));
    let refused = |name: &str| named(cluster(), name);
    let mut rows: Vec<Row> = ["1a", "a.b", "a-"]
        .into_iter()
        .map(|name| row("EtcdCluster", "", label, refused(name), refused("a-1")))
        .collect();
    rows.push(row("EtcdCluster", "", label, refused(&long(46)), refused(&long(45))));
    rows.push(row(
        "EtcdBackup",
        "",
        "the name must have at most 52 characters, because the Job is named after it",
        named(backup(3), &long(53)),
        named(backup(3), &long(52)),
    ));
    rows.push(row(
        "EtcdBackupSchedule",
        "",
        "the name must have at most 41 characters, because each backup is named <schedule>-<unix time>",
        named(schedule("@daily"), &long(42)),
        named(schedule("@daily"), &long(41)),
    ));
    rows
}

/// What may not be changed, added or taken away.
fn changes() -> Vec<Row> {
    let storage = |storage: Value| cluster(json!({ "storage": storage }));
    let recovery = |name: &str| {
        let source = json!({"backupRef": {"name": name}});
        cluster(json!({"bootstrap": {"type": "Recovery", "recovery": source}}))
    };
    let class = |name: &str| storage(json!({"className": name}));
    let none = || storage(json!({}));
    let class_stays = "className cannot be changed";
    let born = "bootstrap describes how the cluster was born and cannot be changed";
    let table = [
        ("EtcdCluster", "spec.bootstrap", born, recovery("a"), recovery("b")),
        ("EtcdCluster", "spec.bootstrap", born, cluster(json!({})), recovery("b")),
        (
            "EtcdCluster",
            "spec.tls.mode",
            "tls.mode cannot be changed on a running cluster",
            cluster(json!({})),
            cluster(json!({"tls": {"mode": "Disabled"}})),
        ),
        ("EtcdCluster", "spec.storage", class_stays, class("fast"), class("slow")),
        ("EtcdCluster", "spec.storage", class_stays, class("fast"), none()),
        ("EtcdCluster", "spec.storage", class_stays, none(), class("fast")),
        (
            "EtcdCluster",
            "spec.storage.size",
            "size cannot be changed",
            none(),
            storage(json!({"size": "20Gi"})),
        ),
        (
            "EtcdCluster",
            "spec.storage.accessMode",
            "accessMode cannot be changed",
            none(),
            storage(json!({"accessMode": "ReadWriteOncePod"})),
        ),
        (
            "EtcdBackup",
            "spec",
            "a backup cannot be changed; create another one",
            backup(3),
            backup(4),
        ),
        (
            "EtcdMember",
            "spec",
            "members are managed by the operator and cannot be edited",
            member(1),
            member(2),
        ),
    ];
    let row = |(kind, path, message, old, refused): (_, &str, _, Value, _)| {
        let (path, accepted) = (path.to_owned(), old.clone());
        Row { kind, path, message, old: Some(old), refused, accepted }
    };
    table.into_iter().map(row).collect()
}

fn flags() -> Vec<Row> {
    let reserved = "extraArgs may not set a flag that the operator sets: name, data-dir, wal-dir, config-file, listen-*, advertise-*, initial-*, discovery*, certificates, force-new-cluster, or a flag that has its own field in config, quota or tls";
    let dashes = "extraArgs are flag names without dashes in front, such as max-concurrent-streams";
    let flags = |flag: &str| cluster(json!({"extraArgs": {flag: "x"}}));
    let of = |message, flag| {
        row("EtcdCluster", "spec.extraArgs", message, flags(flag), flags("max-concurrent-streams"))
    };
    let mut rows = vec![of(dashes, "--metrics")];
    for flag in [
        "name",
        "data-dir",
        "listen-client-urls",
        "advertise-client-urls",
        "initial-cluster-state",
        "discovery-srv",
        "peer-cert-file",
        "key-file",
        "peer-trusted-ca-file",
        "quota-backend-bytes",
        "strict-reconfig-check",
        "expect-member-id",
        "auto-compaction-mode",
    ] {
        rows.push(of(reserved, flag));
    }
    rows
}

fn values() -> Vec<Row> {
    let of = |path: &str, message, refused: Value, accepted: Value| {
        row("EtcdCluster", path, message, cluster(refused), cluster(accepted))
    };
    let replicas = "replicas must be 1, 3, 5 or 7: an even number tolerates no more failures than the odd number below it";
    vec![
        of("spec.replicas", replicas, json!({"replicas": 4}), json!({"replicas": 7})),
        of(
            "spec.storage.size",
            "size must be a quantity of at least 16Mi, such as 10Gi",
            json!({"storage": {"size": "16777215"}}),
            json!({"storage": {"size": "16Mi"}}),
        ),
        of(
            "spec.quota.backend",
            "backend must be a positive quantity such as 8Gi",
            json!({"quota": {"backend": "0"}}),
            json!({"quota": {"backend": "1e9"}}),
        ),
        of(
            "spec.config",
            "electionTimeoutMilliseconds (default 1000) must be at least five times heartbeatIntervalMilliseconds (default 100)",
            json!({"config": {"heartbeatIntervalMilliseconds": 201}}),
            json!({"config": {"heartbeatIntervalMilliseconds": 200}}),
        ),
        of(
            "spec.config.autoCompaction",
            "retention is a number of revisions in mode Revision",
            json!({"config": {"autoCompaction": {"mode": "Revision", "retention": "1h"}}}),
            json!({"config": {"autoCompaction": {"mode": "Revision", "retention": "1000"}}}),
        ),
        of(
            "spec.tls.extraSANs",
            "extraSANs are DNS names, such as *.example.com, and IP addresses",
            json!({"tls": {"extraSANs": ["b\u{fc}cher.example"]}}),
            json!({"tls": {"extraSANs": ["*.example.com", "10.0.0.1", "fd00::1", "a_b"]}}),
        ),
        of(
            "spec.podTemplate.labels",
            "labels of etcd.keelson.dev/ and app.kubernetes.io/ are set by the operator",
            json!({"podTemplate": {"labels": {"app.kubernetes.io/name": "x"}}}),
            json!({"podTemplate": {"labels": {"example.com/name": "x"}}}),
        ),
        of(
            "spec.podTemplate.annotations",
            "annotations of etcd.keelson.dev/ are set by the operator",
            json!({"podTemplate": {"annotations": {"etcd.keelson.dev/template": "x"}}}),
            json!({"podTemplate": {"annotations": {"app.kubernetes.io/name": "x"}}}),
        ),
        row(
            "EtcdBackupSchedule",
            "spec.schedule",
            "schedule must be five cron fields or one of @hourly, @daily, @weekly, @monthly, @yearly",
            schedule("0 3 * *"),
            schedule("0 3 * * *"),
        ),
    ]
}

fn births() -> Vec<Row> {
    let of = |path: &str, message, refused: Value, accepted: Value| {
        row("EtcdCluster", path, message, cluster(refused), cluster(accepted))
    };
    let recovery = |source: Value| json!({"bootstrap": {"type": "Recovery", "recovery": source}});
    let name = json!({"name": "b"});
    let store = json!({"type": "S3", "s3": {"bucket": "backups"}});
    let source = json!({"backupRef": name, "objectStore": {"manifest": "m", "store": store}});
    vec![
        of(
            "spec.bootstrap",
            "recovery is required when type is Recovery and not allowed otherwise",
            json!({"bootstrap": {"type": "New", "recovery": {"backupRef": name}}}),
            recovery(json!({"backupRef": name})),
        ),
        of(
            "spec.bootstrap.recovery",
            "give exactly one of backupRef and objectStore",
            recovery(source),
            recovery(json!({"backupRef": name})),
        ),
    ]
}

/// What the rules say of an object: the path of the field and the message, for each that is broken.
fn said(kind: &str, object: &Value, old: Option<&Value>) -> Vec<(String, String)> {
    fn check<K>(object: &Value, old: Option<&Value>) -> Vec<(String, String)>
    where
        K: CustomResourceExt + Serialize + DeserializeOwned,
    {
        let read = |value: &Value| serde_json::from_value::<K>(value.clone()).unwrap();
        let checked = match old {
            Some(old) => validate_cel_update(&read(object), &read(old)),
            None => validate_cel(&read(object)),
        };
        let errors = checked.err().map(|errors| errors.into_vec()).unwrap_or_default();
        errors.into_iter().map(|error| (error.field_path, error.message)).collect()
    }
    match kind {
        "EtcdCluster" => check::<EtcdCluster>(object, old),
        "EtcdMember" => check::<EtcdMember>(object, old),
        "EtcdBackup" => check::<EtcdBackup>(object, old),
        "EtcdBackupSchedule" => check::<EtcdBackupSchedule>(object, old),
        other => panic!("{other} is not known here"),
    }
}

/// The rules in the definitions as they are installed.
fn rules() -> BTreeSet<Rule> {
    fn visit(kind: &str, path: &str, schema: &Value, rules: &mut BTreeSet<Rule>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().expect("a rule says what is wrong");
            rules.insert((kind.to_owned(), path.to_owned(), message.to_owned()));
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            visit(kind, &path, child, rules);
        }
        for part in ["items", "additionalProperties"] {
            if let Some(child) = schema.get(part).filter(|child| child.is_object()) {
                visit(kind, &format!("{path}[]"), child, rules);
            }
        }
    }
    let mut rules = BTreeSet::new();
    for definition in definitions() {
        for version in &definition.spec.versions {
            let schema = serde_json::to_value(&version.schema).unwrap();
            visit(&definition.spec.names.kind, "", &schema["openAPIV3Schema"], &mut rules);
        }
    }
    rules
}

#[test]
fn every_rule_refuses_what_it_is_there_for_and_nothing_else() {
    let mut covered = BTreeSet::new();
    for row in rows() {
        let expected = (row.path.clone(), row.message.to_owned());
        let refused = said(row.kind, &row.refused, row.old.as_ref());
        assert_eq!(refused, [expected], "{}: {}", row.kind, row.refused);
        let accepted = said(row.kind, &row.accepted, row.old.as_ref());
        assert!(accepted.is_empty(), "{}: {}: {accepted:?}", row.kind, row.accepted);
        covered.insert((row.kind.to_owned(), row.path, row.message.to_owned()));
    }
    let rules = rules();
    let missing: Vec<&Rule> = rules.difference(&covered).collect();
    assert!(missing.is_empty(), "no row breaks these rules: {missing:#?}");
    assert!(covered.is_subset(&rules));
    assert!(rules.len() > 30, "only {} rules were found", rules.len());
}
