//! `etcdctl downgrade` of Go etcd against our server: texts, versions and status.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::process::Command;

use calls::{status, until};
use e2e::processes::{Cluster, ServerOptions, http_get};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmResponse, AlarmType};

fn version_of(cluster: &Cluster, name: &str) -> String {
    let body = http_get(&cluster.members()[0].endpoint, "/version").unwrap();
    let versions: serde_json::Value = serde_json::from_str(&body).unwrap();
    versions[name].as_str().unwrap().to_owned()
}

#[test]
fn a_downgrade_is_validated_enabled_and_cancelled_as_by_etcd() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let cluster = Cluster::start(&ServerOptions::one(&program)).unwrap();
    let member = &cluster.members()[0];
    let etcdctl = e2e::peers::etcd_binaries().unwrap().etcdctl;
    let downgrade = |arguments: &[&str]| {
        let output = Command::new(&etcdctl)
            .arg(format!("--endpoints={}", member.endpoint))
            .arg("downgrade")
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let refused = |arguments: &[&str], why: &str| {
        let (success, text) = downgrade(arguments);
        assert!(!success && text.contains(why), "{arguments:?}: {text}");
    };
    let done = |arguments: &[&str], what: &str| {
        let (success, text) = downgrade(arguments);
        assert!(success && text.contains(what), "{arguments:?}: {text}");
    };

    refused(&["validate", "3.5"], "etcdserver: invalid downgrade target version");
    refused(&["validate", "3.8"], "etcdserver: invalid downgrade target version");
    refused(&["enable", "soon"], "etcdserver: wrong downgrade target version format");
    done(&["validate", "3.6.4"], "Downgrade validate success, cluster version 3.7");
    let info = || status(member).unwrap().downgrade_info.unwrap();
    assert!(!info().enabled);

    done(&["enable", "3.6"], "Downgrade enable success, cluster version 3.7");
    assert_eq!((info().enabled, info().target_version.as_str()), (true, "3.6.0"));
    refused(&["enable", "3.6"], "etcdserver: ");
    until("the cluster's version goes down", || version_of(&cluster, "etcdcluster") == "3.6.0");
    assert_eq!(version_of(&cluster, "storage"), "3.6.0");
    assert_eq!(status(member).unwrap().storage_version, "3.6.0");

    done(&["cancel"], "Downgrade cancel success, cluster version 3.6");
    assert!(!info().enabled);
    until("the cluster's version goes up again", || version_of(&cluster, "etcdcluster") == "3.7.0");
    // etcd 3.7 answers a second one in the same way and says why in its log.
    done(&["cancel"], "Downgrade cancel success, cluster version 3.7");
    // The log is written behind the answers.
    until("the log says why", || member.log().contains("no inflight downgrade job"));
}

#[test]
fn the_status_names_the_alarms() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let cluster = Cluster::start(&ServerOptions::one(&program)).unwrap();
    let member = &cluster.members()[0];
    let id = status(member).unwrap().header.unwrap().member_id;
    assert_eq!(status(member).unwrap().errors, Vec::<String>::new());
    let change = |action: AlarmAction| -> AlarmResponse {
        let request =
            AlarmRequest { action: action as i32, member_id: id, alarm: AlarmType::Nospace as i32 };
        calls::call(member, "/etcdserverpb.Maintenance/Alarm", &request).unwrap()
    };
    change(AlarmAction::Activate);
    let expected = format!("memberID:{id} alarm:NOSPACE");
    assert_eq!(status(member).unwrap().errors, [expected]);
    change(AlarmAction::Deactivate);
    assert_eq!(status(member).unwrap().errors, Vec::<String>::new());
}
