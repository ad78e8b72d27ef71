//! What the operator does not do to a cluster: anything while it is paused, a CA anew once it is formed, and
//! look at it all the time while nothing happens.

use std::time::Duration;

use futures_util::future;
use kube::runtime::controller;

use super::*;
use crate::run::controllers;

fn condition_of(server: &ApiServer, kind: &str) -> Value {
    let object = server.object(CLUSTERS, "main").expect("the cluster is there");
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == kind).unwrap_or_default()
}

fn change(server: &ApiServer, place: &str, name: &str, change: impl FnOnce(&mut Value)) {
    let mut object = server.object(place, name).unwrap();
    change(&mut object);
    server.put(place, name, object);
}

#[tokio::test]
async fn of_a_paused_cluster_only_the_status_is_written() {
    let lease = Lease::without_election();
    let (server, context) = with_cluster(json!({"paused": true, "deletionPolicy": "Delete"}));
    let status_only = |server: &ApiServer, since: usize| {
        let writes = server.writes().split_off(since);
        assert!(!writes.is_empty(), "the status is kept current");
        let other: Vec<_> = writes.iter().filter(|write| !write.ends_with("/status")).collect();
        assert!(other.is_empty(), "{other:#?}");
    };
    passes(&server, &context, 3).await;
    status_only(&server, 0);
    assert_eq!(condition_of(&server, "Paused")["status"], "True");
    assert_eq!(condition_of(&server, "CertificatesValid")["status"], "Unknown");

    // It is let run for a while, and paused with members, and with certificates that would be renewed.
    change(&server, CLUSTERS, "main", |cluster| cluster["spec"]["paused"] = json!(false));
    passes(&server, &context, 6).await;
    assert!(server.object(MEMBERS, "main-3").is_some());
    change(&server, CLUSTERS, "main", |cluster| cluster["spec"]["paused"] = json!(true));
    change(&server, SECRETS, "main-client-tls", |secret| {
        secret["data"]["ca.crt"] = json!("b3RoZXI=");
    });
    let before = server.writes().len();
    // An operator that remembers nothing.
    let context = self::context(&server, &lease);
    passes(&server, &context, 3).await;
    status_only(&server, before);
    assert_eq!(condition_of(&server, "CertificatesValid")["status"], "True");

    server.mark_deleted(CLUSTERS, "main");
    passes(&server, &context, 2).await;
    assert_eq!(server.object(CLUSTERS, "main"), None);
    assert_eq!(server.object(MEMBERS, "main-1"), None);
}

#[tokio::test]
async fn the_ca_of_a_formed_cluster_is_not_made_anew() {
    let lease = Lease::without_election();
    for (paused, lost) in
        [(false, "main-client-ca"), (false, "main-peer-ca"), (true, "main-client-ca")]
    {
        let (server, context) = with_cluster(json!({}));
        passes(&server, &context, 3).await;
        change(&server, CLUSTERS, "main", |cluster| {
            cluster["status"]["clusterID"] = json!("ab");
            cluster["spec"]["paused"] = json!(paused);
        });
        let copy = server.object(SECRETS, lost).expect("it was made for the new cluster");
        for data in [None, Some(json!({"tls.crt": "eA=="}))] {
            server.remove(SECRETS, lost);
            if let Some(data) = &data {
                let mut secret = copy.clone();
                secret["data"] = data.clone();
                server.put(SECRETS, lost, secret);
            }
            let context = self::context(&server, &lease);
            let before = server.writes().len();
            passes(&server, &context, 2).await;
            let writes = server.writes().split_off(before);
            assert!(!writes.iter().any(|write| write.contains("/secrets")), "{writes:#?}");
            let valid = condition_of(&server, "CertificatesValid");
            assert_eq!(valid["status"], "False");
            let said = valid["message"].as_str().unwrap();
            assert!(said.contains(lost) && !said.contains("delete it"), "{said}");
            let what = if data.is_none() { "is missing" } else { "has no usable" };
            assert!(said.contains(what), "{said}");
            // Nobody knows of a quorum, so the alarm that tells of none has to come.
            let gauges = String::from_utf8(context.metrics.text()).unwrap();
            let gauge = r#"quorum_healthy{cluster="main",namespace="ns"} 0"#;
            assert!(gauges.contains(gauge), "{gauges}");
        }
        server.put(SECRETS, lost, copy);
        let context = self::context(&server, &lease);
        reconcile_cluster(&server, &context).await;
        assert_eq!(condition_of(&server, "CertificatesValid")["status"], "True");
    }
}

/// Of one member: it is issued anew, and while nothing may be, the others are looked at all the same.
#[tokio::test]
async fn a_certificate_that_cannot_be_read_concerns_one_member() {
    let lease = Lease::without_election();
    let (server, first) = with_cluster(json!({}));
    passes_until(&server, &first, PODS, "main-3").await;
    let rubbish = json!("bm90IFBFTQ==");
    change(&server, SECRETS, "main-2-tls", |secret| secret["data"]["server.crt"] = rubbish.clone());
    reconcile_cluster(&server, &context(&server, &lease)).await;
    let issued = server.object(SECRETS, "main-2-tls").unwrap();
    assert_ne!(issued["data"]["server.crt"], rubbish);
    assert_eq!(condition_of(&server, "CertificatesValid")["status"], "True");

    change(&server, SECRETS, "main-2-tls", |secret| secret["data"]["peer.crt"] = rubbish.clone());
    change(&server, CLUSTERS, "main", |cluster| cluster["spec"]["paused"] = json!(true));
    let before = server.writes().len();
    let cluster = serde_json::from_value(server.object(CLUSTERS, "main").unwrap()).unwrap();
    let pass = cluster::reconcile(Arc::new(cluster), context(&server, &lease)).await;
    assert!(pass.is_ok(), "the others were not looked at: {pass:?}");
    let valid = condition_of(&server, "CertificatesValid");
    assert_eq!(
        (&valid["status"], &valid["reason"]),
        (&json!("False"), &json!("CertificateUnusable"))
    );
    let said = valid["message"].as_str().unwrap();
    assert!(said.contains("Secret main-2-tls") && said.contains("delete the Secret"), "{said}");
    let writes = server.writes().split_off(before);
    assert!(!writes.iter().any(|write| write.contains("/secrets")), "{writes:#?}");
}

/// It has no finalizer, so no pass sees the end of it.
#[tokio::test(start_paused = true)]
async fn the_gauges_of_a_cluster_that_was_always_paused_go_with_it() {
    let (server, context) = with_cluster(json!({"paused": true}));
    let running = controllers(&server.client(), Some(NAMESPACE), &context, 4);
    let shown = |wanted: bool| {
        let metrics = &context.metrics;
        async move {
            let label = "cluster=\"main\"";
            while String::from_utf8(metrics.text()).unwrap().contains(label) != wanted {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let life = async {
        shown(true).await;
        server.remove(CLUSTERS, "main");
        shown(false).await;
        // Nor does a pass that was under way bring them back.
        tokio::time::sleep(Duration::from_mins(2)).await;
        shown(false).await;
    };
    tokio::select! {
        lived = tokio::time::timeout(Duration::from_mins(30), life) => lived.expect("it is forgotten"),
        (ended, ..) = future::select_all(running) => panic!("a controller ended: {ended:?}"),
    }
}

/// Its images do not come, say. Of what the kubelet does there are events, and the members cannot be asked
/// yet: two hundred such clusters are not to make an operator busy.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_only_waits_is_looked_at_as_seldom_as_one_that_does_not() {
    let (server, context) = with_cluster(json!({}));
    passes(&server, &context, 8).await;
    let started = tokio::time::Instant::now();
    let mut passes = [0; 5];
    while let Some(minute) = passes.get_mut(started.elapsed().as_secs() as usize / 60) {
        let cluster = serde_json::from_value(server.object(CLUSTERS, "main").unwrap()).unwrap();
        let next = cluster::reconcile(Arc::new(cluster), context.clone()).await.unwrap();
        let seconds = (1..=60)
            .find(|seconds| next == controller::Action::requeue(Duration::from_secs(*seconds)));
        tokio::time::advance(Duration::from_secs(seconds.expect("a pause of whole seconds"))).await;
        *minute += 1;
    }
    let blocked = server.object(CLUSTERS, "main").unwrap()["status"]["blockedBy"].to_string();
    assert!(blocked.contains("Bootstrap"), "{blocked}");
    let [first, .., last] = passes;
    assert!(first >= 25 && last <= 4, "{passes:?}");
}

/// It is deleted between the write that makes a member's claim and the one that notes its uid. A claim has no
/// owner that could take it along.
#[tokio::test]
async fn a_claim_that_nobody_has_used_yet_goes_with_its_cluster() {
    for policy in ["Delete", "Retain"] {
        let (server, context) = with_cluster(json!({"deletionPolicy": policy}));
        passes_until(&server, &context, CLAIMS, "main-1-uid").await;
        let member = server.object(MEMBERS, "main-1").expect("its claim is there");
        assert!(member["status"]["claimUID"].is_null(), "{member}");
        server.mark_deleted(CLUSTERS, "main");
        passes(&server, &context, 2).await;
        assert!(server.object(CLUSTERS, "main").is_none());
        assert_eq!(server.object(CLAIMS, "main-1-uid").is_some(), policy == "Retain");
    }
}

/// Members that left while claims were kept, and first starts that were given up, leave claims that no member
/// has. They are the cluster's all the same.
#[tokio::test]
async fn all_claims_of_a_cluster_go_with_it_and_no_others() {
    for policy in ["Delete", "Retain"] {
        let (server, context) = with_cluster(json!({"deletionPolicy": policy}));
        passes_until(&server, &context, PODS, "main-3").await;
        let own = ["main-1-uid", "main-2-uid", "main-3-uid", "main-7-uid"];
        // An older cluster's of this name, and what somebody gave our labels.
        let others = ["main-7-0ddba11", "main-seven-uid", "main-8-uid-copy", "other-7-uid"];
        seed_claim(&server, "main-7-uid");
        others.iter().for_each(|name| seed_claim(&server, name));
        server.mark_deleted(CLUSTERS, "main");
        passes(&server, &context, 2).await;
        assert!(server.object(CLUSTERS, "main").is_none());
        for (name, stays) in own
            .map(|name| (name, policy == "Retain"))
            .into_iter()
            .chain(others.map(|name| (name, true)))
        {
            assert_eq!(server.object(CLAIMS, name).is_some(), stays, "{policy}: {name}");
        }
    }
}

fn seed_claim(server: &ApiServer, name: &str) {
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"),
            "labels": member_selector("main"),
        },
    });
    server.put(CLAIMS, name, claim);
}

/// Three that were to join and are let go. What the third has on its volume somebody may want to keep.
#[tokio::test]
async fn the_claim_of_a_member_that_never_started_goes_with_it_also_where_claims_are_kept() {
    let (server, context) = with_cluster(json!({}));
    passes_until(&server, &context, PODS, "main-3").await;
    for (serial, status) in [
        (7, json!({})),
        (8, json!({"memberID": "ab", "claimUID": "uid-of-main-8-uid", "neverStarted": true})),
        (9, json!({"memberID": "cd", "claimUID": "uid-of-main-9-uid"})),
    ] {
        let (name, claim) = (format!("main-{serial}"), format!("main-{serial}-uid"));
        seed_claim(&server, &claim);
        let member = json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdMember",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"),
                "labels": member_selector("main"), "ownerReferences": [owner("uid-of-main")],
            },
            "spec": {
                "clusterRef": {"name": "main"}, "serial": serial, "initialState": "Existing",
                "peerURL": format!("https://{name}.main-peers.ns.svc:2380"), "claimName": claim,
            },
            "status": status,
        });
        server.put(MEMBERS, &name, member);
    }
    passes(&server, &context, 6).await;
    for (name, stays) in [("main-7", false), ("main-8", false), ("main-9", true)] {
        assert_eq!(server.object(MEMBERS, name), None);
        assert_eq!(server.object(CLAIMS, &format!("{name}-uid")).is_some(), stays, "{name}");
    }
}

/// A Pod is to be made anew, and in the moment between the two looks somebody else does it.
#[tokio::test]
async fn what_a_second_look_forbids_is_held_back_and_no_failure() {
    let (server, context) = with_cluster(json!({}));
    passes_until(&server, &context, PODS, "main-1").await;
    reconcile_cluster(&server, &context).await;
    change(&server, CLUSTERS, "main", |cluster| {
        cluster["spec"]["image"] = json!({"tag": "corrected"});
    });
    change(&server, PODS, "main-1", |pod| {
        let waiting = json!({"waiting": {"reason": "ErrImagePull"}});
        pod["status"] = json!({"containerStatuses": [{
            "name": "etcd", "image": "wrong", "imageID": "", "ready": false, "restartCount": 0,
            "state": waiting,
        }]});
    });
    let mut other = server.object(PODS, "main-1").unwrap();
    other["metadata"]["uid"] = json!("another");
    server.put_after_the_next_list(PODS, "main-1", other.clone());
    let before = server.writes().len();
    reconcile_cluster(&server, &context).await;
    assert_eq!(server.object(PODS, "main-1"), Some(other));
    let blocked = server.object(CLUSTERS, "main").unwrap()["status"]["blockedBy"].to_string();
    assert!(blocked.contains("RestartPod") && blocked.contains("I9"), "{blocked}");
    assert_eq!(condition_of(&server, "Degraded")["status"], "False");
    let writes = server.writes().split_off(before);
    assert!(!writes.iter().any(|write| write.ends_with("/events")), "{writes:#?}");
    // The next pass is about the Pod that is there.
    reconcile_cluster(&server, &context).await;
    assert_eq!(server.object(PODS, "main-1"), None);
}
