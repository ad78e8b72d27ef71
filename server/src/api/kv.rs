//! `etcdserverpb.KV`.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body::Body as HttpBody;
use machine::{CommandKind, Outcome, Permit, ReadOnlyError, check, range_query};
use mvcc::{RangeAnswer, RangeQuery};
use prost::Message;
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, ResponseHeader, TxnRequest,
    TxnResponse,
};
use tonic::codegen::StdError;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use types::KeyRange;

use super::access::{Access, Reading};
use super::context::{ApiContext, admitted, refusal_status};
use super::encoded::{self, Encoded, HttpAnswer, Raw, put_field};
use super::status::{ApiError, internal, range_error};
use super::steps;
use crate::auth::Credentials;
use crate::ops::spans::{begin, within};

/// The service, answered from stored bytes.
#[derive(Clone)]
pub(crate) struct KvService {
    // Of one thread: what is in it is shared by all, and counting each of its references for every
    // call would move them from core to core.
    context: Arc<ApiContext>,
}

impl KvService {
    pub(crate) fn new(context: ApiContext) -> Self {
        Self { context: Arc::new(context) }
    }
}

impl NamedService for KvService {
    const NAME: &'static str = "etcdserverpb.KV";
}

impl<B> tower::Service<http::Request<B>> for KvService
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
            "/etcdserverpb.KV/Range" => {
                encoded::unary(request, max, move |r| range(context.clone(), r))
            }
            "/etcdserverpb.KV/RangeStream" => {
                encoded::server_streaming(request, max, move |r| range_stream(context.clone(), r))
            }
            "/etcdserverpb.KV/Put" => {
                encoded::unary(request, max, move |r| put(context.clone(), r))
            }
            "/etcdserverpb.KV/DeleteRange" => {
                encoded::unary(request, max, move |r| delete_range(context.clone(), r))
            }
            "/etcdserverpb.KV/Txn" => {
                encoded::unary(request, max, move |r| txn(context.clone(), r))
            }
            "/etcdserverpb.KV/Compact" => {
                encoded::unary(request, max, move |r| compact(context.clone(), r))
            }
            _ => encoded::unimplemented(),
        }
    }
}

/// A `RangeResponse` from encoded parts.
fn range_response(header: &ResponseHeader, kvs: &[Bytes], more: bool, count: i64) -> Bytes {
    const FIELD_OVERHEAD: usize = 8;
    let header = header.encode_to_vec();
    let size: usize = kvs.iter().map(|kv| kv.len() + FIELD_OVERHEAD).sum();
    let mut out = BytesMut::with_capacity(header.len() + size + 4 * FIELD_OVERHEAD);
    put_field(&mut out, 1, &header);
    for kv in kvs {
        put_field(&mut out, 2, kv);
    }
    if more {
        prost::encoding::bool::encode(3, &more, &mut out);
    }
    if count != 0 {
        prost::encoding::int64::encode(4, &count, &mut out);
    }
    out.freeze()
}

/// Takes the request of a range apart.
fn admit_range(
    context: &ApiContext,
    request: Request<Raw<RangeRequest>>,
) -> Result<(RangeRequest, Credentials), Status> {
    let learner_may = request.get_ref().message.serializable;
    let credentials = context.credentials(&request);
    let request = admitted(context, request, learner_may)?.message;
    check::range(&request).map_err(refusal_status)?;
    Ok((request, credentials))
}

async fn prepare_read(
    context: &ApiContext,
    request: &RangeRequest,
    credentials: &Credentials,
) -> Result<Reading, Status> {
    if !request.serializable {
        context.linearize().await?;
    }
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    context.begin_read(credentials, |permit| permit.read(&range)).await
}

async fn range(
    context: Arc<ApiContext>,
    request: Request<Raw<RangeRequest>>,
) -> Result<Response<Encoded>, Status> {
    let began = Instant::now();
    let read = read_range(&context, request).await;
    context.server.request_times.answered("Range", read.is_ok(), began.elapsed());
    read
}

async fn read_range(
    context: &ApiContext,
    request: Request<Raw<RangeRequest>>,
) -> Result<Response<Encoded>, Status> {
    let (request, credentials) = admit_range(context, request)?;
    let read = async {
        let reading = prepare_read(context, &request, &credentials).await?;
        let answer = reading.views.mvcc.range(&range_query(&request));
        reading.confirm()?;
        let RangeAnswer { kvs, more, count, revision } = answer.map_err(range_error)?;
        let response = range_response(&context.header(revision), &kvs, more, count);
        Ok(Response::new(Encoded(response)))
    };
    within(|| steps::range(&request), read).await
}

/// Keys in the first chunk of a stream; etcd starts so and doubles while chunks are small.
const FIRST_CHUNK_KEYS: usize = 10;

/// How a stream of a range goes on.
enum StreamState {
    /// What was read already, and what to read the rest with.
    Chunks {
        ready: Vec<Bytes>,
        cursor: Box<mvcc::RangeCursor>,
        keys: usize,
    },
    Done,
}

/// What a stream cannot be asked for, in etcd's words.
fn check_streamable(request: &RangeRequest) -> Result<(), Status> {
    check::range(request).map_err(refusal_status)?;
    let query = range_query(request);
    if query.is_plain() {
        return Ok(());
    }
    // etcd looks at the order first.
    let unfiltered = RangeQuery { min_mod: 0, max_mod: 0, min_create: 0, max_create: 0, ..query };
    Err(Status::unimplemented(match unfiltered.is_plain() {
        true => "RangeStream does not support revision filters",
        false => "RangeStream does not support custom sort orders",
    }))
}

async fn range_stream(
    context: Arc<ApiContext>,
    request: Request<Raw<RangeRequest>>,
) -> Result<Response<impl futures_util::Stream<Item = Result<Encoded, Status>> + Send>, Status> {
    // A learner serves ranges of what it has, but etcd's does not stream them.
    context.admit(request.metadata(), false)?;
    check_streamable(&request.get_ref().message)?;
    let (request, credentials) = admit_range(&context, request)?;
    // A step until the last chunk.
    let step = begin(|| steps::range_streaming(&request));
    let reading = prepare_read(&context, &request, &credentials).await?;
    let mut cursor = reading.views.mvcc.range_stream(range_query(&request)).map_err(range_error)?;
    let ready = cursor.next(FIRST_CHUNK_KEYS).map_err(range_error)?;
    let reading = Arc::new(reading);
    let state = StreamState::Chunks { ready, cursor: Box::new(cursor), keys: FIRST_CHUNK_KEYS };
    let chunks = stream::try_unfold(state, move |state| {
        let (context, reading) = (context.clone(), Arc::clone(&reading));
        let _ends_with_the_stream = &step;
        async move {
            let chunk = next_chunk(&context, state)?;
            reading.confirm()?;
            Ok(chunk)
        }
    });
    Ok(Response::new(chunks))
}

/// One chunk; the last carries header, count and `more`. To know whether it is the last, the next
/// one is read before it is sent.
fn next_chunk(
    context: &ApiContext,
    state: StreamState,
) -> Result<Option<(Encoded, StreamState)>, Status> {
    let StreamState::Chunks { ready: kvs, mut cursor, keys } = state else { return Ok(None) };
    let bytes: usize = kvs.iter().map(Bytes::len).sum();
    let target = context.limits.request_bytes_max;
    let keys = if bytes < target / 2 {
        keys * 2
    } else if bytes > target * 2 {
        (keys / 2).max(1)
    } else {
        keys
    };
    let ready = cursor.next(keys).map_err(range_error)?;
    if ready.is_empty() {
        let header = context.header(cursor.revision());
        let (count, more) = cursor.finish().map_err(range_error)?;
        let response = range_response(&header, &kvs, more, count);
        return Ok(Some((stream_response(&response), StreamState::Done)));
    }
    let mut out = BytesMut::with_capacity(bytes + kvs.len() * 8);
    for kv in &kvs {
        put_field(&mut out, 2, kv);
    }
    Ok(Some((stream_response(&out), StreamState::Chunks { ready, cursor, keys })))
}

fn stream_response(range_response: &[u8]) -> Encoded {
    let mut out = BytesMut::with_capacity(range_response.len() + 8);
    put_field(&mut out, 1, range_response);
    Encoded(out.freeze())
}

async fn put(
    context: Arc<ApiContext>,
    request: Request<Raw<PutRequest>>,
) -> Result<Response<Encoded>, Status> {
    let credentials = context.credentials(&request);
    let request = admitted(&context, request, false)?;
    check::put(&request.message).map_err(refusal_status)?;
    context.check_quota(check::put_cost(&request.message)).await?;
    let proposed = async {
        let caller = context.caller(&credentials, Access::Anybody).await?;
        context.propose(CommandKind::Put, request.bytes, &caller).await
    };
    match within(|| steps::put(&request.message), proposed).await? {
        Outcome::Put(mut response) => {
            context.complete(&mut response.header);
            Ok(Response::new(Encoded::of(&response)))
        }
        other => Err(unexpected(&other)),
    }
}

async fn delete_range(
    context: Arc<ApiContext>,
    request: Request<Raw<DeleteRangeRequest>>,
) -> Result<Response<Encoded>, Status> {
    let credentials = context.credentials(&request);
    let request = admitted(&context, request, false)?;
    check::delete_range(&request.message).map_err(refusal_status)?;
    let proposed = async {
        let caller = context.caller(&credentials, Access::Anybody).await?;
        context.propose(CommandKind::DeleteRange, request.bytes, &caller).await
    };
    match within(|| steps::delete_range(&request.message), proposed).await? {
        Outcome::DeleteRange(mut response) => {
            context.complete(&mut response.header);
            Ok(Response::new(Encoded::of(&response)))
        }
        other => Err(unexpected(&other)),
    }
}

async fn txn(
    context: Arc<ApiContext>,
    request: Request<Raw<TxnRequest>>,
) -> Result<Response<Encoded>, Status> {
    let credentials = context.credentials(&request);
    let request = admitted(&context, request, false)?;
    check::txn(&request.message, context.limits.txn_ops_max).map_err(refusal_status)?;
    let is_read_only = check::is_read_only(&request.message);
    if !is_read_only {
        context.check_quota(check::txn_cost(&request.message)).await?;
    }
    let answered = async {
        if is_read_only {
            return read_only_txn(&context, &credentials, &request.message).await;
        }
        let caller = context.caller(&credentials, Access::Anybody).await?;
        match context.propose(CommandKind::Txn, request.bytes, &caller).await? {
            Outcome::Txn(response) => Ok(response),
            other => Err(unexpected(&other)),
        }
    };
    let mut response = within(|| steps::txn(&request.message), answered).await?;
    context.complete(&mut response.header);
    Ok(Response::new(Encoded::of(&response)))
}

async fn read_only_txn(
    context: &ApiContext,
    credentials: &Credentials,
    request: &TxnRequest,
) -> Result<TxnResponse, Status> {
    if !check::is_serializable(request) {
        context.linearize().await?;
    }
    let judge = |permit: &Permit<'_>| permit.read_only_txn(request);
    let reading = context.begin_read(credentials, judge).await?;
    let answer = machine::read_only(&reading.views.mvcc, request);
    reading.confirm()?;
    answer.map_err(|error| match error {
        ReadOnlyError::Refused(refusal) => refusal_status(refusal),
        other => internal(&other),
    })
}

async fn compact(
    context: Arc<ApiContext>,
    request: Request<Raw<CompactionRequest>>,
) -> Result<Response<Encoded>, Status> {
    let credentials = context.credentials(&request);
    let request = admitted(&context, request, false)?;
    let caller = context.caller(&credentials, Access::Admin).await?;
    let compacted = async {
        let outcome = context.propose(CommandKind::Compaction, request.bytes, &caller).await?;
        if request.message.physical && matches!(outcome, Outcome::Compaction(_)) {
            wait_until_freed(&context, request.message.revision).await?;
        }
        Ok::<_, Status>(outcome)
    };
    match within(|| steps::compact(&request.message), compacted).await? {
        Outcome::Compaction(mut response) => {
            context.complete(&mut response.header);
            Ok(Response::new(Encoded::of(&response)))
        }
        other => Err(unexpected(&other)),
    }
}

/// A physical compaction answers once the space is free on this member.
async fn wait_until_freed(context: &ApiContext, revision: i64) -> Result<(), Status> {
    tracing::debug!(revision, "waiting for a physical compaction");
    context.handle.save_image().await.map_err(|reason| ApiError::from(reason).into())
}

/// The applier answered a request with the outcome of another kind: a bug, reported as such.
pub(crate) fn unexpected(outcome: &Outcome) -> Status {
    Status::internal(format!("unexpected outcome {outcome:?}"))
}
