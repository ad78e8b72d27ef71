//! Following who leads, for the metrics and the log.

use replica::Handle;
use tokio_util::sync::CancellationToken;

use crate::ops::metrics::Metrics;

/// Counts and logs changes of the leader until the replica stops.
pub async fn follow(handle: Handle, metrics: Metrics, stop: CancellationToken) {
    let mut status = handle.watch_status();
    let mut known = status.borrow_and_update().answered_leader();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
        let (leader, term) = {
            let now = status.borrow_and_update();
            (now.answered_leader(), now.term)
        };
        if leader == known {
            continue;
        }
        match leader {
            Some(leader) => {
                metrics.leader_changes.inc();
                tracing::info!(leader = %leader, term = term.0, "leader changed");
            }
            None => tracing::warn!(term = term.0, "lost leader"),
        }
        known = leader;
    }
}
