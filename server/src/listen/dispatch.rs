//! One port, two protocols: gRPC by its content type, everything else is HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use crate::ops::calls::{Call, CallMetrics, Received};

/// The future of an HTTP answer.
pub type HttpFuture = Pin<Box<dyn Future<Output = Response<HttpBody>> + Send>>;

/// Answers requests that are not gRPC.
pub type HttpHandler = Arc<dyn Fn(Request<Incoming>) -> HttpFuture + Send + Sync>;

/// What one kind of listener serves on one thread.
#[derive(Clone, Default)]
pub struct Services {
    pub grpc: Option<Routes>,
    /// One of them once more, for the way around the router.
    pub direct: Option<DirectService>,
    pub http: Option<HttpHandler>,
    /// Counts gRPC calls under etcd's names.
    pub calls: Option<CallMetrics>,
}

impl Services {
    /// The answer to a request, which the connection's task polls.
    pub(super) fn call(&self, request: Request<Incoming>) -> AnswerFuture {
        if is_grpc(&request) {
            let Some(routes) = &self.grpc else {
                return AnswerFuture::Ready(Some(refusal(
                    StatusCode::NOT_FOUND,
                    "gRPC is not served on this URL\n",
                )));
            };
            let (request, call) = counted(self.calls.as_ref(), request);
            if let (Some(calls), None) = (&self.calls, &call) {
                let status = calls.unknown(request.uri().path());
                let answer = status.into_http::<tonic::body::Body>();
                let answer = answer.map(|body| AnswerBody::Grpc { body, call: None });
                return AnswerFuture::Ready(Some(answer));
            }
            let future = match &self.direct {
                Some(direct) if direct.serves(request.uri().path()) => direct.call(request),
                _ => routed(routes, request),
            };
            return AnswerFuture::Grpc { future, call };
        }
        match &self.http {
            Some(handler) => AnswerFuture::Http(handler(request)),
            None => AnswerFuture::Ready(Some(refusal(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "invalid gRPC request content-type \"\"\n",
            ))),
        }
    }
}

/// Begins to count a call.
fn counted<B>(
    calls: Option<&CallMetrics>,
    request: Request<B>,
) -> (Request<RequestBody<B>>, Option<Call>) {
    let call = calls.and_then(|calls| calls.start(&request));
    let received = call.as_ref().map(Call::received);
    (request.map(|body| RequestBody { body, received }), call)
}

fn routed<B>(routes: &Routes, request: Request<RequestBody<B>>) -> GrpcFuture
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    Box::pin(routes.clone().call(request))
}

/// The answer of a gRPC service.
pub(crate) type GrpcFuture =
    Pin<Box<dyn Future<Output = Result<Response<tonic::body::Body>, Infallible>> + Send>>;

/// A service that connections call without the router, which boxes each call several times.
#[derive(Clone)]
pub struct DirectService {
    prefix: String,
    call: Arc<dyn Fn(Request<RequestBody<Incoming>>) -> GrpcFuture + Send + Sync>,
}

impl DirectService {
    pub(crate) fn new<S>(service: S) -> Self
    where
        S: NamedService + Clone + Send + Sync + 'static,
        S: Service<
                Request<RequestBody<Incoming>>,
                Response = Response<tonic::body::Body>,
                Error = Infallible,
                Future = GrpcFuture,
            >,
    {
        let call = move |request| service.clone().call(request);
        Self { prefix: format!("/{}/", S::NAME), call: Arc::new(call) }
    }

    fn serves(&self, path: &str) -> bool {
        path.starts_with(&self.prefix)
    }

    fn call(&self, request: Request<RequestBody<Incoming>>) -> GrpcFuture {
        (self.call)(request)
    }
}

/// gRPC services that are called inside the process, and counted as if a connection had brought the
/// call.
#[derive(Clone)]
pub struct GrpcCalls {
    routes: Routes,
    calls: Option<CallMetrics>,
}

impl GrpcCalls {
    pub fn new(routes: Routes, calls: Option<CallMetrics>) -> Self {
        Self { routes, calls }
    }
}

impl Service<Request<tonic::body::Body>> for GrpcCalls {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> AnswerFuture {
        let (request, call) = counted(self.calls.as_ref(), request);
        AnswerFuture::Grpc { future: routed(&self.routes, request), call }
    }
}

/// The body of an HTTP answer.
pub enum HttpBody {
    Full(Full<Bytes>),
    /// Sent as it comes.
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl HttpBody {
    pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::Stream(Box::pin(chunks))
    }
}

impl<T: Into<Bytes>> From<T> for HttpBody {
    fn from(bytes: T) -> Self {
        Self::Full(Full::new(bytes.into()))
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            HttpBody::Full(body) => Pin::new(body).poll_frame(cx),
            HttpBody::Stream(chunks) => {
                chunks.poll_next_unpin(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            HttpBody::Full(body) => body.is_end_stream(),
            HttpBody::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            HttpBody::Full(body) => body.size_hint(),
            HttpBody::Stream(_) => SizeHint::default(),
        }
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request.version() == http::Version::HTTP_2
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn refusal(status: StatusCode, text: &'static str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Http(HttpBody::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer under way.
pub enum AnswerFuture {
    Grpc { future: GrpcFuture, call: Option<Call> },
    Http(HttpFuture),
    Ready(Option<Response<AnswerBody>>),
}

impl Future for AnswerFuture {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            AnswerFuture::Grpc { future, call } => {
                let entered = call.as_ref().and_then(Call::enter);
                let answer = future.as_mut().poll(cx);
                drop(entered);
                answer.map(|answer| {
                    let mut call = call.take();
                    answer.map(|response| {
                        if let Some(call) = &mut call {
                            call.headers(response.headers());
                        }
                        response.map(|body| AnswerBody::Grpc { body, call })
                    })
                })
            }
            AnswerFuture::Http(future) => {
                future.as_mut().poll(cx).map(|response| Ok(response.map(AnswerBody::Http)))
            }
            AnswerFuture::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it is ready")))
            }
        }
    }
}

/// A request's body, whose messages are counted as they are read.
pub(crate) struct RequestBody<B> {
    body: B,
    received: Option<Received>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(received)) = (&frame, &mut this.received)
            && let Some(data) = frame.data_ref()
        {
            received.count(data);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body of either protocol.
pub enum AnswerBody {
    Grpc { body: tonic::body::Body, call: Option<Call> },
    Http(HttpBody),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            AnswerBody::Grpc { body, call } => {
                let entered = call.as_ref().and_then(Call::enter);
                let frame = Pin::new(body).poll_frame(cx);
                drop(entered);
                if let (Poll::Ready(Some(Ok(frame))), Some(call)) = (&frame, call) {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => call.sent(data),
                        (_, Some(trailers)) => call.headers(trailers),
                        _ => {}
                    }
                }
                frame
            }
            AnswerBody::Http(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Grpc { body, .. } => body.is_end_stream(),
            AnswerBody::Http(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Grpc { body, .. } => body.size_hint(),
            AnswerBody::Http(body) => body.size_hint(),
        }
    }
}
