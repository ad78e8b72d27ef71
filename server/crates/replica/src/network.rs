//! openraft's network over [`Peers`].
//!
//! Replication is one long stream per follower and direction: requests are sent as openraft
//! produces them, without waiting for the answers to the earlier ones, so that a follower's flush
//! and the network's round trip overlap. A stream on which an answer is overdue is given up; openraft
//! then opens the next one. Heartbeats, of which every linearizable read needs one, have a stream of
//! their own that stays open between them: opening one costs more than all the rest of a heartbeat.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use proto::peerpb;
use tokio::sync::{mpsc, watch};
use types::{ClusterId, MemberId, Revision};

use crate::codec::{self, Malformed};
use crate::observation::Observation;
use crate::peers::{AppendResponses, Peer, PeerError, Peers};
use crate::protocol::ProtocolVersions;
use crate::raft_types::{LogId, Node, TypeConfig, Vote};
use crate::snapshot::{self, SnapshotData};
use crate::state_machine::EventSink;
use crate::status::Status;

/// Who sends, and how long it waits.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) cluster: ClusterId,
    pub(crate) me: MemberId,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) protocol: ProtocolVersions,
    /// How long an answer may take before the peer counts as unreachable: an election timeout.
    pub(crate) patience: Duration,
    pub(crate) events: Arc<dyn EventSink>,
}

impl Sender {
    pub(crate) fn envelope(&self, to: MemberId) -> Option<peerpb::Envelope> {
        Some(peerpb::Envelope {
            cluster_id: self.cluster.0,
            from: self.me.0,
            to: to.0,
            protocol_version: self.protocol.newest,
            protocol_oldest: self.protocol.oldest,
        })
    }
}

/// Where members are now. A [`Network`] outlives a change of its member's URLs: openraft keeps it for as
/// long as this member leads.
#[derive(Clone, Default)]
pub(crate) struct Addresses(Arc<OnceLock<watch::Receiver<Status>>>);

impl Addresses {
    /// Looks members up in the status from now on.
    pub(crate) fn follow(&self, status: watch::Receiver<Status>) {
        // Called once, at start.
        let _ = self.0.set(status);
    }

    fn current(&self, known: &Peer) -> Peer {
        let status = self.0.get().map(watch::Receiver::borrow);
        let node = status.as_ref().and_then(|status| status.nodes.get(&known.id));
        node.map_or_else(
            || known.clone(),
            |node| Peer { id: known.id, urls: node.peer_urls.clone() },
        )
    }
}

/// Makes a [`Network`] per member.
#[derive(Clone)]
pub(crate) struct Networks {
    pub(crate) sender: Sender,
    pub(crate) addresses: Addresses,
    /// How far the log is purged.
    pub(crate) log: Arc<crate::log_store::Shared>,
}

impl RaftNetworkFactory<TypeConfig> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Node) -> Network {
        let to = Peer { id: MemberId(target), urls: node.peer_urls.clone() };
        Network {
            sender: self.sender.clone(),
            log: self.log.clone(),
            to,
            addresses: self.addresses.clone(),
            heartbeats: Mutex::default(),
        }
    }
}

/// The way to one member.
pub(crate) struct Network {
    sender: Sender,
    log: Arc<crate::log_store::Shared>,
    /// As it was when openraft asked for the way.
    to: Peer,
    addresses: Addresses,
    /// Taken while a heartbeat is under way: one that is given up takes its stream with it. Nobody
    /// locks the mutex: it makes the network `Sync`, which openraft asks for.
    heartbeats: Mutex<Option<HeartbeatStream>>,
}

/// An open stream of appends on which nothing is unanswered.
struct HeartbeatStream {
    requests: mpsc::Sender<peerpb::AppendRequest>,
    answers: AppendResponses,
}

type AppendResults<'s> =
    BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

fn unreachable(error: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(error.to_string())))
}

fn network_error(error: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&AnyError::error(error.to_string())))
}

fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    match error {
        PeerError::Unreachable(_) | PeerError::Refused(_) | PeerError::Removed => {
            unreachable(error)
        }
        PeerError::NoAnswer(_) => network_error(error),
    }
}

impl Network {
    /// Up to which revision a snapshot can leave records out. A member that does not understand the
    /// question gets all of them, and so does one that does not answer, if it can be reached at all.
    async fn held_by_receiver(&self) -> Result<Revision, StreamingError<TypeConfig>> {
        let request = peerpb::HoldingRequest { envelope: self.sender.envelope(self.to.id) };
        let call = self.sender.peers.holding(self.addresses.current(&self.to), request);
        match tokio::time::timeout(self.sender.patience, call).await {
            Ok(Ok(answer)) => Ok(Revision(answer.revision.max(0))),
            Ok(Err(error @ PeerError::Unreachable(_))) => Err(streaming_error(rpc_error(error))),
            Ok(Err(_)) | Err(_) => Ok(Revision(0)),
        }
    }

    async fn in_time<T>(
        &self,
        action: RPCTypes,
        call: BoxFuture<'static, Result<T, PeerError>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(self.sender.patience, call).await {
            Ok(result) => result.map_err(rpc_error),
            Err(_) => Err(RPCError::Timeout(self.timed_out(action))),
        }
    }

    fn timed_out(&self, action: RPCTypes) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.sender.me.0,
            target: self.to.id.0,
            timeout: self.sender.patience,
        }
    }

    fn append_message(
        envelope: Option<peerpb::Envelope>,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> peerpb::AppendRequest {
        peerpb::AppendRequest {
            envelope,
            vote: Some(codec::vote_message(&request.vote)),
            prev_log_id: request.prev_log_id.as_ref().map(codec::log_id_message),
            entries: request.entries.iter().map(codec::entry_message).collect(),
            leader_commit: request.leader_commit.as_ref().map(codec::log_id_message),
        }
    }

    fn heartbeats(&mut self) -> &mut Option<HeartbeatStream> {
        self.heartbeats.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one append and waits for its answer. The caller bounds the wait.
    async fn heartbeat(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let message = Self::append_message(self.sender.envelope(self.to.id), request);
        if let Some(mut open) = self.heartbeats().take()
            && open.requests.send(message.clone()).await.is_ok()
            && let Some(Ok(answer)) = open.answers.next().await
        {
            *self.heartbeats() = Some(open);
            return append_result(answer).map_err(unreachable);
        }
        // The first one, or the stream has broken since the last one.
        let (requests, mut sent) = mpsc::channel(1);
        let first = stream::once(async move { message });
        let later = stream::poll_fn(move |cx| sent.poll_recv(cx));
        let call =
            self.sender.peers.append(self.addresses.current(&self.to), first.chain(later).boxed());
        let mut answers = call.await.map_err(rpc_error)?;
        let answer = match answers.next().await {
            Some(answer) => answer.map_err(rpc_error)?,
            None => return Err(network_error("the peer closed the stream without an answer")),
        };
        *self.heartbeats() = Some(HeartbeatStream { requests, answers });
        append_result(answer).map_err(unreachable)
    }

    async fn request_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = peerpb::VoteRequest {
            envelope: self.sender.envelope(self.to.id),
            vote: Some(codec::vote_message(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(codec::log_id_message),
            pre_vote,
            leadership_transfer: request.leadership_transfer,
        };
        let call = self.sender.peers.vote(self.addresses.current(&self.to), message);
        let response = self.in_time(RPCTypes::Vote, call).await?;
        let vote = codec::vote_from_message(response.vote, "VoteResponse").map_err(unreachable)?;
        let last = codec::optional_log_id(response.last_log_id).map_err(unreachable)?;
        Ok(VoteResponse::new(vote, last, response.granted))
    }
}

/// Reads the answer to one append request.
fn append_result(
    response: peerpb::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use peerpb::append_response::Result as Wire;
    let absent = Malformed { message: "AppendResponse", detail: "an answer without a result" };
    Ok(match response.result.ok_or(absent.clone())? {
        Wire::Success(success) => Ok(codec::optional_log_id(success.matching)?),
        Wire::PartialSuccess(partial) => Ok(codec::optional_log_id(partial.matching)?),
        Wire::Conflict(id) => {
            Err(StreamAppendError::Conflict(codec::optional_log_id(Some(id))?.ok_or(absent)?))
        }
        Wire::HigherVote(vote) => Err(StreamAppendError::HigherVote(codec::vote_from_message(
            Some(vote),
            "AppendResponse",
        )?)),
    })
}

/// The answers of one append stream; an overdue one ends it.
struct AnswerStream {
    answers: AppendResponses,
    sent: Arc<AtomicU64>,
    received: u64,
    patience: Duration,
    ended: bool,
    overtaken: Arc<AtomicBool>,
    events: Arc<dyn EventSink>,
}

/// Why a stream of appends ends by itself.
const OVERTAKEN: &str = "the entries that the follower needs next are purged";

/// Whether this request shows that its stream has lost what it was to send. A stream may outlive
/// openraft's decision to send a snapshot instead: the log is then purged under it, the log store has
/// nothing to give it, and it would send empty requests for ever without looking for its next order.
fn is_overtaken(
    request: &AppendEntriesRequest<TypeConfig>,
    log: &crate::log_store::Shared,
) -> bool {
    let next = request.prev_log_id.as_ref().map_or(0, |id| id.index() + 1);
    request.entries.is_empty() && log.is_purged(next)
}

/// Whether this is the one request of a heartbeat; of entries there may be more at any time. A heartbeat
/// looks like a replication that was overtaken when the follower needs a snapshot, but must arrive: the
/// follower would campaign while it receives the snapshot, and the leader could not prove to its readers
/// that it still leads.
fn is_heartbeat(input: &impl Stream) -> bool {
    input.size_hint().1 == Some(1)
}

impl AnswerStream {
    async fn next(
        &mut self,
    ) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        if self.ended {
            return None;
        }
        let answer = loop {
            let sent_before = self.sent.load(Ordering::Acquire);
            match tokio::time::timeout(self.patience, self.answers.next()).await {
                Ok(answer) => break answer,
                // Overdue only if something was already unanswered when this wait began.
                Err(_) if sent_before > self.received => {
                    self.events.observe(Observation::AppendOverdue);
                    break Some(Err(PeerError::NoAnswer("append timed out".into())));
                }
                Err(_) => {}
            }
        };
        let result = match answer {
            None => {
                self.ended = true;
                let overtaken = self.overtaken.load(Ordering::Acquire);
                return overtaken.then(|| Err(network_error(OVERTAKEN)));
            }
            Some(Ok(response)) => append_result(response).map_err(unreachable),
            Some(Err(error)) => Err(rpc_error(error)),
        };
        self.received += 1;
        self.ended = result.is_err();
        Some(result)
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match tokio::time::timeout(option.hard_ttl(), self.heartbeat(rpc)).await {
            Ok(result) => Ok(result?.into()),
            Err(_) => Err(RPCError::Timeout(self.timed_out(RPCTypes::AppendEntries))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendResults<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if is_heartbeat(&input) {
            return Box::pin(async move {
                let Some(request) = input.next().await else {
                    return Ok(stream::empty().boxed());
                };
                let answer = self.heartbeat(request).await;
                Ok(stream::once(async move { answer }).boxed())
            });
        }
        let sent = Arc::new(AtomicU64::new(0));
        let (envelope, counter) = (self.sender.envelope(self.to.id), sent.clone());
        let (log, overtaken) = (self.log.clone(), Arc::new(AtomicBool::new(false)));
        let mark = overtaken.clone();
        let left = input.take_while(move |request| {
            let overtaken = is_overtaken(request, &log);
            mark.fetch_or(overtaken, Ordering::AcqRel);
            std::future::ready(!overtaken)
        });
        let mut requests = left.map(move |request| {
            counter.fetch_add(1, Ordering::AcqRel);
            Self::append_message(envelope, request)
        });
        let patience = self.sender.patience;
        Box::pin(async move {
            // openraft waits out its back-off when the first request is taken; a call that failed
            // before that would be tried again at once, for ever.
            let Some(first) = requests.next().await else {
                return match overtaken.load(Ordering::Acquire) {
                    true => Err(network_error(OVERTAKEN)),
                    false => Ok(stream::empty().boxed()),
                };
            };
            let requests = stream::once(async move { first }).chain(requests).boxed();
            let call = self.sender.peers.append(self.addresses.current(&self.to), requests);
            let answers = match tokio::time::timeout(patience, call).await {
                Ok(answers) => answers.map_err(rpc_error)?,
                Err(_) => {
                    return Err(RPCError::Timeout(self.timed_out(RPCTypes::AppendEntries)));
                }
            };
            let state = AnswerStream {
                answers,
                sent,
                received: 0,
                patience,
                ended: false,
                overtaken,
                events: self.sender.events.clone(),
            };
            let results = stream::unfold(state, |mut state| async move {
                state.next().await.map(|result| (result, state))
            });
            Ok(results.boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.request_vote(rpc, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.request_vote(rpc, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: snapshot::Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let held = self.held_by_receiver().await?;
        let header = peerpb::SnapshotHeader {
            envelope: self.sender.envelope(self.to.id),
            vote: Some(codec::vote_message(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(codec::log_id_message),
            membership: Some(codec::stored_membership_message(&snapshot.meta.last_membership)),
            format: snapshot::format(held),
            total_bytes: 0,
            records_above: held.0,
        };
        let chunks = snapshot::send(header, snapshot.snapshot);
        let call = self.sender.peers.snapshot(self.addresses.current(&self.to), chunks);
        tokio::pin!(cancel);
        let response = match futures_util::future::select(call, cancel).await {
            futures_util::future::Either::Left((response, _)) => {
                response.map_err(|error| streaming_error(rpc_error(error)))?
            }
            futures_util::future::Either::Right((closed, _)) => return Err(closed.into()),
        };
        let vote = codec::vote_from_message(response.vote, "SnapshotResponse")
            .map_err(|error| streaming_error(unreachable(error)))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        use peerpb::transfer_leader_response::Result as Wire;
        let message = peerpb::TransferLeaderRequest {
            envelope: self.sender.envelope(self.to.id),
            from_leader: Some(codec::vote_message(req.from_leader())),
            to_node: *req.to_node_id(),
            last_log_id: req.last_log_id().map(codec::log_id_message),
        };
        let call = self.sender.peers.transfer_leader(self.addresses.current(&self.to), message);
        let response = self.in_time(RPCTypes::TransferLeader, call).await?;
        let vote = |vote| codec::vote_from_message(vote, "TransferLeaderResponse");
        let id = |id: Option<peerpb::LogId>| -> Result<Option<LogId>, Malformed> {
            codec::optional_log_id(id)
        };
        match response.result {
            Some(Wire::Accepted(_)) => Ok(Ok(())),
            Some(Wire::VoteChanged(changed)) => Ok(Err(TransferLeaderError::VoteChanged {
                expected: vote(changed.expected).map_err(unreachable)?,
                actual: vote(changed.actual).map_err(unreachable)?,
            })),
            Some(Wire::LogNotFlushed(behind)) => Ok(Err(TransferLeaderError::LogNotFlushed {
                expected: id(behind.expected).map_err(unreachable)?,
                actual: id(behind.actual).map_err(unreachable)?,
            })),
            None => Err(unreachable("an answer without a result")),
        }
    }
}

fn streaming_error(error: RPCError<TypeConfig>) -> StreamingError<TypeConfig> {
    match error {
        RPCError::Timeout(timeout) => StreamingError::Timeout(timeout),
        RPCError::Unreachable(unreachable) => StreamingError::Unreachable(unreachable),
        other => StreamingError::Network(NetworkError::new(&AnyError::error(other.to_string()))),
    }
}
