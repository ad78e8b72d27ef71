//! Those who watch meanwhile. A recorder follows each member from the first revision on; what they are
//! delivered is what happened, and all of them must be delivered the same. Other watches begin and end
//! wherever they please; one that is interrupted goes on behind the last event, through another member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::bench::http2::{Answer as Piece, Connection};
use e2e::bench::workloads::Random;
use history::watches::WatchRecord;
use history::{Change, Revisions};
use mio::{Events, Interest, Poll, Token};
use prost::Message;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use watch::CreateWatch;

use super::nemesis::Progress;

const WATCHERS: usize = 9;
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const TICK: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(50);
/// How often a watch asks how far it has come.
const PROGRESS: Duration = Duration::from_millis(700);
/// How long one that is no recorder watches at most.
const LIFE: Duration = Duration::from_secs(6);
/// How long the members may take at the end to deliver everything.
const LIMIT: Duration = Duration::from_secs(60);

/// What was delivered.
#[derive(Default)]
pub(crate) struct Delivered {
    pub(crate) revisions: Revisions,
    /// When anybody heard of a revision first.
    pub(crate) seen: BTreeMap<i64, u64>,
    pub(crate) watches: Vec<WatchRecord<SocketAddr>>,
    /// Watches that went on where another one had been interrupted.
    pub(crate) resumed: usize,
    /// Watches that were told that what they asked for is compacted.
    pub(crate) compacted: usize,
    /// Answers that say how far a watch has come.
    pub(crate) bookmarks: usize,
    /// Members that delivered something else than others.
    pub(crate) differences: Vec<String>,
}

pub(crate) struct Watchers {
    thread: JoinHandle<Delivered>,
}

struct Watcher {
    /// It follows one member from the first revision on.
    records: bool,
    member: usize,
    /// The newest revision that it was delivered.
    last: i64,
    request: CreateWatch,
    stream: Option<Stream>,
    retry: Instant,
}

struct Stream {
    connection: Connection,
    id: u32,
    input: Vec<u8>,
    responses: Vec<WatchResponse>,
    ends_at: Instant,
    asks_at: Instant,
    /// How far it has come, by its own word.
    progress: i64,
    ended: bool,
}

struct Loop {
    poll: Poll,
    members: Vec<SocketAddr>,
    watchers: Vec<Watcher>,
    random: Random,
    began: Instant,
    progress: Arc<Progress>,
    delivered: Delivered,
}

impl Watchers {
    pub(crate) fn start(
        members: &[SocketAddr],
        began: Instant,
        progress: &Arc<Progress>,
    ) -> Watchers {
        let (members, progress) = (members.to_vec(), Arc::clone(progress));
        let thread = thread::spawn(move || {
            let watcher = |index: usize| Watcher {
                records: index < members.len(),
                member: index % members.len(),
                last: 0,
                request: CreateWatch::default(),
                stream: None,
                retry: began,
            };
            let watchers = (0..members.len() + WATCHERS).map(watcher).collect();
            let random = Random::new(0x0077_6174_6368);
            let (poll, delivered) = (Poll::new().unwrap(), Delivered::default());
            Loop { poll, members, watchers, random, began, progress, delivered }.run()
        });
        Watchers { thread }
    }

    /// What was delivered, once `Progress::finish` has said up to which revision that must be.
    pub(crate) fn join(self) -> Delivered {
        self.thread.join().expect("the watchers have failed; their message is above")
    }
}

impl Loop {
    fn run(mut self) -> Delivered {
        let mut events = Events::with_capacity(64);
        let mut limit = None;
        loop {
            let last = self.progress.last();
            for index in 0..self.watchers.len() {
                self.tend(index, last);
            }
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => result.unwrap(),
            }
            let ready: Vec<usize> = events.iter().map(|event| event.token().0).collect();
            for index in ready {
                self.receive(index);
            }
            let recorders = self.watchers.iter().filter(|watcher| watcher.records);
            self.progress.deliver(recorders.map(|watcher| watcher.last).min().unwrap_or(0));
            let Some(last) = last else { continue };
            if self.watchers.iter().all(|watcher| watcher.has_all(last)) {
                return self.finish(last);
            }
            let limit = *limit.get_or_insert_with(|| Instant::now() + LIMIT);
            assert!(Instant::now() < limit, "not everything up to {last} is delivered");
        }
    }

    fn finish(mut self, last: i64) -> Delivered {
        for index in 0..self.watchers.len() {
            self.close(index, Some(last));
        }
        self.delivered
    }

    /// Begins a watch that is due, ends one whose time is over, and asks how far it has come.
    fn tend(&mut self, index: usize, last: Option<i64>) {
        let now = Instant::now();
        let watcher = &mut self.watchers[index];
        let Some(stream) = &mut watcher.stream else {
            if watcher.retry <= now {
                self.open(index, last);
            }
            return;
        };
        if stream.asks_at <= now {
            stream.asks_at = now + PROGRESS;
            let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
            let ask = WatchRequest { request_union: Some(ask) };
            stream.connection.send_message(stream.id, &ask.encode_to_vec());
        }
        stream.ended |= stream.connection.flush().is_err();
        // At the end those that still watch must come to hear everything.
        let over = match last {
            None => stream.ends_at <= now,
            Some(last) => watcher.request.start_revision > last,
        };
        let over = over && !watcher.records;
        if stream.ended || over {
            self.close(index, None);
        }
    }

    fn open(&mut self, index: usize, last: Option<i64>) {
        let now = Instant::now();
        self.watchers[index].retry = now + RETRY;
        let resumes = self.choose(index, last);
        let watcher = &mut self.watchers[index];
        let Ok(mut connection) = Connection::open(self.members[watcher.member]) else { return };
        self.delivered.resumed += usize::from(resumes);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(connection.socket(), Token(index), interest).unwrap();
        let id = connection.open_stream(WATCH, index as u32);
        connection.send_message(id, &create(&watcher.request).encode_to_vec());
        watcher.stream = Some(Stream {
            connection,
            id,
            input: Vec::new(),
            responses: Vec::new(),
            ends_at: now + LIFE,
            asks_at: now + PROGRESS,
            progress: 0,
            ended: false,
        });
    }

    /// What to watch next; whether that goes on where it was interrupted.
    fn choose(&mut self, index: usize, last: Option<i64>) -> bool {
        let count = self.members.len();
        let newest = self.delivered.revisions.last_key_value().map_or(1, |(revision, _)| *revision);
        let (random, watcher) = (&mut self.random, &mut self.watchers[index]);
        if watcher.records {
            let all = Bytes::from_static(b"\0");
            let start_revision = watcher.last.max(0) + 1;
            watcher.request = CreateWatch {
                key: all.clone(),
                range_end: all,
                start_revision,
                ..CreateWatch::default()
            };
            return watcher.last > 0;
        }
        watcher.member = (watcher.member + 1) % count;
        if watcher.last > 0 && last.is_none() && random.below(10) < 6 {
            watcher.request.start_revision = watcher.last + 1;
            return true;
        }
        let (key, range_end) = match random.below(3) {
            0 => ("chaos/", "chaos0"),
            1 => ("lease/", "lease0"),
            _ => ("chaos/3", ""),
        };
        let start_revision = match random.below(4) {
            0 => 1,
            1 => (newest - random.below(3000) as i64).max(1),
            2 if last.is_none() => newest + random.below(300) as i64,
            _ => 0,
        };
        watcher.last = 0;
        watcher.request = CreateWatch {
            key: key.into(),
            range_end: range_end.into(),
            start_revision,
            progress_notify: random.below(2) == 0,
            no_put: random.below(10) == 0,
            no_delete: random.below(10) == 0,
            prev_kv: random.below(2) == 0,
            ..CreateWatch::default()
        };
        false
    }

    fn receive(&mut self, index: usize) {
        let watcher = &mut self.watchers[index];
        let Some(stream) = &mut watcher.stream else { return };
        let (input, mut end) = (&mut stream.input, false);
        let received = stream.connection.receive(&mut |piece| match piece {
            Piece::Data { bytes, .. } => input.extend_from_slice(bytes),
            Piece::End { .. } => end = true,
        });
        stream.ended |= received.is_err() || end;
        let before = stream.responses.len();
        take_messages(&mut stream.input, &mut stream.responses);
        let seen = self.began.elapsed().as_nanos() as u64;
        for response in &stream.responses[before..] {
            let newest = response.events.last().and_then(|event| event.kv.as_ref());
            watcher.last = newest.map_or(watcher.last, |kv| kv.mod_revision);
            if response.canceled {
                stream.ended = true;
                if response.compact_revision > 0 {
                    self.delivered.compacted += 1;
                    assert!(!watcher.records, "a recorder is compacted: {response:?}");
                    // The client goes on with the oldest that there is.
                    watcher.last = response.compact_revision - 1;
                }
            } else if response.events.is_empty() && !response.created {
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                stream.progress = stream.progress.max(revision);
                self.delivered.bookmarks += 1;
            }
            if watcher.records {
                self.delivered.record(response, seen, self.members[watcher.member]);
            }
        }
    }

    fn close(&mut self, index: usize, complete: Option<i64>) {
        let watcher = &mut self.watchers[index];
        watcher.retry = Instant::now() + RETRY;
        let Some(mut stream) = watcher.stream.take() else { return };
        self.poll.registry().deregister(stream.connection.socket()).unwrap();
        if stream.responses.is_empty() {
            return;
        }
        self.delivered.watches.push(WatchRecord {
            member: self.members[watcher.member],
            request: watcher.request.clone(),
            responses: stream.responses,
            complete,
        });
    }
}

impl Watcher {
    /// Whether it has everything up to a revision.
    fn has_all(&self, last: i64) -> bool {
        let stream = self.stream.as_ref().filter(|stream| !stream.ended);
        stream.is_some_and(|stream| match self.records {
            true => self.last >= last,
            false => stream.progress >= last,
        })
    }
}

impl Delivered {
    /// Takes what a recorder was delivered, and compares it with what others were.
    fn record(&mut self, response: &WatchResponse, at: u64, member: SocketAddr) {
        let mut delivered = Revisions::new();
        for event in &response.events {
            let Some(key_value) = event.kv.clone() else { continue };
            let change = Change { delete: event.r#type != 0, key_value };
            delivered.entry(change.key_value.mod_revision).or_default().push(change);
        }
        for (revision, changes) in delivered {
            self.seen.entry(revision).or_insert(at);
            let known = self.revisions.entry(revision).or_insert_with(|| changes.clone());
            if *known != changes {
                let difference =
                    format!("revision {revision}: {member} delivers {changes:?}, not {known:?}");
                self.differences.push(difference);
            }
        }
    }
}

fn create(watch: &CreateWatch) -> WatchRequest {
    let mut filters = Vec::new();
    filters.extend(watch.no_put.then_some(FilterType::Noput as i32));
    filters.extend(watch.no_delete.then_some(FilterType::Nodelete as i32));
    let create = WatchCreateRequest {
        key: watch.key.clone(),
        range_end: watch.range_end.clone(),
        start_revision: watch.start_revision,
        progress_notify: watch.progress_notify,
        filters,
        prev_kv: watch.prev_kv,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// Takes the whole messages from the front of what has come.
fn take_messages(input: &mut Vec<u8>, responses: &mut Vec<WatchResponse>) {
    let mut rest = input.as_slice();
    while let Some(head) = rest.get(1..5) {
        let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
        let Some(message) = rest.get(5..5 + length) else { break };
        responses.push(WatchResponse::decode(message).unwrap());
        rest = &rest[5 + length..];
    }
    let taken = input.len() - rest.len();
    input.drain(..taken);
}
