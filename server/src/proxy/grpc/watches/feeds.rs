//! Who gets the events of which watch of the members: the bookkeeping, without any I/O.
//!
//! A *feed* is one watch of the members; its *receivers* are watches of clients. All receivers of a feed
//! watch the same range. Invariants:
//!
//! - Every event of the range with a revision below `next` of a feed has been handed to its receivers.
//! - Every event below `next` of a receiver has been handed to it, or was not asked for; none at or above
//!   has. So a receiver may be moved to any feed of its range whose `next` is not greater than its own:
//!   nothing is missed, and what comes a second time is left out by the receiver's `next`.
//! - An event is put into a client's queue and `next` raised under one lock.
//!
//! From this follow the moves: a new watch joins a feed that is not ahead of it, or gets its own. A feed
//! that has caught up hands its receivers to another that is not ahead. A receiver whose client does not
//! read gets a feed of its own, so that it holds nobody up.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use proto::mvccpb::Event;
use proto::mvccpb::event::EventType;
use tokio::sync::Notify;
use tonic::{Code, Status};

use super::super::forward::Caller;
use super::session::{Outgoing, Session};

/// A response longer than this is divided for clients that allow it, as the server does.
const FRAGMENT_BYTES: usize = 1_572_864 + 512 * 1024;
/// How many questions for progress may wait for one feed.
const QUESTIONS_MAX: usize = 1024;

/// What is watched. A stream that must have a leader ends without one, and so does not share with others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Watched {
    pub(super) key: Bytes,
    pub(super) range_end: Bytes,
    pub(super) requires_leader: bool,
}

/// A watch of a client.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) session: Arc<Session>,
    pub(super) id: i64,
    pub(super) caller: Caller,
    /// The first revision that the client has not got yet.
    pub(super) next: i64,
    pub(super) wants: Wants,
    pub(super) header: ResponseHeader,
    /// The revision that the client asked to begin with; 0 for whatever comes.
    pub(super) begins: i64,
}

impl Receiver {
    /// Whether its client may be told that it is where this header is. Of a watch that begins later
    /// members do not say how far it is.
    fn is_told_of(&self, header: &ResponseHeader) -> bool {
        header.revision >= self.begins
    }
}

/// What of a watch's events goes to the client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wants {
    puts: bool,
    deletes: bool,
    before: bool,
    progress: bool,
    fragments: bool,
}

impl Wants {
    pub(super) fn of(create: &WatchCreateRequest) -> Self {
        let filtered = |kind: FilterType| create.filters.contains(&(kind as i32));
        Self {
            puts: !filtered(FilterType::Noput),
            deletes: !filtered(FilterType::Nodelete),
            before: create.prev_kv,
            progress: create.progress_notify,
            fragments: create.fragment,
        }
    }

    fn event(self, event: &Event) -> Option<Event> {
        let wanted = match event.r#type() {
            EventType::Put => self.puts,
            EventType::Delete => self.deletes,
        };
        wanted.then(|| {
            let prev_kv = event.prev_kv.clone().filter(|_| self.before);
            Event { prev_kv, ..event.clone() }
        })
    }
}

/// How a feed's task is reached.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Nobody needs the feed any more.
    pub(super) stop: tokio_util::sync::CancellationToken,
    /// Somebody wants to know how far it is.
    pub(super) ask: Notify,
}

#[derive(Debug)]
struct Feed {
    next: i64,
    /// Whether the members have said that it is not behind.
    has_caught_up: bool,
    /// Where the members were when it began after that, as long as nothing has come since. They do not
    /// say how far a watch is whose first revision is still to come.
    begun: Option<ResponseHeader>,
    /// Whether it waits for a client.
    is_held_up: bool,
    receivers: Vec<Receiver>,
    /// Questions for progress that wait for an answer.
    questions: Vec<(Arc<Session>, u64)>,
    signals: Arc<Signals>,
}

/// What a feed's task has to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Read on.
    Read,
    /// Wait for this client.
    WaitFor(Arc<Session>),
    /// Open the watch again.
    Reopen,
    /// Nothing: the feed is gone.
    End,
}

/// A feed that was made and needs a task.
#[derive(Debug)]
pub(super) struct NewFeed {
    pub(super) watched: Watched,
    pub(super) number: u64,
    pub(super) signals: Arc<Signals>,
}

/// All feeds.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    ranges: BTreeMap<Watched, BTreeMap<u64, Feed>>,
    numbers: u64,
    rounds: u64,
    /// Responses that more than one receiver got, once for every receiver but the first.
    pub(super) responses_shared: u64,
}

impl Feeds {
    /// Gives a receiver its feed; a new one needs a task.
    pub(super) fn join(&mut self, watched: &Watched, receiver: Receiver) -> Option<NewFeed> {
        let session = receiver.session.clone();
        let made = self.place(watched, receiver);
        // An answer that is on its way knows nothing of this watch, and is not told any more.
        let mut feeds = self.ranges.values().flat_map(BTreeMap::values);
        let is_his = |(asking, _): &(Arc<Session>, u64)| asking.number == session.number;
        if feeds.any(|feed| feed.questions.iter().any(is_his)) {
            self.ask_progress(&session);
        }
        made
    }

    fn place(&mut self, watched: &Watched, receiver: Receiver) -> Option<NewFeed> {
        let feeds = self.ranges.entry(watched.clone()).or_default();
        // One that is still behind would keep the newcomer waiting for events that it does not want.
        let fits = |feed: &Feed| match feed.has_caught_up {
            true => feed.next <= receiver.next,
            false => feed.next == receiver.next,
        };
        match feeds.values_mut().find(|feed| feed.may_take() && fits(feed)) {
            Some(feed) => {
                feed.receivers.push(receiver);
                None
            }
            None => Some(self.make(watched, receiver)),
        }
    }

    fn make(&mut self, watched: &Watched, receiver: Receiver) -> NewFeed {
        self.numbers += 1;
        let number = self.numbers;
        let signals = Arc::new(Signals::default());
        let feed = Feed {
            next: receiver.next,
            has_caught_up: false,
            begun: None,
            is_held_up: false,
            receivers: vec![receiver],
            questions: Vec::new(),
            signals: signals.clone(),
        };
        self.ranges.entry(watched.clone()).or_default().insert(number, feed);
        NewFeed { watched: watched.clone(), number, signals }
    }

    /// Takes a receiver out; nothing if there is none such.
    pub(super) fn leave(&mut self, watched: &Watched, session: u64, id: i64) -> Option<Receiver> {
        let feeds = self.ranges.get_mut(watched)?;
        let is_it = |it: &Receiver| it.session.number == session && it.id == id;
        let (number, receiver) = feeds.iter_mut().find_map(|(number, feed)| {
            let at = feed.receivers.iter().position(is_it)?;
            Some((*number, feed.receivers.swap_remove(at)))
        })?;
        self.remove_if_unused(watched, number);
        Some(receiver)
    }

    /// Where a feed has to begin, and in whose name. Nothing when it is gone.
    pub(super) fn start(&mut self, watched: &Watched, number: u64) -> Option<(i64, Caller)> {
        let feed = self.feed(watched, number)?;
        feed.has_caught_up = false;
        feed.begun = None;
        feed.is_held_up = false;
        let sponsor = feed.receivers.first()?;
        Some((feed.next, sponsor.caller.clone()))
    }

    /// Whether the members have to be asked how far a feed is.
    pub(super) fn wants_progress(&mut self, watched: &Watched, number: u64) -> bool {
        let feed = self.feed(watched, number);
        feed.is_some_and(|feed| !feed.has_caught_up || !feed.questions.is_empty())
    }

    /// The members have had time to say how far a feed is. Those who say nothing of one that has begun
    /// where they are have nothing newer.
    pub(super) fn asked_in_vain(&mut self, watched: &Watched, number: u64) {
        if let Some(feed) = self.feed(watched, number)
            && let Some(begun) = feed.begun
        {
            feed.answer(Some(begun));
        }
    }

    /// Hands out what a feed has got. It may be called again with the same response until it says
    /// something else than to wait.
    pub(super) fn deliver(
        &mut self,
        watched: &Watched,
        number: u64,
        response: &WatchResponse,
    ) -> (Next, Vec<NewFeed>) {
        let Some(feed) = self.feed(watched, number) else { return (Next::End, Vec::new()) };
        feed.is_held_up = false;
        feed.receivers.retain(|receiver| !receiver.session.is_gone());
        if self.remove_if_unused(watched, number) {
            return (Next::End, Vec::new());
        }
        let Some(feed) = self.feed(watched, number) else { return (Next::End, Vec::new()) };
        if response.created && !response.canceled {
            feed.begun = response.header.filter(|header| header.revision < feed.next);
            feed.has_caught_up = feed.begun.is_some();
            return (self.merge(watched, number), Vec::new());
        }
        if response.canceled {
            return (self.cancelled(watched, number, response), Vec::new());
        }
        let last = response.events.last().and_then(|event| event.kv.as_ref());
        let Some(last) = last.map(|kv| kv.mod_revision) else {
            self.progressed(watched, number, response);
            return (self.merge(watched, number), Vec::new());
        };
        feed.begun = None;
        let full = feed.hand_out(response, last);
        if full.len() == 1 && feed.receivers.len() == 1 {
            feed.is_held_up = true;
            return (Next::WaitFor(feed.receivers[0].session.clone()), Vec::new());
        }
        // The others do not wait: who has no room goes on alone.
        let slow: Vec<Receiver> =
            full.into_iter().rev().map(|at| feed.receivers.swap_remove(at)).collect();
        // How far this feed is says nothing of them any more; their clients have more to read than an
        // answer, and ask again.
        let is_slow = |number| slow.iter().any(|it| it.session.number == number);
        feed.questions.retain(|(asking, _)| !is_slow(asking.number));
        feed.next = feed.next.max(last + 1);
        let shared = feed.receivers.len().saturating_sub(1);
        self.responses_shared += shared as u64;
        let made = slow.into_iter().map(|receiver| self.make(watched, receiver)).collect();
        self.remove_if_unused(watched, number);
        (self.merge(watched, number), made)
    }

    /// The watch of a feed was refused or has ended for good. What is about the one in whose name it was
    /// asked for ends that one's stream only; its client opens it again and is told why it may not.
    pub(super) fn failed(&mut self, watched: &Watched, number: u64, status: &Status) -> Next {
        let Some(feed) = self.feed(watched, number) else { return Next::End };
        if status.message() == super::NO_LEADER {
            feed.receivers.drain(..).for_each(|receiver| receiver.session.end(status.clone()));
        } else if !feed.receivers.is_empty() {
            let about_caller = matches!(
                status.code(),
                Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
            );
            let told = match about_caller {
                true => Status::unavailable(status.message()),
                false => status.clone(),
            };
            feed.receivers.remove(0).session.end(told);
        }
        match self.remove_if_unused(watched, number) {
            true => Next::End,
            false => Next::Reopen,
        }
    }

    /// Asks every feed of a stream how far it is.
    pub(super) fn ask_progress(&mut self, session: &Arc<Session>) {
        let feeds = || self.ranges.values().flat_map(BTreeMap::values);
        let is_his =
            |feed: &&Feed| feed.receivers.iter().any(|it| it.session.number == session.number);
        let his = feeds().filter(is_his).count();
        let full = feeds().filter(is_his).any(|feed| feed.questions.len() >= QUESTIONS_MAX);
        let round = self.rounds + 1;
        // A client that has so much before it already will ask again.
        if his == 0 || full || session.tell(Outgoing::Round { round, feeds: his }).is_err() {
            return;
        }
        self.rounds = round;
        for feed in self.ranges.values_mut().flat_map(BTreeMap::values_mut) {
            if is_his(&&*feed) {
                feed.questions.push((session.clone(), round));
                feed.signals.ask.notify_one();
            }
        }
    }

    /// How many receivers share a feed with another one.
    pub(super) fn shared(&self) -> usize {
        let feeds = self.ranges.values().flat_map(BTreeMap::values);
        feeds.map(|feed| feed.receivers.len().saturating_sub(1)).sum()
    }

    fn feed(&mut self, watched: &Watched, number: u64) -> Option<&mut Feed> {
        self.ranges.get_mut(watched)?.get_mut(&number)
    }

    /// Everything up to the header's revision has been delivered.
    fn progressed(&mut self, watched: &Watched, number: u64, response: &WatchResponse) {
        let Some(feed) = self.feed(watched, number) else { return };
        let Some(header) = response.header else { return };
        feed.has_caught_up = true;
        feed.begun = None;
        feed.next = feed.next.max(header.revision + 1);
        let was_asked_for = response.watch_id == super::session::NO_WATCH;
        for receiver in &mut feed.receivers {
            receiver.next = receiver.next.max(header.revision + 1);
            if receiver.wants.progress && !was_asked_for && receiver.is_told_of(&header) {
                let told = WatchResponse { watch_id: receiver.id, ..response.clone() };
                // The next one says the same.
                let _ = receiver.session.push(vec![told]);
            }
        }
        feed.answer(Some(header));
    }

    /// The members have ended the watch of a feed.
    fn cancelled(&mut self, watched: &Watched, number: u64, response: &WatchResponse) -> Next {
        if response.compact_revision == 0 {
            let status = Status::permission_denied(response.cancel_reason.clone());
            return self.failed(watched, number, &status);
        }
        let Some(feed) = self.feed(watched, number) else { return Next::End };
        let mut waits_for = None;
        feed.receivers.retain(|receiver| {
            // Who came later than what was compacted misses nothing.
            if receiver.next >= response.compact_revision {
                return true;
            }
            let told = WatchResponse { watch_id: receiver.id, ..response.clone() };
            let is_full = receiver.session.push(vec![told]).is_err();
            if is_full {
                waits_for = Some(receiver.session.clone());
            }
            is_full
        });
        if let Some(session) = waits_for {
            feed.is_held_up = true;
            return Next::WaitFor(session);
        }
        feed.next = feed.receivers.iter().map(|it| it.next).min().unwrap_or(feed.next);
        match self.remove_if_unused(watched, number) {
            true => Next::End,
            false => Next::Reopen,
        }
    }

    /// Hands the receivers of a feed that has caught up to another one that has, if it is not ahead.
    fn merge(&mut self, watched: &Watched, number: u64) -> Next {
        let Some(feeds) = self.ranges.get_mut(watched) else { return Next::End };
        let Some(next) = feeds.get(&number).map(|feed| feed.next) else { return Next::End };
        let other = feeds.iter().find(|(other, feed)| {
            **other != number && feed.has_caught_up && feed.may_take() && feed.next <= next
        });
        let Some(other) = other.map(|(other, _)| *other) else { return Next::Read };
        let Some(mut feed) = feeds.remove(&number) else { return Next::End };
        if let Some(other) = feeds.get_mut(&other) {
            other.receivers.append(&mut feed.receivers);
            other.questions.append(&mut feed.questions);
            other.signals.ask.notify_one();
        }
        Next::End
    }

    /// Whether it was unused and is gone.
    fn remove_if_unused(&mut self, watched: &Watched, number: u64) -> bool {
        let Some(feeds) = self.ranges.get_mut(watched) else { return true };
        if feeds.get(&number).is_some_and(|feed| !feed.receivers.is_empty()) {
            return false;
        }
        if let Some(mut feed) = feeds.remove(&number) {
            feed.answer(None);
            feed.signals.stop.cancel();
        }
        if feeds.is_empty() {
            self.ranges.remove(watched);
        }
        true
    }
}

impl Feed {
    /// Whether others may be added: one that waits for its client would hold them up.
    fn may_take(&self) -> bool {
        !self.is_held_up
    }

    /// Puts events into the queues of those who have not got them, and names those that have no room,
    /// in order.
    fn hand_out(&mut self, response: &WatchResponse, last: i64) -> Vec<usize> {
        let mut full = Vec::new();
        for (at, receiver) in self.receivers.iter_mut().enumerate() {
            if receiver.next > last {
                continue;
            }
            let is_new = |event: &&Event| {
                event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= receiver.next)
            };
            let new = response.events.iter().filter(is_new);
            let events: Vec<Event> = new.filter_map(|event| receiver.wants.event(event)).collect();
            if !events.is_empty() {
                let told = WatchResponse {
                    header: response.header,
                    watch_id: receiver.id,
                    events,
                    ..WatchResponse::default()
                };
                let parts = if receiver.wants.fragments { divided(told) } else { vec![told] };
                if receiver.session.push(parts).is_err() {
                    full.push(at);
                    continue;
                }
            }
            receiver.header = response.header.unwrap_or(receiver.header);
            receiver.next = last + 1;
        }
        full
    }

    fn answer(&mut self, header: Option<ResponseHeader>) {
        for (session, round) in self.questions.drain(..) {
            let is_early = header.is_some_and(|header| {
                let mut his =
                    self.receivers.iter().filter(|it| it.session.number == session.number);
                his.any(|receiver| !receiver.is_told_of(&header))
            });
            let told = match is_early {
                true => Outgoing::Unanswered { round },
                false => Outgoing::Progress { round, header },
            };
            // Without room the client has more to read than an answer, and asks again.
            let _ = session.tell(told);
        }
    }
}

/// A long response in parts; every part but the last says that more follow.
fn divided(response: WatchResponse) -> Vec<WatchResponse> {
    if response.encoded_len() <= FRAGMENT_BYTES {
        return vec![response];
    }
    let part = || WatchResponse { events: Vec::new(), fragment: true, ..response.clone() };
    let mut parts = vec![part()];
    let mut bytes = 0;
    for event in &response.events {
        let length = event.encoded_len();
        if bytes > 0 && bytes + length > FRAGMENT_BYTES {
            parts.push(part());
            bytes = 0;
        }
        bytes += length;
        if let Some(last) = parts.last_mut() {
            last.events.push(event.clone());
        }
    }
    if let Some(last) = parts.last_mut() {
        last.fragment = false;
    }
    parts
}
