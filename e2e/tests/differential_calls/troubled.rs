//! What is answered while leaders go, and to more calls than a member takes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::bench::http2::{Answer, Connection};
use e2e::peers;
use e2e::processes::signal;
use mio::{Events, Interest, Poll, Token};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;
use tonic::Code;

use super::random::lead;
use super::refusals::until;
use super::talk::{Call, Came, Talk, with_both};

/// How long all calls of a flood may take.
const FLOOD_MAX: Duration = Duration::from_secs(60);
/// What waits at a member at most: its queue, and the batch that is just to be handed over.
const WAITING_MAX: usize = 16 * 1024 + 1024;
/// So many more are asked for.
const TOO_MANY: usize = 500;
const CONNECTIONS: usize = 8;

/// Members that are stopped, until this is dropped.
struct Frozen(Vec<u32>);

impl Frozen {
    fn new(talk: &Talk, members: &[usize]) -> Frozen {
        let pid = |at: &usize| talk.cluster.members()[*at].pid().expect("it runs");
        let pids: Vec<u32> = members.iter().map(pid).collect();
        pids.iter().for_each(|pid| signal(*pid, "STOP").expect("stop a member"));
        Frozen(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            // After a failure it may have ended.
            let _ = signal(*pid, "CONT");
        }
    }
}

fn put(key: &str) -> Call {
    let request =
        pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    Call::new(Rpc::KVPut, &request)
}

fn said(came: &Came) -> String {
    match &came.status {
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => format!("{} messages", came.messages.len()),
    }
}

/// A follower asks a leader that has just been stopped, and another is elected meanwhile. etcd's then tells
/// the client to ask again (`requestCurrentIndex`); ours asks the new leader itself.
#[test]
fn a_read_whose_leader_changes_is_answered_where_etcd_has_it_repeated() {
    // Long enough for the read to be made before another one leads, however busy the machine is.
    let slow = ["--election-timeout=3000", "--heartbeat-interval=300"];
    let [go, ours] = with_both(3, &slow, |talk| {
        lead(talk, 0);
        assert!(talk.quietly(put("k")).status.is_none());
        talk.member = 1;
        let _frozen = Frozen::new(talk, &[0]);
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        talk.quietly(Call::new(Rpc::KVRange, &range))
    });
    assert_eq!(said(&go), "Unavailable: etcdserver: leader changed");
    assert_eq!(ours.read::<pb::RangeResponse>().kvs.len(), 1, "{ours:?}");
}

/// What only the leader knows of a lease is asked of its successor, for as long as a request may take.
#[test]
fn a_lease_is_told_and_renewed_although_its_leader_has_just_gone() {
    let both = with_both(3, &[], |talk| {
        lead(talk, 0);
        talk.member = 1;
        let grant = pb::LeaseGrantRequest { id: 5, ttl: 1000 };
        assert!(talk.quietly(Call::new(Rpc::LeaseLeaseGrant, &grant)).status.is_none());
        let left = pb::LeaseTimeToLiveRequest { id: 5, keys: true };
        let left = Call::new(Rpc::LeaseLeaseTimeToLive, &left);
        let renewal = pb::LeaseKeepAliveRequest { id: 5 };
        let renewal = Call::new(Rpc::LeaseLeaseKeepAlive, &renewal).take(1);
        talk.cluster.member_mut(0).kill().expect("kill the leader");
        talk.run(|channel| async {
            tokio::join!(left.make(channel.clone()), renewal.make(channel))
        })
    });
    for (left, renewal) in both {
        let left: pb::LeaseTimeToLiveResponse = left.read();
        assert!(left.granted_ttl == 1000 && left.ttl > 900, "{left:?}");
        assert_eq!(renewal.read::<pb::LeaseKeepAliveResponse>().ttl, 1000);
    }
}

/// Many puts at once, each of a key of its own.
struct Flood {
    poll: Poll,
    ready: Events,
    connections: Vec<Connection>,
    /// The keys, and with which status the put of each ended.
    ends: Vec<(String, Option<Option<u32>>)>,
}

impl Flood {
    fn begin(address: SocketAddr, round: &str) -> Flood {
        let poll = Poll::new().expect("an event loop");
        let open = |number| {
            let mut connection = Connection::open(address).expect("a connection");
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(connection.socket(), Token(number), interest)
                .expect("the event loop takes it");
            connection
        };
        let mut connections: Vec<_> = (0..CONNECTIONS).map(open).collect();
        let key = |number| (format!("{round}/{number}"), None);
        let ends: Vec<_> = (0..WAITING_MAX + TOO_MANY).map(key).collect();
        for (number, (key, _)) in (0..).zip(&ends) {
            let request = pb::PutRequest { key: key.clone().into(), ..Default::default() };
            let connection = &mut connections[number as usize % CONNECTIONS];
            connection.call(Rpc::KVPut.path(), &request.encode_to_vec(), number);
        }
        Flood { poll, ready: Events::with_capacity(CONNECTIONS), connections, ends }
    }

    fn ended(&self, code: Code) -> impl Iterator<Item = &str> {
        let with = move |(_, end): &&(String, Option<Option<u32>>)| *end == Some(Some(code as u32));
        self.ends.iter().filter(with).map(|(key, _)| key.as_str())
    }

    /// Takes what comes until a condition holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Flood) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            let open = self.ends.iter().filter(|(_, end)| end.is_none()).count();
            assert!(began.elapsed() < FLOOD_MAX, "{what}: {open} calls are not answered");
            for connection in &mut self.connections {
                connection.flush().expect("requests are sent");
            }
            self.poll.poll(&mut self.ready, Some(Duration::from_millis(5))).expect("events");
            let ends = &mut self.ends;
            for connection in &mut self.connections {
                let received = connection.receive(&mut |answer| {
                    if let Answer::End { token, status } = answer {
                        ends[token as usize].1 = Some(status);
                    }
                });
                received.expect("answers are received");
            }
        }
    }
}

fn keys_of(talk: &mut Talk, round: &str) -> BTreeSet<Bytes> {
    let range = pb::RangeRequest {
        key: format!("{round}/").into(),
        range_end: format!("{round}0").into(),
        keys_only: true,
        ..Default::default()
    };
    let found: pb::RangeResponse = talk.quietly(Call::new(Rpc::KVRange, &range)).read();
    found.kvs.into_iter().map(|kv| kv.key).collect()
}

/// Freezes others so that the member has no quorum, and asks it for more than it lets wait.
fn fill_the_queue(talk: &mut Talk, asked: usize, others: [usize; 2], round: &str) {
    lead(talk, 0);
    talk.member = asked;
    let frozen = Frozen::new(talk, &others);
    until(talk, "there is no leader any more", |status| status.leader == 0);
    let address = talk.cluster.members()[asked].endpoint.parse().expect("an address");
    let mut flood = Flood::begin(address, round);
    flood.until("one is too many", |flood| flood.ended(Code::Unknown).next().is_some());
    let one_more = talk.quietly(put(&format!("{round}/one-more")));
    assert_eq!(said(&one_more), "Unknown: etcdserver: too many requests");

    drop(frozen);
    flood.until("all are answered", |flood| flood.ends.iter().all(|(_, end)| end.is_some()));
    until(talk, "there is a leader again", |status| status.leader != 0);
    assert!(talk.quietly(put("afterwards")).status.is_none());
    let found = keys_of(talk, round);
    let (done, refused) = (flood.ended(Code::Ok).count(), flood.ended(Code::Unknown).count());
    println!("{round}: {done} puts done, {refused} refused, {} keys", found.len());
    assert!(done > 0);
    assert!(flood.ended(Code::Ok).all(|key| found.contains(key.as_bytes())), "a write is lost");
    let mut refused = flood.ended(Code::Unknown);
    assert!(!refused.any(|key| found.contains(key.as_bytes())), "what was refused has happened");
    assert!(!found.contains(format!("{round}/one-more").as_bytes()));
}

/// What waits for a quorum waits in memory, and there is a bound to it. Those that wait are done as soon as
/// the others are back; those that were refused never happen.
#[test]
fn more_requests_than_may_wait_are_refused_and_those_that_wait_are_done() {
    let program = peers::our_binary("etcd").expect("build our etcd");
    let mut talk = Talk::with(&program, 3, &["--election-timeout=2000"]);
    fill_the_queue(&mut talk, 0, [1, 2], "leader");
    fill_the_queue(&mut talk, 1, [0, 2], "follower");
}
