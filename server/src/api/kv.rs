//! `etcdserverpb.KV`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream;
use http_body::Body as HttpBody;
use machine::{CommandKind, Outcome, Permit, ReadOnlyError, check, range_query};
use mvcc::{RangeCursor, RangeQuery, ReadView, Selection, SortTarget, settle};
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};
use tonic::codegen::StdError;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use types::KeyRange;

use super::access::{Access, Reading};
use super::answers::{self, Around, Within, deleted_bytes, range_answer, settled, written_bytes};
use super::context::{ApiContext, admitted, refusal_status, wants_leader};
use super::encoded::{self, Encoded, HttpAnswer, Raw};
use super::leader::while_led;
use super::status::{ApiError, internal, range_error};
use super::steps;
use crate::auth::Credentials;
use crate::ops::spans::{begin, within};
use crate::read_budget::{Attempt, Refused, Share, UNCOUNTED_BYTES_MAX};

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

/// Begins to read what was admitted and can be asked for.
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
    // A learner serves ranges of what it has.
    context.admit(request.metadata(), request.get_ref().message.serializable)?;
    check::range(&request.get_ref().message).map_err(refusal_status)?;
    let began = Instant::now();
    let read = read_range(&context, request).await;
    context.server.request_times.answered("Range", read.is_ok(), began.elapsed());
    read
}

async fn read_range(
    context: &ApiContext,
    request: Request<Raw<RangeRequest>>,
) -> Result<Response<Encoded>, Status> {
    let credentials = context.credentials(&request);
    let request = request.into_inner().message;
    let read = async {
        let reading = prepare_read(context, &request, &credentials).await?;
        let (query, view) = (range_query(&request), &reading.views.mvcc);
        let around = |selection: &Selection<'_>| {
            let header = context.header(selection.revision());
            Around::new(&header, selection.more(), selection.count())
        };
        let budget = &context.server.reads;
        let answer = budget.within(|share| -> Result<_, Status> {
            let read = || range_answer(budget, view.select(&query)?, Within::Itself, around, share);
            settle(read).map_err(range_error)
        });
        let answer = answer.await;
        reading.confirm()?;
        Ok(Response::new(answer?))
    };
    within(|| steps::range(&request), pin!(read)).await
}

/// Keys in the first chunk of a stream; etcd starts so and doubles while chunks are small.
const FIRST_CHUNK_KEYS: usize = 10;

/// A range that is answered in chunks. Between two of them it holds neither keys nor values.
struct ChunkedRange {
    context: Arc<ApiContext>,
    reading: Reading,
    cursor: RangeCursor,
    /// Keys of the next chunk.
    keys: usize,
    /// What has no order and is to be sorted all the same.
    sorted: Option<RangeQuery>,
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
    let wants_leader = wants_leader(request.metadata());
    check_streamable(&request.get_ref().message)?;
    let credentials = context.credentials(&request);
    let request = request.into_inner().message;
    // A step until the last chunk.
    let step = begin(|| steps::range_streaming(&request));
    let reading = prepare_read(&context, &request, &credentials).await?;
    let query = range_query(&request);
    let sorted = query.sort_target != SortTarget::Key && !query.count_only;
    let sorted = sorted.then(|| query.clone());
    let cursor = reading.views.mvcc.range_stream(query).map_err(range_error)?;
    let context_of_range = context.clone();
    let range =
        ChunkedRange { context: context_of_range, reading, cursor, keys: FIRST_CHUNK_KEYS, sorted };
    let chunks = stream::try_unfold(Some(range), move |range| {
        let _ends_with_the_stream = &step;
        async {
            match range {
                Some(range) => range.next_chunk().await.map(Some),
                None => Ok(None),
            }
        }
    });
    Ok(Response::new(while_led(ApiContext::clone(&context), wants_leader, chunks)))
}

impl ChunkedRange {
    /// All of a range in one chunk. etcd sorts each chunk by itself and goes on behind the key that came
    /// last in it, so that beyond the first ten keys some are left out and others are answered twice.
    async fn only_chunk(self, query: &RangeQuery) -> Result<(Encoded, Option<Self>), Status> {
        let (budget, mvcc) = (&self.context.server.reads, &self.reading.views.mvcc);
        let around = |selection: &Selection<'_>| {
            let header = self.context.header(selection.revision());
            Around::new(&header, selection.more(), selection.count())
        };
        let chunk = budget.within(|share| -> Result<_, Status> {
            let read = || range_answer(budget, mvcc.select(query)?, Within::Chunk, around, share);
            settle(read).map_err(range_error)
        });
        let chunk = chunk.await?;
        self.reading.confirm()?;
        Ok((chunk, None))
    }

    /// One chunk, and what is left behind it; the last carries header, count and `more`.
    async fn next_chunk(mut self) -> Result<(Encoded, Option<Self>), Status> {
        if let Some(query) = self.sorted.take() {
            return self.only_chunk(&query).await;
        }
        let budget = self.context.server.reads.clone();
        let chunk = budget.within(|share| -> Result<_, Status> {
            let mut ahead = self.cursor.clone();
            let selection = ahead.select(self.keys).map_err(range_error)?;
            let is_last = ahead.is_at_end().map_err(range_error)?;
            let header = self.context.header(ahead.revision());
            let around = match is_last {
                true => {
                    let (count, more) = ahead.clone().finish().map_err(range_error)?;
                    Around::new(&header, more, count)
                }
                false => Around::default(),
            };
            // Never begun again: the chunks before it were of the revision that is gone then.
            let read = range_answer(&budget, selection, Within::Chunk, |_| around, share);
            Ok(match read.map_err(|interruption| range_error(interruption.into()))? {
                Attempt::Done(chunk) => Attempt::Done((chunk, (!is_last).then_some(ahead))),
                Attempt::Needs(bytes) => Attempt::Needs(bytes),
            })
        });
        let (chunk, ahead) = chunk.await?;
        self.reading.confirm()?;
        let (bytes, target) = (chunk.len(), self.context.limits.request_bytes_max);
        if bytes < target / 2 {
            self.keys *= 2;
        } else if bytes > target * 2 {
            self.keys = (self.keys / 2).max(1);
        }
        let rest = ahead.map(|cursor| Self { cursor, ..self });
        Ok((chunk, rest))
    }
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
        if request.message.prev_kv {
            context.server.reads.solvent().await?;
        }
        context.propose(CommandKind::Put, request.bytes, &caller).await
    };
    match within(|| steps::put(&request.message), pin!(proposed)).await? {
        Outcome::Put(mut response) => {
            context.complete(&mut response.header);
            Ok(Response::new(settled(&context.server.reads, None, response)))
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
        let share = match request.message.prev_kv {
            true => share_of_write(&context, |view| deleted_bytes(view, &request.message)).await?,
            false => None,
        };
        let outcome = context.propose(CommandKind::DeleteRange, request.bytes, &caller).await?;
        Ok::<_, Status>((outcome, share))
    };
    let (outcome, share) = within(|| steps::delete_range(&request.message), pin!(proposed)).await?;
    match outcome {
        Outcome::DeleteRange(mut response) => {
            context.complete(&mut response.header);
            Ok(Response::new(settled(&context.server.reads, share, response)))
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
        match is_read_only {
            true => read_only_txn(&context, &credentials, &request.message).await,
            false => writing_txn(&context, &credentials, request.bytes, &request.message).await,
        }
    };
    within(|| steps::txn(&request.message), pin!(answered)).await.map(Response::new)
}

async fn writing_txn(
    context: &ApiContext,
    credentials: &Credentials,
    bytes: Bytes,
    request: &TxnRequest,
) -> Result<Encoded, Status> {
    let caller = context.caller(credentials, Access::Anybody).await?;
    let share = match answers::reads(request) {
        true => share_of_write(context, |view| written_bytes(view, request)).await?,
        false => None,
    };
    match context.propose(CommandKind::Txn, bytes, &caller).await? {
        Outcome::Txn(mut response) => {
            context.complete(&mut response.header);
            Ok(settled(&context.server.reads, share, response))
        }
        other => Err(unexpected(&other)),
    }
}

async fn read_only_txn(
    context: &ApiContext,
    credentials: &Credentials,
    request: &TxnRequest,
) -> Result<Encoded, Status> {
    if !check::is_serializable(request) {
        context.linearize().await?;
    }
    let began = Instant::now();
    let read = read_all_of_txn(context, credentials, request).await;
    context.server.request_times.answered("ReadonlyTxn", read.is_ok(), began.elapsed());
    read
}

async fn read_all_of_txn(
    context: &ApiContext,
    credentials: &Credentials,
    request: &TxnRequest,
) -> Result<Encoded, Status> {
    let judge = |permit: &Permit<'_>| permit.read_only_txn(request);
    let reading = context.begin_read(credentials, judge).await?;
    let (view, budget) = (&reading.views.mvcc, &context.server.reads);
    let answer = budget.within(|share| -> Result<_, Status> {
        // What was read, and the answer that is made of it.
        let needs = 2 * answers::read_only_bytes(view, request);
        if needs > UNCOUNTED_BYTES_MAX as u64 && !budget.cover(share, needs) {
            return Ok(Attempt::Needs(needs));
        }
        let answer = machine::read_only(view, request).map_err(|error| match error {
            ReadOnlyError::Refused(refusal) => refusal_status(refusal),
            other => internal(&other),
        });
        reading.confirm()?;
        let mut answer = answer?;
        context.complete(&mut answer.header);
        Ok(Attempt::Done(settled(budget, share.take(), answer)))
    });
    answer.await
}

/// What a write holds for its answer before it is proposed: once it is applied it cannot be refused
/// any more. What the answer turns out to be more (the keys were written meanwhile, or it was a
/// single key's) is overdrawn, which is why nobody goes on while there is a debt.
async fn share_of_write(
    context: &ApiContext,
    bytes: impl Fn(&ReadView) -> u64,
) -> Result<Option<Share>, Status> {
    let budget = &context.server.reads;
    budget.solvent().await?;
    let share = budget.within(|share| -> Result<_, Refused> {
        let needs = context.handle.with_views(|views| bytes(&views.mvcc));
        if needs > UNCOUNTED_BYTES_MAX as u64 && !budget.cover(share, needs) {
            return Ok(Attempt::Needs(needs));
        }
        Ok(Attempt::Done(share.take()))
    });
    Ok(share.await?)
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
    match within(|| steps::compact(&request.message), pin!(compacted)).await? {
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
