//! Metrics under etcd's exact names: the one table of them.
//!
//! In: a [`Sample`] of the member when somebody reads the metrics, and what rooms observe while they
//! work, through the public fields of [`Metrics`]. Out: families in a registry that is passed in;
//! there is no global one. Calls, health checks and the log register their own
//! ([`super::calls`], [`super::health`], `replica::LogMetrics`).
//!
//! Some names have nothing behind them here (there is no v2 store, no gRPC proxy and no bbolt in this
//! server). They stay at 0, which is the truth, because dashboards and alerts name them.

use std::collections::BTreeMap;
use std::time::Duration;

use machine::{LeaseChange, Operations};
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts,
    Registry, exponential_buckets,
};
use tables::{Alarm, AlarmKind};
use types::{LogIndex, MemberId, Revision};

use crate::gates::FeatureGates;
use crate::read_budget::BudgetStats;

/// Most times in etcd: 1 ms to 8 s.
const SLOW: (f64, f64, usize) = (0.001, 2.0, 14);
/// Times of single requests: 100 us to 52 s.
const FAST: (f64, f64, usize) = (0.0001, 2.0, 20);
/// Milliseconds of a compaction's pauses and of a whole one.
const PAUSE: (f64, f64, usize) = (1.0, 2.0, 13);
const COMPACTION: (f64, f64, usize) = (100.0, 2.0, 14);
const INDEX_PAUSE: (f64, f64, usize) = (0.5, 2.0, 14);
/// Reading the whole store.
const WHOLE: (f64, f64, usize) = (0.01, 2.0, 15);
/// Reading or writing a whole backup; receiving one.
const BACKUP: (f64, f64, usize) = (0.01, 2.0, 17);
const DEFRAG: (f64, f64, usize) = (0.1, 2.0, 13);
const RECEIVED: (f64, f64, usize) = (0.1, 2.0, 10);
/// A round trip to another member.
const ROUND_TRIP: (f64, f64, usize) = (0.0001, 2.0, 16);
/// Seconds of leases: 1 s to about a year.
const LEASE: (f64, f64, usize) = (1.0, 2.0, 24);

macro_rules! table {
    (
        gauges { $($gauge:ident = $gauge_name:literal, $gauge_help:literal;)* }
        counters { $($counter:ident = $counter_name:literal, $counter_help:literal;)* }
        histograms { $($histogram:ident = $histogram_name:literal, $buckets:ident, $histogram_help:literal;)* }
        labelled_gauges { $($gauges:ident = $gauges_name:literal, [$($gauge_label:literal),*], $gauges_help:literal;)* }
        labelled_counters { $($counters:ident = $counters_name:literal, [$($counter_label:literal),*], $counters_help:literal;)* }
        labelled_histograms { $($histograms:ident = $histograms_name:literal, $many_buckets:ident, [$($histogram_label:literal),*], $histograms_help:literal;)* }
    ) => {
        /// The metrics; a cheap copy.
        #[derive(Clone)]
        pub struct Metrics {
            $(#[doc = $gauge_help] pub $gauge: Gauge,)*
            $(#[doc = $counter_help] pub $counter: Counter,)*
            $(#[doc = $histogram_help] pub $histogram: Histogram,)*
            $(#[doc = $gauges_help] pub $gauges: GaugeVec,)*
            $(#[doc = $counters_help] pub $counters: IntCounterVec,)*
            $(#[doc = $histograms_help] pub $histograms: HistogramVec,)*
        }

        impl Metrics {
            /// Registers every metric of the table.
            ///
            /// # Errors
            /// When a name is taken in `registry`.
            pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
                let metrics = Self {
                    $($gauge: Gauge::new($gauge_name, $gauge_help)?,)*
                    $($counter: Counter::new($counter_name, $counter_help)?,)*
                    $($histogram: Histogram::with_opts(
                        options($histogram_name, $histogram_help, $buckets)?,
                    )?,)*
                    $($gauges: GaugeVec::new(
                        Opts::new($gauges_name, $gauges_help),
                        &[$($gauge_label),*],
                    )?,)*
                    $($counters: IntCounterVec::new(
                        Opts::new($counters_name, $counters_help),
                        &[$($counter_label),*],
                    )?,)*
                    $($histograms: HistogramVec::new(
                        options($histograms_name, $histograms_help, $many_buckets)?,
                        &[$($histogram_label),*],
                    )?,)*
                };
                $(registry.register(Box::new(metrics.$gauge.clone()))?;)*
                $(registry.register(Box::new(metrics.$counter.clone()))?;)*
                $(registry.register(Box::new(metrics.$histogram.clone()))?;)*
                $(registry.register(Box::new(metrics.$gauges.clone()))?;)*
                $(registry.register(Box::new(metrics.$counters.clone()))?;)*
                $(registry.register(Box::new(metrics.$histograms.clone()))?;)*
                Ok(metrics)
            }
        }
    };
}

table! {
    gauges {
        has_leader = "etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.";
        is_leader = "etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.";
        is_learner = "etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.";
        proposals_committed = "etcd_server_proposals_committed_total", "The index of the last committed entry.";
        proposals_applied = "etcd_server_proposals_applied_total", "The index of the last applied entry.";
        proposals_pending = "etcd_server_proposals_pending", "Requests that are proposed and not applied yet.";
        snapshot_apply_in_progress = "etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot of another member is being installed.";
        quota_bytes = "etcd_server_quota_backend_bytes", "Size beyond which the store refuses to grow.";
        db_size = "etcd_mvcc_db_total_size_in_bytes", "Size of the store on disk.";
        db_size_in_use = "etcd_mvcc_db_total_size_in_use_in_bytes", "Size of what the store still needs.";
        open_read_transactions = "etcd_mvcc_db_open_read_transactions", "Reads under way; readers hold nothing open here.";
        keys = "etcd_debugging_mvcc_keys_total", "Keys.";
        current_revision = "etcd_debugging_mvcc_current_revision", "Revision of the store.";
        compact_revision = "etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.";
        compaction_last = "etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction.";
        watch_streams = "etcd_debugging_mvcc_watch_stream_total", "Watch streams.";
        watchers = "etcd_debugging_mvcc_watcher_total", "Watchers.";
        slow_watchers = "etcd_debugging_mvcc_slow_watcher_total", "Watchers that are catching up.";
        pending_events = "etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.";
        put_size = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put by this member.";
        auth_revision = "etcd_debugging_auth_revision", "Revision of users, roles and permissions.";
        defrag_inflight = "etcd_disk_defrag_inflight", "1 while Defragment runs.";
        store_watchers = "etcd_debugging_store_watchers", "Watchers of the v2 store, which does not exist.";
        proxy_cache_hits = "etcd_grpc_proxy_cache_hits_total", "Hits of the gRPC proxy's cache.";
        proxy_cache_keys = "etcd_grpc_proxy_cache_keys_total", "Keys in the gRPC proxy's cache.";
        proxy_cache_misses = "etcd_grpc_proxy_cache_misses_total", "Misses of the gRPC proxy's cache.";
        proxy_watchers_coalescing = "etcd_grpc_proxy_watchers_coalescing_total", "Watchers that the gRPC proxy joins.";
        read_bytes_held = "keelson_read_bytes_held", "Bytes of answers that are read and have not left for their clients.";
        fd_used = "os_fd_used", "File descriptors in use.";
        fd_limit = "os_fd_limit", "File descriptors that may be used.";
        virtual_memory_max = "process_virtual_memory_max_bytes", "Virtual memory that may be used; the largest number there is without a limit.";
    }
    counters {
        leader_changes = "etcd_server_leader_changes_seen_total", "The number of leader changes seen.";
        heartbeat_send_failures = "etcd_server_heartbeat_send_failures_total", "Heartbeats that could not be sent in time.";
        proposals_failed = "etcd_server_proposals_failed_total", "Proposals that were not answered with success by the log.";
        slow_apply = "etcd_server_slow_apply_total", "Entries whose apply took too long.";
        slow_read_indexes = "etcd_server_slow_read_indexes_total", "Read indexes that took too long.";
        read_indexes_failed = "etcd_server_read_indexes_failed_total", "Read indexes that failed.";
        learner_promote_successes = "etcd_server_learner_promote_successes", "Learners that this member promoted.";
        puts = "etcd_mvcc_put_total", "Puts seen by this member.";
        deletes = "etcd_mvcc_delete_total", "Deletions seen by this member.";
        ranges = "etcd_mvcc_range_total", "Ranges seen by this member.";
        txns = "etcd_mvcc_txn_total", "Transactions of several operations seen by this member.";
        events = "etcd_debugging_mvcc_events_total", "Events sent by this member.";
        compacted_keys = "etcd_debugging_mvcc_db_compaction_keys_total", "Versions dropped by compaction.";
        leases_granted = "etcd_debugging_lease_granted_total", "Leases granted.";
        leases_renewed = "etcd_debugging_lease_renewed_total", "Renewals seen by the leader.";
        leases_revoked = "etcd_debugging_lease_revoked_total", "Leases revoked.";
        leases_expired = "etcd_debugging_server_lease_expired_total", "Leases that expired.";
        store_expires = "etcd_debugging_store_expires_total", "Expired keys of the v2 store, which does not exist.";
        store_watch_requests = "etcd_debugging_store_watch_requests_total", "Watches of the v2 store, which does not exist.";
        reads_waited = "keelson_reads_waited_total", "Reads that waited for memory.";
        reads_refused = "keelson_reads_refused_total", "Reads that were refused because there was no memory in time.";
        reads_dropped = "keelson_reads_dropped_total", "Answers that their clients did not take while others waited for memory.";
        network_received = "process_network_receive_bytes_total", "Bytes that this process's network has received.";
        network_sent = "process_network_transmit_bytes_total", "Bytes that this process's network has sent.";
        proxy_events_coalescing = "etcd_grpc_proxy_events_coalescing_total", "Events that the gRPC proxy joins.";
    }
    histograms {
        backend_commit = "etcd_disk_backend_commit_duration_seconds", SLOW, "How long a flush of the store takes.";
        backend_commit_write = "etcd_debugging_disk_backend_commit_write_duration_seconds", SLOW, "How long the writing part of a flush takes, which is all of it.";
        backend_commit_spill = "etcd_debugging_disk_backend_commit_spill_duration_seconds", SLOW, "How long the spill of a bbolt commit takes; there is no bbolt.";
        backend_commit_rebalance = "etcd_debugging_disk_backend_commit_rebalance_duration_seconds", SLOW, "How long the rebalance of a bbolt commit takes; there is no bbolt.";
        defrag = "etcd_disk_backend_defrag_duration_seconds", DEFRAG, "How long Defragment takes.";
        backend_snapshot = "etcd_disk_backend_snapshot_duration_seconds", BACKUP, "How long sending a snapshot to a client takes.";
        snap_db_fsync = "etcd_snap_db_fsync_duration_seconds", SLOW, "How long the flush of a received snapshot takes.";
        snap_db_save = "etcd_snap_db_save_total_duration_seconds", RECEIVED, "How long saving a received snapshot takes.";
        snap_fsync = "etcd_snap_fsync_duration_seconds", SLOW, "How long the flush of an image takes.";
        snap_save = "etcd_debugging_snap_save_total_duration_seconds", SLOW, "How long writing an image takes.";
        snap_marshalling = "etcd_debugging_snap_save_marshalling_duration_seconds", SLOW, "How long encoding an image takes.";
        hash = "etcd_mvcc_hash_duration_seconds", WHOLE, "How long Hash takes.";
        hash_rev = "etcd_mvcc_hash_rev_duration_seconds", WHOLE, "How long HashKV takes.";
        compaction_pause = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", PAUSE, "How long compaction holds others up.";
        compaction = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", COMPACTION, "How long a compaction takes.";
        index_compaction_pause = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", INDEX_PAUSE, "How long compaction of the index holds others up.";
        lease_ttl = "etcd_debugging_lease_ttl_total", LEASE, "TTL of granted leases, in seconds.";
        watch_send = "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", SLOW, "How long sending the events of one watch response takes.";
        watch_send_event = "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", SLOW, "The same, per event.";
        watch_send_control = "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", SLOW, "How long sending a watch's creation or end takes.";
        watch_send_progress = "etcd_debugging_server_watch_send_loop_progress_duration_seconds", SLOW, "How long sending progress takes.";
    }
    labelled_gauges {
        id = "etcd_server_id", ["server_id"], "This member's id.";
        version = "etcd_server_version", ["server_version"], "The etcd version that this server is compatible with.";
        go_version = "etcd_server_go_version", ["server_go_version"], "The version of Go; this server is built without it.";
        cluster_version = "etcd_cluster_version", ["cluster_version"], "The version that the cluster has agreed on.";
        feature_enabled = "etcd_server_feature_enabled", ["name", "stage"], "Whether a feature gate is on.";
        alarms = "etcd_debugging_server_alarms", ["server_id", "alarm_type"], "Alarms that are on.";
        corruption_checks_incomplete = "keelson_corruption_checks_incomplete_in_a_row", ["check"], "Checks in a row, until now, that could not compare the data of all members.";
        known_peers = "etcd_network_known_peers", ["Local", "Remote"], "Other members.";
        active_peers = "etcd_network_active_peers", ["Local", "Remote"], "Connections to other members.";
        snapshot_send_inflights = "etcd_network_snapshot_send_inflights_total", ["To"], "Snapshots on their way to other members.";
        snapshot_receive_inflights = "etcd_network_snapshot_receive_inflights_total", ["From"], "Snapshots on their way from other members.";
    }
    labelled_counters {
        learner_promote_failures = "etcd_server_learner_promote_failures", ["Reason"], "Learners that could not be promoted.";
        corruption_checks = "keelson_corruption_checks_total", ["check", "result"], "Comparisons of the members' data.";
        disconnected_peers = "etcd_network_disconnected_peers_total", ["Local", "Remote"], "Connections to other members that broke.";
        peer_sent_bytes = "etcd_network_peer_sent_bytes_total", ["To"], "Bytes sent to other members.";
        peer_sent_failures = "etcd_network_peer_sent_failures_total", ["To"], "Messages that could not be sent to other members.";
        peer_received_bytes = "etcd_network_peer_received_bytes_total", ["From"], "Bytes received from other members.";
        peer_received_failures = "etcd_network_peer_received_failures_total", ["From"], "Messages of other members that could not be received.";
        stream_failures = "etcd_network_server_stream_failures_total", ["Type", "API"], "Streams to clients that failed.";
        snapshot_send_success = "etcd_network_snapshot_send_success", ["To"], "Snapshots sent.";
        snapshot_send_failures = "etcd_network_snapshot_send_failures", ["To"], "Snapshots that could not be sent.";
        snapshot_receive_success = "etcd_network_snapshot_receive_success", ["From"], "Snapshots received.";
        snapshot_receive_failures = "etcd_network_snapshot_receive_failures", ["From"], "Snapshots that could not be received.";
    }
    labelled_histograms {
        apply = "etcd_server_apply_duration_seconds", FAST, ["version", "op", "success"], "How long applying a request takes.";
        request = "etcd_server_request_duration_seconds", SLOW, ["type", "success"], "How long serving a request takes.";
        range = "etcd_server_range_duration_seconds", FAST, ["success"], "How long a range takes.";
        round_trip = "etcd_network_peer_round_trip_time_seconds", ROUND_TRIP, ["To"], "How long a message to another member and back takes.";
        snapshot_send = "etcd_network_snapshot_send_total_duration_seconds", SLOW, ["To"], "How long sending a snapshot takes.";
        snapshot_receive = "etcd_network_snapshot_receive_total_duration_seconds", SLOW, ["From"], "How long receiving a snapshot takes.";
    }
}

fn options(
    name: &str,
    help: &str,
    (start, factor, count): (f64, f64, usize),
) -> Result<HistogramOpts, prometheus::Error> {
    Ok(HistogramOpts::new(name, help).buckets(exponential_buckets(start, factor, count)?))
}

/// How long requests take, by kind: looked up once, because each request needs it.
#[derive(Clone)]
pub struct RequestTimes {
    by_kind: BTreeMap<&'static str, [Histogram; 2]>,
    range: [Histogram; 2],
    ranges: Counter,
}

impl RequestTimes {
    /// The times of all kinds of requests that clients make.
    pub fn new(metrics: &Metrics) -> Self {
        let both = |name: &str| {
            ["false", "true"].map(|success| metrics.request.with_label_values(&[name, success]))
        };
        let kinds = machine::CommandKind::ALL.map(super::observed::operation);
        let by_kind = kinds.into_iter().chain(["Range", "ReadonlyTxn"]);
        Self {
            by_kind: by_kind.map(|name| (name, both(name))).collect(),
            range: ["false", "true"].map(|success| metrics.range.with_label_values(&[success])),
            ranges: metrics.ranges.clone(),
        }
    }

    /// A request has been answered.
    pub fn answered(&self, name: &str, success: bool, took: Duration) {
        if let Some(both) = self.by_kind.get(name) {
            both[usize::from(success)].observe(took.as_secs_f64());
        }
        if name == "Range" {
            self.ranges.inc();
            self.range[usize::from(success)].observe(took.as_secs_f64());
        }
    }
}

/// What a member looks like at the moment its metrics are read.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub member: MemberId,
    pub leader: Option<MemberId>,
    pub is_learner: bool,
    pub committed: LogIndex,
    pub applied: LogIndex,
    pub proposals_pending: usize,
    pub cluster_version: Option<String>,
    pub revision: Revision,
    pub compact_revision: Revision,
    pub auth_revision: u64,
    pub alarms: Vec<Alarm>,
    /// All members, this one included.
    pub members: Vec<MemberId>,
}

impl Metrics {
    /// Sets what does not change while the process runs.
    pub fn describe(&self, member: MemberId, gates: &FeatureGates, quota_bytes: Option<u64>) {
        self.id.with_label_values(&[&member.to_string()]).set(1.0);
        self.version.with_label_values(&[&crate::version::release().etcd]).set(1.0);
        self.go_version.with_label_values(&["none (Rust)"]).set(1.0);
        self.quota_bytes.set(approximate(quota_bytes.unwrap_or(0)));
        for (name, stage, enabled) in gates.states() {
            self.feature_enabled
                .with_label_values(&[name, stage])
                .set(f64::from(u8::from(enabled)));
        }
        // These have children in etcd from the start, so that rates begin at 0.
        for op in ["Range", "Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke"]
        {
            self.apply.with_label_values(&["v3", op, "true"]);
            self.request.with_label_values(&[op, "true"]);
        }
    }

    /// Counts what requests did to keys.
    pub fn operated(&self, operations: Operations) {
        let Operations { puts, put_bytes, deletes, ranges, transactions } = operations;
        let counted = [
            (&self.puts, puts),
            (&self.deletes, deletes),
            (&self.ranges, ranges),
            (&self.txns, transactions),
        ];
        for (counter, number) in counted.into_iter().filter(|(_, number)| *number > 0) {
            counter.inc_by(approximate(number));
        }
        self.put_size.add(approximate(put_bytes));
    }

    /// Counts leases as apply granted and revoked them.
    pub fn leases_changed(&self, changes: &[LeaseChange]) {
        for change in changes {
            match change {
                LeaseChange::Granted { ttl, .. } => {
                    self.leases_granted.inc();
                    self.lease_ttl.observe(signed(*ttl));
                }
                LeaseChange::Revoked { .. } => self.leases_revoked.inc(),
                LeaseChange::Checkpointed { .. } => {}
            }
        }
    }

    /// Sets what is read from the member.
    pub fn refresh(&self, sample: &Sample) {
        let flag = |on: bool| f64::from(u8::from(on));
        self.has_leader.set(flag(sample.leader.is_some()));
        self.is_leader.set(flag(sample.leader == Some(sample.member)));
        self.is_learner.set(flag(sample.is_learner));
        self.proposals_committed.set(approximate(sample.committed.0));
        self.proposals_applied.set(approximate(sample.applied.0));
        self.proposals_pending.set(approximate(sample.proposals_pending as u64));
        self.current_revision.set(signed(sample.revision.0));
        self.compact_revision.set(signed(sample.compact_revision.0));
        self.auth_revision.set(approximate(sample.auth_revision));
        self.cluster_version.reset();
        if let Some(version) = &sample.cluster_version {
            self.cluster_version.with_label_values(&[version]).set(1.0);
        }
        self.alarms.reset();
        for alarm in &sample.alarms {
            let kind = match alarm.kind {
                AlarmKind::NO_SPACE => "NOSPACE",
                AlarmKind::CORRUPT => "CORRUPT",
                _ => "UNKNOWN",
            };
            self.alarms.with_label_values(&[&alarm.member.to_string(), kind]).set(1.0);
        }
        let local = sample.member.to_string();
        self.known_peers.reset();
        for remote in &sample.members {
            // etcd counts a member among its own peers here.
            self.known_peers.with_label_values(&[&local, &remote.to_string()]).set(1.0);
        }
        let (used, limit) = file_descriptors();
        self.fd_used.set(used);
        self.fd_limit.set(limit);
        let memory = rustix::process::getrlimit(rustix::process::Resource::As).current;
        self.virtual_memory_max.set(memory.map_or(18_446_744_073_709_551_615.0, approximate));
        if let Some((received, sent)) = network_bytes() {
            raise(&self.network_received, received);
            raise(&self.network_sent, sent);
        }
    }
}

impl Metrics {
    /// Sets what the store takes on disk, and how many keys there are.
    pub fn refresh_store(&self, total_bytes: u64, in_use_bytes: u64, keys: u64) {
        self.db_size.set(approximate(total_bytes));
        self.db_size_in_use.set(approximate(in_use_bytes));
        self.keys.set(approximate(keys));
    }

    /// Sets what the watch hub counts.
    pub fn refresh_watches(&self, stats: &watch::HubStats) {
        self.watch_streams.set(approximate(stats.streams as u64));
        self.watchers.set(approximate(stats.watchers as u64));
        self.slow_watchers.set(approximate(stats.slow_watchers as u64));
        self.pending_events.set(approximate(stats.pending_events as u64));
        raise(&self.events, stats.events as u64);
    }
}

impl Metrics {
    /// Sets what the read budget counts.
    pub(crate) fn refresh_reads(&self, stats: &BudgetStats) {
        self.read_bytes_held.set(approximate(stats.held));
        raise(&self.reads_waited, stats.waited);
        raise(&self.reads_refused, stats.refused);
        raise(&self.reads_dropped, stats.dropped);
    }
}

/// Brings a counter up to what somebody else has counted. A scrape may run beside another one, and a
/// counter must not go down.
fn raise(counter: &Counter, to: u64) {
    counter.inc_by((approximate(to) - counter.get()).max(0.0));
}

/// Bytes received and sent in the network namespace of this process, which is what the Go library for
/// metrics shows under these names too.
fn network_bytes() -> Option<(u64, u64)> {
    octets(&std::fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// The columns `InOctets` and `OutOctets` of the two lines that begin with `IpExt:`.
fn octets(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = |wanted: &str| {
        let at = names.split_whitespace().position(|name| name == wanted)?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    Some((column("InOctets")?, column("OutOctets")?))
}

fn file_descriptors() -> (f64, f64) {
    let used = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (approximate(used as u64), limit.map_or(f64::INFINITY, approximate))
}

/// Prometheus keeps every number as a float.
#[expect(clippy::cast_precision_loss, reason = "the format of the metrics has no other numbers")]
fn approximate(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "the format of the metrics has no other numbers")]
fn signed(number: i64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ops::calls::CallMetrics;
    use crate::ops::http::HttpMetrics;

    /// Every family that Go etcd 3.7.3 shows right after its start, without those of the Go runtime.
    #[test]
    fn no_metric_of_etcd_is_missing() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        CallMetrics::register(&registry, false, Duration::from_secs(1)).unwrap();
        HttpMetrics::register(&registry).unwrap();
        replica::LogMetrics::register(&registry).unwrap();
        super::super::register_process(&registry).unwrap();
        let gates = FeatureGates::default();
        metrics.describe(MemberId(1), &gates, Some(2 << 30));
        metrics.refresh(&Sample {
            member: MemberId(1),
            leader: Some(MemberId(1)),
            cluster_version: Some("3.7".to_owned()),
            members: vec![MemberId(1)],
            ..Sample::default()
        });
        let found: BTreeSet<String> =
            registry.gather().iter().map(|family| family.name().to_owned()).collect();
        let missing: Vec<&str> = include_str!("etcd_3_7_metrics.txt")
            .lines()
            .filter(|name| !name.is_empty() && !found.contains(*name))
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn the_bytes_of_the_network_are_found_by_name() {
        let netstat =
            "TcpExt: A InOctets\nTcpExt: 1 2\nIpExt: A InOctets OutOctets B\nIpExt: 9 10 20 0\n";
        assert_eq!(octets(netstat), Some((10, 20)));
        assert_eq!(octets("IpExt: A\nIpExt: 9\n"), None);
        assert!(network_bytes().is_some());
    }

    #[test]
    fn a_sample_is_what_is_shown() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let mut sample = Sample {
            member: MemberId(2),
            leader: Some(MemberId(1)),
            applied: LogIndex(7),
            alarms: vec![Alarm { kind: AlarmKind::NO_SPACE, member: MemberId(2) }],
            ..Sample::default()
        };
        metrics.refresh(&sample);
        let text = |registry: &Registry| {
            prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
        };
        let shown = text(&registry);
        assert!(shown.contains("etcd_server_has_leader 1\n"));
        assert!(shown.contains("etcd_server_is_leader 0\n"));
        assert!(shown.contains("etcd_server_proposals_applied_total 7\n"));
        assert!(
            shown.contains(
                "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"2\"} 1\n"
            )
        );
        metrics.refresh_store(3 << 20, 1 << 20, 12);
        let mut stats = watch::HubStats {
            streams: 1,
            watchers: 2,
            slow_watchers: 0,
            events: 40,
            pending_events: 3,
            position: Revision(7),
        };
        metrics.refresh_watches(&stats);
        stats.events = 42;
        metrics.refresh_watches(&stats);
        let shown = text(&registry);
        assert!(shown.contains("etcd_mvcc_db_total_size_in_bytes 3145728\n"));
        assert!(shown.contains("etcd_debugging_mvcc_watcher_total 2\n"));
        assert!(shown.contains("etcd_debugging_mvcc_events_total 42\n"));
        assert!(shown.contains("etcd_debugging_mvcc_pending_events_total 3\n"));
        sample.alarms.clear();
        metrics.refresh(&sample);
        assert!(!text(&registry).contains("NOSPACE"), "a cleared alarm is shown no more");
    }
}
