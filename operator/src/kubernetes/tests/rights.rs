//! The roles of the installation give what the operator uses, and nothing that it does not use.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future;
use k8s_openapi::api::{core::v1::ObjectReference, rbac::v1::PolicyRule};
use kube::runtime::events::{Event, EventType};

use super::{api_server::Right, *};
use crate::{
    cluster::{
        act::Hands,
        model::{Observed, Serial},
        observe::Observation,
        plan::Ensure,
        validate,
    },
    etcd::GrpcAdmin,
    manifests::{cluster_rules, leader_rules, node_rules, secret_rules},
    run::controllers,
};

/// Nothing here takes long; a test that hangs has to say so.
const LIMIT: Duration = Duration::from_secs(60);

fn given(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    assert_ne!(verb, "*", "{rule:?}");
                    rights.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    rights
}

/// A cluster that wants no budget and has one, in whose way is the member of another, and a schedule with a failed backup that it does not keep.
fn seed_more(server: &ApiServer) {
    let spec = json!({"disruption": {"podDisruptionBudget": "Disabled"}});
    seed(server, "etcdclusters", "unprotected", json!({"kind": "EtcdCluster", "spec": spec}));
    let metadata = json!({
        "name": "unprotected", "namespace": NAMESPACE, "uid": "budget",
        "ownerReferences": [owner("uid-of-unprotected")],
    });
    server.put(BUDGETS, "unprotected", json!({"metadata": metadata}));
    let member = json!({
        "kind": "EtcdMember",
        "spec": {
            "clusterRef": {"name": "unprotected"}, "serial": 1, "initialState": "New",
            "peerURL": "https://x:2380", "claimName": "x",
        },
    });
    seed(server, "etcdmembers", "unprotected-1", member);
    let spec = json!({
        "clusterRef": {"name": "live"}, "schedule": "@yearly", "failedHistoryLimit": 0,
    });
    seed(
        server,
        "etcdbackupschedules",
        "strict",
        json!({"kind": "EtcdBackupSchedule", "spec": spec}),
    );
    let failed = json!({"type": "Failed", "status": "True", "reason": "JobFailed", "message": "",
        "lastTransitionTime": "2026-11-22T00:00:00Z"});
    let backup = json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdBackup",
        "metadata": {
            "name": "strict-1", "namespace": NAMESPACE, "uid": "failed",
            "creationTimestamp": "2026-11-22T00:00:00Z",
            "labels": {"etcd.keelson.dev/schedule": "strict"},
        },
        "spec": {"clusterRef": {"name": "live"}}, "status": {"conditions": [failed]},
    });
    server.put(BACKUPS, "strict-1", backup);
}

/// Lets a member's Pod into the Service: only a cluster that answers comes so far by itself.
async fn let_in(server: &ApiServer, context: &Context) {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "metadata": {"name": "live", "namespace": NAMESPACE, "uid": "uid-of-live"}, "spec": {},
    }))
    .unwrap();
    let validated = validate::validate(&cluster).unwrap();
    let pod = server.object(PODS, "live-1").unwrap();
    let mut observation = Observation {
        observed: Observed::default(),
        objects: BTreeMap::new(),
        pods: [(Serial(1), serde_json::from_value(pod).unwrap())].into(),
        reports: BTreeMap::new(),
        addresses: BTreeMap::new(),
    };
    let etcd = GrpcAdmin::new(None);
    let hands = Hands {
        kubernetes: &context.kubernetes,
        etcd: &etcd,
        lease: &context.lease,
        validated: &validated,
        authorities: None,
        agent_image: "i:1",
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let ensure = Ensure::Serving { serial: Serial(1), pod_uid: "u".to_owned(), serving: true };
    hands.ensure(&cluster, &mut observation, &ensure).await.unwrap();
}

/// The same event twice is one that is counted.
async fn say_it_twice(context: &Context) {
    let event = Event {
        type_: EventType::Normal,
        reason: "Said".to_owned(),
        note: None,
        action: "Say".to_owned(),
        secondary: None,
    };
    let about = ObjectReference {
        namespace: Some(NAMESPACE.to_owned()),
        name: Some("live".to_owned()),
        ..ObjectReference::default()
    };
    context.publish(&event, &about).await;
    context.publish(&event, &about).await;
}

/// The election, as the process that wins it and, under the same name, renews it.
async fn elect(server: &ApiServer) {
    for _ in 0..2 {
        let identity = "me".to_owned();
        Election::new(server.client(), NAMESPACE, LEASE_NAME, identity).win().await;
    }
}

#[tokio::test]
async fn the_roles_give_what_the_operator_uses_and_nothing_else() {
    let all: Vec<PolicyRule> =
        [cluster_rules(), secret_rules(), leader_rules(LEASE_NAME), node_rules()].concat();
    let given = given(&all);
    let server = ApiServer::default();
    seed_world(&server);
    seed_more(&server);
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    elect(&server).await;
    let_in(&server, &context).await;
    say_it_twice(&context).await;
    // The controllers list and watch, and call what reconciles.
    let running = controllers(&server.client(), Some(NAMESPACE), &context, 4);
    let watched = async {
        let watches = |rights: &BTreeSet<Right>| {
            rights.iter().filter(|right| right.2 == "watch").cloned().collect::<BTreeSet<_>>()
        };
        while watches(&server.rights()) != watches(&given) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        waited = tokio::time::timeout(LIMIT, watched) => {
            assert!(waited.is_ok(), "{given:#?} are given, and used are only {:#?}", server.rights());
        }
        (ended, ..) = future::select_all(running) => panic!("a controller ended: {ended:?}"),
    }
    for name in ["unprotected", "main", "live"] {
        for _ in 0..6 {
            let object = server.object(CLUSTERS, name).unwrap();
            let cluster: EtcdCluster = serde_json::from_value(object).unwrap();
            drop(cluster::reconcile(Arc::new(cluster), context.clone()).await);
        }
    }
    let strict = server.object(&format!("{ETCD}/etcdbackupschedules"), "strict").unwrap();
    let strict: EtcdBackupSchedule = serde_json::from_value(strict).unwrap();
    backup::schedule_controller::reconcile(Arc::new(strict), context.clone()).await.unwrap();
    live(&server, &lease).await;

    let used = server.rights();
    let missing: Vec<_> = used.difference(&given).collect();
    assert!(missing.is_empty(), "used, and not given: {missing:#?}");
    let surplus: Vec<_> = given.difference(&used).collect();
    assert!(surplus.is_empty(), "given, and not used: {surplus:#?}");
}
