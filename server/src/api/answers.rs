//! Answers that hold keys and values, made within the read budget ([`crate::read_budget`]).
//!
//! A range that turns out to be small has been read by the time that is known; what is larger is
//! measured before the rest of it is read: the store knows the lengths of values. The answer is then
//! written piece by piece, one value in hand, so that it is never there twice.

use bytes::{Bytes, BytesMut};
use machine::range_query;
use mvcc::{Interruption, RangeQuery, ReadView, Selection, settle};
use prost::Message;
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{DeleteRangeRequest, RequestOp, ResponseHeader, TxnRequest};
use types::{KeyRange, RangeEnd};

use super::encoded::{Encoded, put_field};
use crate::read_budget::{
    Attempt, OutgoingWriter, ReadBudget, SMALL_BYTES_MAX, Share, UNCOUNTED_BYTES_MAX,
};

/// What wraps a key-value, or a message, in another.
const FIELD_OVERHEAD: usize = 8;

/// What stands around the key-values of a range.
#[derive(Default)]
pub(super) struct Around {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Around {
    pub(super) fn new(header: &ResponseHeader, more: bool, count: i64) -> Self {
        let mut around = Self::default();
        put_field(&mut around.before, 1, &header.encode_to_vec());
        if more {
            prost::encoding::bool::encode(3, &more, &mut around.after);
        }
        if count != 0 {
            prost::encoding::int64::encode(4, &count, &mut around.after);
        }
        around
    }
}

/// The message that holds the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    /// None: it is the answer.
    Itself,
    /// A chunk of a stream.
    Chunk,
}

/// A `RangeResponse` of everything that is selected.
pub(super) fn range_answer(
    budget: &ReadBudget,
    mut selection: Selection<'_>,
    within: Within,
    around: impl FnOnce(&Selection<'_>) -> Around,
    share: &mut Option<Share>,
) -> Result<Attempt<Encoded>, Interruption> {
    if selection.sorts_by_value() {
        // The values are all there before the answer is written.
        let needs = 2 * bytes_left(&selection)?;
        if needs > SMALL_BYTES_MAX as u64 && !budget.cover(share, needs) {
            return Ok(Attempt::Needs(needs));
        }
        selection.sort_by_value()?;
    }
    let around = around(&selection);
    let mut bytes = around.before.len() + around.after.len() + 2 * FIELD_OVERHEAD;
    let mut read = Vec::new();
    while bytes <= SMALL_BYTES_MAX
        && let Some(key_value) = selection.next_key_value()?
    {
        bytes += key_value.len() + FIELD_OVERHEAD;
        read.push(key_value);
    }
    let needs = bytes as u64 + bytes_left(&selection)?;
    if needs > UNCOUNTED_BYTES_MAX as u64 && !budget.cover(share, needs) {
        return Ok(Attempt::Needs(needs));
    }
    match share.take_if(|_| needs > SMALL_BYTES_MAX as u64) {
        Some(share) => {
            let writer = OutgoingWriter::new(budget, share, needs as usize);
            large_answer(writer, &around, read, selection, within).map(Attempt::Done)
        }
        None => {
            let answer = small_answer(&around, &read, bytes, within);
            let share = share.take_if(|_| needs > UNCOUNTED_BYTES_MAX as u64);
            Ok(Attempt::Done(Encoded::counted(answer, share)))
        }
    }
}

fn bytes_left(selection: &Selection<'_>) -> Result<u64, Interruption> {
    if selection.is_empty() {
        return Ok(0);
    }
    Ok(selection.bytes_left()? + (selection.len() * FIELD_OVERHEAD) as u64)
}

fn small_answer(around: &Around, key_values: &[Bytes], bytes: usize, within: Within) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes);
    out.extend_from_slice(&around.before);
    for key_value in key_values {
        put_field(&mut out, 2, key_value);
    }
    out.extend_from_slice(&around.after);
    if within == Within::Itself {
        return out.freeze();
    }
    let mut chunk = BytesMut::with_capacity(out.len() + FIELD_OVERHEAD);
    put_field(&mut chunk, 1, &out);
    chunk.freeze()
}

fn large_answer(
    mut out: OutgoingWriter,
    around: &Around,
    read: Vec<Bytes>,
    mut selection: Selection<'_>,
    within: Within,
) -> Result<Encoded, Interruption> {
    out.put(&around.before);
    for key_value in read {
        out.put_field(2, &key_value);
    }
    while let Some(key_value) = selection.next_key_value()? {
        out.put_field(2, &key_value);
    }
    out.put(&around.after);
    let rest = out.finish();
    let mut beginning = BytesMut::new();
    if within == Within::Chunk {
        prost::encoding::encode_key(1, prost::encoding::WireType::LengthDelimited, &mut beginning);
        prost::encoding::encode_varint(rest.bytes() as u64, &mut beginning);
    }
    Ok(Encoded::in_pieces(beginning.freeze(), rest))
}

/// An answer that is there already, with the share that was taken for it before.
pub(super) fn settled(budget: &ReadBudget, share: Option<Share>, answer: impl Message) -> Encoded {
    let bytes = Bytes::from(answer.encode_to_vec());
    drop(answer);
    if bytes.len() <= UNCOUNTED_BYTES_MAX {
        return bytes.into();
    }
    let share = budget.overdraw(share, bytes.len() as u64);
    if bytes.len() <= SMALL_BYTES_MAX {
        return Encoded::counted(bytes, Some(share));
    }
    let mut out = OutgoingWriter::new(budget, share, bytes.len());
    out.put(&bytes);
    Encoded::in_pieces(Bytes::new(), out.finish())
}

/// What a transaction that only reads may answer with, in bytes. All its ranges are counted, of
/// whichever branch has more, and the largest that it compares.
pub(super) fn read_only_bytes(view: &ReadView, request: &TxnRequest) -> u64 {
    let compared = request.compare.iter().map(|compare| {
        let range = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
        range_bytes(view, &RangeQuery::all(range))
    });
    compared.max().unwrap_or(0) + branches_bytes(view, request, &|_| true)
}

/// What a transaction that also writes may answer with, but for single keys: their values are as
/// large as requests may be, and to look at them would hold every write up.
pub(super) fn written_bytes(view: &ReadView, request: &TxnRequest) -> u64 {
    branches_bytes(view, request, &|range| range.end != RangeEnd::Single)
}

/// What a deletion may answer with, but for single keys.
pub(super) fn deleted_bytes(view: &ReadView, request: &DeleteRangeRequest) -> u64 {
    deletion_bytes(view, request, &|range| range.end != RangeEnd::Single)
}

type Counts<'c> = &'c dyn Fn(&KeyRange) -> bool;

fn branches_bytes(view: &ReadView, request: &TxnRequest, counts: Counts<'_>) -> u64 {
    let branch = |operations: &[RequestOp]| -> u64 {
        operations.iter().map(|operation| operation_bytes(view, operation, counts)).sum()
    };
    branch(&request.success).max(branch(&request.failure))
}

fn operation_bytes(view: &ReadView, operation: &RequestOp, counts: Counts<'_>) -> u64 {
    match &operation.request {
        Some(Request::RequestRange(range)) => {
            let query = range_query(range);
            if counts(&query.range) { range_bytes(view, &query) } else { 0 }
        }
        Some(Request::RequestDeleteRange(deletion)) => deletion_bytes(view, deletion, counts),
        Some(Request::RequestTxn(nested)) => branches_bytes(view, nested, counts),
        Some(Request::RequestPut(_)) | None => 0,
    }
}

fn deletion_bytes(view: &ReadView, request: &DeleteRangeRequest, counts: Counts<'_>) -> u64 {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    if request.prev_kv && counts(&range) { range_bytes(view, &RangeQuery::all(range)) } else { 0 }
}

/// A range that cannot be read counts nothing: its error is told by who reads it.
fn range_bytes(view: &ReadView, query: &RangeQuery) -> u64 {
    settle(|| bytes_left(&view.select(query)?)).unwrap_or(0)
}

/// Whether a transaction answers with what it finds.
pub(super) fn reads(request: &TxnRequest) -> bool {
    let operation_reads = |operation: &RequestOp| match &operation.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestPut(put)) => put.prev_kv,
        Some(Request::RequestDeleteRange(deletion)) => deletion.prev_kv,
        Some(Request::RequestTxn(nested)) => reads(nested),
        None => false,
    };
    request.success.iter().chain(&request.failure).any(operation_reads)
}
