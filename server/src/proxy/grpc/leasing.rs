//! Leasing (`--experimental-leasing-prefix`): the proxy holds keys that its clients read, and answers
//! linearizable reads of them without the members until somebody else wants to write.
//!
//! The protocol is that of etcd's package `leasing`, so that proxies of etcd and ours may share a prefix.
//! That a key is held is said by another key, the prefix with the key behind it, which is put with the
//! lease of the proxy's session. Every write, of whichever proxy, has the condition that nobody else holds
//! its keys. Who fails that puts the word `REVOKE` there and waits until the holder has forgotten what it
//! knows and deleted the key. A holder that is gone loses its keys with its lease. Writes that go past such
//! proxies break this, as they do with etcd's.
//!
//! Where this differs from etcd's, it is to be right: an answer is used only while the lease is certain to
//! last ([`Held`]), a key with a lease of its own is never remembered, and nothing is remembered for callers
//! with a token, because permissions may change without a write. When the proxy is stopped it gives its
//! keys back.
//!
//! Deliberately absent: transactions that only read are answered by the members.

mod held;
mod session;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::kv_server::Kv;
use proto::etcdserverpb::*;
use proto::mvccpb::event::EventType;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::forward::{Caller, carried};
use super::namespace::Namespace;
use super::watches::passes;

use held::{Held, Holding, Look, part};

/// What is put where a key is held by somebody else.
const REVOKE: &[u8] = b"REVOKE";
/// Pause before something that has failed is tried again, as in clientv3.
const PAUSE: Duration = Duration::from_millis(100);

/// The keys of this proxy, and the way to the members.
#[derive(Debug)]
pub(super) struct Leasing {
    members: Namespace,
    prefix: Bytes,
    held: Mutex<Held>,
}

/// The keys from one up to another, or one key; as in requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Keys {
    key: Bytes,
    range_end: Bytes,
}

impl Leasing {
    pub(super) fn new(members: Namespace, prefix: &str) -> Arc<Self> {
        let prefix = Bytes::copy_from_slice(prefix.as_bytes());
        Arc::new(Self { members, prefix, held: Mutex::default() })
    }

    /// The members have answered with this header.
    pub(super) fn seen(&self, header: Option<&ResponseHeader>) {
        self.lock().seen(header.map_or(0, |header| header.revision));
    }

    /// A read: from memory, or by the members.
    pub(super) async fn range(
        self: &Arc<Self>,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let range = request.get_ref();
        if !is_plain(range) || caller != Caller::default() {
            return self.members.range(request).await;
        }
        let key = range.key.clone();
        let look = self.lock().look(&key, Instant::now());
        let answer = match look {
            Look::Known(answer) => answer,
            Look::Ask => return self.members.range(request).await,
            Look::Fill(number) => {
                let answer = self.members.range(Request::new(whole(&key))).await?.into_inner();
                self.lock().fill(&key, number, &answer);
                answer
            }
            Look::Acquire { lease, number, instead } => {
                instead.into_iter().for_each(|holding| self.give_back(holding));
                // It is finished although the client may go.
                let acquiring = self.clone().acquire(key, lease, number);
                let acquired = tokio::spawn(acquiring).await;
                acquired.map_err(|error| Status::internal(error.to_string()))??
            }
        };
        Ok(Response::new(part(answer, request.get_ref())))
    }

    async fn acquire(
        self: Arc<Self>,
        key: Bytes,
        lease: i64,
        number: u64,
    ) -> Result<RangeResponse, Status> {
        let holder = self.holder(&key);
        let hold = PutRequest { key: holder.clone(), lease, ..PutRequest::default() };
        let none = |key: &Bytes, target, target_union| Compare {
            key: key.clone(),
            target: target as i32,
            target_union: Some(target_union),
            ..Compare::default()
        };
        let txn = TxnRequest {
            compare: vec![
                none(
                    &holder,
                    compare::CompareTarget::Create,
                    compare::TargetUnion::CreateRevision(0),
                ),
                none(&key, compare::CompareTarget::Lease, compare::TargetUnion::Lease(0)),
            ],
            success: vec![op_range(whole(&key)), op(request_op::Request::RequestPut(hold))],
            failure: vec![op_range(whole(&key))],
        };
        let response = self.members.txn(Request::new(txn)).await;
        let response = response.inspect_err(|_| self.lock().not_acquired(&key, number))?;
        let TxnResponse { header, succeeded, responses } = response.into_inner();
        let since = header.map_or(0, |header| header.revision);
        let answer = match responses.into_iter().next().and_then(|it| it.response) {
            Some(response_op::Response::ResponseRange(range)) => RangeResponse { header, ..range },
            _ => {
                self.lock().not_acquired(&key, number);
                return Err(Status::internal("a member has answered a read with something else"));
            }
        };
        if !succeeded {
            self.lock().not_acquired(&key, number);
        } else if !self.lock().acquired(&key, number, since, &answer) {
            self.give_back(Holding { key, since });
        }
        Ok(answer)
    }

    pub(super) async fn put(
        self: &Arc<Self>,
        request: Request<PutRequest>,
    ) -> Result<Response<PutResponse>, Status> {
        let (metadata, put) = taken_apart(request);
        let keys = vec![Keys { key: put.key.clone(), range_end: Bytes::new() }];
        let written = op(request_op::Request::RequestPut(put));
        match self.write(metadata, keys, written).await? {
            (header, response_op::Response::ResponsePut(answer)) => {
                Ok(Response::new(PutResponse { header, ..answer }))
            }
            _ => Err(mistaken()),
        }
    }

    pub(super) async fn delete_range(
        self: &Arc<Self>,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (metadata, delete) = taken_apart(request);
        let keys = vec![Keys { key: delete.key.clone(), range_end: delete.range_end.clone() }];
        let written = op(request_op::Request::RequestDeleteRange(delete));
        match self.write(metadata, keys, written).await? {
            (header, response_op::Response::ResponseDeleteRange(answer)) => {
                Ok(Response::new(DeleteRangeResponse { header, ..answer }))
            }
            _ => Err(mistaken()),
        }
    }

    pub(super) async fn txn(
        self: &Arc<Self>,
        request: Request<TxnRequest>,
    ) -> Result<Response<TxnResponse>, Status> {
        let mut keys = Vec::new();
        may_write(request.get_ref(), &mut keys);
        keys.sort();
        keys.dedup();
        if keys.is_empty() {
            return self.members.txn(request).await;
        }
        let (metadata, txn) = taken_apart(request);
        let written = op(request_op::Request::RequestTxn(txn));
        match self.write(metadata, keys, written).await? {
            (header, response_op::Response::ResponseTxn(answer)) => {
                Ok(Response::new(TxnResponse { header, ..answer }))
            }
            _ => Err(mistaken()),
        }
    }

    /// Makes a write once nobody else holds any of its keys.
    async fn write(
        self: &Arc<Self>,
        metadata: MetadataMap,
        keys: Vec<Keys>,
        written: RequestOp,
    ) -> Result<(Option<ResponseHeader>, response_op::Response), Status> {
        let holders: Vec<RequestOp> = keys.iter().map(|keys| self.holders(keys)).collect();
        loop {
            let mut writing = Writing::begin(self, &keys);
            let txn = TxnRequest {
                compare: keys.iter().map(|keys| self.condition(keys, &writing.held)).collect(),
                success: vec![written.clone()],
                failure: holders.clone(),
            };
            let response = self.members.txn(with(&metadata, txn)).await?.into_inner();
            writing.end(response.header.as_ref());
            if response.succeeded {
                let answer = response.responses.into_iter().next().and_then(|it| it.response);
                return answer.map(|answer| (response.header, answer)).ok_or_else(mistaken);
            }
            for response in response.responses {
                if let Some(response_op::Response::ResponseRange(range)) = response.response {
                    for kv in range.kvs {
                        self.revoke(&metadata, kv.key, kv.create_revision).await?;
                    }
                }
            }
        }
    }

    /// That nobody but us holds keys. Of a range nobody may hold anything, not even we.
    fn condition(&self, keys: &Keys, held: &[Holding]) -> Compare {
        let since = held.iter().find(|it| keys.range_end.is_empty() && it.key == keys.key);
        let below = since.map_or(0, |holding| holding.since) + 1;
        let holders = self.behind_prefix(keys);
        Compare {
            key: holders.key,
            range_end: holders.range_end,
            result: compare::CompareResult::Less as i32,
            target: compare::CompareTarget::Create as i32,
            target_union: Some(compare::TargetUnion::CreateRevision(below)),
        }
    }

    /// The read of who holds keys.
    fn holders(&self, keys: &Keys) -> RequestOp {
        let Keys { key, range_end } = self.behind_prefix(keys);
        op_range(RangeRequest { key, range_end, keys_only: true, ..RangeRequest::default() })
    }

    /// Asks the holder of a key to let it go, and waits until it has, or its session has ended.
    async fn revoke(
        &self,
        metadata: &MetadataMap,
        holder: Bytes,
        created: i64,
    ) -> Result<(), Status> {
        let put = PutRequest {
            key: holder.clone(),
            value: REVOKE.into(),
            ignore_lease: true,
            ..PutRequest::default()
        };
        let ask = if_created(&holder, created, op(request_op::Request::RequestPut(put)));
        let response = self.members.txn(with(metadata, ask)).await?.into_inner();
        if !response.succeeded {
            return Ok(());
        }
        let start_revision = response.header.map_or(0, |header| header.revision) + 1;
        let filters = vec![watch_create_request::FilterType::Noput as i32];
        let create = WatchCreateRequest {
            key: holder,
            start_revision,
            filters,
            ..WatchCreateRequest::default()
        };
        match self.members.watch(with(metadata, create), tokio_stream::pending()).await {
            Ok(mut answers) => {
                while let Ok(Some(response)) = answers.next().await {
                    let is_end = |event: &proto::mvccpb::Event| event.r#type() == EventType::Delete;
                    if response.canceled || response.events.iter().any(is_end) {
                        return Ok(());
                    }
                }
            }
            Err(status) if passes(&status) => {}
            Err(status) => return Err(status),
        }
        // The watch is lost. The write is tried again, and finds out.
        sleep(PAUSE).await;
        Ok(())
    }

    /// Lets go of a key in the background: deletes what says that it is held.
    fn give_back(self: &Arc<Self>, holding: Holding) {
        let leasing = self.clone();
        tokio::spawn(async move {
            let holder = leasing.holder(&holding.key);
            let delete =
                DeleteRangeRequest { key: holder.clone(), ..DeleteRangeRequest::default() };
            let delete = op(request_op::Request::RequestDeleteRange(delete));
            let txn = if_created(&holder, holding.since, delete);
            // Without a session the members do it themselves.
            while leasing.lock().is_valid(Instant::now()) {
                match leasing.members.txn(Request::new(txn.clone())).await {
                    Err(status) if passes(&status) => sleep(PAUSE).await,
                    Err(status) => return tracing::warn!(%status, "failed to give back a key"),
                    Ok(_) => return,
                }
            }
        });
    }

    /// The key that says who holds a key.
    fn holder(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], key].concat().into()
    }

    fn behind_prefix(&self, keys: &Keys) -> Keys {
        let range_end = match &keys.range_end[..] {
            [] => Bytes::new(),
            [0] => client::prefix_range_end(&self.prefix),
            end => self.holder(end),
        };
        Keys { key: self.holder(&keys.key), range_end }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write under way. If it ends without an answer, it may still take place; then its keys are let go.
struct Writing<'l> {
    leasing: &'l Arc<Leasing>,
    held: Vec<Holding>,
}

impl<'l> Writing<'l> {
    fn begin(leasing: &'l Arc<Leasing>, keys: &[Keys]) -> Self {
        let points = keys.iter().filter(|keys| keys.range_end.is_empty());
        let mut all = leasing.lock();
        let held = points.filter_map(|keys| all.begin_write(&keys.key)).collect();
        drop(all);
        Self { leasing, held }
    }

    fn end(&mut self, header: Option<&ResponseHeader>) {
        let mut all = self.leasing.lock();
        self.held.drain(..).for_each(|holding| all.end_write(&holding));
        all.seen(header.map_or(0, |header| header.revision));
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for holding in self.held.drain(..) {
            self.leasing.lock().let_go(&holding, Instant::now());
            self.leasing.give_back(holding);
        }
    }
}

/// Whether it is the linearizable read of one key as it is now.
fn is_plain(range: &RangeRequest) -> bool {
    let of_key = RangeRequest {
        limit: range.limit,
        sort_order: range.sort_order,
        sort_target: range.sort_target,
        keys_only: range.keys_only,
        count_only: range.count_only,
        ..whole(&range.key)
    };
    *range == of_key && !range.key.is_empty() && range.limit >= 0
}

fn whole(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn op_range(range: RangeRequest) -> RequestOp {
    op(request_op::Request::RequestRange(range))
}

fn if_created(holder: &Bytes, at: i64, then: RequestOp) -> TxnRequest {
    let compare = Compare {
        key: holder.clone(),
        target: compare::CompareTarget::Create as i32,
        target_union: Some(compare::TargetUnion::CreateRevision(at)),
        ..Compare::default()
    };
    TxnRequest { compare: vec![compare], success: vec![then], failure: Vec::new() }
}

/// All that a transaction may write, whichever branches are taken.
fn may_write(txn: &TxnRequest, keys: &mut Vec<Keys>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(request_op::Request::RequestPut(put)) => {
                keys.push(Keys { key: put.key.clone(), range_end: Bytes::new() });
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                keys.push(Keys { key: delete.key.clone(), range_end: delete.range_end.clone() });
            }
            Some(request_op::Request::RequestTxn(txn)) => may_write(txn, keys),
            Some(request_op::Request::RequestRange(_)) | None => {}
        }
    }
}

/// What goes with every request that is made for a client's, and the client's.
fn taken_apart<T>(request: Request<T>) -> (MetadataMap, T) {
    let (metadata, _, message) = carried(request).into_parts();
    (metadata, message)
}

fn with<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata.clone();
    request
}

fn mistaken() -> Status {
    Status::internal("a member has answered a write with something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_linearizable_reads_of_one_key_as_it_is_are_remembered() {
        let plain = whole(&"k".into());
        assert!(is_plain(&plain));
        assert!(is_plain(&RangeRequest { keys_only: true, limit: 1, ..plain.clone() }));
        for other in [
            RangeRequest { serializable: true, ..plain.clone() },
            RangeRequest { revision: 7, ..plain.clone() },
            RangeRequest { range_end: "l".into(), ..plain.clone() },
            RangeRequest { min_mod_revision: 7, ..plain.clone() },
            RangeRequest { max_create_revision: 7, ..plain.clone() },
            whole(&Bytes::new()),
        ] {
            assert!(!is_plain(&other), "{other:?}");
        }
    }
}
