//! `--experimental-enable-grpc-logging`: every message of every call in the log, as JSON, with etcd's
//! texts and fields.
//!
//! Passwords and tokens are left out: what etcd's proxy would write of the calls that have them is not
//! written here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::gateway::message_as_json;
use crate::listen::ConnectionInfo;

/// Calls whose messages have passwords or tokens.
const SECRET: [&str; 3] = [
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserChangePassword",
];
/// A byte of flags and four of length stand before each message.
const HEADER_BYTES: usize = 5;

/// A service whose messages are logged, if that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Logged<S> {
    pub(super) service: S,
    pub(super) is_logged: bool,
}

impl<S: NamedService> NamedService for Logged<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Logged<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.is_logged {
            return Box::pin(self.service.call(request));
        }
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|info| info.remote);
        let call = Arc::new(Call { path: request.uri().path().to_owned(), peer });
        let logged = |of: Side| {
            let call = call.clone();
            move |body| Body::new(LoggedBody { body, call, of, read: BytesMut::new() })
        };
        let (of_request, of_response) = (logged(Side::Request), logged(Side::Response));
        let answer = self.service.call(request.map(of_request));
        Box::pin(async move { Ok(answer.await?.map(of_response)) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

#[derive(Debug)]
struct Call {
    path: String,
    peer: Option<SocketAddr>,
}

impl Call {
    fn log(&self, side: Side, message: &[u8]) {
        let (service, method) =
            self.path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let peer = self.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let is_response = side == Side::Response;
        let content = match SECRET.contains(&self.path.as_str()) {
            true => String::new(),
            false => message_as_json(&self.path, is_response, message).unwrap_or_default(),
        };
        match side {
            Side::Request => tracing::info!(
                "grpc.request.content" = content,
                "grpc.service" = service,
                "grpc.method" = method,
                "peer.address" = peer,
                "received payload logged as grpc.request.content field"
            ),
            Side::Response => tracing::info!(
                "grpc.response.content" = content,
                "grpc.service" = service,
                "grpc.method" = method,
                "peer.address" = peer,
                "returned response payload logged as grpc.response.content field"
            ),
        }
    }
}

/// A body that logs the messages in it as they pass.
struct LoggedBody {
    body: Body,
    call: Arc<Call>,
    of: Side,
    /// What has passed of the message that is not whole yet.
    read: BytesMut,
}

impl LoggedBody {
    fn note(&mut self, data: &Bytes) {
        self.read.extend_from_slice(data);
        while let Some((header, rest)) = self.read.split_first_chunk::<HEADER_BYTES>() {
            let [_, length @ ..] = *header;
            let length = u32::from_be_bytes(length) as usize;
            let Some(message) = rest.get(..length) else { return };
            self.call.log(self.of, message);
            self.read.advance(HEADER_BYTES + length);
        }
    }
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.note(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
