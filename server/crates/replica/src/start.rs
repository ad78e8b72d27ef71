//! Starting and stopping a replica.
//!
//! Start: lock the directory, load the newest image, open the log, let openraft replay what the
//! image lacks, then let requests in. Stop is the same list backwards.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use disk::Disk;
use futures_util::FutureExt;
use machine::Outcome;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use types::{ClusterId, LogIndex, MemberId, Term};

use crate::completion::Mailboxes;
use crate::contact::LeaderContact;
use crate::forced;
use crate::handle::{Handle, Shared};
use crate::heartbeats;
use crate::image_schedule::{ImageSchedule, Progress};
use crate::images::Images;
use crate::inbound::Inbound;
use crate::limits::{Rules, SPACE_RESERVE_BYTES};
use crate::log_store::{LogStore, WRITE_QUEUE_LENGTH};
use crate::log_writer::{LogWriter, LogWriterPlacement, RunningWriter};
use crate::metrics::LogMetrics;
use crate::network::{Addresses, Networks, Sender};
use crate::peers::Peers;
use crate::proposals::{self, ProposalQueue};
use crate::protocol::ProtocolVersions;
use crate::raft_types::{LogId, Node, TypeConfig, optional_index};
use crate::reads::{self, ReadQueue};
use crate::reception::Receptions;
use crate::runtime;
use crate::snapshot::Blocking;
use crate::state_machine::{Audience, Current, EventSink, StateMachine};
use crate::status::{Belonging, Status};
use crate::store::{Loaded, OpenEngine, Store, StoreError};
use crate::unavailable::Unavailable;
use crate::watermark::Watermark;

/// How a member comes into being when its directory is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// With these first members, the same on each of them.
    New(BTreeMap<MemberId, Node>),
    /// As a member that an existing cluster has added.
    Join,
}

/// The times of Raft.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often the leader shows that it lives.
    pub heartbeat_interval: Duration,
    /// How long a follower waits for the leader before it campaigns.
    pub election_timeout: Duration,
    /// Whether a candidate asks first whether it could win.
    pub pre_vote: bool,
}

/// When images are written and how much log stays behind them.
#[derive(Clone, Copy, Debug)]
pub struct ImagePolicy {
    /// Write an image after this many entries.
    pub entries: u64,
    /// Write an image after this many bytes of entries.
    pub bytes: u64,
    /// Entries that stay in the log behind an image for followers that lag.
    pub entries_kept: u64,
}

/// Everything a replica is made of.
pub struct Parts {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its identity.
    pub member: MemberId,
    /// Its directory, `member/` of the data directory.
    pub directory: PathBuf,
    /// The log's directory.
    pub wal_directory: PathBuf,
    /// Where files are.
    pub disk: Arc<dyn Disk>,
    /// The engine for records.
    pub open_engine: OpenEngine,
    /// The way to the other members.
    pub peers: Arc<dyn Peers>,
    /// Which versions of the peer protocol it understands.
    pub protocol: ProtocolVersions,
    /// Who hears of changes.
    pub events: Arc<dyn EventSink>,
    /// How a new member begins.
    pub bootstrap: Bootstrap,
    /// Whether the other members are lost for good, and this one goes on alone with its data.
    pub force_new_cluster: bool,
    /// Raft's times.
    pub timing: Timing,
    /// Images.
    pub images: ImagePolicy,
    /// Requests and membership.
    pub rules: Rules,
    /// Where the log writer runs.
    pub log_writer: LogWriterPlacement,
    /// Where long work runs.
    pub blocking: Blocking,
    /// What the log measures.
    pub metrics: LogMetrics,
}

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory cannot be used.
    #[error("open the data directory: {0}")]
    Directory(#[source] io::Error),
    /// The log cannot be recovered.
    #[error("recover the write-ahead log: {0}")]
    Log(#[from] wal::RecoverError),
    /// The state cannot be loaded.
    #[error("load the state: {0}")]
    Store(#[from] StoreError),
    /// The log begins after the state ends.
    #[error(
        "the log begins after entry {purged}, but the newest image ends at {applied}; entries \
         between are missing: remove this member from its cluster, clear its data directory and \
         add it again as a new member, or restore a backup"
    )]
    Gap { purged: LogIndex, applied: LogIndex },
    /// The log cannot be made that of a member alone.
    #[error("force a new cluster: {0}")]
    Force(#[from] wal::WalError),
    /// The log cannot be read.
    #[error("read the write-ahead log: {0}")]
    ReadLog(#[from] wal::ReadError),
    /// A cluster cannot be forced from a process that is not in it.
    #[error(
        "member {0} is not in the cluster of its data directory, so no new cluster can be forced \
         from it; use the data of a member that was, or restore a backup"
    )]
    NotAMember(MemberId),
    /// openraft refused its configuration or to start.
    #[error("start raft: {0}")]
    Raft(String),
}

/// So many election timeouts are given to the next leader when this one is about to stop.
const HAND_OVER_ELECTIONS: u32 = 3;

/// The file that says that this member's log has begun. The log may be on a volume of its own, which may come
/// up empty or not at all; a new log would be that of a member that has forgotten its vote and what it
/// acknowledged. It is written when the log is there and before anything is in it. A state that was restored
/// has no log yet, and a directory of an earlier version gets the file with the next start.
const LOG_BEGUN: &str = "log-begun";

/// The time between two looks whether the directory is free.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A running replica.
pub struct Replica {
    handle: Handle,
    writer: RunningWriter,
    _locks: Vec<disk::DirLock>,
}

/// Opens the directory and starts everything. Call it on the runtime that Raft shall run on.
///
/// # Errors
/// When the directory is unusable, damaged or belongs to another member; nothing was changed then.
pub async fn start(parts: Parts) -> Result<Replica, StartError> {
    let mut locks = vec![lock_directory(&*parts.disk, &parts.directory).await?];
    if !parts.wal_directory.starts_with(&parts.directory) {
        locks.push(lock_directory(&*parts.disk, &parts.wal_directory).await?);
    }
    let (wal, recovered, loaded) = recover(&parts)?;
    let sender = sender(&parts);
    let (log, writer) =
        open_log(wal, &recovered, parts.member, parts.log_writer, parts.metrics.clone())?;
    let log_shared = log.shared();
    let applied = Arc::new(Watermark::default());
    applied.set(optional_index(loaded.applied.as_ref()));
    let write_boxes: Arc<Mailboxes<Outcome>> = Arc::new(Mailboxes::new());
    let current = Arc::new(Current::new(&loaded.machine));
    let applied_bytes = Arc::new(AtomicU64::new(0));
    parts.events.reset(&loaded.machine.views());
    let audience = Audience {
        me: parts.member,
        mailboxes: write_boxes.clone(),
        events: parts.events.clone(),
        applied: applied.clone(),
        recovered: recovered.last.map_or(LogIndex(0), |id| id.index),
        current: current.clone(),
        applied_bytes: applied_bytes.clone(),
        log: log_shared.clone(),
    };
    let (store, blocking) = (Arc::new(loaded.store), parts.blocking);
    let Loaded { machine, applied: at, membership, .. } = loaded;
    let machine = StateMachine::new(machine, at, membership, store.clone(), audience, blocking);
    let config = raft_config(parts.timing, parts.images)?;
    let addresses = Addresses::default();
    let networks =
        Networks { sender: sender.clone(), addresses: addresses.clone(), log: log_shared.clone() };
    let raft = Raft::new(parts.member.0, config, networks, log, machine)
        .await
        .map_err(|fatal| StartError::Raft(fatal.to_string()))?;
    bootstrap(&raft, &parts.bootstrap).await?;

    let belonging = belonging(&current, parts.member);
    let contact = Arc::new(LeaderContact::new(parts.timing.election_timeout * 2));
    let status = follow_status(&raft, &sender, contact.clone(), belonging);
    addresses.follow(status.clone());
    let shared = Arc::new(Shared {
        me: parts.member,
        cluster: parts.cluster,
        raft,
        current,
        applied_bytes,
        applied,
        status,
        contact,
        queue: Arc::new(ProposalQueue::new()),
        reads: Arc::new(ReadQueue::new()),
        write_boxes,
        read_boxes: Arc::new(Mailboxes::new()),
        sender,
        store,
        blocking,
        receptions: Receptions::default(),
        changing: tokio::sync::Mutex::default(),
        rules: parts.rules,
        events: parts.events.clone(),
        log: log_shared,
        swept: AtomicI64::new(-1),
        sweeping: tokio::sync::Mutex::default(),
    });
    spawn_loops(&shared, parts.images, parts.timing);
    Ok(Replica { handle: Handle::new(shared), writer, _locks: locks })
}

fn sender(parts: &Parts) -> Sender {
    Sender {
        cluster: parts.cluster,
        me: parts.member,
        peers: parts.peers.clone(),
        protocol: parts.protocol,
        patience: parts.timing.election_timeout,
        events: parts.events.clone(),
    }
}

/// Locks the directory once no other process has it. On Kubernetes a Pod that was deleted by force
/// may still be ending on the volume on which its successor starts; ending with an error there
/// would put the successor off for much longer than the other one takes.
async fn lock_directory(disk: &dyn Disk, directory: &Path) -> Result<disk::DirLock, StartError> {
    disk.create_dir_all(directory).map_err(StartError::Directory)?;
    disk.set_private(directory).map_err(StartError::Directory)?;
    let mut told = false;
    loop {
        match disk.lock(directory) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !told {
                    tracing::warn!(
                        path = %directory.display(),
                        "another process has locked the data directory; waiting for its end"
                    );
                }
                told = true;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            locked => return locked.map_err(StartError::Directory),
        }
    }
}

/// What the directory holds: the log, and the state of the newest image.
fn recover(parts: &Parts) -> Result<(wal::Wal, wal::Recovered, Loaded), StartError> {
    let disk = parts.disk.clone();
    let identity = wal::Identity { cluster_id: parts.cluster, member_id: parts.member };
    let begun = disk.exists(&parts.directory.join(LOG_BEGUN)).map_err(StartError::Directory)?;
    let options = wal::Options {
        space_kept: SPACE_RESERVE_BYTES,
        // Who goes on alone owes nobody anything any more.
        has_begun: begun && !parts.force_new_cluster,
        ..wal::Options::default()
    };
    let (mut wal, mut recovered) =
        wal::Wal::open(disk.clone(), &parts.wal_directory, identity, options)?;
    if !begun {
        disk::write_file_atomically(&*disk, &parts.directory, LOG_BEGUN, b"")
            .map_err(StartError::Directory)?;
    }
    let loaded = load_store(parts)?;
    check_gap(&recovered, &loaded)?;
    if parts.force_new_cluster {
        forced::leave_the_others(&mut wal, &mut recovered, &loaded, parts.member)?;
    }
    Ok((wal, recovered, loaded))
}

/// The log as openraft sees it, and the thread behind it.
fn open_log(
    wal: wal::Wal,
    recovered: &wal::Recovered,
    member: MemberId,
    placement: LogWriterPlacement,
    metrics: LogMetrics,
) -> Result<(LogStore, RunningWriter), StartError> {
    let (operations, waiting) = mpsc::channel(WRITE_QUEUE_LENGTH);
    let log = LogStore::new(recovered, wal.reader(), operations, member);
    let writer = LogWriter::start(wal, log.shared(), waiting, metrics, placement);
    Ok((log, writer.map_err(StartError::Directory)?))
}

fn load_store(parts: &Parts) -> Result<Loaded, StartError> {
    let images = Images::open(
        parts.disk.clone(),
        parts.directory.join("image"),
        parts.cluster,
        parts.member,
    )
    .map_err(StartError::Directory)?;
    let engine = parts.open_engine.clone();
    Ok(Store::load(parts.disk.clone(), parts.directory.clone(), images, engine, parts.cluster)?)
}

/// Entries that an image does not hold must be in the log.
fn check_gap(recovered: &wal::Recovered, loaded: &Loaded) -> Result<(), StartError> {
    let applied = optional_index(loaded.applied.as_ref());
    let purged = recovered.purged.map_or(LogIndex(0), |id| id.index);
    if purged > applied { Err(StartError::Gap { purged, applied }) } else { Ok(()) }
}

fn raft_config(timing: Timing, images: ImagePolicy) -> Result<Arc<Config>, StartError> {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    let election = milliseconds(timing.election_timeout);
    let heartbeat = milliseconds(heartbeats::patience(timing));
    let config = Config {
        cluster_name: "keelson".into(),
        heartbeat_interval: heartbeat,
        // A follower campaigns when the lease of the leader it last heard of, which is the larger number,
        // and a time between both have passed. etcd's campaigns after one to two timeouts (raft.go,
        // resetRandomizedElectionTimeout), ours after one and a half to two.
        election_timeout_min: (election / 2).max(heartbeat + 1),
        election_timeout_max: election.max(heartbeat + 2),
        enable_pre_vote: Some(timing.pre_vote),
        quorum_loss_probe_interval: Some(election * 2),
        // Images are written by our own policy: entries here are batches of very different size.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: images.entries_kept,
        // A follower gets a snapshot only when the entries it needs are gone.
        replication_lag_threshold: u64::MAX,
        // The byte bound of the log store cuts replication requests first.
        max_payload_entries: 1024,
        // Restoring leadership without an election would trust a commit index that may be old.
        enable_leader_restore: Some(false),
        install_snapshot_timeout: 600_000,
        ..Config::default()
    };
    let config = config.validate().map_err(|error| StartError::Raft(error.to_string()))?;
    Ok(Arc::new(config))
}

async fn bootstrap(
    raft: &Raft<TypeConfig, StateMachine>,
    bootstrap: &Bootstrap,
) -> Result<(), StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let initialized = raft.is_initialized().await.map_err(|error| failed(&error))?;
    if let (false, Bootstrap::New(members)) = (initialized, bootstrap) {
        let nodes: BTreeMap<u64, Node> =
            members.iter().map(|(id, node)| (id.0, node.clone())).collect();
        match raft.initialize(nodes).await {
            // Another first member was faster and has already reached this one.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    // Alone there is nobody to wait for.
    let me = *raft.node_id();
    if raft.voter_ids().eq([me]) {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Whether the applied state knows this member, or knows that it was removed.
fn belonging(current: &Current, member: MemberId) -> Belonging {
    let views = current.views();
    Belonging::new(views.member(member).is_some() || views.is_removed(member))
}

/// Translates openraft's metrics for everyone above.
fn follow_status(
    raft: &Raft<TypeConfig, StateMachine>,
    sender: &Sender,
    contact: Arc<LeaderContact>,
    mut belonging: Belonging,
) -> watch::Receiver<Status> {
    let (member, cluster, election_timeout) = (sender.me, sender.cluster, sender.patience);
    let mut metrics = raft.metrics();
    let leader_contact = contact.clone();
    // In which term this member leads, and since when.
    let mut leading: Option<(u64, tokio::time::Instant)> = None;
    let mut translate = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
        let membership = metrics.membership_config.membership();
        let voters: Vec<MemberId> = membership.voter_ids().map(MemberId).collect();
        let nodes: BTreeMap<MemberId, Node> =
            membership.nodes().map(|(id, node)| (MemberId(*id), node.clone())).collect();
        let own = nodes.get(&member);
        let acknowledged = metrics.last_quorum_acked.as_ref();
        let acknowledged = acknowledged.map(|at| openraft::Instant::elapsed(&**at));
        let leader = metrics.current_leader.map(MemberId);
        let leads = metrics.state == ServerState::Leader;
        leading = leading
            .filter(|(term, _)| leads && *term == metrics.current_term)
            .or_else(|| leads.then(|| (metrics.current_term, tokio::time::Instant::now())));
        // A quorum may be gone before it has acknowledged anything of this term.
        let silent_for = acknowledged.or(leading.map(|(_, since)| since.elapsed()));
        Status {
            member_id: member,
            cluster_id: cluster,
            leader,
            term: Term(metrics.current_term),
            committed: optional_index(metrics.local_committed.as_ref()),
            applied: optional_index(metrics.last_applied.as_ref()),
            leads_quorum: leads && acknowledged.is_some_and(|ago| ago < election_timeout),
            isolated: if leads {
                // etcd's leader steps down after one to two timeouts without a quorum; openraft's does not.
                let silence = silent_for.is_some_and(|ago| ago >= election_timeout * 2);
                voters.len() > 1 && silence
            } else {
                leader.is_some_and(|leader| leader_contact.is_silent(leader))
            },
            is_learner: own.is_some_and(|node| !node.voter_intent) && !voters.contains(&member),
            removed: !nodes.is_empty() && belonging.is_removed_by(own.is_some()),
            nodes,
            voters,
            fatal: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    };
    // A member may never get the entry that removes it: nobody sends it any more.
    let mut expelled = sender.peers.expelled().fuse();
    let mut is_expelled = false;
    let (sender, receiver) = watch::channel(translate(&metrics.borrow_watched()));
    runtime::spawn(async move {
        loop {
            // Silence changes nothing in the metrics and is looked for all the same.
            tokio::select! {
                biased;
                changed = metrics.changed() => if changed.is_err() { return },
                () = contact.resumed() => {}
                () = &mut expelled => is_expelled = true,
                () = tokio::time::sleep(election_timeout) => {}
            }
            let mut status = translate(&metrics.borrow_watched());
            status.removed |= is_expelled;
            sender.send_if_modified(|current| {
                let modified = *current != status;
                *current = status;
                modified
            });
        }
    });
    receiver
}

fn spawn_loops(shared: &Arc<Shared>, images: ImagePolicy, timing: Timing) {
    runtime::spawn(proposals::drive(
        shared.queue.clone(),
        shared.clone(),
        shared.write_boxes.clone(),
    ));
    runtime::spawn(reads::drive(shared.reads.clone(), shared.clone(), shared.read_boxes.clone()));
    runtime::spawn(heartbeats::drive(Arc::downgrade(shared), timing.heartbeat_interval));
    runtime::spawn(tend_membership(Arc::downgrade(shared), timing.heartbeat_interval));
    runtime::spawn(write_images(Arc::downgrade(shared), images, timing.heartbeat_interval));
}

async fn tend_membership(shared: std::sync::Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.tend_membership().await;
    }
}

/// Has an image written when enough was applied since the last one, or when compaction has freed
/// records that only an image may release.
async fn write_images(shared: std::sync::Weak<Shared>, policy: ImagePolicy, every: Duration) {
    let mut schedule = ImageSchedule::new(policy);
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.sweep_index().await;
        let now = Progress {
            applied: shared.applied.get(),
            bytes: shared.applied_bytes.load(Ordering::Relaxed),
            saved: shared.store.saved(),
            compacted: shared.current.views().mvcc.compact_revision()
                > shared.store.saved_compaction(),
        };
        if schedule.is_due(now) && shared.raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

impl Replica {
    /// The way in.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The receiving end for other members.
    pub fn inbound(&self) -> Inbound {
        Inbound { shared: self.handle.shared.clone() }
    }

    /// Stops: ends everything. A request that still waits is answered with
    /// [`Unavailable::Stopped`]. A leader should hand over first.
    pub async fn shutdown(self) {
        let shared = self.handle.shared.clone();
        shared.queue.close();
        shared.reads.close();
        self.writer.hurry();
        if let Err(error) = shared.raft.shutdown().await {
            tracing::error!(%error, "raft ended abnormally");
        }
        shared.write_boxes.end_all(Unavailable::Stopped);
        shared.read_boxes.end_all(Unavailable::Stopped);
        drop(shared);
        self.writer.end().await;
    }

    /// Hands leadership over if this member leads and another can. Call it while the member still
    /// hears its peers, because that is how it learns that another leads. Tries for a few election
    /// timeouts: when all members are told to stop at once nobody takes over.
    pub async fn hand_over_leadership(&self) {
        if !self.handle.status().is_leader() {
            return;
        }
        let Some(target) = self.most_caught_up_voter() else { return };
        let patience = self.handle.shared.sender.patience * HAND_OVER_ELECTIONS;
        let moved = tokio::time::timeout(patience, self.handle.move_leader(target)).await;
        let error = match moved {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it did not take over within {patience:?}"),
        };
        tracing::warn!(%error, %target, "leadership was not handed over before stopping");
    }

    fn most_caught_up_voter(&self) -> Option<MemberId> {
        let metrics = self.handle.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let me = self.handle.shared.me;
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        metrics
            .replication
            .iter()
            .flatten()
            .filter(|(id, _)| **id != me.0 && voters.contains(id))
            .max_by_key(|(_, matched)| matched.as_ref().map(LogId::index))
            .map(|(id, _)| MemberId(*id))
    }
}
