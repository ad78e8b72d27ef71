//! `etcdserverpb.Lease`.

use std::pin::{Pin, pin};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use machine::{Caller, CommandKind, Outcome, Permit, check, still_valid};
use prost::Message;
use proto::etcdserverpb::lease_server::{Lease, LeaseServer};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};
use types::LeaseId;

use super::access::{Access, auth_status};
use super::context::{ApiContext, admitted, refusal_status, wants_leader};
use super::kv::unexpected;
use super::leader::while_led;
use super::status::ApiError;
use super::steps;
use crate::auth::Credentials;
use crate::ops::spans::within;

/// The service of one RPC thread.
pub(crate) struct LeaseService {
    context: ApiContext,
}

pub(crate) fn service(context: ApiContext) -> LeaseServer<LeaseService> {
    let max = context.limits.message_bytes_max();
    LeaseServer::new(LeaseService { context }).max_decoding_message_size(max)
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        // What is random or depends on this member's settings is chosen before proposing.
        let ttl_min = self.context.limits.lease_ttl_min;
        let mut request = check::lease_grant(&request, ttl_min).map_err(refusal_status)?;
        while request.id == 0 {
            request.id = i64::try_from(replica::runtime::random_u64() >> 1).unwrap_or(0);
        }
        self.context.check_quota(check::lease_grant_cost()).await?;
        let proposed = async {
            let caller = self.context.caller(&credentials, Access::AnyUser).await?;
            let body = request.encode_to_vec().into();
            self.context.propose(CommandKind::LeaseGrant, body, &caller).await
        };
        match within(|| steps::lease_grant(&request), pin!(proposed)).await? {
            Outcome::LeaseGrant(mut response) => {
                self.context.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let proposed = async {
            let caller = self.context.caller(&credentials, Access::AnyUser).await?;
            let body = request.encode_to_vec().into();
            self.context.propose(CommandKind::LeaseRevoke, body, &caller).await
        };
        match within(|| steps::lease_revoke(&request), pin!(proposed)).await? {
            Outcome::LeaseRevoke(mut response) => {
                self.context.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let credentials = self.context.credentials(&request);
        let wants_leader = wants_leader(request.metadata());
        let requests = admitted(&self.context, request, false)?;
        let state = (requests, self.context.clone(), credentials);
        let answers = stream::unfold(state, |(mut requests, context, credentials)| async move {
            let answer = match requests.next().await? {
                Ok(request) => keep_alive(&context, &credentials, LeaseId(request.id)).await,
                Err(status) => Err(status),
            };
            Some((answer, (requests, context, credentials)))
        });
        let answers = while_led(self.context.clone(), wants_leader, answers);
        // After an error the stream ends, as a gRPC stream does.
        let mut failed = false;
        let answers = answers.take_while(move |answer| {
            let goes_on = !failed;
            failed = answer.is_err();
            std::future::ready(goes_on)
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let id = LeaseId(request.id);
        let handle = &self.context.handle;
        let caller = self.context.caller(&credentials, Access::AnyUser).await?;
        if request.keys {
            let attached = handle.views().lease_keys(id).unwrap_or_default();
            may_read(&self.context, &caller, &attached)?;
        }
        let asked = self.context.leases.time_to_live(handle, &[id], request.keys).await;
        let state = asked.map_err(ApiError::from)?.pop().ok_or(ApiError::Timeout)?;
        if request.keys {
            // The leader may know of keys that this member did not know of yet (CVE-2023-32082).
            may_read(&self.context, &caller, &state.keys)?;
            still_valid(&caller, &handle.views()).map_err(auth_status)?;
        }
        Ok(Response::new(LeaseTimeToLiveResponse {
            header: Some(self.context.header(handle.views().mvcc.revision())),
            id: request.id,
            ttl: state.ttl,
            granted_ttl: state.granted_ttl,
            keys: state.keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let credentials = self.context.credentials(&request);
        admitted(&self.context, request, false)?;
        let caller = self.context.caller(&credentials, Access::AnyUser).await?;
        let views = self.context.handle.views();
        let ids = self
            .context
            .leases
            .by_deadline(&self.context.handle)
            .unwrap_or_else(|| views.leases().into_iter().map(|(id, _, _)| id).collect());
        if views.auth().is_enabled() {
            let attached = ids.iter().filter_map(|id| views.lease_keys(*id)).flatten();
            may_read(&self.context, &caller, &attached.collect::<Vec<_>>())?;
            still_valid(&caller, &views).map_err(auth_status)?;
        }
        Ok(Response::new(LeaseLeasesResponse {
            header: Some(self.context.header(views.mvcc.revision())),
            leases: ids.into_iter().map(|id| LeaseStatus { id: id.0 }).collect(),
        }))
    }
}

/// Whether the caller may read all of these keys.
fn may_read(context: &ApiContext, caller: &Caller, keys: &[Bytes]) -> Result<(), Status> {
    let auth = context.handle.views().auth();
    Permit::new(&auth, caller).read_keys(keys).map_err(auth_status)
}

/// Answers one keepalive. The header is filled before the renewal, as etcd does, so that its
/// revision is never newer than the lease it speaks of.
async fn keep_alive(
    context: &ApiContext,
    credentials: &Credentials,
    id: LeaseId,
) -> Result<LeaseKeepAliveResponse, Status> {
    let header = context.header(context.handle.views().mvcc.revision());
    let ttl = within(|| steps::lease_renew(id), pin!(renew(context, credentials, id))).await?;
    Ok(LeaseKeepAliveResponse { header: Some(header), id: id.0, ttl })
}

/// The time that the lease has now; 0 if there is none.
async fn renew(
    context: &ApiContext,
    credentials: &Credentials,
    id: LeaseId,
) -> Result<i64, Status> {
    let caller = context.caller(credentials, Access::AnyUser).await?;
    let views = context.handle.views();
    if views.auth().is_enabled() {
        let attached = views.lease_keys(id).unwrap_or_default();
        let auth = views.auth();
        Permit::new(&auth, &caller).write_keys(&attached).map_err(auth_status)?;
        still_valid(&caller, &views).map_err(auth_status)?;
    }
    let renewed = context.leases.renew(&context.handle, &[id]).await.map_err(ApiError::from)?;
    Ok(renewed.first().copied().unwrap_or(0))
}
