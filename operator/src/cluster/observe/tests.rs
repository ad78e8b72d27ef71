use serde_json::json;

use super::*;

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
        (container(json!({"waiting": {"reason": "ImagePullBackOff"}}), json!({})), "Image: ImagePullBackOff i:1"),
        (
            container(json!({"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}), json!({})),
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
            pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no nodes"}]})),
            "Unschedulable: no nodes",
        ),
    ];
    for (pod, expected) in table {
        assert_eq!(down_cause(&pod).unwrap().to_string(), expected);
    }
    assert_eq!(down_cause(&pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}))), None);
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
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})).unwrap()
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
