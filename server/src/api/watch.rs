//! `etcdserverpb.Watch`: between the stream of requests and the hub's stream of messages.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body::Body as HttpBody;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::StdError;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use types::KeyRange;
use watch::{CreateWatch, StreamHandle, StreamOutput, WatchMessage};

use super::context::ApiContext;
use super::encoded::{self, Encoded, HttpAnswer, Raw};
use super::leader::leader_lost;
use super::status::ApiError;
use super::steps::WatchSteps;
use crate::auth::Credentials;

/// Encoded messages that wait for the connection; the hub's own bound stands behind it.
const MESSAGES_WAITING_MAX: usize = 16;
/// A message longer than this waits until it is alone: the memory of a client that does not read is
/// bounded by bytes, not by messages.
const MESSAGE_BYTES_SMALL: usize = 64 * 1024;

/// The service of one RPC thread.
#[derive(Clone)]
pub(crate) struct WatchService {
    context: ApiContext,
}

impl WatchService {
    pub(crate) fn new(context: ApiContext) -> Self {
        Self { context }
    }
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> tower::Service<http::Request<B>> for WatchService
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = HttpAnswer;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> HttpAnswer {
        let context = self.context.clone();
        let max = context.limits.message_bytes_max();
        match request.uri().path() {
            "/etcdserverpb.Watch/Watch" => {
                encoded::streaming(request, max, move |r| watch(context.clone(), r))
            }
            _ => encoded::unimplemented(),
        }
    }
}

type Messages = ReceiverStream<Result<Encoded, Status>>;

async fn watch(
    context: ApiContext,
    request: Request<Streaming<Raw<WatchRequest>>>,
) -> Result<Response<Messages>, Status> {
    context.admit(request.metadata(), false)?;
    let wants_leader = super::context::wants_leader(request.metadata());
    let credentials = context.credentials(&request);
    let (handle, output) = context.hub.get().open();
    let (messages, waiting) = mpsc::channel(MESSAGES_WAITING_MAX);
    let requests = request.into_inner();
    let steps = WatchSteps::of_current_call();
    tokio::spawn(async move {
        let steps = steps.as_ref();
        let ended = tokio::select! {
            ended = take_requests(&context, &credentials, &handle, requests, steps) => ended.inspect_err(|_| {
                let failures = &context.server.metrics.stream_failures;
                failures.with_label_values(&["receive", "watch"]).inc();
            }),
            // The hub has stopped. An end without an error would end the client's watches for good;
            // this one makes it open them again, here or elsewhere.
            () = send_messages(&context, output, &messages, steps) => Err(ApiError::Stopped.into()),
            status = leader_lost(&context, wants_leader) => Err(status),
            // The client has gone. One that had closed its side before is not noticed by its requests.
            () = messages.closed() => Ok(()),
        };
        if let Err(status) = ended {
            // The client may have gone already.
            let _ = messages.send(Err(status)).await;
        }
    });
    Ok(Response::new(ReceiverStream::new(waiting)))
}

/// Hands requests to the hub until the client closes its side; then the stream stays open for as
/// long as the client listens.
async fn take_requests(
    context: &ApiContext,
    credentials: &Credentials,
    handle: &StreamHandle,
    mut requests: Streaming<Raw<WatchRequest>>,
    steps: Option<&WatchSteps>,
) -> Result<(), Status> {
    while let Some(request) = requests.next().await {
        match request?.message.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let judged = judge(context, credentials, &create).await;
                if let Some(steps) = steps {
                    steps.asked(&create, judged.is_ok());
                }
                match judged {
                    Ok(()) => handle.create(create_watch(create)).await,
                    Err(reason) => handle.refuse(reason).await,
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => handle.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => handle.request_progress().await,
            None => {}
        }
    }
    // etcd's receiving loop ends without an error then, and the stream goes on (`v3rpc/watch.go`):
    // clients that send one request and close their side still want its events.
    std::future::pending().await
}

/// Whether the caller may watch what it names, and if not, why. It is judged with the range as the
/// client wrote it, by what the stream's credentials are worth now; a watch that was created goes on
/// when they are worth less later, as in etcd.
async fn judge(
    context: &ApiContext,
    credentials: &Credentials,
    create: &WatchCreateRequest,
) -> Result<(), String> {
    // The hub refuses such a watch for another reason, which etcd finds first.
    if create.start_revision < 0 {
        return Ok(());
    }
    let key = match create.key.is_empty() {
        true => Bytes::from_static(&[0]),
        false => create.key.clone(),
    };
    let range = KeyRange::from_wire(key, create.range_end.clone());
    let judged = context.begin_read(credentials, |permit| permit.read(&range)).await;
    judged.map(drop).map_err(|status| {
        // As Go prints a gRPC error.
        format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
    })
}

fn create_watch(request: WatchCreateRequest) -> CreateWatch {
    let filtered = |kind: FilterType| request.filters.contains(&(kind as i32));
    CreateWatch {
        no_put: filtered(FilterType::Noput),
        no_delete: filtered(FilterType::Nodelete),
        key: request.key,
        range_end: request.range_end,
        start_revision: request.start_revision,
        progress_notify: request.progress_notify,
        prev_kv: request.prev_kv,
        watch_id: request.watch_id,
        fragment: request.fragment,
    }
}

async fn send_messages(
    context: &ApiContext,
    mut output: StreamOutput,
    messages: &mpsc::Sender<Result<Encoded, Status>>,
    steps: Option<&WatchSteps>,
) {
    let metrics = &context.server.metrics;
    while let Some(message) = output.next().await {
        if let Some(steps) = steps {
            steps.told(&message);
        }
        let bytes_max = message.encoded_len_bound();
        let places = if bytes_max > MESSAGE_BYTES_SMALL { MESSAGES_WAITING_MAX } else { 1 };
        let began = Instant::now();
        let Ok(mut places) = messages.reserve_many(places).await else { return };
        let mut bytes = BytesMut::with_capacity(bytes_max);
        let term = context.handle.term();
        message.encode(context.cluster_id, context.member_id, term, &mut bytes);
        if let Some(place) = places.next() {
            place.send(Ok(Encoded::from(bytes.freeze())));
        }
        drop(places);
        let took = began.elapsed().as_secs_f64();
        match &message {
            WatchMessage::Events { events, .. } => {
                let count = u32::try_from(events.frames().len()).unwrap_or(u32::MAX).max(1);
                metrics.watch_send.observe(took);
                metrics.watch_send_event.observe(took / f64::from(count));
            }
            WatchMessage::Progress { .. } => metrics.watch_send_progress.observe(took),
            _ => metrics.watch_send_control.observe(took),
        }
    }
}
