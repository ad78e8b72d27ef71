//! openraft's state machine over the `machine` room.
//!
//! Entries are applied one after the other, whole; each entry's answers, events and new applied
//! index leave together. What an entry changed survives a restart because the entry is in the log
//! and the image says which entries it already holds: the two are never out of step.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{Stream, StreamExt};
use machine::{
    Answers, Applied, AppliedEntry, AuthChange, Compactor, Held, LeaseChange, Machine,
    MembershipOutcome, Outcome, Views,
};
use mvcc::RevisionEvents;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::time::Instant;
use types::{LogIndex, MemberId, Term};

use crate::codec;
use crate::completion::Mailboxes;
use crate::limits::NO_SPACE_PAUSE;
use crate::log_store;
use crate::observation::Observation;
use crate::raft_types::{
    Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, index_of, term_of,
};
use crate::snapshot::{Blocking, Snapshot, SnapshotData};
use crate::solitude::{is_only, names_another};
use crate::store::Store;
use crate::unavailable::Unavailable;
use crate::watermark::Watermark;

/// Receives what apply changed, in revision order.
pub trait EventSink: Send + Sync + 'static {
    /// New revisions. Must return at once: apply waits for it.
    fn publish(&self, events: Vec<RevisionEvents>);
    /// Leases that were granted, revoked or checkpointed. Must return at once. It is called before this
    /// member counts the entry as applied, so that whoever waits for the entry finds its leases.
    fn leases_changed(&self, changes: &[LeaseChange]);
    /// Tokens that were given out or taken back. Must return at once. It is called before this member
    /// counts the entry as applied, so that whoever waits for the entry finds its tokens. It hears
    /// nothing of entries that were in the log when the process began: tokens end with the process.
    fn auth_changed(&self, _changes: &[AuthChange]) {}
    /// An entry and everything that came of it, before anybody else is told; for those who judge what
    /// a log does to the state. Must return at once.
    fn applied(&self, _entry: &AppliedEntry, _applied: &Applied) {}
    /// The whole state was replaced, at start or by a snapshot; `views` show the new one.
    fn reset(&self, views: &Views);
    /// Something to count. Must return at once.
    fn observe(&self, _observation: Observation<'_>) {}
}

/// The read side of the state, exchanged as a whole when a snapshot is installed.
pub(crate) struct Current(RwLock<(Views, Compactor)>);

impl Current {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self(RwLock::new((machine.views(), machine.compactor())))
    }

    pub(crate) fn views(&self) -> Views {
        self.0.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    pub(crate) fn with_views<T>(&self, look: impl FnOnce(&Views) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn compactor(&self) -> Compactor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    fn replace(&self, machine: &Machine) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *current = (machine.views(), machine.compactor());
    }
}

/// What applying an entry has to be told to.
#[derive(Clone)]
pub(crate) struct Audience {
    pub(crate) me: MemberId,
    pub(crate) mailboxes: Arc<Mailboxes<Outcome>>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) applied: Arc<Watermark>,
    /// The last entry that was in the log at the start. What it and those before it registered for a
    /// while, another process answered for.
    pub(crate) recovered: LogIndex,
    pub(crate) current: Arc<Current>,
    /// Bytes of entries applied since the start; images are written by it.
    pub(crate) applied_bytes: Arc<AtomicU64>,
    /// Where it is known whether this member is alone.
    pub(crate) log: Arc<log_store::Shared>,
}

/// The machine with its place in the log.
pub(crate) struct StateMachine {
    machine: Machine,
    applied: Option<LogId>,
    membership: StoredMembership,
    store: Arc<Store>,
    audience: Audience,
    blocking: Blocking,
}

impl StateMachine {
    pub(crate) fn new(
        machine: Machine,
        applied: Option<LogId>,
        membership: StoredMembership,
        store: Arc<Store>,
        audience: Audience,
        blocking: Blocking,
    ) -> Self {
        let mut this = Self { machine, applied, membership, store, audience, blocking };
        this.machine.answer(Answers::Only(this.audience.me));
        if names_another(Some(this.membership.membership()), this.audience.me) {
            this.audience.log.solitude.end();
        }
        this
    }

    fn apply_one(&mut self, entry: &Entry) -> io::Result<()> {
        let id = entry.log_id();
        let previous_term = self.applied.as_ref().map_or(Term(0), term_of);
        let began = Instant::now();
        let applied_entry = [codec::applied_entry(entry)];
        let results = self
            .machine
            .apply(&applied_entry)
            .map_err(|fatal| io::Error::other(fatal.to_string()))?;
        let took = began.elapsed();
        for (entry, result) in applied_entry.iter().zip(&results) {
            self.audience.events.applied(entry, result);
        }
        if let Some(membership) = entry.get_membership() {
            if names_another(Some(&membership), self.audience.me) {
                self.audience.log.solitude.end();
            }
            self.membership = StoredMembership::new(Some(id), membership);
        }
        self.applied = Some(id);
        let bytes = codec::entry_bytes(entry) as u64;
        self.audience.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
        for result in &results {
            if !result.lease_changes.is_empty() {
                self.audience.events.leases_changed(&result.lease_changes);
            }
            if index_of(&id) > self.audience.recovered && !result.auth_changes.is_empty() {
                self.audience.events.auth_changed(&result.auth_changes);
            }
        }
        self.audience.applied.set(index_of(&id));
        // An entry of this process: everything that an earlier one acknowledged is before it.
        if index_of(&id) > self.audience.recovered && is_only(&self.membership, self.audience.me) {
            self.audience.log.solitude.begin();
        }
        for result in results {
            if let Some(membership) = &result.membership {
                tell(membership);
            }
            let commands = &result.commands;
            let operations = result.operations;
            self.audience.events.observe(Observation::Applied { commands, operations, took });
            if !result.events.is_empty() {
                self.audience.events.publish(result.events);
            }
            let answers = result.outcomes.into_iter();
            let answers = answers.map(|(ticket, outcome)| (ticket.seq, Ok(outcome)));
            self.audience.mailboxes.post(answers);
        }
        if term_of(&id) > previous_term {
            self.audience.mailboxes.end_older_than(term_of(&id));
        }
        Ok(())
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = ImageBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.apply_one(&entry)?;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> ImageBuilder {
        ImageBuilder {
            image: Some(self.machine.image()),
            epoch: self.store.epoch(),
            meta: self.meta(),
            store: self.store.clone(),
            blocking: self.blocking,
            events: self.audience.events.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Received(file, held) = snapshot else {
            return Err(io::Error::other("only a received snapshot can be installed"));
        };
        tracing::info!(index = meta.last_log_id.map(|id| index_of(&id).0), "applying snapshot");
        self.audience.log.solitude.end();
        let (store, wanted) = (self.store.clone(), meta.clone());
        self.audience.events.observe(Observation::InstallBegan);
        let own = self.machine.records();
        let installed = self.blocking.run(move || {
            let held = Held { records: &*own, upto: held };
            store.install(file.path(), Some(held).filter(|held| held.upto.0 > 0), &wanted)
        });
        let installed = installed.await;
        self.audience.events.observe(Observation::InstallEnded);
        self.machine = installed?;
        // In etcd's words, as the lines around it: its data is in place, and what is open now.
        tracing::info!("applySnapshot: opened snapshot backend");
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.machine.answer(Answers::Only(self.audience.me));
        self.audience.current.replace(&self.machine);
        self.audience.events.reset(&self.machine.views());
        if let Some(id) = &self.applied {
            self.audience.applied.set(index_of(id));
            // The entries of requests that still wait may be inside the snapshot, unanswered.
            self.audience.mailboxes.end_proposed(Unavailable::LeaderChanged);
        }
        tracing::info!("applied snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.applied.is_none() {
            return Ok(None);
        }
        let data = SnapshotData::Live(Box::new(self.machine.snapshot()), self.blocking);
        Ok(Some(Snapshot { meta: self.meta(), snapshot: data }))
    }
}

/// Logs who came and who went, in etcd's words.
fn tell(membership: &MembershipOutcome) {
    for member in &membership.added {
        tracing::info!("added-peer-id" = %member, "added member");
    }
    for member in &membership.removed {
        tracing::info!("removed-remote-peer-id" = %member, "removed member");
    }
}

/// Writes an image of one applied index while apply goes on.
pub(crate) struct ImageBuilder {
    image: Option<machine::ImageJob>,
    /// Of which of the store's states the image is.
    epoch: u64,
    meta: SnapshotMeta,
    store: Arc<Store>,
    blocking: Blocking,
    events: Arc<dyn EventSink>,
}

impl RaftSnapshotBuilder<TypeConfig> for ImageBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Some(image) = self.image.take() else {
            return Err(io::Error::other("an image builder builds once"));
        };
        let image = Arc::new(image);
        let began = Instant::now();
        loop {
            let (store, meta, image) = (self.store.clone(), self.meta.clone(), image.clone());
            let epoch = self.epoch;
            match self.blocking.run(move || store.save(epoch, &meta, &image)).await {
                Ok(()) => break,
                // The image before is whole and the log still has everything since: only space is
                // not freed meanwhile.
                Err(error) if disk::is_no_space(&error) => {
                    tracing::error!(%error, "the disk is full; the image waits for space");
                    tokio::time::sleep(NO_SPACE_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.events.observe(Observation::ImageSaved(began.elapsed()));
        tracing::info!(index = self.meta.last_log_id.map(|id| index_of(&id).0), "saved snapshot");
        Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotData::Saved })
    }
}
