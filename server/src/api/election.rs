//! `v3electionpb.Election`: leadership as a recipe over keys, by the same keys and the same queue as
//! [`super::lock`]. The leader is whoever has the oldest key under the name; the value of that key
//! is what it proclaims.

use std::pin::Pin;

use bytes::Bytes;
use concurrency::{Calls, Place};
use futures_util::{Stream, StreamExt};
use proto::etcdserverpb::ResponseHeader;
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

use super::context::{ApiContext, admitted, wants_leader};
use super::leader::leader_lost;
use super::local::{DELETE, LocalCalls, OnAbandon, why_canceled};

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

async fn proclaim(
    calls: &LocalCalls,
    place: &Place,
    value: Bytes,
    lease: LeaseId,
) -> Result<Option<ResponseHeader>, Status> {
    let done = calls.txn(place.proclaim(value, lease)).await?;
    match done.succeeded {
        true => Ok(done.header),
        false => Err(Status::unknown("election: not leader")),
    }
}

fn given(leader: Option<LeaderKey>) -> Result<(Place, i64), Status> {
    let leader = leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
    let (directory, _) = concurrency::candidates(&leader.name);
    Ok((Place { directory, key: leader.key, created: leader.rev }, leader.lease))
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
        let (name, value) = (&request.name, request.value);
        let entered = concurrency::campaign(&calls, name, lease, value.clone()).await?;
        let place = entered.place;
        let (cleaner, left) = (calls.clone(), place.clone());
        let leave = OnAbandon::new(async move {
            // If it fails, the key goes with its lease.
            let _ = cleaner.txn(left.resign()).await;
        });
        if entered.value_differs {
            // The lease is a candidate already; its latest value counts.
            if let Err(status) = proclaim(&calls, &place, value, lease).await {
                leave.run().await;
                return Err(status);
            }
        }
        let waited = place.wait(&calls).await;
        leave.disarm();
        waited?;
        Ok(Response::new(CampaignResponse {
            header: entered.header,
            leader: Some(LeaderKey {
                name: request.name,
                key: place.key,
                rev: place.created,
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
        let (place, lease) = given(request.leader)?;
        let lease = calls.session(lease).await?;
        let header = proclaim(&calls, &place, request.value, lease).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let found = calls.range(concurrency::leader(&request.name)).await?;
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
        let wants_leader = wants_leader(request.metadata());
        let name = admitted(&self.context, request, false)?.name;
        let context = self.context.clone();
        let (leaders, waiting) = mpsc::channel(LEADERS_WAITING_MAX);
        tokio::spawn(async move {
            tokio::select! {
                // The observer has gone.
                () = leaders.closed() => {}
                ended = observe(&calls, &name, &leaders) => if let Err(status) = ended {
                    let _ = leaders.send(Err(status)).await;
                },
                status = leader_lost(&context, wants_leader) => {
                    let _ = leaders.send(Err(status)).await;
                }
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
        let (place, lease) = given(request.leader)?;
        calls.session(lease).await?;
        Ok(Response::new(ResignResponse { header: calls.txn(place.resign()).await?.header }))
    }
}

type Leaders = mpsc::Sender<Result<LeaderResponse, Status>>;

/// Sends each leader and each of its values for as long as the reads and watches go well; etcd's
/// stream ends without an error when they do not, and its clients observe again.
async fn observe(calls: &LocalCalls, name: &[u8], leaders: &Leaders) -> Result<(), Status> {
    loop {
        let Ok(found) = calls.range(concurrency::leader(name)).await else {
            return Ok(());
        };
        let mut header = found.header.unwrap_or_default();
        let kv = match found.kvs.into_iter().next() {
            Some(kv) => kv,
            None => match first_candidate(calls, name, header.revision).await? {
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
    name: &[u8],
    revision: i64,
) -> Result<Option<(ResponseHeader, KeyValue)>, Status> {
    let (directory, range_end) = concurrency::candidates(name);
    let mut watch = calls.watch(directory.to_vec(), range_end, revision).await?;
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
