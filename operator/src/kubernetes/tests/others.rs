//! What belongs to others stays as it is, whatever it is called, and the status says what is in the
//! way. The finalizers of others stay on what belongs to the operator.

use kube::runtime::controller;

use super::*;

/// Objects under the names that a cluster `main` of five members wants: of nobody, of another
/// controller, of an older cluster.
fn objects_of_others() -> Vec<(&'static str, &'static str, Value)> {
    let object = |kind: &str, name: &str, owners: Value| {
        json!({
            "apiVersion": "v1", "kind": kind,
            "metadata": {
                "name": name, "namespace": NAMESPACE, "uid": format!("other-{name}"),
                "resourceVersion": "1", "ownerReferences": owners,
            },
            "spec": {"selector": {"app": "other"}},
        })
    };
    let mut member = object("EtcdMember", "main-3", json!([owner("older")]));
    member["apiVersion"] = json!("etcd.keelson.dev/v1alpha1");
    member["metadata"]["labels"] = json!(member_selector("main"));
    member["spec"] = json!({
        "clusterRef": {"name": "main"}, "serial": 3, "initialState": "New",
        "peerURL": "https://x:2380", "claimName": "x",
    });
    let mut secret = object("Secret", "main-2-tls", json!([]));
    secret["data"] = json!({"tls.crt": "eA=="});
    let mut budget = object("PodDisruptionBudget", "main", json!([]));
    budget["apiVersion"] = json!("policy/v1");
    budget["spec"] = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "other"}}});
    let mut pod = object("Pod", "main-1", json!([owner("set")]));
    pod["spec"] = json!({"containers": [{"name": "c", "image": "i"}]});
    // Named after the cluster's uid.
    let claim = object("PersistentVolumeClaim", "main-4-uid", json!([]));
    vec![
        (CLAIMS, "main-4-uid", claim),
        (SERVICES, "main-client", object("Service", "main-client", json!([]))),
        (SERVICES, "main-peers", object("Service", "main-peers", json!([owner("other")]))),
        (BUDGETS, "main", budget),
        (PODS, "main-1", pod),
        (SECRETS, "main-2-tls", secret),
        (MEMBERS, "main-3", member),
    ]
}

fn are_as_they_were(server: &ApiServer, others: &[(&'static str, &'static str, Value)]) {
    for (place, name, object) in others {
        assert_eq!(server.object(place, name).as_ref(), Some(object), "{place}/{name}");
    }
}

#[tokio::test]
async fn a_cluster_leaves_the_objects_of_others_alone_and_says_which_are_in_its_way() {
    for budget in ["Enabled", "Disabled"] {
        let server = ApiServer::default();
        let others = objects_of_others();
        for (place, name, object) in &others {
            server.put(place, name, object.clone());
        }
        let spec = json!({
            "replicas": 5, "disruption": {"podDisruptionBudget": budget}, "deletionPolicy": "Delete",
        });
        seed(&server, "etcdclusters", "main", json!({"kind": "EtcdCluster", "spec": spec}));
        let lease = Lease::without_election();
        let context = context(&server, &lease);
        passes(&server, &context, 8).await;
        are_as_they_were(&server, &others);
        // What is not in the way is made all the same.
        assert!(server.object(MEMBERS, "main-1").is_some());
        assert!(server.object(MEMBERS, "main-2").is_some());

        let status = &server.object(CLUSTERS, "main").unwrap()["status"];
        let blocked = status["blockedBy"].as_array().unwrap().iter();
        let blocked: Vec<_> = blocked.filter(|one| one["invariant"] == "NotOurs").collect();
        let conditions = status["conditions"].as_array().unwrap();
        let degraded = conditions.iter().find(|one| one["type"] == "Degraded").unwrap();
        assert_eq!(degraded["status"], "True");
        for named in [
            "Service main-client",
            "Service main-peers",
            "PodDisruptionBudget main",
            "Pod main-1",
            "Secret main-2-tls",
            "EtcdMember main-3",
            "PersistentVolumeClaim main-4-uid",
        ] {
            // One that is not wanted is in nobody's way.
            let expected = !named.starts_with("PodDisruptionBudget") || budget == "Enabled";
            let said = format!("{named} exists and is not ours");
            let is_blocked = blocked.iter().any(|one| one["detail"].to_string().contains(&said));
            assert_eq!(is_blocked, expected, "{named}: {blocked:#?}");
            let message = degraded["message"].as_str().unwrap();
            assert_eq!(message.contains(&said), expected, "{named}: {message}");
        }
        // An operator that remembers nothing looks after the certificates of the others all the same.
        server.remove(SECRETS, "main-5-tls");
        let context = self::context(&server, &lease);
        reconcile_cluster(&server, &context).await;
        assert!(server.object(SECRETS, "main-5-tls").is_some());
        let status = &server.object(CLUSTERS, "main").unwrap()["status"];
        let blocked = status["blockedBy"].as_array().unwrap().iter();
        let told = blocked.filter(|one| one["detail"].to_string().contains("Secret main-2-tls"));
        assert_eq!(told.count(), 1, "{status}");

        server.mark_deleted(CLUSTERS, "main");
        passes(&server, &context, 3).await;
        assert_eq!(server.object(CLUSTERS, "main"), None);
        assert_eq!(server.object(MEMBERS, "main-1"), None);
        are_as_they_were(&server, &others);
    }
}

/// A cluster with somebody else's CA would let in whom that trusts. A copy of its own it cannot do without.
#[tokio::test]
async fn a_ca_is_taken_from_nobody_but_who_brings_it_back() {
    let owned = |by: &str| json!({"ownerReferences": [owner(by)]});
    let label = json!({"labels": {"etcd.keelson.dev/cluster": "main"}});
    let others = json!({"labels": {"etcd.keelson.dev/cluster": "other"}});
    for (metadata, new, formed) in [
        (owned("uid-of-main"), true, true),
        (owned("older"), false, false),
        (label, true, true),
        (others, false, true),
        (json!({}), false, true),
    ] {
        for is_formed in [false, true] {
            let (server, context) = with_cluster(json!({}));
            passes(&server, &context, 2).await;
            let mut ca = server.object(SECRETS, "main-peer-ca").expect("it has one of its own");
            for field in ["ownerReferences", "labels"] {
                ca["metadata"][field] = metadata[field].clone();
            }
            server.put(SECRETS, "main-peer-ca", ca.clone());
            let mut cluster = server.object(CLUSTERS, "main").unwrap();
            cluster["status"]["clusterID"] = if is_formed { json!("ab") } else { Value::Null };
            server.put(CLUSTERS, "main", cluster);
            let context = self::context(&server, &Lease::without_election());
            let before = server.writes().len();
            passes(&server, &context, 2).await;
            let said = server.object(CLUSTERS, "main").unwrap()["status"]["blockedBy"].to_string();
            let is_taken = !said.contains("Secret main-peer-ca exists and is not ours");
            let expected = if is_formed { formed } else { new };
            assert_eq!(is_taken, expected, "{metadata}, formed: {is_formed}: {said}");
            assert!(is_taken || said.contains("NotOurs"), "{said}");
            assert_eq!(server.object(SECRETS, "main-peer-ca"), Some(ca));
            let writes = server.writes().split_off(before);
            let only_told = writes.iter().all(|w| w.ends_with("/status") || w.ends_with("/events"));
            assert!(is_taken || only_told, "{writes:#?}");
        }
    }
}

/// Until now those of members that were gone stayed for as long as the cluster did.
#[tokio::test]
async fn the_secret_of_a_member_goes_with_it_also_if_it_was_the_clusters() {
    let lease = Lease::without_election();
    let (server, first) = with_cluster(json!({}));
    passes_until(&server, &first, PODS, "main-3").await;
    let uid = |name: &str| server.object(MEMBERS, name).unwrap()["metadata"]["uid"].clone();
    let owners = |name: &str| {
        let owners = server.object(SECRETS, name).unwrap()["metadata"]["ownerReferences"].clone();
        let owners = owners.as_array().unwrap().iter();
        owners.map(|owner| (owner["kind"].clone(), owner["uid"].clone())).collect::<Vec<_>>()
    };
    let made = server.object(SECRETS, "main-2-tls").expect("it came with the Pod");
    let member = (json!("EtcdMember"), uid("main-2"));
    assert_eq!(owners("main-2-tls"), std::slice::from_ref(&member));
    assert_eq!(owners("main-client-tls"), [(json!("EtcdCluster"), json!("uid-of-main"))]);

    let mut of_cluster = made.clone();
    of_cluster["metadata"]["ownerReferences"] =
        server.object(SECRETS, "main-client-tls").unwrap()["metadata"]["ownerReferences"].clone();
    server.put(SECRETS, "main-2-tls", of_cluster);
    reconcile_cluster(&server, &context(&server, &lease)).await;
    assert_eq!(owners("main-2-tls"), [member]);
    let now = server.object(SECRETS, "main-2-tls").unwrap();
    assert_eq!(now["data"], made["data"], "the member need not be given other certificates for it");
    let settled = server.writes().len();
    reconcile_cluster(&server, &context(&server, &lease)).await;
    let writes = server.writes().split_off(settled);
    assert!(!writes.iter().any(|write| write.contains("/secrets")), "{writes:#?}");
}

/// An object that appears between the look and the write is not taken over.
#[tokio::test]
async fn what_is_made_under_the_name_in_between_is_not_overwritten() {
    let server = ApiServer::default();
    let pod = seed_pod(&server);
    let kubernetes = Kubernetes::new(server.client(), Lease::without_election());
    kubernetes.apply(NAMESPACE, &pod).await.unwrap();
    kubernetes.create_owned(NAMESPACE, &pod).await.unwrap();
    let mut other = server.object(PODS, "main-1").unwrap();
    other["metadata"]["ownerReferences"] = json!([owner("other")]);
    server.put(PODS, "main-1", other.clone());
    for result in
        [kubernetes.apply(NAMESPACE, &pod).await, kubernetes.create_owned(NAMESPACE, &pod).await]
    {
        let error = result.unwrap_err();
        assert!(error.is_not_ours() && error.to_string().contains("Pod main-1"), "{error}");
    }
    // It is another one's now, so ours is gone.
    kubernetes.delete_owned::<Pod>(NAMESPACE, "main-1", "m").await.unwrap();
    kubernetes.delete::<Pod>(NAMESPACE, "main-1", "the uid that it had").await.unwrap();
    assert_eq!(server.object(PODS, "main-1"), Some(other));
}

#[tokio::test]
async fn the_finalizers_of_others_stay() {
    let server = ApiServer::default();
    seed_world(&server);
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    let others = |place: &str, name: &str| {
        let mut object = server.object(place, name).unwrap();
        let held = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let held: Vec<Value> = [json!("example.com/audit")].into_iter().chain(held).collect();
        object["metadata"]["finalizers"] = json!(held);
        server.put(place, name, object);
    };
    let held = |place: &str, name: &str| {
        server.object(place, name).map(|object| object["metadata"]["finalizers"].clone())
    };
    let ours = crate::cluster::build::FINALIZER;
    others(BACKUPS, "now");
    others(CLUSTERS, "main");
    for _ in 0..6 {
        reconcile_cluster(&server, &context).await;
        reconcile_backup(&server, &context).await;
    }
    let both = Some(json!(["example.com/audit", ours]));
    assert_eq!(held(BACKUPS, "now"), both);
    assert_eq!(held(CLUSTERS, "main"), both);
    others(MEMBERS, "main-1");
    assert_eq!(held(MEMBERS, "main-1"), both);

    server.mark_deleted(CLUSTERS, "main");
    reconcile_cluster(&server, &context).await;
    let audited = Some(json!(["example.com/audit"]));
    assert_eq!(held(MEMBERS, "main-1"), audited);
    assert_eq!(held(CLUSTERS, "main"), both, "a member is still there");
    let mut member = server.object(MEMBERS, "main-1").unwrap();
    assert!(!member["metadata"]["deletionTimestamp"].is_null(), "{member}");
    member["metadata"]["finalizers"] = json!([]);
    server.put(MEMBERS, "main-1", member);
    passes(&server, &context, 2).await;
    assert_eq!(held(MEMBERS, "main-1"), None);
    assert_eq!(held(CLUSTERS, "main"), audited);
}

/// Somebody who has put a finalizer on since the object was read keeps it.
#[tokio::test]
async fn a_list_of_finalizers_is_written_only_over_the_one_that_was_read() {
    let server = ApiServer::default();
    seed_world(&server);
    let kubernetes = Kubernetes::new(server.client(), Lease::without_election());
    let stale: EtcdBackup = kubernetes.get(NAMESPACE, "now").await.unwrap().expect("it was seeded");
    kubernetes.hold(&stale, "example.com/a").await.unwrap();
    let stale: EtcdBackup = kubernetes.get(NAMESPACE, "now").await.unwrap().unwrap();
    kubernetes.hold(&stale, "example.com/b").await.unwrap();
    let error = kubernetes.let_go(&stale, "example.com/a").await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let finalizers = server.object(BACKUPS, "now").unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(finalizers, json!(["example.com/a", "example.com/b"]));
}

/// The Pod of an older member of that name, which the garbage collector has not reached yet, or one that
/// somebody made with our labels. It is not asked, its words are not the member's, and it is not deleted.
#[tokio::test]
async fn a_pod_with_a_members_name_and_labels_is_not_the_member() {
    let (server, context) = with_cluster(json!({}));
    let mut other = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "main-1", "namespace": NAMESPACE, "uid": "other", "resourceVersion": "1",
            "labels": member_selector("main"),
            "ownerReferences": [{
                "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdMember", "name": "main-1",
                "uid": "older", "controller": true,
            }],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "etcd", "image": "i"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    server.put(PODS, "main-1", other.clone());
    passes(&server, &context, 8).await;
    let member = server.object(MEMBERS, "main-1").expect("the member is made");
    let seen =
        |member: &Value| (member["status"]["podUID"].clone(), member["status"]["node"].clone());
    assert_eq!(seen(&member), (Value::Null, Value::Null), "{member}");
    let blocked = server.object(CLUSTERS, "main").unwrap()["status"]["blockedBy"].to_string();
    assert!(blocked.contains("Pod main-1 exists and is not ours"), "{blocked}");

    // The member is given up with its first start: its Pod would go, and this is not its Pod.
    server.mark_deleted(MEMBERS, "main-1");
    passes(&server, &context, 8).await;
    assert_eq!(server.object(MEMBERS, "main-1"), None);
    assert_eq!(server.object(PODS, "main-1"), Some(other.clone()));

    // Under the name of a member of the next start it is in the way until it is gone.
    let member = server.object(MEMBERS, "main-4").expect("there is a second start");
    server.remove(PODS, "main-4");
    other["metadata"]["name"] = json!("main-4");
    server.put(PODS, "main-4", other);
    reconcile_cluster(&server, &context).await;
    server.remove(PODS, "main-4");
    passes(&server, &context, 2).await;
    let pod = server.object(PODS, "main-4").expect("the member has a Pod of its own");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], member["metadata"]["uid"]);
    let member = server.object(MEMBERS, "main-4").unwrap();
    assert_eq!(seen(&member).0, pod["metadata"]["uid"]);
}

/// Nobody tells the operator when the object goes, so it looks; but not as often as while it works.
#[tokio::test(start_paused = true)]
async fn what_stays_in_the_way_is_looked_at_at_longer_and_longer_intervals() {
    let (server, context) = with_cluster(json!({}));
    let is_service = |(_, name, _): &(_, &str, _)| *name == "main-client";
    let (place, name, object) = objects_of_others().into_iter().find(is_service).unwrap();
    server.put(place, name, object.clone());
    passes(&server, &context, 8).await;
    let intervals = async |expected: &[u64]| {
        for seconds in expected {
            let expected = Duration::from_secs(*seconds);
            let cluster = serde_json::from_value(server.object(CLUSTERS, "main").unwrap()).unwrap();
            let next = cluster::reconcile(Arc::new(cluster), context.clone()).await.unwrap();
            assert_eq!(next, controller::Action::requeue(expected));
            let blocked =
                server.object(CLUSTERS, "main").unwrap()["status"]["blockedBy"].to_string();
            assert_eq!(
                blocked.contains("NotOurs"),
                server.object(place, name).as_ref() == Some(&object)
            );
            tokio::time::advance(expected).await;
        }
    };
    intervals(&[2, 2, 4, 8, 16, 32, 60, 60]).await;
    // It is gone, and what the cluster waits for now is under way.
    server.remove(place, name);
    intervals(&[2, 2, 2]).await;
    // What was made is trusted for a while. Something in the way of it later is something new.
    server.put(place, name, object.clone());
    tokio::time::advance(Duration::from_mins(5)).await;
    intervals(&[2, 2, 4]).await;
}
