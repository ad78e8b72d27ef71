//! Calls from one service to another inside the process.
//!
//! Lock and election are recipes over keys, leases and watches (room `concurrency`). They run against the same
//! services that clients call, as in etcd, so that whatever those check (users, limits, quota, a
//! leader) is checked for the recipes too. A call carries the token and the connection of the
//! request that it is made for.

use bytes::Bytes;
use concurrency::Calls;
use futures_util::StreamExt;
use http::Extensions;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Status, Streaming};
use types::LeaseId;

use crate::listen::ConnectionInfo;

/// Metadata that says who calls.
const CREDENTIALS: [&str; 3] = ["token", "authorization", "grpcgateway-accept"];

/// The time to live of a lease that is made for a caller without one.
const SESSION_TTL_SECONDS: i64 = 60;

/// How often a watch that ended without a reason is opened again before that is an error.
const LOST_WATCHES_MAX: u32 = 3;

/// The services, called for one request.
#[derive(Clone)]
pub(super) struct LocalCalls {
    routes: Routes,
    metadata: MetadataMap,
    extensions: Extensions,
}

impl LocalCalls {
    pub(super) fn of<R>(routes: &Routes, request: &Request<R>) -> Self {
        let mut metadata = MetadataMap::new();
        for name in CREDENTIALS {
            if let Some(value) = request.metadata().get(name) {
                metadata.insert(name, value.clone());
            }
        }
        let mut extensions = Extensions::new();
        if let Some(info) = request.extensions().get::<ConnectionInfo>() {
            extensions.insert(info.clone());
        }
        Self { routes: routes.clone(), metadata, extensions }
    }

    fn request<M>(&self, message: M) -> Request<M> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }

    pub(super) async fn delete(&self, key: Vec<u8>) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
        let mut kv = KvClient::new(self.routes.clone());
        Ok(kv.delete_range(self.request(request)).await.map_err(as_unknown)?.into_inner())
    }

    /// The lease that a caller brings, or a new one, which nobody keeps alive.
    pub(super) async fn session(&self, lease: i64) -> Result<LeaseId, Status> {
        if lease != 0 {
            return Ok(LeaseId(lease));
        }
        let request = LeaseGrantRequest { ttl: SESSION_TTL_SECONDS, id: 0 };
        let mut leases = LeaseClient::new(self.routes.clone());
        let granted = leases.lease_grant(self.request(request)).await.map_err(as_unknown)?;
        Ok(LeaseId(granted.into_inner().id))
    }

    /// What happens to a range of keys from `revision` on; the stream lasts until it is dropped.
    pub(super) async fn watch(
        &self,
        key: Vec<u8>,
        range_end: Bytes,
        revision: i64,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let create = WatchCreateRequest {
            key: key.into(),
            range_end,
            start_revision: revision,
            ..Default::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The side of the requests stays open; what ends the watch is that nobody reads it.
        let requests = futures_util::stream::iter([create]).chain(futures_util::stream::pending());
        let mut watches =
            WatchClient::new(self.routes.clone()).max_decoding_message_size(usize::MAX);
        Ok(watches.watch(self.request(requests)).await.map_err(as_unknown)?.into_inner())
    }
}

impl Calls for LocalCalls {
    type Error = Status;

    async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, Status> {
        let mut kv = KvClient::new(self.routes.clone()).max_decoding_message_size(usize::MAX);
        Ok(kv.txn(self.request(txn)).await.map_err(as_unknown)?.into_inner())
    }

    async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Status> {
        let mut kv = KvClient::new(self.routes.clone()).max_decoding_message_size(usize::MAX);
        Ok(kv.range(self.request(range)).await.map_err(as_unknown)?.into_inner())
    }

    async fn wait_for_deletion(&self, key: Bytes, revision: i64) -> Result<(), Status> {
        for _ in 0..LOST_WATCHES_MAX {
            let mut watch = self.watch(key.to_vec(), Bytes::new(), revision).await?;
            while let Some(Ok(response)) = watch.next().await {
                if let Some(status) = why_canceled(&response) {
                    return Err(status);
                }
                if response.events.iter().any(|event| event.r#type() == DELETE) {
                    return Ok(());
                }
            }
        }
        Err(Status::unknown("lost watcher waiting for delete"))
    }
}

pub(super) const DELETE: proto::mvccpb::event::EventType = proto::mvccpb::event::EventType::Delete;

/// Why a watch ended, if the response says that it did.
pub(super) fn why_canceled(response: &WatchResponse) -> Option<Status> {
    if response.compact_revision != 0 {
        return Some(as_unknown(super::ApiError::Compacted.into()));
    }
    match (response.canceled, response.cancel_reason.as_str()) {
        (false, _) => None,
        (true, "") => Some(as_unknown(super::ApiError::FutureRevision.into())),
        (true, reason) => Some(Status::failed_precondition(reason)),
    }
}

/// The recipes of etcd are written with its client, whose errors have lost their code.
fn as_unknown(status: Status) -> Status {
    Status::unknown(status.message())
}

/// Does something when it is dropped, unless it was told not to: what a caller leaves behind that
/// goes away while it waits.
pub(super) struct OnAbandon<F: Future<Output = ()> + Send + 'static>(Option<F>);

impl<F: Future<Output = ()> + Send + 'static> OnAbandon<F> {
    pub(super) fn new(cleanup: F) -> Self {
        Self(Some(cleanup))
    }

    pub(super) fn disarm(mut self) {
        self.0 = None;
    }

    /// Does it now.
    pub(super) async fn run(mut self) {
        if let Some(cleanup) = self.0.take() {
            cleanup.await;
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Drop for OnAbandon<F> {
    fn drop(&mut self) {
        // Without a runtime the server has stopped, and the key goes with its lease.
        if let (Some(cleanup), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(cleanup);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_abandoned_is_cleaned_up_and_what_is_finished_is_not() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let say = |what: &'static str| {
            let sender = sender.clone();
            async move { sender.send(what).await.unwrap() }
        };
        OnAbandon::new(say("finished")).disarm();
        OnAbandon::new(say("run")).run().await;
        drop(OnAbandon::new(say("abandoned")));
        assert_eq!(receiver.recv().await, Some("run"));
        assert_eq!(receiver.recv().await, Some("abandoned"));
        drop(sender);
        assert_eq!(receiver.recv().await, None);
    }
}
