//! Members that are told to end do so, whatever the others do meanwhile.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::time::Duration;

use calls::{put, status, until};
use e2e::processes::{Cluster, ServerOptions, signal};

/// A leader tries for three election timeouts to hand its leadership over, then calls are drained.
const END_MAX: Duration = Duration::from_secs(60);

fn three() -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    Cluster::start(&ServerOptions { members: 3, ..ServerOptions::one(&program) }).unwrap()
}

fn leader(cluster: &Cluster) -> usize {
    let leader = status(&cluster.members()[0]).unwrap().leader;
    let member_id = |at: usize| status(&cluster.members()[at]).unwrap().header.unwrap().member_id;
    (0..3).find(|at| member_id(*at) == leader).unwrap()
}

#[test]
fn a_leader_ends_although_its_followers_do_not_answer() {
    let mut cluster = three();
    put(&cluster.members()[0], "k", b"v").unwrap();
    let leading = leader(&cluster);
    let others: Vec<u32> =
        (0..3).filter(|at| *at != leading).map(|at| cluster.members()[at].pid().unwrap()).collect();
    // They take connections, and nothing comes of them, as of a host that was cut off.
    others.iter().for_each(|pid| signal(*pid, "STOP").unwrap());
    signal(cluster.members()[leading].pid().unwrap(), "TERM").unwrap();
    let ended = cluster.member_mut(leading).wait_until_ended(END_MAX);
    others.iter().for_each(|pid| signal(*pid, "CONT").unwrap());
    assert!(ended.unwrap().success());
}

#[test]
fn members_that_are_told_to_end_at_once_all_end() {
    const ROUNDS: u64 = 5;
    let mut cluster = three();
    for round in 0..ROUNDS {
        put(&cluster.members()[0], "k", b"v").unwrap();
        for at in 0..3 {
            signal(cluster.members()[at].pid().unwrap(), "TERM").unwrap();
            // From all in the same moment to one after the other.
            std::thread::sleep(Duration::from_millis(20 * round));
        }
        for at in 0..3 {
            let ended = cluster.member_mut(at).wait_until_ended(END_MAX);
            assert!(ended.unwrap().success(), "round {round}");
        }
        for at in 0..3 {
            cluster.member_mut(at).launch().unwrap();
        }
        for at in 0..3 {
            cluster.member_mut(at).wait_until_healthy().unwrap();
        }
    }
}

/// As the first process of a container it would not even be killed: the kernel gives such a process
/// only the signals that it listens for.
#[test]
fn a_server_that_waits_for_its_directory_ends_when_it_is_told_to() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions::one(&program);
    let mut cluster = Cluster::start(&options).unwrap();
    let directory = cluster.members()[0].data_directory.clone();
    let second = cluster.prepare_to_join(&options, &[0]).unwrap();
    cluster.member_mut(second).set_flag(&format!("--data-dir={}", directory.display()));
    cluster.member_mut(second).launch().unwrap();
    until("the second process finds the directory taken", || {
        cluster.members()[second].log().contains("another process has locked the data directory")
    });
    signal(cluster.members()[second].pid().unwrap(), "TERM").unwrap();
    let ended = cluster.member_mut(second).wait_until_ended(END_MAX).unwrap();
    assert!(ended.success(), "{ended}");
    put(&cluster.members()[0], "k", b"v").unwrap();
}
