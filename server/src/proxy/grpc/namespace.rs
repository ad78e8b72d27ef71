//! A part of the keys that clients of the proxy take for all of them (`--namespace`).
//!
//! Keys of requests get the prefix, keys of answers lose it, and a range that is open to the end ends
//! where the prefix does. As in etcd, locks and elections are not in the namespace.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::kv_server::Kv;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::lease_server::Lease;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::watch_server::Watch;
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
        *key = [&self.0[..], key].concat().into();
    }

    fn add_range(&self, key: &mut Bytes, end: &mut Bytes) {
        self.add(key);
        match &end[..] {
            [] => {}
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

/// The services whose messages have keys, with the prefix around them.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    forward: Forward,
    prefix: Prefix,
    response_bytes_max: usize,
}

impl Namespace {
    pub(super) fn new(forward: Forward, prefix: &str, response_bytes_max: usize) -> Self {
        let prefix = Prefix(Bytes::copy_from_slice(prefix.as_bytes()));
        Self { forward, prefix, response_bytes_max }
    }

    fn kv(&self) -> KvClient<Forward> {
        KvClient::new(self.forward.clone()).max_decoding_message_size(self.response_bytes_max)
    }

    fn lease(&self) -> LeaseClient<Forward> {
        LeaseClient::new(self.forward.clone()).max_decoding_message_size(self.response_bytes_max)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Namespace {
    type RangeStreamStream = Answers<RangeStreamResponse>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let mut request = carried(request, |message| message);
        let range = request.get_mut();
        given(&range.key)?;
        self.prefix.add_range(&mut range.key, &mut range.range_end);
        let mut response = self.kv().range(request).await?;
        self.prefix.strip_all(&mut response.get_mut().kvs);
        Ok(response)
    }

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut request = carried(request, |message| message);
        let range = request.get_mut();
        given(&range.key)?;
        self.prefix.add_range(&mut range.key, &mut range.range_end);
        let parts = self.kv().range_stream(request).await?.into_inner();
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
        let mut request = carried(request, |message| message);
        given(&request.get_ref().key)?;
        self.prefix.add(&mut request.get_mut().key);
        let mut response = self.kv().put(request).await?;
        self.prefix.strip_all(&mut response.get_mut().prev_kv);
        Ok(response)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let mut request = carried(request, |message| message);
        let delete = request.get_mut();
        given(&delete.key)?;
        self.prefix.add_range(&mut delete.key, &mut delete.range_end);
        let mut response = self.kv().delete_range(request).await?;
        self.prefix.strip_all(&mut response.get_mut().prev_kvs);
        Ok(response)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let mut request = carried(request, |message| message);
        self.prefix.add_txn(request.get_mut())?;
        let mut response = self.kv().txn(request).await?;
        response.get_mut().responses.iter_mut().for_each(|op| self.prefix.strip_op(op));
        Ok(response)
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.kv().compact(carried(request, |message| message)).await
    }
}

#[tonic::async_trait]
impl Watch for Namespace {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let prefix = self.prefix.clone();
        let request = carried(request, |messages| {
            messages.map_while(Result::ok).map(move |mut message| {
                if let Some(RequestUnion::CreateRequest(create)) = &mut message.request_union {
                    prefix.add_range(&mut create.key, &mut create.range_end);
                }
                message
            })
        });
        let client = WatchClient::new(self.forward.clone());
        let mut client = client.max_decoding_message_size(self.response_bytes_max);
        let responses = client.watch(request).await?.into_inner();
        let prefix = self.prefix.clone();
        let responses = responses.map(move |response| {
            response.map(|mut response| {
                for event in &mut response.events {
                    prefix.strip_all(event.kv.iter_mut().chain(&mut event.prev_kv));
                }
                response
            })
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

#[tonic::async_trait]
impl Lease for Namespace {
    type LeaseKeepAliveStream = Streaming<LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        self.lease().lease_grant(carried(request, |message| message)).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.lease().lease_revoke(carried(request, |message| message)).await
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let request = carried(request, |messages| messages.map_while(Result::ok));
        self.lease().lease_keep_alive(request).await
    }

    /// Keys of others that have the lease too are not told.
    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let request = carried(request, |message| message);
        let mut response = self.lease().lease_time_to_live(request).await?;
        let keys = &mut response.get_mut().keys;
        keys.retain(|key| key.starts_with(&self.prefix.0));
        keys.iter_mut().for_each(|key| self.prefix.strip(key));
        Ok(response)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.lease().lease_leases(carried(request, |message| message)).await
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
