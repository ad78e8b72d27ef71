//! What clients asked and were told, and what members say has happened.
//!
//! The order of calls and returns is a counter, not a time: two steps of one run never coincide. Only
//! leases are about time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use concurrency::Place;
use history::leases::Lease;
use history::watches::WatchRecord;
use history::{Change, Revisions};
use machine::{AuthAnswer, AuthRefusal, Refusal};
use mvcc::{EventKind, RevisionEvents};
use prost::Message;
use proto::mvccpb;
use tokio::time::Instant;
use types::MemberId;

use crate::auth::AuthRequest;
use crate::edge::Witness;
use crate::trace::Trace;

/// What a client asked for.
pub type Request = history::Request<AuthRequest>;

/// What it was told.
pub type Response = history::Response<AuthAnswer>;

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

    /// Whether it was refused because its user may not do it.
    pub fn is_unauthorized(&self) -> bool {
        use machine::AuthRefusal::PermissionDenied;
        let denied = Refusal::Auth(PermissionDenied);
        let Some(Err(failure)) = &self.result else { return false };
        *failure == Failure::Denied(PermissionDenied) || *failure == Failure::Refused(denied)
    }

    /// Whether it gave its client a token.
    pub fn is_login(&self) -> bool {
        matches!(&self.request, Request::Other(AuthRequest::LogIn { .. }))
            && self.response().is_some()
    }

    /// As the judges of keys take it, to whom users and roles are nothing.
    fn of_keys(&self) -> history::Operation {
        use history::Failure as Reason;
        let reason = |failure: &Failure| match failure {
            Failure::Refused(Refusal::Compacted) => Reason::Compacted,
            Failure::Refused(Refusal::FutureRevision) => Reason::FutureRevision,
            Failure::Unknown(_) => Reason::Unknown,
            _ => Reason::NotDone,
        };
        let result = self.result.as_ref().map(|result| match result {
            Ok(response) => Ok(response.clone().map(|_| ())),
            Err(failure) => Err(reason(failure)),
        });
        history::Operation {
            id: self.id,
            process: self.life,
            called: self.called,
            returned: self.returned,
            request: self.request.clone().map(|_| ()),
            result,
        }
    }
}

/// One revision, as the first member that applied it published it.
#[derive(Clone, Debug)]
pub struct PublishedRevision {
    pub changes: Vec<Change>,
    /// When, in the order of calls and returns.
    pub at: u64,
    /// When, in nanoseconds of the run.
    pub time: u64,
    pub by: MemberId,
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
    start: Instant,
    trace: Trace,
}

#[derive(Default)]
struct State {
    clock: u64,
    operations: Vec<Operation>,
    revisions: BTreeMap<i64, PublishedRevision>,
    /// The last revision that each process published.
    lives: BTreeMap<u64, i64>,
    watches: Vec<WatchRecord<u64>>,
    claims: Vec<Claim>,
    leases: Vec<Lease>,
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
        Self { state: Arc::default(), start: Instant::now(), trace }
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
                    let published = PublishedRevision { changes, at, time: self.now(), by };
                    state.revisions.insert(revision, published);
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
    pub fn watched(&self, record: WatchRecord<u64>) {
        self.state().watches.push(record);
    }

    /// A candidate says that it was the first of its name.
    pub fn claimed(&self, claim: Claim) {
        self.trace.note(format_args!("{claim:?}"));
        self.state().claims.push(claim);
    }

    /// The time of the run, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Leases that a client has kept alive.
    pub fn kept(&self, leases: Vec<Lease>) {
        self.state().leases.extend(leases);
    }

    /// All leases that clients have kept alive.
    pub fn leases(&self) -> Vec<Lease> {
        self.state().leases.clone()
    }

    /// When each revision was published first, in nanoseconds of the run.
    pub fn times(&self) -> BTreeMap<i64, u64> {
        let state = self.state();
        state.revisions.iter().map(|(revision, published)| (*revision, published.time)).collect()
    }

    /// What candidates said.
    pub fn claims(&self) -> Vec<Claim> {
        self.state().claims.clone()
    }

    /// All operations, in the order of their calls.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    /// All operations, as the judges of keys take them.
    pub fn operations_of_keys(&self) -> Vec<history::Operation> {
        self.state().operations.iter().map(Operation::of_keys).collect()
    }

    /// All published revisions.
    pub fn revisions(&self) -> Revisions {
        let state = self.state();
        let changes = |(revision, published): (&i64, &PublishedRevision)| {
            (*revision, published.changes.clone())
        };
        state.revisions.iter().map(changes).collect()
    }

    /// All watches.
    pub fn watches(&self) -> Vec<WatchRecord<u64>> {
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

#[cfg(test)]
mod tests {
    use types::{RecordRevision, Revision};

    use super::*;

    /// A member publishes a put of `value` at a revision.
    fn publish(history: &History, member: u64, revision: i64, value: &'static str) {
        let put = mvccpb::KeyValue {
            key: "k".into(),
            value: value.into(),
            mod_revision: revision,
            ..mvccpb::KeyValue::default()
        };
        let event = mvcc::Event {
            kind: EventKind::Put,
            key: "k".into(),
            key_value: put.encode_to_vec().into(),
            record: RecordRevision { main: revision, sub: 0 },
            previous: None,
            create: revision == 2,
        };
        let group = RevisionEvents { revision: Revision(revision), events: vec![event] };
        history.published(MemberId(member), member, &[group]);
    }

    #[test]
    fn members_that_disagree_about_a_revision_are_found() {
        let trace = Trace::new(false);
        let history = History::new(trace.clone());
        publish(&history, 1, 2, "a");
        publish(&history, 2, 2, "a");
        assert_eq!(trace.first_violation(), None);
        publish(&history, 1, 3, "b");
        publish(&history, 2, 3, "c");
        assert!(trace.first_violation().unwrap().contains("disagree"));
    }
}
