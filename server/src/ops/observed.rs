//! What apply, the log and the engine tell about their work, as metrics.
//!
//! [`MeasuredStore`] stands in front of the engine and times what reaches the disk; [`Metrics::observe`]
//! takes what the replica reports of itself.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::CommandKind;
use replica::Observation;
use revlog::{Record, RevStore, RevStoreError, StoreSize};
use types::{LogIndex, RecordRevision, Revision};

use super::metrics::Metrics;

/// An engine whose flushes, removals and defragmentations are measured.
pub struct MeasuredStore {
    engine: Arc<dyn RevStore>,
    metrics: Metrics,
}

impl MeasuredStore {
    pub fn new(engine: Arc<dyn RevStore>, metrics: Metrics) -> Self {
        Self { engine, metrics }
    }
}

impl RevStore for MeasuredStore {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        self.engine.append(records)
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        self.engine.get(revision)
    }

    fn key_value_bytes(&self, revisions: &[RecordRevision]) -> Result<u64, RevStoreError> {
        self.engine.key_value_bytes(revisions)
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        self.engine.scan(from, until, visit)
    }

    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError> {
        self.engine.remove(revisions)?;
        self.metrics.compacted_keys.inc_by(revisions.len() as f64);
        Ok(())
    }

    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError> {
        self.engine.truncate_above(revision)
    }

    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError> {
        let began = Instant::now();
        let flushed = self.engine.flush(applied);
        let took = began.elapsed().as_secs_f64();
        self.metrics.backend_commit.observe(took);
        // A flush is all writing: there is no tree to spill or to rebalance.
        self.metrics.backend_commit_write.observe(took);
        flushed
    }

    fn flushed(&self) -> LogIndex {
        self.engine.flushed()
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        self.engine.last()
    }

    fn size(&self) -> StoreSize {
        self.engine.size()
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        self.metrics.defrag_inflight.inc();
        let began = Instant::now();
        let done = self.engine.defragment();
        self.metrics.defrag_inflight.dec();
        self.metrics.defrag.observe(began.elapsed().as_secs_f64());
        done
    }
}

/// The name that etcd gives a kind of request in its metrics.
pub(crate) fn operation(kind: CommandKind) -> &'static str {
    match kind {
        CommandKind::Put => "Put",
        CommandKind::DeleteRange => "DeleteRange",
        CommandKind::Txn => "Txn",
        CommandKind::Compaction => "Compaction",
        CommandKind::LeaseGrant => "LeaseGrant",
        CommandKind::LeaseRevoke | CommandKind::LeaseExpire => "LeaseRevoke",
        CommandKind::LeaseCheckpoint => "LeaseCheckpoint",
        CommandKind::Alarm => "Alarm",
        CommandKind::MemberAttributes => "ClusterMemberAttrSet",
        CommandKind::ClusterVersionSet => "ClusterVersionSet",
        CommandKind::DowngradeInfoSet => "DowngradeInfoSet",
        CommandKind::AuthEnable => "AuthEnable",
        CommandKind::AuthDisable => "AuthDisable",
        CommandKind::AuthStatus => "AuthStatus",
        CommandKind::Authenticate => "Authenticate",
        CommandKind::UserAdd => "AuthUserAdd",
        CommandKind::UserDelete => "AuthUserDelete",
        CommandKind::UserChangePassword => "AuthUserChangePassword",
        CommandKind::UserGrantRole => "AuthUserGrantRole",
        CommandKind::UserRevokeRole => "AuthUserRevokeRole",
        CommandKind::UserGet => "AuthUserGet",
        CommandKind::UserList => "AuthUserList",
        CommandKind::RoleAdd => "AuthRoleAdd",
        CommandKind::RoleDelete => "AuthRoleDelete",
        CommandKind::RoleGet => "AuthRoleGet",
        CommandKind::RoleList => "AuthRoleList",
        CommandKind::RoleGrantPermission => "AuthRoleGrantPermission",
        CommandKind::RoleRevokePermission => "AuthRoleRevokePermission",
    }
}

impl Metrics {
    /// Takes what the replica reports. An entry that took longer than `slow` counts as slow.
    pub fn observe(&self, observation: Observation<'_>, slow: Duration) {
        match observation {
            Observation::Applied { commands, operations, took } => {
                self.operated(operations);
                self.applied(commands, took, slow);
            }
            Observation::ImageSaved(took) => self.snap_save.observe(took.as_secs_f64()),
            Observation::SnapshotReceived(took) => self.snap_db_save.observe(took.as_secs_f64()),
            Observation::InstallBegan => self.snapshot_apply_in_progress.inc(),
            Observation::InstallEnded => self.snapshot_apply_in_progress.dec(),
            Observation::Swept { longest_step, took } => {
                let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
                self.index_compaction_pause.observe(milliseconds(longest_step));
                self.compaction_pause.observe(milliseconds(longest_step));
                self.compaction.observe(milliseconds(took));
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.compaction_last.set(now.as_secs_f64().floor());
            }
            Observation::ProposalFailed => self.proposals_failed.inc(),
            Observation::ReadIndexSlow => self.slow_read_indexes.inc(),
            Observation::ReadIndexFailed => self.read_indexes_failed.inc(),
            Observation::AppendOverdue => self.heartbeat_send_failures.inc(),
        }
    }

    /// One entry carries many requests; each of them gets its share of the time.
    fn applied(&self, commands: &[(CommandKind, bool)], took: Duration, slow: Duration) {
        let Ok(count) = u32::try_from(commands.len()) else { return };
        if count == 0 {
            return;
        }
        let share = (took / count).as_secs_f64();
        let mut known: Option<((CommandKind, bool), prometheus::Histogram)> = None;
        for command in commands {
            // Entries are mostly of one kind, and looking a histogram up costs more than it.
            let histogram = match &known {
                Some((kind, histogram)) if kind == command => histogram,
                _ => {
                    let (kind, done) = *command;
                    let labels = ["v3", operation(kind), if done { "true" } else { "false" }];
                    &known.insert((*command, self.apply.with_label_values(&labels))).1
                }
            };
            histogram.observe(share);
        }
        if took > slow {
            self.slow_apply.inc();
            tracing::warn!(
                took = ?took,
                "expected-duration" = ?slow,
                requests = count,
                request = operation(commands[0].0),
                "apply request took too long"
            );
        }
    }
}
