//! What can be said about a request before it is proposed: whether it is well formed, and what it
//! costs.
//!
//! The edge calls this so that a bad request never enters the log; apply does not repeat it. The
//! rules are those of etcd's `api/v3rpc/key.go`, with their order (which decides what a client with
//! two mistakes is told) and their oddities, each named where it is reproduced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request;

use crate::outcome::Refusal;

/// What a key-value is taken to cost beside its key and value (etcd `storage/quota.go`).
const KEY_VALUE_OVERHEAD: u64 = 256;
/// What a lease is taken to cost.
const LEASE_OVERHEAD: u64 = 64;

/// Checks a range request.
pub fn range(request: &pb::RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Refusal::InvalidSortOption) }
}

/// Checks a put.
pub fn put(request: &pb::PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction of at most `operations_max` operations: the longest of its three lists
/// counts, and a nested transaction has what the outer one leaves. Then no key may be put twice, nor
/// put and deleted, on one path.
pub fn txn(request: &pb::TxnRequest, operations_max: usize) -> Result<(), Refusal> {
    txn_shape(request, operations_max)?;
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

fn txn_shape(request: &pb::TxnRequest, operations_max: usize) -> Result<(), Refusal> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = operations_max.checked_sub(operations).ok_or(Refusal::TooManyOperations)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_shape(request, left)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch may write, to be compared with its surroundings.
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Intervals<'a>,
}

/// Goes over the operations in etcd's order: the deletions of this level, then nested transactions
/// one by one, then the puts of this level. So a put in one nested transaction and a deletion in a
/// *later* one do not conflict, while the other way round they do.
fn overlaps(operations: &[pb::RequestOp]) -> Result<Writes<'_>, Refusal> {
    let mut writes = Writes { puts: BTreeSet::new(), deletes: Intervals::default() };
    for operation in operations {
        if let Some(Request::RequestDeleteRange(request)) = &operation.request {
            writes.deletes.insert(&request.key, &request.range_end);
        }
    }
    for operation in operations {
        if let Some(Request::RequestTxn(request)) = &operation.request {
            nested_overlaps(&mut writes, request)?;
        }
    }
    for operation in operations {
        if let Some(Request::RequestPut(request)) = &operation.request {
            let key: &[u8] = &request.key;
            if writes.puts.contains(key) || writes.deletes.contains(key) {
                return Err(Refusal::DuplicateKey);
            }
            writes.puts.insert(key);
        }
    }
    Ok(writes)
}

fn nested_overlaps<'a>(
    writes: &mut Writes<'a>,
    request: &'a pb::TxnRequest,
) -> Result<(), Refusal> {
    let success = overlaps(&request.success)?;
    let failure = overlaps(&request.failure)?;
    let deleted = |key: &[u8]| writes.deletes.contains(key);
    if success.puts.iter().any(|key| writes.puts.contains(key) || deleted(key)) {
        return Err(Refusal::DuplicateKey);
    }
    // Only one of the two branches runs, so both may put the same key.
    let mut failure_only = failure.puts.iter().filter(|key| !success.puts.contains(*key));
    if failure_only.any(|key| writes.puts.contains(key))
        || failure.puts.iter().any(|key| deleted(key))
    {
        return Err(Refusal::DuplicateKey);
    }
    writes.puts.extend(success.puts);
    writes.puts.extend(failure.puts);
    writes.deletes.extend(success.deletes);
    writes.deletes.extend(failure.deletes);
    Ok(())
}

/// A union of half-open intervals of keys, as etcd's `adt.IntervalTree` answers point queries on
/// it. As there, a deletion "from a key on" (`range_end` of one zero byte) is the interval that ends
/// before every key, so it conflicts with nothing; apply takes care of what that lets through.
#[derive(Default)]
struct Intervals<'a> {
    by_start: BTreeMap<&'a [u8], End<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End<'a> {
    /// Before this key.
    Before(&'a [u8]),
    /// This key is the last one in it.
    At(&'a [u8]),
}

impl End<'_> {
    /// Whether `key` lies before the end.
    fn above(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < *end,
            End::At(last) => key <= *last,
        }
    }
}

impl<'a> Intervals<'a> {
    fn insert(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        let end = if range_end.is_empty() { End::At(key) } else { End::Before(range_end) };
        self.add(key, end);
    }

    /// Adds an interval and melts what it touches into it, so that the map stays disjoint.
    fn add(&mut self, start: &'a [u8], end: End<'a>) {
        if !end.above(start) {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((before, reach)) = self.by_start.range(..=start).next_back()
            && reach.above(start)
        {
            (start, end) = (*before, furthest(*reach, end));
        }
        while let Some((next, reach)) = self.by_start.range(start..).next()
            && end.above(next)
        {
            let next = *next;
            end = furthest(*reach, end);
            self.by_start.remove(next);
        }
        self.by_start.insert(start, end);
    }

    fn extend(&mut self, other: Intervals<'a>) {
        for (start, end) in other.by_start {
            self.add(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.by_start.range(..=key).next_back().is_some_and(|(_, end)| end.above(key))
    }
}

fn furthest<'a>(a: End<'a>, b: End<'a>) -> End<'a> {
    let key = |end| match end {
        End::Before(key) | End::At(key) => key,
    };
    // Of "before k" and "at k", the latter reaches further.
    match key(a).cmp(key(b)) {
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Equal => a.max(b),
    }
}

/// Whether a transaction only reads, and so need not go through the log. A nested transaction
/// counts as a write whatever is in it, as in etcd.
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether a transaction that only reads may be answered from local state without asking the leader.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|range| range.serializable))
}

fn ranges(request: &pb::TxnRequest) -> impl Iterator<Item = Option<&pb::RangeRequest>> {
    request.success.iter().chain(&request.failure).map(|operation| match &operation.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

/// What a put may add to the store, in bytes.
pub fn put_cost(request: &pb::PutRequest) -> u64 {
    KEY_VALUE_OVERHEAD + request.key.len() as u64 + request.value.len() as u64
}

/// What a transaction may add to the store: its dearer branch. A transaction of cost 0 passes even
/// while the NOSPACE alarm is on.
pub fn txn_cost(request: &pb::TxnRequest) -> u64 {
    let cost = |operations: &[pb::RequestOp]| -> u64 {
        operations
            .iter()
            .map(|operation| match &operation.request {
                Some(Request::RequestPut(request)) => put_cost(request),
                Some(Request::RequestTxn(request)) => txn_cost(request),
                _ => 0,
            })
            .sum()
    };
    cost(&request.success).max(cost(&request.failure))
}

/// What a lease may add to the store.
pub fn lease_grant_cost() -> u64 {
    LEASE_OVERHEAD
}

/// Checks a grant and raises its TTL to the minimum, before it is proposed: members whose flags give
/// them different minima must still agree on what was granted.
pub fn lease_grant(
    request: &pb::LeaseGrantRequest,
    ttl_min: i64,
) -> Result<pb::LeaseGrantRequest, Refusal> {
    if request.ttl > lease::TTL_SECONDS_MAX {
        return Err(Refusal::LeaseTtlTooLarge);
    }
    Ok(pb::LeaseGrantRequest { id: request.id, ttl: request.ttl.max(ttl_min) })
}

/// The range of a pair of wire fields.
pub(crate) fn key_range(key: &Bytes, range_end: &Bytes) -> types::KeyRange {
    types::KeyRange::from_wire(key.clone(), range_end.clone())
}

#[cfg(test)]
mod tests;
