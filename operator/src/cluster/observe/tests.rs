use futures_util::future::BoxFuture;
use serde_json::json;

use super::*;

/// A member of which nothing but its object is there.
pub(in crate::cluster) fn member(validated: &Validated, object: &EtcdMember) -> Member {
    let now = Timestamp::UNIX_EPOCH;
    let scene = Scene { validated, cluster_id: None, latest_index: 0, now };
    let machines = Machines { nodes: None, volumes: Vec::new() };
    scene.member(object, None, None, None, &machines)
}

fn pod(value: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "main-1"}, "status": value})).unwrap()
}

#[test]
fn causes_are_read_from_the_kubelets_words() {
    let container = |state: serde_json::Value, last: serde_json::Value| {
        pod(json!({
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [{
                "name": "etcd", "image": "i:1", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last,
            }],
        }))
    };
    let table = [
        (
            container(json!({"waiting": {"reason": "ImagePullBackOff"}}), json!({})),
            "Image: ImagePullBackOff i:1",
        ),
        (
            container(
                json!({"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}),
                json!({}),
            ),
            "Config: CreateContainerConfigError no secret",
        ),
        (
            container(
                json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            ),
            "OutOfMemory",
        ),
        (
            container(
                json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                json!({"terminated": {"exitCode": 1, "message": "bad flag"}}),
            ),
            "Crash: etcd exited with 1 bad flag",
        ),
        (container(json!({"running": {}}), json!({})), "NotReady"),
        (
            pod(
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no nodes"}]}),
            ),
            "Unschedulable: no nodes",
        ),
    ];
    for (pod, expected) in table {
        assert_eq!(down_cause(&pod).unwrap().to_string(), expected);
    }
    assert_eq!(
        down_cause(&pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}))),
        None
    );
}

/// The node controller marks every Pod of a silent node as not ready, and touches nothing else.
#[test]
fn the_kubelet_is_heard_while_its_node_is_ready_and_ready_is_its_own_word() {
    let pod_on = |ready: &str, containers_ready: &str| {
        let mut pod = pod(json!({"conditions": [
            {"type": "Ready", "status": ready},
            {"type": "ContainersReady", "status": containers_ready},
        ]}));
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec {
            node_name: Some("n1".to_owned()),
            ..Default::default()
        });
        pod
    };
    let node = |name: &str, ready: &str| -> Node {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        serde_json::from_value(
            json!({"metadata": {"name": name}, "status": {"conditions": conditions}}),
        )
        .unwrap()
    };
    let machines = |nodes: Option<Vec<Node>>| Machines { nodes, volumes: Vec::new() };
    for (pod, nodes, expected) in [
        (pod_on("False", "False"), Some(vec![node("n1", "True")]), Kubelet::Heard),
        (pod_on("True", "True"), Some(vec![node("n1", "True")]), Kubelet::Heard),
        // The node is back, and its kubelet has not yet corrected what was said in its absence.
        (pod_on("False", "True"), Some(vec![node("n1", "True")]), Kubelet::Silent),
        (pod_on("False", "False"), Some(vec![node("n1", "Unknown")]), Kubelet::Silent),
        (pod_on("False", "True"), Some(vec![node("n1", "Unknown")]), Kubelet::Silent),
        (pod_on("False", "False"), Some(vec![node("n2", "True")]), Kubelet::Silent),
        (pod_on("False", "False"), None, Kubelet::Unseen),
        // It is on no node, so it runs nowhere.
        (pod(json!({})), Some(vec![]), Kubelet::Heard),
        (pod(json!({})), None, Kubelet::Heard),
    ] {
        assert_eq!(pod_state(&pod, &machines(nodes)).kubelet, expected, "{pod:?}");
    }
}

/// It is evidence, and it stays one while the kubelet starts the server again and again.
#[test]
fn a_member_on_a_silent_node_is_lost_when_that_has_been_silent_for_long_enough() {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "u"},
        "spec": {"recovery": {"nodeLossForSeconds": 60}},
    }))
    .unwrap();
    let validated = crate::cluster::validate::validate(&cluster).unwrap();
    let object =
        crate::cluster::build::member(&validated, Serial(1), crate::crd::InitialState::New, None);
    let pod: Pod =
        serde_json::from_value(json!({"spec": {"nodeName": "n1", "containers": []}})).unwrap();
    let since: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let seen = |ready: &str, seconds: i64| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": since.to_string()},
            ]},
        }));
        let machines = Machines { nodes: Some(vec![node.unwrap()]), volumes: Vec::new() };
        let now = since + SignedDuration::from_secs(seconds);
        let scene = Scene { validated: &validated, cluster_id: None, latest_index: 0, now };
        let member = scene.member(&object, None, Some(&pod), None, &machines);
        (member.loss, member.loss_due)
    };
    let due = since + SignedDuration::from_secs(60);
    for ready in ["Unknown", "False"] {
        assert_eq!(seen(ready, 0), (None, Some(due)));
        assert_eq!(seen(ready, 59), (None, Some(due)));
        assert_eq!(seen(ready, 60), (Some(Loss::NodeSilent), None));
    }
    assert_eq!(seen("True", 3600), (None, None));
}

/// Whoever it is asked about, it does not answer.
struct NoAnswer;

impl EtcdAdmin for NoAnswer {
    fn status<'a>(
        &'a self,
        _: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<MemberReport, EtcdError>> {
        let silent = EtcdError::Silent { silence: Silence::Timeout, detail: "late".to_owned() };
        Box::pin(async {
            tokio::time::sleep(crate::etcd::CALL_TIMEOUT).await;
            Err(silent)
        })
    }

    fn member_list<'a>(
        &'a self,
        _: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<(ClusterId, Vec<model::Entry>), EtcdError>> {
        unreachable!("nobody serves")
    }

    fn add_learner<'a>(
        &'a self,
        _: &'a MemberAddress,
        _: &'a str,
    ) -> BoxFuture<'a, Result<MemberId, EtcdError>> {
        unreachable!("it is only looked")
    }

    fn promote<'a>(
        &'a self,
        _: &'a MemberAddress,
        _: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        unreachable!("it is only looked")
    }

    fn remove<'a>(
        &'a self,
        _: &'a MemberAddress,
        _: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        unreachable!("it is only looked")
    }

    fn move_leader<'a>(
        &'a self,
        _: &'a MemberAddress,
        _: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        unreachable!("it is only looked")
    }
}

/// To replace a member takes a dozen looks, and each of them waited for the one that had no power.
#[tokio::test(start_paused = true)]
async fn who_is_on_a_silent_node_is_not_waited_for_as_long_as_who_hangs() {
    let address = MemberAddress { url: "http://x:2379".to_owned(), host: "x".to_owned() };
    let addresses = BTreeMap::from([(Serial(1), address)]);
    let conditions = |containers: &str| {
        json!({"conditions": [
            {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": containers},
        ]})
    };
    for (containers, seconds) in [("True", 1), ("False", 5)] {
        let pods = BTreeMap::from([(Serial(1), pod(conditions(containers)))]);
        let began = tokio::time::Instant::now();
        let reports = ask_members(&NoAnswer, &addresses, &pods).await;
        assert_eq!(began.elapsed().as_secs(), seconds);
        let silence = reports[&Serial(1)].as_ref().map_err(|error| match error {
            EtcdError::Silent { silence, .. } => Some(*silence),
            EtcdError::Refused { .. } => None,
        });
        assert_eq!(silence.unwrap_err(), Some(Silence::Timeout));
    }
}

#[test]
fn a_server_that_says_that_its_data_is_gone_is_believed_once_it_had_an_id() {
    let said = "{\"level\":\"info\",\"msg\":\"starting\"}\n{\"level\":\"fatal\",\"msg\":\"member 8e9e05c52164694d has already been bootstrapped, but its data directory is empty\"}\n";
    let ended =
        |code: i32, message: &str| json!({"terminated": {"exitCode": code, "message": message}});
    let container = |state: serde_json::Value, last: serde_json::Value, ready: &str| {
        pod(json!({
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{
                "name": "etcd", "image": "i:1", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last,
            }],
        }))
    };
    let running = || json!({"running": {}});
    let waiting = || json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let id = Some(MemberId(7));
    for (pod, expected) in [
        (container(ended(1, said), json!({}), "False"), Some(Loss::Data)),
        (container(waiting(), ended(1, said), "False"), Some(Loss::Data)),
        (container(running(), ended(1, said), "False"), Some(Loss::Data)),
        // It serves: whatever it said before is over.
        (container(running(), ended(1, said), "True"), None),
        (container(waiting(), ended(1, "no space left on device"), "False"), None),
        (container(waiting(), ended(0, said), "False"), None),
    ] {
        let cause = down_cause(&pod);
        let silent = Reach::Silent(Silence::Refused);
        assert_eq!(model::data_loss(id, cause.as_ref(), false, &silent), expected, "{cause:?}");
        assert_eq!(model::data_loss(None, cause.as_ref(), false, &silent), None);
    }
}

/// It was created long ago, and nobody could be added meanwhile.
#[test]
fn the_time_to_start_counts_from_when_etcd_lists_the_member() {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "u"}, "spec": {},
    }))
    .unwrap();
    let validated = crate::cluster::validate::validate(&cluster).unwrap();
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let scene = Scene { validated: &validated, cluster_id: None, latest_index: 0, now };
    let machines = Machines { nodes: None, volumes: Vec::new() };
    let mut object: EtcdMember = serde_json::from_value(json!({
        "metadata": {"name": "main-4", "creationTimestamp": "2026-11-21T11:00:00Z"},
        "spec": {
            "clusterRef": {"name": "main"}, "serial": 4, "initialState": "Existing",
            "peerURL": "https://x:2380", "claimName": "x",
        },
    }))
    .unwrap();
    let listed = |object: &_| scene.member(object, None, None, None, &machines).listed_since;
    assert_eq!(listed(&object), None);
    let mut status = crate::crd::EtcdMemberStatus::default();
    crate::cluster::act::latch_id(&mut status, MemberId(7), now);
    object.status = Some(status);
    let member = scene.member(&object, None, None, None, &machines);
    assert_eq!((member.id, member.listed_since), (Some(MemberId(7)), Some(now)));
}

/// The Pod of an emptied member is evicted while its successor still learns: the next Pod has said
/// nothing yet. Without the words that were kept the member would count as well, and the successor
/// as not needed.
#[test]
fn the_words_of_a_member_whose_data_is_gone_outlive_its_pod_and_end_when_it_serves() {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "u"}, "spec": {},
    }))
    .unwrap();
    let validated = crate::cluster::validate::validate(&cluster).unwrap();
    let now = "2026-11-21T12:00:00Z".parse().unwrap();
    let scene = Scene { validated: &validated, cluster_id: None, latest_index: 0, now };
    let machines = Machines { nodes: None, volumes: Vec::new() };
    let claim: PersistentVolumeClaim =
        serde_json::from_value(json!({"metadata": {"name": "x", "uid": "a"}})).unwrap();
    let mut object: EtcdMember = serde_json::from_value(json!({
        "metadata": {"name": "main-1"},
        "spec": {
            "clusterRef": {"name": "main"}, "serial": 1, "initialState": "New",
            "peerURL": "https://x:2380", "claimName": "x",
        },
        "status": {"memberID": "7", "claimUID": "a"},
    }))
    .unwrap();
    let starting = || pod(json!({"conditions": [{"type": "Ready", "status": "False"}]}));
    let says = pod(json!({
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{
            "name": "etcd", "image": "i:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {
                "exitCode": 1, "message": "member 7 has already been bootstrapped",
            }},
        }],
    }));
    let serves = || {
        Ok(MemberReport {
            cluster_id: ClusterId(1),
            member_id: MemberId(7),
            leader: MemberId(7),
            term: 1,
            revision: 1,
            raft_index: 1,
            applied_index: 1,
            version: "3.7.3".to_owned(),
            db_size: 0,
            db_quota: None,
            is_learner: false,
            corrupt: false,
            no_space: Vec::new(),
        })
    };
    // What is seen of it, and then written into its object, pass after pass.
    for (pod, report, expected) in [
        (starting(), None, None),
        (says, None, Some(Loss::Data)),
        (starting(), None, Some(Loss::Data)),
        (starting(), None, Some(Loss::Data)),
        (starting(), Some(serves()), None),
        (starting(), None, None),
    ] {
        let report: Option<Result<MemberReport, EtcdError>> = report;
        let member = scene.member(&object, Some(&claim), Some(&pod), report.as_ref(), &machines);
        assert_eq!(member.loss, expected, "{pod:?}");
        let observation = Observation {
            observed: Observed::default(),
            objects: BTreeMap::new(),
            pods: BTreeMap::new(),
            reports: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        let desired = &validated.desired;
        let status =
            crate::cluster::report::member_status(&object, &member, &observation, desired, now);
        object.status = Some(status);
    }
}

#[test]
fn a_volume_bound_to_a_node_that_is_gone_cannot_be_mounted() {
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "v"},
        "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]},
        ]}]}}},
    }))
    .unwrap();
    let node = |name: &str| -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}),
        )
        .unwrap()
    };
    assert!(may_mount(&volume, &node("n2")));
    assert!(!may_mount(&volume, &node("n1")));
}

#[test]
fn another_uid_under_the_claims_name_is_a_lost_claim() {
    let claim = |uid: &str| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "main-1", "uid": uid}})).unwrap()
    };
    assert_eq!(claim_state(None, None), Claim::Unborn);
    assert_eq!(claim_state(None, Some(&claim("a"))), Claim::Unlatched { uid: "a".to_owned() });
    assert_eq!(claim_state(Some("a"), Some(&claim("a"))), Claim::Bound);
    assert_eq!(claim_state(Some("a"), Some(&claim("b"))), Claim::Lost);
    assert_eq!(claim_state(Some("a"), None), Claim::Lost);
}
