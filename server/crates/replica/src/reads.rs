//! Linearizable reads: one ReadIndex round serves every read that waits.
//!
//! A read joins the round that has not started yet. A round asks the leader (over the peer protocol
//! when that is another member) for an index that was committed after the round began and whose
//! leadership a quorum has confirmed (Raft §6.4), and then waits until this member has applied it.
//! The next round gathers meanwhile. A read therefore never sees less than what was committed when
//! it arrived.
//!
//! A round costs the same whatever it serves, so it gathers a little: clients whose reads were just
//! answered mostly read again at once. The next round starts when half as many as were answered wait
//! again, and at the latest after [`GATHERING`]. A client that reads alone never waits for others.
//!
//! Invariant: every read that was taken in is answered, so a read needs no timer of its own. A round's
//! question and its wait for apply have limits, and a read waits for one round before its own at most.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use types::LogIndex;

use crate::completion::Mailboxes;
use crate::unavailable::Unavailable;

/// How long a round may gather after the one before it was answered.
const GATHERING: Duration = Duration::from_millis(1);

/// The reads that wait for the next round.
pub(crate) struct ReadQueue {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

struct Waiting {
    reads: Vec<u64>,
    /// The bell rings when so many wait.
    enough: usize,
    /// Nothing is taken in any more, so that nothing comes after the last round.
    closed: bool,
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
        let waiting = Waiting { reads: Vec::new(), enough: 1, closed: false };
        Self { waiting: Mutex::new(waiting), bell: Notify::new() }
    }

    /// Takes a read into the next round.
    pub(crate) fn push(&self, seq: u64) -> Result<(), Unavailable> {
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err(Unavailable::Stopped);
        }
        waiting.reads.push(seq);
        let enough = waiting.reads.len() >= waiting.enough;
        drop(waiting);
        if enough {
            self.bell.notify_one();
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.waiting().closed = true;
        self.bell.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that wait, if they are `enough` or the queue is closed.
    fn take(&self, enough: usize) -> Option<Vec<u64>> {
        let mut waiting = self.waiting();
        waiting.enough = enough;
        let taken = waiting.reads.len() >= enough || waiting.closed;
        taken.then(|| std::mem::take(&mut waiting.reads))
    }

    /// The reads of the next round: `expected` of them, or those that are there when `until` has
    /// passed, but at least one. None once the queue is closed and empty.
    async fn gather(&self, expected: usize, until: Instant) -> Option<Vec<u64>> {
        let mut enough = expected.max(1);
        loop {
            if let Some(round) = self.take(enough) {
                return (!round.is_empty()).then_some(round);
            }
            if enough == 1 {
                self.bell.notified().await;
            } else if timeout_at(until, self.bell.notified()).await.is_err() {
                enough = 1;
            }
        }
    }
}

/// Runs one round after the other until the queue is closed.
pub(crate) async fn drive<S: ReadIndexSource>(
    queue: Arc<ReadQueue>,
    source: Arc<S>,
    mailboxes: Arc<Mailboxes<()>>,
) {
    let mut expected = 1;
    let mut until = Instant::now();
    while let Some(round) = queue.gather(expected, until).await {
        expected = round.len() / 2;
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
        until = Instant::now() + GATHERING;
    }
}

fn answer(mailboxes: &Mailboxes<()>, round: Vec<u64>, result: Result<(), Unavailable>) {
    mailboxes.post(round.into_iter().map(|seq| (seq, result)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the next round after one of ten reads takes when `count` reads come at once, and how long
    /// it gathers.
    async fn round_after_ten(count: u64) -> (usize, Duration) {
        let queue = ReadQueue::new();
        let answered = Instant::now();
        let gathering = queue.gather(10 / 2, answered + GATHERING);
        let pushing = async { (0..count).for_each(|seq| queue.push(seq).unwrap()) };
        let (round, ()) = tokio::join!(gathering, pushing);
        (round.unwrap().len(), answered.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_starts_when_half_of_those_that_were_answered_wait_again() {
        assert_eq!(round_after_ten(5).await, (5, Duration::ZERO));
        assert_eq!(round_after_ten(9).await, (9, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_does_not_wait_long_for_clients_that_have_gone() {
        let (reads, gathered) = round_after_ten(4).await;
        assert_eq!(reads, 4);
        assert!(gathered >= GATHERING && gathered <= 2 * GATHERING, "{gathered:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_after_a_pause_starts_its_round_at_once() {
        let queue = ReadQueue::new();
        let until = Instant::now() + GATHERING;
        let late = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            queue.push(7).unwrap();
            Instant::now()
        };
        let (round, pushed) = tokio::join!(queue.gather(500, until), late);
        assert_eq!(round, Some(vec![7]));
        assert_eq!(pushed.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_queue_gives_up_what_it_has_and_ends() {
        let queue = ReadQueue::new();
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(Unavailable::Stopped));
        let until = Instant::now() + GATHERING;
        assert_eq!(queue.gather(100, until).await, Some(vec![1]));
        assert_eq!(queue.gather(100, until).await, None);
    }
}
