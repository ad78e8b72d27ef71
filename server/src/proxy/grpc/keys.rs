//! KV: serializable ranges are answered from memory where they can be ([`Cache`]), everything else by the
//! members, and what passes tells the memory what it has to forget.
//!
//! With `--experimental-serializable-ordering` no serializable read shows an older revision than a read
//! before it did: an answer of a member that is behind, or of the memory, is not taken then, and the next
//! member is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proto::etcdserverpb::kv_server::Kv;
use proto::etcdserverpb::*;
use tonic::{Request, Response, Status};

use super::cache::{Asked, Cache, Question, Span};
use super::forward::{Caller, carried};
use super::leasing::Leasing;
use super::namespace::{Answers, Namespace};

/// How many times every member is asked for an answer that is new enough, as in etcd.
const ROUNDS: usize = 5;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) members: Namespace,
    pub(super) cache: Arc<Cache>,
    pub(super) order: Option<Arc<Order>>,
    pub(super) leasing: Option<Arc<Leasing>>,
}

/// The newest revision that a read has shown.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) members: usize,
    newest: AtomicI64,
}

impl Order {
    pub(super) fn new(members: usize) -> Self {
        Self { members, newest: AtomicI64::new(0) }
    }

    fn allows(&self, response: &RangeResponse) -> bool {
        let revision = response.header.map_or(0, |header| header.revision);
        revision >= self.newest.load(Ordering::Relaxed)
    }

    fn seen(&self, header: Option<&ResponseHeader>) -> i64 {
        let revision = header.map_or(0, |header| header.revision);
        self.newest.fetch_max(revision, Ordering::Relaxed);
        revision
    }
}

impl Keys {
    /// Asks the members for a range, in order if that is wanted.
    async fn ask(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let Some(order) = &self.order else { return self.ask_once(request).await };
        let request = carried(request);
        let newest = order.newest.load(Ordering::Relaxed);
        for _ in 0..=ROUNDS * order.members {
            let mut again = Request::new(request.get_ref().clone());
            *again.metadata_mut() = request.metadata().clone();
            let response = self.ask_once(again).await?;
            if order.seen(response.get_ref().header.as_ref()) >= newest {
                return Ok(response);
            }
        }
        Err(Status::unknown(
            "etcdclient: no cluster members have a revision higher than the previously received \
             revision",
        ))
    }

    async fn ask_once(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let Some(leasing) = &self.leasing else { return self.members.range(request).await };
        let response = leasing.range(request).await?;
        leasing.seen(response.get_ref().header.as_ref());
        Ok(response)
    }

    /// What the memory has to know of a transaction that took place.
    fn note(&self, asked: Asked, token: &[u8], txn: &TxnRequest, response: &TxnResponse) {
        // Who compares a key may know better than the memory does.
        self.cache.forget(compared(txn));
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        took_place(txn, response, &mut writes, &mut reads);
        self.cache.written(writes);
        for (range, answer) in reads {
            // What is answered inside a transaction has only a part of the header.
            let answer = RangeResponse { header: response.header, ..answer.clone() };
            self.cache.remember(asked, Question::new(token, range), &answer);
        }
    }
}

fn compared(txn: &TxnRequest) -> impl Iterator<Item = Span> {
    txn.compare.iter().map(|compare| Span::of(&compare.key, &compare.range_end))
}

/// What the branches that were taken have written and read.
fn took_place<'t>(
    txn: &'t TxnRequest,
    response: &'t TxnResponse,
    writes: &mut Vec<Span>,
    reads: &mut Vec<(&'t RangeRequest, &'t RangeResponse)>,
) {
    let taken = if response.succeeded { &txn.success } else { &txn.failure };
    for (op, answer) in taken.iter().zip(&response.responses) {
        use request_op::Request as Op;
        use response_op::Response as Answer;
        match (&op.request, &answer.response) {
            (Some(Op::RequestRange(range)), Some(Answer::ResponseRange(answer))) => {
                reads.push((range, answer));
            }
            (Some(Op::RequestTxn(txn)), Some(Answer::ResponseTxn(answer))) => {
                writes.extend(compared(txn));
                took_place(txn, answer, writes, reads);
            }
            _ => writes.extend(written_by(op)),
        }
    }
}

/// Everything that a transaction may write, whichever branches are taken.
fn may_write(ops: &[RequestOp], writes: &mut Vec<Span>) {
    for op in ops {
        match &op.request {
            Some(request_op::Request::RequestTxn(txn)) => {
                may_write(&txn.success, writes);
                may_write(&txn.failure, writes);
            }
            _ => writes.extend(written_by(op)),
        }
    }
}

fn written_by(op: &RequestOp) -> Option<Span> {
    match &op.request {
        Some(request_op::Request::RequestPut(put)) => Some(Span::of(&put.key, &Default::default())),
        Some(request_op::Request::RequestDeleteRange(delete)) => {
            Some(Span::of(&delete.key, &delete.range_end))
        }
        _ => None,
    }
}

/// A write under way. When it ends, however it ends, what is remembered of its keys is forgotten: it may
/// have taken place although nobody waited for its answer.
struct Writing<'c> {
    cache: &'c Cache,
    spans: Vec<Span>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.cache.written(std::mem::take(&mut self.spans));
    }
}

#[tonic::async_trait]
impl Kv for Keys {
    type RangeStreamStream = Answers<RangeStreamResponse>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let question = Question::new(caller.token(), request.get_ref());
        if request.get_ref().serializable
            && let Some(response) = self.cache.get(&question)?
            && self.order.as_ref().is_none_or(|order| order.allows(&response))
        {
            return Ok(Response::new(response));
        }
        let asked = self.cache.asked();
        let response = self.ask(request).await?;
        self.cache.remember(asked, question, response.get_ref());
        Ok(response)
    }

    /// Neither taken from the memory nor remembered: it is there for ranges that are too long for that.
    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.members.range_stream(request).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let span = Span::of(&request.get_ref().key, &Default::default());
        let _writing = Writing { cache: &self.cache, spans: vec![span] };
        match &self.leasing {
            Some(leasing) => leasing.put(request).await,
            None => self.members.put(request).await,
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let span = Span::of(&request.get_ref().key, &request.get_ref().range_end);
        let _writing = Writing { cache: &self.cache, spans: vec![span] };
        match &self.leasing {
            Some(leasing) => leasing.delete_range(request).await,
            None => self.members.delete_range(request).await,
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let txn = request.get_ref().clone();
        let mut writing = Writing { cache: &self.cache, spans: Vec::new() };
        may_write(&txn.success, &mut writing.spans);
        may_write(&txn.failure, &mut writing.spans);
        let asked = self.cache.asked();
        let response = match &self.leasing {
            Some(leasing) => leasing.txn(request).await?,
            None => self.members.txn(request).await?,
        };
        writing.spans.clear();
        self.note(asked, caller.token(), &txn, response.get_ref());
        if let Some(order) = &self.order {
            order.seen(response.get_ref().header.as_ref());
        }
        Ok(response)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let revision = request.get_ref().revision;
        let response = self.members.compact(request).await?;
        self.cache.compacted(revision);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_older_than_what_was_shown_is_in_order() {
        let order = Order::new(3);
        let at = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
        let answer = |revision| RangeResponse { header: Some(at(revision)), ..Default::default() };
        assert_eq!(order.seen(Some(&at(5))), 5);
        assert_eq!(order.seen(Some(&at(4))), 4);
        assert!(!order.allows(&answer(4)), "5 was shown already");
        assert!(order.allows(&answer(5)));
    }

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    }

    fn inner(txn: TxnRequest) -> RequestOp {
        RequestOp { request: Some(request_op::Request::RequestTxn(txn)) }
    }

    fn point(key: &'static str) -> Span {
        Span::of(&key.into(), &Default::default())
    }

    #[test]
    fn only_the_branches_that_were_taken_have_written_down_to_the_innermost() {
        let nested =
            TxnRequest { success: vec![put("a")], failure: vec![put("b")], compare: Vec::new() };
        let txn = TxnRequest {
            success: vec![put("c"), inner(nested)],
            failure: vec![put("d")],
            compare: Vec::new(),
        };
        let answer = |response| ResponseOp { response: Some(response) };
        let put_answer = || answer(response_op::Response::ResponsePut(PutResponse::default()));
        let inner_answer = TxnResponse {
            succeeded: false,
            responses: vec![put_answer()],
            ..TxnResponse::default()
        };
        let response = TxnResponse {
            succeeded: true,
            responses: vec![put_answer(), answer(response_op::Response::ResponseTxn(inner_answer))],
            ..TxnResponse::default()
        };
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        took_place(&txn, &response, &mut writes, &mut reads);
        assert_eq!(writes, [point("c"), point("b")]);
        assert!(reads.is_empty());
        let mut all = Vec::new();
        may_write(&txn.success, &mut all);
        may_write(&txn.failure, &mut all);
        assert_eq!(all, [point("c"), point("a"), point("b"), point("d")]);
    }
}
