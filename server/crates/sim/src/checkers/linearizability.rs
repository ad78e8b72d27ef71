//! Strict serializability by revision.
//!
//! Every response carries its revision, so the only legal order is known and nothing has to be
//! searched: replay all revisions through the model, and see that
//! - each revision is what one operation does on top of the revision before it, that no operation
//!   made two of them, and that none was made by an operation that was told that nothing happened;
//! - each response is the model's, at its revision;
//! - the order agrees with real time: an operation that began after another had returned has at
//!   least its revision, and a greater one if it wrote;
//! - nothing was read before it was written.
//!
//! Serializable reads must be a true past state and never go back within one process.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use machine::Refusal;
use proto::etcdserverpb as pb;

use super::log::{LogOrder, Writer};
use super::model::{Model, puts_of, without_headers};
use crate::history::{Change, Failure, History, Operation, Request, Response};

type Verdict = Result<(), String>;

/// Judges the whole history and answers the model of it. `order` is what is known from the log; what
/// it does not say is found by what operations would have done.
///
/// # Errors
/// What was broken.
pub fn check(history: &History, order: &LogOrder) -> Result<Model, String> {
    let operations = history.operations();
    let mut replay = Replay::new(&operations);
    let revisions = history.revisions();
    let mut published = BTreeMap::new();
    for (revision, log) in &revisions {
        if *revision != replay.model.revision() + 1 {
            return Err(format!("revision {revision} follows {}", replay.model.revision()));
        }
        match order.writers.get(revision) {
            Some(Writer::Expiry(lease)) => replay.expired(*revision, &log.changes, *lease)?,
            known => {
                let known = known.and_then(|writer| match writer {
                    Writer::Operation(id) => Some(*id),
                    Writer::Expiry(_) => None,
                });
                let writer = replay.claim(*revision, &log.changes, known)?;
                published.insert(*revision, operations[writer].called);
            }
        }
        replay.model.push(*revision, &log.changes);
    }
    for operation in &operations {
        replay.judge(operation)?;
    }
    real_time(&operations, &replay.writers)?;
    not_from_the_future(&operations, &published)?;
    serializable_reads_go_forward(&operations)?;
    Ok(replay.model)
}

struct Replay<'h> {
    operations: &'h [Operation],
    model: Model,
    /// Who put a value; every value is put once.
    by_value: BTreeMap<Bytes, usize>,
    /// Operations that were told a revision at which they wrote.
    told: BTreeMap<i64, usize>,
    /// Told operations of which only the model can say whether they wrote.
    revokes: BTreeMap<i64, Vec<usize>>,
    /// Operations whose outcome is unknown and that put nothing that could be recognised.
    unknown: BTreeSet<usize>,
    /// Operations that wrote, with their revision.
    writers: BTreeMap<usize, i64>,
}

/// Whether a response says that the operation wrote.
fn wrote(response: &Response) -> bool {
    match response {
        Response::Put(_) => true,
        Response::Delete(response) => response.deleted > 0,
        Response::Txn(response) => txn_wrote(response),
        Response::Range(_)
        | Response::Compact(_)
        | Response::Grant(_)
        | Response::Revoke(_)
        | Response::Auth(_) => false,
    }
}

fn txn_wrote(response: &pb::TxnResponse) -> bool {
    use pb::response_op::Response as Answer;
    response.responses.iter().any(|operation| match &operation.response {
        Some(Answer::ResponsePut(_)) => true,
        Some(Answer::ResponseDeleteRange(response)) => response.deleted > 0,
        Some(Answer::ResponseTxn(response)) => txn_wrote(response),
        Some(Answer::ResponseRange(_)) | None => false,
    })
}

impl<'h> Replay<'h> {
    fn new(operations: &'h [Operation]) -> Self {
        let mut replay = Self {
            operations,
            model: Model::default(),
            by_value: BTreeMap::new(),
            told: BTreeMap::new(),
            revokes: BTreeMap::new(),
            unknown: BTreeSet::new(),
            writers: BTreeMap::new(),
        };
        for operation in operations {
            for put in puts_of(&operation.request) {
                replay.by_value.insert(put.value.clone(), operation.id);
            }
            match operation.response() {
                Some(Response::Revoke(response)) => {
                    let revision = response.header.as_ref().map_or(0, |header| header.revision);
                    replay.revokes.entry(revision).or_default().push(operation.id);
                }
                Some(response) if wrote(response) => {
                    replay.told.insert(response.revision(), operation.id);
                }
                None if operation.may_have_happened() && !operation.is_range() => {
                    replay.unknown.insert(operation.id);
                }
                _ => {}
            }
        }
        replay
    }

    /// Finds the operation that made a revision and checks that it would do just that.
    fn claim(
        &mut self,
        revision: i64,
        changes: &[Change],
        known: Option<usize>,
    ) -> Result<usize, String> {
        let Some(writer) = known.or_else(|| self.writer_of(revision, changes)) else {
            return Err(format!("nobody asked for revision {revision}: {changes:?}"));
        };
        let operation = &self.operations[writer];
        if let Some(before) = self.writers.insert(writer, revision) {
            return Err(format!("{operation:?} happened twice, at {before} and {revision}"));
        }
        self.unknown.remove(&writer);
        let failed = match &operation.result {
            None | Some(Ok(_) | Err(Failure::Unknown(_))) => false,
            Some(Err(_)) => true,
        };
        if failed {
            return Err(format!("{operation:?} failed, and yet it made revision {revision}"));
        }
        let (_, expected) = self.model.execute(&operation.request, revision - 1);
        if expected != changes {
            return Err(format!(
                "revision {revision} should be {expected:?} by {operation:?}, it is {changes:?}"
            ));
        }
        Ok(writer)
    }

    /// A revision that the leader made because a lease was over.
    fn expired(&self, revision: i64, changes: &[Change], lease: i64) -> Verdict {
        let revoke = Request::Revoke(pb::LeaseRevokeRequest { id: lease });
        let (_, expected) = self.model.execute(&revoke, revision - 1);
        match expected == changes {
            true => Ok(()),
            false => Err(format!(
                "revision {revision} should be {expected:?} by the end of lease {lease}, it is \
                 {changes:?}"
            )),
        }
    }

    fn writer_of(&self, revision: i64, changes: &[Change]) -> Option<usize> {
        let put = changes.iter().find(|change| !change.delete);
        if let Some(put) = put {
            return self.by_value.get(&put.key_value.value).copied();
        }
        if let Some(told) = self.told.get(&revision) {
            return Some(*told);
        }
        let told = self.revokes.get(&revision).into_iter().flatten();
        let candidates = told.chain(&self.unknown);
        // Who began after the revision had been told to anybody did not make it: a lease that is
        // revoked without keys is told the revision at which another operation had deleted them.
        let fits = |id: &&usize| {
            let operation = &self.operations[**id];
            !self.writers.contains_key(id)
                && self.model.execute(&operation.request, revision - 1).1 == changes
                && newest_before(self.operations, operation) < revision
        };
        candidates.into_iter().find(fits).copied()
    }

    /// Checks one operation's answer against the complete model.
    fn judge(&self, operation: &Operation) -> Verdict {
        match &operation.result {
            Some(Ok(response)) => self.judge_response(operation, response),
            Some(Err(Failure::Refused(refusal))) => self.judge_refusal(operation, *refusal),
            _ => Ok(()),
        }
    }

    fn judge_response(&self, operation: &Operation, response: &Response) -> Verdict {
        let revision = response.revision();
        if revision > self.model.revision() {
            return Err(format!(
                "LOST: {operation:?} was told revision {revision}, the last one there is, is {}",
                self.model.revision()
            ));
        }
        let own = self.writers.get(&operation.id);
        if wrote(response) && own != Some(&revision) {
            return Err(format!("LOST: {operation:?} was told that it wrote, it made {own:?}"));
        }
        let base = if own.is_some() { revision - 1 } else { revision };
        let (expected, changes) = self.model.execute(&operation.request, base);
        if own.is_none() && !changes.is_empty() {
            return Err(format!("{operation:?} should have made {changes:?}"));
        }
        match expected {
            Some(expected) if expected != without_headers(response) => {
                Err(format!("{operation:?} should have been told {expected:?}"))
            }
            _ => Ok(()),
        }
    }

    fn judge_refusal(&self, operation: &Operation, refusal: Refusal) -> Verdict {
        let asked = match &operation.request {
            Request::Range(range) => range.revision,
            Request::Compact(compact) => compact.revision,
            _ => return Ok(()),
        };
        let returned = operation.returned.unwrap_or(u64::MAX);
        let plausible = match refusal {
            Refusal::Compacted => self.operations.iter().any(|other| match &other.request {
                // A compaction to the compacted revision itself is refused too.
                Request::Compact(compact) => {
                    let enough = match operation.request {
                        Request::Compact(_) => compact.revision >= asked,
                        _ => compact.revision > asked,
                    };
                    enough && other.called < returned && other.id != operation.id
                }
                _ => false,
            }),
            Refusal::FutureRevision => {
                let serializable =
                    matches!(&operation.request, Request::Range(r) if r.serializable);
                serializable || asked > newest_before(self.operations, operation)
            }
            _ => true,
        };
        if plausible { Ok(()) } else { Err(format!("{operation:?} has no reason to be refused")) }
    }
}

/// The newest revision that had been told to anybody when an operation began.
fn newest_before(operations: &[Operation], operation: &Operation) -> i64 {
    let told = operations
        .iter()
        .filter(|other| other.returned.is_some_and(|returned| returned < operation.called));
    told.filter_map(|other| Some(other.response()?.revision())).max().unwrap_or(1)
}

fn is_serializable(operation: &Operation) -> bool {
    matches!(&operation.request, Request::Range(range) if range.serializable)
}

/// The order of revisions agrees with real time.
fn real_time(operations: &[Operation], writers: &BTreeMap<usize, i64>) -> Verdict {
    let mut returns: Vec<&Operation> =
        operations.iter().filter(|operation| operation.response().is_some()).collect();
    returns.sort_by_key(|operation| operation.returned);
    let mut returned = returns.into_iter().peekable();
    let mut newest: (i64, Option<&Operation>) = (1, None);
    // Operations are in the order of their calls.
    for operation in operations {
        while let Some(before) = returned.next_if(|before| before.returned < Some(operation.called))
        {
            let revision = before.response().map_or(0, Response::revision);
            if revision > newest.0 {
                newest = (revision, Some(before));
            }
        }
        let revision = match (operation.response(), writers.get(&operation.id)) {
            (Some(_), _) if is_serializable(operation) => continue,
            (_, Some(revision)) => *revision,
            (Some(response), None) => response.revision(),
            (None, None) => continue,
        };
        let wrote = writers.contains_key(&operation.id);
        if revision < newest.0 || (wrote && revision == newest.0) {
            return Err(format!(
                "STALE: {operation:?} is of revision {revision}, and yet it began after {:?} had \
                 returned",
                newest.1
            ));
        }
    }
    Ok(())
}

fn not_from_the_future(operations: &[Operation], published: &BTreeMap<i64, u64>) -> Verdict {
    for operation in operations {
        let (Some(response), Some(returned)) = (operation.response(), operation.returned) else {
            continue;
        };
        let revision = response.revision();
        if published.get(&revision).is_some_and(|called| *called > returned) {
            return Err(format!("{operation:?} saw a revision before anybody asked for it"));
        }
    }
    Ok(())
}

fn serializable_reads_go_forward(operations: &[Operation]) -> Verdict {
    // By process; reads of one process are compared if one had returned before the other began.
    let mut processes: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.is_range()) {
        if operation.response().is_some() {
            processes.entry(operation.life).or_default().push(operation);
        }
    }
    for reads in processes.values() {
        let mut returns = reads.clone();
        returns.sort_by_key(|read| read.returned);
        let mut returned = returns.into_iter().peekable();
        let mut newest = 0;
        for read in reads {
            while let Some(before) = returned.next_if(|before| before.returned < Some(read.called))
            {
                newest = newest.max(before.response().map_or(0, Response::revision));
            }
            if read.response().is_some_and(|response| response.revision() < newest) {
                return Err(format!("{read:?} went back behind revision {newest}"));
            }
        }
    }
    Ok(())
}
