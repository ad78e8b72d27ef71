//! A position that only moves forward, and waiting for it to get somewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use types::LogIndex;

/// An index readable from any thread: how far this member has applied, or what its newest image holds.
#[derive(Default)]
pub(crate) struct Watermark {
    index: AtomicU64,
    moved: Notify,
}

impl Watermark {
    pub(crate) fn get(&self) -> LogIndex {
        LogIndex(self.index.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, index: LogIndex) {
        self.index.store(index.0, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Returns once the position is at `index` or beyond. Cancellation-safe.
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
