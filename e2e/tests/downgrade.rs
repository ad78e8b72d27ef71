//! `etcdctl downgrade` of Go etcd against our server: texts, versions and status; and the version that a
//! cluster begins with.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::path::Path;
use std::process::Command;

use calls::{status, until};
use e2e::processes::{Cluster, ServerOptions, free_ports, http_get};
use e2e::serving::Serving;
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

/// What two of three founders say of their versions, while the third has not come and after it has.
fn versions_without_and_with_the_third(program: &Path, etcdctl: &Path) -> [Vec<String>; 2] {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(6).unwrap();
    let founders: Vec<(String, String, String)> = (1..)
        .zip(ports.chunks_exact(2))
        .map(|(number, ports)| {
            let at = |port: u16| format!("127.0.0.1:{port}");
            (format!("m{number}"), at(ports[0]), at(ports[1]))
        })
        .collect();
    let initial: Vec<String> =
        founders.iter().map(|(name, peer, _)| format!("{name}=http://{peer}")).collect();
    let launch = |(name, peer, client): &(String, String, String)| {
        let mut command = Command::new(program);
        command
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", directory.path().join(name).display()))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--initial-cluster={}", initial.join(",")))
            .env_clear();
        Serving::launch(&mut command).unwrap()
    };
    let said = |wanted: &str| {
        let mut said = Vec::new();
        for (_, _, client) in &founders[..2] {
            let version = || http_get(client, "/version").unwrap_or_default();
            let words = format!("\"etcdcluster\":\"{wanted}\"");
            until(&format!("the cluster has version {wanted}"), || version().contains(&words));
            // The storage follows.
            until("the storage has a version", || {
                !version().contains(r#""storage":"3.5.0""#) || wanted == "3.0.0"
            });
            let status = Command::new(etcdctl)
                .args(["endpoint", "status", "--write-out=json", "--endpoints", client.as_str()])
                .output()
                .unwrap();
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            let status = &status[0]["Status"];
            said.push(format!("{} {} {}", version(), status["version"], status["storageVersion"]));
        }
        said
    };
    let _two = [launch(&founders[0]), launch(&founders[1])];
    let without = said("3.0.0");
    let _third = launch(&founders[2]);
    [without, said("3.7.0")]
}

#[test]
fn a_cluster_that_misses_a_founder_begins_with_the_version_that_etcd_begins_with() {
    let go = e2e::peers::etcd_binaries().unwrap();
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let [ours, theirs] =
        [ours, go.etcd].map(|program| versions_without_and_with_the_third(&program, &go.etcdctl));
    assert_eq!(ours, theirs);
    assert!(ours[0][0].contains(r#""storage":"3.5.0""#), "{ours:?}");
}
