//! Members that are told to end do so, whatever the others do meanwhile.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use calls::{metric, metrics, put, remove_member, status, until};
use e2e::processes::{Cluster, Member, ServerOptions, signal};

/// A leader tries for three election timeouts to hand its leadership over, then calls are drained.
const END_MAX: Duration = Duration::from_secs(60);

fn three() -> Cluster {
    three_with(&[])
}

fn three_with(flags: &[String]) -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options =
        ServerOptions { members: 3, flags: flags.to_vec(), ..ServerOptions::one(&program) };
    Cluster::start(&options).unwrap()
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

/// A leader that only ends is missed after an election timeout, which is long enough here to be seen.
#[test]
fn a_leader_that_ends_hands_over_first_and_writes_go_on() {
    const ELECTION: Duration = Duration::from_secs(5);
    let mut cluster = three_with(&[format!("--election-timeout={}", ELECTION.as_millis())]);
    put(&cluster.members()[0], "k", b"v").unwrap();
    let leading = leader(&cluster);
    let follower = &cluster.members()[(leading + 1) % 3];
    let leader_id = status(follower).unwrap().leader;
    // The process cannot end before this call does, so there is time to look at who leads.
    let open = UnfinishedCall::begin(&cluster.members()[leading]);
    let written = AtomicU64::new(0);
    let wait_for_writes = || {
        let before = written.load(Ordering::Acquire);
        until("writes go on", || written.load(Ordering::Acquire) > before + 10);
    };
    let longest = thread::scope(|scope| {
        let writer = scope.spawn(|| longest_write(follower, &written));
        wait_for_writes();
        signal(cluster.members()[leading].pid().unwrap(), "TERM").unwrap();
        until("another member leads", || {
            status(follower).is_ok_and(|status| ![0, leader_id].contains(&status.leader))
        });
        assert!(open.is_in_progress(), "the old leader has ended before another one led");
        wait_for_writes();
        written.store(ENOUGH, Ordering::Release);
        writer.join().unwrap()
    });
    drop(open);
    let old = cluster.member_mut(leading);
    assert!(old.wait_until_ended(END_MAX).unwrap().success());
    assert!(!old.log().contains("leadership was not handed over"), "{}", old.log());
    assert!(longest < ELECTION / 2, "a write took {longest:?}");
}

/// From this count on nothing more is written.
const ENOUGH: u64 = u64::MAX / 2;

/// Writes through a member, counting, and answers how long the slowest took, with its repetitions.
fn longest_write(member: &Member, written: &AtomicU64) -> Duration {
    let mut longest = Duration::ZERO;
    let end = Instant::now() + END_MAX; // Whoever should stop it may have failed.
    while written.fetch_add(1, Ordering::AcqRel) < ENOUGH && Instant::now() < end {
        let began = Instant::now();
        while put(member, "written", b"all the while").is_err() && Instant::now() < end {}
        longest = longest.max(began.elapsed());
    }
    longest
}

/// A call whose server waits for the rest of the request.
struct UnfinishedCall(TcpStream);

impl UnfinishedCall {
    fn begin(member: &Member) -> UnfinishedCall {
        let mut stream = TcpStream::connect(&member.endpoint).unwrap();
        let head = "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Length: 2\r\n\
                    Expect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_read_timeout(Some(END_MAX)).unwrap();
        let mut asked_for_more = [0; 25];
        stream.read_exact(&mut asked_for_more).unwrap();
        assert_eq!(&asked_for_more, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.set_nonblocking(true).unwrap();
        UnfinishedCall(stream)
    }

    /// Neither answered nor cut off.
    fn is_in_progress(&self) -> bool {
        self.0.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// A client that hears nothing does not know whether it was written.
#[test]
fn a_request_under_way_gets_its_answer_however_long_it_takes() {
    const PUT: &str = "grpc_method=\"Put\"";
    let mut cluster = three();
    put(&cluster.members()[0], "k", b"v").unwrap();
    let leading = leader(&cluster);
    let left = (leading + 1) % 3;
    for at in (0..3).filter(|at| *at != left) {
        cluster.member_mut(at).kill().unwrap();
    }
    let member = &cluster.members()[left];
    let etcdctl = e2e::peers::our_binary("etcdctl").unwrap();
    let put_it = || {
        let mut command = Command::new(&etcdctl);
        command.arg(format!("--endpoints={}", member.client_url())).arg("--command-timeout=60s");
        command.args(["put", "k", "w"]).output().unwrap()
    };
    let begun = || metric(&metrics(member), "grpc_server_started_total", PUT);
    let before = begun();
    let answer = thread::scope(|scope| {
        let waiting = scope.spawn(put_it);
        until("the request has arrived", || begun() > before);
        signal(member.pid().unwrap(), "TERM").unwrap();
        waiting.join().unwrap()
    });
    let refusal = String::from_utf8_lossy(&answer.stderr);
    assert!(refusal.contains("etcdserver: request timed out"), "{refusal}");
    assert!(cluster.member_mut(left).wait_until_ended(END_MAX).unwrap().success());
}

/// Nobody sends a removed member the entry that removes it; once one of the others has refused a message of
/// its, it knows, whether it led or followed (etcd's others answer 410).
#[test]
fn a_member_that_was_removed_ends_by_itself() {
    for leads in [true, false] {
        let mut cluster = three();
        let leading = leader(&cluster);
        let doomed = if leads { leading } else { (leading + 1) % 3 };
        let id = status(&cluster.members()[doomed]).unwrap().header.unwrap().member_id;
        remove_member(&cluster.members()[(doomed + 1) % 3], id).unwrap();
        let ended = cluster.member_mut(doomed).wait_until_ended(END_MAX).unwrap();
        assert!(!ended.success(), "{ended}");
        let log = cluster.members()[doomed].log();
        assert!(log.contains("the member has been permanently removed from the cluster"), "{log}");
    }
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
