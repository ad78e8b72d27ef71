//! Whoever has lost the lease writes nothing: each kind of write by itself, and whole passes of all
//! controllers that lose it in the middle.

mod api_server;
mod backups;
mod clusters;
mod others;
mod rights;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::{Recorder, Reporter};

use super::*;
use crate::{
    backup,
    cluster::{self, build::member_selector},
    context::{Context, Memory},
    crd::{EtcdBackup, EtcdBackupSchedule, EtcdCluster},
    leader_election::Election,
    metrics::Metrics,
    run::LEASE_NAME,
};
use api_server::ApiServer;

const NAMESPACE: &str = "ns";

fn owner(uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Owner", "name": "owner", "uid": uid})
}

fn seed_pod(server: &ApiServer) -> Pod {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "main-1", "namespace": NAMESPACE, "uid": "u", "ownerReferences": [owner("m")],
        },
    });
    server.put(PODS, "main-1", pod.clone());
    serde_json::from_value(pod).unwrap()
}

#[tokio::test]
async fn every_kind_of_write_is_sent_only_with_the_lease() {
    for verb in ["apply", "create", "apply status", "merge", "delete"] {
        for held in [true, false] {
            let server = ApiServer::default();
            let pod = seed_pod(&server);
            let lease = Lease::without_election();
            let kubernetes = Kubernetes::new(server.client(), lease.clone());
            if !held {
                lease.give_up();
            }
            let result = match verb {
                "apply" => kubernetes.apply(NAMESPACE, &pod).await,
                "create" => kubernetes.create(NAMESPACE, &pod).await.map(drop),
                "apply status" => {
                    kubernetes.apply_status(&pod, &json!({"phase": "Running"})).await.map(drop)
                }
                "merge" => kubernetes.merge_metadata(&pod, json!({"labels": {"a": "b"}})).await,
                _ => kubernetes.delete::<Pod>(NAMESPACE, "main-1", "u").await,
            };
            assert_eq!(server.writes().len(), usize::from(held), "{verb}, held: {held}");
            match result {
                Ok(()) => assert!(held, "{verb} was done without the lease"),
                Err(KubernetesError::LeaseLost { .. }) => assert!(!held, "{verb}"),
                Err(error) => panic!("{verb}: {error}"),
            }
            // Reading is for everybody.
            assert!(kubernetes.list::<Pod>(NAMESPACE, "").await.is_ok());
        }
    }
}

#[tokio::test]
async fn a_write_that_is_under_way_is_given_up_with_the_lease() {
    let server = ApiServer::default();
    let pod = seed_pod(&server);
    let lease = Lease::without_election();
    let kubernetes = Kubernetes::new(server.client(), lease.clone());
    server.hang(lease);
    let error = kubernetes.apply(NAMESPACE, &pod).await.unwrap_err();
    assert!(matches!(error, KubernetesError::LeaseLost { .. }), "{error}");
}

fn context(server: &ApiServer, lease: &Lease) -> Arc<Context> {
    let reporter = Reporter { controller: "etcd-operator".to_owned(), instance: None };
    Arc::new(Context {
        kubernetes: Kubernetes::new(server.client(), lease.clone()),
        recorder: Recorder::new(server.client(), reporter),
        lease: lease.clone(),
        metrics: Metrics::new().unwrap(),
        memory: Memory::default(),
        agent_image: "i:1".to_owned(),
    })
}

const ETCD: &str = "/apis/etcd.keelson.dev/v1alpha1/namespaces/ns";
const CLUSTERS: &str = "/apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdclusters";
const MEMBERS: &str = "/apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdmembers";
const BACKUPS: &str = "/apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdbackups";
const PODS: &str = "/api/v1/namespaces/ns/pods";
const CLAIMS: &str = "/api/v1/namespaces/ns/persistentvolumeclaims";
const SERVICES: &str = "/api/v1/namespaces/ns/services";
const SECRETS: &str = "/api/v1/namespaces/ns/secrets";
const BUDGETS: &str = "/apis/policy/v1/namespaces/ns/poddisruptionbudgets";
const JOBS: &str = "/apis/batch/v1/namespaces/ns/jobs";

fn seed(server: &ApiServer, plural: &str, name: &str, mut object: Value) {
    object["apiVersion"] = json!("etcd.keelson.dev/v1alpha1");
    let metadata = json!({
        "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "generation": 1,
        "creationTimestamp": "2026-11-22T00:00:00Z",
    });
    object["metadata"] = metadata;
    if plural == "etcdmembers" {
        object["metadata"]["labels"] = json!(member_selector("live"));
        object["metadata"]["ownerReferences"] = json!([owner("uid-of-live")]);
    }
    server.put(&format!("{ETCD}/{plural}"), name, object);
}

/// A cluster that is not there yet, one that answers nobody, a backup of it, and a schedule.
fn seed_world(server: &ApiServer) {
    seed(
        server,
        "etcdclusters",
        "main",
        json!({"kind": "EtcdCluster", "spec": {
            "deletionPolicy": "Delete",
        }}),
    );
    let store = json!({"type": "S3", "s3": {"bucket": "backups"}});
    let live = json!({"kind": "EtcdCluster", "spec": {"backup": {"store": store}}});
    seed(server, "etcdclusters", "live", live);
    seed(
        server,
        "etcdmembers",
        "live-1",
        json!({
            "kind": "EtcdMember",
            "spec": {
                "clusterRef": {"name": "live"}, "serial": 1, "initialState": "New",
                "peerURL": "https://x:2380", "claimName": "x",
            },
            "status": {"role": "Voter", "leader": false, "conditions": [{
                "type": "Ready", "status": "True", "reason": "Serving", "message": "",
                "lastTransitionTime": "2026-11-22T00:00:00Z",
            }]},
        }),
    );
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "status": {"podIP": "127.0.0.1"},
        "metadata": {
            "name": "live-1", "namespace": NAMESPACE, "labels": member_selector("live"),
            "ownerReferences": [owner("uid-of-live-1")],
        },
    });
    server.put(PODS, "live-1", pod);
    let reference = json!({"name": "live"});
    seed(
        server,
        "etcdbackups",
        "now",
        json!({"kind": "EtcdBackup", "spec": {
            "clusterRef": reference, "deletionPolicy": "Delete",
        }}),
    );
    seed(
        server,
        "etcdbackupschedules",
        "hourly",
        json!({"kind": "EtcdBackupSchedule", "spec": {
            "clusterRef": reference, "schedule": "@hourly", "immediate": true,
        }}),
    );
}

/// A server with a cluster `main` of this spec, and what an operator that has just started knows.
fn with_cluster(spec: Value) -> (ApiServer, Arc<Context>) {
    let server = ApiServer::default();
    seed(&server, "etcdclusters", "main", json!({"kind": "EtcdCluster", "spec": spec}));
    let context = context(&server, &Lease::without_election());
    (server, context)
}

/// So many passes over the cluster.
async fn passes(server: &ApiServer, context: &Arc<Context>, count: usize) {
    for _ in 0..count {
        reconcile_cluster(server, context).await;
    }
}

/// Passes over the cluster until there is this object.
async fn passes_until(server: &ApiServer, context: &Arc<Context>, collection: &str, name: &str) {
    const MANY: usize = 20;
    for _ in 0..MANY {
        if server.object(collection, name).is_some() {
            return;
        }
        reconcile_cluster(server, context).await;
    }
    panic!("{MANY} passes have not made {collection}/{name}: {:#?}", server.writes());
}

async fn reconcile_cluster(server: &ApiServer, context: &Arc<Context>) {
    if let Some(object) = server.object(CLUSTERS, "main") {
        let cluster: EtcdCluster = serde_json::from_value(object).unwrap();
        // Errors are looked at by what was written.
        drop(cluster::reconcile(Arc::new(cluster), context.clone()).await);
    }
}

async fn reconcile_backup(server: &ApiServer, context: &Arc<Context>) {
    if let Some(object) = server.object(BACKUPS, "now") {
        let backup: EtcdBackup = serde_json::from_value(object).unwrap();
        drop(backup::reconcile(Arc::new(backup), context.clone()).await);
    }
}

/// What an operator does in its life, as far as it goes without kubelets.
async fn live(server: &ApiServer, lease: &Lease) {
    let context = context(server, lease);
    for _ in 0..6 {
        reconcile_cluster(server, &context).await;
    }
    for _ in 0..3 {
        reconcile_backup(server, &context).await;
    }
    let schedule = server.object(&format!("{ETCD}/etcdbackupschedules"), "hourly").unwrap();
    let schedule: EtcdBackupSchedule = serde_json::from_value(schedule).unwrap();
    drop(backup::schedule_controller::reconcile(Arc::new(schedule), context.clone()).await);
    server.mark_deleted(BACKUPS, "now");
    server.mark_deleted(CLUSTERS, "main");
    for _ in 0..2 {
        reconcile_backup(server, &context).await;
        reconcile_cluster(server, &context).await;
    }
}

#[tokio::test]
async fn an_operator_that_loses_its_lease_in_the_middle_of_a_pass_writes_no_more() {
    let server = ApiServer::default();
    seed_world(&server);
    live(&server, &Lease::without_election()).await;
    let writes = server.writes();
    // A life in which something is never written proves nothing about it.
    for part in [
        "PATCH /api/v1/namespaces/ns/services/main-client",
        "PATCH /api/v1/namespaces/ns/secrets/main-client-tls",
        "POST /api/v1/namespaces/ns/secrets",
        "PATCH /apis/policy/v1/namespaces/ns/poddisruptionbudgets/main",
        "PATCH /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdclusters/main/status",
        "PATCH /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdmembers/main-1/status",
        "POST /api/v1/namespaces/ns/persistentvolumeclaims",
        "POST /api/v1/namespaces/ns/pods",
        "POST /apis/events.k8s.io/v1/namespaces/ns/events",
        "POST /apis/batch/v1/namespaces/ns/jobs",
        "PATCH /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdbackups/now/status",
        "POST /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdbackups",
        "PATCH /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdbackupschedules/hourly/status",
        "DELETE /api/v1/namespaces/ns/pods/main-1",
        "DELETE /api/v1/namespaces/ns/persistentvolumeclaims/",
        "DELETE /apis/etcd.keelson.dev/v1alpha1/namespaces/ns/etcdmembers/main-1",
        "DELETE /apis/batch/v1/namespaces/ns/jobs/now",
    ] {
        assert!(writes.iter().any(|write| write.starts_with(part)), "{part}: {writes:#?}");
    }
    for lost_at in 1..=writes.len() {
        let server = ApiServer::default();
        seed_world(&server);
        let lease = Lease::without_election();
        server.take_lease_at(lost_at, lease.clone());
        live(&server, &lease).await;
        assert!(!lease.is_held());
        let written = server.writes();
        assert_eq!(written.len(), lost_at, "after the lease was lost: {written:#?}");
    }
}

#[tokio::test]
async fn a_lease_is_renewed_by_one_write_and_looked_at_again_once_somebody_else_wrote_it() {
    let server = ApiServer::default();
    let mut election = Election::new(server.client(), NAMESPACE, LEASE_NAME, "me".to_owned());
    election.win().await;
    let requests = || {
        let rights = server.take_rights();
        rights.into_iter().map(|(_, _, verb)| verb).collect::<Vec<_>>()
    };
    assert_eq!(requests(), ["create", "get"]);
    assert!(election.attempt().await);
    assert_eq!(requests(), ["update"]);
    server.refuse_next_update();
    assert!(election.attempt().await, "it is still ours");
    assert_eq!(requests(), ["get", "update"]);
    let place = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";
    let mut object = server.object(place, LEASE_NAME).unwrap();
    object["spec"]["holderIdentity"] = json!("other");
    server.put(place, LEASE_NAME, object);
    server.refuse_next_update();
    assert!(!election.attempt().await, "another has it");
}

/// The test of whole lives covers the writes that it knows of; this one, that there are no others.
#[test]
fn only_this_file_and_the_election_can_write() {
    fn visit(directory: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                visit(&path, found);
            } else if std::fs::read_to_string(&path).unwrap().contains(&["A", "pi::"].concat()) {
                found.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    let mut found = Vec::new();
    visit(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    // `run.rs` watches, and kubectl's plugin reads with the user's rights.
    assert_eq!(found, ["kubectl-etcd.rs", "kubernetes.rs", "leader_election.rs", "run.rs"]);
}
