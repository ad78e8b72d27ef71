use serde_json::{Value, json};
use types::{ClusterId, MemberId};

use super::*;
use crate::{cluster::validate::validate, crd::EtcdCluster};

fn validated(spec: Value) -> Validated {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "c0ffee00-1"}, "spec": spec,
    }))
    .unwrap();
    validate(&cluster).unwrap()
}

fn member_pod(new_cluster: bool) -> MemberPod {
    MemberPod {
        serial: Serial(1),
        owner_uid: "member-uid".to_owned(),
        new_cluster,
        initial_cluster: "main-1=https://main-1.main-peers.ns.svc:2380".to_owned(),
        token: "token".to_owned(),
        expected: (!new_cluster).then_some((ClusterId(0xab), MemberId(0xcd))),
        restore: None,
    }
}

fn arguments(spec: Value, new_cluster: bool) -> Vec<String> {
    let pod = pod(&validated(spec), &member_pod(new_cluster));
    pod.spec.unwrap().containers[0].args.clone().unwrap()
}

#[test]
fn a_member_gets_etcds_ordinary_flags() {
    assert_eq!(
        arguments(json!({"storage": {"size": "4Gi"}, "config": {"logLevel": "Warn"}}), true),
        [
            "--name=main-1",
            "--data-dir=/var/lib/etcd/data",
            "--listen-client-urls=https://0.0.0.0:2379",
            "--advertise-client-urls=https://main-1.main-peers.ns.svc:2379",
            "--listen-peer-urls=https://0.0.0.0:2380",
            "--initial-advertise-peer-urls=https://main-1.main-peers.ns.svc:2380",
            "--listen-metrics-urls=http://0.0.0.0:2381",
            "--initial-cluster=main-1=https://main-1.main-peers.ns.svc:2380",
            "--initial-cluster-token=token",
            "--initial-cluster-state=new",
            "--quota-backend-bytes=3221225472",
            "--cert-file=/etc/etcd/tls/server.crt",
            "--key-file=/etc/etcd/tls/server.key",
            "--trusted-ca-file=/etc/etcd/tls/client-ca.crt",
            "--client-cert-auth=true",
            "--peer-cert-file=/etc/etcd/tls/peer.crt",
            "--peer-key-file=/etc/etcd/tls/peer.key",
            "--peer-trusted-ca-file=/etc/etcd/tls/peer-ca.crt",
            "--peer-client-cert-auth=true",
            "--log-level=warn",
        ]
    );
}

#[test]
fn a_pod_says_whether_it_starts_the_cluster() {
    let validated = validated(json!({"storage": {"size": "4Gi"}}));
    for new_cluster in [true, false] {
        let pod = pod(&validated, &member_pod(new_cluster));
        assert_eq!(starts_cluster(&pod), new_cluster);
    }
}

#[test]
fn our_server_is_told_which_identity_to_expect_and_go_etcd_is_not() {
    let ours = arguments(json!({}), false);
    assert!(ours.contains(&"--expect-cluster-id=ab".to_owned()), "{ours:?}");
    assert!(ours.contains(&"--expect-member-id=cd".to_owned()), "{ours:?}");
    assert!(ours.contains(&"--initial-cluster-state=existing".to_owned()), "{ours:?}");
    let theirs = arguments(json!({"image": {"distribution": "Etcd"}}), false);
    assert!(!theirs.iter().any(|flag| flag.starts_with("--expect")), "{theirs:?}");
}

#[test]
fn without_tls_no_certificate_is_mounted_or_named() {
    let spec = json!({"tls": {"mode": "Disabled"}});
    assert!(!arguments(spec.clone(), true).iter().any(|flag| flag.contains("cert")));
    let pod = pod(&validated(spec), &member_pod(true));
    let volumes = pod.spec.unwrap().volumes.unwrap();
    assert_eq!(volumes.len(), 1);
}

#[test]
fn a_pod_meets_the_restricted_security_standard() {
    let pod = serde_json::to_value(pod(&validated(json!({})), &member_pod(true))).unwrap();
    let security = &pod["spec"]["securityContext"];
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
}

#[test]
fn a_pod_starts_outside_the_services_and_belongs_to_its_member() {
    let pod = pod(&validated(json!({"podTemplate": {"labels": {"team": "a"}}})), &member_pod(true));
    let labels = pod.metadata.labels.unwrap();
    assert_eq!(labels[SERVING_LABEL], "false");
    assert_eq!(labels["team"], "a");
    let owner = &pod.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("EtcdMember", "member-uid"));
}

/// Each preference stands by itself: nodes without zones must not make hosts forgotten, as they did
/// while both were soft spread constraints.
#[test]
fn members_keep_away_from_each_others_hosts_and_zones_unless_the_user_says_where_they_go() {
    let placed = |spec: Value| {
        let pod = serde_json::to_value(pod(&validated(spec), &member_pod(true))).unwrap();
        let affinity = pod["spec"]["affinity"].clone();
        (affinity, pod["spec"]["topologySpreadConstraints"].clone())
    };
    let (affinity, spread) = placed(json!({}));
    let terms = &affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    let keys: Vec<_> = terms
        .as_array()
        .unwrap()
        .iter()
        .map(|term| term["podAffinityTerm"]["topologyKey"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    assert_eq!(terms[0]["podAffinityTerm"]["labelSelector"]["matchLabels"][CLUSTER_LABEL], "main");
    assert_eq!(spread, Value::Null);

    let nodes = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let (affinity, _) = placed(json!({"podTemplate": {"affinity": nodes}}));
    assert!(affinity["nodeAffinity"].is_object() && affinity["podAntiAffinity"].is_object());

    let (affinity, spread) = placed(json!({"podTemplate": {"topologySpreadConstraints": []}}));
    assert_eq!((affinity, spread), (Value::Null, json!([])));
    let own = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    assert_eq!(placed(json!({"podTemplate": {"affinity": own.clone()}})).0, own);
}

#[test]
fn clients_reach_only_members_that_serve() {
    let service = client_service(&validated(json!({})));
    assert_eq!(service.metadata.name.as_deref(), Some("main-client"));
    let selector = service.spec.unwrap().selector.unwrap();
    assert_eq!(
        selector_text(&selector),
        "etcd.keelson.dev/cluster=main,etcd.keelson.dev/component=server,etcd.keelson.dev/serving=true"
    );
    let peers = peer_service(&validated(json!({}))).spec.unwrap();
    assert_eq!(peers.publish_not_ready_addresses, Some(true));
    assert!(!peers.selector.unwrap().contains_key(SERVING_LABEL));
}

#[test]
fn the_budget_keeps_the_quorum_of_those_that_vote() {
    let available = |replicas: i32, electorate: usize| {
        let budget = pod_disruption_budget(&validated(json!({"replicas": replicas})), electorate)?;
        serde_json::to_value(budget.spec?.min_available).ok()
    };
    assert_eq!(available(3, 3), Some(json!(2)));
    // Three bear the loss of one, also while there are to be five; four need three.
    assert_eq!(available(5, 3), Some(json!(2)));
    assert_eq!(available(5, 4), Some(json!(3)));
    assert_eq!(available(3, 5), Some(json!(3)));
    assert_eq!(available(3, 1), Some(json!(2)));
    assert_eq!(available(1, 1), None);
}

#[test]
fn a_claim_has_no_owner_that_could_take_it_along_and_a_name_of_its_own() {
    let claim =
        claim(&validated(json!({"storage": {"size": "4Gi", "className": "fast"}})), Serial(2));
    assert_eq!(claim.metadata.owner_references, None);
    assert_eq!(claim.metadata.name.as_deref(), Some("main-2-c0ffee00"));
    let spec = serde_json::to_value(claim.spec).unwrap();
    assert_eq!(
        spec,
        json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": "4Gi"}},
        })
    );
}
