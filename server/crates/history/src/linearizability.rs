//! Strict serializability by revision.
//!
//! Every response carries its revision, so the only legal order is known and nothing has to be
//! searched: replay all revisions through the model, and see that
//! - each revision is what one operation does on top of the revision before it, that no operation
//!   made two of them, and that none was made by an operation that was told that nothing happened;
//! - each response is the model's, at its revision;
//! - the order agrees with real time: an operation that began after another had returned has at
//!   least its revision, and a greater one if it wrote. So nothing was read before its writer began;
//! - what was compacted is not read any more.
//!
//! Serializable reads must be a true past state and never go back within one process.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::etcdserverpb as pb;

use super::model::{Model, puts_of, without_headers};
use super::{Change, Failure, Operation, Request, Response, Revisions, Writer};

type Verdict = Result<(), String>;

/// What a right history comes to.
#[derive(Debug)]
pub struct Judged {
    pub model: Model,
    /// Who made each revision.
    pub writers: BTreeMap<i64, Writer>,
    /// Operations that were not answered and have made a revision nevertheless.
    pub resolved: usize,
}

/// Judges the whole history. `known` is what the log says about who made a revision; what it does not
/// say is found by what operations would have done.
///
/// # Errors
/// What was broken.
pub fn check(
    operations: &[Operation],
    revisions: &Revisions,
    known: &BTreeMap<i64, Writer>,
) -> Result<Judged, String> {
    let mut replay = Replay::new(operations);
    let mut writers = BTreeMap::new();
    for (revision, changes) in revisions {
        if *revision != replay.model.revision() + 1 {
            return Err(format!("revision {revision} follows {}", replay.model.revision()));
        }
        let writer = replay.writer(*revision, changes, known.get(revision).copied())?;
        writers.insert(*revision, writer);
        replay.model.push(*revision, changes);
    }
    for operation in operations {
        replay.judge(operation)?;
    }
    replay.real_time()?;
    reads_of_a_process_go_forward(operations)?;
    let resolved = replay.made.keys().filter(|id| operations[**id].may_have_happened()).count();
    Ok(Judged { model: replay.model, writers, resolved })
}

/// What had been told to anybody until a moment, by the times of the answers.
struct Told<'h>(Vec<(u64, i64, &'h Operation)>);

impl<'h> Told<'h> {
    fn new(operations: &'h [Operation]) -> Self {
        let answer = |operation: &'h Operation| {
            Some((operation.returned?, operation.response()?.revision(), operation))
        };
        let mut answers: Vec<_> = operations.iter().filter_map(answer).collect();
        answers.sort_by_key(|(returned, ..)| *returned);
        let mut newest: Option<(i64, &Operation)> = None;
        for (_, revision, operation) in &mut answers {
            match newest {
                Some(before) if before.0 >= *revision => (*revision, *operation) = before,
                _ => newest = Some((*revision, operation)),
            }
        }
        Self(answers)
    }

    /// The newest revision that had been told when an operation began, and by which answer.
    fn before(&self, called: u64) -> Option<(i64, &'h Operation)> {
        let count = self.0.partition_point(|(returned, ..)| *returned < called);
        self.0[..count].last().map(|(_, revision, operation)| (*revision, *operation))
    }

    fn revision_before(&self, operation: &Operation) -> i64 {
        self.before(operation.called).map_or(1, |(revision, _)| revision)
    }
}

struct Replay<'h> {
    operations: &'h [Operation],
    model: Model,
    told: Told<'h>,
    /// Who put a value; every value is put once.
    by_value: BTreeMap<Bytes, usize>,
    /// Operations that were told a revision at which they wrote.
    wrote: BTreeMap<i64, usize>,
    /// Told operations of which only the model can say whether they wrote.
    revokes: BTreeMap<i64, Vec<usize>>,
    /// Operations whose outcome is unknown and that put nothing that could be recognised.
    unknown: BTreeSet<usize>,
    /// The revisions that operations asked to compact.
    compactions: Vec<(i64, &'h Operation)>,
    /// Operations that wrote, with their revision.
    made: BTreeMap<usize, i64>,
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
        | Response::Other { .. } => false,
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
            told: Told::new(operations),
            by_value: BTreeMap::new(),
            wrote: BTreeMap::new(),
            revokes: BTreeMap::new(),
            unknown: BTreeSet::new(),
            compactions: Vec::new(),
            made: BTreeMap::new(),
        };
        for operation in operations {
            for put in puts_of(&operation.request) {
                replay.by_value.insert(put.value.clone(), operation.id);
            }
            if let Request::Compact(compact) = &operation.request {
                replay.compactions.push((compact.revision, operation));
            }
            match operation.response() {
                Some(response @ Response::Revoke(_)) => {
                    replay.revokes.entry(response.revision()).or_default().push(operation.id);
                }
                Some(response) if wrote(response) => {
                    replay.wrote.insert(response.revision(), operation.id);
                }
                None if operation.may_have_happened() && !operation.request.is_range() => {
                    replay.unknown.insert(operation.id);
                }
                _ => {}
            }
        }
        replay
    }

    /// Who made a revision, which must be what they do on top of the one before.
    fn writer(
        &mut self,
        revision: i64,
        changes: &[Change],
        known: Option<Writer>,
    ) -> Result<Writer, String> {
        let writer = known.or_else(|| {
            let operation = self.operation_of(revision, changes).map(Writer::Operation);
            operation.or_else(|| self.expiry_of(revision, changes).map(Writer::Expiry))
        });
        match writer {
            None => return Err(format!("nobody asked for revision {revision}: {changes:?}")),
            Some(Writer::Operation(id)) => self.claim(revision, changes, id)?,
            Some(Writer::Expiry(lease)) => {
                let expected = self.revoked(lease, revision);
                if expected != changes {
                    return Err(format!(
                        "revision {revision} should be {expected:?} by the end of lease {lease}, \
                         it is {changes:?}"
                    ));
                }
            }
        }
        writer.ok_or_else(|| format!("revision {revision} has no writer"))
    }

    /// Checks that an operation would do just what its revision is.
    fn claim(&mut self, revision: i64, changes: &[Change], writer: usize) -> Verdict {
        let operation = &self.operations[writer];
        if let Some(before) = self.made.insert(writer, revision) {
            return Err(format!("{operation:?} happened twice, at {before} and {revision}"));
        }
        self.unknown.remove(&writer);
        let failed = match &operation.result {
            None | Some(Ok(_) | Err(Failure::Unknown)) => false,
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
        Ok(())
    }

    /// What the end of a lease does.
    fn revoked(&self, lease: i64, revision: i64) -> Vec<Change> {
        let revoke: Request = Request::Revoke(pb::LeaseRevokeRequest { id: lease });
        self.model.execute(&revoke, revision - 1).1
    }

    fn operation_of(&self, revision: i64, changes: &[Change]) -> Option<usize> {
        let put = changes.iter().find(|change| !change.delete);
        if let Some(put) = put {
            return self.by_value.get(&put.key_value.value).copied();
        }
        if let Some(told) = self.wrote.get(&revision) {
            return Some(*told);
        }
        let told = self.revokes.get(&revision).into_iter().flatten();
        let candidates = told.chain(&self.unknown);
        // Who began after the revision had been told to anybody did not make it: a lease that is
        // revoked without keys is told the revision at which another operation had deleted them.
        // Deletions write no value that would tell whose they are. The earliest operation may have
        // made any of the revisions that a later one may have made.
        let fits = |id: &&usize| {
            let operation = &self.operations[**id];
            !self.made.contains_key(id)
                && self.model.execute(&operation.request, revision - 1).1 == changes
                && self.told.revision_before(operation) < revision
        };
        candidates.into_iter().find(fits).copied()
    }

    /// The lease whose end made a revision, if one's would have.
    fn expiry_of(&self, revision: i64, changes: &[Change]) -> Option<i64> {
        let first = self.model.at(&changes.first()?.key_value.key, revision - 1)?;
        let lease = Some(first.lease).filter(|lease| *lease != 0)?;
        (self.revoked(lease, revision) == changes).then_some(lease)
    }

    /// Checks one operation's answer against the complete model.
    fn judge(&self, operation: &Operation) -> Verdict {
        match &operation.result {
            Some(Ok(response)) => self.judge_response(operation, response),
            Some(Err(failure)) => self.judge_failure(operation, *failure),
            None => Ok(()),
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
        let own = self.made.get(&operation.id);
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
            _ => self.judge_past(operation),
        }
    }

    /// A linearizable read of a past revision comes before the compaction of it.
    fn judge_past(&self, operation: &Operation) -> Verdict {
        let Request::Range(range) = &operation.request else { return Ok(()) };
        if range.revision == 0 || range.serializable {
            return Ok(());
        }
        let compacted = self.compactions.iter().find(|(revision, compaction)| {
            *revision > range.revision
                && compaction.response().is_some()
                && compaction.returned.is_some_and(|returned| returned < operation.called)
        });
        match compacted {
            Some((_, compaction)) => {
                Err(format!("COMPACTED: {operation:?} was served after {compaction:?}"))
            }
            None => Ok(()),
        }
    }

    fn judge_failure(&self, operation: &Operation, failure: Failure) -> Verdict {
        let asked = match &operation.request {
            Request::Range(range) => range.revision,
            Request::Compact(compact) => compact.revision,
            _ => return Ok(()),
        };
        let returned = operation.returned.unwrap_or(u64::MAX);
        let plausible = match failure {
            Failure::Compacted => self.compactions.iter().any(|(revision, compaction)| {
                // A compaction to the compacted revision itself is refused too.
                let enough = match operation.request {
                    Request::Compact(_) => *revision >= asked,
                    _ => *revision > asked,
                };
                enough && compaction.called < returned && compaction.id != operation.id
            }),
            Failure::FutureRevision => {
                let serializable = operation.request.is_serializable();
                serializable || asked > self.told.revision_before(operation)
            }
            Failure::NotDone | Failure::Unknown => true,
        };
        if plausible { Ok(()) } else { Err(format!("{operation:?} has no reason to be refused")) }
    }

    /// The order of revisions agrees with real time.
    fn real_time(&self) -> Verdict {
        for operation in self.operations {
            let own = self.made.get(&operation.id);
            let revision = match (operation.response(), own) {
                (Some(_), _) if operation.request.is_serializable() => continue,
                (_, Some(revision)) => *revision,
                (Some(response), None) => response.revision(),
                (None, None) => continue,
            };
            let Some((newest, before)) = self.told.before(operation.called) else { continue };
            if revision < newest || (own.is_some() && revision == newest) {
                return Err(format!(
                    "STALE: {operation:?} is of revision {revision}, and yet it began after \
                     {before:?} had returned"
                ));
            }
        }
        Ok(())
    }
}

fn reads_of_a_process_go_forward(operations: &[Operation]) -> Verdict {
    // Reads of one process are compared if one had returned before the other began.
    let mut processes: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.request.is_range()) {
        if operation.response().is_some() {
            processes.entry(operation.process).or_default().push(operation);
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
