//! When this member has last heard of a leader.
//!
//! With pre-votes a follower keeps its vote, and with it the leader that it follows in the eyes of
//! openraft, until others would vote for it: where a quorum has gone, for ever. etcd's follower has no
//! leader from the moment at which it asks for pre-votes (raft.go, `becomePreCandidate`).

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use types::MemberId;

/// The last sign of life of a leader.
#[derive(Debug)]
pub(crate) struct LeaderContact {
    /// A leader that has said nothing for this long is not one that clients should be told of.
    patience: Duration,
    last: Mutex<Option<(MemberId, Instant)>>,
    resumed: Notify,
}

impl LeaderContact {
    /// No leader has been heard of yet.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, last: Mutex::new(None), resumed: Notify::new() }
    }

    /// A message of a leader has come.
    pub(crate) fn heard(&self, leader: MemberId) {
        let now = Instant::now();
        let before = self.last.lock().expect("nothing panics under it").replace((leader, now));
        if before.is_none_or(|(from, at)| from != leader || now - at >= self.patience) {
            self.resumed.notify_one();
        }
    }

    /// Whether this leader has said nothing for too long.
    pub(crate) fn is_silent(&self, leader: MemberId) -> bool {
        let last = *self.last.lock().expect("nothing panics under it");
        last.is_none_or(|(from, at)| from != leader || at.elapsed() >= self.patience)
    }

    /// Waits for the end of a silence.
    pub(crate) async fn resumed(&self) {
        self.resumed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_silent_until_it_is_heard_and_after_its_time() {
        let contact = LeaderContact::new(PATIENCE);
        assert!(contact.is_silent(MemberId(1)));
        contact.heard(MemberId(1));
        assert!(!contact.is_silent(MemberId(1)));
        assert!(contact.is_silent(MemberId(2)), "it is another that was heard");
        tokio::time::advance(PATIENCE).await;
        assert!(contact.is_silent(MemberId(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_end_of_a_silence_is_told() {
        let contact = LeaderContact::new(PATIENCE);
        let told = || contact.resumed().now_or_never().is_some();
        contact.heard(MemberId(1));
        assert!(told());
        contact.heard(MemberId(1));
        assert!(!told());
        contact.heard(MemberId(2));
        assert!(told());
        tokio::time::advance(PATIENCE).await;
        contact.heard(MemberId(2));
        assert!(told());
    }
}
