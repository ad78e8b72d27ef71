//! The stream of one client: what waits to be sent on it, in order, and how full it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::Stream;
use prost::Message;
use proto::etcdserverpb::{ResponseHeader, WatchResponse};
use tokio::sync::{Notify, mpsc, watch};
use tonic::Status;

/// How many responses may wait for a client, as in etcd.
pub(super) const RESPONSES_MAX: usize = 1024;
/// How many bytes they may have.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The id of a response that is about the whole stream, or about a watch that there is not.
pub(super) const NO_WATCH: i64 = -1;

/// What a stream is told.
#[derive(Debug)]
pub(super) enum Outgoing {
    Response(WatchResponse),
    /// The client has asked how far it is; so many feeds will say.
    Round {
        round: u64,
        feeds: usize,
    },
    /// One of them: everything up to this header's revision stands before this in the queue. Nothing
    /// when the feed has ended.
    Progress {
        round: u64,
        header: Option<ResponseHeader>,
    },
    /// One of them does not say, and so nobody does, as by a member.
    Unanswered {
        round: u64,
    },
}

/// The sending half, which feeds hold.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    queue: mpsc::Sender<(Outgoing, usize)>,
    queued_bytes: AtomicUsize,
    /// Told whenever something has left the queue.
    room: Notify,
    end: watch::Sender<Option<Status>>,
}

/// There is no room, or nobody to send to.
#[derive(Debug)]
pub(super) struct Full;

impl Session {
    pub(super) fn new(number: u64, responses_max: usize) -> (std::sync::Arc<Self>, Pump) {
        let (queue, waiting) = mpsc::channel(responses_max);
        let (end, ended) = watch::channel(None);
        let queued_bytes = AtomicUsize::new(0);
        let session = Self { number, queue, queued_bytes, room: Notify::new(), end };
        let session = std::sync::Arc::new(session);
        let pump = Pump { session: session.clone(), waiting, ended, rounds: BTreeMap::new() };
        (session, pump)
    }

    /// Puts responses into the queue, all of them or none.
    pub(super) fn push(&self, responses: Vec<WatchResponse>) -> Result<(), Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let permits = self.queue.try_reserve_many(responses.len()).map_err(|_| Full)?;
        for (permit, response) in permits.zip(responses) {
            let bytes = response.encoded_len();
            self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
            permit.send((Outgoing::Response(response), bytes));
        }
        Ok(())
    }

    /// Puts into the queue what is about the progress of the stream.
    pub(super) fn tell(&self, outgoing: Outgoing) -> Result<(), Full> {
        self.queue.try_send((outgoing, 0)).map_err(|_| Full)
    }

    /// Waits until half of the queue is free; also if the client has gone, which [`Session::is_gone`]
    /// tells.
    pub(super) async fn roomy(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            let halfway = self.queue.capacity() * 2 >= self.queue.max_capacity()
                && self.queued_bytes.load(Ordering::Relaxed) <= BYTES_MAX / 2;
            if halfway || self.is_gone() {
                return;
            }
            room.await;
        }
    }

    /// Resolves when the client has gone.
    pub(super) async fn gone(&self) {
        self.queue.closed().await;
    }

    pub(super) fn is_gone(&self) -> bool {
        self.queue.is_closed()
    }

    /// Ends the stream. What waits in its queue is not sent any more: the client gets it again when it
    /// goes on after the last that it has seen.
    pub(super) fn end(&self, status: Status) {
        self.end.send_replace(Some(status));
    }

    fn has_room(&self) -> bool {
        self.queued_bytes.load(Ordering::Relaxed) <= BYTES_MAX
    }
}

/// The receiving half: the stream to the client.
pub(super) struct Pump {
    session: std::sync::Arc<Session>,
    waiting: mpsc::Receiver<(Outgoing, usize)>,
    ended: watch::Receiver<Option<Status>>,
    /// Questions for progress, by number: how many feeds have not answered yet, and the least answer.
    rounds: BTreeMap<u64, (usize, Option<ResponseHeader>)>,
}

impl Pump {
    /// The messages; `guard` lives as long as they do.
    pub(super) fn into_stream<G: Send + 'static>(
        self,
        guard: G,
    ) -> impl Stream<Item = Result<WatchResponse, Status>> + Send {
        futures_util::stream::unfold(Some((self, guard)), |state| async move {
            let (mut pump, guard) = state?;
            match pump.next().await {
                Ok(response) => Some((Ok(response), Some((pump, guard)))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    pub(super) async fn next(&mut self) -> Result<WatchResponse, Status> {
        loop {
            let message = tokio::select! {
                biased;
                ended = self.ended.wait_for(Option::is_some) => {
                    let status = ended.ok().and_then(|status| status.clone());
                    return Err(status.unwrap_or_else(|| Status::unavailable("the proxy stops")));
                }
                message = self.waiting.recv() => message,
            };
            // This half holds the other one, so there is always one who may send.
            let Some((outgoing, bytes)) = message else { std::future::pending().await };
            self.session.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.session.room.notify_waiters();
            if let Some(response) = self.answer(outgoing) {
                return Ok(response);
            }
        }
    }

    fn answer(&mut self, outgoing: Outgoing) -> Option<WatchResponse> {
        let (round, header) = match outgoing {
            Outgoing::Response(response) => {
                // Questions from before a watch was created are asked again for it too.
                if response.created {
                    self.rounds.clear();
                }
                return Some(response);
            }
            Outgoing::Round { round, feeds } => {
                self.rounds.insert(round, (feeds, None));
                // The oldest of so many has lost an answer.
                if self.rounds.len() > RESPONSES_MAX {
                    self.rounds.pop_first();
                }
                return None;
            }
            Outgoing::Unanswered { round } => {
                self.rounds.remove(&round);
                return None;
            }
            Outgoing::Progress { round, header } => (round, header),
        };
        let (left, least) = self.rounds.get_mut(&round)?;
        *left -= 1;
        if let Some(header) = header
            && least.is_none_or(|least| header.revision < least.revision)
        {
            *least = Some(header);
        }
        if *left > 0 {
            return None;
        }
        let (_, header) = self.rounds.remove(&round)?;
        // Older questions that nobody could answer have their answer in this one.
        self.rounds = self.rounds.split_off(&round);
        Some(WatchResponse {
            header: Some(header?),
            watch_id: NO_WATCH,
            ..WatchResponse::default()
        })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.waiting.close();
        self.session.room.notify_waiters();
    }
}
