//! Three real processes under concurrent clients while members are killed and paused: every answer
//! must be one that a single store could have given, and nothing acknowledged may be lost.
//!
//! `clients` asks and records, `nemesis` disturbs, `e2e::history` judges. The order of all writes
//! comes from a watch that starts at the first revision, taken from each member at the end; the
//! members must deliver the same one. The traps are T17 (stale read after a pause), T02 and T27
//! (acknowledged writes lost) and T36 (a read-only transaction over a pause).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

#[path = "chaos/clients.rs"]
mod clients;
#[path = "chaos/nemesis.rs"]
mod nemesis;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::bench::swarm::call_once;
use e2e::history::{Event, KeyValue, Timeline, check};
use e2e::processes::{Cluster, Member, ServerOptions};
use prost::Message;
use proto::etcdserverpb::{HashKvRequest, HashKvResponse, RangeRequest, RangeResponse};

use clients::Clients;
use nemesis::{Fault, Nemesis, Progress};

/// Calls that must have been answered.
const CALLS: usize = 200_000;
/// How long the load may take.
const LIMIT: Duration = Duration::from_secs(170);
const CALL_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn clients_see_one_store_while_members_are_killed_and_paused() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions { members: 3, ..ServerOptions::one(&program) };
    let cluster = Cluster::start(&options).unwrap();
    let members: Vec<SocketAddr> = cluster.members().iter().map(address).collect();

    let progress = Arc::new(Progress::default());
    let nemesis = Nemesis::start(cluster, Arc::clone(&progress));
    let mut clients = Clients::new(members.clone(), Arc::clone(&progress));
    let began = Instant::now();
    while began.elapsed() < LIMIT
        && !nemesis.is_finished()
        && (clients.answered() < CALLS || progress.faults() < Fault::ALL.len())
    {
        clients.turn();
    }
    progress.stop();
    // The clients go on until the last fault is over: its end needs a cluster that makes progress.
    while !nemesis.is_finished() {
        clients.turn();
    }
    let (cluster, faults) = nemesis.finish();
    clients.wait_for_answers();
    let took = began.elapsed();
    let calls = clients.into_calls();

    let history = clients::watch_from_the_beginning(members[0]);
    for member in &members[1..] {
        let other = clients::watch_from_the_beginning(*member);
        let difference = history.iter().zip(&other).find(|(one, other)| one != other);
        assert_eq!(history.len(), other.len(), "the watches differ first at {difference:?}");
        assert_eq!(difference, None, "two members deliver different events");
    }
    let timeline = Timeline::replay(&history).unwrap_or_else(|violation| panic!("{violation}"));
    let (checked, violations) = check(&calls, &timeline);
    println!("{checked:?} in {took:?} under {faults:?}");
    for violation in violations.iter().take(20) {
        println!("VIOLATION {violation}");
    }
    assert_eq!(violations.len(), 0, "violations; the faults were {faults:?}");
    assert_final_state(&cluster, &members, &timeline, &history);

    assert!(checked.answered >= CALLS, "only {checked:?} in {took:?} under {faults:?}");
    assert!(checked.acknowledged_writes > CALLS / 5, "too few writes: {checked:?}");
    for fault in Fault::ALL {
        assert!(faults.contains(&fault), "{fault:?} did not happen: {faults:?}");
    }
}

fn address(member: &Member) -> SocketAddr {
    member.endpoint.parse().unwrap()
}

/// Each member has what the history leads to, by both kinds of read and by its hash.
fn assert_final_state(
    cluster: &Cluster,
    members: &[SocketAddr],
    timeline: &Timeline,
    history: &[Event],
) {
    let expected = timeline.state(timeline.last());
    let mut hashes = Vec::new();
    for (member, process) in members.iter().zip(cluster.members()) {
        for serializable in [false, true] {
            let (revision, found) = read_all(*member, serializable);
            assert_eq!(revision, timeline.last(), "{} lost revisions", process.name);
            assert_eq!(found, expected, "{} has another state", process.name);
        }
        let request = HashKvRequest { revision: timeline.last() }.encode_to_vec();
        let path = "/etcdserverpb.Maintenance/HashKV";
        let answer = call_once(*member, path, &request, CALL_LIMIT).unwrap();
        let answer = HashKvResponse::decode(answer.as_slice()).unwrap();
        hashes.push((answer.hash, answer.compact_revision, answer.hash_revision));
    }
    assert!(history.len() > CALLS / 10, "only {} events", history.len());
    assert_eq!(hashes, vec![hashes[0]; members.len()], "the members' hashes differ");
}

fn read_all(member: SocketAddr, serializable: bool) -> (i64, Vec<KeyValue>) {
    let range_end = bytes::Bytes::from_static(b"\0");
    let request =
        RangeRequest { key: range_end.clone(), range_end, serializable, ..Default::default() };
    let path = "/etcdserverpb.KV/Range";
    let answer = call_once(member, path, &request.encode_to_vec(), CALL_LIMIT).unwrap();
    let answer = RangeResponse::decode(answer.as_slice()).unwrap();
    let found = answer.kvs.iter().map(clients::key_value).collect();
    (answer.header.unwrap().revision, found)
}
