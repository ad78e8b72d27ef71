//! The lease clock as this server sets it up.

use std::time::Duration;

use deadlines::{ClockOptions, Counters, LeaseClock};
use replica::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ops::metrics::Metrics;

/// How often the time that a lease has left is recorded, with feature gate LeaseCheckpoint (etcd:
/// `defaultLeaseCheckpointInterval`).
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);

/// Leases revoked by one entry; more wait for the next turn.
const EXPIRED_PER_TURN_MAX: usize = 10_000;

pub(crate) fn options(config: &Config) -> ClockOptions {
    let checkpoints = config.gates.enabled("LeaseCheckpoint");
    ClockOptions {
        checkpoint_interval: checkpoints.then_some(CHECKPOINT_INTERVAL),
        extend: config.raft.election_timeout,
        patience: crate::boot::request_timeout(config),
        expired_per_turn_max: EXPIRED_PER_TURN_MAX,
    }
}

pub(crate) fn clock(config: &Config, metrics: &Metrics) -> LeaseClock {
    let counters = Counters {
        renewed: metrics.leases_renewed.clone(),
        expired: metrics.leases_expired.clone(),
    };
    LeaseClock::new(options(config), counters)
}

/// Ends leases whose time is over until the server stops.
pub(crate) async fn expire(clock: LeaseClock, handle: Handle, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = clock.run(handle) => {}
    }
}
