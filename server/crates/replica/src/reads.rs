//! Linearizable reads: one ReadIndex round serves every read that waits.
//!
//! A read joins the round that has not started yet. A round asks the leader (over the peer protocol
//! when that is another member) for an index that was committed after the round began and whose
//! leadership a quorum has confirmed (Raft §6.4), and then waits until this member has applied it.
//! The next round gathers meanwhile. A read therefore never sees less than what was committed when
//! it arrived.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use types::LogIndex;

use crate::completion::Mailboxes;
use crate::unavailable::Unavailable;

/// The reads that wait for the next round.
pub(crate) struct ReadQueue {
    waiting: Mutex<Vec<u64>>,
    bell: Notify,
    closed: AtomicBool,
}

/// Gets an index that a read must wait for, and waits for it.
pub(crate) trait ReadIndexSource: Send + Sync + 'static {
    /// Asks the leader, retrying while that is safe and time remains.
    fn read_index(&self) -> impl Future<Output = Result<LogIndex, Unavailable>> + Send;
    /// Waits until this member has applied `index`.
    fn applied(&self, index: LogIndex) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

impl ReadQueue {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), bell: Notify::new(), closed: AtomicBool::new(false) }
    }

    pub(crate) fn push(&self, seq: u64) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(seq);
        self.bell.notify_one();
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs one round after the other until the queue is closed.
pub(crate) async fn drive<S: ReadIndexSource>(
    queue: Arc<ReadQueue>,
    source: Arc<S>,
    mailboxes: Arc<Mailboxes<()>>,
) {
    loop {
        let round = queue.take();
        if round.is_empty() {
            if queue.closed.load(Ordering::Acquire) {
                return;
            }
            queue.bell.notified().await;
            continue;
        }
        match source.read_index().await {
            Err(reason) => answer(&mailboxes, round, Err(reason)),
            Ok(index) => {
                // The wait for apply must not delay the next round's question.
                let (source, mailboxes) = (source.clone(), mailboxes.clone());
                crate::runtime::spawn(async move {
                    let applied = source.applied(index).await;
                    answer(&mailboxes, round, applied);
                });
            }
        }
    }
}

fn answer(mailboxes: &Mailboxes<()>, round: Vec<u64>, result: Result<(), Unavailable>) {
    mailboxes.post(round.into_iter().map(|seq| (seq, result)));
}
