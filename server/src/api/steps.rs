//! The steps of calls, as distributed tracing shows them: etcd's names and attributes (`v3_server.go`).
//!
//! Keys that are not text are shown with replacement characters: OTLP has texts, and a batch of Go etcd's
//! that holds such a key is refused as a whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use opentelemetry::{KeyValue, Value};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use types::LeaseId;
use watch::WatchMessage;

use crate::ops::spans::{Span, Step};

/// The lease of a transaction that puts nothing.
const NO_PUT: i64 = -1;

fn step<const N: usize>(name: &'static str, attributes: [(&'static str, Value); N]) -> Step {
    let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
    Step { name, attributes: attributes.collect() }
}

fn text(bytes: &[u8]) -> Value {
    Value::from(String::from_utf8_lossy(bytes).into_owned())
}

fn count(length: usize) -> Value {
    Value::from(i64::try_from(length).unwrap_or(i64::MAX))
}

pub(super) fn range(request: &RangeRequest) -> Step {
    let mut step = range_streaming(request);
    step.name = "range";
    step.attributes.push(KeyValue::new("keys_only", request.keys_only));
    step
}

pub(super) fn range_streaming(request: &RangeRequest) -> Step {
    step(
        "range_streaming",
        [
            ("range_begin", text(&request.key)),
            ("range_end", text(&request.range_end)),
            ("rev", request.revision.into()),
            ("limit", request.limit.into()),
            ("count_only", request.count_only.into()),
        ],
    )
}

pub(super) fn put(request: &PutRequest) -> Step {
    step("put", [("key", text(&request.key))])
}

pub(super) fn delete_range(request: &DeleteRangeRequest) -> Step {
    step(
        "delete_range",
        [("range_begin", text(&request.key)), ("range_end", text(&request.range_end))],
    )
}

pub(super) fn txn(request: &TxnRequest) -> Step {
    let success = &request.success;
    step(
        "txn",
        [
            ("compare_first_key", text(first_compared_key(&request.compare))),
            ("success_first_key", text(first_key(success))),
            ("success_first_type", first_kind(success).into()),
            ("success_first_lease", first_lease(success).into()),
            ("compare_len", count(request.compare.len())),
            ("success_len", count(success.len())),
            ("failure_len", count(request.failure.len())),
            ("read_only", machine::check::is_read_only(request).into()),
        ],
    )
}

/// The first key that is not empty.
fn first_compared_key(compares: &[Compare]) -> &[u8] {
    compares.iter().map(|compare| &compare.key[..]).find(|key| !key.is_empty()).unwrap_or_default()
}

/// The first key that is not empty.
fn first_key(operations: &[RequestOp]) -> &[u8] {
    let keys = operations.iter().filter_map(|operation| match operation.request.as_ref()? {
        Request::RequestRange(range) => Some(&range.key[..]),
        Request::RequestPut(put) => Some(&put.key[..]),
        Request::RequestDeleteRange(delete) => Some(&delete.key[..]),
        Request::RequestTxn(_) => None,
    });
    keys.into_iter().find(|key| !key.is_empty()).unwrap_or_default()
}

fn first_kind(operations: &[RequestOp]) -> &'static str {
    let kinds = operations.iter().filter_map(|operation| operation.request.as_ref());
    let kinds = kinds.map(|request| match request {
        Request::RequestRange(_) => "range",
        Request::RequestPut(_) => "put",
        Request::RequestDeleteRange(_) => "delete_range",
        Request::RequestTxn(_) => "txn",
    });
    kinds.into_iter().next().unwrap_or_default()
}

/// That of the first put.
fn first_lease(operations: &[RequestOp]) -> i64 {
    let leases = operations.iter().filter_map(|operation| match operation.request.as_ref()? {
        Request::RequestPut(put) => Some(put.lease),
        _ => None,
    });
    leases.into_iter().next().unwrap_or(NO_PUT)
}

pub(super) fn compact(request: &CompactionRequest) -> Step {
    step("compact", [("is_physical", request.physical.into()), ("rev", request.revision.into())])
}

pub(super) fn lease_grant(request: &LeaseGrantRequest) -> Step {
    step("lease_grant", [("id", request.id.into()), ("ttl", request.ttl.into())])
}

pub(super) fn lease_revoke(request: &LeaseRevokeRequest) -> Step {
    step("lease_revoke", [("id", request.id.into())])
}

pub(super) fn lease_renew(id: LeaseId) -> Step {
    step("lease_renew", [("id", id.0.into())])
}

fn watch_create(request: &WatchCreateRequest) -> Step {
    step(
        "watch",
        [
            ("key", text(&request.key)),
            ("range_end", text(&request.range_end)),
            ("start_rev", request.start_revision.into()),
            ("progress_notify", request.progress_notify.into()),
            ("prev_kv", request.prev_kv.into()),
            ("fragment", request.fragment.into()),
        ],
    )
}

/// The watches of a stream whose call is traced: each is a step from its request until it is over.
pub(super) struct WatchSteps {
    call: Span,
    // A std mutex: held to note a watch, which never waits.
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// Requests in the order of their answers; none for one that does not count as a watch.
    asked: VecDeque<Option<(Step, SystemTime)>>,
    open: BTreeMap<i64, Span>,
}

impl WatchSteps {
    /// For the current call, if that is traced.
    pub(super) fn of_current_call() -> Option<Self> {
        Span::current().map(|call| Self { call, noted: Mutex::default() })
    }

    /// A watch was asked for, by somebody who may have it or not.
    pub(super) fn asked(&self, request: &WatchCreateRequest, is_permitted: bool) {
        let step = is_permitted.then(|| (watch_create(request), SystemTime::now()));
        self.noted().asked.push_back(step);
    }

    /// The client is told this.
    pub(super) fn told(&self, message: &WatchMessage) {
        let mut noted = self.noted();
        match message {
            WatchMessage::Created { id, .. } => {
                if let Some((step, began)) = noted.asked.pop_front().flatten() {
                    noted.open.insert(*id, self.call.step_since(step, began));
                }
            }
            WatchMessage::Refused { .. } => drop(noted.asked.pop_front()),
            WatchMessage::Canceled { id, .. } | WatchMessage::Compacted { id, .. } => {
                noted.open.remove(id);
            }
            WatchMessage::Events { .. } | WatchMessage::Progress { .. } => {}
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
