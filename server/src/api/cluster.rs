//! `etcdserverpb.Cluster`.

use std::time::{SystemTime, UNIX_EPOCH};

use machine::MemberRecord;
use proto::etcdserverpb::cluster_server::{Cluster, ClusterServer};
use proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};
use replica::MembershipChange;
use tonic::{Request, Response, Status};
use types::{MemberId, Revision};

use super::access::Access;
use super::context::{ApiContext, admitted};
use super::status::ApiError;
use crate::ids;
use crate::urls::Url;

/// The service of one RPC thread.
pub(crate) struct ClusterService {
    context: ApiContext,
}

pub(crate) fn service(context: ApiContext) -> ClusterServer<ClusterService> {
    ClusterServer::new(ClusterService { context })
}

impl ClusterService {
    /// etcd leaves the revision out of the headers of this service.
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.context.header(Revision(0)))
    }

    async fn change(&self, change: MembershipChange) -> Result<Vec<Member>, Status> {
        self.context.handle.change_membership(change).await.map_err(ApiError::from)?;
        Ok(self.members())
    }

    fn members(&self) -> Vec<Member> {
        self.context.handle.views().members().iter().map(member).collect()
    }
}

/// A member as clients see it. One that is meant to vote is no learner to them, even while Raft
/// still treats it as one.
fn member(record: &MemberRecord) -> Member {
    Member {
        id: record.id.0,
        name: record.name.clone(),
        peer_ur_ls: record.peer_urls.clone(),
        client_ur_ls: record.client_urls.clone(),
        is_learner: !record.voter_intent,
    }
}

/// Peer URLs as they are stored and compared, in the order given.
fn normalize(urls: &[String]) -> Result<Vec<String>, ApiError> {
    if urls.is_empty() {
        return Err(ApiError::MemberBadUrls);
    }
    let parsed = urls.iter().map(|url| url.trim().parse::<Url>().map(|url| url.to_string()));
    parsed.collect::<Result<_, _>>().map_err(|_| ApiError::MemberBadUrls)
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let mut peer_urls = normalize(&request.peer_ur_ls)?;
        // As etcd does here, and not when they are updated.
        peer_urls.sort();
        self.context.caller(&credentials, Access::Admin).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = ids::added_member_id(&peer_urls, now);
        let change =
            MembershipChange::Add { id, peer_urls: peer_urls.clone(), learner: request.is_learner };
        let members = self.change(change).await?;
        let added = members.iter().find(|member| member.id == id.0).cloned();
        Ok(Response::new(MemberAddResponse { header: self.header(), member: added, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let members = self.change(MembershipChange::Remove { id: MemberId(request.id) }).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let id = MemberId(request.id);
        let is_known = self.context.handle.views().members().iter().any(|member| member.id == id);
        let peer_urls = match normalize(&request.peer_ur_ls) {
            // Who is not there is missed before its URLs are read, as in etcd.
            Err(_) if !is_known => return Err(ApiError::MemberNotFound.into()),
            read => read?,
        };
        let members = self.change(MembershipChange::Update { id, peer_urls }).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        if request.linearizable {
            self.context.linearize().await?;
        }
        self.context.caller(&credentials, Access::AnyUser).await?;
        Ok(Response::new(MemberListResponse { header: self.header(), members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let leads = self.context.handle.leads();
        let promoted = self.change(MembershipChange::Promote { id: MemberId(request.id) }).await;
        let metrics = &self.context.server.metrics;
        match &promoted {
            Ok(_) if leads => metrics.learner_promote_successes.inc(),
            Err(refusal) if leads => {
                metrics.learner_promote_failures.with_label_values(&[refusal.message()]).inc();
            }
            _ => {}
        }
        let members = promoted?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(), members }))
    }
}
