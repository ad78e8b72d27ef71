//! Asking the other members, every few seconds, whether they are there and how far away (etcd: its
//! prober). Members that only follow would else say nothing to each other, and not notice that one is
//! gone; and of the other messages most wait for a disk or a quorum, so their answers do not tell
//! how slow the network is.

use std::time::Duration;

use replica::Handle;
use tokio_util::sync::CancellationToken;

/// etcd's interval: its time-out for reading less a second.
const INTERVAL: Duration = Duration::from_secs(4);

/// Asks until the server stops; the transport counts what comes of it.
pub async fn watch(handle: Handle, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        // The leader asks by itself (`cluster_version`).
        if !handle.leads() {
            handle.versions_of_others().await;
        }
    }
}
