//! The connections of a client: one per endpoint, dialled in the background, used in turn.
//!
//! Invariants: a slot is dialled by at most one task; a channel in a slot was connected when it was
//! put there; whoever finds it lost takes it out again, which starts the next dial. Dialling ends
//! when the pool is dropped, or the endpoint taken out of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;

use crate::connection::Dialer;

/// grpc-go's backoff between attempts to connect.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_FACTOR: f64 = 1.6;
const BACKOFF_MOST: Duration = Duration::from_secs(120);
const BACKOFF_JITTER: f64 = 0.2;

#[derive(Debug)]
pub(crate) struct Pool {
    dialer: Dialer,
    slots: Mutex<Arc<[Arc<Slot>]>>,
    turn: AtomicUsize,
    /// Told whenever a slot gets a channel.
    connected: Notify,
}

#[derive(Debug)]
struct Slot {
    endpoint: String,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    channel: Option<Channel>,
    /// Distinguishes the channel from its successors, so that a call that failed on an old one does
    /// not throw away a new one.
    generation: u64,
    dialling: bool,
    last_error: String,
}

/// A connection lent to one call.
pub(crate) struct Lent {
    pub(crate) channel: Channel,
    pub(crate) endpoint: String,
    slot: Arc<Slot>,
    generation: u64,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, endpoints: &[String]) -> Arc<Pool> {
        let slots = endpoints.iter().map(|endpoint| Arc::new(Slot::new(endpoint))).collect();
        let (turn, connected) = (AtomicUsize::new(0), Notify::new());
        Arc::new(Pool { dialer, slots: Mutex::new(slots), turn, connected })
    }

    /// How many endpoints there are.
    pub(crate) fn len(&self) -> usize {
        self.slots().len()
    }

    /// The endpoints.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.slots().iter().map(|slot| slot.endpoint.clone()).collect()
    }

    /// Uses other endpoints from now on. Connections to those that stay are kept; calls that are under
    /// way on the others go on.
    pub(crate) fn set_endpoints(&self, endpoints: &[String]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let kept =
            |endpoint: &String| slots.iter().find(|slot| slot.endpoint == *endpoint).cloned();
        let wanted: Arc<[Arc<Slot>]> = endpoints
            .iter()
            .map(|endpoint| kept(endpoint).unwrap_or_else(|| Arc::new(Slot::new(endpoint))))
            .collect();
        *slots = wanted;
        drop(slots);
        // Those who wait look for a connection again, which dials the new ones.
        self.connected.notify_waiters();
    }

    fn slots(&self) -> Arc<[Arc<Slot>]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lends a connection, waiting until there is one. At the deadline the error is the last reason
    /// why there was none.
    pub(crate) async fn lend(self: &Arc<Self>, deadline: Option<Instant>) -> Result<Lent, String> {
        loop {
            // Registered before looking, so that a connection made in between is not missed.
            let connected = self.connected.notified();
            if let Some(lent) = self.next_connected() {
                return Ok(lent);
            }
            match deadline {
                None => connected.await,
                Some(deadline) => {
                    if timeout_at(deadline, connected).await.is_err() {
                        return Err(self.last_error());
                    }
                }
            }
        }
    }

    /// Takes back a connection that turned out to be lost.
    pub(crate) fn discard(&self, lent: &Lent) {
        let mut state = lent.slot.lock();
        if state.generation == lent.generation {
            state.channel = None;
        }
    }

    fn next_connected(self: &Arc<Self>) -> Option<Lent> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let slots = self.slots();
        let mut lent = None;
        for offset in 0..slots.len() {
            let slot = &slots[start.wrapping_add(offset) % slots.len()];
            let mut state = slot.lock();
            match &state.channel {
                Some(channel) if lent.is_none() => {
                    lent = Some(Lent {
                        channel: channel.clone(),
                        endpoint: slot.endpoint.clone(),
                        slot: slot.clone(),
                        generation: state.generation,
                    });
                }
                Some(_) => {}
                None if !state.dialling => {
                    state.dialling = true;
                    tokio::spawn(dial(Arc::downgrade(self), Arc::downgrade(slot)));
                }
                None => {}
            }
        }
        lent
    }

    /// Takes note of the result of dialling and tells whether dialling is done.
    fn dialled(&self, slot: &Slot, result: Result<Channel, String>) -> bool {
        let mut state = slot.lock();
        match result {
            Ok(channel) => {
                state.channel = Some(channel);
                state.generation += 1;
                state.dialling = false;
            }
            Err(error) => {
                state.last_error = error;
                return false;
            }
        }
        drop(state);
        self.connected.notify_waiters();
        true
    }

    fn last_error(&self) -> String {
        let slots = self.slots();
        let mut errors = slots.iter().map(|slot| slot.lock().last_error.clone());
        errors.rfind(|error| !error.is_empty()).unwrap_or_default()
    }
}

impl Slot {
    fn new(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), state: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SlotState> {
        // The state is consistent between any two statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials one endpoint until it answers or nobody wants it any more. The pool is not held while
/// dialling or pausing, so that dropping the client ends this task.
async fn dial(pool: Weak<Pool>, slot: Weak<Slot>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let wanted = pool.upgrade().zip(slot.upgrade());
        let wanted = wanted.map(|(pool, slot)| (pool.dialer.clone(), slot.endpoint.clone()));
        let Some((dialer, endpoint)) = wanted else { return };
        let result = dialer.dial(&endpoint).await;
        let Some((pool, held)) = pool.upgrade().zip(slot.upgrade()) else { return };
        if pool.dialled(&held, result) {
            return;
        }
        drop((pool, held));
        let jitter = 1.0 + BACKOFF_JITTER * (rand::random::<f64>() * 2.0 - 1.0);
        sleep(backoff.mul_f64(jitter)).await;
        backoff = backoff.mul_f64(BACKOFF_FACTOR).min(BACKOFF_MOST);
    }
}
