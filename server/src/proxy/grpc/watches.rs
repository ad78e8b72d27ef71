//! Watch: clients that watch the same range share one watch of the members.
//!
//! A watch of a client is answered here: whether it may read the range is asked of the members, in its
//! own name, and where it starts follows from their answer. Then it becomes a receiver of a feed
//! ([`feeds`]), whose task reads from the members and opens the watch again, after the last revision that
//! was handed out, when a member is lost. Clients notice nothing of that.
//!
//! A client that does not read holds up nobody, and nothing is kept for it beyond a bounded queue
//! ([`session`]): its feed lets go of the members until there is room, and then goes on where it was.
//!
//! Unlike etcd's proxy this one answers progress requests, divides long responses for those who allow it,
//! and takes the ids that clients choose, as a member does.

mod feeds;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::watch_server::Watch;
use proto::etcdserverpb::*;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use feeds::{Feeds, NewFeed, Next, Receiver, Wants, Watched};
use session::{NO_WATCH, RESPONSES_MAX, Session};

use super::forward::Caller;
use super::metrics::ProxyMetrics;
use super::namespace::{Namespace, WatchAnswers};

pub(super) const NO_LEADER: &str = "etcdserver: no leader";
/// Pause before a lost watch is opened again, as in clientv3.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// How long a feed keeps its watch of the members open while its client has no room.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often the members are asked how far they are, while that has to be known. One that is behind
/// does not answer.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The service.
#[derive(Clone)]
pub(super) struct Watches(Arc<Shared>);

struct Shared {
    members: Namespace,
    feeds: Mutex<State>,
    metrics: ProxyMetrics,
}

#[derive(Default)]
struct State {
    feeds: Feeds,
    sessions: u64,
}

impl Watches {
    pub(super) fn new(members: Namespace, metrics: ProxyMetrics) -> Self {
        Self(Arc::new(Shared { members, feeds: Mutex::default(), metrics }))
    }
}

#[tonic::async_trait]
impl Watch for Watches {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let number = {
            let mut state = self.0.lock();
            state.sessions += 1;
            state.sessions
        };
        let caller = Caller::of(request.metadata());
        let (session, pump) = Session::new(number, RESPONSES_MAX);
        let created = Arc::new(Mutex::new(BTreeMap::new()));
        let guard = Leaving { shared: self.0.clone(), number, created: created.clone() };
        let (shared, of_client) = (self.0.clone(), session.clone());
        let client = Client { shared, caller, session: of_client, created, next_id: 0 };
        let requests = request.into_inner();
        tokio::spawn(async move {
            tokio::select! {
                () = session.gone() => {}
                () = client.take_requests(requests) => {}
            }
        });
        Ok(Response::new(Box::pin(pump.into_stream(guard))))
    }
}

/// The watches of a stream, by id.
type Created = Arc<Mutex<BTreeMap<i64, Watched>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a stream's watches away when it ends.
struct Leaving {
    shared: Arc<Shared>,
    number: u64,
    created: Created,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        for (id, watched) in std::mem::take(&mut *locked(&self.created)) {
            self.shared.leave(&watched, self.number, id);
        }
    }
}

/// What a client asks for on its stream.
struct Client {
    shared: Arc<Shared>,
    caller: Caller,
    session: Arc<Session>,
    created: Created,
    next_id: i64,
}

impl Client {
    /// Until the client closes its side; it still gets what it has asked for then.
    async fn take_requests(mut self, mut requests: Streaming<WatchRequest>) {
        while let Ok(Some(request)) = requests.message().await {
            match request.request_union {
                Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
                Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
                Some(RequestUnion::ProgressRequest(_)) => {
                    self.shared.lock().feeds.ask_progress(&self.session);
                }
                None => {}
            }
        }
    }

    async fn create(&mut self, create: WatchCreateRequest) {
        if create.start_revision < 0 {
            return self.refuse(None, super::COMPACTED.to_owned()).await;
        }
        let header = match self.shared.look_at(&self.caller, &create).await {
            Ok(header) => header,
            Err(status) if status.message() == NO_LEADER => return self.session.end(status),
            Err(status) => {
                let reason = client::Error::from(status).in_words_of_grpc();
                return self.refuse(None, reason).await;
            }
        };
        let is_open = matches!(&create.range_end[..], [] | [0]);
        if !is_open && create.range_end <= create.key {
            return self.refuse(Some(header), "mvcc: watcher range is empty".to_owned()).await;
        }
        let Some(id) = self.take_id(create.watch_id) else {
            let reason = "mvcc: duplicate watch ID provided on the WatchStream".to_owned();
            return self.refuse(Some(header), reason).await;
        };
        let watched = Watched {
            key: create.key.clone(),
            range_end: create.range_end.clone(),
            requires_leader: self.caller.requires_leader,
        };
        let receiver = Receiver {
            session: self.session.clone(),
            id,
            caller: self.caller.clone(),
            next: match create.start_revision {
                0 => header.revision + 1,
                revision => revision,
            },
            wants: Wants::of(&create),
            header,
            begins: create.start_revision,
        };
        locked(&self.created).insert(id, watched.clone());
        self.shared.join(&watched, receiver).await;
        if self.session.is_gone() {
            self.shared.leave(&watched, self.session.number, id);
        }
    }

    /// The id of the next watch, or the one that the client wants if it has no such watch.
    fn take_id(&mut self, wanted: i64) -> Option<i64> {
        let created = locked(&self.created);
        if wanted != 0 {
            return Some(wanted).filter(|id| !created.contains_key(id));
        }
        while created.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    async fn cancel(&mut self, id: i64) {
        let Some(watched) = locked(&self.created).remove(&id) else { return };
        // A watch that the members have cancelled already is not cancelled again.
        let Some(receiver) = self.shared.leave(&watched, self.session.number, id) else { return };
        let told = WatchResponse {
            header: Some(receiver.header),
            watch_id: id,
            canceled: true,
            ..WatchResponse::default()
        };
        self.send(told).await;
    }

    async fn refuse(&self, header: Option<ResponseHeader>, reason: String) {
        let told = WatchResponse {
            header: Some(header.unwrap_or_default()),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        };
        self.send(told).await;
    }

    async fn send(&self, response: WatchResponse) {
        while !self.session.is_gone() && self.session.push(vec![response.clone()]).is_err() {
            self.session.roomy().await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.feeds)
    }

    /// Whether a caller may watch a range, and how far the members are.
    async fn look_at(
        &self,
        caller: &Caller,
        create: &WatchCreateRequest,
    ) -> Result<ResponseHeader, Status> {
        loop {
            match self.members.look_at(caller.request(create.clone())).await {
                Err(status) if passes(&status) => sleep(REOPEN_PAUSE).await,
                result => return result,
            }
        }
    }

    /// Tells a client that its watch is created and gives it a feed, in one step: an answer to a question
    /// for progress stands either before both, or is asked for again with the new watch.
    async fn join(self: &Arc<Self>, watched: &Watched, receiver: Receiver) {
        let session = receiver.session.clone();
        let told = WatchResponse {
            header: Some(receiver.header),
            watch_id: receiver.id,
            created: true,
            ..WatchResponse::default()
        };
        let made = loop {
            {
                let mut state = self.lock();
                if session.push(vec![told.clone()]).is_ok() {
                    let made = state.feeds.join(watched, receiver);
                    self.metrics.watchers_coalescing.set(state.feeds.shared() as f64);
                    break made;
                }
            }
            if session.is_gone() {
                return;
            }
            session.roomy().await;
        };
        self.run_all(made);
    }

    fn leave(&self, watched: &Watched, session: u64, id: i64) -> Option<Receiver> {
        let mut state = self.lock();
        let receiver = state.feeds.leave(watched, session, id);
        self.metrics.watchers_coalescing.set(state.feeds.shared() as f64);
        receiver
    }

    fn run_all(self: &Arc<Self>, made: impl IntoIterator<Item = NewFeed>) {
        for feed in made {
            tokio::spawn(self.clone().run(feed));
        }
    }

    /// The task of a feed.
    async fn run(self: Arc<Self>, feed: NewFeed) {
        let stop = feed.signals.stop.clone();
        // Stopping drops the stream to the members, which ends the watch there.
        stop.run_until_cancelled(self.serve(&feed)).await;
    }

    async fn serve(self: &Arc<Self>, feed: &NewFeed) {
        loop {
            let start = self.lock().feeds.start(&feed.watched, feed.number);
            let Some((next, caller)) = start else { return };
            let create = WatchCreateRequest {
                key: feed.watched.key.clone(),
                range_end: feed.watched.range_end.clone(),
                start_revision: next,
                prev_kv: true,
                progress_notify: true,
                ..WatchCreateRequest::default()
            };
            let (asks, asked) = mpsc::channel(1);
            let opened = self.members.watch(caller.request(create), ReceiverStream::new(asked));
            let step = match opened.await {
                Ok(answers) => self.read(feed, asks, answers).await,
                Err(status) => self.failed(feed, &status),
            };
            match step {
                Next::End => return,
                Next::WaitFor(session) => session.roomy().await,
                Next::Read | Next::Reopen => sleep(REOPEN_PAUSE).await,
            }
        }
    }

    /// Hands out what comes until something else has to be done.
    async fn read(
        self: &Arc<Self>,
        feed: &NewFeed,
        asks: mpsc::Sender<WatchRequest>,
        mut answers: WatchAnswers,
    ) -> Next {
        let ask = || {
            let request_union = Some(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            // One that waits to be sent is as good.
            let _ = asks.try_send(WatchRequest { request_union });
        };
        let mut ticks = interval(ASK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_asked = false;
        loop {
            let wanted = self.lock().feeds.wants_progress(&feed.watched, feed.number);
            let response = tokio::select! {
                response = answers.next() => response,
                () = feed.signals.ask.notified() => {
                    ask();
                    ticks.reset();
                    is_asked = true;
                    continue;
                }
                _ = ticks.tick(), if wanted => {
                    if is_asked {
                        self.lock().feeds.asked_in_vain(&feed.watched, feed.number);
                    }
                    ask();
                    is_asked = true;
                    continue;
                }
            };
            is_asked = false;
            let step = match response {
                Ok(Some(response)) => self.deliver(feed, &response).await,
                Ok(None) => Next::Reopen,
                Err(status) => self.failed(feed, &status),
            };
            match step {
                Next::Read => {}
                step => return step,
            }
        }
    }

    async fn deliver(self: &Arc<Self>, feed: &NewFeed, response: &WatchResponse) -> Next {
        loop {
            let (step, made) = {
                let mut state = self.lock();
                let before = state.feeds.responses_shared;
                let (step, made) = state.feeds.deliver(&feed.watched, feed.number, response);
                let shared = state.feeds.responses_shared - before;
                self.metrics.events_coalescing.inc_by(shared as f64);
                if !made.is_empty() || matches!(step, Next::End) {
                    self.metrics.watchers_coalescing.set(state.feeds.shared() as f64);
                }
                (step, made)
            };
            self.run_all(made);
            match step {
                Next::WaitFor(session) if timeout(PATIENCE, session.roomy()).await.is_err() => {
                    return Next::WaitFor(session);
                }
                Next::WaitFor(_) => {}
                step => return step,
            }
        }
    }

    fn failed(&self, feed: &NewFeed, status: &Status) -> Next {
        if passes(status) {
            return Next::Reopen;
        }
        let mut state = self.lock();
        let step = state.feeds.failed(&feed.watched, feed.number, status);
        self.metrics.watchers_coalescing.set(state.feeds.shared() as f64);
        step
    }
}

/// Whether a failure is one that the next try may not have.
pub(super) fn passes(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => status.message() != NO_LEADER,
        Code::Internal | Code::Cancelled | Code::Unknown => {
            !status.message().starts_with("etcdserver: ")
        }
        _ => false,
    }
}
