//! The leader's heartbeats: how often they are sent, and how long one may take.
//!
//! openraft has one number for both. A heartbeat that is not answered within the interval is given up,
//! so with round trips longer than the interval a leader that has nothing to replicate would never hear
//! that a quorum follows it: it could not answer a read, and after its lease it would fall silent until
//! somebody else is elected, and so on in turns. Here openraft's number is how long a heartbeat may take,
//! nearly half an election timeout, and [`drive`] sends one every heartbeat interval.
//!
//! A follower has one heartbeat at a time: while it is under way, later ones are replaced by the newest.
//! Over a long way heartbeats are therefore as far apart as a round trip takes, which is less than any
//! follower waits.
//!
//! openraft looks at its clocks every fifth of that number, so an election begins up to a tenth of an
//! election timeout late; etcd's clocks are about as coarse.

use std::sync::Weak;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::handle::Shared;
use crate::start::Timing;

/// How long a heartbeat may take. A second one must fit in before any follower campaigns.
pub(crate) fn patience(timing: Timing) -> Duration {
    let longest = (timing.election_timeout / 2).saturating_sub(Duration::from_millis(1));
    longest.max(timing.heartbeat_interval)
}

/// Sends a heartbeat every interval while this member leads, until it ends.
pub(crate) async fn drive(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        let leads = shared.raft.metrics().borrow_watched().state.is_leader();
        if leads && shared.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
