//! The members as clients see them.
//!
//! With `--advertise-client-url` clients are told of proxies instead of members, so that one that looks
//! for members does not go past the proxy: of all that have registered under `--resolver-prefix`
//! ([`super::resolver`]), or of this one alone.

use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::cluster_server::Cluster;
use proto::etcdserverpb::*;
use tonic::{Request, Response, Status};

use super::forward::{Forward, carried};
use super::resolver::{Proxies, host_name};

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Members {
    pub(super) forward: Forward,
    pub(super) advertised: String,
    /// Those that have registered; nobody looks for them without a prefix.
    pub(super) proxies: Proxies,
}

impl Members {
    fn client(&self) -> ClusterClient<Forward> {
        ClusterClient::new(self.forward.clone())
    }
}

#[tonic::async_trait]
impl Cluster for Members {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        self.client().member_add(carried(request)).await
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.client().member_remove(carried(request)).await
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.client().member_update(carried(request)).await
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if self.advertised.is_empty() {
            return self.client().member_list(carried(request)).await;
        }
        let known = self.proxies.members();
        let members = match known.is_empty() {
            false => known,
            true => {
                let client_ur_ls = vec![self.advertised.clone()];
                vec![Member { name: host_name(), client_ur_ls, ..Member::default() }]
            }
        };
        Ok(Response::new(MemberListResponse { header: None, members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.client().member_promote(carried(request)).await
    }
}
