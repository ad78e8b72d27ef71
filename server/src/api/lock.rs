//! `v3lockpb.Lock`: a lock as a recipe over keys.
//!
//! A caller's place in the queue is the key `<name>/<lease in hex>`, attached to its lease; whoever
//! has the oldest holds the lock. So the lock is passed on when a lease ends, callers are served in
//! the order in which their keys were created, and the key's creation revision is a fencing number.
//! The lease of a caller is not kept alive here: that is the caller's to do.

use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::SortOrder;
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use proto::mvccpb::KeyValue;
use proto::v3lockpb::lock_server::{Lock, LockServer};
use proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::LeaseId;

use super::context::{ApiContext, admitted};
use super::local::{LocalCalls, OnAbandon, by_creation};

/// The service of one RPC thread.
pub(crate) struct LockService {
    context: ApiContext,
    routes: Routes,
}

/// `routes` are the services that the recipe is made of.
pub(crate) fn service(context: ApiContext, routes: Routes) -> LockServer<LockService> {
    let max = context.limits.message_bytes_max();
    LockServer::new(LockService { context, routes }).max_decoding_message_size(max)
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let lease = calls.session(request.lease).await?;
        let prefix = directory(&request.name);
        let key = candidate_key(&prefix, lease);
        let entered = calls.txn(enter(&prefix, &key, lease)).await?;
        let mut header = entered.header;
        let own = own_creation(&entered);
        let oldest = range_of(entered.responses.get(1)).first();
        if oldest.is_some_and(|oldest| oldest.create_revision != own) {
            let (cleaner, place) = (calls.clone(), key.clone());
            let leave = OnAbandon::new(async move {
                // If it fails, the key goes with its lease.
                let _ = cleaner.delete(place).await;
            });
            let waited = async {
                calls.wait_for_predecessors(&prefix, own - 1).await?;
                calls.range(point(&key)).await
            };
            match waited.await {
                Ok(found) if found.kvs.is_empty() => {
                    leave.disarm();
                    return Err(Status::unknown("mutex: session is expired"));
                }
                Ok(found) => {
                    leave.disarm();
                    header = found.header;
                }
                Err(status) => {
                    leave.run().await;
                    return Err(status);
                }
            }
        }
        Ok(Response::new(LockResponse { header, key: key.into() }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let calls = LocalCalls::of(&self.routes, &request);
        let request = admitted(&self.context, request, false)?;
        let deleted = calls.delete(request.key.to_vec()).await?;
        Ok(Response::new(UnlockResponse { header: deleted.header }))
    }
}

/// Takes a place in the queue, unless the lease has one, and looks who is first.
fn enter(prefix: &[u8], key: &[u8], lease: LeaseId) -> TxnRequest {
    let first = || operation(Operation::RequestRange(by_creation(prefix, SortOrder::Ascend)));
    TxnRequest {
        compare: vec![created_at(key, 0)],
        success: vec![put(key, &[], lease), first()],
        failure: vec![operation(Operation::RequestRange(point(key))), first()],
    }
}

/// The revision at which the key of the transaction's caller was created.
pub(super) fn own_creation(entered: &TxnResponse) -> i64 {
    let revision = entered.header.as_ref().map_or(0, |header| header.revision);
    match entered.succeeded {
        true => revision,
        false => range_of(entered.responses.first()).first().map_or(0, |kv| kv.create_revision),
    }
}

/// What a range inside a transaction found.
pub(super) fn range_of(response: Option<&ResponseOp>) -> &[KeyValue] {
    match response.and_then(|response| response.response.as_ref()) {
        Some(Answer::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

/// Where the candidates of a name have their keys.
pub(super) fn directory(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

pub(super) fn candidate_key(prefix: &[u8], lease: LeaseId) -> Vec<u8> {
    // Go prints a negative number with its sign; no lease has one.
    let id = match lease.0 < 0 {
        true => format!("-{:x}", lease.0.unsigned_abs()),
        false => format!("{:x}", lease.0),
    };
    [prefix, id.as_bytes()].concat()
}

pub(super) fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.to_vec().into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

pub(super) fn put(key: &[u8], value: &[u8], lease: LeaseId) -> RequestOp {
    operation(Operation::RequestPut(PutRequest {
        key: key.to_vec().into(),
        value: value.to_vec().into(),
        lease: lease.0,
        ..Default::default()
    }))
}

pub(super) fn point(key: &[u8]) -> RangeRequest {
    RangeRequest { key: key.to_vec().into(), ..Default::default() }
}

pub(super) fn operation(request: Operation) -> RequestOp {
    RequestOp { request: Some(request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_candidates_are_those_of_go_clients() {
        let prefix = directory(b"my");
        assert_eq!(candidate_key(&prefix, LeaseId(0x2040_a1fe_b068_6807)), b"my/2040a1feb0686807");
        assert_eq!(candidate_key(&prefix, LeaseId(7)), b"my/7");
        assert_eq!(candidate_key(&prefix, LeaseId(-1)), b"my/-1");
    }
}
