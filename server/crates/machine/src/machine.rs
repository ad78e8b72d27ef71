//! The machine: its parts, the loop over entries, and the gate between sweeps and images.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use lease::Lessor;
use mvcc::{Store, StoreMeta, Sweep};
use revlog::{RevStore, RevStoreError};
use tables::{LogPosition, MembershipEntry, Tables};
use types::{ClusterId, MemberId, Revision};

use crate::apply::Applier;
use crate::command::{Batch, Command};
use crate::digest::Digest;
use crate::entry::{AppliedEntry, AppliedPayload};
use crate::image::ImageJob;
use crate::outcome::{Applied, Fatal, Operations, Outcome};
use crate::snapshot::SnapshotJob;
use crate::views::{Shared, State, Views};

/// Whose requests' outcomes apply returns. Those of other members are not even put together, which
/// spares a follower the reads that only a response needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Everybody's.
    #[default]
    All,
    /// Those of this member's clients.
    Only(MemberId),
}

impl Answers {
    fn include(self, origin: MemberId) -> bool {
        match self {
            Answers::All => true,
            Answers::Only(member) => member == origin,
        }
    }
}

/// The whole replicated state and its one writer.
pub struct Machine {
    pub(crate) store: Arc<Store>,
    pub(crate) state: Shared,
    pub(crate) gate: Arc<Gate>,
    answers: Answers,
    stopped: bool,
}

impl Machine {
    /// The state of a cluster in which nothing has happened. The record store must be empty.
    pub fn new(records: Arc<dyn RevStore>, cluster_id: ClusterId) -> Self {
        Self::of(Store::empty(records), Lessor::new(), Tables::new(cluster_id))
    }

    pub(crate) fn of(store: Store, leases: Lessor, tables: Tables) -> Self {
        Self {
            store: Arc::new(store),
            state: Shared::new(leases, tables),
            gate: Arc::default(),
            answers: Answers::All,
            stopped: false,
        }
    }

    /// Restricts the outcomes that [`Machine::apply`] returns.
    pub fn answer(&mut self, answers: Answers) {
        self.answers = answers;
    }

    /// Applies entries in order. Each is visible to readers as a whole before its [`Applied`] is
    /// returned.
    ///
    /// # Errors
    /// After an error the state is half done and this machine applies nothing more; the process must
    /// stop and start again from its image and log.
    pub fn apply(&mut self, entries: &[AppliedEntry]) -> Result<Vec<Applied>, Fatal> {
        entries.iter().map(|entry| self.apply_entry(entry)).collect()
    }

    fn apply_entry(&mut self, entry: &AppliedEntry) -> Result<Applied, Fatal> {
        if self.stopped {
            return Err(Fatal::Stopped);
        }
        let shared = self.state.clone();
        let mut state = shared.write();
        let applied = self.apply_locked(&mut state, entry);
        self.stopped = applied.is_err();
        applied
    }

    fn apply_locked(&self, state: &mut State, entry: &AppliedEntry) -> Result<Applied, Fatal> {
        let position = entry.position;
        let applied = state.tables.applied_index();
        if position.index.0 != applied.0 + 1 {
            return Err(Fatal::OutOfOrder { applied, found: position.index });
        }
        let result = match &entry.payload {
            AppliedPayload::Blank => nothing(position),
            AppliedPayload::Batch(payload) => self.apply_batch(state, position, payload)?,
            AppliedPayload::Membership(entry) => apply_membership(state, position, entry),
        };
        state.tables.applied = Some(position);
        self.state.show_alarms(&state.tables.alarms);
        Ok(result)
    }

    fn apply_batch(
        &self,
        state: &mut State,
        position: LogPosition,
        payload: &Bytes,
    ) -> Result<Applied, Fatal> {
        let index = position.index;
        let proposals = Batch::decode(payload).map_err(|source| Fatal::Batch { index, source })?;
        let State { leases, tables } = state;
        let mut applier = Applier::new(self.store.writer(), leases, tables, position);
        let mut auth_hidden = false;
        let mut outcomes = Vec::with_capacity(proposals.len());
        let mut commands = Vec::with_capacity(proposals.len());
        for (ticket, proposal) in proposals {
            let kind = proposal.kind;
            let command = Command::decode(kind, proposal.body)
                .map_err(|source| Fatal::Body { index, source })?;
            if matches!(command, Command::Auth(_)) && !auth_hidden {
                self.state.hide_auth();
                auth_hidden = true;
            }
            let answer = self.answers.include(ticket.origin);
            let outcome = match applier.run(command, &proposal.caller, answer) {
                Ok(outcome) => outcome,
                Err(stop) => Outcome::Refused(stop.sort(index)?),
            };
            commands.push((kind, !matches!(outcome, Outcome::Refused(_))));
            if answer {
                outcomes.push((ticket, outcome));
            }
        }
        let Applier { writer, tables, lease_changes, follow_ups, auth_changes, operations, .. } =
            applier;
        let events = writer.commit().map_err(|source| Fatal::Store { index, source })?;
        if auth_hidden {
            self.state.show_auth(&tables.auth);
        }
        Ok(Applied {
            outcomes,
            commands,
            operations,
            events,
            lease_changes,
            follow_ups,
            auth_changes,
            ..nothing(position)
        })
    }

    /// The read side.
    pub fn views(&self) -> Views {
        Views::new(self.store.read(), self.state.clone())
    }

    /// The last entry applied.
    pub fn applied(&self) -> Option<LogPosition> {
        self.state.read().tables.applied
    }

    /// The revision and compact revision now.
    pub fn positions(&self) -> StoreMeta {
        self.store.meta()
    }

    /// Where the records are.
    pub fn records(&self) -> Arc<dyn RevStore> {
        self.store.revs()
    }

    /// An image of this moment, to be written by another thread while apply goes on.
    pub fn image(&self) -> ImageJob {
        ImageJob::new(self.moment())
    }

    /// A snapshot for another member of this moment, likewise.
    pub fn snapshot(&self) -> SnapshotJob {
        SnapshotJob::new(self.moment())
    }

    /// A handle on the background half of compaction.
    pub fn compactor(&self) -> Compactor {
        Compactor { store: Arc::clone(&self.store), gate: Arc::clone(&self.gate) }
    }

    /// A digest of everything replicated, equal on all members that have applied the same entries.
    /// It reads every key: for tests, the simulator and operators who compare members.
    pub fn digest(&self) -> Result<Digest, mvcc::RangeError> {
        crate::digest::digest(&self.store, &self.state.read())
    }

    fn moment(&self) -> Moment {
        let hold = Gate::hold(&self.gate);
        let state = self.state.read();
        Moment {
            store: Arc::clone(&self.store),
            meta: self.store.meta(),
            leases: state.leases.clone(),
            tables: state.tables.clone(),
            _hold: hold,
        }
    }
}

fn nothing(position: LogPosition) -> Applied {
    Applied {
        position,
        outcomes: Vec::new(),
        commands: Vec::new(),
        operations: Operations::default(),
        events: Vec::new(),
        lease_changes: Vec::new(),
        follow_ups: Vec::new(),
        auth_changes: Vec::new(),
        membership: None,
    }
}

fn apply_membership(state: &mut State, position: LogPosition, entry: &MembershipEntry) -> Applied {
    let outcome = state.tables.membership.apply(position, entry);
    for id in &outcome.readmitted {
        tracing::error!(member = %id, "a removed member's id is in the membership again");
    }
    Applied { membership: Some(outcome), ..nothing(position) }
}

/// The state at one applied entry: small tables as copies, the key index by its positions. While it
/// lives the index is not swept, so that it can still be written as of these positions.
pub(crate) struct Moment {
    pub(crate) store: Arc<Store>,
    pub(crate) meta: StoreMeta,
    pub(crate) leases: Lessor,
    pub(crate) tables: Tables,
    _hold: Hold,
}

/// Keeps sweeps and moments apart. The lock is held for one sweep step or an instant, so apply waits
/// for it no longer than a step takes.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    moments: Mutex<usize>,
}

impl Gate {
    fn moments(&self) -> MutexGuard<'_, usize> {
        self.moments.lock().expect("nothing panics while it holds the gate")
    }

    fn hold(gate: &Arc<Gate>) -> Hold {
        *gate.moments() += 1;
        Hold(Arc::clone(gate))
    }
}

#[derive(Debug)]
struct Hold(Arc<Gate>);

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.moments() -= 1;
    }
}

/// What a step of the background half of compaction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepStep {
    /// Call again.
    More,
    /// Nothing that the last compaction made dead is left in the index.
    Done,
    /// An image or a snapshot is being written; call again when it is done. Memory is freed later,
    /// nothing else depends on it.
    Held,
}

/// The background half of compaction. It may run at any time on any thread.
#[derive(Clone)]
pub struct Compactor {
    store: Arc<Store>,
    gate: Arc<Gate>,
}

impl Compactor {
    /// Takes the hashes of what compactions will drop. It reads much, and nobody may call
    /// [`Compactor::step`] meanwhile.
    pub fn hash(&self) {
        self.store.hash_compactions();
    }

    /// Drops dead versions of up to `keys_max` keys from the index.
    pub fn step(&self, keys_max: usize) -> SweepStep {
        let moments = self.gate.moments();
        if *moments > 0 {
            return SweepStep::Held;
        }
        match self.store.compact_step(keys_max) {
            Sweep::More => SweepStep::More,
            Sweep::Done => SweepStep::Done,
        }
    }

    /// Frees the records of compactions up to `upto`, which must not be above the compact revision
    /// of the newest durable image. [`ImageJob::remove_garbage`] passes the right one.
    pub fn remove_garbage(&self, upto: Revision) -> Result<usize, RevStoreError> {
        self.store.remove_garbage(upto)
    }
}
