//! The clients: each has one call in flight, to a few keys that all share, and remembers what it
//! asked, when, and what it was answered. An error or silence is no answer: the call may have taken
//! effect or not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::bench::http2::{Answer as Piece, Connection};
use e2e::bench::workloads::Random;
use e2e::history::{Answer, Call, Event, Key, KeyValue, Outcome, Request};
use mio::{Events, Interest, Poll, Token};
use prost::Message;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchRequest, WatchResponse, compare, request_op, response_op, watch_request,
};
use proto::mvccpb;

use super::nemesis::Progress;

const CLIENTS: usize = 60;
const KEYS: Key = 8;
/// Longer than a member is paused.
const CALL_LIMIT: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(15);
const TICK: Duration = Duration::from_millis(5);
const WATCH_LIMIT: Duration = Duration::from_secs(60);

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

pub(crate) struct Clients {
    poll: Poll,
    members: Vec<MemberLink>,
    clients: Vec<Client>,
    calls: Vec<Call>,
    /// The modification revision of each key that was answered last.
    seen: Vec<i64>,
    random: Random,
    began: Instant,
    connections: u64,
    progress: Arc<Progress>,
}

struct MemberLink {
    address: SocketAddr,
    connection: Option<(u64, Connection)>,
    retry: Instant,
}

struct Client {
    member: usize,
    /// The call in flight, and when it is given up.
    current: Option<(usize, Instant)>,
    answer: Vec<u8>,
    rests_until: Instant,
}

impl Clients {
    pub(crate) fn new(members: Vec<SocketAddr>, progress: Arc<Progress>) -> Clients {
        let now = Instant::now();
        let link = |address| MemberLink { address, connection: None, retry: now };
        let client = |index: usize| Client {
            member: index % members.len(),
            current: None,
            answer: Vec::new(),
            rests_until: now,
        };
        Clients {
            poll: Poll::new().unwrap(),
            clients: (0..CLIENTS).map(client).collect(),
            members: members.iter().copied().map(link).collect(),
            calls: Vec::new(),
            seen: vec![0; KEYS as usize],
            random: Random::new(0x6368_616f_7321),
            began: now,
            connections: 0,
            progress,
        }
    }

    pub(crate) fn answered(&self) -> usize {
        self.progress.answered()
    }

    pub(crate) fn into_calls(self) -> Vec<Call> {
        self.calls
    }

    /// Asks what can be asked and takes what has come.
    pub(crate) fn turn(&mut self) {
        self.connect();
        let now = Instant::now();
        for client in 0..self.clients.len() {
            if self.clients[client].current.is_none() && self.clients[client].rests_until <= now {
                self.ask(client);
            }
        }
        self.take_answers();
    }

    /// Takes answers until every call has one or is given up.
    pub(crate) fn wait_for_answers(&mut self) {
        while self.clients.iter().any(|client| client.current.is_some()) {
            self.take_answers();
        }
    }

    fn connect(&mut self) {
        let now = Instant::now();
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.connection.is_some() || member.retry > now {
                continue;
            }
            member.retry = now + RETRY;
            let Ok(mut connection) = Connection::open(member.address) else { continue };
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(connection.socket(), Token(index), interest).unwrap();
            self.connections += 1;
            member.connection = Some((self.connections, connection));
        }
    }

    fn ask(&mut self, client: usize) {
        let count = self.members.len();
        let first = self.clients[client].member;
        let connected = |member: &usize| {
            let connection = self.members[*member].connection.as_ref();
            connection.is_some_and(|(_, connection)| connection.has_room())
        };
        let Some(member) = (first..first + count).map(|one| one % count).find(connected) else {
            return;
        };
        let request = self.choose();
        let index = self.calls.len();
        let (path, message) = encode(&request);
        let Some((number, connection)) = &mut self.members[member].connection else { return };
        self.calls.push(Call {
            connection: *number,
            client: client as u32,
            called: self.began.elapsed().as_nanos() as u64,
            request,
            answered: None,
        });
        connection.call(path, &message, index as u32);
        let asking = &mut self.clients[client];
        asking.member = member;
        asking.current = Some((index, Instant::now() + CALL_LIMIT));
        asking.answer.clear();
    }

    /// Every value is written by one call only: it is made of the call's number.
    fn choose(&mut self) -> Request {
        let key = self.random.below(u64::from(KEYS)) as Key;
        let value = 2 * self.calls.len() as u64;
        match self.random.below(100) {
            0..30 => Request::Put { key, value },
            30..50 => {
                let mut puts = vec![(key, value)];
                if self.random.below(2) == 0 {
                    puts.push(((key + 1) % KEYS, value + 1));
                }
                Request::Swap { key, expected: self.seen[key as usize], puts }
            }
            50..57 => Request::Delete { key },
            57..78 => Request::Read { key: Some(key), serializable: false },
            78..83 => Request::Read { key: None, serializable: false },
            _ => Request::Read { key: Some(key), serializable: true },
        }
    }

    fn take_answers(&mut self) {
        let mut events = Events::with_capacity(16);
        for member in 0..self.members.len() {
            if let Some((_, connection)) = &mut self.members[member].connection
                && connection.flush().is_err()
            {
                self.disconnect(member);
            }
        }
        match self.poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => result.unwrap(),
        }
        let ready: Vec<usize> = events.iter().map(|event| event.token().0).collect();
        for member in ready {
            self.receive(member);
        }
        let now = Instant::now();
        for client in &mut self.clients {
            if client.current.is_some_and(|(_, limit)| limit < now) {
                client.give_up(now, self.members.len());
            }
        }
    }

    fn receive(&mut self, member: usize) {
        let Some((_, connection)) = &mut self.members[member].connection else { return };
        let (clients, calls) = (&mut self.clients, &self.calls);
        let mut ended = Vec::new();
        let of = |token: u32| {
            // A call that was given up has no client any more.
            let client = calls[token as usize].client as usize;
            let current = clients[client].current.is_some_and(|(index, _)| index == token as usize);
            current.then_some(client)
        };
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        let received = connection.receive(&mut |piece| match piece {
            Piece::Data { token, bytes } => {
                pieces.extend(of(token).map(|client| (client, bytes.to_vec())));
            }
            Piece::End { token, status } => {
                ended.extend(of(token).map(|client| (client, token as usize, status)));
            }
        });
        let returned = self.began.elapsed().as_nanos() as u64;
        for (client, bytes) in pieces {
            self.clients[client].answer.extend_from_slice(&bytes);
        }
        for (client, index, status) in ended {
            if status == Some(0) {
                self.finish(client, index, returned);
            } else {
                self.clients[client].give_up(Instant::now(), self.members.len());
            }
        }
        if received.is_err() {
            self.disconnect(member);
        }
    }

    fn finish(&mut self, client: usize, index: usize, returned: u64) {
        let message = self.clients[client].answer.get(5..).unwrap_or_default();
        let answer = decode(&self.calls[index].request, message);
        match &answer.outcome {
            Outcome::Found(found) => {
                if let [one] = found.as_slice() {
                    self.seen[one.key as usize] = one.mod_revision;
                }
            }
            _ => {
                for (key, _) in self.calls[index].request.puts() {
                    self.seen[key as usize] = answer.revision;
                }
            }
        }
        self.calls[index].answered = Some((returned, answer));
        self.clients[client].current = None;
        self.progress.count_answer();
    }

    fn disconnect(&mut self, member: usize) {
        let now = Instant::now();
        if let Some((_, mut connection)) = self.members[member].connection.take() {
            self.poll.registry().deregister(connection.socket()).unwrap();
        }
        self.members[member].retry = now + RETRY;
        let count = self.members.len();
        for client in self.clients.iter_mut().filter(|client| client.member == member) {
            if client.current.is_some() {
                client.give_up(now, count);
            }
        }
    }
}

impl Client {
    fn give_up(&mut self, now: Instant, members: usize) {
        self.current = None;
        self.rests_until = now + RETRY;
        self.member = (self.member + 1) % members;
    }
}

fn name(key: Key) -> Bytes {
    Bytes::from(format!("chaos/{key}"))
}

fn number(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).unwrap();
    text.trim_start_matches("chaos/").parse().unwrap()
}

fn put(key: Key, value: u64) -> PutRequest {
    PutRequest { key: name(key), value: value.to_string().into(), ..Default::default() }
}

fn encode(request: &Request) -> (&'static str, Vec<u8>) {
    match request {
        Request::Put { key, value } => (PUT, put(*key, *value).encode_to_vec()),
        Request::Delete { key } => {
            (DELETE, DeleteRangeRequest { key: name(*key), ..Default::default() }.encode_to_vec())
        }
        Request::Read { key, serializable } => {
            let (key, range_end) = match key {
                Some(key) => (name(*key), Bytes::new()),
                None => (Bytes::from_static(b"chaos/"), Bytes::from_static(b"chaos0")),
            };
            let serializable = *serializable;
            let read = RangeRequest { key, range_end, serializable, ..Default::default() };
            (RANGE, read.encode_to_vec())
        }
        Request::Swap { key, expected, puts } => {
            let compare = Compare {
                target: compare::CompareTarget::Mod.into(),
                key: name(*key),
                target_union: Some(compare::TargetUnion::ModRevision(*expected)),
                ..Default::default()
            };
            let operation = |request| RequestOp { request: Some(request) };
            let success = puts
                .iter()
                .map(|(key, value)| operation(request_op::Request::RequestPut(put(*key, *value))));
            let get = RangeRequest { key: name(*key), ..Default::default() };
            let swap = TxnRequest {
                compare: vec![compare],
                success: success.collect(),
                failure: vec![operation(request_op::Request::RequestRange(get))],
            };
            (TXN, swap.encode_to_vec())
        }
    }
}

fn decode(request: &Request, message: &[u8]) -> Answer {
    let revision = |header: Option<ResponseHeader>| header.unwrap().revision;
    match request {
        Request::Put { .. } => {
            let answer = PutResponse::decode(message).unwrap();
            Answer { revision: revision(answer.header), outcome: Outcome::Written }
        }
        Request::Delete { .. } => {
            let answer = DeleteRangeResponse::decode(message).unwrap();
            let outcome = Outcome::Deleted(answer.deleted > 0);
            Answer { revision: revision(answer.header), outcome }
        }
        Request::Read { .. } => {
            let answer = RangeResponse::decode(message).unwrap();
            let found = answer.kvs.iter().map(key_value).collect();
            Answer { revision: revision(answer.header), outcome: Outcome::Found(found) }
        }
        Request::Swap { .. } => {
            let answer = TxnResponse::decode(message).unwrap();
            let outcome = match answer.responses.first().and_then(|one| one.response.as_ref()) {
                Some(response_op::Response::ResponseRange(range)) if !answer.succeeded => {
                    Outcome::Found(range.kvs.iter().map(key_value).collect())
                }
                Some(response_op::Response::ResponsePut(_)) if answer.succeeded => Outcome::Written,
                other => panic!("a transaction answered {other:?}"),
            };
            Answer { revision: revision(answer.header), outcome }
        }
    }
}

pub(crate) fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: number(&kv.key) as Key,
        value: number(&kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

/// All events of a member from the first revision to the one that it has when asked.
pub(crate) fn watch_from_the_beginning(member: SocketAddr) -> Vec<Event> {
    let (last, _) = super::read_all(member, false);
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        start_revision: 1,
        ..Default::default()
    };
    let request =
        WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
    let mut poll = Poll::new().unwrap();
    let mut ready = Events::with_capacity(4);
    let mut connection = Connection::open(member).unwrap();
    let interest = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(connection.socket(), Token(0), interest).unwrap();
    let stream = connection.open_stream(WATCH, 0);
    connection.send_message(stream, &request.encode_to_vec());

    let (mut events, mut input) = (Vec::new(), Vec::new());
    let began = Instant::now();
    while events.last().map_or(1, |event: &Event| event.revision) < last {
        assert!(began.elapsed() < WATCH_LIMIT, "the watch ends at {:?} of {last}", events.last());
        connection.flush().unwrap();
        poll.poll(&mut ready, Some(TICK)).unwrap();
        let mut end = None;
        let received = connection.receive(&mut |piece| match piece {
            Piece::Data { bytes, .. } => input.extend_from_slice(bytes),
            Piece::End { status, .. } => end = Some(status),
        });
        received.unwrap();
        assert_eq!(end, None, "the watch has ended");
        take_events(&mut input, &mut events);
    }
    events
}

fn take_events(input: &mut Vec<u8>, events: &mut Vec<Event>) {
    let mut rest = input.as_slice();
    while let Some(head) = rest.get(1..5) {
        let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
        let Some(message) = rest.get(5..5 + length) else { break };
        let message = WatchResponse::decode(message).unwrap();
        rest = &rest[5 + length..];
        assert!(!message.canceled, "the watch was cancelled: {message:?}");
        for event in message.events {
            let put = event.r#type() == mvccpb::event::EventType::Put;
            let kv = event.kv.unwrap();
            events.push(Event {
                revision: kv.mod_revision,
                key: number(&kv.key) as Key,
                put: put.then(|| key_value(&kv)),
            });
        }
    }
    let taken = input.len() - rest.len();
    input.drain(..taken);
}
