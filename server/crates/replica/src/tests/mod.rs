//! openraft's own suite for log stores and state machines, on ours.

mod votes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::{Disk, SimDisk};
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::sync::mpsc;
use types::{ClusterId, LogIndex, MemberId, Term};

use crate::log_store::{LogStore, WRITE_QUEUE_LENGTH};
use crate::log_writer::{LogWriter, LogWriterPlacement, RunningWriter};
use crate::metrics::LogMetrics;
use crate::raft_types::{
    CommittedLeaderId, Entry, LogId, Membership, Node, Payload, SnapshotMeta, StoredMembership,
    TypeConfig, log_id,
};

type Snapshot = openraft::storage::Snapshot<CommittedLeaderId, u64, Node, ()>;
type StorageError = openraft::StorageError<TypeConfig>;

/// A state machine that knows where it stands and nothing else. The suite applies entries with gaps
/// between them, which ours refuses as a broken log.
#[derive(Clone, Default)]
struct Place {
    applied: Option<LogId>,
    membership: StoredMembership,
    built: bool,
}

impl Place {
    fn snapshot(&self) -> Snapshot {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Snapshot { meta, snapshot: () }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Place {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        Ok(self.snapshot())
    }
}

impl RaftStateMachine<TypeConfig> for Place {
    type SnapshotData = ();
    type SnapshotBuilder = Place;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.applied = Some(entry.log_id());
            if let Some(membership) = entry.get_membership() {
                self.membership = StoredMembership::new(self.applied, membership);
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Place {
        self.built = true;
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.built = true;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.built.then(|| self.snapshot()))
    }
}

/// A new, empty log on a simulated disk, with its writer.
struct EmptyLogs;

impl StoreBuilder<TypeConfig, LogStore, Place> for EmptyLogs {
    async fn build(&self) -> Result<((), LogStore, Place), StorageError> {
        let (log, _) = open_log(&SimDisk::new(1));
        Ok(((), log, Place::default()))
    }
}

/// The log on a disk, as a process that starts finds it, and its writer.
fn open_log(disk: &SimDisk) -> (LogStore, RunningWriter) {
    let disk: Arc<dyn Disk> = Arc::new(disk.of_this_process());
    let identity = wal::Identity { cluster_id: ClusterId(7), member_id: MemberId(1) };
    // The smallest: zeros are written ahead of time, and the power may fail at every such write.
    let options = wal::Options { segment_bytes: 0, ..wal::Options::default() };
    let (wal, recovered) = wal::Wal::open(disk, Path::new("wal"), identity, options).unwrap();
    let (operations, waiting) = mpsc::channel(WRITE_QUEUE_LENGTH);
    let log = LogStore::new(&recovered, wal.reader(), operations, identity.member_id);
    let metrics = LogMetrics::register(&prometheus::Registry::new()).unwrap();
    let flush = LogWriterPlacement::Task(Box::new(|| Duration::from_micros(30)));
    let writer = LogWriter::start(wal, log.shared(), waiting, metrics, flush).unwrap();
    (log, writer)
}

type LogSuite = Suite<TypeConfig, LogStore, Place, EmptyLogs, ()>;

/// Runs the named checks, each on a log of its own, and answers which did not pass.
macro_rules! failures {
    ($($check:ident),* $(,)?) => {{
        let mut failures: Vec<&str> = Vec::new();
        $(
            let ((), log, place) = EmptyLogs.build().await.unwrap();
            let passed = tokio::spawn(LogSuite::$check(log, place)).await;
            if !matches!(passed, Ok(Ok(_))) {
                failures.push(stringify!($check));
            }
        )*
        failures
    }};
}

/// openraft #1894, the orders that cannot be, among them.
#[tokio::test(start_paused = true)]
async fn the_log_store_passes_the_suite_of_openraft() {
    let failures = failures![
        last_membership_in_log_initial,
        last_membership_in_log,
        last_membership_in_log_multi_step,
        get_membership_initial,
        get_membership_from_log_and_empty_sm,
        get_membership_from_empty_log_and_sm,
        get_membership_from_log_le_sm_last_applied,
        get_membership_from_log_gt_sm_last_applied_1,
        get_membership_from_log_gt_sm_last_applied_2,
        get_initial_state_without_init,
        get_initial_state_membership_from_empty_log_and_sm,
        get_initial_state_membership_from_sm_inlog_is_smaller,
        get_initial_state_membership_from_log_insm_is_smaller,
        get_initial_state_with_state,
        get_initial_state_last_log_gt_sm,
        get_initial_state_last_log_lt_sm,
        get_initial_state_inverted_log_order,
        get_initial_state_conflict_at_same_index,
        get_initial_state_log_ids,
        get_initial_state_re_apply_committed,
        save_vote,
        get_log_entries,
        limited_get_log_entries,
        leader_bounded_stream,
        entries_stream,
        try_get_log_entry,
        log_reader_reads_new_entries,
        initial_logs,
        get_log_state,
        get_log_id,
        last_id_in_log,
        last_applied_state,
        purge_logs_upto_0,
        purge_logs_upto_5,
        purge_logs_upto_20,
        delete_logs_after_11,
        delete_logs_after_5,
        delete_logs_after_0,
        delete_logs_after_none,
        append_to_log,
    ];
    assert!(failures.is_empty(), "these checks did not pass: {failures:?}");
}

/// Solitude must have ended when `append` returns: openraft sends the entry to the new node, and
/// tells that it is committed, only afterwards.
#[tokio::test(start_paused = true)]
async fn a_configuration_that_names_another_node_ends_solitude_before_it_is_written() {
    let ((), mut log, _) = EmptyLogs.build().await.unwrap();
    let shared = log.shared();
    let entry = |index: u64, learners: &[u64]| {
        let nodes: BTreeMap<u64, Node> =
            [1].iter().chain(learners).map(|id| (*id, Node::default())).collect();
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        Entry::new(log_id(Term(1), LogIndex(index)), Payload::Membership(membership))
    };
    shared.solitude.begin();
    log.append([entry(1, &[])], IOFlushed::noop()).await.unwrap();
    assert!(shared.solitude.holds());
    log.append([entry(2, &[2])], IOFlushed::noop()).await.unwrap();
    assert!(!shared.solitude.holds());
    log.append([entry(3, &[])], IOFlushed::noop()).await.unwrap();
    shared.solitude.begin();
    assert!(!shared.solitude.holds(), "a node that was removed may still answer its clients");
}
