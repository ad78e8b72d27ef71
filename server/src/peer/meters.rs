//! What goes to and comes from each other member, under etcd's names. A message is counted by the
//! length of its protobuf, on both sides, answers included.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, Histogram, IntCounter};
use types::MemberId;

use crate::ops::metrics::Metrics;

/// The counters of all other members.
#[derive(Clone)]
pub(crate) struct PeerMeters {
    metrics: Metrics,
    local: String,
    // A std mutex: held to look a member up.
    members: Arc<Mutex<BTreeMap<MemberId, Arc<PeerMeter>>>>,
    /// Who was refused. A std mutex: held to look somebody up.
    refused: Arc<Mutex<BTreeSet<MemberId>>>,
}

/// Under how many names those who call this member are counted. A cluster has fewer members, also over the
/// years; but whoever reaches the port can name himself as he likes.
const CALLERS_MAX: usize = 256;

/// The name under which all further ones are counted; no member has it.
const OTHERS: MemberId = MemberId(0);

/// How often the log says again that a member is not reached: etcd's interval.
const REMINDER: Duration = Duration::from_secs(5);

/// The counters of one other member, and what the log says of its coming and going.
pub(crate) struct PeerMeter {
    id: String,
    sent: IntCounter,
    sent_failures: IntCounter,
    received: IntCounter,
    round_trip: Histogram,
    active: Gauge,
    disconnected: IntCounter,
    /// Since when its messages arrive, if they do. A std mutex: held to look at it.
    active_since: Mutex<Option<Instant>>,
    /// When it was last told, or could have been. A std mutex: held to compare two times.
    told: Mutex<Instant>,
    snapshots: [SnapshotMeter; 2],
}

/// Snapshots in one direction.
struct SnapshotMeter {
    under_way: Gauge,
    success: IntCounter,
    failures: IntCounter,
    took: Histogram,
}

/// A snapshot on its way, counted for as long as this lives: its transfer may also be given up.
pub(crate) struct SnapshotUnderWay(Gauge);

impl Drop for SnapshotUnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Which way a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Sent = 0,
    Received = 1,
}

impl PeerMeters {
    pub(crate) fn new(metrics: Metrics, local: MemberId) -> Self {
        Self { metrics, local: local.to_string(), members: Arc::default(), refused: Arc::default() }
    }

    /// Those of a member that this one calls.
    pub(crate) fn of(&self, member: MemberId) -> Arc<PeerMeter> {
        let mut members = self.members();
        let meter = members.entry(member).or_insert_with(|| Arc::new(self.meter(member)));
        meter.clone()
    }

    /// Those of somebody who calls this member and says that it is this one.
    pub(crate) fn of_caller(&self, from: u64) -> Arc<PeerMeter> {
        let from = MemberId(from);
        let members = self.members();
        let is_counted = members.len() < CALLERS_MAX || members.contains_key(&from);
        drop(members);
        self.of(if is_counted { from } else { OTHERS })
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<MemberId, Arc<PeerMeter>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message that was refused before anybody looked at it.
    pub(crate) fn refused(&self, from: u64) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let from = match MemberId(from) {
            from if refused.len() < CALLERS_MAX || refused.contains(&from) => from,
            _ => OTHERS,
        };
        refused.insert(from);
        drop(refused);
        let from = from.to_string();
        self.metrics.peer_received_failures.with_label_values(&[&from]).inc();
    }

    fn meter(&self, member: MemberId) -> PeerMeter {
        let (metrics, id) = (&self.metrics, member.to_string());
        let label = [id.as_str()];
        let both = [self.local.as_str(), id.as_str()];
        PeerMeter {
            sent: metrics.peer_sent_bytes.with_label_values(&label),
            sent_failures: metrics.peer_sent_failures.with_label_values(&label),
            received: metrics.peer_received_bytes.with_label_values(&label),
            round_trip: metrics.round_trip.with_label_values(&label),
            active: metrics.active_peers.with_label_values(&both),
            disconnected: metrics.disconnected_peers.with_label_values(&both),
            active_since: Mutex::default(),
            told: Mutex::new(Instant::now()),
            snapshots: [
                SnapshotMeter {
                    under_way: metrics.snapshot_send_inflights.with_label_values(&label),
                    success: metrics.snapshot_send_success.with_label_values(&label),
                    failures: metrics.snapshot_send_failures.with_label_values(&label),
                    took: metrics.snapshot_send.with_label_values(&label),
                },
                SnapshotMeter {
                    under_way: metrics.snapshot_receive_inflights.with_label_values(&label),
                    success: metrics.snapshot_receive_success.with_label_values(&label),
                    failures: metrics.snapshot_receive_failures.with_label_values(&label),
                    took: metrics.snapshot_receive.with_label_values(&label),
                },
            ],
            id,
        }
    }
}

impl PeerMeter {
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    /// The member has answered.
    pub(crate) fn answered(&self) {
        let mut since = self.active_since();
        if since.is_none() {
            *since = Some(Instant::now());
            self.active.set(1.0);
            tracing::info!("peer-id" = %self.id, "peer became active");
        }
    }

    /// A message did not get there, or its answer not back.
    pub(crate) fn failed(&self, error: &dyn Display) {
        self.sent_failures.inc();
        if self.active_since().take().is_some() {
            self.active.set(0.0);
            self.disconnected.inc();
            self.is_time_to_tell(Duration::ZERO);
            tracing::warn!(
                "peer-id" = %self.id, %error,
                "peer became inactive (message send to peer failed)"
            );
        } else if self.is_time_to_tell(REMINDER) {
            tracing::warn!("remote-peer-id" = %self.id, %error, "prober detected unhealthy status");
        }
    }

    /// For how long every message has been answered.
    pub(crate) fn active_for(&self) -> Duration {
        self.active_since().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn active_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.active_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing was told for so long; something is told then.
    fn is_time_to_tell(&self, silence: Duration) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.elapsed() >= silence;
        if is_time {
            *told = Instant::now();
        }
        is_time
    }

    pub(crate) fn round_trip(&self, took: Duration) {
        self.round_trip.observe(took.as_secs_f64());
    }

    pub(crate) fn snapshot_begins(&self, direction: Direction) -> SnapshotUnderWay {
        let gauge = self.snapshots[direction as usize].under_way.clone();
        gauge.inc();
        SnapshotUnderWay(gauge)
    }

    pub(crate) fn snapshot(&self, direction: Direction, success: bool, began: Instant) {
        let meter = &self.snapshots[direction as usize];
        match success {
            true => {
                meter.success.inc();
                meter.took.observe(began.elapsed().as_secs_f64());
            }
            false => meter.failures.inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_calls_under_many_names_is_counted_under_few() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let meters = PeerMeters::new(metrics, MemberId(1));
        let member = meters.of(MemberId(7));
        for from in 1000..11_000 {
            meters.of_caller(from).received(1);
            meters.refused(from);
        }
        assert_eq!(meters.members().len(), CALLERS_MAX + 1, "and the others");
        assert!(meters.refused.lock().unwrap().len() <= CALLERS_MAX + 1);
        assert!(Arc::ptr_eq(&meters.of_caller(7), &member), "a member keeps its own");
        assert!(Arc::ptr_eq(&meters.of_caller(99_999), &meters.of(OTHERS)));
        let late = meters.of(MemberId(99_999));
        assert!(Arc::ptr_eq(&meters.of_caller(99_999), &late), "one that is called has its own");
    }
}
