//! Many large answers at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::bench::http2::{Answer, Connection};
use e2e::bench::swarm::call_once;
use e2e::processes::{Cluster, Member, ServerOptions};
use mio::{Events, Interest, Poll, Token};
use prost::Message;
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    RangeRequest, RangeResponse,
};

use crate::calls::{call, metric, metrics, put, until};

const RANGE: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";

const MIB: usize = 1 << 20;
/// All values together; each has one MiB.
const DATA: usize = 64 * MIB;
const BUDGET: usize = 96 * MIB;
/// What may be there beside the budget: what 32 blocked connections gather before their sockets (up
/// to 512 KiB each), and what two RPC threads are just reading.
const NOT_COUNTED: usize = 24 * MIB;
const READERS: usize = 200;
const STALLED: usize = 32;
const TOO_MANY_REQUESTS: u32 = 2;
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long all readers together may take.
const READERS_LIMIT: Duration = Duration::from_secs(60);

fn everything() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"large/"),
        range_end: Bytes::from_static(b"large0"),
        ..RangeRequest::default()
    }
}

/// How everything is asked for, by the number of the reader.
fn question(number: usize) -> (&'static str, Vec<u8>) {
    match number % 3 {
        2 => (RANGE_STREAM, everything().encode_to_vec()),
        _ => (RANGE, everything().encode_to_vec()),
    }
}

/// A line of the kernel's about a process, in bytes.
fn memory(member: &Member, name: &str) -> usize {
    let path = format!("/proc/{}/status", member.pid().unwrap());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Forgets the most memory that a process has had.
fn forget_peak(member: &Member) {
    std::fs::write(format!("/proc/{}/clear_refs", member.pid().unwrap()), "5").unwrap();
}

/// Calls that are made and whose answers nobody reads.
fn stalled(address: SocketAddr) -> Vec<Connection> {
    let mut connections = Vec::new();
    for number in 0..STALLED {
        let mut connection = Connection::open(address).unwrap();
        let (path, request) = question(number);
        connection.call(path, &request, 0);
        until("it is sent", || {
            connection.flush().unwrap();
            !connection.has_output()
        });
        connections.push(connection);
    }
    connections
}

/// Makes the calls all at once, each on its own connection, and in their middle those whose answers
/// nobody reads; answers how many bytes each had and with which status it ended.
fn read_everything(address: SocketAddr, readers: usize) -> Vec<(usize, Option<u32>)> {
    let mut poll = Poll::new().unwrap();
    let (mut connections, mut unread) = (Vec::new(), Vec::new());
    for number in 0..readers {
        if number == readers / 2 {
            unread = stalled(address);
        }
        let mut connection = Connection::open(address).unwrap();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(connection.socket(), Token(number), interest).unwrap();
        let (path, request) = question(number);
        connection.call(path, &request, 0);
        connection.flush().unwrap();
        connections.push(connection);
    }
    let (mut bytes, mut ends) = (vec![0; readers], vec![None; readers]);
    let (mut events, began) = (Events::with_capacity(readers), Instant::now());
    while ends.iter().any(Option::is_none) {
        assert!(began.elapsed() < READERS_LIMIT, "{ends:?}");
        poll.poll(&mut events, Some(Duration::from_millis(50))).unwrap();
        for number in events.iter().map(|event| event.token().0) {
            let connection = &mut connections[number];
            let received = connection.receive(&mut |answer| match answer {
                Answer::Data { bytes: part, .. } => bytes[number] += part.len(),
                Answer::End { status, .. } => ends[number] = Some(status),
            });
            received.unwrap();
            connection.flush().unwrap();
        }
    }
    assert_eq!(unread.len(), STALLED, "they are there to the end");
    bytes.into_iter().zip(ends.into_iter().flatten()).collect()
}

/// Small gets, puts and renewals, until it is over: how long each took.
fn go_about_business(member: &Member, over: &AtomicBool) -> Vec<Duration> {
    let address: SocketAddr = member.endpoint.parse().unwrap();
    let grant = LeaseGrantRequest { ttl: 600, id: 7 };
    let _: LeaseGrantResponse = call(member, "/etcdserverpb.Lease/LeaseGrant", &grant).unwrap();
    let mut took = Vec::new();
    let mut timed = |work: &dyn Fn()| {
        let began = Instant::now();
        work();
        took.push(began.elapsed());
    };
    while !over.load(Ordering::Relaxed) {
        timed(&|| assert!(put(member, "small", b"value").unwrap() > 0));
        timed(&|| {
            let get = RangeRequest { key: Bytes::from_static(b"small"), ..Default::default() };
            let answer: RangeResponse = call(member, RANGE, &get).unwrap();
            assert_eq!(answer.kvs[0].value, "value");
        });
        timed(&|| {
            let renewal = LeaseKeepAliveRequest { id: 7 }.encode_to_vec();
            let path = "/etcdserverpb.Lease/LeaseKeepAlive";
            let answer = call_once(address, path, &renewal, CALL_LIMIT).unwrap();
            assert_eq!(LeaseKeepAliveResponse::decode(answer.as_slice()).unwrap().ttl, 600);
        });
        timed(&|| assert!(!member.metrics().unwrap().is_empty()));
    }
    took
}

/// A member with the data, started anew, so that nothing of the filling is in its memory.
fn filled() -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let flags = vec![format!("--max-read-memory-bytes={BUDGET}")];
    let options = ServerOptions { flags, ..ServerOptions::one(&program) };
    let mut cluster = Cluster::start(&options).unwrap();
    for number in 0..DATA / MIB {
        let value = vec![number as u8; MIB];
        put(&cluster.members()[0], &format!("large/{number:03}"), &value).unwrap();
    }
    // From here on the revision in an answer has two bytes, whatever else is written.
    for _ in 0..100 {
        put(&cluster.members()[0], "small", b"value").unwrap();
    }
    cluster.member_mut(0).restart().unwrap();
    cluster
}

/// T37 (etcd #12342, #12678, kubernetes#107325): so many listings of everything, and clients that do
/// not read theirs, took so many times the memory.
#[test]
fn t37_many_large_ranges_stay_within_their_memory_and_hold_nobody_up() {
    let cluster = filled();
    let member = &cluster.members()[0];
    let address: SocketAddr = member.endpoint.parse().unwrap();
    forget_peak(member);
    let base = memory(member, "VmRSS");
    let whole: Vec<usize> = (0..3)
        .map(|number| {
            let (path, request) = question(number);
            5 + call_once(address, path, &request, CALL_LIMIT).unwrap().len()
        })
        .collect();
    assert!(whole.iter().all(|bytes| *bytes > DATA), "{whole:?}");
    until("nothing is held", || metric(&metrics(member), "keelson_read_bytes_held", "") == 0.0);

    let over = AtomicBool::new(false);
    let (answers, mut took) = std::thread::scope(|scope| {
        let business = scope.spawn(|| go_about_business(member, &over));
        let answers = read_everything(address, READERS);
        over.store(true, Ordering::Relaxed);
        (answers, business.join().unwrap())
    });
    let grown = memory(member, "VmHWM") - base;

    let complete = answers.iter().filter(|(_, status)| *status == Some(0)).count();
    for (number, (bytes, status)) in answers.iter().enumerate() {
        match status {
            Some(0) => assert_eq!(*bytes, whole[number % 3], "answer {number}"),
            status => assert_eq!(*status, Some(TOO_MANY_REQUESTS), "answer {number}"),
        }
    }
    took.sort();
    let slowest = took[took.len() * 99 / 100];
    println!(
        "{complete} of {READERS} answered, {} MiB over the base of {} MiB, {} calls with p99 {slowest:?}",
        grown / MIB,
        base / MIB,
        took.len()
    );
    assert!(complete > 0);
    assert!(grown <= BUDGET + BUDGET / 5 + NOT_COUNTED, "{} MiB", grown / MIB);
    assert!(slowest <= Duration::from_secs(1), "{slowest:?}");
    until("all is given back", || metric(&metrics(member), "keelson_read_bytes_held", "") == 0.0);
}
