//! What the rest of the server holds of a replica.
//!
//! A [`Handle`] proposes, reads and asks for changes; it owns nothing. Each RPC thread makes its own
//! with [`Handle::for_this_thread`], so that answers are delivered on the thread that waits.

mod leader;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use machine::{CommandKind, Compactor, Outcome, Proposal, SweepStep, Ticket, Views};
use openraft::errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::{ChangeMembers, Raft};
use proto::peerpb;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use types::{ClusterId, LogIndex, MemberId, Planted, Term};

use crate::completion::{Mailbox, Mailboxes};
use crate::contact::LeaderContact;
use crate::inbound::{membership_change_message, read_index_answer, refusal_from_message};
use crate::limits::{Rules, SWEEP_KEYS};
use crate::membership::{HEALTH_INTERVAL, MembershipChange, MembershipRefusal, Situation};
use crate::network::Sender;
use crate::observation::Observation;
use crate::peers::{Peer, PeerError};
use crate::proposals::{Appender, Leader, ProposalQueue};
use crate::raft_types::{LogId, Node, TypeConfig, optional_index};
use crate::reads::ReadQueue;
use crate::reception::Receptions;
use crate::runtime;
use crate::snapshot::Blocking;
use crate::state_machine::{Current, EventSink, StateMachine};
use crate::status::Status;
use crate::store::Store;
use crate::unavailable::Unavailable;
use crate::watermark::Watermark;

/// How long it is waited before something is swept that was held.
const SWEEP_ASKED_AGAIN: Duration = Duration::from_millis(20);
/// How long it is waited for an image before it is asked for again.
const IMAGE_ASKED_AGAIN: Duration = Duration::from_millis(100);

/// What the parts of this room share.
pub(crate) struct Shared {
    pub(crate) me: MemberId,
    pub(crate) cluster: ClusterId,
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) current: Arc<Current>,
    pub(crate) applied_bytes: Arc<AtomicU64>,
    pub(crate) applied: Arc<Watermark>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) contact: Arc<LeaderContact>,
    pub(crate) queue: Arc<ProposalQueue>,
    pub(crate) reads: Arc<ReadQueue>,
    pub(crate) write_boxes: Arc<Mailboxes<Outcome>>,
    pub(crate) read_boxes: Arc<Mailboxes<()>>,
    pub(crate) sender: Sender,
    pub(crate) store: Arc<Store>,
    pub(crate) blocking: Blocking,
    pub(crate) receptions: Receptions,
    /// Changes of the member list are made one at a time.
    pub(crate) changing: Mutex<()>,
    pub(crate) rules: Rules,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) log: Arc<crate::log_store::Shared>,
    /// The last compaction whose dead versions have left the index; for metrics.
    pub(crate) swept: AtomicI64,
    /// Held while the index is swept and before, while what it will lose is hashed.
    pub(crate) sweeping: tokio::sync::Mutex<()>,
}

/// What the leader's answer to a question for its index takes at most: the way there and back, the rest of
/// a heartbeat that is under way, and the one that proves that it still leads.
const READ_INDEX_ROUND_TRIPS: u32 = 3;

/// A cheap copy of the way into a replica, for one thread.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    writes: Arc<Mailbox<Outcome>>,
    reads: Arc<Mailbox<()>>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let writes = shared.write_boxes.open(runtime::random_u64());
        let reads = shared.read_boxes.open(runtime::random_u64());
        Self { shared, writes, reads }
    }

    /// A handle whose answers arrive on the calling thread's runtime.
    pub fn for_this_thread(&self) -> Self {
        Self::new(self.shared.clone())
    }

    /// Proposes a request and waits until this member has applied it.
    ///
    /// # Errors
    /// See [`Unavailable`] for which reasons mean that nothing happened. Not cancellation-safe in
    /// the sense that dropping the future does not take the proposal back.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.propose_for(None, proposal).await
    }

    /// The same for what the leader of `term` decides by a clock of its own: it enters the log in that
    /// term, or never.
    ///
    /// # Errors
    /// The same, and [`Unavailable::NotLeader`] when there is a leader of a later term.
    pub async fn propose_in(&self, term: Term, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.propose_for(Some(term), proposal).await
    }

    async fn propose_for(
        &self,
        term: Option<Term>,
        proposal: Proposal,
    ) -> Result<Outcome, Unavailable> {
        self.shared.check_lag([proposal.kind])?;
        let answer = self.propose_and_wait(term, proposal).await;
        if answer.is_err() {
            self.shared.events.observe(Observation::ProposalFailed);
        }
        answer
    }

    async fn propose_and_wait(
        &self,
        term: Option<Term>,
        proposal: Proposal,
    ) -> Result<Outcome, Unavailable> {
        let deadline = Instant::now() + self.shared.rules.request_timeout;
        loop {
            let mut waiter = self.writes.register_for(term);
            let ticket = Ticket { origin: self.shared.me, seq: waiter.seq() };
            self.shared.queue.push(ticket, proposal.clone())?;
            match timeout_at(deadline, &mut waiter).await {
                Ok(Err(Unavailable::NotApplied)) => {}
                Ok(answer) => return answer,
                Err(_) if waiter.was_proposed() => return Err(self.shared.timeout_reason()),
                Err(_) => return Err(Unavailable::TimeoutLeaderFailure),
            }
        }
    }

    /// Returns once a read of this member's state is linearizable.
    ///
    /// # Errors
    /// When no leader confirmed its leadership in time.
    pub async fn read_index(&self) -> Result<(), Unavailable> {
        if self.shared.log.solitude.holds() {
            return Ok(());
        }
        let mut waiter = self.reads.register();
        self.shared.reads.push(waiter.seq())?;
        (&mut waiter).await
    }

    /// Returns once this member has applied the log up to `index`.
    pub async fn applied(&self, index: LogIndex) {
        self.shared.applied.reach(index).await;
    }

    /// Looks at the state for a moment, which must be short: a snapshot that replaces it waits.
    pub fn with_views<T>(&self, look: impl FnOnce(&Views) -> T) -> T {
        self.shared.current.with_views(look)
    }

    /// The state as far as this member has applied it.
    pub fn views(&self) -> Views {
        self.shared.current.views()
    }

    /// What this member knows about itself and its cluster.
    pub fn status(&self) -> Status {
        let mut status = self.shared.status.borrow().clone();
        status.applied = self.shared.applied.get();
        status.committed = status.committed.max(status.applied);
        status
    }

    /// The current term; cheaper than the whole status.
    pub fn term(&self) -> Term {
        self.shared.status.borrow().term
    }

    /// The leader that this member follows.
    pub fn leader(&self) -> Option<MemberId> {
        self.shared.status.borrow().answered_leader()
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.shared.status.borrow().is_leader()
    }

    /// The term in which this member leads and has applied an entry of its own. Until then a leader may
    /// not know of everything that its predecessors have done.
    pub fn leads_with_its_term_applied(&self) -> Option<Term> {
        let applied = self.with_views(Views::applied).map(|position| position.term);
        let status = self.shared.status.borrow();
        applied.filter(|term| status.is_leader() && status.term == *term)
    }

    /// Whether this member is a learner.
    pub fn is_learner(&self) -> bool {
        self.shared.status.borrow().is_learner
    }

    /// Follows the status; the applied index in it lags, see [`Handle::status`].
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// Whether the replica has come to an end by itself, with its last words or without.
    pub fn has_died(&self) -> bool {
        let status = &self.shared.status;
        status.has_changed().is_err() || status.borrow().fatal.is_some()
    }

    /// Whether the disk had no room for the log's next segment: what needs space should be refused
    /// while deletions still fit.
    pub fn log_is_in_reserve(&self) -> bool {
        self.shared.log.is_in_reserve()
    }

    /// Bytes of the disk that are kept for deletions, a compaction and the image behind it.
    pub fn space_reserve(&self) -> u64 {
        self.shared.store.space_reserve()
    }

    /// Requests that were proposed here and are not applied yet.
    pub fn proposals_pending(&self) -> usize {
        self.shared.write_boxes.waiting()
    }

    /// Changes the member list, wherever the leader is, and waits until this member has applied it.
    ///
    /// # Errors
    /// The refusal, or why no leader could be asked.
    pub async fn change_membership(
        &self,
        change: MembershipChange,
    ) -> Result<(), MembershipRefusal> {
        let patience = self.shared.rules.request_timeout;
        match timeout(patience, self.shared.change_membership(&change)).await {
            Ok(Ok(index)) => {
                self.shared.applied.reach(index).await;
                Ok(())
            }
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Err(self.shared.timeout_reason().into()),
        }
    }

    /// Hands leadership to another voter and waits until this member sees it lead.
    ///
    /// # Errors
    /// [`Unavailable::NotLeader`] on a member that does not lead, a time-out if the target does not
    /// take over.
    pub async fn move_leader(&self, target: MemberId) -> Result<(), Unavailable> {
        let mut status = self.shared.status.clone();
        if !status.borrow().is_leader() {
            return Err(Unavailable::NotLeader);
        }
        if target == self.shared.me {
            return Ok(());
        }
        self.shared
            .raft
            .trigger()
            .transfer_leader(target.0)
            .await
            .map_err(|_| Unavailable::Stopped)?;
        let moved = status.wait_for(|status| status.leader == Some(target));
        match timeout(self.shared.rules.request_timeout, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Unavailable::Stopped),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    /// Writes an image of the current state and frees what it allows to be freed; returns once it
    /// is durable. That takes as long as it takes: etcd sets no limit to a defragmentation either.
    ///
    /// # Errors
    /// When the replica stops meanwhile.
    pub async fn save_image(&self) -> Result<(), Unavailable> {
        self.shared.sweep_index().await;
        let target = self.shared.applied.get();
        // While an image is being written no other is begun, and that one may be older than this call.
        loop {
            self.shared.raft.trigger().snapshot().await.map_err(|_| Unavailable::Stopped)?;
            if timeout(IMAGE_ASKED_AGAIN, self.shared.store.wait_saved(target)).await.is_ok() {
                break;
            }
        }
        // While an image was being written nothing could be swept.
        while !self.shared.sweep_index().await {
            sleep(SWEEP_ASKED_AGAIN).await;
        }
        Ok(())
    }
}

impl Shared {
    /// Drops from the index what compactions have made dead, in steps that let others run. Answers whether it
    /// was all: nothing is swept while an image or a snapshot is being written.
    pub(crate) async fn sweep_index(&self) -> bool {
        let _one_at_a_time = self.sweeping.lock().await;
        let compaction = self.current.views().mvcc.compact_revision().0;
        let compactor = self.current.compactor();
        if self.swept.load(Ordering::Acquire) != compaction {
            let compactor = compactor.clone();
            // Without its hash a compaction goes on all the same.
            let hash = move || {
                compactor.hash();
                Ok(())
            };
            let _ = self.blocking.run(hash).await;
        }
        let (mut longest_step, mut took) = (Duration::ZERO, Duration::ZERO);
        loop {
            let began = Instant::now();
            let step = compactor.step(SWEEP_KEYS);
            longest_step = longest_step.max(began.elapsed());
            took += began.elapsed();
            match step {
                SweepStep::More => tokio::task::yield_now().await,
                SweepStep::Held => return false,
                SweepStep::Done => break,
            }
        }
        if self.swept.swap(compaction, Ordering::AcqRel) != compaction {
            tracing::info!("compact-revision" = compaction, ?took, "finished scheduled compaction");
            self.events.observe(Observation::Swept { longest_step, took });
            self.free_swept(compactor).await;
        }
        true
    }

    /// Frees what was swept only after the image that allows it had been written: no other image comes where
    /// nothing is written any more, for one because the store is full.
    async fn free_swept(&self, compactor: Compactor) {
        let upto = self.store.saved_compaction();
        let free = move || {
            let freed = compactor.remove_garbage(upto);
            freed.map(drop).map_err(|error| io::Error::other(error.to_string()))
        };
        if let Err(error) = self.blocking.run(free).await {
            // The next image tries again, and knows what to do.
            tracing::warn!(%error, "what a compaction has let go of was not freed");
        }
    }

    /// Refuses requests while apply lags too far behind. One that may be taken takes the others of its
    /// batch along: where they were proposed they have been let through already.
    fn check_lag(&self, kinds: impl IntoIterator<Item = CommandKind>) -> Result<(), Unavailable> {
        let committed = self.status.borrow().committed;
        let lag = committed.0.saturating_sub(self.applied.get().0);
        match kinds.into_iter().any(|kind| self.rules.take_at_lag(lag, kind)) {
            true => Ok(()),
            false => Err(Unavailable::TooManyRequests),
        }
    }

    fn timeout_reason(&self) -> Unavailable {
        match self.status.borrow().leader {
            None => Unavailable::TimeoutLeaderFailure,
            Some(_) => Unavailable::Timeout,
        }
    }

    pub(crate) fn peer(&self, id: MemberId) -> Option<Peer> {
        let status = self.status.borrow();
        status.nodes.get(&id).map(|node| Peer { id, urls: node.peer_urls.clone() })
    }

    pub(crate) fn leader_peer(&self) -> Result<(Option<peerpb::Envelope>, Peer), Unavailable> {
        let leader = self.status.borrow().leader.ok_or(Unavailable::NoLeader)?;
        let peer = self.peer(leader).ok_or(Unavailable::NoLeader)?;
        Ok((self.sender.envelope(leader), peer))
    }

    /// Waits for a leader's answer for as long as this member follows it.
    pub(crate) async fn ask<T>(
        &self,
        leader: MemberId,
        call: BoxFuture<'static, Result<T, PeerError>>,
    ) -> Result<T, Unavailable> {
        tokio::select! {
            biased;
            answer = timeout(self.rules.request_timeout, call) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(Unavailable::TimeoutConnectionLost),
                Err(_) => Err(self.timeout_reason()),
            },
            () = self.deposed(leader) => Err(Unavailable::LeaderChanged),
        }
    }

    /// Returns once this member does not follow that leader any more.
    async fn deposed(&self, leader: MemberId) {
        // An error says that Raft has ended, and the caller finds that out as well.
        let _ = self.status.clone().wait_for(|status| status.leader != Some(leader)).await;
    }

    /// Appends a batch that another member sent, if this one leads in the term it is meant for.
    pub(crate) async fn append_forwarded(
        &self,
        term: Term,
        batch: Bytes,
    ) -> Result<(), Unavailable> {
        // What another member sends must be readable before it becomes part of every log.
        let proposals = machine::Batch::decode(&batch).map_err(|_| Unavailable::NotLeader)?;
        self.check_lag(proposals.iter().map(|(_, proposal)| proposal.kind))?;
        if !matches!(self.leader(), Leader::Here { term: own } if own == term) {
            return Err(Unavailable::NotLeader);
        }
        let (refusal, appended) = oneshot::channel();
        let not_appended = move || {
            // Nobody listens any more once the wait below is over.
            let _ = refusal.send(());
        };
        self.append(term, batch, Box::new(not_appended)).await?;
        // The sender is dropped unused when the batch is applied.
        match timeout(self.rules.request_timeout, appended).await {
            Ok(Ok(())) => Err(Unavailable::NotLeader),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Confirms leadership with a quorum and returns the index that a read must see.
    pub(crate) async fn local_read_index(&self) -> Result<LogIndex, Unavailable> {
        if Planted::StaleReadIndex.is_made() {
            return Ok(self.status.borrow().committed);
        }
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(LogIndex(linearizer.read_log_id().index() + 1)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                Err(Unavailable::NotLeader)
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Unavailable::Timeout)
            }
            Err(RaftError::Fatal(_)) => Err(Unavailable::Stopped),
        }
    }

    async fn remote_read_index(&self, leader: MemberId) -> Result<LogIndex, Unavailable> {
        let peer = self.peer(leader).ok_or(Unavailable::NoLeader)?;
        let request = peerpb::ReadIndexRequest { envelope: self.sender.envelope(leader) };
        let call = self.sender.peers.read_index(peer, request);
        tokio::select! {
            biased;
            answer = timeout(self.sender.patience * READ_INDEX_ROUND_TRIPS, call) => match answer {
                Ok(Ok(response)) => read_index_answer(response),
                Ok(Err(_)) | Err(_) => Err(Unavailable::Timeout),
            },
            () = self.deposed(leader) => Err(Unavailable::LeaderChanged),
        }
    }

    async fn change_membership(
        &self,
        change: &MembershipChange,
    ) -> Result<LogIndex, MembershipRefusal> {
        match self.leader() {
            Leader::Unknown => Err(Unavailable::NoLeader.into()),
            Leader::Here { .. } => {
                self.change_membership_here(change).await.map(|id| LogIndex(id.index() + 1))
            }
            Leader::There { member, .. } => self.change_membership_there(member, change).await,
        }
    }

    async fn change_membership_there(
        &self,
        leader: MemberId,
        change: &MembershipChange,
    ) -> Result<LogIndex, MembershipRefusal> {
        use peerpb::change_membership_response::Result as Wire;
        let peer = self.peer(leader).ok_or(Unavailable::NoLeader)?;
        let request = peerpb::ChangeMembershipRequest {
            envelope: self.sender.envelope(leader),
            change: Some(membership_change_message(change)),
        };
        let response = self
            .sender
            .peers
            .change_membership(peer, request)
            .await
            .map_err(|_| Unavailable::TimeoutConnectionLost)?;
        match response.result {
            Some(Wire::Changed(index)) => Ok(LogIndex(index)),
            Some(Wire::Refusal(refusal)) => Err(refusal_from_message(refusal)),
            Some(Wire::NotLeader(_)) => Err(Unavailable::LeaderChanged.into()),
            None => Err(Unavailable::Timeout.into()),
        }
    }

    /// Judges and makes a change on this leader.
    pub(crate) async fn change_membership_here(
        &self,
        change: &MembershipChange,
    ) -> Result<LogId, MembershipRefusal> {
        let _one_at_a_time = self.changing.lock().await;
        if !matches!(self.leader(), Leader::Here { .. }) {
            return Err(Unavailable::NotLeader.into());
        }
        let changes = self.with_situation(|situation| situation.translate(change))?;
        self.commit_membership(changes).await
    }

    /// Finishes what an earlier leader left half done, or promotes a voter that has caught up.
    pub(crate) async fn tend_membership(&self) {
        if !matches!(self.leader(), Leader::Here { .. }) {
            return;
        }
        let Ok(_one_at_a_time) = self.changing.try_lock() else { return };
        let next = self.with_situation(|situation| {
            situation.unfinished_joint_change().or_else(|| situation.next_automatic_promotion())
        });
        let Some(changes) = next else { return };
        tracing::info!(change = %changes, "changing the configuration");
        if let Err(error) = self.commit_membership(changes).await {
            tracing::info!(%error, "the configuration was not changed; trying again later");
        }
    }

    async fn commit_membership(
        &self,
        changes: ChangeMembers<u64, Node>,
    ) -> Result<LogId, MembershipRefusal> {
        match self.raft.change_membership(changes, false).await {
            Ok(response) => Ok(response.log_id),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(Unavailable::NotLeader.into())
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            ))) => Err(Unavailable::Timeout.into()),
            Err(RaftError::APIError(error)) => {
                tracing::warn!(%error, "openraft refused a configuration");
                Err(MembershipRefusal::Unhealthy)
            }
            Err(RaftError::Fatal(_)) => Err(Unavailable::Stopped.into()),
        }
    }

    fn with_situation<T>(&self, judge: impl FnOnce(&Situation<'_>) -> T) -> T {
        let metrics = self.raft.metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        let tables = self.current.views().tables();
        let started = tables.membership.members().filter(|member| !member.name.is_empty());
        let started: BTreeSet<MemberId> = started.map(|member| member.id).collect();
        let removed: BTreeSet<MemberId> = tables.membership.removed().collect();
        let matched: BTreeMap<MemberId, LogIndex> = metrics
            .replication
            .iter()
            .flatten()
            .map(|(id, matched)| (MemberId(*id), optional_index(matched.as_ref())))
            .collect();
        let mut active: BTreeSet<MemberId> = metrics
            .heartbeat
            .iter()
            .flatten()
            .filter(|(_, acked)| {
                acked
                    .as_ref()
                    .is_some_and(|at| openraft::Instant::elapsed(&**at) < self.sender.patience)
            })
            .map(|(id, _)| MemberId(*id))
            .collect();
        active.insert(self.me);
        let mut connected = active.clone();
        connected
            .retain(|id| *id == self.me || self.sender.peers.connected_for(*id) >= HEALTH_INTERVAL);
        judge(&Situation {
            me: self.me,
            membership: metrics.membership_config.membership(),
            started: &started,
            active: &active,
            connected: &connected,
            removed: &removed,
            matched: &matched,
            last: LogIndex(metrics.last_log_index.map_or(0, |last| last + 1)),
            committed: optional_index(metrics.local_committed.as_ref()),
            strict: self.rules.strict_reconfig,
            learners_max: self.rules.learners_max,
        })
    }
}
