//! Requests as they go over the wire, and answers as they come back.

use history::{Request, Response};
use prost::Message;
use proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, ResponseHeader};

pub(crate) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

pub(crate) fn encode(request: &Request) -> (&'static str, Vec<u8>) {
    match request {
        Request::Put(put) => ("/etcdserverpb.KV/Put", put.encode_to_vec()),
        Request::Delete(delete) => ("/etcdserverpb.KV/DeleteRange", delete.encode_to_vec()),
        Request::Txn(txn) => ("/etcdserverpb.KV/Txn", txn.encode_to_vec()),
        Request::Range(range) => ("/etcdserverpb.KV/Range", range.encode_to_vec()),
        Request::Compact(compact) => ("/etcdserverpb.KV/Compact", compact.encode_to_vec()),
        Request::Grant(grant) => ("/etcdserverpb.Lease/LeaseGrant", grant.encode_to_vec()),
        Request::Revoke(revoke) => ("/etcdserverpb.Lease/LeaseRevoke", revoke.encode_to_vec()),
        Request::Other(()) => unreachable!("nobody asks for anything else"),
    }
}

fn message<M: Message + Default>(bytes: &[u8]) -> M {
    M::decode(bytes).unwrap()
}

/// The answer to a request, and the term that it names.
pub(crate) fn decode(request: &Request, bytes: &[u8]) -> (Response, u64) {
    let response = match request {
        Request::Put(_) => Response::Put(message(bytes)),
        Request::Delete(_) => Response::Delete(message(bytes)),
        Request::Txn(_) => Response::Txn(message(bytes)),
        Request::Range(_) => Response::Range(message(bytes)),
        Request::Compact(_) => Response::Compact(message(bytes)),
        Request::Grant(_) => Response::Grant(message(bytes)),
        Request::Revoke(_) => Response::Revoke(message(bytes)),
        Request::Other(()) => unreachable!("nobody asks for anything else"),
    };
    let header = response.header().expect("every answer has a header");
    let ResponseHeader { raft_term, .. } = *header;
    (response, raft_term)
}

pub(crate) fn keep_alive(lease: i64) -> Vec<u8> {
    LeaseKeepAliveRequest { id: lease }.encode_to_vec()
}

/// The time that a lease has left, in seconds; none if it does not exist any more.
pub(crate) fn time_to_live(bytes: &[u8]) -> i64 {
    message::<LeaseKeepAliveResponse>(bytes).ttl
}
