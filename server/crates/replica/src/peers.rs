//! What this room asks of the transport between members.
//!
//! The server implements [`Peers`] over gRPC, the simulator over queues it can delay, drop and cut.
//! Messages are those of the versioned peer protocol (`keelson.peer.v1`), so that both carry exactly
//! the same thing. Every method may fail or never answer; callers bound their waits.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use proto::peerpb;
use types::MemberId;

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The member that must answer; it refuses a message that is meant for another.
    pub id: MemberId,
    /// Where it can be reached.
    pub urls: Vec<String>,
}

/// Why a peer gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer could not be reached, so it has not seen the message.
    #[error("cannot reach the peer: {0}")]
    Unreachable(String),
    /// The connection broke or the wait ended; the peer may have acted on the message.
    #[error("no answer from the peer: {0}")]
    NoAnswer(String),
    /// The peer understood the message and refused it: wrong cluster, wrong member or an incompatible
    /// protocol.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// The peer has applied that the sender was removed from their cluster, which is for ever.
    #[error("the peer refused: the sender was removed from the cluster")]
    Removed,
}

/// The result of a call to a peer.
pub type PeerResult<T> = Result<T, PeerError>;

/// Answers to a stream of append requests, in order.
pub type AppendResponses = BoxStream<'static, PeerResult<peerpb::AppendResponse>>;

/// Carries messages to other members.
pub trait Peers: Send + Sync + 'static {
    /// Replicates: requests are sent as they come, answers arrive in the same order.
    fn append(
        &self,
        to: Peer,
        requests: BoxStream<'static, peerpb::AppendRequest>,
    ) -> BoxFuture<'static, PeerResult<AppendResponses>>;

    /// Asks for a vote or a pre-vote.
    fn vote(
        &self,
        to: Peer,
        request: peerpb::VoteRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VoteResponse>>;

    /// Sends a whole snapshot.
    fn snapshot(
        &self,
        to: Peer,
        chunks: BoxStream<'static, peerpb::SnapshotChunk>,
    ) -> BoxFuture<'static, PeerResult<peerpb::SnapshotResponse>>;

    /// Asks which records a member has before a snapshot is sent to it.
    fn holding(
        &self,
        to: Peer,
        request: peerpb::HoldingRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HoldingResponse>>;

    /// Tells a member to campaign at once.
    fn transfer_leader(
        &self,
        to: Peer,
        request: peerpb::TransferLeaderRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::TransferLeaderResponse>>;

    /// Hands a batch of proposals to the leader.
    fn forward(
        &self,
        to: Peer,
        request: peerpb::ForwardRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ForwardResponse>>;

    /// Asks the leader for a read index.
    fn read_index(
        &self,
        to: Peer,
        request: peerpb::ReadIndexRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ReadIndexResponse>>;

    /// Asks the leader to change the member list.
    fn change_membership(
        &self,
        to: Peer,
        request: peerpb::ChangeMembershipRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ChangeMembershipResponse>>;

    /// Asks the leader to renew leases.
    fn lease_keep_alive(
        &self,
        to: Peer,
        request: peerpb::LeaseKeepAliveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseKeepAliveResponse>>;

    /// Asks a member which versions it runs.
    fn version(
        &self,
        to: Peer,
        request: peerpb::VersionRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VersionResponse>>;

    /// Asks a member for the hash of its data at a revision.
    fn hash_kv(
        &self,
        to: Peer,
        request: peerpb::HashKvRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HashKvResponse>>;

    /// Asks the leader how long leases have to live.
    fn lease_time_to_live(
        &self,
        to: Peer,
        request: peerpb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseTimeToLiveResponse>>;

    /// For how long a member has answered all that was sent to it. Who does not keep count answers that it
    /// always has.
    fn connected_for(&self, _member: MemberId) -> Duration {
        Duration::MAX
    }

    /// Ends once a peer has answered [`PeerError::Removed`].
    fn expelled(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
