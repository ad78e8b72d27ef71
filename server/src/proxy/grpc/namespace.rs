//! The calls whose messages have keys, on their way to the members and back.
//!
//! With `--namespace` clients take a part of the keys for all of them: keys of requests get the prefix,
//! keys of answers lose it, and a range that is open to the end ends where the prefix does. As in etcd,
//! locks and elections are not in the namespace. `--max-send-bytes` and `--max-recv-bytes` are kept here
//! too, in etcd's words.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use prost::Message;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::kv_server::Kv;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::*;
use proto::mvccpb::KeyValue;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::forward::{Forward, carried};

/// The prefix of all keys.
#[derive(Clone, Debug)]
struct Prefix(Bytes);

impl Prefix {
    fn add(&self, key: &mut Bytes) {
        if self.0.is_empty() {
            return;
        }
        *key = [&self.0[..], key].concat().into();
    }

    fn add_range(&self, key: &mut Bytes, end: &mut Bytes) {
        self.add(key);
        match &end[..] {
            [] => {}
            _ if self.0.is_empty() => {}
            [0] => *end = client::prefix_range_end(&self.0),
            _ => self.add(end),
        }
    }

    fn strip(&self, key: &mut Bytes) {
        if key.starts_with(&self.0) {
            *key = key.slice(self.0.len()..);
        }
    }

    fn strip_all<'k>(&self, all: impl IntoIterator<Item = &'k mut KeyValue>) {
        for kv in all {
            self.strip(&mut kv.key);
        }
    }

    fn add_op(&self, op: &mut RequestOp) -> Result<(), Status> {
        match &mut op.request {
            Some(request_op::Request::RequestRange(range)) => {
                given(&range.key)?;
                self.add_range(&mut range.key, &mut range.range_end);
            }
            Some(request_op::Request::RequestPut(put)) => {
                given(&put.key)?;
                self.add(&mut put.key);
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                given(&delete.key)?;
                self.add_range(&mut delete.key, &mut delete.range_end);
            }
            Some(request_op::Request::RequestTxn(txn)) => self.add_txn(txn)?,
            None => {}
        }
        Ok(())
    }

    /// Recursion ends where decoding did: messages are not nested more than a hundred times.
    fn add_txn(&self, txn: &mut TxnRequest) -> Result<(), Status> {
        for compare in &mut txn.compare {
            given(&compare.key)?;
            self.add_range(&mut compare.key, &mut compare.range_end);
        }
        txn.success.iter_mut().chain(&mut txn.failure).try_for_each(|op| self.add_op(op))
    }

    fn strip_op(&self, op: &mut ResponseOp) {
        match &mut op.response {
            Some(response_op::Response::ResponseRange(range)) => self.strip_all(&mut range.kvs),
            Some(response_op::Response::ResponsePut(put)) => self.strip_all(&mut put.prev_kv),
            Some(response_op::Response::ResponseDeleteRange(delete)) => {
                self.strip_all(&mut delete.prev_kvs);
            }
            Some(response_op::Response::ResponseTxn(txn)) => {
                txn.responses.iter_mut().for_each(|op| self.strip_op(op));
            }
            None => {}
        }
    }
}

/// A key that is not there must stay so: with the prefix it would be one.
fn given(key: &[u8]) -> Result<(), Status> {
    match key.is_empty() {
        true => Err(Status::invalid_argument("etcdserver: key is not provided")),
        false => Ok(()),
    }
}

/// How long messages to and from the members may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) send: usize,
    pub(super) receive: usize,
}

/// The services whose messages have keys, with the prefix around them.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    forward: Forward,
    prefix: Prefix,
    limits: Limits,
}

impl Namespace {
    pub(super) fn new(forward: Forward, prefix: &str, limits: Limits) -> Self {
        Self { forward, prefix: Prefix(Bytes::copy_from_slice(prefix.as_bytes())), limits }
    }

    fn kv(&self) -> KvClient<Forward> {
        KvClient::new(self.forward.clone()).max_decoding_message_size(self.limits.receive)
    }

    fn lease(&self) -> LeaseClient<Forward> {
        LeaseClient::new(self.forward.clone()).max_decoding_message_size(self.limits.receive)
    }

    /// Whether a message may be sent, with its prefix.
    fn sendable<T: Message>(&self, request: Request<T>) -> Result<Request<T>, Status> {
        let (length, limit) = (request.get_ref().encoded_len(), self.limits.send);
        if length <= limit {
            return Ok(request);
        }
        let text = format!("trying to send message larger than max ({length} vs. {limit})");
        Err(Status::resource_exhausted(text))
    }

    /// The read that tells whether a caller may watch a range, and how far the members are.
    pub(super) async fn look_at(
        &self,
        request: Request<WatchCreateRequest>,
    ) -> Result<ResponseHeader, Status> {
        let mut request = request.map(|watch| RangeRequest {
            key: watch.key,
            range_end: watch.range_end,
            serializable: true,
            count_only: true,
            limit: 1,
            ..RangeRequest::default()
        });
        let range = request.get_mut();
        self.prefix.add_range(&mut range.key, &mut range.range_end);
        if range.key.is_empty() {
            range.key = Bytes::from_static(b"\0");
        }
        let response =
            self.kv().range(self.sendable(request)?).await.map_err(too_long)?.into_inner();
        response.header.ok_or_else(|| Status::internal("a member has answered without a header"))
    }

    /// One watch, on a stream of its own; what `requests` has asks it for more.
    pub(super) async fn watch(
        &self,
        request: Request<WatchCreateRequest>,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<WatchAnswers, Status> {
        let prefix = self.prefix.clone();
        let request = request.map(move |mut create| {
            prefix.add_range(&mut create.key, &mut create.range_end);
            let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
            tokio_stream::once(WatchRequest { request_union }).chain(requests)
        });
        let client = WatchClient::new(self.forward.clone());
        let mut client = client.max_decoding_message_size(self.limits.receive);
        let answers = client.watch(request).await?.into_inner();
        Ok(WatchAnswers { answers, prefix: self.prefix.clone() })
    }

    /// A stream of renewals. It opens when the first of them is answered.
    pub(super) async fn renew(
        &self,
        request: Request<impl Stream<Item = LeaseKeepAliveRequest> + Send + 'static>,
    ) -> Result<Streaming<LeaseKeepAliveResponse>, Status> {
        Ok(self.lease().lease_keep_alive(request).await?.into_inner())
    }

    pub(super) async fn grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        self.lease().lease_grant(carried(request)).await
    }

    pub(super) async fn revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.lease().lease_revoke(carried(request)).await
    }

    /// Keys of others that have the lease too are not told.
    pub(super) async fn time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let mut response = self.lease().lease_time_to_live(carried(request)).await?;
        let keys = &mut response.get_mut().keys;
        keys.retain(|key| key.starts_with(&self.prefix.0));
        keys.iter_mut().for_each(|key| self.prefix.strip(key));
        Ok(response)
    }

    pub(super) async fn leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.lease().lease_leases(carried(request)).await
    }
}

/// What a watch of the members sends.
#[derive(Debug)]
pub(super) struct WatchAnswers {
    answers: Streaming<WatchResponse>,
    prefix: Prefix,
}

impl WatchAnswers {
    /// The next message. Cancellation safe.
    pub(super) async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        let Some(mut response) = self.answers.message().await? else { return Ok(None) };
        for event in &mut response.events {
            self.prefix.strip_all(event.kv.iter_mut().chain(&mut event.prev_kv));
        }
        Ok(Some(response))
    }
}

/// A message that was longer than it may be, in the words of grpc-go.
fn too_long(status: Status) -> Status {
    const TONICS: &str = "Error, decoded message length too large: found ";
    let numbers = status.message().strip_prefix(TONICS);
    let numbers = numbers.and_then(|rest| rest.split_once(" bytes, the limit is: "));
    match numbers {
        Some((found, limit)) => Status::resource_exhausted(format!(
            "grpc: received message larger than max ({found} vs. {})",
            limit.trim_end_matches(" bytes")
        )),
        None => status,
    }
}

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Namespace {
    type RangeStreamStream = Answers<RangeStreamResponse>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let mut request = carried(request);
        let range = request.get_mut();
        given(&range.key)?;
        self.prefix.add_range(&mut range.key, &mut range.range_end);
        let mut response = self.kv().range(self.sendable(request)?).await.map_err(too_long)?;
        self.prefix.strip_all(&mut response.get_mut().kvs);
        Ok(response)
    }

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut request = carried(request);
        let range = request.get_mut();
        given(&range.key)?;
        self.prefix.add_range(&mut range.key, &mut range.range_end);
        let parts =
            self.kv().range_stream(self.sendable(request)?).await.map_err(too_long)?.into_inner();
        let prefix = self.prefix.clone();
        let parts = parts.map(move |part| {
            part.map(|mut part| {
                prefix.strip_all(part.range_response.iter_mut().flat_map(|range| &mut range.kvs));
                part
            })
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let mut request = carried(request);
        given(&request.get_ref().key)?;
        self.prefix.add(&mut request.get_mut().key);
        let mut response = self.kv().put(self.sendable(request)?).await.map_err(too_long)?;
        self.prefix.strip_all(&mut response.get_mut().prev_kv);
        Ok(response)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let mut request = carried(request);
        let delete = request.get_mut();
        given(&delete.key)?;
        self.prefix.add_range(&mut delete.key, &mut delete.range_end);
        let mut response =
            self.kv().delete_range(self.sendable(request)?).await.map_err(too_long)?;
        self.prefix.strip_all(&mut response.get_mut().prev_kvs);
        Ok(response)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let mut request = carried(request);
        self.prefix.add_txn(request.get_mut())?;
        let mut response = self.kv().txn(self.sendable(request)?).await.map_err(too_long)?;
        response.get_mut().responses.iter_mut().for_each(|op| self.prefix.strip_op(op));
        Ok(response)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.kv().compact(carried(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_prefix() {
        let prefix = Prefix(Bytes::from_static(b"p/"));
        for (key, end, expected_key, expected_end) in [
            (&b"a"[..], &b""[..], &b"p/a"[..], &b""[..]),
            (b"a", b"b", b"p/a", b"p/b"),
            (b"a", b"\0", b"p/a", b"p0"),
            (b"\0", b"\0", b"p/\0", b"p0"),
        ] {
            let (mut key, mut end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(end));
            prefix.add_range(&mut key, &mut end);
            assert_eq!((&key[..], &end[..]), (expected_key, expected_end));
        }
    }

    #[test]
    fn nested_transactions_are_changed_all_the_way_down() {
        let prefix = Prefix(Bytes::from_static(b"p/"));
        let put = |key: &'static [u8]| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: key.into(),
                ..PutRequest::default()
            })),
        };
        let nested = |key| TxnRequest {
            compare: vec![Compare { key: "c".into(), ..Compare::default() }],
            failure: vec![put(key)],
            ..TxnRequest::default()
        };
        let outer = |key| TxnRequest {
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestTxn(nested(key))),
            }],
            ..TxnRequest::default()
        };
        let mut txn = outer(b"k");
        prefix.add_txn(&mut txn).unwrap();
        let mut expected = outer(b"p/k");
        if let Some(request_op::Request::RequestTxn(inner)) = &mut expected.success[0].request {
            inner.compare[0].key = "p/c".into();
        }
        assert_eq!(txn, expected);
        assert_eq!(
            prefix.add_txn(&mut outer(b"")).unwrap_err().message(),
            "etcdserver: key is not provided"
        );
    }
}
