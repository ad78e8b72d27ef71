//! `v3electionpb.Election`: leadership as a recipe over keys, by the same keys and the same queue as
//! [`super::lock`]. The leader is whoever has the oldest key under the name; the value of that key
//! is what it proclaims.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::etcdserverpb::range_request::SortOrder;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::{DeleteRangeRequest, ResponseHeader, TxnRequest};
use proto::mvccpb::KeyValue;
use proto::v3electionpb::election_server::{Election, ElectionServer};
use proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::LeaseId;

use super::context::{ApiContext, admitted};
use super::local::{DELETE, LocalCalls, OnAbandon, by_creation, why_canceled};
use super::lock::{
    candidate_key, created_at, directory, operation, own_creation, point, put, range_of,
};

/// Leaders that wait for an observer who reads slowly.
const LEADERS_WAITING_MAX: usize = 16;

/// The service of one RPC thread.
pub(crate) struct ElectionService {
    context: ApiContext,
    routes: Routes,
}

/// `routes` are the services that the recipe is made of.
pub(crate) fn service(context: ApiContext, routes: Routes) -> ElectionServer<ElectionService> {
    let max = context.limits.message_bytes_max();
    ElectionServer::new(ElectionService { context, routes }).max_decoding_message_size(max)
}

/// A candidate's key and the revision that proves that it is still the same candidacy.
#[derive(Clone)]
struct Candidacy {
    key: Vec<u8>,
    created: i64,
}

impl Candidacy {
    async fn proclaim(
        &self,
        calls: &LocalCalls,
        value: &[u8],
        lease: LeaseId,
    ) -> Result<Option<ResponseHeader>, Status> {
        let txn = TxnRequest {
            compare: vec![created_at(&self.key, self.created)],
            success: vec![put(&self.key, value, lease)],
            failure: Vec::new(),
        };
        let done = calls.txn(txn).await?;
        match done.succeeded {
            true => Ok(done.header),
            false => Err(Status::unknown("election: not leader")),
        }
    }

    /// A candidacy that has ended already is no error.
    async fn resign(&self, calls: &LocalCalls) -> Result<Option<ResponseHeader>, Status> {
        let delete = DeleteRangeRequest { key: self.key.clone().into(), ..Default::default() };
        let txn = TxnRequest {
            compare: vec![created_at(&self.key, self.created)],
            success: vec![operation(Operation::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        Ok(calls.txn(txn).await?.header)
    }
}

fn given(leader: Option<LeaderKey>) -> Result<(Candidacy, i64), Status> {
    let leader = leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
    Ok((Candidacy { key: leader.key.to_vec(), created: leader.rev }, leader.lease))
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let lease = calls.session(request.lease).await?;
        let prefix = directory(&request.name);
        let key = candidate_key(&prefix, lease);
        let txn = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, &request.value, lease)],
            failure: vec![operation(Operation::RequestRange(point(&key)))],
        };
        let entered = calls.txn(txn).await?;
        let candidacy = Candidacy { key, created: own_creation(&entered) };
        let (cleaner, left) = (calls.clone(), candidacy.clone());
        let leave = OnAbandon::new(async move {
            // If it fails, the key goes with its lease.
            let _ = left.resign(&cleaner).await;
        });
        let earlier = range_of(entered.responses.first()).first();
        if !entered.succeeded && earlier.is_none_or(|kv| kv.value != request.value) {
            // The lease is a candidate already; its latest value counts.
            if let Err(status) = candidacy.proclaim(&calls, &request.value, lease).await {
                leave.run().await;
                return Err(status);
            }
        }
        let waited = calls.wait_for_predecessors(&prefix, candidacy.created - 1).await;
        leave.disarm();
        waited?;
        Ok(Response::new(CampaignResponse {
            header: entered.header,
            leader: Some(LeaderKey {
                name: request.name,
                key: candidacy.key.into(),
                rev: candidacy.created,
                lease: lease.0,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let (candidacy, lease) = given(request.leader)?;
        let lease = calls.session(lease).await?;
        let header = candidacy.proclaim(&calls, &request.value, lease).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let prefix = directory(&request.name);
        let found = calls.range(by_creation(&prefix, SortOrder::Ascend)).await?;
        match found.kvs.into_iter().next() {
            Some(kv) => Ok(Response::new(LeaderResponse { header: found.header, kv: Some(kv) })),
            None => Err(Status::unknown("election: no leader")),
        }
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let prefix = directory(&request.name);
        let (leaders, waiting) = mpsc::channel(LEADERS_WAITING_MAX);
        tokio::spawn(async move {
            tokio::select! {
                // The observer has gone.
                () = leaders.closed() => {}
                ended = observe(&calls, &prefix, &leaders) => if let Err(status) = ended {
                    let _ = leaders.send(Err(status)).await;
                },
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(waiting))))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let (candidacy, lease) = given(request.leader)?;
        calls.session(lease).await?;
        Ok(Response::new(ResignResponse { header: candidacy.resign(&calls).await? }))
    }
}

type Leaders = mpsc::Sender<Result<LeaderResponse, Status>>;

/// Sends each leader and each of its values for as long as the reads and watches go well; etcd's
/// stream ends without an error when they do not, and its clients observe again.
async fn observe(calls: &LocalCalls, prefix: &[u8], leaders: &Leaders) -> Result<(), Status> {
    loop {
        let Ok(found) = calls.range(by_creation(prefix, SortOrder::Ascend)).await else {
            return Ok(());
        };
        let mut header = found.header.unwrap_or_default();
        let kv = match found.kvs.into_iter().next() {
            Some(kv) => kv,
            None => match first_candidate(calls, prefix, header.revision).await? {
                Some((at, kv)) => {
                    header = at;
                    kv
                }
                None => return Ok(()),
            },
        };
        let (key, from) = (kv.key.to_vec(), header.revision + 1);
        let leader = LeaderResponse { header: Some(header), kv: Some(kv) };
        if leaders.send(Ok(leader)).await.is_err() || !follow(calls, key, from, leaders).await? {
            return Ok(());
        }
    }
}

/// Waits for a key under the prefix.
async fn first_candidate(
    calls: &LocalCalls,
    prefix: &[u8],
    revision: i64,
) -> Result<Option<(ResponseHeader, KeyValue)>, Status> {
    let range_end = client::prefix_range_end(prefix);
    let mut watch = calls.watch(prefix.to_vec(), range_end, revision).await?;
    while let Some(response) = watch.next().await {
        let response = response?;
        if why_canceled(&response).is_some() {
            return Ok(None);
        }
        let put = response.events.into_iter().find(|event| event.r#type() != DELETE);
        if let Some(kv) = put.and_then(|event| event.kv) {
            let header = response.header.unwrap_or_default();
            // There may be several revisions in the response; the watch goes on after this one.
            return Ok(Some((ResponseHeader { revision: kv.mod_revision, ..header }, kv)));
        }
    }
    Ok(None)
}

/// Sends the values of one leader until its key is deleted; false if the watch or the observer is
/// gone before.
async fn follow(
    calls: &LocalCalls,
    key: Vec<u8>,
    revision: i64,
    leaders: &Leaders,
) -> Result<bool, Status> {
    let mut watch = calls.watch(key, Bytes::new(), revision).await?;
    while let Some(response) = watch.next().await {
        let response = response?;
        if why_canceled(&response).is_some() {
            return Ok(false);
        }
        for event in response.events {
            if event.r#type() == DELETE {
                return Ok(true);
            }
            let leader = LeaderResponse { header: response.header, kv: event.kv };
            if leaders.send(Ok(leader)).await.is_err() {
                return Ok(false);
            }
        }
    }
    Ok(false)
}
