//! The log is the one order of everything: each command in it is replayed through models of keys and
//! of users and roles that share no code with the members, and must have come to the same.
//!
//! - What a caller was not allowed at that place is refused, whatever the edge had seen; what it was
//!   allowed is not refused for its permissions.
//! - A change of keys is what the model makes of the command, at the revision that comes next.
//! - A lease is never ended by time before its time, nor by the leader of an older term than the
//!   entry's.
//! - Users and roles of every member are the model's at the index that it has applied.
//! - An operation is in the log once at most, is there if its client was told that it was done, and is
//!   not there if it was told that nothing happened. Operations that follow each other in real time
//!   do so in the log; a linearizable read is of an index that is not before what was told earlier.
//! - A member takes a client for a user only by a token that was registered before and not taken back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes};
use history::{Change, Model, Revisions, Writer, puts_of};
use machine::{AuthBody, AuthRefusal, Caller, CommandKind, Outcome, Refusal};
use prost::Message;
use proto::etcdserverpb as pb;
use types::Term;

use super::auth::AuthModel;
use crate::auth::{AuthRequest, tag_of};
use crate::edge::Witness;
use crate::history::{Failure, History, Operation, Request, Response};
use crate::journal::{Journal, Logged, LoggedEntry};

type Verdict = Result<(), String>;

/// A place in the log: the index, and the command's number in the entry.
type Place = (u64, usize);

/// What follows from the log for the other judges.
#[derive(Debug, Default)]
pub struct LogOrder {
    /// Who made each revision.
    pub writers: BTreeMap<i64, Writer>,
    /// The revision at which a lease was gone.
    pub ended: BTreeMap<i64, i64>,
}

/// Judges everything that was applied.
///
/// # Errors
/// What was broken.
pub fn check(history: &History, journal: &Journal) -> Result<LogOrder, String> {
    let operations = history.operations();
    let revisions = history.revisions();
    let mut replay = Replay {
        revisions: &revisions,
        model: Model::default(),
        auth: AuthModel::default(),
        auths: BTreeMap::from([(0, AuthModel::default())]),
        leases: BTreeMap::new(),
        tokens: BTreeMap::new(),
        taken_back: Vec::new(),
        places: BTreeMap::new(),
        outcomes: BTreeMap::new(),
        order: LogOrder::default(),
    };
    for (number, (index, entry)) in journal.entries().iter().enumerate() {
        if *index != number as u64 + 1 {
            return Err(format!("nobody applied index {}", number + 1));
        }
        replay.entry(*index, entry)?;
    }
    if replay.model.revision() != history.last_revision() {
        let (made, published) = (replay.model.revision(), history.last_revision());
        return Err(format!("the log makes revision {made}, members published {published}"));
    }
    for sample in journal.samples() {
        let known = replay.auth_at(sample.index).compare(&sample.auth);
        known.map_err(|what| {
            format!("AUTH of member {} at index {}: {what}", sample.member.0, sample.index)
        })?;
    }
    for operation in &operations {
        replay.judge(operation)?;
        replay.judge_witness(operation)?;
    }
    real_time(&operations, &replay.places)?;
    Ok(replay.order)
}

struct Lease {
    ttl: i64,
    granted: Duration,
}

struct Replay<'h> {
    revisions: &'h Revisions,
    model: Model,
    auth: AuthModel,
    /// Users and roles after each index that changed them.
    auths: BTreeMap<u64, AuthModel>,
    leases: BTreeMap<i64, Lease>,
    /// The user of a token and the index that registered it.
    tokens: BTreeMap<String, (String, u64)>,
    /// From when on tokens of a user, or all of them, are void.
    taken_back: Vec<(u64, Option<String>)>,
    places: BTreeMap<usize, Place>,
    outcomes: BTreeMap<usize, Outcome>,
    order: LogOrder,
}

/// What must come of a command.
enum Expected {
    Done,
    Refused(Refusal),
    /// The model does not know, but it is not its caller's permissions that decide.
    Permitted,
}

impl Expected {
    fn of(verdict: Result<(), AuthRefusal>, otherwise: Expected) -> Self {
        verdict.map_or_else(|refusal| Self::Refused(refusal.into()), |()| otherwise)
    }
}

/// A command of the log as a client's request; none for those of the members.
fn request_of(kind: CommandKind, body: &Bytes) -> Option<Request> {
    let body = body.clone();
    match kind {
        CommandKind::Put => pb::PutRequest::decode(body).ok().map(Request::Put),
        CommandKind::DeleteRange => pb::DeleteRangeRequest::decode(body).ok().map(Request::Delete),
        CommandKind::Txn => pb::TxnRequest::decode(body).ok().map(Request::Txn),
        CommandKind::Compaction => pb::CompactionRequest::decode(body).ok().map(Request::Compact),
        CommandKind::LeaseGrant => pb::LeaseGrantRequest::decode(body).ok().map(Request::Grant),
        CommandKind::LeaseRevoke => pb::LeaseRevokeRequest::decode(body).ok().map(Request::Revoke),
        _ => AuthRequest::decode(kind, body).map(Request::Other),
    }
}

/// The term and the leases of an expiry, whose form is that of the log.
fn expiry_of(mut body: Bytes) -> Option<(Term, Vec<i64>)> {
    let term = Term(body.try_get_u64_le().ok()?);
    let count = body.try_get_u32_le().ok()?;
    let ids = (0..count).map(|_| body.try_get_i64_le().ok()).collect::<Option<_>>()?;
    Some((term, ids))
}

impl Replay<'_> {
    fn entry(&mut self, index: u64, entry: &LoggedEntry) -> Verdict {
        for (number, command) in entry.commands.iter().enumerate() {
            let place = (index, number);
            let body = &command.proposal.body;
            let judged = match request_of(command.proposal.kind, body) {
                Some(request) => self.command(place, entry, command, request),
                // It changes no key, and when leases end is not judged here.
                None if command.proposal.kind == CommandKind::LeaseCheckpoint => {
                    compare(&Expected::Done, command)
                }
                None => self.expire(entry, command),
            };
            judged.map_err(|what| format!("index {index}, {command:?}: {what}"))?;
        }
        if self.auths.values().next_back() != Some(&self.auth) {
            self.auths.insert(index, self.auth.clone());
        }
        Ok(())
    }

    fn command(
        &mut self,
        place: Place,
        entry: &LoggedEntry,
        command: &Logged,
        request: Request,
    ) -> Verdict {
        let Some(operation) = tag_of(&command.proposal.body) else {
            return Err("nobody asked for it".to_owned());
        };
        if let Some(before) = self.places.insert(operation, place) {
            return Err(format!("operation {operation} happened twice, first at {before:?}"));
        }
        if let Some(outcome) = &command.outcome {
            self.outcomes.insert(operation, outcome.clone());
        }
        let caller = &command.proposal.caller;
        if let Request::Other(request) = request {
            return self.auth_command(place.0, command, request, caller);
        }
        compare(&self.expected(&request, caller), command)?;
        if !command.done {
            return Ok(());
        }
        match &request {
            Request::Grant(grant) => {
                self.leases.insert(grant.id, Lease { ttl: grant.ttl, granted: entry.at });
                Ok(())
            }
            Request::Revoke(revoke) => {
                self.leases.remove(&revoke.id);
                self.write(&request, Writer::Operation(operation))?;
                self.order.ended.insert(revoke.id, self.model.revision());
                Ok(())
            }
            _ => self.write(&request, Writer::Operation(operation)),
        }
    }

    fn expected(&self, request: &Request, caller: &Caller) -> Expected {
        let lease_exists = |id: i64| id == 0 || self.leases.contains_key(&id);
        let attached = |id: i64| match id {
            0 => Vec::new(),
            id => self.model.attached(id),
        };
        match request {
            Request::Put(put) => {
                let otherwise = match lease_exists(put.lease) {
                    true => Expected::Done,
                    false => Expected::Refused(Refusal::LeaseNotFound),
                };
                Expected::of(self.auth.put(caller, put, &attached(put.lease)), otherwise)
            }
            Request::Delete(delete) => {
                Expected::of(self.auth.delete(caller, delete), Expected::Done)
            }
            Request::Txn(txn) => {
                let leases = puts_of(request).iter().all(|put| lease_exists(put.lease));
                let otherwise = if leases { Expected::Done } else { Expected::Permitted };
                Expected::of(self.txn(caller, txn), otherwise)
            }
            Request::Grant(grant) if self.leases.contains_key(&grant.id) => {
                Expected::Refused(Refusal::LeaseExists)
            }
            Request::Grant(_) => Expected::Done,
            Request::Revoke(revoke) => {
                let otherwise = match self.leases.contains_key(&revoke.id) {
                    true => Expected::Done,
                    false => Expected::Refused(Refusal::LeaseNotFound),
                };
                Expected::of(self.auth.lease(caller, &attached(revoke.id)), otherwise)
            }
            Request::Compact(_) | Request::Range(_) | Request::Other(_) => Expected::Permitted,
        }
    }

    fn txn(&self, caller: &Caller, txn: &pb::TxnRequest) -> Result<(), AuthRefusal> {
        use pb::request_op::Request as Op;
        for compare in &txn.compare {
            self.auth.read(caller, &compare.key, &compare.range_end)?;
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            match &operation.request {
                Some(Op::RequestPut(put)) => {
                    let attached =
                        if put.lease == 0 { Vec::new() } else { self.model.attached(put.lease) };
                    self.auth.put(caller, put, &attached)?;
                }
                Some(Op::RequestDeleteRange(delete)) => self.auth.delete(caller, delete)?,
                Some(Op::RequestRange(range)) => {
                    self.auth.read(caller, &range.key, &range.range_end)?;
                }
                Some(Op::RequestTxn(txn)) => self.txn(caller, txn)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Does on the model what a command did on the members.
    fn write(&mut self, request: &Request, writer: Writer) -> Verdict {
        let (_, changes) = self.model.execute(request, self.model.revision());
        if changes.is_empty() {
            return Ok(());
        }
        let revision = self.model.revision() + 1;
        let published: &[Change] = self.revisions.get(&revision).map_or(&[], Vec::as_slice);
        if published != changes {
            return Err(format!("revision {revision} is {published:?} and should be {changes:?}"));
        }
        self.model.push(revision, &changes);
        self.order.writers.insert(revision, writer);
        Ok(())
    }

    fn expire(&mut self, entry: &LoggedEntry, command: &Logged) -> Verdict {
        let proposal = &command.proposal;
        let expiry = (proposal.kind == CommandKind::LeaseExpire)
            .then(|| expiry_of(proposal.body.clone()))
            .flatten();
        let Some((term, ids)) = expiry else { return Err("nobody asked for it".to_owned()) };
        let (proposed, applied) = (term, entry.term);
        let expected = match proposed < applied {
            true => Expected::Refused(Refusal::StaleTerm { proposed, applied }),
            false => Expected::Done,
        };
        compare(&expected, command)?;
        for id in ids.into_iter().filter(|_| command.done) {
            let Some(lease) = self.leases.remove(&id) else { continue };
            let lived = entry.at.saturating_sub(lease.granted);
            if lived < Duration::from_secs(lease.ttl.unsigned_abs()) {
                return Err(format!("lease {id} of {} s was over after {lived:?}", lease.ttl));
            }
            let revoke = Request::Revoke(pb::LeaseRevokeRequest { id });
            self.write(&revoke, Writer::Expiry(id))?;
            self.order.ended.insert(id, self.model.revision());
        }
        Ok(())
    }

    fn auth_command(
        &mut self,
        index: u64,
        command: &Logged,
        request: AuthRequest,
        caller: &Caller,
    ) -> Verdict {
        let before = self.auth.revision();
        let told = self.auth.apply(request.clone(), caller, index);
        if self.auth.revision() < before {
            return Err("the auth revision went back".to_owned());
        }
        let expected = match &told {
            Ok(_) => Expected::Done,
            Err(refusal) => Expected::Refused((*refusal).into()),
        };
        compare(&expected, command)?;
        let Ok(body) = told else { return Ok(()) };
        if let Some(Outcome::Auth(answer)) = &command.outcome
            && (answer.body != body || answer.revision.0 != self.model.revision())
        {
            return Err(format!("should have been told {body:?}"));
        }
        match request {
            AuthRequest::Authenticate(request) => {
                if let AuthBody::Token(token) = body {
                    self.tokens.insert(token, (request.name, index));
                }
            }
            AuthRequest::UserDelete(request) => self.taken_back.push((index, Some(request.name))),
            AuthRequest::UserChangePassword(request) => {
                self.taken_back.push((index, Some(request.name)));
            }
            AuthRequest::Disable(_) if self.auth.revision() > before => {
                self.taken_back.push((index, None));
            }
            _ => {}
        }
        Ok(())
    }

    /// Users and roles at an index.
    fn auth_at(&self, index: u64) -> &AuthModel {
        let (_, auth) = self.auths.range(..=index).next_back().expect("there is a first one");
        auth
    }

    /// Compares what a client was told with what the log says.
    fn judge(&self, operation: &Operation) -> Verdict {
        let place = self.places.get(&operation.id);
        let outcome = self.outcomes.get(&operation.id);
        let (Some(result), false) = (&operation.result, operation.request.is_range()) else {
            return Ok(());
        };
        match (result, place) {
            (Ok(_), None) => return Err(format!("LOST: {operation:?} is not in the log")),
            (Err(Failure::Refused(_)), None) => {
                return Err(format!("{operation:?} was refused by a log that does not have it"));
            }
            (Err(Failure::NotDone(_) | Failure::Denied(_) | Failure::InvalidToken), Some(at)) => {
                return Err(format!("{operation:?} is in the log at {at:?}"));
            }
            _ => {}
        }
        let told = match (result, outcome) {
            (Ok(Response::Other { told, .. }), Some(Outcome::Auth(logged))) => told == logged,
            (Ok(_), Some(Outcome::Refused(_))) => false,
            (Err(Failure::Refused(told)), Some(Outcome::Refused(logged))) => told == logged,
            (Err(Failure::Refused(_)), Some(_)) => false,
            _ => true,
        };
        if told { Ok(()) } else { Err(format!("{operation:?} is {outcome:?} in the log")) }
    }

    /// Whom the member took the client for, and what it showed it.
    fn judge_witness(&self, operation: &Operation) -> Verdict {
        if let Request::Other(AuthRequest::LogIn { user, password }) = &operation.request {
            return self.judge_login(operation, user, password);
        }
        let Some(witness) = &operation.witness else { return Ok(()) };
        let (caller, index) = (&witness.caller, witness.recognised);
        let auth = self.auth_at(index);
        if caller.auth_revision == 0 {
            if witness.token.is_some() && auth.is_enabled() {
                return Err(format!("{operation:?} showed a token and was taken for nobody"));
            }
        } else {
            let token = witness.token.as_deref().unwrap_or_default();
            self.token(token, &caller.user, index)
                .map_err(|what| format!("TOKEN of {operation:?}: {what}"))?;
            if caller.auth_revision != auth.revision() {
                return Err(format!("{operation:?} was judged by another revision of auth"));
            }
        }
        match &operation.request {
            Request::Range(range) => self.judge_read(operation, range, witness),
            Request::Compact(_) => {
                // A request that only the edge judges.
                let denied = auth.admin(&caller.user).err();
                match &operation.result {
                    Some(Err(Failure::Denied(refusal))) if denied != Some(*refusal) => {
                        Err(format!("{operation:?} has no reason to be denied"))
                    }
                    Some(Ok(_)) if denied.is_some() => {
                        Err(format!("UNAUTHORIZED: {operation:?} at index {index}"))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn judge_login(&self, operation: &Operation, user: &str, password: &str) -> Verdict {
        let (Some(Response::Other { .. }), Some((index, _))) =
            (operation.response(), self.places.get(&operation.id))
        else {
            return Ok(());
        };
        // An entry may hold changes of auth behind the login; those before it are what counts, and
        // the model has compared the revision already.
        let known = [self.auth_at(index - 1), self.auth_at(*index)];
        match known.iter().any(|auth| auth.password_of(user) == Some(password)) {
            true => Ok(()),
            false => Err(format!("{operation:?} got a token for a wrong password")),
        }
    }

    /// Whether a token makes one a user at an index.
    fn token(&self, token: &str, user: &str, index: u64) -> Verdict {
        let Some((owner, registered)) = self.tokens.get(token) else {
            return Err("nobody registered it".to_owned());
        };
        if owner != user || *registered > index {
            return Err(format!("it is {owner}'s, from index {registered} on"));
        }
        let void = self.taken_back.iter().find(|(at, whose)| {
            *at > *registered && *at <= index && whose.as_ref().is_none_or(|whose| whose == user)
        });
        match void {
            Some((at, _)) => Err(format!("it was taken back at index {at}, before {index}")),
            None => Ok(()),
        }
    }

    fn judge_read(
        &self,
        operation: &Operation,
        range: &pb::RangeRequest,
        witness: &Witness,
    ) -> Verdict {
        let may =
            |index: u64| self.auth_at(index).read(&witness.caller, &range.key, &range.range_end);
        let changed = |index: u64| match witness.caller.auth_revision {
            0 => self.auth_at(index).is_enabled(),
            revision => self.auth_at(index).revision() != revision,
        };
        match &operation.result {
            Some(Ok(_)) => match may(witness.read) {
                Ok(()) => Ok(()),
                Err(refusal) => Err(format!("UNAUTHORIZED: {operation:?}: {refusal}")),
            },
            Some(Err(Failure::Denied(_))) => {
                let denied = may(witness.read).is_err() || changed(witness.confirmed);
                match denied {
                    true => Ok(()),
                    false => Err(format!("{operation:?} has no reason to be denied")),
                }
            }
            _ => Ok(()),
        }
    }
}

fn compare(expected: &Expected, command: &Logged) -> Verdict {
    let refusal = match &command.outcome {
        Some(Outcome::Refused(refusal)) => Some(refusal),
        _ => None,
    };
    match expected {
        Expected::Done if !command.done => Err("refused for no reason".to_owned()),
        Expected::Refused(reason) if command.done => {
            let what = if matches!(reason, Refusal::Auth(_)) { "UNAUTHORIZED: " } else { "" };
            Err(format!("{what}it was done and should have been refused: {reason}"))
        }
        Expected::Refused(reason) if refusal.is_some_and(|refusal| refusal != reason) => {
            Err(format!("should have been refused: {reason}"))
        }
        Expected::Permitted if matches!(refusal, Some(Refusal::Auth(_))) => {
            Err("refused although it is permitted".to_owned())
        }
        _ => Ok(()),
    }
}

/// What follows in real time follows in the log.
fn real_time(operations: &[Operation], places: &BTreeMap<usize, Place>) -> Verdict {
    let was_told = |operation: &&Operation| {
        matches!(operation.result, Some(Ok(_) | Err(Failure::Refused(_))))
            && places.contains_key(&operation.id)
    };
    let mut returns: Vec<&Operation> = operations.iter().filter(was_told).collect();
    returns.sort_by_key(|operation| operation.returned);
    let mut returned = returns.into_iter().peekable();
    let mut newest: Place = (0, 0);
    for operation in operations {
        while let Some(before) = returned.next_if(|before| before.returned < Some(operation.called))
        {
            newest = newest.max(places[&before.id]);
        }
        let stale = match (places.get(&operation.id), &operation.request, &operation.witness) {
            (Some(place), _, _) => *place <= newest && newest != (0, 0),
            (None, Request::Range(range), Some(witness)) => {
                !range.serializable && operation.response().is_some() && witness.read < newest.0
            }
            _ => false,
        };
        if stale {
            return Err(format!(
                "STALE: {operation:?} is at {:?}, and yet it began after {newest:?} was told",
                places.get(&operation.id)
            ));
        }
    }
    Ok(())
}
