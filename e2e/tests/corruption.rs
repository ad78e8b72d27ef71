//! A member whose data differ from the others' although its log looks the same: it does not start
//! with the initial check, and gets the CORRUPT alarm by the checks of the leader.
//!
//! The difference is real: the cluster is run twice from nothing, with other values but so that Raft
//! cannot tell the two runs apart, and then one member's directory of the second run is put among the
//! members of the first.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;

use calls::{call, compact, hash_kv, put, status, until};
use e2e::processes::{Cluster, ServerOptions, http_get};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmResponse, AlarmType};

const KEYS: usize = 30;

/// Fills a new cluster, ends it, and answers the term that all entries are of and the log's length.
fn run(cluster: &mut Cluster, value: &str) -> (u64, u64) {
    for number in 0..KEYS {
        put(&cluster.members()[0], &format!("key-{number}"), value.as_bytes()).unwrap();
    }
    let revision = KEYS as i64 + 1;
    until("all members have everything", || {
        cluster.members().iter().all(|member| hash_kv(member, revision).is_ok())
    });
    let shown: Vec<(u64, u64)> = cluster
        .members()
        .iter()
        .map(|member| status(member).unwrap())
        .map(|status| (status.raft_term, status.raft_applied_index))
        .collect();
    for index in 0..3 {
        cluster.member_mut(index).kill().unwrap();
    }
    assert!(shown.iter().all(|other| *other == shown[0]), "{shown:?}");
    shown[0]
}

/// A stopped cluster whose third member has the data of another history.
fn with_an_odd_member(flags: &[&str]) -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions {
        members: 3,
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..ServerOptions::one(&program)
    };
    const ATTEMPTS: usize = 10;
    let mut cluster = Cluster::start(&options).unwrap();
    let first = run(&mut cluster, "one value");
    let kept = cluster.members()[0].data_directory.with_file_name("kept");
    fs::create_dir(&kept).unwrap();
    for member in cluster.members() {
        fs::rename(&member.data_directory, kept.join(&member.name)).unwrap();
    }
    for _ in 0..ATTEMPTS {
        for index in 0..3 {
            // A run that was not alike is thrown away.
            let _ = fs::remove_dir_all(&cluster.members()[index].data_directory);
            cluster.member_mut(index).launch().unwrap();
        }
        for index in 0..3 {
            cluster.member_mut(index).wait_until_healthy().unwrap();
        }
        if run(&mut cluster, "another") == first {
            for member in &cluster.members()[..2] {
                fs::remove_dir_all(&member.data_directory).unwrap();
                fs::rename(kept.join(&member.name), &member.data_directory).unwrap();
            }
            return cluster;
        }
    }
    panic!("no second run was like the first, {first:?}");
}

fn start(cluster: &mut Cluster, members: &[usize]) {
    for index in members {
        cluster.member_mut(*index).launch().unwrap();
    }
    for index in members {
        cluster.member_mut(*index).wait_until_healthy().unwrap();
    }
}

fn corrupt(cluster: &Cluster) -> Vec<u64> {
    let request = AlarmRequest {
        action: AlarmAction::Get as i32,
        member_id: 0,
        alarm: AlarmType::Corrupt as i32,
    };
    let path = "/etcdserverpb.Maintenance/Alarm";
    let answer: AlarmResponse = call(&cluster.members()[0], path, &request).unwrap();
    answer.alarms.iter().map(|alarm| alarm.member_id).collect()
}

#[test]
fn a_member_with_other_data_does_not_start_and_the_periodic_check_finds_it() {
    let mut cluster = with_an_odd_member(&["--corrupt-check-time=300ms"]);
    start(&mut cluster, &[0, 1]);
    let odd = cluster.member_mut(2);
    let (ended, log) = odd.launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(log.contains("found different hash values from remote peer"), "{log}");
    assert!(log.contains("clear its data directory"), "{log}");

    cluster.member_mut(2).set_flag("--feature-gates=InitialCorruptCheck=false");
    cluster.member_mut(2).launch().unwrap();
    until("the alarm is raised", || !corrupt(&cluster).is_empty());
    let error = put(&cluster.members()[0], "key", b"value").unwrap_err();
    assert!(format!("{error:#}").contains("grpc-status Some(15)"), "not DataLoss: {error:#}");
    let health = http_get(cluster.members()[0].metrics_endpoint(), "/health").unwrap();
    assert!(health.contains("false"), "{health}");
}

/// etcd's initial check would stop the sound member, and tell its owner to throw its data away.
#[test]
fn a_sound_member_starts_beside_an_odd_one_if_a_majority_is_like_it() {
    let mut cluster = with_an_odd_member(&[]);
    for index in [0, 2] {
        cluster.member_mut(index).set_flag("--feature-gates=InitialCorruptCheck=false");
    }
    start(&mut cluster, &[0, 2]);
    let odd = status(&cluster.members()[2]).unwrap().header.unwrap().member_id;
    assert!(corrupt(&cluster).is_empty(), "nobody has looked");
    cluster.member_mut(1).launch().unwrap();
    until("the odd one is told", || corrupt(&cluster) == [odd]);
    until("the sound one serves", || status(&cluster.members()[1]).is_ok());
    assert!(cluster.members()[1].log().contains("a minority has other data"));

    // Without the third nobody can tell who is right.
    for index in [0, 1] {
        cluster.member_mut(index).kill().unwrap();
    }
    let (ended, log) = cluster.member_mut(1).launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(log.contains("no majority tells which of them is right"), "{log}");
}

#[test]
fn the_compact_hash_check_names_the_odd_member() {
    let flags = ["--feature-gates=InitialCorruptCheck=false", "--compact-hash-check-time=300ms"];
    let mut cluster = with_an_odd_member(&flags);
    start(&mut cluster, &[0, 1, 2]);
    let odd = status(&cluster.members()[2]).unwrap().header.unwrap().member_id;
    assert!(corrupt(&cluster).is_empty(), "nothing is compacted yet");
    compact(&cluster.members()[0], KEYS as i64).unwrap();
    until("the alarm is raised", || !corrupt(&cluster).is_empty());
    assert_eq!(corrupt(&cluster), [odd]);
}

#[test]
fn sound_members_pass_all_checks() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let flags = ["--compact-hash-check-time=200ms", "--corrupt-check-time=200ms"];
    let options = ServerOptions {
        members: 3,
        flags: flags.map(str::to_owned).to_vec(),
        ..ServerOptions::one(&program)
    };
    let cluster = Cluster::start(&options).unwrap();
    for number in 0..KEYS {
        put(&cluster.members()[0], &format!("key-{}", number % 5), b"value").unwrap();
    }
    compact(&cluster.members()[0], KEYS as i64 / 2).unwrap();
    let said = |text: &str| cluster.members().iter().any(|member| member.log().contains(text));
    until("the checks are made", || {
        said("successfully checked hash on whole cluster")
            && said("finished compaction hash check")
            && said("finished peer corruption check")
    });
    for member in cluster.members() {
        assert!(member.log().contains("initial corruption checking passed; no corruption"));
    }
    assert!(corrupt(&cluster).is_empty());
    put(&cluster.members()[0], "key", b"value").unwrap();
}

/// etcd's check passed over members that did not answer, and nobody knew that nothing had been compared.
#[test]
fn t40_a_check_that_could_not_compare_everybody_is_counted_and_told() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let flags = vec!["--corrupt-check-time=200ms".to_owned()];
    let options = ServerOptions { members: 3, flags, ..ServerOptions::one(&program) };
    let mut cluster = Cluster::start(&options).unwrap();
    put(&cluster.members()[0], "key", b"value").unwrap();
    // The leader's; the others' counts stand still.
    let most = |cluster: &Cluster, name: &str| -> f64 {
        let beginning = format!("{name} ");
        let values = cluster.members().iter().filter_map(|member| {
            let metrics = member.metrics().ok()?;
            let line = metrics.lines().find(|line| line.starts_with(&beginning))?.to_owned();
            line[beginning.len()..].parse::<f64>().ok()
        });
        values.fold(0.0, f64::max)
    };
    let in_a_row = "keelson_corruption_checks_incomplete_in_a_row{check=\"periodic\"}";
    let count = |result: &str| {
        format!("keelson_corruption_checks_total{{check=\"periodic\",result=\"{result}\"}}")
    };
    until("all are compared", || most(&cluster, &count("passed")) > 0.0);

    cluster.member_mut(2).kill().unwrap();
    until("it counts what it cannot check", || most(&cluster, in_a_row) >= 4.0);
    let told = "whether all hold the same data is not known";
    assert!(cluster.members()[..2].iter().any(|member| member.log().contains(told)));
    assert!(corrupt(&cluster).is_empty(), "nobody was found to be odd");

    cluster.member_mut(2).restart().unwrap();
    until("all are compared again", || most(&cluster, in_a_row) == 0.0);
    assert_eq!(most(&cluster, &count("mismatch")), 0.0);
}
