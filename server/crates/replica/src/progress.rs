//! How far this member has applied, and waiting for it to get further.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use types::LogIndex;

/// The applied index, readable from any thread.
#[derive(Default)]
pub(crate) struct Applied {
    index: AtomicU64,
    moved: Notify,
}

impl Applied {
    pub(crate) fn get(&self) -> LogIndex {
        LogIndex(self.index.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, index: LogIndex) {
        self.index.store(index.0, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Returns once everything up to `index` is applied. Cancellation-safe.
    pub(crate) async fn reach(&self, index: LogIndex) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the check: a move in between is not missed.
            moved.as_mut().enable();
            if self.get() >= index {
                return;
            }
            moved.await;
        }
    }
}
