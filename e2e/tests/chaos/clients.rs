//! The clients: each has one call in flight, to a few keys that all share or to leases of its own, and
//! remembers what it asked, when, and what it was answered. An error or silence is no answer: the call
//! may have taken effect or not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::bench::http2::{Answer as Piece, Connection};
use e2e::bench::workloads::Random;
use history::leases::Lease;
use history::{Failure, Operation, Request, Response};
use mio::{Events, Interest, Poll, Token};

use super::callers::Caller;
use super::nemesis::Progress;
use super::requests::{KEEP_ALIVE, decode, encode, keep_alive, time_to_live};
use super::tenants::Tenant;

const CALLERS: usize = 60;
const TENANTS: usize = 8;
/// Longer than a member is paused.
const CALL_LIMIT: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(15);
const TICK: Duration = Duration::from_millis(5);

/// What a client does next.
pub(crate) enum Next {
    Ask(Request),
    KeepAlive(i64),
    Rest(Duration),
}

/// What came of what it did.
pub(crate) enum Outcome<'a> {
    Answered(&'a Result<Response, Failure>),
    /// The time that a lease has left.
    Alive(i64),
    Nothing,
}

/// When a call began and ended, in nanoseconds since the test began.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) called: u64,
    pub(crate) returned: u64,
}

enum Mind {
    Caller(Caller),
    Tenant(Tenant),
}

/// What all clients have seen.
pub(crate) struct Seen {
    pub(crate) random: Random,
    /// The newest revision that anybody was told.
    pub(crate) revision: i64,
    /// When each term was first heard of.
    pub(crate) terms: BTreeMap<u64, u64>,
    /// How many values were put; no two are the same.
    values: u64,
    pub(crate) progress: Arc<Progress>,
}

pub(crate) struct Clients {
    poll: Poll,
    members: Vec<MemberLink>,
    clients: Vec<Client>,
    operations: Vec<Operation>,
    /// What was asked with each token.
    asked: Vec<Asked>,
    seen: Seen,
    began: Instant,
    connections: u64,
}

struct MemberLink {
    address: SocketAddr,
    connection: Option<(u64, Connection)>,
    retry: Instant,
}

struct Client {
    mind: Mind,
    member: usize,
    /// The token of the call in flight, and when it is given up.
    current: Option<(usize, Instant)>,
    answer: Vec<u8>,
    rests_until: Instant,
}

struct Asked {
    client: usize,
    called: u64,
    /// Its place among the operations; none for keeping a lease alive.
    operation: Option<usize>,
}

/// What the clients leave behind.
pub(crate) struct Record {
    pub(crate) operations: Vec<Operation>,
    pub(crate) leases: Vec<Lease>,
    /// When each term was first heard of.
    pub(crate) terms: Vec<u64>,
}

impl Seen {
    pub(crate) fn value(&mut self) -> bytes::Bytes {
        self.values += 1;
        self.values.to_string().into()
    }

    pub(crate) fn hits(&mut self, per_cent: u64) -> bool {
        self.random.below(100) < per_cent
    }
}

impl Clients {
    pub(crate) fn new(members: &[SocketAddr], began: Instant, progress: Arc<Progress>) -> Clients {
        let link =
            |address: &SocketAddr| MemberLink { address: *address, connection: None, retry: began };
        let client = |index: usize| Client {
            mind: match index.checked_sub(CALLERS) {
                None => Mind::Caller(Caller::new(index)),
                Some(tenant) => Mind::Tenant(Tenant::new(tenant)),
            },
            member: index % members.len(),
            current: None,
            answer: Vec::new(),
            rests_until: began,
        };
        let random = Random::new(0x6368_616f_7321);
        let seen = Seen { random, revision: 1, terms: BTreeMap::new(), values: 0, progress };
        Clients {
            poll: Poll::new().unwrap(),
            clients: (0..CALLERS + TENANTS).map(client).collect(),
            members: members.iter().map(link).collect(),
            operations: Vec::new(),
            asked: Vec::new(),
            seen,
            began,
            connections: 0,
        }
    }

    pub(crate) fn answered(&self) -> usize {
        self.seen.progress.answered()
    }

    pub(crate) fn into_record(self) -> Record {
        let leases = self.clients.into_iter().flat_map(|client| match client.mind {
            Mind::Tenant(tenant) => tenant.into_leases(),
            Mind::Caller(_) => Vec::new(),
        });
        Record {
            leases: leases.collect(),
            operations: self.operations,
            terms: self.seen.terms.into_values().collect(),
        }
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

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
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
        let called = self.now();
        let next = match &mut self.clients[client].mind {
            Mind::Caller(caller) => Next::Ask(caller.next(&mut self.seen)),
            Mind::Tenant(tenant) => tenant.next(called, &mut self.seen),
        };
        let Some((number, connection)) = &mut self.members[member].connection else { return };
        let (path, message, operation) = match next {
            Next::Rest(time) => {
                self.clients[client].rests_until = Instant::now() + time;
                return;
            }
            Next::KeepAlive(lease) => (KEEP_ALIVE, keep_alive(lease), None),
            Next::Ask(request) => {
                let (path, message) = encode(&request);
                let id = self.operations.len();
                let (process, returned, result) = (*number, None, None);
                let operation = Operation { id, process, called, returned, request, result };
                self.operations.push(operation);
                (path, message, Some(id))
            }
        };
        let token = self.asked.len();
        self.asked.push(Asked { client, called, operation });
        connection.call(path, &message, token as u32);
        let asking = &mut self.clients[client];
        asking.member = member;
        asking.current = Some((token, Instant::now() + CALL_LIMIT));
        asking.answer.clear();
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
        for client in 0..self.clients.len() {
            if self.clients[client].current.is_some_and(|(_, limit)| limit < now) {
                self.give_up(client);
            }
        }
    }

    fn receive(&mut self, member: usize) {
        let Some((_, connection)) = &mut self.members[member].connection else { return };
        let (clients, asked) = (&self.clients, &self.asked);
        let mut ended = Vec::new();
        let of = |token: u32| {
            // A call that was given up has no client any more.
            let client = asked[token as usize].client;
            let current = clients[client].current.is_some_and(|(one, _)| one == token as usize);
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
        for (client, bytes) in pieces {
            self.clients[client].answer.extend_from_slice(&bytes);
        }
        for (client, token, status) in ended {
            self.finish(client, token, status);
        }
        if received.is_err() {
            self.disconnect(member);
        }
    }

    fn finish(&mut self, client: usize, token: usize, status: Option<u32>) {
        let times = Times { called: self.asked[token].called, returned: self.now() };
        let message = self.clients[client].answer.get(5..).unwrap_or_default();
        let Some(id) = self.asked[token].operation else {
            match status {
                Some(0) => {
                    let left = time_to_live(message);
                    self.end(client, times, &Outcome::Alive(left));
                }
                _ => self.give_up(client),
            }
            return;
        };
        let result = match status {
            Some(0) => {
                let (response, term) = decode(&self.operations[id].request, message);
                self.seen.revision = self.seen.revision.max(response.revision());
                self.seen.terms.entry(term).or_insert(times.returned);
                Ok(response)
            }
            // NotFound: the lease that a put names. OutOfRange: nobody here asks for what is to come.
            Some(5) => Err(Failure::NotDone),
            Some(11) => Err(Failure::Compacted),
            _ => return self.give_up(client),
        };
        self.operations[id].returned = Some(times.returned);
        self.operations[id].result = Some(result.clone());
        if result.is_ok() {
            self.seen.progress.count_answer();
        }
        self.end(client, times, &Outcome::Answered(&result));
    }

    fn end(&mut self, client: usize, times: Times, outcome: &Outcome<'_>) {
        self.clients[client].current = None;
        match &mut self.clients[client].mind {
            Mind::Caller(caller) => {
                if let Outcome::Answered(Ok(response)) = outcome {
                    caller.learn(response);
                }
            }
            Mind::Tenant(tenant) => tenant.learn(times, outcome),
        }
    }

    fn give_up(&mut self, client: usize) {
        let Some((token, _)) = self.clients[client].current else { return };
        let times = Times { called: self.asked[token].called, returned: self.now() };
        self.end(client, times, &Outcome::Nothing);
        let count = self.members.len();
        let client = &mut self.clients[client];
        client.rests_until = Instant::now() + RETRY;
        client.member = (client.member + 1) % count;
    }

    fn disconnect(&mut self, member: usize) {
        if let Some((_, mut connection)) = self.members[member].connection.take() {
            self.poll.registry().deregister(connection.socket()).unwrap();
        }
        self.members[member].retry = Instant::now() + RETRY;
        for client in 0..self.clients.len() {
            if self.clients[client].member == member {
                self.give_up(client);
            }
        }
    }
}
