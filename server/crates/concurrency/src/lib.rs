//! Lock and election as recipes over keys.
//!
//! A candidate's place in the queue is the key `<name>/<lease in hex>`, attached to its lease; whoever
//! has the oldest holds the lock, or leads. So both are passed on when a lease ends, candidates are
//! served in the order in which their keys were created, and the creation revision is a fencing
//! number: a write that compares it in the same transaction is done by the holder or not at all.
//!
//! The server's services and the simulator's clients run these steps, each over [`Calls`] of its own.
//!
//! # Invariants
//! - A key is created only if the lease has none under the name, so a lease is a candidate once.
//! - A place has been waited for once no key under the name is left that was created before it. None
//!   can be created before it afterwards, because revisions only grow.
//!
//! # Deliberately absent
//! Keeping leases alive: that is the candidate's to do. Leaving the queue when a candidate goes away
//! while it waits: only the caller knows that it does. And a promise that a holder is alone: its lease
//! may be over before it knows; what must be done by one only is done with [`Place::guard`].

use bytes::Bytes;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Operation;
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use proto::mvccpb::KeyValue;
use types::{LeaseId, Planted};

/// What the recipes need of a cluster, in the name of one candidate.
pub trait Calls: Sync {
    /// Why a call was not answered.
    type Error: Send;

    /// Does a transaction.
    fn txn(&self, txn: TxnRequest)
    -> impl Future<Output = Result<TxnResponse, Self::Error>> + Send;

    /// Reads, linearizably.
    fn range(
        &self,
        range: RangeRequest,
    ) -> impl Future<Output = Result<RangeResponse, Self::Error>> + Send;

    /// Returns once a key was deleted at `revision` or later.
    fn wait_for_deletion(
        &self,
        key: Bytes,
        revision: i64,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// A candidate's place in the queue of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the candidates of the name have their keys.
    pub directory: Bytes,
    /// The candidate's own.
    pub key: Bytes,
    /// The revision at which it was created: proves that it is still the same candidacy.
    pub created: i64,
}

/// How a candidate for a lock entered.
#[derive(Clone, Debug)]
pub struct Entered {
    pub place: Place,
    /// Whether nobody is before it.
    pub first: bool,
    pub header: Option<ResponseHeader>,
}

/// How a candidate for leadership entered.
#[derive(Clone, Debug)]
pub struct Candidacy {
    pub place: Place,
    /// The lease was a candidate already, with another value: it is to be proclaimed anew.
    pub value_differs: bool,
    pub header: Option<ResponseHeader>,
}

/// Takes a place in the queue for a lock, unless the lease has one, and looks who is first.
///
/// # Errors
/// When the transaction was not answered; it may have been done.
pub async fn enter<C: Calls>(calls: &C, name: &[u8], lease: LeaseId) -> Result<Entered, C::Error> {
    let directory = directory(name);
    let key = candidate_key(&directory, lease);
    let first = || operation(Operation::RequestRange(oldest(&directory)));
    let txn = TxnRequest {
        compare: vec![created_at(&key, 0)],
        success: vec![put(&key, Bytes::new(), lease), first()],
        failure: vec![operation(Operation::RequestRange(point(&key))), first()],
    };
    let entered = calls.txn(txn).await?;
    let created = own_creation(&entered);
    let oldest = range_of(entered.responses.get(1)).first();
    let first = oldest.is_none_or(|oldest| oldest.create_revision == created);
    Ok(Entered { place: Place { directory, key, created }, first, header: entered.header })
}

/// Takes a place in the queue for leadership, unless the lease has one.
///
/// # Errors
/// When the transaction was not answered; it may have been done.
pub async fn campaign<C: Calls>(
    calls: &C,
    name: &[u8],
    lease: LeaseId,
    value: Bytes,
) -> Result<Candidacy, C::Error> {
    let directory = directory(name);
    let key = candidate_key(&directory, lease);
    let txn = TxnRequest {
        compare: vec![created_at(&key, 0)],
        success: vec![put(&key, value.clone(), lease)],
        failure: vec![operation(Operation::RequestRange(point(&key)))],
    };
    let entered = calls.txn(txn).await?;
    let created = own_creation(&entered);
    let earlier = range_of(entered.responses.first()).first();
    let value_differs = !entered.succeeded && earlier.is_none_or(|kv| kv.value != value);
    let place = Place { directory, key, created };
    Ok(Candidacy { place, value_differs, header: entered.header })
}

/// The oldest key of a name: whose it is holds the lock, or leads.
pub fn leader(name: &[u8]) -> RangeRequest {
    oldest(&directory(name))
}

impl Place {
    /// Waits until nobody is before this place.
    ///
    /// # Errors
    /// When a call was not answered.
    pub async fn wait<C: Calls>(&self, calls: &C) -> Result<(), C::Error> {
        loop {
            let before = RangeRequest {
                max_create_revision: self.created - 1,
                ..by_creation(&self.directory, SortOrder::Descend)
            };
            let found = calls.range(before).await?;
            let Some(predecessor) = found.kvs.into_iter().next() else { return Ok(()) };
            let revision = found.header.map_or(0, |header| header.revision);
            calls.wait_for_deletion(predecessor.key, revision).await?;
        }
    }

    /// Whether the place is still there, after [`Place::wait`]: the header of that moment, or nothing
    /// if the lease ended meanwhile.
    ///
    /// # Errors
    /// When the read was not answered.
    pub async fn confirm<C: Calls>(
        &self,
        calls: &C,
    ) -> Result<Option<Option<ResponseHeader>>, C::Error> {
        let found = calls.range(point(&self.key)).await?;
        let is_there = !found.kvs.is_empty() || Planted::UnconfirmedLock.is_made();
        Ok(is_there.then_some(found.header))
    }

    /// A transaction that is done only as long as this candidacy lasts.
    pub fn guard(&self, success: Vec<RequestOp>) -> TxnRequest {
        let compare = match Planted::UnfencedWrite.is_made() {
            true => Vec::new(),
            false => vec![created_at(&self.key, self.created)],
        };
        TxnRequest { compare, success, failure: Vec::new() }
    }

    /// Gives the candidacy another value.
    pub fn proclaim(&self, value: Bytes, lease: LeaseId) -> TxnRequest {
        self.guard(vec![put(&self.key, value, lease)])
    }

    /// Ends the candidacy. One that has ended already is no error.
    pub fn resign(&self) -> TxnRequest {
        let delete = DeleteRangeRequest { key: self.key.clone(), ..Default::default() };
        self.guard(vec![operation(Operation::RequestDeleteRange(delete))])
    }
}

/// Where the candidates of a name have their keys.
fn directory(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The range of all keys under a name. Its directory ends in a slash, after which comes `0`.
pub fn candidates(name: &[u8]) -> (Bytes, Bytes) {
    let directory = directory(name);
    let end = directory_end(&directory);
    (directory, end)
}

fn directory_end(directory: &[u8]) -> Bytes {
    let mut end = directory.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

fn candidate_key(directory: &[u8], lease: LeaseId) -> Bytes {
    // Go prints a negative number with its sign; no lease has one.
    let id = match lease.0 < 0 {
        true => format!("-{:x}", lease.0.unsigned_abs()),
        false => format!("{:x}", lease.0),
    };
    [directory, id.as_bytes()].concat().into()
}

fn by_creation(directory: &[u8], order: SortOrder) -> RangeRequest {
    RangeRequest {
        key: directory.to_vec().into(),
        range_end: directory_end(directory),
        limit: 1,
        sort_order: order as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

fn oldest(directory: &[u8]) -> RangeRequest {
    by_creation(directory, SortOrder::Ascend)
}

/// The revision at which the key of the transaction's caller was created.
fn own_creation(entered: &TxnResponse) -> i64 {
    let revision = entered.header.as_ref().map_or(0, |header| header.revision);
    match entered.succeeded {
        true => revision,
        false => range_of(entered.responses.first()).first().map_or(0, |kv| kv.create_revision),
    }
}

fn range_of(response: Option<&ResponseOp>) -> &[KeyValue] {
    match response.and_then(|response| response.response.as_ref()) {
        Some(Answer::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn put(key: &Bytes, value: Bytes, lease: LeaseId) -> RequestOp {
    let request = PutRequest { key: key.clone(), value, lease: lease.0, ..Default::default() };
    operation(Operation::RequestPut(request))
}

fn point(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..Default::default() }
}

fn operation(request: Operation) -> RequestOp {
    RequestOp { request: Some(request) }
}

#[cfg(test)]
mod tests;
