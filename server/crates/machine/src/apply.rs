//! The applier: one entry under one write lock.
//!
//! The order of the gates before a command is etcd's (`apply/uber_applier.go`): CORRUPT refuses
//! whatever changes keys or leases, then NOSPACE refuses what needs space, then the caller's permission
//! is judged, then the command runs. Alarms, checkpoints and what members say about themselves pass all
//! gates, else nobody could ever clear an alarm.

use lease::Lessor;
use mvcc::Writer;
use tables::{AlarmKind, LogPosition, Tables};
use types::{LeaseId, LogIndex, Planted, Revision, Term};

use crate::auth::AuthChange;
use crate::check;
use crate::command::{Caller, Command};
use crate::outcome::{FollowUp, LeaseChange, Operations, Outcome, Refusal, Stop};
use crate::permit::Permit;

/// The state that one entry's commands work on.
pub(crate) struct Applier<'a> {
    pub(crate) writer: Writer<'a>,
    pub(crate) leases: &'a mut Lessor,
    pub(crate) tables: &'a mut Tables,
    /// The term of the entry.
    pub(crate) term: Term,
    /// Its index.
    pub(crate) index: LogIndex,
    pub(crate) lease_changes: Vec<LeaseChange>,
    pub(crate) follow_ups: Vec<FollowUp>,
    pub(crate) auth_changes: Vec<AuthChange>,
    /// What all transactions did.
    pub(crate) operations: Operations,
    /// What the one under way has done so far.
    pub(crate) under_way: Operations,
}

impl<'a> Applier<'a> {
    pub(crate) fn new(
        writer: Writer<'a>,
        leases: &'a mut Lessor,
        tables: &'a mut Tables,
        position: LogPosition,
    ) -> Self {
        Self {
            writer,
            leases,
            tables,
            term: position.term,
            index: position.index,
            lease_changes: Vec::new(),
            follow_ups: Vec::new(),
            auth_changes: Vec::new(),
            operations: Operations::default(),
            under_way: Operations::default(),
        }
    }

    /// Ends a transaction of the store.
    pub(crate) fn end(&mut self) -> Revision {
        self.operations.add(std::mem::take(&mut self.under_way));
        self.writer.end()
    }

    /// Does one command. `answer` says whether this member answers it; else values are not read just
    /// to be thrown away. The effect on the state is the same either way.
    pub(crate) fn run(
        &mut self,
        command: Command,
        caller: &Caller,
        answer: bool,
    ) -> Result<Outcome, Stop> {
        self.pass_alarms(&command)?;
        self.authorize(&command, caller)?;
        self.dispatch(command, caller, answer)
    }

    /// Judges the caller once more: what the edge saw may have changed since. What members do on
    /// their own behalf names no caller and is not judged here.
    fn authorize(&self, command: &Command, caller: &Caller) -> Result<(), Refusal> {
        if !self.tables.auth.is_enabled() || Planted::PermissionAtProposeOnly.is_made() {
            return Ok(());
        }
        let permit = Permit::new(&self.tables.auth, caller);
        match command {
            Command::Put(request) => permit.put(self.leases, request)?,
            Command::DeleteRange(request) => permit.delete_range(request)?,
            Command::Txn(request) => permit.txn(self.leases, request)?,
            Command::LeaseRevoke(request) => permit.lease(self.leases, LeaseId(request.id))?,
            // A grant harms nobody; the edge asks that somebody is there. Compactions and alarms are
            // also made by members themselves, so the edge alone judges those of clients, as in etcd.
            Command::LeaseGrant(_)
            | Command::Compaction(_)
            | Command::Alarm(_)
            | Command::LeaseExpire(_)
            | Command::LeaseCheckpoint(_)
            | Command::MemberAttributes(_)
            | Command::ClusterVersionSet(_)
            | Command::DowngradeInfoSet(_) => {}
            // Judged where it is done: some of them say more than yes or no.
            Command::Auth(_) => {}
        }
        Ok(())
    }

    fn pass_alarms(&self, command: &Command) -> Result<(), Refusal> {
        let alarms = &self.tables.alarms;
        if alarms.any(AlarmKind::CORRUPT) && touches_data(command) {
            return Err(Refusal::Corrupt);
        }
        if alarms.any(AlarmKind::NO_SPACE) && needs_space(command) {
            return Err(Refusal::NoSpace);
        }
        Ok(())
    }

    fn dispatch(
        &mut self,
        command: Command,
        caller: &Caller,
        answer: bool,
    ) -> Result<Outcome, Stop> {
        Ok(match command {
            Command::Put(request) => Outcome::Put(self.put(&request, answer)?),
            Command::DeleteRange(request) => {
                Outcome::DeleteRange(self.delete_range(&request, answer)?)
            }
            Command::Txn(request) => Outcome::Txn(self.txn(&request, answer)?),
            Command::Compaction(request) => Outcome::Compaction(self.compact(&request)?),
            Command::LeaseGrant(request) => Outcome::LeaseGrant(self.lease_grant(&request)?),
            Command::LeaseRevoke(request) => Outcome::LeaseRevoke(self.lease_revoke(&request)?),
            Command::LeaseExpire(expire) => {
                Outcome::LeaseExpire { revoked: self.lease_expire(&expire)? }
            }
            Command::LeaseCheckpoint(request) => {
                Outcome::LeaseCheckpoint(self.lease_checkpoint(&request))
            }
            Command::Alarm(request) => Outcome::Alarm(self.alarm(&request)),
            Command::MemberAttributes(request) => {
                self.set_member_attributes(request)?;
                Outcome::MemberAttributes
            }
            Command::ClusterVersionSet(request) => {
                self.set_cluster_version(&request)?;
                Outcome::ClusterVersionSet
            }
            Command::DowngradeInfoSet(request) => {
                self.set_downgrade(request);
                Outcome::DowngradeInfoSet
            }
            Command::Auth(command) => Outcome::Auth(self.auth_command(command, caller)?),
        })
    }
}

/// What CORRUPT refuses (etcd `apply/corrupt.go`).
fn touches_data(command: &Command) -> bool {
    match command {
        Command::Put(_)
        | Command::DeleteRange(_)
        | Command::Txn(_)
        | Command::Compaction(_)
        | Command::LeaseGrant(_)
        | Command::LeaseRevoke(_)
        | Command::LeaseExpire(_) => true,
        Command::LeaseCheckpoint(_)
        | Command::Alarm(_)
        | Command::MemberAttributes(_)
        | Command::ClusterVersionSet(_)
        | Command::DowngradeInfoSet(_)
        | Command::Auth(_) => false,
    }
}

/// What NOSPACE refuses (etcd `apply/capped.go`). Reads and deletions go on, so that space can be
/// made (trap T33).
fn needs_space(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant(_) => true,
        Command::Txn(request) => check::txn_cost(request) > 0,
        _ => false,
    }
}
