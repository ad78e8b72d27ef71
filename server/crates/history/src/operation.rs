//! What clients ask and are told.

use proto::etcdserverpb as pb;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<Other = ()> {
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Range(pb::RangeRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    /// What neither reads nor writes keys.
    Other(Other),
}

/// What it was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Response<Other = ()> {
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Range(pb::RangeResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    /// What is told of something else, and the revision at that moment.
    Other {
        revision: i64,
        told: Other,
    },
}

/// Why there was no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is certain that nothing happened.
    NotDone,
    /// The revision that it is about was compacted.
    Compacted,
    /// The revision that it is about does not exist yet.
    FutureRevision,
    /// A write may have happened, or may still happen.
    Unknown,
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its place among all operations, which are in the order of their calls.
    pub id: usize,
    /// The process that was asked, or a connection to one.
    pub process: u64,
    pub called: u64,
    pub returned: Option<u64>,
    pub request: Request,
    pub result: Option<Result<Response, Failure>>,
}

impl<Other> Request<Other> {
    /// Whether it reads only.
    pub fn is_range(&self) -> bool {
        matches!(self, Self::Range(_))
    }

    /// Whether a true past state is a right answer.
    pub fn is_serializable(&self) -> bool {
        matches!(self, Self::Range(range) if range.serializable)
    }

    /// The same with something else for what is not about keys.
    pub fn map<T>(self, other: impl FnOnce(Other) -> T) -> Request<T> {
        match self {
            Self::Put(put) => Request::Put(put),
            Self::Delete(delete) => Request::Delete(delete),
            Self::Txn(txn) => Request::Txn(txn),
            Self::Range(range) => Request::Range(range),
            Self::Compact(compact) => Request::Compact(compact),
            Self::Grant(grant) => Request::Grant(grant),
            Self::Revoke(revoke) => Request::Revoke(revoke),
            Self::Other(this) => Request::Other(other(this)),
        }
    }
}

impl<Other> Response<Other> {
    /// The header, if it is one of etcd's responses.
    pub fn header(&self) -> Option<&pb::ResponseHeader> {
        match self {
            Self::Put(response) => response.header.as_ref(),
            Self::Delete(response) => response.header.as_ref(),
            Self::Txn(response) => response.header.as_ref(),
            Self::Range(response) => response.header.as_ref(),
            Self::Compact(response) => response.header.as_ref(),
            Self::Grant(response) => response.header.as_ref(),
            Self::Revoke(response) => response.header.as_ref(),
            Self::Other { .. } => None,
        }
    }

    /// The revision that it names.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Other { revision, .. } => *revision,
            _ => self.header().map_or(0, |header| header.revision),
        }
    }

    /// The same with something else for what is not about keys.
    pub fn map<T>(self, other: impl FnOnce(Other) -> T) -> Response<T> {
        match self {
            Self::Put(put) => Response::Put(put),
            Self::Delete(delete) => Response::Delete(delete),
            Self::Txn(txn) => Response::Txn(txn),
            Self::Range(range) => Response::Range(range),
            Self::Compact(compact) => Response::Compact(compact),
            Self::Grant(grant) => Response::Grant(grant),
            Self::Revoke(revoke) => Response::Revoke(revoke),
            Self::Other { revision, told } => Response::Other { revision, told: other(told) },
        }
    }
}

impl Operation {
    /// The response, if there was one.
    pub fn response(&self) -> Option<&Response> {
        self.result.as_ref()?.as_ref().ok()
    }

    /// Whether it may have happened although no response says so.
    pub fn may_have_happened(&self) -> bool {
        matches!(self.result, None | Some(Err(Failure::Unknown)))
    }
}
