//! What a client without a lease asks for.

use std::collections::BTreeMap;

use bytes::Bytes;
use history::{Request, Response};
use proto::etcdserverpb::response_op::Response as Answer;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, compare, request_op,
};

use super::clients::Seen;

const KEYS: u64 = 8;
/// Calls of the one client that compacts between two compactions.
const COMPACTION: u64 = 300;
/// How far back reads of past revisions go.
const PAST: u64 = 4000;

pub(crate) struct Caller {
    index: usize,
    calls: u64,
    /// The modification revisions of keys that it has read last.
    known: BTreeMap<Bytes, i64>,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("chaos/{}", number % KEYS))
}

fn put(key: Bytes, seen: &mut Seen) -> PutRequest {
    PutRequest { key, value: seen.value(), ..PutRequest::default() }
}

impl Caller {
    pub(crate) fn new(index: usize) -> Caller {
        Caller { index, calls: 0, known: BTreeMap::new() }
    }

    pub(crate) fn next(&mut self, seen: &mut Seen) -> Request {
        self.calls += 1;
        if self.index == 0 && self.calls.is_multiple_of(COMPACTION) {
            // Only what is delivered: the watches that follow each member must not lose anything.
            let revision = seen.progress.delivered() - seen.random.below(500) as i64;
            let physical = seen.hits(50);
            return Request::Compact(CompactionRequest { revision: revision.max(1), physical });
        }
        let number = seen.random.below(KEYS);
        let key = key(number);
        match seen.random.below(100) {
            0..30 => Request::Put(put(key, seen)),
            30..50 => Request::Txn(self.swap(number, seen)),
            50..57 => Request::Delete(DeleteRangeRequest { key, ..Default::default() }),
            57..75 => Request::Range(RangeRequest { key, ..Default::default() }),
            75..79 => {
                let past = seen.revision - seen.random.below(PAST) as i64;
                Request::Range(RangeRequest { key, revision: past.max(1), ..Default::default() })
            }
            79..83 => Request::Range(RangeRequest {
                key: Bytes::from_static(b"chaos/"),
                range_end: Bytes::from_static(b"chaos0"),
                ..Default::default()
            }),
            _ => Request::Range(RangeRequest { key, serializable: true, ..Default::default() }),
        }
    }

    /// If the key is as it was read last, put it and sometimes another one too; else read it.
    fn swap(&self, number: u64, seen: &mut Seen) -> TxnRequest {
        let operation = |request| RequestOp { request: Some(request) };
        let name = key(number);
        let expected = self.known.get(&name).copied().unwrap_or(0);
        let mut success = vec![operation(request_op::Request::RequestPut(put(name.clone(), seen)))];
        if seen.hits(50) {
            let other = put(key(number + 1), seen);
            success.push(operation(request_op::Request::RequestPut(other)));
        }
        let get = RangeRequest { key: name.clone(), ..RangeRequest::default() };
        TxnRequest {
            compare: vec![Compare {
                target: compare::CompareTarget::Mod.into(),
                key: name,
                target_union: Some(compare::TargetUnion::ModRevision(expected)),
                ..Compare::default()
            }],
            success,
            failure: vec![operation(request_op::Request::RequestRange(get))],
        }
    }

    pub(crate) fn learn(&mut self, response: &Response) {
        let found = match response {
            Response::Range(range) => Some(range),
            Response::Txn(txn) => match txn.responses.first().and_then(|one| one.response.as_ref())
            {
                Some(Answer::ResponseRange(range)) => Some(range),
                _ => None,
            },
            _ => None,
        };
        for kv in found.into_iter().flat_map(|range| &range.kvs) {
            self.known.insert(kv.key.clone(), kv.mod_revision);
        }
    }
}
