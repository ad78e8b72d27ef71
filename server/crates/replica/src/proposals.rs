//! The way of a write from an RPC thread to the leader's log.
//!
//! Handlers push proposals into one bounded queue. The driver, on the Raft thread, drains whatever
//! waits into one batch per turn: one Raft entry, whose bytes are at once the log record and the
//! replication payload. On a follower the batch goes to the leader over the peer protocol; either
//! way the answer comes when this member itself applies the entry (as in etcd), so that a client
//! that writes through a follower can read its write there.
//!
//! A write that may have happened is not retried: a batch is handed over again only when openraft
//! says that it never entered the log.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use machine::{Batch as BatchCodec, Outcome, Proposal, Ticket};
use tokio::sync::Notify;
use types::{MemberId, Term};

use crate::completion::Mailboxes;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, PUT_BACK_PAUSE, QUEUE_BYTES_MAX, QUEUE_REQUESTS_MAX,
};
use crate::unavailable::Unavailable;

/// Proposals that wait for the driver, bounded by count and by bytes.
pub(crate) struct ProposalQueue {
    // A std mutex: RPC threads push and the driver swaps, neither awaits inside.
    waiting: Mutex<Waiting>,
    bell: Notify,
    closed: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    proposals: VecDeque<(Ticket, Proposal)>,
    bytes: usize,
}

impl ProposalQueue {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), bell: Notify::new(), closed: AtomicBool::new(false) }
    }

    /// # Errors
    /// [`Unavailable::TooManyRequests`] when the queue is full; nothing was proposed then.
    pub(crate) fn push(&self, ticket: Ticket, proposal: Proposal) -> Result<(), Unavailable> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Unavailable::Stopped);
        }
        let bytes = proposal.body.len();
        let mut waiting = self.lock();
        if waiting.proposals.len() >= QUEUE_REQUESTS_MAX || waiting.bytes + bytes > QUEUE_BYTES_MAX
        {
            return Err(Unavailable::TooManyRequests);
        }
        waiting.bytes += bytes;
        waiting.proposals.push_back((ticket, proposal));
        drop(waiting);
        self.bell.notify_one();
        Ok(())
    }

    /// Returns a batch that did not get into the log, a moment later so that a leader that cannot
    /// write yet is not asked in a busy loop.
    fn put_back(self: Arc<Self>, batch: Vec<(Ticket, Proposal)>) {
        crate::runtime::spawn(async move {
            tokio::time::sleep(PUT_BACK_PAUSE).await;
            let mut waiting = self.lock();
            for (ticket, proposal) in batch.into_iter().rev() {
                waiting.bytes += proposal.body.len();
                waiting.proposals.push_front((ticket, proposal));
            }
            drop(waiting);
            self.bell.notify_one();
        });
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().proposals.len()
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bell.notify_one();
    }

    /// The next batch, or none once the queue is closed and empty.
    pub(crate) async fn next_batch(&self) -> Option<Vec<(Ticket, Proposal)>> {
        loop {
            let batch = self.drain();
            if !batch.is_empty() {
                return Some(batch);
            }
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            self.bell.notified().await;
        }
    }

    fn drain(&self) -> Vec<(Ticket, Proposal)> {
        let mut waiting = self.lock();
        let mut bytes = 0;
        let mut count = 0;
        for (_, proposal) in waiting.proposals.iter().take(BATCH_REQUESTS_MAX) {
            bytes += proposal.body.len();
            if bytes > BATCH_BYTES_MAX && count > 0 {
                bytes -= proposal.body.len();
                break;
            }
            count += 1;
        }
        waiting.bytes -= bytes;
        waiting.proposals.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who may append: this member, or the one it forwards to.
pub(crate) enum Leader {
    Here { term: Term },
    There { member: MemberId, term: Term },
    Unknown,
}

/// How an append ended that was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The batch never entered the log: it may be handed over again.
    NotAppended,
    /// The batch was in the log and may still be committed by another leader.
    Unknown,
}

/// What the driver needs of the rest of the room.
pub(crate) trait Appender: Send + Sync + 'static {
    fn leader(&self) -> Leader;
    /// Returns when there is a leader, or after a short while.
    fn leader_moved(&self) -> impl Future<Output = ()> + Send;
    /// Appends to the local leader's log. `failed` runs if the batch will not be applied through
    /// this append, and says whether it is known not to be in the log.
    fn append(
        &self,
        batch: Bytes,
        failed: Box<dyn FnOnce(Failure) + Send>,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
    /// Hands a batch to another member; the answer is the term it was appended in. The error
    /// [`Unavailable::NotLeader`] means that the batch is not in the log.
    fn forward(
        &self,
        to: MemberId,
        batch: Bytes,
    ) -> impl Future<Output = Result<Term, Unavailable>> + Send;
}

/// Drains the queue until it is closed. While there is no leader the batch waits, and whoever stops
/// waiting for an answer meanwhile is not proposed any more.
pub(crate) async fn drive<A: Appender>(
    queue: Arc<ProposalQueue>,
    appender: Arc<A>,
    mailboxes: Arc<Mailboxes<Outcome>>,
) {
    while let Some(mut batch) = queue.next_batch().await {
        while matches!(appender.leader(), Leader::Unknown) && !queue.is_closed() {
            appender.leader_moved().await;
        }
        batch.retain(|(ticket, _)| mailboxes.is_waiting(ticket.seq));
        if batch.is_empty() {
            continue;
        }
        let seqs: Vec<u64> = batch.iter().map(|(ticket, _)| ticket.seq).collect();
        match appender.leader() {
            Leader::Unknown => fail(&mailboxes, &seqs, Unavailable::NoLeader),
            Leader::Here { term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let (queue, boxes, failed) = (queue.clone(), mailboxes.clone(), seqs.clone());
                let on_failure = Box::new(move |failure| match failure {
                    Failure::NotAppended => {
                        boxes.mark_queued(failed);
                        queue.put_back(batch);
                    }
                    Failure::Unknown => fail(&boxes, &failed, Unavailable::LeaderChanged),
                });
                if let Err(reason) = appender.append(payload, on_failure).await {
                    fail(&mailboxes, &seqs, reason);
                }
            }
            Leader::There { member, term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let (queue, appender, boxes) = (queue.clone(), appender.clone(), mailboxes.clone());
                // Forwards overlap: a slow leader must not hold up what is queued behind.
                crate::runtime::spawn(async move {
                    match appender.forward(member, payload).await {
                        Ok(appended_in) => boxes.mark_proposed(seqs, appended_in),
                        Err(Unavailable::NotLeader) => {
                            boxes.mark_queued(seqs);
                            queue.put_back(batch);
                        }
                        Err(reason) => fail(&boxes, &seqs, reason),
                    }
                });
            }
        }
    }
}

fn fail(mailboxes: &Mailboxes<Outcome>, seqs: &[u64], reason: Unavailable) {
    mailboxes.post(seqs.iter().map(|seq| (*seq, Err(reason))));
}
