//! Calls that are passed on as they are, and what goes with those that are not.

use std::convert::Infallible;
use std::task::{Context, Poll};

use client::Client;
use futures_util::future::BoxFuture;
use tonic::Request;
use tonic::body::Body;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::server::NamedService;
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

/// A request as the proxy passes it on: the message, and of the metadata what has to go with it.
pub(super) fn carried<T>(request: Request<T>) -> Request<T> {
    let (metadata, _, message) = request.into_parts();
    let mut request = Request::new(message);
    for name in CARRIED {
        if let Some(value) = metadata.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request
}

/// In whose name calls are made that the proxy makes for several clients at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Caller {
    /// The token as it was sent; empty without one.
    token: String,
    pub(super) requires_leader: bool,
}

impl Caller {
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        Self {
            token: text("token").unwrap_or_default().to_owned(),
            requires_leader: text("hasleader") == Some("true"),
        }
    }

    pub(super) fn token(&self) -> &[u8] {
        self.token.as_bytes()
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(token) = self.token.parse()
            && !self.token.is_empty()
        {
            request.metadata_mut().insert("token", token);
        }
        if self.requires_leader {
            request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
        }
        request
    }
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
    Upkeep = "etcdserverpb.Maintenance";
    Users = "etcdserverpb.Auth";
    Locks = "v3lockpb.Lock";
    Elections = "v3electionpb.Election";
}
