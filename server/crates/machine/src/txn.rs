//! Transactions: compare, check, execute, as etcd's `txn/txn.go` does it.
//!
//! 1. All comparisons, also those of nested transactions on the taken path, look at the state before
//!    the transaction. They fix the path.
//! 2. Everything on the path that can fail is checked: a range's revision against the replicated
//!    compaction watermark (never against what background work has left, etcd#18667), a put's lease,
//!    and whether a key to be kept exists. The first failure refuses the whole transaction.
//! 3. The operations run in order and see each other's writes. All of them share one revision. From
//!    here on only the disk can fail, and that stops the member.
//!
//! Transactions that only read do not go through the log; [`read_only`] answers them from a view, all
//! of them at one revision.

use bytes::Bytes;
use mvcc::{KeyHead, KeyValueError, RangeError, RangeQuery, ReadView, SortOrder, SortTarget};
use prost::Message;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;
use proto::{etcdserverpb as pb, mvccpb};
use types::{KeyRange, Revision};

use crate::apply::Applier;
use crate::check::key_range;
use crate::outcome::{Operations, Refusal, Stop, header};

/// The path that the comparisons chose.
struct Path<'r> {
    succeeded: bool,
    /// How many comparisons it took, those of nested transactions included.
    compared: u64,
    operations: &'r [pb::RequestOp],
    /// The paths of the nested transactions among the operations, in order.
    nested: Vec<Path<'r>>,
}

/// A key as a comparison sees it; of a missing key everything is zero.
#[derive(Default)]
struct Compared {
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    lease: i64,
    value: Bytes,
}

/// Where comparisons look.
trait Before {
    type Error;

    /// The keys of a range; their values only if `value`.
    fn keys(&self, range: &KeyRange, value: bool) -> Result<Vec<Compared>, Self::Error>;
}

impl Before for Applier<'_> {
    type Error = Stop;

    fn keys(&self, range: &KeyRange, value: bool) -> Result<Vec<Compared>, Stop> {
        let compared = |head: KeyHead| -> Result<Compared, Stop> {
            let mut compared = Compared {
                create_revision: head.create_revision.0,
                mod_revision: head.mod_revision.main,
                version: head.version,
                lease: head.lease.0,
                value: Bytes::new(),
            };
            if value {
                compared.value = self.key_value(&head)?.value;
            }
            Ok(compared)
        };
        if range.end == types::RangeEnd::Single {
            return self.writer.head(&range.start).map(compared).into_iter().collect();
        }
        self.writer.heads(range).into_iter().map(|(_, head)| compared(head)).collect()
    }
}

fn choose<'r, B: Before>(before: &B, request: &'r pb::TxnRequest) -> Result<Path<'r>, B::Error> {
    let mut succeeded = true;
    let mut compared = 0;
    for compare in &request.compare {
        compared += 1;
        if !holds(before, compare)? {
            succeeded = false;
            break;
        }
    }
    let operations = if succeeded { &request.success } else { &request.failure };
    let mut nested = Vec::new();
    for operation in operations {
        if let Some(Request::RequestTxn(inner)) = &operation.request {
            let path = choose(before, inner)?;
            compared += path.compared;
            nested.push(path);
        }
    }
    Ok(Path { succeeded, compared, operations, nested })
}

/// Whether a comparison holds for every key of its range. A key that does not exist compares as
/// zeros, except by value: there is no value that a missing key equals or differs from.
fn holds<B: Before>(before: &B, compare: &pb::Compare) -> Result<bool, B::Error> {
    let by_value = compare.target == CompareTarget::Value as i32;
    let keys = before.keys(&key_range(&compare.key, &compare.range_end), by_value)?;
    if keys.is_empty() {
        return Ok(!by_value && key_holds(compare, &Compared::default()));
    }
    Ok(keys.iter().all(|key| key_holds(compare, key)))
}

/// As in etcd, an operand of another kind than the target counts as zero, a target that nobody knows
/// compares equal, and a comparison that nobody knows holds.
fn key_holds(compare: &pb::Compare, key: &Compared) -> bool {
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => match union {
            Some(TargetUnion::Version(version)) => key.version.cmp(version),
            _ => key.version.cmp(&0),
        },
        Ok(CompareTarget::Create) => match union {
            Some(TargetUnion::CreateRevision(revision)) => key.create_revision.cmp(revision),
            _ => key.create_revision.cmp(&0),
        },
        Ok(CompareTarget::Mod) => match union {
            Some(TargetUnion::ModRevision(revision)) => key.mod_revision.cmp(revision),
            _ => key.mod_revision.cmp(&0),
        },
        Ok(CompareTarget::Value) => match union {
            Some(TargetUnion::Value(value)) => key.value.cmp(value),
            _ => key.value.cmp(&Bytes::new()),
        },
        Ok(CompareTarget::Lease) => match union {
            Some(TargetUnion::Lease(lease)) => key.lease.cmp(lease),
            _ => key.lease.cmp(&0),
        },
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// Whether a range inside a transaction can be answered. A negative revision reads the newest state
/// while nothing is compacted and is "compacted" afterwards, because etcd counts from -1.
fn check_range(
    request: &pb::RangeRequest,
    now: Revision,
    compacted: Revision,
) -> Result<(), Refusal> {
    match request.revision {
        0 => Ok(()),
        revision if revision > now.0 => Err(Refusal::FutureRevision),
        revision if revision < compacted.0 => Err(Refusal::Compacted),
        _ => Ok(()),
    }
}

/// A range request as the index takes it.
pub fn range_query(request: &pb::RangeRequest) -> RangeQuery {
    use range_request::{SortOrder as Order, SortTarget as Target};
    RangeQuery {
        range: key_range(&request.key, &request.range_end),
        limit: request.limit,
        revision: request.revision,
        sort_order: match Order::try_from(request.sort_order) {
            Ok(Order::Ascend) => SortOrder::Ascend,
            Ok(Order::Descend) => SortOrder::Descend,
            Ok(Order::None) | Err(_) => SortOrder::None,
        },
        sort_target: match Target::try_from(request.sort_target) {
            Ok(Target::Version) => SortTarget::Version,
            Ok(Target::Create) => SortTarget::Create,
            Ok(Target::Mod) => SortTarget::Mod,
            Ok(Target::Value) => SortTarget::Value,
            Ok(Target::Key) | Err(_) => SortTarget::Key,
        },
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod: request.min_mod_revision,
        max_mod: request.max_mod_revision,
        min_create: request.min_create_revision,
        max_create: request.max_create_revision,
    }
}

fn range_response(
    answer: mvcc::RangeAnswer,
    revision: Revision,
) -> Result<pb::RangeResponse, prost::DecodeError> {
    Ok(pb::RangeResponse {
        header: header(revision),
        kvs: answer.kvs.into_iter().map(mvccpb::KeyValue::decode).collect::<Result<_, _>>()?,
        more: answer.more,
        count: answer.count,
    })
}

impl Applier<'_> {
    pub(crate) fn txn(
        &mut self,
        request: &pb::TxnRequest,
        answer: bool,
    ) -> Result<pb::TxnResponse, Stop> {
        let path = choose(self, request)?;
        self.operations.add(Operations { ranges: path.compared, ..Operations::default() });
        self.check_path(&path, &mut Vec::new())?;
        self.writer.begin();
        let responses = self.execute(&path, answer)?;
        let revision = self.end();
        Ok(pb::TxnResponse { header: header(revision), succeeded: path.succeeded, responses })
    }

    /// Checks the operations of a path in order. `deleted` collects what deletions before an
    /// operation take away: a put that keeps the value or lease of such a key cannot be done. (etcd
    /// lets a put behind a deletion "from a key on" through and its members panic.)
    fn check_path(&self, path: &Path<'_>, deleted: &mut Vec<KeyRange>) -> Result<(), Refusal> {
        let mut nested = path.nested.iter();
        for operation in path.operations {
            match &operation.request {
                Some(Request::RequestRange(request)) => {
                    check_range(request, self.writer.revision(), self.writer.compact_revision())?;
                }
                Some(Request::RequestPut(request)) => {
                    self.check_put(request)?;
                    let keeps = request.ignore_value || request.ignore_lease;
                    if keeps && deleted.iter().any(|range| range.contains(&request.key)) {
                        return Err(Refusal::KeyNotFound);
                    }
                }
                Some(Request::RequestDeleteRange(request)) => {
                    deleted.push(key_range(&request.key, &request.range_end));
                }
                Some(Request::RequestTxn(_)) => {
                    let inner = nested.next().expect("each nested transaction has its path");
                    self.check_path(inner, deleted)?;
                }
                None => return Err(Refusal::KeyNotFound),
            }
        }
        Ok(())
    }

    fn execute(&mut self, path: &Path<'_>, answer: bool) -> Result<Vec<pb::ResponseOp>, Stop> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::with_capacity(path.operations.len());
        for operation in path.operations {
            let response = match &operation.request {
                Some(Request::RequestRange(request)) => {
                    Some(Response::ResponseRange(self.range(request, answer)?))
                }
                Some(Request::RequestPut(request)) => {
                    Some(Response::ResponsePut(self.write_put(request, answer)?))
                }
                Some(Request::RequestDeleteRange(request)) => {
                    Some(Response::ResponseDeleteRange(self.write_delete_range(request, answer)?))
                }
                Some(Request::RequestTxn(_)) => {
                    let inner = nested.next().expect("each nested transaction has its path");
                    let responses = self.execute(inner, answer)?;
                    Some(Response::ResponseTxn(nested_response(inner, responses)))
                }
                None => None,
            };
            responses.push(pb::ResponseOp { response });
        }
        Ok(responses)
    }

    /// A range inside a transaction. On a member that does not answer the client it is skipped, as
    /// in etcd 3.7.
    fn range(
        &mut self,
        request: &pb::RangeRequest,
        answer: bool,
    ) -> Result<pb::RangeResponse, Stop> {
        if !answer {
            let header = header(self.writer.revision());
            return Ok(pb::RangeResponse { header, ..Default::default() });
        }
        self.under_way.ranges += 1;
        let found = self.writer.range(&range_query(request)).map_err(|error| match error {
            RangeError::Store(source) => Stop::Store(source),
            checked => Stop::Read(checked),
        })?;
        let revision = found.revision;
        Ok(range_response(found, revision)?)
    }
}

/// A nested response has a header without a revision, as etcd leaves it.
fn nested_response(path: &Path<'_>, responses: Vec<pb::ResponseOp>) -> pb::TxnResponse {
    pb::TxnResponse {
        header: Some(pb::ResponseHeader::default()),
        succeeded: path.succeeded,
        responses,
    }
}

/// How often a read-only transaction that compaction overtook begins again.
const ATTEMPTS: usize = 8;

/// Why a read-only transaction was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadOnlyError {
    /// It cannot be done; the client is told.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It holds an operation that writes.
    #[error("a transaction that writes goes through the log")]
    Writes,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] revlog::RevStoreError),
    /// A stored key-value does not decode.
    #[error(transparent)]
    KeyValue(#[from] prost::DecodeError),
    /// A stored key-value does not decode.
    #[error(transparent)]
    Compared(#[from] KeyValueError),
}

impl From<RangeError> for ReadOnlyError {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Compacted => ReadOnlyError::Refused(Refusal::Compacted),
            RangeError::FutureRevision => ReadOnlyError::Refused(Refusal::FutureRevision),
            RangeError::Store(source) => ReadOnlyError::Store(source),
        }
    }
}

/// A view held at one revision.
struct Pinned<'v> {
    view: &'v ReadView,
    at: Revision,
}

impl Before for Pinned<'_> {
    type Error = ReadOnlyError;

    fn keys(&self, range: &KeyRange, _value: bool) -> Result<Vec<Compared>, ReadOnlyError> {
        let query = RangeQuery { revision: self.at.0, ..RangeQuery::all(range.clone()) };
        let compared = |encoded: &Bytes| {
            let key = mvcc::KeyValue::decode(encoded)?;
            Ok(Compared {
                create_revision: key.create_revision,
                mod_revision: key.mod_revision,
                version: key.version,
                lease: key.lease,
                value: key.value,
            })
        };
        self.view.range(&query)?.kvs.iter().map(compared).collect()
    }
}

/// Answers a transaction that holds nothing but ranges ([`crate::check::is_read_only`]), all of it at
/// one revision of `view`.
pub fn read_only(
    view: &ReadView,
    request: &pb::TxnRequest,
) -> Result<pb::TxnResponse, ReadOnlyError> {
    let mut attempt = 1;
    loop {
        let pinned = Pinned { view, at: view.revision() };
        let answer = pinned.txn(request);
        // The pinned revision itself may be compacted meanwhile; then what is newest now serves.
        let overtaken = view.compact_revision() > pinned.at;
        if !overtaken || attempt == ATTEMPTS {
            return answer;
        }
        attempt += 1;
    }
}

impl Pinned<'_> {
    fn txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, ReadOnlyError> {
        let path = choose(self, request)?;
        let compacted = self.view.compact_revision();
        let mut ranges = Vec::new();
        for operation in path.operations {
            let Some(Request::RequestRange(range)) = &operation.request else {
                return Err(ReadOnlyError::Writes);
            };
            check_range(range, self.at, compacted)?;
            ranges.push(range);
        }
        let mut responses = Vec::with_capacity(ranges.len());
        for range in ranges {
            let mut query = range_query(range);
            if query.revision <= 0 {
                query.revision = self.at.0;
            }
            let response = range_response(self.view.range(&query)?, self.at)?;
            responses.push(pb::ResponseOp { response: Some(Response::ResponseRange(response)) });
        }
        Ok(pb::TxnResponse { header: header(self.at), succeeded: path.succeeded, responses })
    }
}
