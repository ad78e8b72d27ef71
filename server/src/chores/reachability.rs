//! Asking the other members, every few seconds, whether they are there and how far away (etcd: its
//! prober). Members that only follow would else say nothing to each other, and not notice that one is
//! gone; and of the other messages most wait for a disk or a quorum, so their answers do not tell
//! how slow the network is.
//!
//! Who has not answered yet, or not the last time, is asked more often. etcd's members dial each other all the
//! time, so that one that begins to lead knows already for how long it has reached the others, which counts
//! when the membership is to change.

use std::time::Duration;

use replica::Handle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the others are asked that do not answer.
const UNREACHED_INTERVAL: Duration = Duration::from_millis(500);
/// How many times less often those that do: every 4 s, etcd's time-out for reading less a second.
const REACHED_EVERY: u64 = 8;

/// Asks until the server stops.
pub async fn watch(handle: Handle, stop: CancellationToken) {
    let mut ticks = interval(UNREACHED_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // The leader asks by itself (`cluster_version`).
        if handle.leads() {
            continue;
        }
        match tick % REACHED_EVERY {
            0 => drop(handle.versions_of_others().await),
            _ => handle.ask_unreached().await,
        }
    }
}
