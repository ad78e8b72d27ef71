//! Leases: renewals of all clients go to the members on one stream per caller.
//!
//! A renewal that is under way answers everybody who asks for the same lease meanwhile. Nothing is renewed
//! that no client has asked for: etcd's proxy renews a lease on its own for as long as it lives, here a
//! lease ends when its clients stop.
//!
//! When the stream is lost, what was not answered is asked again on the next one: renewing twice does no
//! harm. A refusal ends the streams of those who wait, and a lost leader those of all who want one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::etcdserverpb::lease_server::Lease;
use proto::etcdserverpb::*;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::forward::Caller;
use super::namespace::Namespace;
use super::watches::{NO_LEADER, passes};

/// How many renewals of one client may be under way.
const RENEWALS_MAX: usize = 64;
/// How many renewals may wait for the stream to the members.
const WAITING_MAX: usize = 1024;
/// Pause before a lost stream is opened again, as in clientv3.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

type Answer = Result<LeaseKeepAliveResponse, Status>;
/// Room for an answer in the stream of a client.
type Waiting = mpsc::OwnedPermit<Answer>;
/// A lease, and who waits for its renewal.
type Renewal = (i64, Waiting);
type Renewals = mpsc::Sender<Renewal>;

/// The service.
#[derive(Clone)]
pub(super) struct Leases {
    members: Namespace,
    /// The streams to the members. A sender is held by those who use it; a stream without users ends.
    streams: Arc<Mutex<BTreeMap<Caller, mpsc::WeakSender<Renewal>>>>,
}

impl Leases {
    pub(super) fn new(members: Namespace) -> Self {
        Self { members, streams: Arc::default() }
    }

    /// The stream of a caller, which is made if there is none.
    fn stream(&self, caller: &Caller) -> Renewals {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, stream| stream.strong_count() > 0);
        let known = streams.get(caller).and_then(mpsc::WeakSender::upgrade);
        if let Some(stream) = known.filter(|stream| !stream.is_closed()) {
            return stream;
        }
        let (renewals, waiting) = mpsc::channel(WAITING_MAX);
        streams.insert(caller.clone(), renewals.downgrade());
        let (members, caller) = (self.members.clone(), caller.clone());
        tokio::spawn(Upstream { members, caller, waiting, unanswered: BTreeMap::new() }.run());
        renewals
    }
}

#[tonic::async_trait]
impl Lease for Leases {
    type LeaseKeepAliveStream = ReceiverStream<Answer>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        self.members.grant(request).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.members.revoke(request).await
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let renewals = self.stream(&Caller::of(request.metadata()));
        let (answers, answered) = mpsc::channel(RENEWALS_MAX);
        let requests = request.into_inner();
        tokio::spawn(async move {
            tokio::select! {
                () = ask(requests, &answers, &renewals) => {}
                // Somebody may ask, so it has not ended for want of users.
                () = renewals.closed() => {
                    let _ = answers.send(Err(Status::unavailable(NO_LEADER))).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.members.time_to_live(request).await
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.members.leases(request).await
    }
}

/// Hands on what a client asks for until it closes its side.
async fn ask(
    mut requests: Streaming<LeaseKeepAliveRequest>,
    answers: &mpsc::Sender<Answer>,
    renewals: &Renewals,
) {
    while let Ok(Some(LeaseKeepAliveRequest { id })) = requests.message().await {
        // Without room the client has to read first; without a reader it has gone.
        let Ok(waiting) = answers.clone().reserve_owned().await else { return };
        if renewals.send((id, waiting)).await.is_err() {
            // Why is told by who waits for that.
            return std::future::pending().await;
        }
    }
}

/// The stream of a caller to the members.
struct Upstream {
    members: Namespace,
    caller: Caller,
    waiting: mpsc::Receiver<(i64, Waiting)>,
    /// Who waits for the renewal of which lease.
    unanswered: BTreeMap<i64, Vec<Waiting>>,
}

impl Upstream {
    /// Until nobody can ask any more, or the members have lost a leader that the caller wants.
    async fn run(mut self) {
        loop {
            if self.unanswered.is_empty() {
                let Some((id, waiting)) = self.waiting.recv().await else { return };
                self.unanswered.entry(id).or_default().push(waiting);
            }
            match self.serve().await {
                Ok(()) => return,
                Err(status) if passes(&status) => sleep(REOPEN_PAUSE).await,
                Err(status) => {
                    let is_lost = self.caller.requires_leader && status.message() == NO_LEADER;
                    self.refuse(&status);
                    if is_lost {
                        return self.close(&status);
                    }
                }
            }
        }
    }

    /// Ends the streams of those who wait.
    fn refuse(&mut self, status: &Status) {
        for waiting in std::mem::take(&mut self.unanswered).into_values().flatten() {
            waiting.send(Err(status.clone()));
        }
    }

    /// Takes no more renewals, which ends the streams of all: see [`ask`].
    fn close(mut self, status: &Status) {
        self.waiting.close();
        while let Ok((_, waiting)) = self.waiting.try_recv() {
            waiting.send(Err(status.clone()));
        }
    }

    /// One stream, from its first renewal until nobody can ask any more and all have their answers: a
    /// client that closes its side waits for what it has asked for.
    async fn serve(&mut self) -> Result<(), Status> {
        let again: Vec<i64> = self.unanswered.keys().copied().collect();
        let (asks, asked) = mpsc::channel(again.len() + WAITING_MAX);
        for id in again {
            // There is room for all of them.
            let _ = asks.try_send(LeaseKeepAliveRequest { id });
        }
        // It is open when the first renewal is answered.
        let opened = self.members.renew(self.caller.request(ReceiverStream::new(asked)));
        let mut answers = opened.await?;
        let mut may_ask = true;
        while may_ask || !self.unanswered.is_empty() {
            tokio::select! {
                asked = self.waiting.recv(), if may_ask => {
                    let Some((id, waiting)) = asked else {
                        may_ask = false;
                        continue;
                    };
                    let others = self.unanswered.entry(id).or_default();
                    others.push(waiting);
                    if others.len() == 1 && asks.send(LeaseKeepAliveRequest { id }).await.is_err() {
                        return Err(Status::unavailable("the stream to the members has ended"));
                    }
                }
                answer = answers.message() => {
                    let Some(answer) = answer? else {
                        return Err(Status::unavailable("the stream to the members has ended"));
                    };
                    for waiting in self.unanswered.remove(&answer.id).into_iter().flatten() {
                        waiting.send(Ok(answer));
                    }
                }
            }
        }
        Ok(())
    }
}
