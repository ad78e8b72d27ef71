//! The way of a write from an RPC thread to the leader's log.
//!
//! Handlers push proposals into one bounded queue. The driver, on the Raft thread, drains whatever
//! waits into one batch per turn: one Raft entry, whose bytes are at once the log record and the
//! replication payload. On a follower the batch goes to the leader over the peer protocol; either
//! way the answer comes when this member itself applies the entry (as in etcd), so that a client
//! that writes through a follower can read its write there. What has been sent to a leader that has not
//! answered still counts against the queue's bounds: a leader that hangs does not fill this member's memory.
//!
//! A write that may have happened is not retried. A batch is handed over for one term only, so it
//! can enter the log in that term or never. It is handed over again only when it is known not to
//! have entered: openraft or the leader said so, or this member has applied an entry of a later
//! term without having met it (no entry of an older term can follow, Raft §5.3). What a leader decides by
//! a clock of its own is of its term: it is handed over in that term or refused.
//!
//! A leader that hears nothing of a quorum takes nothing, and whoever hears nothing of its leader hands it
//! nothing: proposals wait in the queue then, where they count, and not on their way in circles.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use machine::{Batch as BatchCodec, Outcome, Proposal, Ticket};
use tokio::sync::Notify;
use types::{MemberId, Term};

use crate::completion::{Mailboxes, Standing};
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
    forwarded: Load,
}

/// How much some proposals weigh against the queue's bounds.
#[derive(Clone, Copy, Default)]
struct Load {
    requests: usize,
    bytes: usize,
}

impl Load {
    fn of(batch: &[(Ticket, Proposal)]) -> Self {
        let bytes = batch.iter().map(|(_, proposal)| proposal.body.len()).sum();
        Self { requests: batch.len(), bytes }
    }
}

/// A batch that the leader has been sent and has not answered, counted until this is dropped.
struct Forwarding {
    queue: Arc<ProposalQueue>,
    load: Load,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.forwarded.requests -= self.load.requests;
        waiting.forwarded.bytes -= self.load.bytes;
    }
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
        let requests = waiting.proposals.len() + waiting.forwarded.requests;
        let occupied = waiting.bytes + waiting.forwarded.bytes;
        if requests >= QUEUE_REQUESTS_MAX || occupied + bytes > QUEUE_BYTES_MAX {
            return Err(Unavailable::TooManyRequests);
        }
        waiting.bytes += bytes;
        waiting.proposals.push_back((ticket, proposal));
        drop(waiting);
        self.bell.notify_one();
        Ok(())
    }

    fn forwarding(self: &Arc<Self>, batch: &[(Ticket, Proposal)]) -> Forwarding {
        let load = Load::of(batch);
        let mut waiting = self.lock();
        waiting.forwarded.requests += load.requests;
        waiting.forwarded.bytes += load.bytes;
        drop(waiting);
        Forwarding { queue: self.clone(), load }
    }

    /// Returns a batch that did not get into the log, a moment later so that a leader that cannot
    /// write yet is not asked in a busy loop. Until then it counts as if it were under way.
    fn put_back(self: Arc<Self>, batch: Vec<(Ticket, Proposal)>, was: Option<Forwarding>) {
        let resting = was.unwrap_or_else(|| self.forwarding(&batch));
        crate::runtime::spawn(async move {
            tokio::time::sleep(PUT_BACK_PAUSE).await;
            drop(resting);
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

    /// Drops what nobody waits for any more, which is nobody's load.
    fn forget_the_ended<T: Send + 'static>(&self, mailboxes: &Mailboxes<T>) {
        let mut waiting = self.lock();
        let Waiting { proposals, bytes, .. } = &mut *waiting;
        proposals.retain(|(ticket, proposal)| {
            let waits = mailboxes.is_waiting(ticket.seq);
            *bytes -= if waits { 0 } else { proposal.body.len() };
            waits
        });
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leader {
    Here { term: Term },
    There { member: MemberId, term: Term },
    Unknown,
}

/// What became of a forwarded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// The leader has it, or nobody can tell: apply will show, or the next term's first entry.
    Handed,
    /// It is not in the log and will not be.
    NotAppended,
    /// The leader has too much to apply already; the batch is not in the log.
    Overloaded,
}

/// What the driver needs of the rest of the room.
pub(crate) trait Appender: Send + Sync + 'static {
    /// Who takes proposals now: the leader, unless nothing is heard of it, or of its quorum here.
    fn taker(&self) -> Leader;
    /// Returns when somebody takes proposals, or after a short while.
    fn taker_found(&self) -> impl Future<Output = ()> + Send;
    /// Appends to the log of the local leader of `term`, and of no later one. `not_appended` runs if
    /// the batch never entered the log.
    fn append(
        &self,
        term: Term,
        batch: Bytes,
        not_appended: Box<dyn FnOnce() + Send>,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
    /// Hands a batch to the leader of `term`, which appends it in that term or not at all.
    fn forward(
        &self,
        to: MemberId,
        term: Term,
        batch: Bytes,
    ) -> impl Future<Output = Forwarded> + Send;
}

/// Drains the queue until it is closed. While there is no leader the batch waits, and whoever stops
/// waiting for an answer meanwhile is not proposed any more.
pub(crate) async fn drive<A: Appender>(
    queue: Arc<ProposalQueue>,
    appender: Arc<A>,
    mailboxes: Arc<Mailboxes<Outcome>>,
) {
    while let Some(mut batch) = queue.next_batch().await {
        let mut taker = appender.taker();
        while taker == Leader::Unknown && !queue.is_closed() {
            appender.taker_found().await;
            queue.forget_the_ended(&mailboxes);
            taker = appender.taker();
        }
        if let Leader::Here { term } | Leader::There { term, .. } = taker {
            refuse_those_of_other_terms(&mut batch, term, &mailboxes);
        }
        if batch.is_empty() {
            continue;
        }
        let seqs: Vec<u64> = batch.iter().map(|(ticket, _)| ticket.seq).collect();
        match taker {
            Leader::Unknown => fail(&mailboxes, &seqs, Unavailable::NoLeader),
            Leader::Here { term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let (queue, boxes, returned) = (queue.clone(), mailboxes.clone(), seqs.clone());
                let not_appended = Box::new(move || {
                    boxes.mark_queued(returned);
                    queue.put_back(batch, None);
                });
                if let Err(reason) = appender.append(term, payload, not_appended).await {
                    fail(&mailboxes, &seqs, reason);
                }
            }
            Leader::There { member, term } => {
                let payload = BatchCodec::encode(&batch);
                mailboxes.mark_proposed(seqs.iter().copied(), term);
                let forwarding = queue.forwarding(&batch);
                let (queue, appender, boxes) = (queue.clone(), appender.clone(), mailboxes.clone());
                // Forwards overlap: a slow leader must not hold up what is queued behind.
                crate::runtime::spawn(async move {
                    match appender.forward(member, term, payload).await {
                        Forwarded::Handed => {}
                        Forwarded::NotAppended => {
                            boxes.mark_queued(seqs);
                            queue.put_back(batch, Some(forwarding));
                        }
                        Forwarded::Overloaded => fail(&boxes, &seqs, Unavailable::TooManyRequests),
                    }
                });
            }
        }
    }
}

/// Leaves in a batch what may be handed to the leader of `term`.
fn refuse_those_of_other_terms(
    batch: &mut Vec<(Ticket, Proposal)>,
    term: Term,
    mailboxes: &Mailboxes<Outcome>,
) {
    let mut of_others = Vec::new();
    batch.retain(|(ticket, _)| {
        let standing = mailboxes.standing(ticket.seq, term);
        if standing == Standing::OfAnotherTerm {
            of_others.push(ticket.seq);
        }
        standing == Standing::Waiting
    });
    fail(mailboxes, &of_others, Unavailable::NotLeader);
}

fn fail(mailboxes: &Mailboxes<Outcome>, seqs: &[u64], reason: Unavailable) {
    mailboxes.post(seqs.iter().map(|seq| (*seq, Err(reason))));
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use machine::CommandKind;
    use tokio::sync::watch;

    use super::*;

    /// A follower whose leader takes what it is sent and answers nothing until it is told to.
    struct SilentLeader {
        answers: watch::Sender<Option<Forwarded>>,
    }

    impl Appender for SilentLeader {
        fn taker(&self) -> Leader {
            Leader::There { member: MemberId(2), term: Term(3) }
        }

        async fn taker_found(&self) {
            std::future::pending().await
        }

        async fn append(
            &self,
            _: Term,
            _: Bytes,
            _: Box<dyn FnOnce() + Send>,
        ) -> Result<(), Unavailable> {
            Err(Unavailable::NotLeader)
        }

        async fn forward(&self, _: MemberId, _: Term, _: Bytes) -> Forwarded {
            let mut told = self.answers.subscribe();
            told.wait_for(Option::is_some).await.unwrap().unwrap()
        }
    }

    fn proposal(body: &'static [u8]) -> Proposal {
        Proposal {
            kind: CommandKind::Put,
            body: Bytes::from_static(body),
            caller: machine::Caller::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_leader_has_not_answered_counts_until_it_does() {
        for answer in [Forwarded::Handed, Forwarded::Overloaded, Forwarded::NotAppended] {
            let queue = Arc::new(ProposalQueue::new());
            let mailboxes = Arc::new(Mailboxes::new());
            let mailbox = mailboxes.open(0);
            let leader = Arc::new(SilentLeader { answers: watch::Sender::new(None) });
            let mut driver = pin!(drive(queue.clone(), leader.clone(), mailboxes.clone()));
            let push = || {
                let waiter = mailbox.register();
                let ticket = Ticket { origin: MemberId(1), seq: waiter.seq() };
                queue.push(ticket, proposal(b"put")).map(|()| waiter)
            };
            let idle = tokio::time::sleep(std::time::Duration::from_millis(1));
            let waiters: Vec<_> = (0..QUEUE_REQUESTS_MAX).map(|_| push().unwrap()).collect();
            tokio::select! { () = &mut driver => unreachable!(), () = idle => {} }
            assert!(queue.lock().proposals.is_empty(), "all of it is on its way");
            assert_eq!(push().err(), Some(Unavailable::TooManyRequests), "{answer:?}");

            leader.answers.send_replace(Some(answer));
            let idle = tokio::time::sleep(std::time::Duration::from_millis(1));
            tokio::select! { () = &mut driver => unreachable!(), () = idle => {} }
            match answer {
                // It waits to be sent again.
                Forwarded::NotAppended => {
                    assert_eq!(push().err(), Some(Unavailable::TooManyRequests));
                }
                Forwarded::Handed | Forwarded::Overloaded => drop(push().unwrap()),
            }
            drop(waiters);
        }
    }

    /// One that leads in term 3, is deposed before it appends anything, and leads again in term 4.
    struct LeaderAgain {
        term: Mutex<Term>,
        appended: Mutex<Vec<(Term, Bytes)>>,
    }

    impl Appender for LeaderAgain {
        fn taker(&self) -> Leader {
            Leader::Here { term: *self.term.lock().unwrap() }
        }

        async fn taker_found(&self) {}

        async fn append(
            &self,
            term: Term,
            batch: Bytes,
            not_appended: Box<dyn FnOnce() + Send>,
        ) -> Result<(), Unavailable> {
            if term == Term(3) {
                *self.term.lock().unwrap() = Term(4);
                not_appended();
            } else {
                self.appended.lock().unwrap().push((term, batch));
            }
            Ok(())
        }

        async fn forward(&self, _: MemberId, _: Term, _: Bytes) -> Forwarded {
            Forwarded::NotAppended
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_of_a_term_enters_the_log_in_that_term_or_never() {
        let (queue, mailboxes) = (Arc::new(ProposalQueue::new()), Arc::new(Mailboxes::new()));
        let mailbox = mailboxes.open(0);
        let term = Mutex::new(Term(3));
        let leader = Arc::new(LeaderAgain { term, appended: Mutex::default() });
        let mut driver = pin!(drive(queue.clone(), leader.clone(), mailboxes.clone()));
        let (mut of_term, any) = (mailbox.register_for(Some(Term(3))), mailbox.register());
        let ticket = |seq| Ticket { origin: MemberId(1), seq };
        queue.push(ticket(of_term.seq()), proposal(b"checkpoint")).unwrap();
        queue.push(ticket(any.seq()), proposal(b"put")).unwrap();
        let turns = tokio::time::sleep(PUT_BACK_PAUSE * 4);
        tokio::select! { () = &mut driver => unreachable!(), () = turns => {} }
        let refused = (&mut of_term).now_or_never().map(|answer| answer.map(drop));
        assert_eq!(refused, Some(Err(Unavailable::NotLeader)));
        let appended = leader.appended.lock().unwrap().clone();
        let put = BatchCodec::encode(&[(ticket(any.seq()), proposal(b"put"))]);
        assert_eq!(appended, [(Term(4), put)]);
    }

    /// A follower of nobody.
    struct Orphan;

    impl Appender for Orphan {
        fn taker(&self) -> Leader {
            Leader::Unknown
        }

        async fn taker_found(&self) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }

        async fn append(
            &self,
            _: Term,
            _: Bytes,
            _: Box<dyn FnOnce() + Send>,
        ) -> Result<(), Unavailable> {
            Err(Unavailable::NotLeader)
        }

        async fn forward(&self, _: MemberId, _: Term, _: Bytes) -> Forwarded {
            Forwarded::NotAppended
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_nobody_waits_for_leave_the_queue_before_there_is_a_leader() {
        let (queue, mailboxes) = (Arc::new(ProposalQueue::new()), Arc::new(Mailboxes::new()));
        let mailbox = mailboxes.open(0);
        let mut driver = pin!(drive(queue.clone(), Arc::new(Orphan), mailboxes.clone()));
        let push = || {
            let waiter = mailbox.register();
            queue.push(Ticket { origin: MemberId(1), seq: waiter.seq() }, proposal(b"put"))?;
            Ok::<_, Unavailable>(waiter)
        };
        let mut waiters: Vec<_> = (0..QUEUE_REQUESTS_MAX).map(|_| push().unwrap()).collect();
        let mut turns = async || {
            let turns = tokio::time::sleep(std::time::Duration::from_millis(250));
            tokio::select! { () = &mut driver => unreachable!(), () = turns => {} }
        };
        turns().await;
        // The driver holds the first batch.
        waiters.extend((0..BATCH_REQUESTS_MAX).map(|_| push().unwrap()));
        assert_eq!(push().err(), Some(Unavailable::TooManyRequests));
        waiters.truncate(BATCH_REQUESTS_MAX + 1);
        turns().await;
        let queued = queue.lock().proposals.len();
        assert_eq!((queued, queue.lock().bytes), (1, b"put".len()));
    }
}
