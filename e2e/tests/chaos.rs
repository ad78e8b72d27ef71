//! Three real processes under concurrent clients while members are killed and paused: every answer
//! must be one that a single store could have given, nothing acknowledged may be lost, every watch
//! keeps its promises, and no lease ends early or stays.
//!
//! `clients` ask and remember (`callers` for keys, compaction included, `tenants` for leases),
//! `watchers` watch, `nemesis` disturbs, and room `history` judges, as it does in the simulator. What
//! happened is what watches were delivered that follow each member from the first revision on; the
//! members must deliver the same. The traps are T17 (stale read after a pause), T02 and T27
//! (acknowledged writes lost), T19 (a lease renewed after its end), T09 (events lost by compaction)
//! and T36 (a read-only transaction over a pause).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

#[path = "chaos/callers.rs"]
mod callers;
#[path = "chaos/clients.rs"]
mod clients;
#[path = "chaos/nemesis.rs"]
mod nemesis;
#[path = "chaos/requests.rs"]
mod requests;
#[path = "chaos/tenants.rs"]
mod tenants;
#[path = "chaos/watchers.rs"]
mod watchers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::bench::swarm::call_once;
use e2e::processes::{Cluster, Member, ServerOptions};
use history::leases::{self, Limits};
use history::{Failure, Model, Operation, Request, linearizability, watches};
use prost::Message;
use proto::etcdserverpb::{HashKvRequest, HashKvResponse, RangeRequest, RangeResponse};

use clients::{Clients, Record};
use nemesis::{Fault, Nemesis, Progress};
use watchers::{Delivered, Watchers};

/// Calls that must have been answered.
const CALLS: usize = 200_000;
/// How long the load may take.
const LIMIT: Duration = Duration::from_secs(170);
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How much later than its time a lease may be heard to end: a pause, an election, and a machine that
/// has more to do.
const LEASE_GRACE: Duration = Duration::from_secs(12);

#[test]
fn clients_see_one_store_while_members_are_killed_and_paused() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions { members: 3, ..ServerOptions::one(&program) };
    let cluster = Cluster::start(&options).unwrap();
    let members: Vec<SocketAddr> = cluster.members().iter().map(address).collect();

    let (began, progress) = (Instant::now(), Arc::new(Progress::default()));
    let nemesis = Nemesis::start(cluster, Arc::clone(&progress));
    let watchers = Watchers::start(&members, began, &progress);
    let mut clients = Clients::new(&members, began, Arc::clone(&progress));
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
    let record = clients.into_record();
    wait_until_leases_are_over(members[0], &record);
    let until = began.elapsed().as_nanos() as u64;
    progress.finish(read(members[0], b"\0", false).header.unwrap().revision);
    let delivered = watchers.join();
    println!("in {:?} under {faults:?}", began.elapsed());

    let hash = assert_equal_hashes(&members, *delivered.revisions.last_key_value().unwrap().0);
    let (model, tally) = judge(&record, &delivered, hash.compact_revision, until);
    println!("{tally:?}");
    assert_final_state(&cluster, &members, &model);
    tally.assert_enough();
    for fault in Fault::ALL {
        assert!(faults.contains(&fault), "{fault:?} did not happen: {faults:?}");
    }
}

fn address(member: &Member) -> SocketAddr {
    member.endpoint.parse().unwrap()
}

/// How much has happened: a run in which nothing did proves nothing.
#[derive(Debug)]
#[allow(dead_code, reason = "what is not compared is shown")]
struct Tally {
    answered: usize,
    acknowledged_writes: usize,
    resolved_writes: usize,
    compactions: usize,
    compacted_reads: usize,
    leases: usize,
    expired: usize,
    revoked: usize,
    renewals: usize,
    watches: usize,
    resumed: usize,
    compacted_watches: usize,
    bookmarks: usize,
}

impl Tally {
    fn assert_enough(&self) {
        assert!(self.answered >= CALLS, "only {self:?}");
        assert!(self.acknowledged_writes > CALLS / 5, "too few writes: {self:?}");
        let counts = [
            (self.compactions, 5),
            (self.compacted_reads, 5),
            (self.expired, 10),
            (self.revoked, 5),
            (self.renewals, 20),
            (self.watches, 30),
            (self.resumed, 20),
            (self.compacted_watches, 3),
            (self.bookmarks, 50),
        ];
        assert!(counts.iter().all(|(count, least)| count >= least), "too little: {self:?}");
    }
}

fn judge(
    record: &Record,
    delivered: &Delivered,
    compact_revision: i64,
    until: u64,
) -> (Model, Tally) {
    let Record { operations, leases, terms } = record;
    assert_eq!(delivered.differences, [] as [String; 0], "members deliver different events");
    let judged = linearizability::check(operations, &delivered.revisions, &BTreeMap::new());
    let judged = judged.unwrap_or_else(|violation| panic!("{violation}"));
    let watched = watches::check(&delivered.watches, &delivered.revisions, compact_revision);
    watched.unwrap_or_else(|violation| panic!("{violation}"));
    let ends = leases::ends(operations, &judged, &delivered.seen);
    let grace = LEASE_GRACE.as_nanos() as u64;
    let limits = Limits { terms: terms.clone(), grace, until };
    leases::check(leases, &ends, &limits).unwrap_or_else(|violation| panic!("{violation}"));

    let count = |what: &dyn Fn(&Operation) -> bool| operations.iter().filter(|op| what(op)).count();
    let answered = |operation: &Operation| operation.response().is_some();
    let ended = |by_time| {
        let ended = leases.iter().filter_map(|lease| ends.get(&lease.id));
        ended.filter(|end| end.by_time == by_time).count()
    };
    let tally = Tally {
        answered: count(&answered),
        acknowledged_writes: judged.writers.len() - judged.resolved - ended(true),
        resolved_writes: judged.resolved,
        compactions: count(&|op| answered(op) && matches!(op.request, Request::Compact(_))),
        compacted_reads: count(&|op| {
            op.request.is_range() && op.result == Some(Err(Failure::Compacted))
        }),
        leases: leases.len(),
        expired: ended(true),
        revoked: ended(false),
        renewals: leases.iter().map(|lease| lease.renewals.len() - 1).sum(),
        watches: delivered.watches.len(),
        resumed: delivered.resumed,
        compacted_watches: delivered.compacted,
        bookmarks: delivered.bookmarks,
    };
    (judged.model, tally)
}

/// The longest that a lease may last from now on is waited for; whether that was too long is judged.
fn wait_until_leases_are_over(member: SocketAddr, record: &Record) {
    let ttl = record.leases.iter().map(|lease| lease.ttl).max().unwrap_or(0);
    let limit = Instant::now() + Duration::from_nanos(ttl) + LEASE_GRACE * 2;
    while Instant::now() < limit && !read(member, b"lease/", false).kvs.is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Each member has what the history leads to, by both kinds of read.
fn assert_final_state(cluster: &Cluster, members: &[SocketAddr], model: &Model) {
    let expected = model.all_at(model.revision());
    for (member, process) in members.iter().zip(cluster.members()) {
        for serializable in [false, true] {
            let found = read(*member, b"\0", serializable);
            let revision = found.header.unwrap().revision;
            assert_eq!(revision, model.revision(), "{} lost revisions", process.name);
            assert_eq!(found.kvs, expected, "{} has another state", process.name);
        }
    }
}

fn assert_equal_hashes(members: &[SocketAddr], revision: i64) -> HashKvResponse {
    let request = HashKvRequest { revision }.encode_to_vec();
    let path = "/etcdserverpb.Maintenance/HashKV";
    let hash = |member: &SocketAddr| {
        // Whoever answers this has applied everything that was acknowledged, compactions too.
        read(*member, b"lease/", false);
        let answer = call_once(*member, path, &request, CALL_LIMIT).unwrap();
        HashKvResponse { header: None, ..HashKvResponse::decode(answer.as_slice()).unwrap() }
    };
    let hashes: Vec<HashKvResponse> = members.iter().map(hash).collect();
    assert_eq!(hashes, vec![hashes[0]; members.len()], "the members' hashes differ");
    hashes[0]
}

/// The keys from the first on that is given, to the end of its directory or of all.
fn read(member: SocketAddr, from: &'static [u8], serializable: bool) -> RangeResponse {
    let range_end = match from.strip_suffix(b"/") {
        Some(directory) => [directory, b"0"].concat().into(),
        None => bytes::Bytes::from_static(b"\0"),
    };
    let key = bytes::Bytes::from_static(from);
    let request = RangeRequest { key, range_end, serializable, ..Default::default() };
    let path = "/etcdserverpb.KV/Range";
    let answer = call_once(member, path, &request.encode_to_vec(), CALL_LIMIT).unwrap();
    RangeResponse::decode(answer.as_slice()).unwrap()
}
