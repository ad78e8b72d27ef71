//! What other members ask of this one.
//!
//! Every request is checked before it is looked at: it must name this cluster and this member, come
//! from a member that was not removed, and speak a protocol this build understands (etcd once
//! accepted messages that were meant for another id). Then it is handed to openraft or to the queue
//! that local requests use.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, VoteRequest,
};
use proto::peerpb;
use proto::peerpb::snapshot_chunk::Part;
use tokio::sync::MutexGuard;
use types::{LogIndex, MemberId, Revision, Term};

use crate::codec::{self, Malformed};
use crate::handle::Shared;
use crate::membership::{MembershipChange, MembershipRefusal};
use crate::observation::Observation;
use crate::peers::{PeerError, PeerResult};
use crate::protocol::ProtocolVersions;
use crate::raft_types::{TypeConfig, Vote, index_of};
use crate::reception::{self, Reception};
use crate::snapshot::{self, Received};
use crate::store::IncomingFile;
use crate::unavailable::Unavailable;

/// The receiving end of the peer protocol.
#[derive(Clone)]
pub struct Inbound {
    pub(crate) shared: Arc<Shared>,
}

fn refused(error: impl ToString) -> PeerError {
    PeerError::Refused(error.to_string())
}

fn stopped(error: impl ToString) -> PeerError {
    PeerError::NoAnswer(error.to_string())
}

fn term_of_vote(vote: &Vote) -> Term {
    Term(vote.leader_id().term)
}

fn append_request(
    request: peerpb::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: codec::vote_from_message(request.vote, "AppendRequest")?,
        prev_log_id: codec::optional_log_id(request.prev_log_id)?,
        entries: request
            .entries
            .into_iter()
            .map(codec::entry_from_message)
            .collect::<Result<_, _>>()?,
        leader_commit: codec::optional_log_id(request.leader_commit)?,
    })
}

fn append_response(result: StreamAppendResult<TypeConfig>) -> peerpb::AppendResponse {
    use peerpb::append_response::Result as Wire;
    let result = match result {
        Ok(matching) => Wire::Success(peerpb::Success {
            matching: matching.as_ref().map(codec::log_id_message),
        }),
        Err(StreamAppendError::Conflict(id)) => Wire::Conflict(codec::log_id_message(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Wire::HigherVote(codec::vote_message(&vote)),
    };
    peerpb::AppendResponse { result: Some(result) }
}

impl Inbound {
    /// Checks who a message is from and for.
    ///
    /// # Errors
    /// [`PeerError::Refused`] with the reason, for the sender's log.
    pub fn check(&self, envelope: Option<&peerpb::Envelope>) -> PeerResult<MemberId> {
        let envelope = envelope.ok_or_else(|| refused("a message without an envelope"))?;
        self.shared.sender.protocol.check(ProtocolVersions::of(envelope)).map_err(refused)?;
        if envelope.cluster_id != self.shared.cluster.0 {
            return Err(refused(format!(
                "cluster ID mismatch: {:x}, this member belongs to {}",
                envelope.cluster_id, self.shared.cluster
            )));
        }
        if envelope.to != self.shared.me.0 {
            return Err(refused(format!(
                "the message is for member {:x}, this is {}",
                envelope.to, self.shared.me
            )));
        }
        let from = MemberId(envelope.from);
        if self.shared.current.views().is_removed(from) {
            return Err(PeerError::Removed);
        }
        Ok(from)
    }

    /// Takes a leader's stream of entries; the answers come in order, after the flush.
    pub fn append(
        &self,
        requests: impl Stream<Item = peerpb::AppendRequest> + Send + 'static,
    ) -> BoxStream<'static, PeerResult<peerpb::AppendResponse>> {
        let inbound = self.clone();
        let (refusal, refused_with) = tokio::sync::oneshot::channel();
        // The first bad request ends the stream; what came before it is still answered.
        let accepted = stream::unfold(
            (Box::pin(requests), Some(refusal)),
            move |(mut requests, mut refusal)| {
                let inbound = inbound.clone();
                async move {
                    let request = requests.next().await?;
                    let checked = inbound.check(request.envelope.as_ref()).and_then(|leader| {
                        inbound.shared.contact.heard(leader);
                        append_request(request).map_err(refused)
                    });
                    match checked {
                        Ok(request) => Some((request, (requests, refusal))),
                        Err(error) => {
                            if let Some(refusal) = refusal.take() {
                                // The stream of answers may be gone already.
                                let _ = refusal.send(error);
                            }
                            None
                        }
                    }
                }
            },
        );
        let answers = self.shared.raft.stream_append(accepted).map(|result| match result {
            Ok(result) => Ok(append_response(result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        let refusal =
            stream::once(refused_with).filter_map(|result| async { result.ok().map(Err) });
        answers.chain(refusal).boxed()
    }

    /// Answers a candidate.
    ///
    /// # Errors
    /// When the request is refused or this member stops.
    pub async fn vote(&self, request: peerpb::VoteRequest) -> PeerResult<peerpb::VoteResponse> {
        self.check(request.envelope.as_ref())?;
        let ask = VoteRequest {
            vote: codec::vote_from_message(request.vote, "VoteRequest").map_err(refused)?,
            last_log_id: codec::optional_log_id(request.last_log_id).map_err(refused)?,
            leadership_transfer: request.leadership_transfer,
        };
        let raft = &self.shared.raft;
        let answer = if request.pre_vote { raft.pre_vote(ask).await } else { raft.vote(ask).await };
        let answer = answer.map_err(stopped)?;
        Ok(peerpb::VoteResponse {
            vote: Some(codec::vote_message(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.as_ref().map(codec::log_id_message),
        })
    }

    /// Receives a snapshot and has it installed.
    ///
    /// # Errors
    /// When the stream is refused, ends early, goes silent or is damaged, a later one arrives before it
    /// is whole, or this member stops.
    pub async fn snapshot(
        &self,
        mut chunks: impl Stream<Item = peerpb::SnapshotChunk> + Unpin + Send,
    ) -> PeerResult<peerpb::SnapshotResponse> {
        let silence_max = reception::silence_max(self.shared.sender.patience);
        let first = reception::next_chunk(&mut chunks, silence_max).await.map_err(stopped)?;
        let Some(Part::Header(header)) = first.and_then(|chunk| chunk.part) else {
            return Err(refused("a snapshot stream starts with its header"));
        };
        let leader = self.check(header.envelope.as_ref())?;
        let held = snapshot::left_out(&header).map_err(refused)?;
        if held > self.shared.current.views().mvcc.revision() {
            // What was said before a crash: the log brings the rest again, but not before the snapshot.
            return Err(stopped("the snapshot leaves out records that this member does not have"));
        }
        let vote = codec::vote_from_message(header.vote, "SnapshotHeader").map_err(refused)?;
        let meta = crate::raft_types::SnapshotMeta {
            last_log_id: codec::optional_log_id(header.last_log_id).map_err(refused)?,
            last_membership: codec::stored_membership_from_message(header.membership)
                .map_err(refused)?,
        };
        let own = self.own_vote();
        if term_of_vote(&vote) < term_of_vote(&own) {
            // openraft would say the same, after everything has come.
            return Ok(peerpb::SnapshotResponse { vote: Some(codec::vote_message(&own)) });
        }
        let reception = self.shared.receptions.arrived(term_of_vote(&vote)).map_err(stopped)?;
        let (_turn, file) = tokio::select! {
            biased;
            reason = reception.given_up(&self.shared.status) => return Err(stopped(reason)),
            received = self.receive(&reception, held, &mut chunks, silence_max) => received?,
        };
        let received =
            snapshot::Snapshot { meta, snapshot: snapshot::SnapshotData::Received(file, held) };
        let answer =
            self.shared.raft.install_full_snapshot(vote, received).await.map_err(stopped)?;
        // While a snapshot is installed nothing else of the leader is looked at.
        self.shared.contact.heard(leader);
        Ok(peerpb::SnapshotResponse { vote: Some(codec::vote_message(&answer.vote)) })
    }

    /// Receives what follows the header; the turn is to be kept until it is installed.
    async fn receive<'a>(
        &self,
        reception: &Reception<'a>,
        held: Revision,
        chunks: &mut (impl Stream<Item = peerpb::SnapshotChunk> + Unpin + Send),
        silence_max: Duration,
    ) -> PeerResult<(MutexGuard<'a, ()>, IncomingFile)> {
        // One snapshot at a time: a second one would only take room beside the first.
        let turn = reception.turn().await;
        let copied = match held {
            Revision(0) => 0,
            _ => self.shared.current.views().mvcc.store_size().in_use,
        };
        let file = self.shared.store.incoming_file(copied);
        let began = tokio::time::Instant::now();
        let received = snapshot::receive(file, self.shared.blocking, chunks, silence_max);
        let Received { file, bytes } = received.await.map_err(stopped)?;
        file.require_room(bytes).map_err(stopped)?;
        self.shared.events.observe(Observation::SnapshotReceived(began.elapsed()));
        Ok((turn, file))
    }

    /// For whom this member has voted last.
    fn own_vote(&self) -> Vote {
        self.shared.raft.metrics().borrow_watched().vote
    }

    /// Tells which records this member has. It may have more by the time the snapshot comes, never fewer,
    /// unless it starts again in between, which it notices.
    ///
    /// # Errors
    /// When the request is refused.
    pub async fn holding(
        &self,
        request: peerpb::HoldingRequest,
    ) -> PeerResult<peerpb::HoldingResponse> {
        self.check(request.envelope.as_ref())?;
        let views = self.shared.current.views();
        // The revision of an empty store is 1, without any record.
        Ok(peerpb::HoldingResponse { revision: views.mvcc.revision().0 })
    }

    /// Campaigns at once if the leader that steps aside is the one this member follows.
    ///
    /// # Errors
    /// When the request is refused or this member stops.
    pub async fn transfer_leader(
        &self,
        request: peerpb::TransferLeaderRequest,
    ) -> PeerResult<peerpb::TransferLeaderResponse> {
        use peerpb::transfer_leader_response::Result as Wire;
        self.check(request.envelope.as_ref())?;
        let from = codec::vote_from_message(request.from_leader, "TransferLeaderRequest")
            .map_err(refused)?;
        let last = codec::optional_log_id(request.last_log_id).map_err(refused)?;
        let request = TransferLeaderRequest::new(from, request.to_node, last);
        let answer = self.shared.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        let vote = |vote: Vote| Some(codec::vote_message(&vote));
        let result = match answer {
            Ok(()) => Wire::Accepted(peerpb::TransferAccepted {}),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Wire::VoteChanged(peerpb::TransferVoteChanged {
                    expected: vote(expected),
                    actual: vote(actual),
                })
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Wire::LogNotFlushed(peerpb::TransferLogNotFlushed {
                    expected: expected.as_ref().map(codec::log_id_message),
                    actual: actual.as_ref().map(codec::log_id_message),
                })
            }
        };
        Ok(peerpb::TransferLeaderResponse { result: Some(result) })
    }

    /// Appends another member's batch of proposals to this leader's log.
    ///
    /// # Errors
    /// When the request is refused.
    pub async fn forward(
        &self,
        request: peerpb::ForwardRequest,
    ) -> PeerResult<peerpb::ForwardResponse> {
        use peerpb::forward_response::Result as Wire;
        self.check(request.envelope.as_ref())?;
        let term = Term(request.term);
        let result = match self.shared.append_forwarded(term, request.batch).await {
            Ok(()) => Wire::Accepted(peerpb::ForwardAccepted { term: term.0 }),
            Err(Unavailable::TooManyRequests) => Wire::Overloaded(peerpb::Overloaded {}),
            Err(_) => Wire::NotLeader(self.not_leader()),
        };
        Ok(peerpb::ForwardResponse { result: Some(result) })
    }

    /// Confirms this leader's leadership and tells how far its log is committed.
    ///
    /// # Errors
    /// When the request is refused.
    pub async fn read_index(
        &self,
        request: peerpb::ReadIndexRequest,
    ) -> PeerResult<peerpb::ReadIndexResponse> {
        use peerpb::read_index_response::Result as Wire;
        self.check(request.envelope.as_ref())?;
        let result = match self.shared.local_read_index().await {
            Ok(index) => Wire::Index(index.0),
            Err(Unavailable::NotLeader) => Wire::NotLeader(self.not_leader()),
            Err(_) => Wire::Unconfirmed(peerpb::Unconfirmed {}),
        };
        Ok(peerpb::ReadIndexResponse { result: Some(result) })
    }

    /// Changes the member list for another member.
    ///
    /// # Errors
    /// When the request is refused.
    pub async fn change_membership(
        &self,
        request: peerpb::ChangeMembershipRequest,
    ) -> PeerResult<peerpb::ChangeMembershipResponse> {
        use peerpb::change_membership_response::Result as Wire;
        self.check(request.envelope.as_ref())?;
        let Some(change) = membership_change(request.change) else {
            let refusal = peerpb::MembershipRefusal::UnknownChange as i32;
            return Ok(peerpb::ChangeMembershipResponse { result: Some(Wire::Refusal(refusal)) });
        };
        let result = match self.shared.change_membership_here(&change).await {
            Ok(id) => Wire::Changed(index_of(&id).0),
            Err(MembershipRefusal::Unavailable(Unavailable::NotLeader)) => {
                Wire::NotLeader(self.not_leader())
            }
            Err(refusal) => Wire::Refusal(refusal_message(refusal) as i32),
        };
        Ok(peerpb::ChangeMembershipResponse { result: Some(result) })
    }

    /// The answer of a member that does not lead.
    pub fn not_leader(&self) -> peerpb::NotLeader {
        let status = self.shared.status.borrow().clone();
        peerpb::NotLeader { leader: status.leader.map_or(0, |id| id.0), term: status.term.0 }
    }
}

fn membership_change(
    change: Option<peerpb::change_membership_request::Change>,
) -> Option<MembershipChange> {
    use peerpb::change_membership_request::Change;
    Some(match change? {
        Change::Add(add) => MembershipChange::Add {
            id: MemberId(add.id),
            peer_urls: add.peer_urls,
            learner: add.learner,
        },
        Change::Remove(id) => MembershipChange::Remove { id: MemberId(id) },
        Change::Update(update) => {
            MembershipChange::Update { id: MemberId(update.id), peer_urls: update.peer_urls }
        }
        Change::Promote(id) => MembershipChange::Promote { id: MemberId(id) },
    })
}

pub(crate) fn membership_change_message(
    change: &MembershipChange,
) -> peerpb::change_membership_request::Change {
    use peerpb::change_membership_request::Change;
    match change {
        MembershipChange::Add { id, peer_urls, learner } => Change::Add(peerpb::AddMember {
            id: id.0,
            peer_urls: peer_urls.clone(),
            learner: *learner,
        }),
        MembershipChange::Remove { id } => Change::Remove(id.0),
        MembershipChange::Update { id, peer_urls } => {
            Change::Update(peerpb::UpdateMember { id: id.0, peer_urls: peer_urls.clone() })
        }
        MembershipChange::Promote { id } => Change::Promote(id.0),
    }
}

fn refusal_message(refusal: MembershipRefusal) -> peerpb::MembershipRefusal {
    use peerpb::MembershipRefusal as Wire;
    match refusal {
        MembershipRefusal::MemberNotFound => Wire::NotFound,
        MembershipRefusal::MemberIdExists => Wire::IdExists,
        MembershipRefusal::PeerUrlExists => Wire::PeerUrlExists,
        MembershipRefusal::NotEnoughStarted => Wire::NotEnoughStarted,
        MembershipRefusal::NotLearner => Wire::NotLearner,
        MembershipRefusal::LearnerNotReady => Wire::LearnerNotReady,
        MembershipRefusal::TooManyLearners => Wire::TooManyLearners,
        MembershipRefusal::Unhealthy => Wire::Unhealthy,
        MembershipRefusal::Unavailable(_) => Wire::Busy,
    }
}

pub(crate) fn refusal_from_message(refusal: i32) -> MembershipRefusal {
    use peerpb::MembershipRefusal as Wire;
    match Wire::try_from(refusal) {
        Ok(Wire::NotFound) => MembershipRefusal::MemberNotFound,
        Ok(Wire::IdExists) => MembershipRefusal::MemberIdExists,
        Ok(Wire::PeerUrlExists) => MembershipRefusal::PeerUrlExists,
        Ok(Wire::NotEnoughStarted) => MembershipRefusal::NotEnoughStarted,
        Ok(Wire::NotLearner) => MembershipRefusal::NotLearner,
        Ok(Wire::LearnerNotReady) => MembershipRefusal::LearnerNotReady,
        Ok(Wire::TooManyLearners) => MembershipRefusal::TooManyLearners,
        Ok(Wire::Busy) => MembershipRefusal::Unavailable(Unavailable::Timeout),
        Ok(Wire::Unhealthy | Wire::Unspecified | Wire::UnknownChange) | Err(_) => {
            MembershipRefusal::Unhealthy
        }
    }
}

/// Reads the leader's answer to a read-index question.
pub(crate) fn read_index_answer(
    response: peerpb::ReadIndexResponse,
) -> Result<LogIndex, Unavailable> {
    use peerpb::read_index_response::Result as Wire;
    match response.result {
        Some(Wire::Index(index)) => Ok(LogIndex(index)),
        Some(Wire::NotLeader(_)) => Err(Unavailable::NotLeader),
        Some(Wire::Unconfirmed(_)) | None => Err(Unavailable::Timeout),
    }
}
