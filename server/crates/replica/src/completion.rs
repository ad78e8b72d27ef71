//! How answers find the request that waits for them.
//!
//! Each RPC thread has one [`Mailbox`]. Whoever produces answers (the applier, the read loop) drops
//! all answers for a thread into its mailbox and wakes the thread once; a small task on that thread
//! then completes the waiting requests, so that every further wake is local to the thread. A wake
//! across threads costs more than all the rest of a request's bookkeeping.
//!
//! Invariant: a registered waiter is completed exactly once or removed by its own drop.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use types::Term;

use crate::unavailable::Unavailable;

/// The number of low bits of a sequence number that count requests; the rest names the mailbox.
const COUNTER_BITS: u32 = 48;

/// All mailboxes of a member, by the upper bits of the sequence numbers they hand out.
pub(crate) struct Mailboxes<T> {
    boxes: Mutex<Vec<Arc<Mailbox<T>>>>,
}

/// The waiting requests of one RPC thread.
pub(crate) struct Mailbox<T> {
    number: u64,
    next: AtomicU64,
    // std mutexes: held for a few instructions, never across an await.
    waiting: Mutex<HashMap<u64, Arc<Slot<T>>>>,
    arrived: Mutex<Vec<(u64, Result<T, Unavailable>)>>,
    bell: Notify,
}

struct Slot<T> {
    /// The only term in which the request may be handed to a leader, if it is of one.
    of_term: Option<Term>,
    state: Mutex<SlotState<T>>,
}

/// Whether a request may be handed to the leader of some term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Somebody waits for its answer, and none is on its way.
    Waiting,
    /// The same, but it may only be handed to the leader of another term.
    OfAnotherTerm,
    /// Nobody waits for it any more, or it has ended.
    Over,
}

struct SlotState<T> {
    answer: Option<Result<T, Unavailable>>,
    waker: Option<Waker>,
    /// The term in which the request was handed to a leader; none while it is still queued.
    proposed_in: Option<Term>,
    /// Its end has been decided and is on the way to its thread, which may then propose it anew.
    is_ended: bool,
}

impl<T> SlotState<T> {
    /// Ends the request if it has to; answers whether this did.
    fn end_if(&mut self, ends: impl Fn(Option<Term>) -> bool) -> bool {
        let does = !self.is_ended && ends(self.proposed_in);
        self.is_ended |= does;
        does
    }
}

/// A request's side of the mailbox: resolves to its answer.
pub(crate) struct Waiter<T> {
    seq: u64,
    mailbox: Arc<Mailbox<T>>,
    slot: Arc<Slot<T>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> Mailboxes<T> {
    /// How many requests wait, of all threads.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.boxes).iter().map(|mailbox| lock(&mailbox.waiting).len()).sum()
    }

    pub(crate) fn new() -> Self {
        Self { boxes: Mutex::new(Vec::new()) }
    }

    /// Opens a mailbox for the calling thread and spawns the task that empties it there. A random
    /// `run_offset` keeps the sequence numbers of this run apart from those of earlier runs of the
    /// same member, whose entries may still be applied after a restart.
    pub(crate) fn open(&self, run_offset: u64) -> Arc<Mailbox<T>> {
        let mut boxes = lock(&self.boxes);
        let mailbox = Arc::new(Mailbox {
            number: boxes.len() as u64,
            next: AtomicU64::new(run_offset & ((1 << COUNTER_BITS) - 1)),
            waiting: Mutex::default(),
            arrived: Mutex::default(),
            bell: Notify::new(),
        });
        boxes.push(mailbox.clone());
        drop(boxes);
        crate::runtime::spawn(mailbox.clone().deliver());
        mailbox
    }

    /// Hands answers to the threads that wait for them; one wake per thread.
    pub(crate) fn post(&self, answers: impl IntoIterator<Item = (u64, Result<T, Unavailable>)>) {
        let boxes = lock(&self.boxes);
        let mut by_box: Vec<Vec<(u64, Result<T, Unavailable>)>> = Vec::new();
        by_box.resize_with(boxes.len(), Vec::new);
        for (seq, answer) in answers {
            if let Some(batch) = by_box.get_mut((seq >> COUNTER_BITS) as usize) {
                batch.push((seq, answer));
            }
        }
        for (mailbox, batch) in boxes.iter().zip(by_box) {
            if !batch.is_empty() {
                lock(&mailbox.arrived).extend(batch);
                mailbox.bell.notify_one();
            }
        }
    }

    /// Remembers that these requests were handed to the leader of `term`.
    pub(crate) fn mark_proposed(&self, seqs: impl IntoIterator<Item = u64>, term: Term) {
        self.mark(seqs, Some(term));
    }

    /// Remembers that these requests are known not to be in the log.
    pub(crate) fn mark_queued(&self, seqs: impl IntoIterator<Item = u64>) {
        self.mark(seqs, None);
    }

    fn mark(&self, seqs: impl IntoIterator<Item = u64>, proposed_in: Option<Term>) {
        let boxes = lock(&self.boxes);
        for seq in seqs {
            let Some(mailbox) = boxes.get((seq >> COUNTER_BITS) as usize) else { continue };
            if let Some(slot) = lock(&mailbox.waiting).get(&seq) {
                lock(&slot.state).proposed_in = proposed_in;
            }
        }
    }

    /// Whether a request may be handed to the leader of `term`. One that has ended may have been proposed
    /// anew under another number, and would get into the log twice.
    pub(crate) fn standing(&self, seq: u64, term: Term) -> Standing {
        let boxes = lock(&self.boxes);
        let Some(mailbox) = boxes.get((seq >> COUNTER_BITS) as usize) else {
            return Standing::Over;
        };
        match lock(&mailbox.waiting).get(&seq) {
            Some(slot) if !lock(&slot.state).is_ended => match slot.of_term {
                Some(only) if only != term => Standing::OfAnotherTerm,
                _ => Standing::Waiting,
            },
            _ => Standing::Over,
        }
    }

    /// Whether somebody still waits for this answer and none is on its way.
    pub(crate) fn is_waiting(&self, seq: u64) -> bool {
        self.standing(seq, Term(0)) != Standing::Over
    }

    /// Answers every request that was proposed in a term before `term`, of which an entry has now
    /// been applied, with [`Unavailable::NotApplied`]: no entry of an older term can follow it in the
    /// log (Raft §5.3), so those requests will never be applied.
    pub(crate) fn end_older_than(&self, term: Term) {
        let older = |proposed_in: Option<Term>| proposed_in.is_some_and(|t| t < term);
        self.end_where(Unavailable::NotApplied, older);
    }

    /// Ends every request that was handed to a leader: whether it was applied can no longer be told.
    pub(crate) fn end_proposed(&self, reason: Unavailable) {
        self.end_where(reason, |proposed_in| proposed_in.is_some());
    }

    /// Ends every request there is: the member stops.
    pub(crate) fn end_all(&self, reason: Unavailable) {
        self.end_where(reason, |_| true);
    }

    fn end_where(&self, reason: Unavailable, ends: impl Fn(Option<Term>) -> bool) {
        let boxes: Vec<_> = lock(&self.boxes).clone();
        for mailbox in boxes {
            let mut ended: Vec<_> = lock(&mailbox.waiting)
                .iter()
                .filter(|(_, slot)| lock(&slot.state).end_if(&ends))
                .map(|(seq, _)| (*seq, Err(reason)))
                .collect();
            // The order of a hash map must not decide who is woken first: a simulation is replayed.
            ended.sort_unstable_by_key(|(seq, _)| *seq);
            if !ended.is_empty() {
                lock(&mailbox.arrived).extend(ended);
                mailbox.bell.notify_one();
            }
        }
    }
}

impl<T: Send + 'static> Mailbox<T> {
    /// Registers a request and gives it its sequence number.
    pub(crate) fn register(self: &Arc<Self>) -> Waiter<T> {
        self.register_for(None)
    }

    /// The same for a request that may only be handed to the leader of one term.
    pub(crate) fn register_for(self: &Arc<Self>, of_term: Option<Term>) -> Waiter<T> {
        let count = self.next.fetch_add(1, Ordering::Relaxed) & ((1 << COUNTER_BITS) - 1);
        let seq = (self.number << COUNTER_BITS) | count;
        let slot = Arc::new(Slot {
            of_term,
            state: Mutex::new(SlotState {
                answer: None,
                waker: None,
                proposed_in: None,
                is_ended: false,
            }),
        });
        lock(&self.waiting).insert(seq, slot.clone());
        Waiter { seq, mailbox: self.clone(), slot }
    }

    async fn deliver(self: Arc<Self>) {
        loop {
            self.bell.notified().await;
            let arrived = std::mem::take(&mut *lock(&self.arrived));
            for (seq, answer) in arrived {
                let Some(slot) = lock(&self.waiting).remove(&seq) else { continue };
                let mut state = lock(&slot.state);
                state.answer = Some(answer);
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl<T> Waiter<T> {
    /// The number under which the answer will arrive.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Whether the request was handed to a leader before its time ran out.
    pub(crate) fn was_proposed(&self) -> bool {
        lock(&self.slot.state).proposed_in.is_some()
    }
}

impl<T> Future for &mut Waiter<T> {
    type Output = Result<T, Unavailable>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.slot.state);
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        lock(&self.mailbox.waiting).remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The leader of term 1 says that it did not take a request, and the first entry of term 2 says the
    /// same a moment before, while the thread of the request is busy. It proposes the request anew as soon
    /// as it can; what it had proposed first must not be handed over again.
    #[tokio::test]
    async fn a_request_that_was_told_to_try_again_is_not_tried_under_its_old_number_too() {
        let mailboxes = Mailboxes::<()>::new();
        let mailbox = mailboxes.open(0);
        let mut first = mailbox.register();
        mailboxes.mark_proposed([first.seq()], Term(1));
        mailboxes.end_older_than(Term(2));
        mailboxes.mark_queued([first.seq()]);
        assert!(!mailboxes.is_waiting(first.seq()));

        assert_eq!((&mut first).await, Err(Unavailable::NotApplied));
        let again = mailbox.register();
        assert!(mailboxes.is_waiting(again.seq()));
    }

    #[tokio::test]
    async fn what_is_queued_or_of_a_current_term_goes_on_waiting() {
        let mailboxes = Mailboxes::<()>::new();
        let mailbox = mailboxes.open(0);
        let (queued, proposed) = (mailbox.register(), mailbox.register());
        mailboxes.mark_proposed([proposed.seq()], Term(2));
        mailboxes.end_older_than(Term(2));
        assert!(mailboxes.is_waiting(queued.seq()));
        assert!(mailboxes.is_waiting(proposed.seq()));
        mailboxes.end_proposed(Unavailable::Timeout);
        assert!(mailboxes.is_waiting(queued.seq()));
        assert!(!mailboxes.is_waiting(proposed.seq()));
    }
}
