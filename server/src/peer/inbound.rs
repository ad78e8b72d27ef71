//! The peer protocol, served.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use deadlines::LeasePeer;
use futures_util::{Stream, StreamExt};
use prost::Message;
use proto::peerpb::member_server::{Member, MemberServer};
use proto::peerpb::raft_server::{Raft, RaftServer};
use proto::peerpb::{self};
use replica::{Handle, Inbound, PeerError, PeerResult};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::meters::{Direction, PeerMeters};
use super::{EXPELLED, REFUSED};
use crate::config::GRPC_OVERHEAD_BYTES;
use crate::version;

/// What serves the peers of one member.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) inbound: Inbound,
    pub(crate) handle: Handle,
    pub(crate) leases: LeasePeer,
    /// SHA-256 of the cluster token, so that a joining process can tell a configuration mix-up.
    pub(crate) token_digest: bytes::Bytes,
    pub(crate) meters: PeerMeters,
    /// The largest request of a client, which travels between members as it is.
    pub(crate) request_bytes_max: usize,
}

/// What a message between members may measure at least: room for a batch of proposals, and for members
/// whose clients may send larger requests than this one's.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

impl PeerService {
    /// All services of the peer listener. What is larger than any message can be is refused before it
    /// is received: whoever reaches the port could fill the memory otherwise (etcd PR#22161).
    pub(crate) fn routes(self) -> Routes {
        let max = MESSAGE_BYTES_MAX.max(self.request_bytes_max.saturating_add(GRPC_OVERHEAD_BYTES));
        let raft = RaftServer::new(self.clone()).max_decoding_message_size(max);
        let member = MemberServer::new(self).max_decoding_message_size(max);
        Routes::new(raft).add_service(member)
    }
}

fn status(error: PeerError) -> Status {
    match error {
        PeerError::Refused(text) => Status::new(REFUSED, text),
        PeerError::Removed => Status::new(EXPELLED, error.to_string()),
        PeerError::Unreachable(text) | PeerError::NoAnswer(text) => Status::unavailable(text),
    }
}

fn version_text(version: Option<machine::ClusterVersion>) -> String {
    version.map(|version| version.to_string()).unwrap_or_default()
}

fn answered<T>(result: PeerResult<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(status)
}

/// Who says that it sent a message; 0 if nobody does.
fn sender(envelope: Option<&peerpb::Envelope>) -> u64 {
    envelope.map_or(0, |envelope| envelope.from)
}

impl PeerService {
    /// Counts a message and its answer.
    fn counted<T: Message>(&self, from: u64, bytes: usize, result: &PeerResult<T>) {
        if matches!(result, Err(PeerError::Refused(_) | PeerError::Removed)) {
            return self.meters.refused(from);
        }
        let meter = self.meters.of_caller(from);
        meter.received(bytes);
        if let Ok(answer) = result {
            meter.sent(answer.encoded_len());
        }
    }
}

/// Handles a request with one answer, and counts both.
macro_rules! counted {
    ($self:ident, $request:ident, $method:ident) => {{
        let request = $request.into_inner();
        let (from, bytes) = (sender(request.envelope.as_ref()), request.encoded_len());
        let result = $self.inbound.$method(request).await;
        $self.counted(from, bytes, &result);
        answered(result)
    }};
}

#[tonic::async_trait]
impl Raft for PeerService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<peerpb::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<peerpb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        // A broken stream ends like one that its sender has closed.
        let requests = request.into_inner().take_while(|r| std::future::ready(r.is_ok()));
        let requests = requests.filter_map(|request| std::future::ready(request.ok()));
        // A stream is all of one member; who it is says the first request.
        let from = Arc::new(AtomicU64::new(0));
        let (meters, source) = (self.meters.clone(), from.clone());
        let requests = requests.inspect(move |request: &peerpb::AppendRequest| {
            let from = sender(request.envelope.as_ref());
            source.store(from, Ordering::Relaxed);
            meters.of_caller(from).received(request.encoded_len());
        });
        let meters = self.meters.clone();
        let answers = self.inbound.append(requests).map(move |answer| {
            let from = from.load(Ordering::Relaxed);
            match &answer {
                Ok(answer) => meters.of_caller(from).sent(answer.encoded_len()),
                Err(_) => meters.refused(from),
            }
            answer.map_err(status)
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn vote(
        &self,
        request: Request<peerpb::VoteRequest>,
    ) -> Result<Response<peerpb::VoteResponse>, Status> {
        counted!(self, request, vote)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<peerpb::SnapshotChunk>>,
    ) -> Result<Response<peerpb::SnapshotResponse>, Status> {
        let chunks = request.into_inner().take_while(|chunk| std::future::ready(chunk.is_ok()));
        let chunks = chunks.filter_map(|chunk| std::future::ready(chunk.ok()));
        let from = Arc::new(AtomicU64::new(0));
        let (meters, source, mut under_way) = (self.meters.clone(), from.clone(), None);
        let chunks = chunks.inspect(move |chunk: &peerpb::SnapshotChunk| {
            if let Some(peerpb::snapshot_chunk::Part::Header(header)) = &chunk.part {
                source.store(sender(header.envelope.as_ref()), Ordering::Relaxed);
            }
            let meter = meters.of_caller(source.load(Ordering::Relaxed));
            under_way.get_or_insert_with(|| meter.snapshot_begins(Direction::Received));
            meter.received(chunk.encoded_len());
        });
        let began = Instant::now();
        let result = self.inbound.snapshot(chunks).await;
        let meter = self.meters.of_caller(from.load(Ordering::Relaxed));
        meter.snapshot(Direction::Received, result.is_ok(), began);
        answered(result)
    }

    async fn holding(
        &self,
        request: Request<peerpb::HoldingRequest>,
    ) -> Result<Response<peerpb::HoldingResponse>, Status> {
        counted!(self, request, holding)
    }

    async fn transfer_leader(
        &self,
        request: Request<peerpb::TransferLeaderRequest>,
    ) -> Result<Response<peerpb::TransferLeaderResponse>, Status> {
        counted!(self, request, transfer_leader)
    }
}

#[tonic::async_trait]
impl Member for PeerService {
    async fn forward(
        &self,
        request: Request<peerpb::ForwardRequest>,
    ) -> Result<Response<peerpb::ForwardResponse>, Status> {
        counted!(self, request, forward)
    }

    async fn read_index(
        &self,
        request: Request<peerpb::ReadIndexRequest>,
    ) -> Result<Response<peerpb::ReadIndexResponse>, Status> {
        counted!(self, request, read_index)
    }

    async fn change_membership(
        &self,
        request: Request<peerpb::ChangeMembershipRequest>,
    ) -> Result<Response<peerpb::ChangeMembershipResponse>, Status> {
        counted!(self, request, change_membership)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<peerpb::LeaseKeepAliveRequest>,
    ) -> Result<Response<peerpb::LeaseKeepAliveResponse>, Status> {
        answered(self.leases.keep_alive(request.into_inner()).await)
    }

    async fn lease_time_to_live(
        &self,
        request: Request<peerpb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<peerpb::LeaseTimeToLiveResponse>, Status> {
        answered(self.leases.time_to_live(request.into_inner()).await)
    }

    async fn members(
        &self,
        _: Request<peerpb::MembersRequest>,
    ) -> Result<Response<peerpb::MembersResponse>, Status> {
        let own = self.handle.status();
        let views = self.handle.views();
        let tables = views.tables();
        let members = tables.membership.members().map(|record| peerpb::MemberDescription {
            id: record.id.0,
            name: record.name.clone(),
            peer_urls: record.peer_urls.clone(),
            client_urls: record.client_urls.clone(),
            is_learner: !record.voter_intent,
        });
        Ok(Response::new(peerpb::MembersResponse {
            cluster_id: own.cluster_id.0,
            token_digest: self.token_digest.clone(),
            members: members.collect(),
            removed: tables.membership.removed().map(|id| id.0).collect(),
            cluster_version: version_text(tables.cluster_version),
            member_id: own.member_id.0,
            term: own.term.0,
            leader: own.leader.map_or(0, |id| id.0),
            protocol_min: version::release().protocol.oldest,
            protocol_max: version::release().protocol.newest,
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<peerpb::HashKvRequest>,
    ) -> Result<Response<peerpb::HashKvResponse>, Status> {
        use peerpb::hash_kv_response::Result as Wire;
        let request = request.into_inner();
        self.inbound.check(request.envelope.as_ref()).map_err(status)?;
        let mvcc = self.handle.views().mvcc;
        let current = mvcc.clone();
        let hashed = tokio::task::spawn_blocking(move || mvcc.hash_kv(request.revision))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let result = match hashed {
            Ok(answer) => Wire::Hash(peerpb::HashedKv {
                hash: answer.hash,
                hash_revision: answer.revision.0,
                compact_revision: answer.compact_revision.0,
                revision: current.revision().0,
            }),
            Err(mvcc::RangeError::Compacted) => Wire::Compacted(current.compact_revision().0),
            Err(mvcc::RangeError::FutureRevision) => Wire::FutureRevision(current.revision().0),
            Err(mvcc::RangeError::Store(error)) => return Err(Status::internal(error.to_string())),
        };
        Ok(Response::new(peerpb::HashKvResponse { result: Some(result) }))
    }

    async fn version(
        &self,
        _: Request<peerpb::VersionRequest>,
    ) -> Result<Response<peerpb::VersionResponse>, Status> {
        Ok(Response::new(peerpb::VersionResponse {
            etcd_version: version::release().etcd,
            keelson_version: version::KEELSON.to_owned(),
            cluster_version: version_text(self.handle.views().cluster_version()),
            storage_version: version::storage(self.handle.views().cluster_version()),
            protocol_min: version::release().protocol.oldest,
            protocol_max: version::release().protocol.newest,
        }))
    }
}
