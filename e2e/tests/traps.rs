//! What went wrong in etcd once and shows only in whole processes: each trap has a test of its own here,
//! or in the room where it belongs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;
mod traps {
    mod memory;
}

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use calls::{add_learner, add_member, call, members, put, read_all, status, until};
use e2e::bench::swarm::call_once;
use e2e::processes::{Cluster, Member, ServerOptions, signal};
use prost::Message;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};

/// Larger than what any member sends another.
const TOO_LARGE: usize = (64 << 20) + 1;

/// So many changes fill a pipe and the queue of log lines before it.
const CHANGES: usize = 400;

/// How long a request may take that nothing is to hold up.
const PROMPT: Duration = Duration::from_secs(5);

/// A member that is down counts as active for an election timeout of a second.
const COUNTED: Duration = Duration::from_secs(2);

/// How long a round of pausing may take.
const ROUND_MAX: Duration = Duration::from_secs(100);

fn cluster(members: usize, flags: &[String]) -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions { members, flags: flags.to_vec(), ..ServerOptions::one(&program) };
    Cluster::start(&options).unwrap()
}

/// The most memory that a member has had so far.
fn peak_bytes(member: &Member) -> u64 {
    let path = format!("/proc/{}/status", member.pid().unwrap());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// etcd PR#22161: the peer listener read bodies of any length, from anybody who could reach it.
#[test]
fn pr22161_a_message_beyond_all_bounds_is_refused_by_the_peer_listener() {
    let cluster = cluster(1, &[]);
    let member = &cluster.members()[0];
    let peer: SocketAddr = member.peer_url.trim_start_matches("http://").parse().unwrap();
    let before = peak_bytes(member);
    let message = vec![0; TOO_LARGE];
    for path in ["/keelson.peer.v1.Member/Forward", "/keelson.peer.v1.Raft/Vote"] {
        let error = call_once(peer, path, &message, PROMPT).unwrap_err();
        assert!(format!("{error:#}").contains("grpc-status Some(11)"), "{path}: {error:#}");
    }
    let grown = peak_bytes(member) - before;
    assert!(grown < TOO_LARGE as u64 / 2, "{grown} bytes were taken for it");
    put(member, "key", b"value").unwrap();
}

/// T35 (etcd #22214): nobody reads the log, and what it was written to is full.
#[test]
fn t35_a_log_that_nobody_reads_holds_up_neither_requests_nor_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Opened for both, the pipe has a reader before the server comes.
    let mut reader = File::options().read(true).write(true).open(&pipe).unwrap();
    let flags = [format!("--log-outputs={}", pipe.display()), "--log-level=debug".to_owned()];
    let mut cluster = cluster(1, &flags);
    let member = &cluster.members()[0];
    let change_and_read = || {
        for number in 0..CHANGES {
            let began = Instant::now();
            put(member, "key", number.to_string().as_bytes()).unwrap();
            assert_eq!(read_all(member).unwrap()[0].1, number.to_string().as_bytes());
            assert!(began.elapsed() < PROMPT, "change {number} took {:?}", began.elapsed());
        }
    };
    change_and_read();
    // Lines were dropped, so the queue was full; the log says so once it is read again.
    let mut seen = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    while !String::from_utf8_lossy(&seen).contains("dropped-log-lines") {
        let length = reader.read(&mut chunk).unwrap();
        seen = [&seen[seen.len().saturating_sub(100)..], &chunk[..length]].concat();
        put(member, "more", b"lines").unwrap();
    }
    change_and_read();
    signal(member.pid().unwrap(), "TERM").unwrap();
    cluster.member_mut(0).wait_until_ended(2 * PROMPT).unwrap();
}

fn read_only_transaction() -> Vec<u8> {
    let key = bytes::Bytes::from_static(b"key");
    let compare = Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Version as i32,
        key: key.clone(),
        range_end: bytes::Bytes::new(),
        target_union: Some(TargetUnion::Version(0)),
    };
    let range = RangeRequest { key, ..RangeRequest::default() };
    let range = RequestOp { request: Some(Request::RequestRange(range)) };
    let transaction =
        TxnRequest { compare: vec![compare], success: vec![range], failure: Vec::new() };
    transaction.encode_to_vec()
}

/// T36 (etcd #14891): a leader that was stopped went on with transactions that only read while it
/// lost its leadership, and ended by a panic.
#[test]
fn t36_transactions_that_only_read_survive_a_pause_of_their_member() {
    const PATH: &str = "/etcdserverpb.KV/Txn";
    let cluster = cluster(3, &[]);
    put(&cluster.members()[0], "key", b"value").unwrap();
    let transaction = read_only_transaction();
    for round in 0..3 {
        let leader = status(&cluster.members()[round]).unwrap().leader;
        let leads = |member: &&Member| status(member).unwrap().header.unwrap().member_id == leader;
        let paused = cluster.members().iter().find(leads).unwrap();
        let others = cluster.members().iter().find(|member| !leads(member)).unwrap();
        let address: SocketAddr = paused.endpoint.parse().unwrap();
        let began = Instant::now();
        let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) && began.elapsed() < ROUND_MAX {
                        // Without a leader there may be no answer, but never a wrong one.
                        let limit = Duration::from_secs(20);
                        if let Ok(answer) = call_once(address, PATH, &transaction, limit) {
                            let answer = TxnResponse::decode(answer.as_slice()).unwrap();
                            assert!(answer.succeeded && answer.responses.len() == 1, "{answer:?}");
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            until("transactions are answered", || answered.load(Ordering::Relaxed) > 20);
            signal(paused.pid().unwrap(), "STOP").unwrap();
            until("another leads", || {
                status(others).is_ok_and(|now| ![0, leader].contains(&now.leader))
            });
            signal(paused.pid().unwrap(), "CONT").unwrap();
            let before = answered.load(Ordering::Relaxed);
            until("they are answered again", || answered.load(Ordering::Relaxed) > before + 20);
            over.store(true, Ordering::Relaxed);
        });
        assert!(!paused.log().contains("panic"), "{}", paused.log());
        put(paused, "key", b"value").unwrap();
    }
}

/// Adds a member and starts it; answers its place among the members.
fn join(cluster: &mut Cluster, is_learner: bool) -> usize {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let of: Vec<usize> = (0..cluster.members().len()).collect();
    let joining = cluster.prepare_to_join(&ServerOptions::one(&program), &of).unwrap();
    let peer_url = cluster.members()[joining].peer_url.clone();
    let add = if is_learner { add_learner } else { add_member };
    add(&cluster.members()[0], &peer_url).unwrap();
    cluster.member_mut(joining).launch().unwrap();
    joining
}

/// T31 (etcd PR#21669): one of three is down. Writes go on, a learner and a voter join, and with the voter
/// the cluster bears that another goes.
#[test]
fn t31_with_one_of_three_down_a_learner_and_a_voter_join() {
    let mut cluster = cluster(3, &[]);
    put(&cluster.members()[0], "before", b"value").unwrap();
    cluster.member_mut(2).kill().unwrap();
    let down = Instant::now();
    until("there is a leader", || put(&cluster.members()[0], "without", b"value").is_ok());
    while down.elapsed() < COUNTED {
        put(&cluster.members()[0], "without", b"value").unwrap();
    }

    let learner = join(&mut cluster, true);
    put(&cluster.members()[0], "learner-added", b"value").unwrap();
    // Until it has, it knows of no other newcomer, and would find their number wrong.
    let name = cluster.members()[learner].name.clone();
    until("the learner has started", || {
        let listed = members(&cluster.members()[0]).unwrap().members;
        listed.iter().any(|member| member.name == name && member.is_learner)
    });
    let voter = join(&mut cluster, false);
    put(&cluster.members()[0], "voter-added", b"value").unwrap();
    cluster.member_mut(voter).wait_until_healthy().unwrap();
    put(&cluster.members()[voter], "after", b"value").unwrap();
    let request = RangeRequest { key: "after".into(), serializable: true, ..Default::default() };
    until("the learner has it all", || {
        let path = "/etcdserverpb.KV/Range";
        call::<RangeResponse>(&cluster.members()[learner], path, &request)
            .is_ok_and(|found| !found.kvs.is_empty())
    });

    cluster.member_mut(2).launch().unwrap();
    cluster.member_mut(2).wait_until_healthy().unwrap();
    cluster.member_mut(1).kill().unwrap();
    let everything = ["after", "before", "learner-added", "voter-added", "without"];
    for at in [0, 2, voter] {
        let member = &cluster.members()[at];
        until("three of four voters go on", || put(member, "without", b"value").is_ok());
        let found: Vec<String> =
            read_all(member).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(found, everything, "{}", member.name);
    }
}
