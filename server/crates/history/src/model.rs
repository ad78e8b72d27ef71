//! etcd's key-value semantics over a history, written a second time and slowly.
//!
//! It shares no code with the members, so that a mistake would have to be made twice.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::mvccpb::KeyValue;

use crate::{Change, Request, Response};

/// Every version of every key.
#[derive(Clone, Debug)]
pub struct Model {
    versions: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    revision: i64,
}

/// One transaction on top of a model.
struct Transaction<'m> {
    model: &'m Model,
    /// The revision that it reads at, below its own writes.
    base: i64,
    written: BTreeMap<Bytes, Option<KeyValue>>,
    changes: Vec<Change>,
}

fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

impl Default for Model {
    fn default() -> Self {
        Self { versions: BTreeMap::new(), revision: 1 }
    }
}

impl Model {
    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// A key as it was at a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let versions = self.versions.get(key)?;
        let count = versions.partition_point(|(at, _)| *at <= revision);
        versions[..count].last()?.1.as_ref()
    }

    /// Every key at a revision.
    pub fn all_at(&self, revision: i64) -> Vec<KeyValue> {
        self.range_at(&[], &[0], revision)
    }

    fn range_at(&self, start: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        let keys = self.versions.keys().filter(|key| in_range(key, start, end));
        keys.filter_map(|key| self.at(key, revision)).cloned().collect()
    }

    /// The keys attached to a lease now.
    pub fn attached(&self, lease: i64) -> Vec<Bytes> {
        let newest = |versions: &Vec<(i64, Option<KeyValue>)>| versions.last()?.1.clone();
        let keys = self.versions.values().filter_map(newest);
        keys.filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
    }

    /// The oldest key of a range at a revision.
    pub fn oldest(&self, key: &[u8], end: &[u8], revision: i64) -> Option<&KeyValue> {
        let keys = self.versions.keys().filter(|known| in_range(known, key, end));
        keys.filter_map(|key| self.at(key, revision)).min_by_key(|kv| kv.create_revision)
    }

    /// Takes over the changes of the next revision.
    pub fn push(&mut self, revision: i64, changes: &[Change]) {
        self.revision = revision;
        for change in changes {
            let value = (!change.delete).then(|| change.key_value.clone());
            let versions = self.versions.entry(change.key_value.key.clone()).or_default();
            versions.push((revision, value));
        }
    }

    /// What a request on top of revision `base` answers and changes; headers are left out.
    pub fn execute<Other>(
        &self,
        request: &Request<Other>,
        base: i64,
    ) -> (Option<Response>, Vec<Change>) {
        let mut transaction =
            Transaction { model: self, base, written: BTreeMap::new(), changes: Vec::new() };
        let response = match request {
            Request::Put(put) => Some(Response::Put(transaction.put(put))),
            Request::Delete(delete) => Some(Response::Delete(transaction.delete(delete))),
            Request::Txn(txn) => Some(Response::Txn(transaction.txn(txn))),
            Request::Range(range) => Some(Response::Range(transaction.range(range))),
            Request::Revoke(revoke) => {
                transaction.revoke(revoke.id);
                Some(Response::Revoke(pb::LeaseRevokeResponse::default()))
            }
            Request::Compact(_) | Request::Grant(_) | Request::Other(_) => None,
        };
        (response, transaction.changes)
    }
}

impl Transaction<'_> {
    fn get(&self, key: &[u8]) -> Option<KeyValue> {
        match self.written.get(key) {
            Some(written) => written.clone(),
            None => self.model.at(key, self.base).cloned(),
        }
    }

    fn keys(&self, start: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let known = self.model.versions.keys().chain(self.written.keys());
        let mut keys: Vec<&Bytes> = known.filter(|key| in_range(key, start, end)).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter().filter_map(|key| self.get(key)).collect()
    }

    fn write(&mut self, change: Change) {
        let value = (!change.delete).then(|| change.key_value.clone());
        self.written.insert(change.key_value.key.clone(), value);
        self.changes.push(change);
    }

    fn put(&mut self, put: &pb::PutRequest) -> pb::PutResponse {
        let previous = self.get(&put.key);
        let own = self.base + 1;
        let key_value = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            lease: put.lease,
            mod_revision: own,
            create_revision: previous.as_ref().map_or(own, |kv| kv.create_revision),
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
        };
        self.write(Change { delete: false, key_value });
        pb::PutResponse { header: None, prev_kv: previous.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let found = self.keys(&delete.key, &delete.range_end);
        for kv in &found {
            self.tombstone(kv.key.clone());
        }
        pb::DeleteRangeResponse {
            header: None,
            deleted: found.len() as i64,
            prev_kvs: if delete.prev_kv { found } else { Vec::new() },
        }
    }

    fn tombstone(&mut self, key: Bytes) {
        let mod_revision = self.base + 1;
        let key_value = KeyValue { key, mod_revision, ..KeyValue::default() };
        self.write(Change { delete: true, key_value });
    }

    fn revoke(&mut self, lease: i64) {
        let attached = self.keys(&[], &[0]).into_iter().filter(|kv| kv.lease == lease);
        for kv in attached.collect::<Vec<_>>() {
            self.tombstone(kv.key);
        }
    }

    fn range(&self, range: &pb::RangeRequest) -> pb::RangeResponse {
        let at = if range.revision > 0 { range.revision } else { self.base };
        let mut kvs = match range.revision > 0 {
            true => self.model.range_at(&range.key, &range.range_end, at),
            false => self.keys(&range.key, &range.range_end),
        };
        let count = kvs.len() as i64;
        let newest = range.max_create_revision;
        kvs.retain(|kv| newest == 0 || kv.create_revision <= newest);
        // Clients here sort by nothing else.
        if range.sort_target == SortTarget::Create as i32 {
            kvs.sort_by_key(|kv| match range.sort_order == SortOrder::Descend as i32 {
                true => -kv.create_revision,
                false => kv.create_revision,
            });
        }
        let more = range.limit > 0 && kvs.len() as i64 > range.limit;
        if more {
            kvs.truncate(range.limit as usize);
        }
        pb::RangeResponse { header: None, kvs, more, count }
    }

    fn txn(&mut self, txn: &pb::TxnRequest) -> pb::TxnResponse {
        use pb::request_op::Request as Op;
        use pb::response_op::Response as Answer;
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let operations = if succeeded { &txn.success } else { &txn.failure };
        let responses = operations
            .iter()
            .filter_map(|operation| operation.request.as_ref())
            .map(|operation| match operation {
                Op::RequestPut(put) => Answer::ResponsePut(self.put(put)),
                Op::RequestDeleteRange(delete) => Answer::ResponseDeleteRange(self.delete(delete)),
                Op::RequestRange(range) => Answer::ResponseRange(self.range(range)),
                Op::RequestTxn(txn) => Answer::ResponseTxn(self.txn(txn)),
            })
            .map(|response| pb::ResponseOp { response: Some(response) })
            .collect();
        pb::TxnResponse { header: None, succeeded, responses }
    }

    fn holds(&self, compare: &pb::Compare) -> bool {
        use pb::compare::{CompareResult, TargetUnion};
        let kv = self.get(&compare.key).unwrap_or_default();
        let order = match &compare.target_union {
            Some(TargetUnion::ModRevision(wanted)) => kv.mod_revision.cmp(wanted),
            Some(TargetUnion::CreateRevision(wanted)) => kv.create_revision.cmp(wanted),
            Some(TargetUnion::Version(wanted)) => kv.version.cmp(wanted),
            Some(TargetUnion::Lease(wanted)) => kv.lease.cmp(wanted),
            // A key that does not exist has no value to compare; clients here do not ask.
            Some(TargetUnion::Value(wanted)) => kv.value.cmp(wanted),
            None => return false,
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
        }
    }
}

/// A response without its headers, to be compared with the model's.
pub(crate) fn without_headers(response: &Response) -> Response {
    let mut response = response.clone();
    match &mut response {
        Response::Put(response) => response.header = None,
        Response::Delete(response) => response.header = None,
        Response::Txn(response) => strip(response),
        Response::Range(response) => response.header = None,
        Response::Compact(response) => response.header = None,
        Response::Grant(response) => response.header = None,
        Response::Revoke(response) => response.header = None,
        Response::Other { .. } => {}
    }
    response
}

fn strip(txn: &mut pb::TxnResponse) {
    use pb::response_op::Response as Answer;
    txn.header = None;
    for operation in &mut txn.responses {
        match &mut operation.response {
            Some(Answer::ResponsePut(response)) => response.header = None,
            Some(Answer::ResponseDeleteRange(response)) => response.header = None,
            Some(Answer::ResponseRange(response)) => response.header = None,
            Some(Answer::ResponseTxn(response)) => strip(response),
            None => {}
        }
    }
}

/// The values that a request would put, and whether it may delete.
pub fn puts_of<Other>(request: &Request<Other>) -> Vec<&pb::PutRequest> {
    match request {
        Request::Put(put) => vec![put],
        Request::Txn(txn) => puts_of_txn(txn),
        _ => Vec::new(),
    }
}

fn puts_of_txn(txn: &pb::TxnRequest) -> Vec<&pb::PutRequest> {
    use pb::request_op::Request as Op;
    let operations = txn.success.iter().chain(&txn.failure);
    operations
        .filter_map(|operation| operation.request.as_ref())
        .flat_map(|operation| match operation {
            Op::RequestPut(put) => vec![put],
            Op::RequestTxn(txn) => puts_of_txn(txn),
            Op::RequestRange(_) | Op::RequestDeleteRange(_) => Vec::new(),
        })
        .collect()
}
