//! Calls that are passed on as they are, and the members that clients are told of.

use std::convert::Infallible;
use std::task::{Context, Poll};

use client::Client;
use futures_util::future::BoxFuture;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::cluster_server::Cluster;
use proto::etcdserverpb::*;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower::Service;

/// What goes with a request that the proxy has changed: who calls, whether there must be a leader, how
/// long it may take.
const CARRIED: [&str; 4] = ["token", "hasleader", "client-api-version", "grpc-timeout"];

/// The way to the members.
#[derive(Clone, Debug)]
pub(super) struct Forward(pub(super) Client);

impl Service<http::Request<Body>> for Forward {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move { Ok(client.pass_on(request).await) })
    }
}

/// A request with a changed message and what has to go with it.
pub(super) fn carried<T, U>(request: Request<T>, change: impl FnOnce(T) -> U) -> Request<U> {
    let (metadata, _, message) = request.into_parts();
    let mut request = Request::new(change(message));
    for name in CARRIED {
        if let Some(value) = metadata.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request
}

macro_rules! passed_on {
    ($($service:ident = $name:literal;)*) => {
        $(
            /// A service whose calls are passed on.
            #[derive(Clone, Debug)]
            pub(super) struct $service(pub(super) Forward);

            impl NamedService for $service {
                const NAME: &'static str = $name;
            }

            impl Service<http::Request<Body>> for $service {
                type Response = http::Response<Body>;
                type Error = Infallible;
                type Future = <Forward as Service<http::Request<Body>>>::Future;

                fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                    self.0.poll_ready(cx)
                }

                fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                    self.0.call(request)
                }
            }
        )*
    };
}

passed_on! {
    Keys = "etcdserverpb.KV";
    Watches = "etcdserverpb.Watch";
    Leases = "etcdserverpb.Lease";
    Upkeep = "etcdserverpb.Maintenance";
    Users = "etcdserverpb.Auth";
    Locks = "v3lockpb.Lock";
    Elections = "v3electionpb.Election";
}

/// The members as clients see them: with `--advertise-client-url` the proxy alone, so that a client
/// that looks for members does not go past it.
pub(super) struct Members {
    pub(super) forward: Forward,
    pub(super) advertised: String,
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
        self.client().member_add(carried(request, |message| message)).await
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.client().member_remove(carried(request, |message| message)).await
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.client().member_update(carried(request, |message| message)).await
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if self.advertised.is_empty() {
            return self.client().member_list(carried(request, |message| message)).await;
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let client_ur_ls = vec![self.advertised.clone()];
        let own = Member { name: name.trim().to_owned(), client_ur_ls, ..Member::default() };
        Ok(Response::new(MemberListResponse { header: None, members: vec![own] }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.client().member_promote(carried(request, |message| message)).await
    }
}
