//! The way of a write from an RPC thread to the leader's log.
//!
//! Handlers push proposals into one bounded queue. The driver, on the Raft thread, drains whatever
//! waits into one batch per turn: one Raft entry, whose bytes are at once the log record and the
//! replication payload. On a follower the batch goes to the leader over the peer protocol; either
//! way the answer comes when this member itself applies the entry (as in etcd), so that a client
//! that writes through a follower can read its write there.
//!
//! A batch is handed over once and never again: a write that may have happened is not retried.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use machine::{Batch as BatchCodec, Outcome, Proposal, Ticket};
use tokio::sync::Notify;
use types::{MemberId, Term};

use crate::completion::Mailboxes;
use crate::limits::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, QUEUE_BYTES_MAX, QUEUE_REQUESTS_MAX};
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

/// What the driver needs of the rest of the room.
pub(crate) trait Appender: Send + Sync + 'static {
    fn leader(&self) -> Leader;
    /// Appends to the local leader's log. `refused` runs if openraft did not take it.
    fn append(
        &self,
        batch: Bytes,
        refused: Box<dyn FnOnce() + Send>,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
    /// Hands a batch to another member; the answer is the term it was appended in.
    fn forward(
        &self,
        to: MemberId,
        batch: Bytes,
    ) -> impl Future<Output = Result<Term, Unavailable>> + Send;
}

/// Drains the queue until it is closed.
pub(crate) async fn drive<A: Appender>(
    queue: Arc<ProposalQueue>,
    appender: Arc<A>,
    mailboxes: Arc<Mailboxes<Outcome>>,
) {
    while let Some(batch) = queue.next_batch().await {
        let seqs: Vec<u64> = batch.iter().map(|(ticket, _)| ticket.seq).collect();
        match appender.leader() {
            Leader::Unknown => fail(&mailboxes, &seqs, Unavailable::NoLeader),
            Leader::Here { term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let (boxes, refused) = (mailboxes.clone(), seqs.clone());
                let refuse = Box::new(move || fail(&boxes, &refused, Unavailable::LeaderChanged));
                if let Err(reason) = appender.append(payload, refuse).await {
                    fail(&mailboxes, &seqs, reason);
                }
            }
            Leader::There { member, term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let (appender, boxes) = (appender.clone(), mailboxes.clone());
                // Forwards overlap: a slow leader must not hold up what is queued behind.
                crate::runtime::spawn(async move {
                    match appender.forward(member, payload).await {
                        Ok(appended_in) => boxes.mark_proposed(seqs, appended_in),
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
