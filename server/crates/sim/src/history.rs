//! What clients asked and were told, and what members say has happened.
//!
//! The order of calls and returns is a counter, not a time: two steps of one run never coincide.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use concurrency::Place;
use machine::{AuthAnswer, AuthRefusal, Refusal};
use mvcc::{EventKind, RevisionEvents};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::mvccpb;
use types::MemberId;
use watch::CreateWatch;

use crate::auth::AuthRequest;
use crate::edge::Witness;
use crate::trace::Trace;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Range(pb::RangeRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    Auth(AuthRequest),
}

/// What it was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Range(pb::RangeResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    Auth(AuthAnswer),
}

impl Response {
    /// The header's revision.
    pub fn revision(&self) -> i64 {
        let header = match self {
            Response::Put(response) => &response.header,
            Response::Delete(response) => &response.header,
            Response::Txn(response) => &response.header,
            Response::Range(response) => &response.header,
            Response::Compact(response) => &response.header,
            Response::Grant(response) => &response.header,
            Response::Revoke(response) => &response.header,
            Response::Auth(answer) => return answer.revision.0,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }
}

/// Why there was no response.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// It is certain that nothing happened.
    NotDone(String),
    /// Every member refused it alike.
    Refused(Refusal),
    /// The member that was asked refused it and proposed nothing.
    Denied(AuthRefusal),
    /// That member does not know the token; it proposed nothing.
    InvalidToken,
    /// A write may have happened, or may still happen.
    Unknown(String),
}

/// One request of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    pub id: usize,
    pub client: u64,
    pub member: MemberId,
    /// The process that was asked.
    pub life: u64,
    pub called: u64,
    pub returned: Option<u64>,
    pub request: Request,
    pub result: Option<Result<Response, Failure>>,
    /// Whom the member took the client for.
    pub witness: Option<Witness>,
}

impl Operation {
    /// The response, if there was one.
    pub fn response(&self) -> Option<&Response> {
        self.result.as_ref()?.as_ref().ok()
    }

    /// Whether it may have happened although no response says so.
    pub fn may_have_happened(&self) -> bool {
        matches!(self.result, None | Some(Err(Failure::Unknown(_))))
    }

    /// Whether it was refused because its user may not do it.
    pub fn is_unauthorized(&self) -> bool {
        use machine::AuthRefusal::PermissionDenied;
        let denied = Refusal::Auth(PermissionDenied);
        let Some(Err(failure)) = &self.result else { return false };
        *failure == Failure::Denied(PermissionDenied) || *failure == Failure::Refused(denied)
    }

    /// Whether it gave its client a token.
    pub fn is_login(&self) -> bool {
        matches!(&self.request, Request::Auth(AuthRequest::LogIn { .. }))
            && self.response().is_some()
    }

    /// Whether it reads only.
    pub fn is_range(&self) -> bool {
        matches!(self.request, Request::Range(_))
    }
}

/// One change of one key, as a member published it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub delete: bool,
    /// Of a deletion only the key and the mod revision.
    pub key_value: mvccpb::KeyValue,
}

/// One revision, as the first member that applied it published it.
#[derive(Clone, Debug)]
pub struct PublishedRevision {
    pub changes: Vec<Change>,
    /// When, in the order of calls and returns.
    pub at: u64,
    pub by: MemberId,
}

/// One watch of one client and everything that came for it.
#[derive(Clone, Debug)]
pub struct WatchRecord {
    pub member: MemberId,
    pub request: CreateWatch,
    pub responses: Vec<pb::WatchResponse>,
    /// The revision up to which it must have everything.
    pub complete: Option<i64>,
}

/// What a candidate believed: that at a revision its key was the oldest under its name.
#[derive(Clone, Debug)]
pub struct Claim {
    pub client: u64,
    pub place: Place,
    pub lease: i64,
    /// The revision; that of a guarded write comes after the moment that was believed in.
    pub revision: i64,
    /// Whether it wrote something as the holder, or was only told that it is.
    pub wrote: bool,
}

/// The history of one run; clones share it.
#[derive(Clone)]
pub struct History {
    state: Arc<Mutex<State>>,
    trace: Trace,
}

#[derive(Default)]
struct State {
    clock: u64,
    operations: Vec<Operation>,
    revisions: BTreeMap<i64, PublishedRevision>,
    /// The last revision that each process published.
    lives: BTreeMap<u64, i64>,
    watches: Vec<WatchRecord>,
    claims: Vec<Claim>,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl History {
    /// Nothing has happened yet.
    pub fn new(trace: Trace) -> Self {
        Self { state: Arc::default(), trace }
    }

    /// A client asks.
    pub fn call(&self, client: u64, member: MemberId, life: u64, request: Request) -> usize {
        let mut state = self.state();
        let (id, called) = (state.operations.len(), state.tick());
        self.trace.note(format_args!("client {client} op {id} to {} {request:?}", member.0));
        state.operations.push(Operation {
            id,
            client,
            member,
            life,
            called,
            returned: None,
            request,
            result: None,
            witness: None,
        });
        id
    }

    /// The client is told.
    pub fn answer(&self, id: usize, result: Result<Response, Failure>, witness: Option<Witness>) {
        let mut state = self.state();
        let returned = state.tick();
        self.trace.note(format_args!("client told op {id} {result:?}"));
        let operation = &mut state.operations[id];
        operation.witness = witness;
        operation.returned = Some(returned);
        operation.result = Some(result);
    }

    /// A process begins to publish after this revision.
    pub fn begin(&self, life: u64, revision: i64) {
        self.state().lives.insert(life, revision);
    }

    /// A process has applied revisions. All members must say the same of each, none may leave one
    /// out.
    pub fn published(&self, member: MemberId, life: u64, revisions: &[RevisionEvents]) {
        let mut guard = self.state();
        let state = &mut *guard;
        for group in revisions {
            let revision = group.revision.0;
            let changes = changes(group);
            let at = state.tick();
            self.trace.note(format_args!(
                "member {} life {life} revision {revision} of {} changes",
                member.0,
                changes.len()
            ));
            let before = state.lives.insert(life, revision).unwrap_or(revision - 1);
            if revision != before + 1 {
                self.trace.violation(format!(
                    "member {} published revision {revision} after {before}",
                    member.0
                ));
            }
            match state.revisions.get(&revision) {
                None => {
                    let by = member;
                    state.revisions.insert(revision, PublishedRevision { changes, at, by });
                }
                Some(known) if known.changes == changes => {}
                Some(known) => self.trace.violation(format!(
                    "members disagree about revision {revision}: member {} had {:?}, member {} has \
                     {changes:?}",
                    known.by.0, known.changes, member.0
                )),
            }
        }
    }

    /// A watch is over, or the run is.
    pub fn watched(&self, record: WatchRecord) {
        self.state().watches.push(record);
    }

    /// A candidate says that it was the first of its name.
    pub fn claimed(&self, claim: Claim) {
        self.trace.note(format_args!("{claim:?}"));
        self.state().claims.push(claim);
    }

    /// What candidates said.
    pub fn claims(&self) -> Vec<Claim> {
        self.state().claims.clone()
    }

    /// All operations, in the order of their calls.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    /// All published revisions.
    pub fn revisions(&self) -> BTreeMap<i64, PublishedRevision> {
        self.state().revisions.clone()
    }

    /// All watches.
    pub fn watches(&self) -> Vec<WatchRecord> {
        self.state().watches.clone()
    }

    /// The newest published revision.
    pub fn last_revision(&self) -> i64 {
        self.state().revisions.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changes(group: &RevisionEvents) -> Vec<Change> {
    let change = |event: &mvcc::Event| Change {
        delete: event.kind == EventKind::Delete,
        key_value: decode(&event.key_value),
    };
    group.events.iter().map(change).collect()
}

/// A stored key-value.
pub fn decode(encoded: &Bytes) -> mvccpb::KeyValue {
    mvccpb::KeyValue::decode(encoded.clone()).expect("a member publishes what it has encoded")
}
