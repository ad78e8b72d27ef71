//! Random histories: clients that come, go, stop reading and ask how far they are, watches of the members
//! that are slow, lost and compacted. What every client gets is compared with the history.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};

use super::session::Pump;
use super::*;

const SESSIONS: usize = 3;
/// Small, so that clients that do not read are soon in the way.
const ROOM: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// One revision with so many events; a deletion if it is so.
    Write(Vec<bool>),
    Compact(usize),
    Join {
        session: usize,
        back: Option<i64>,
        no_put: bool,
        requires_leader: bool,
    },
    Leave {
        nth: usize,
    },
    /// A feed goes on with at most so many revisions.
    Feed {
        nth: usize,
        revisions: usize,
    },
    /// The members say how far a feed is.
    Progress {
        nth: usize,
    },
    Lose {
        nth: usize,
    },
    Read {
        session: usize,
        count: usize,
    },
    Ask {
        session: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let nth = 0..8_usize;
    prop_oneof![
        4 => prop::collection::vec(prop::bool::weighted(0.3), 1..3).prop_map(Step::Write),
        1 => (0..6_usize).prop_map(Step::Compact),
        3 => (0..SESSIONS, prop::option::of(-1..9_i64), prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(session, back, no_put, requires_leader)| Step::Join { session, back, no_put, requires_leader }),
        1 => nth.clone().prop_map(|nth| Step::Leave { nth }),
        8 => (nth.clone(), 1..4_usize).prop_map(|(nth, revisions)| Step::Feed { nth, revisions }),
        4 => nth.clone().prop_map(|nth| Step::Progress { nth }),
        1 => nth.prop_map(|nth| Step::Lose { nth }),
        4 => (0..SESSIONS, 1..6_usize).prop_map(|(session, count)| Step::Read { session, count }),
        1 => (0..SESSIONS).prop_map(|session| Step::Ask { session }),
    ]
}

/// A watch of a client, and what it got.
#[derive(Debug)]
struct Seen {
    watched: Watched,
    start: i64,
    /// The same if the client has named it, else 0.
    begins: i64,
    no_put: bool,
    events: Vec<Event>,
    /// Whether the client has been told that there is such a watch.
    is_created: bool,
    is_over: bool,
}

/// The task of a feed, without the members.
struct Task {
    feed: NewFeed,
    /// The next revision that the members would send.
    open: Option<i64>,
    waits_for: Option<Arc<Session>>,
}

struct World {
    history: Vec<Vec<Event>>,
    compacted: i64,
    feeds: Feeds,
    tasks: Vec<Task>,
    sessions: Vec<(Arc<Session>, Pump)>,
    seen: BTreeMap<(usize, i64), Seen>,
    ids: i64,
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

impl World {
    fn new() -> Self {
        let sessions = (0..SESSIONS).map(|number| Session::new(number as u64, ROOM)).collect();
        World {
            history: Vec::new(),
            compacted: 0,
            feeds: Feeds::default(),
            tasks: Vec::new(),
            sessions,
            seen: BTreeMap::new(),
            ids: 0,
        }
    }

    fn revision(&self) -> i64 {
        self.history.len() as i64
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(events) => self.write(events),
            Step::Compact(back) => {
                self.compacted = self.compacted.max(self.revision() - *back as i64);
            }
            Step::Join { session, back, no_put, requires_leader } => {
                let begins = back.map_or(0, |back| (self.revision() - back).max(1));
                self.join(*session, begins, *no_put, *requires_leader);
            }
            Step::Leave { nth } => {
                let Some((session, id)) = self.seen.keys().nth(*nth).copied() else { return };
                let watched = self.seen[&(session, id)].watched.clone();
                self.feeds.leave(&watched, session as u64, id);
                // What stood in the queue may still come; nothing has to.
                self.seen.get_mut(&(session, id)).unwrap().is_over = true;
            }
            Step::Feed { nth, revisions } => self.run(*nth, *revisions),
            Step::Progress { nth } => self.progress(*nth),
            Step::Lose { nth } => {
                if let Some(task) = self.tasks.get_mut(*nth) {
                    (task.open, task.waits_for) = (None, None);
                }
            }
            Step::Read { session, count } => {
                for _ in 0..*count {
                    self.read(*session);
                }
            }
            Step::Ask { session } => self.feeds.ask_progress(&self.sessions[*session].0),
        }
        self.tasks.retain(|task| !task.feed.signals.stop.is_cancelled());
    }

    fn write(&mut self, events: &[bool]) {
        let revision = self.revision() + 1;
        let event = |(at, is_deletion): (usize, &bool)| Event {
            r#type: if *is_deletion { EventType::Delete as i32 } else { EventType::Put as i32 },
            kv: Some(KeyValue {
                key: format!("k{at}").into(),
                mod_revision: revision,
                ..KeyValue::default()
            }),
            prev_kv: None,
        };
        self.history.push(events.iter().enumerate().map(event).collect());
    }

    fn join(&mut self, session: usize, begins: i64, no_put: bool, requires_leader: bool) {
        self.ids += 1;
        let start = if begins == 0 { self.revision() + 1 } else { begins };
        let (key, range_end) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
        let watched = Watched { key, range_end, requires_leader };
        let filters =
            if no_put { vec![watch_create_request::FilterType::Noput as i32] } else { vec![] };
        let create = WatchCreateRequest { filters, ..WatchCreateRequest::default() };
        let receiver = Receiver {
            session: self.sessions[session].0.clone(),
            id: self.ids,
            caller: Caller::default(),
            next: start,
            wants: Wants::of(&create),
            header: header(self.revision()),
            begins,
        };
        let seen = Seen {
            watched: watched.clone(),
            start,
            begins,
            no_put,
            events: Vec::new(),
            is_created: false,
            is_over: false,
        };
        let told = WatchResponse {
            header: Some(header(self.revision())),
            watch_id: self.ids,
            created: true,
            ..WatchResponse::default()
        };
        if self.sessions[session].0.push(vec![told]).is_err() {
            return;
        }
        self.seen.insert((session, self.ids), seen);
        let made = self.feeds.join(&watched, receiver);
        self.start_all(made);
    }

    fn start_all(&mut self, made: impl IntoIterator<Item = NewFeed>) {
        let task = |feed| Task { feed, open: None, waits_for: None };
        self.tasks.extend(made.into_iter().map(task));
    }

    /// What the service's task does between two responses.
    fn run(&mut self, nth: usize, revisions: usize) {
        let Some(task) = self.tasks.get_mut(nth) else { return };
        if let Some(session) = &task.waits_for {
            if session.roomy().now_or_never().is_none() {
                return;
            }
            (task.open, task.waits_for) = (None, None);
        }
        let Some(next) = task.open else {
            let start = self.feeds.start(&task.feed.watched, task.feed.number);
            match start {
                Some((next, _)) => {
                    let created = WatchResponse {
                        header: Some(header(self.revision())),
                        created: true,
                        ..WatchResponse::default()
                    };
                    self.deliver(nth, &created, next);
                }
                None => drop(self.tasks.remove(nth)),
            }
            return;
        };
        if next < self.compacted {
            let response = WatchResponse {
                header: Some(header(self.revision())),
                canceled: true,
                compact_revision: self.compacted,
                ..WatchResponse::default()
            };
            return self.deliver(nth, &response, next);
        }
        let from = usize::try_from(next - 1).unwrap().min(self.history.len());
        let until = (from + revisions).min(self.history.len());
        if from == until {
            return;
        }
        let response = WatchResponse {
            header: Some(header(self.revision())),
            events: self.history[from..until].concat(),
            ..WatchResponse::default()
        };
        self.deliver(nth, &response, until as i64 + 1);
    }

    fn progress(&mut self, nth: usize) {
        let Some(task) = self.tasks.get(nth) else { return };
        // Members answer only when the watch is not behind.
        if task.waits_for.is_some() || task.open.is_none_or(|next| next <= self.revision()) {
            return;
        }
        let next = task.open.unwrap();
        let (watched, number) = (task.feed.watched.clone(), task.feed.number);
        self.feeds.asked_in_vain(&watched, number);
        let response = WatchResponse {
            header: Some(header(self.revision())),
            watch_id: NO_WATCH,
            ..WatchResponse::default()
        };
        self.deliver(nth, &response, next);
    }

    fn deliver(&mut self, nth: usize, response: &WatchResponse, next: i64) {
        let task = &mut self.tasks[nth];
        let (step, made) = self.feeds.deliver(&task.feed.watched, task.feed.number, response);
        match step {
            Next::Read => task.open = Some(next),
            Next::WaitFor(session) => (task.open, task.waits_for) = (None, Some(session)),
            Next::Reopen => task.open = None,
            Next::End => drop(self.tasks.remove(nth)),
        }
        self.start_all(made);
    }

    /// Takes one message from a client's queue and judges it.
    fn read(&mut self, session: usize) -> bool {
        let Some(message) = self.sessions[session].1.next().now_or_never() else { return false };
        let message = message.expect("no stream is ended here");
        let revision = message.header.unwrap().revision;
        if message.watch_id == NO_WATCH {
            let is_his =
                |((of, _), seen): &(&(usize, i64), &Seen)| *of == session && seen.is_created;
            for ((of, id), seen) in self.seen.iter().filter(is_his) {
                let expected = self.expected(seen, revision);
                assert!(seen.is_over || seen.events.len() >= expected.len(), "{of} {id} progress");
                assert!(seen.is_over || seen.begins <= revision, "{of} {id} begins later");
            }
            return true;
        }
        let seen = self.seen.get_mut(&(session, message.watch_id)).unwrap();
        if message.created {
            seen.is_created = true;
            return true;
        }
        assert!(seen.is_created, "told of a watch before it is created");
        if message.canceled {
            assert!(seen.start < message.compact_revision, "nothing of it was compacted");
            seen.is_over = true;
            return true;
        }
        seen.events.extend(message.events);
        let seen = &self.seen[&(session, message.watch_id)];
        let expected = self.expected(seen, i64::MAX);
        assert!(expected.starts_with(&seen.events), "a gap, a duplicate or a wrong order");
        true
    }

    fn expected(&self, seen: &Seen, until: i64) -> Vec<Event> {
        let events = self.history.iter().flatten().cloned();
        let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
        events
            .filter(|event| revision(event) >= seen.start && revision(event) <= until)
            .filter(|event| !(seen.no_put && event.r#type() == EventType::Put))
            .collect()
    }

    /// Everything goes on until nothing is left to do; then every client has everything.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let tasks = self.tasks.len();
            (0..tasks).for_each(|nth| self.step(&Step::Feed { nth, revisions: 3 }));
            let mut is_quiet = tasks == self.tasks.len();
            for session in 0..SESSIONS {
                while self.read(session) {
                    is_quiet = false;
                }
            }
            let has_all = |task: &Task| task.open.is_some_and(|next| next > self.revision());
            if is_quiet && self.tasks.iter().all(has_all) {
                break;
            }
        }
        for (key, seen) in self.seen.iter().filter(|(_, seen)| !seen.is_over) {
            assert_eq!(seen.events, self.expected(seen, i64::MAX), "{key:?} misses something");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_client_gets_what_it_watches_once_and_in_order(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
        // When nothing happens any more, all who watch the same share one watch.
        for _ in 0..3 {
            (0..world.tasks.len()).rev().for_each(|nth| world.step(&Step::Progress { nth }));
        }
        let mut watched: Vec<&Watched> = world.tasks.iter().map(|task| &task.feed.watched).collect();
        let feeds = watched.len();
        watched.sort();
        watched.dedup();
        prop_assert_eq!(feeds, watched.len());
    }
}

fn receiver(session: &Arc<Session>, id: i64, next: i64) -> Receiver {
    let create = WatchCreateRequest::default();
    let (caller, wants) = (Caller::default(), Wants::of(&create));
    Receiver { session: session.clone(), id, caller, next, wants, header: header(0), begins: 0 }
}

fn range() -> Watched {
    Watched { key: "k".into(), range_end: Bytes::new(), requires_leader: true }
}

#[test]
fn a_refusal_ends_the_stream_of_the_one_in_whose_name_was_asked_and_no_leader_ends_all() {
    let mut feeds = Feeds::default();
    let (first, mut first_pump) = Session::new(1, ROOM);
    let (second, mut second_pump) = Session::new(2, ROOM);
    let number = feeds.join(&range(), receiver(&first, 0, 5)).unwrap().number;
    assert!(feeds.join(&range(), receiver(&second, 0, 5)).is_none(), "they share");
    let refused = Status::permission_denied("etcdserver: permission denied");
    assert!(matches!(feeds.failed(&range(), number, &refused), Next::Reopen));
    let ended = first_pump.next().now_or_never().unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, refused.message()));
    assert!(second_pump.next().now_or_never().is_none());
    assert!(matches!(feeds.failed(&range(), number, &Status::unavailable(NO_LEADER)), Next::End));
    let ended = second_pump.next().now_or_never().unwrap().unwrap_err();
    assert_eq!(ended.message(), NO_LEADER);
}

#[test]
fn a_long_response_is_divided_only_for_those_who_allow_it() {
    let mut feeds = Feeds::default();
    let (session, mut pump) = Session::new(1, 64);
    let create = WatchCreateRequest { fragment: true, ..WatchCreateRequest::default() };
    let divided = Receiver { wants: Wants::of(&create), ..receiver(&session, 1, 1) };
    let number = feeds.join(&range(), receiver(&session, 0, 1)).unwrap().number;
    assert!(feeds.join(&range(), divided).is_none());
    let value = Bytes::from(vec![7; 1_000_000]);
    let kv = KeyValue { value, mod_revision: 1, ..KeyValue::default() };
    let event = Event { kv: Some(kv), ..Event::default() };
    let response = WatchResponse { events: vec![event; 5], ..WatchResponse::default() };
    assert!(matches!(feeds.deliver(&range(), number, &response), (Next::Read, _)));
    let mut got = Vec::new();
    while let Some(Ok(message)) = pump.next().now_or_never() {
        got.push((message.watch_id, message.events.len(), message.fragment));
    }
    assert_eq!(got, [(0, 5, false), (1, 2, true), (1, 2, true), (1, 1, false)]);
}

/// What a client has been sent.
fn sent(pump: &mut Pump) -> Vec<(i64, i64)> {
    let next = || pump.next().now_or_never();
    let messages = std::iter::from_fn(next).map(|message| message.expect("no stream is ended"));
    messages.map(|message| (message.watch_id, message.header.unwrap().revision)).collect()
}

/// As by a member: neither regularly, nor to a stream that asks.
#[test]
fn who_begins_later_is_not_told_how_far_the_watch_is() {
    let mut feeds = Feeds::default();
    let (now, mut to_now) = Session::new(1, 64);
    let (later, mut to_later) = Session::new(2, 64);
    let create = WatchCreateRequest { progress_notify: true, ..WatchCreateRequest::default() };
    let wants = Wants::of(&create);
    let from_now = Receiver { wants, ..receiver(&now, 0, 6) };
    let from_nine = Receiver { wants, begins: 9, ..receiver(&later, 1, 9) };
    let number = feeds.join(&range(), from_now).unwrap().number;
    let created =
        WatchResponse { header: Some(header(5)), created: true, ..WatchResponse::default() };
    assert!(matches!(feeds.deliver(&range(), number, &created), (Next::Read, _)));
    assert!(feeds.join(&range(), from_nine).is_none(), "they share");

    let ask = |feeds: &mut Feeds| [&now, &later].map(|session| feeds.ask_progress(session));
    ask(&mut feeds);
    feeds.asked_in_vain(&range(), number);
    assert_eq!((sent(&mut to_now), sent(&mut to_later)), (vec![(NO_WATCH, 5)], vec![]));
    for revision in [8, 9] {
        let by_itself =
            WatchResponse { header: Some(header(revision)), ..WatchResponse::default() };
        feeds.deliver(&range(), number, &by_itself);
        ask(&mut feeds);
        let when_asked = WatchResponse { watch_id: NO_WATCH, ..by_itself };
        feeds.deliver(&range(), number, &when_asked);
        assert_eq!(sent(&mut to_now), [(0, revision), (NO_WATCH, revision)]);
        let expected = if revision < 9 { vec![] } else { vec![(1, 9), (NO_WATCH, 9)] };
        assert_eq!(sent(&mut to_later), expected);
    }
}
