//! What is done to the members: killed as by a crash or paused as by a stuck disk or hypervisor, the
//! leader, a follower, a majority, all. Every fault ends with a cluster that must make progress.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::bench::protobuf::{bytes, number};
use e2e::bench::swarm::call_once;
use e2e::processes::{Cluster, signal};

/// Longer than an election takes, shorter than a client waits: what was asked before the pause is
/// answered after it.
const PAUSE: Duration = Duration::from_millis(2500);
const DEAD: Duration = Duration::from_millis(700);
/// Calls that must be answered between two faults, and how long that may take.
const CALM: usize = 12_000;
const RECOVERY: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillLeader,
    PauseLeader,
    KillFollower,
    PauseFollower,
    KillMajority,
    PauseMajority,
    KillAll,
}

impl Fault {
    pub(crate) const ALL: [Fault; 7] = [
        Fault::KillLeader,
        Fault::PauseLeader,
        Fault::KillFollower,
        Fault::PauseFollower,
        Fault::KillMajority,
        Fault::PauseMajority,
        Fault::KillAll,
    ];

    /// The members it hits.
    fn victims(self, leader: usize, members: usize) -> Vec<usize> {
        let follower = (leader + 1) % members;
        match self {
            Fault::KillLeader | Fault::PauseLeader => vec![leader],
            Fault::KillFollower | Fault::PauseFollower => vec![follower],
            Fault::KillMajority | Fault::PauseMajority => vec![leader, follower],
            Fault::KillAll => (0..members).collect(),
        }
    }

    fn pauses(self) -> bool {
        matches!(self, Fault::PauseLeader | Fault::PauseFollower | Fault::PauseMajority)
    }
}

/// What the clients, the watchers and the nemesis know of each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    answered: AtomicUsize,
    faults: AtomicUsize,
    stop: AtomicBool,
    /// The revision up to which every member has delivered everything.
    delivered: AtomicI64,
    /// The last revision, once nothing more is written.
    last: AtomicI64,
}

impl Progress {
    pub(crate) fn count_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }

    pub(crate) fn delivered(&self) -> i64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(crate) fn deliver(&self, revision: i64) {
        self.delivered.store(revision, Ordering::Relaxed);
    }

    /// The last revision, once nothing more is written.
    pub(crate) fn last(&self) -> Option<i64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|last| *last > 0)
    }

    /// Nothing is written after this revision.
    pub(crate) fn finish(&self, last: i64) {
        self.last.store(last, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub(crate) struct Nemesis {
    thread: JoinHandle<(Cluster, Vec<Fault>)>,
}

impl Nemesis {
    pub(crate) fn start(mut cluster: Cluster, progress: Arc<Progress>) -> Nemesis {
        let thread = thread::spawn(move || {
            let mut faults = Vec::new();
            await_calm(&progress, "before the first fault");
            for fault in Fault::ALL.into_iter().cycle() {
                if progress.stop.load(Ordering::Relaxed) {
                    break;
                }
                strike(&mut cluster, fault);
                await_calm(&progress, &format!("after {fault:?}"));
                faults.push(fault);
                progress.faults.fetch_add(1, Ordering::Relaxed);
            }
            (cluster, faults)
        });
        Nemesis { thread }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn finish(self) -> (Cluster, Vec<Fault>) {
        self.thread.join().expect("the nemesis has failed; its message is above")
    }
}

fn strike(cluster: &mut Cluster, fault: Fault) {
    let victims = fault.victims(find_leader(cluster), cluster.members().len());
    if fault.pauses() {
        let pids: Vec<u32> =
            victims.iter().map(|victim| cluster.members()[*victim].pid().unwrap()).collect();
        pids.iter().for_each(|pid| signal(*pid, "STOP").unwrap());
        thread::sleep(PAUSE);
        pids.iter().for_each(|pid| signal(*pid, "CONT").unwrap());
    } else {
        victims.iter().for_each(|victim| cluster.member_mut(*victim).kill().unwrap());
        thread::sleep(DEAD);
        victims.iter().for_each(|victim| cluster.member_mut(*victim).launch().unwrap());
    }
    for victim in victims {
        cluster.member_mut(victim).wait_until_healthy().unwrap();
    }
}

/// Waits until clients are answered as if nothing had happened.
fn await_calm(progress: &Progress, when: &str) {
    let (began, before) = (Instant::now(), progress.answered());
    while progress.answered() < before + CALM {
        assert!(
            began.elapsed() < RECOVERY,
            "{} calls were answered in {RECOVERY:?} {when}",
            progress.answered() - before
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn find_leader(cluster: &Cluster) -> usize {
    let began = Instant::now();
    while began.elapsed() < RECOVERY {
        for (index, member) in cluster.members().iter().enumerate() {
            let address: SocketAddr = member.endpoint.parse().unwrap();
            let path = "/etcdserverpb.Maintenance/Status";
            let Ok(status) = call_once(address, path, &[], Duration::from_secs(2)) else {
                continue;
            };
            let leader = number(&status, 4);
            if leader != 0 && leader == number(bytes(&status, 1), 2) {
                return index;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("no leader in {RECOVERY:?}");
}
