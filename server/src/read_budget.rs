//! One bound for the memory of answers that are read from the store.
//!
//! A range is as large as its client likes, and its answer lives until the client has taken it: without
//! a bound, so many clients that list everything at once, or do not read what they asked for, take so
//! many times the size of the store (etcd #12342, #12678). Here an answer takes its bytes out of one
//! budget before they are read and gives them back when the last of them has left for the socket, or
//! the call is gone.
//!
//! # Invariants
//! - The bytes of all answers that are held do not exceed the budget. Not counted are answers of up to
//!   [`UNCOUNTED_BYTES_MAX`], which take no more than the call that holds them, and what one RPC thread
//!   is just reading: at most [`SMALL_BYTES_MAX`] and one value more, because nothing else runs on the
//!   thread meanwhile. What goes beyond it is said where it happens: an answer larger than the
//!   budget is read alone, and answers of writes ([`ReadBudget::overdraw`]) are counted but do not wait.
//! - Nobody holds a part of what it needs while it waits for the rest: whoever has to wait has let go
//!   of everything, what it read included. So there is no deadlock.
//! - Two lanes have a budget of their own, so that small answers never wait for large ones. Within a
//!   lane the first to come is the first to be served, so a large answer is not starved by smaller ones.
//! - A wait ends: with its share, or refused after [`BudgetOptions::patience`]; and so many may wait.
//! - Who waits is not at the mercy of clients that do not read: see [`outgoing`].
//!
//! Deliberately absent: the requests themselves, whose queue has bounds of its own (`replica`), and
//! events of watches (`watch`).

mod outgoing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::ops::memory;

pub(crate) use outgoing::{Outgoing, OutgoingWriter, Stalled};

/// Answers up to this size are not counted: the call itself (its stream, its task, its headers) takes
/// about as much, and is bounded by `--max-concurrent-streams`.
pub(crate) const UNCOUNTED_BYTES_MAX: usize = 4 * 1024;
/// Answers up to this size are small.
pub(crate) const SMALL_BYTES_MAX: usize = 256 * 1024;
/// The part of the budget that small answers have for themselves: one of so many.
const SMALL_LANE_DIVISOR: u64 = 4;
/// How many may wait in a lane; a waiting call holds nothing but itself.
const WAITING_MAX: usize = 4096;
/// A client that takes nothing of its answer for so long loses the rest of it to who waits.
const STALL: Duration = Duration::from_secs(5);
/// How often somebody who waits looks for clients that do not read.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How much there is, and how long one waits for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BudgetOptions {
    /// Bytes of both lanes.
    pub(crate) bytes: u64,
    /// How long a read waits until it is refused.
    pub(crate) patience: Duration,
    /// A client that takes nothing for so long loses the rest of its answer, once others wait.
    pub(crate) stall: Duration,
}

/// There was no room within the time that one waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// What an attempt to read has come to.
pub(crate) enum Attempt<T> {
    Done(T),
    /// So many bytes are needed, and not held: nothing that was read is kept.
    Needs(u64),
}

/// What the budget has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BudgetStats {
    /// Bytes that are held now; more than there are while it is overdrawn.
    pub(crate) held: u64,
    /// Reads that had to wait, so far.
    pub(crate) waited: u64,
    /// Those of them that were refused.
    pub(crate) refused: u64,
    /// Answers that were dropped because their clients did not read.
    pub(crate) dropped: u64,
}

/// The budget of a process; a cheap copy.
#[derive(Clone)]
pub(crate) struct ReadBudget {
    shared: Arc<Shared>,
}

struct Shared {
    small: Arc<Lane>,
    large: Arc<Lane>,
    options: BudgetOptions,
    waited: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    /// Answers that are on their way in pieces. A std mutex: held to add or to look, never across await.
    outgoing: Mutex<BTreeMap<u64, Weak<Outgoing>>>,
    next_outgoing: AtomicU64,
}

/// One kind of answers.
struct Lane {
    bytes: i64,
    // A std mutex: held for a few instructions, never across an await.
    state: Mutex<LaneState>,
    /// Rings when a debt has been paid.
    solvent: Notify,
}

struct LaneState {
    /// Below zero while the lane is overdrawn.
    free: i64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    need: i64,
    granted: oneshot::Sender<Share>,
}

impl Lane {
    fn new(bytes: u64) -> Arc<Self> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).max(1);
        let state = Mutex::new(LaneState { free: bytes, waiting: VecDeque::new() });
        Arc::new(Self { bytes, state, solvent: Notify::new() })
    }

    // A panic while it is held can leave no half-made change: each is one assignment.
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an answer of so many bytes has to hold: one that is larger than the lane has all of it.
    fn need(&self, bytes: u64) -> i64 {
        i64::try_from(bytes).unwrap_or(i64::MAX).min(self.bytes)
    }

    fn try_take(self: &Arc<Self>, need: i64) -> Option<Share> {
        let mut state = self.lock();
        let fits = state.waiting.is_empty() && need <= state.free;
        fits.then(|| state.free -= need)?;
        Some(Share { lane: Arc::clone(self), bytes: need })
    }

    fn give_back(self: &Arc<Self>, bytes: i64) {
        let mut state = self.lock();
        let was_in_debt = state.free < 0;
        state.free += bytes;
        let pays = was_in_debt && state.free >= 0;
        self.grant(state);
        if pays {
            self.solvent.notify_waiters();
        }
    }

    /// Serves whoever waits at the front as far as it goes, and forgets who waits no more.
    fn grant(self: &Arc<Self>, mut state: MutexGuard<'_, LaneState>) {
        let mut granted = Vec::new();
        while let Some(first) = state.waiting.front()
            && (first.granted.is_closed() || first.need <= state.free)
            && let Some(first) = state.waiting.pop_front()
        {
            if !first.granted.is_closed() {
                state.free -= first.need;
                granted.push(first);
            }
        }
        drop(state);
        for Waiting { need, granted } in granted {
            // Who has gone in this moment gets it and drops it, which gives it back.
            let _ = granted.send(Share { lane: Arc::clone(self), bytes: need });
        }
    }
}

/// Bytes of the budget that somebody holds; given back when dropped.
pub(crate) struct Share {
    lane: Arc<Lane>,
    bytes: i64,
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.lane.give_back(self.bytes);
        }
    }
}

impl Share {
    fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(0)
    }

    /// Gives back what is not needed for `bytes`.
    pub(crate) fn trim(&mut self, bytes: u64) {
        let surplus = self.bytes - self.lane.need(bytes);
        if surplus > 0 {
            self.bytes -= surplus;
            self.lane.give_back(surplus);
        }
    }

    /// Takes up to `bytes` out of this share.
    fn split(&mut self, bytes: u64) -> Share {
        let bytes = self.lane.need(bytes).min(self.bytes);
        self.bytes -= bytes;
        Share { lane: Arc::clone(&self.lane), bytes }
    }

    /// Bytes that hold this share as long as anything refers to them.
    pub(crate) fn attach(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Counted { bytes, _share: self })
    }
}

struct Counted {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A place in the queue, which is left when this is dropped.
struct Place {
    lane: Arc<Lane>,
    granted: Option<oneshot::Receiver<Share>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // A share that came too late goes back; then who stood behind may fit.
        if self.granted.take().is_some() {
            let mut state = self.lane.lock();
            state.waiting.retain(|waiting| !waiting.granted.is_closed());
            self.lane.grant(state);
        }
    }
}

#[cfg(test)]
impl BudgetOptions {
    /// So many bytes, with the patience of a server.
    pub(crate) fn of(bytes: u64) -> Self {
        Self { bytes, patience: Duration::from_secs(7), stall: Duration::from_secs(5) }
    }
}

impl ReadBudget {
    /// Of a server; without a number of bytes it is a part of what the process may use.
    pub(crate) fn of_server(bytes: Option<u64>, patience: Duration) -> Self {
        let bytes = bytes.unwrap_or_else(memory::read_budget_default);
        Self::new(BudgetOptions { bytes, patience, stall: STALL })
    }

    pub(crate) fn new(options: BudgetOptions) -> Self {
        let small = options.bytes / SMALL_LANE_DIVISOR;
        Self {
            shared: Arc::new(Shared {
                small: Lane::new(small),
                large: Lane::new(options.bytes - small),
                options,
                waited: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                outgoing: Mutex::default(),
                next_outgoing: AtomicU64::new(0),
            }),
        }
    }

    fn lane(&self, bytes: u64) -> &Arc<Lane> {
        match bytes <= SMALL_BYTES_MAX as u64 {
            true => &self.shared.small,
            false => &self.shared.large,
        }
    }

    /// Sees to it that `share` is enough for `bytes` and no more, without waiting.
    pub(crate) fn cover(&self, share: &mut Option<Share>, bytes: u64) -> bool {
        let Some(held) = share else {
            let lane = self.lane(bytes);
            *share = lane.try_take(lane.need(bytes));
            return share.is_some();
        };
        let more = held.lane.need(bytes) - held.bytes;
        if more > 0 {
            let Some(mut extra) = held.lane.try_take(more) else { return false };
            held.bytes += std::mem::take(&mut extra.bytes);
        }
        held.trim(bytes);
        true
    }

    /// Reads with as much as it needs: `read` says how much that is when what it was given is not
    /// enough, and is called again once there is so much.
    ///
    /// # Errors
    /// Those of `read`, and [`Refused`].
    pub(crate) async fn within<T, E: From<Refused>>(
        &self,
        mut read: impl FnMut(&mut Option<Share>) -> Result<Attempt<T>, E>,
    ) -> Result<T, E> {
        let mut share = None;
        let mut deadline = None;
        loop {
            let needs = match read(&mut share)? {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Needs(bytes) => bytes,
            };
            // Before it waits: see the invariants.
            drop(share.take());
            let patience = self.shared.options.patience;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
            // In a box, because few reads wait and all would carry the space for it.
            share = Some(Box::pin(self.take(needs, deadline)).await?);
        }
    }

    /// Waits for `bytes`.
    async fn take(&self, bytes: u64, deadline: Instant) -> Result<Share, Refused> {
        let lane = self.lane(bytes);
        let need = lane.need(bytes);
        let receiver = {
            let mut state = lane.lock();
            if state.waiting.is_empty() && need <= state.free {
                state.free -= need;
                return Ok(Share { lane: Arc::clone(lane), bytes: need });
            }
            if state.waiting.len() >= WAITING_MAX {
                return Err(self.refuse());
            }
            let (granted, receiver) = oneshot::channel();
            state.waiting.push_back(Waiting { need, granted });
            receiver
        };
        self.shared.waited.fetch_add(1, Ordering::Relaxed);
        let mut place = Place { lane: Arc::clone(lane), granted: Some(receiver) };
        loop {
            let Some(granted) = &mut place.granted else { return Err(self.refuse()) };
            let next_look = deadline.min(Instant::now() + LOOK_INTERVAL);
            match tokio::time::timeout_at(next_look, granted).await {
                Ok(Ok(share)) => {
                    place.granted = None;
                    return Ok(share);
                }
                Ok(Err(_)) => return Err(self.refuse()),
                Err(_) if Instant::now() >= deadline => return Err(self.refuse()),
                Err(_) => self.drop_stalled(),
            }
        }
    }

    fn refuse(&self) -> Refused {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        Refused
    }

    /// Takes a share for what is there already and cannot be asked to wait: the answer of a write that
    /// has been applied. It may be more than there is; then nobody else reads until that is paid.
    pub(crate) fn overdraw(&self, share: Option<Share>, bytes: u64) -> Share {
        if let Some(mut held) = share {
            let more = held.lane.need(bytes) - held.bytes;
            if more > 0 {
                held.lane.lock().free -= more;
                held.bytes += more;
            }
            held.trim(bytes);
            return held;
        }
        let lane = self.lane(bytes);
        let need = lane.need(bytes);
        lane.lock().free -= need;
        Share { lane: Arc::clone(lane), bytes: need }
    }

    /// Counts bytes that are there already.
    pub(crate) fn count(&self, bytes: Bytes) -> Bytes {
        match bytes.len() {
            ..=UNCOUNTED_BYTES_MAX => bytes,
            length => self.overdraw(None, length as u64).attach(bytes),
        }
    }

    /// Waits until nothing is overdrawn: what is to make a debt asks before, so that debts are bounded
    /// by what one round of such calls makes.
    pub(crate) async fn solvent(&self) -> Result<(), Refused> {
        let is_solvent = |lane: &Arc<Lane>| lane.lock().free >= 0;
        if is_solvent(&self.shared.small) && is_solvent(&self.shared.large) {
            return Ok(());
        }
        Box::pin(self.wait_until_solvent()).await
    }

    async fn wait_until_solvent(&self) -> Result<(), Refused> {
        let deadline = Instant::now() + self.shared.options.patience;
        for lane in [&self.shared.small, &self.shared.large] {
            while lane.lock().free < 0 {
                let paid = lane.solvent.notified();
                if lane.lock().free >= 0 {
                    break;
                }
                let next_look = deadline.min(Instant::now() + LOOK_INTERVAL);
                if tokio::time::timeout_at(next_look, paid).await.is_err() {
                    if Instant::now() >= deadline {
                        return Err(self.refuse());
                    }
                    self.drop_stalled();
                }
            }
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> BudgetStats {
        let shared = &self.shared;
        let held = |lane: &Lane| u64::try_from(lane.bytes - lane.lock().free).unwrap_or(0);
        BudgetStats {
            held: held(&shared.small) + held(&shared.large),
            waited: shared.waited.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
            dropped: shared.dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
