//! The asynchronous runtime that openraft and this room run on: tokio, with two seams for the
//! simulator.
//!
//! Randomness comes from a generator that is seeded per thread: by the operating system unless a
//! simulation has called [`seed_thread`]. Tasks that are spawned inside a [`NodeGate`] belong to one
//! simulated member: they can be paused (as SIGSTOP would) and killed (as SIGKILL would) together.
//! Outside a simulation there is no gate and a spawn is tokio's.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::impls::TokioRuntime;
use openraft::{AsyncRuntime, OptionalSend};
use rand::SeedableRng;
use rand::rngs::SmallRng;

thread_local! {
    static NEXT_SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static CURRENT_GATE: RefCell<Option<NodeGate>> = const { RefCell::new(None) };
}

/// Makes every random choice of this thread's Raft follow from `seed`.
pub fn seed_thread(seed: u64) {
    NEXT_SEED.with(|cell| cell.set(Some(seed)));
}

/// A random number from this thread's generator: replayable in a simulation.
pub fn random_u64() -> u64 {
    use rand::Rng;
    Rt::thread_rng().next_u64()
}

/// Holds the tasks of one simulated member together.
#[derive(Clone, Default)]
pub struct NodeGate {
    state: Arc<Mutex<GateState>>,
}

#[derive(Default)]
struct GateState {
    paused: bool,
    killed: bool,
    waiting: Vec<Waker>,
}

impl NodeGate {
    /// A gate whose tasks run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops polling the member's tasks until [`NodeGate::resume`]; its timers go on, as for a
    /// stopped process.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Lets the member's tasks run again.
    pub fn resume(&self) {
        let waiting = {
            let mut state = self.lock();
            state.paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Drops the member's tasks at their next turn; none of them runs again.
    pub fn kill(&self) {
        let waiting = {
            let mut state = self.lock();
            state.killed = true;
            state.paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Runs `future`, and whatever it spawns through this room, inside the gate.
    pub fn scope<F: Future>(&self, future: F) -> Gated<F> {
        Gated { gate: Some(self.clone()), future: Some(Box::pin(future)) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future that runs only while its gate is open.
pub struct Gated<F> {
    gate: Option<NodeGate>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Some(gate) = &this.gate {
            let mut state = gate.lock();
            if state.killed {
                drop(state);
                this.future = None;
                return Poll::Pending;
            }
            if state.paused {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let Some(future) = &mut this.future else { return Poll::Pending };
        let outer = CURRENT_GATE.with(|cell| cell.replace(this.gate.clone()));
        let result = future.as_mut().poll(cx);
        CURRENT_GATE.with(|cell| cell.replace(outer));
        if result.is_ready() {
            this.future = None;
        }
        result
    }
}

/// Spawns a task of this room: inside the caller's gate if there is one.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match CURRENT_GATE.with(|cell| cell.borrow().clone()) {
        None => tokio::spawn(future),
        gate => tokio::spawn(Gated { gate, future: Some(Box::pin(future)) }),
    }
}

/// tokio, with the two seams above.
pub(crate) struct Rt {
    inner: TokioRuntime,
}

impl fmt::Debug for Rt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rt").field(&self.inner).finish()
    }
}

impl AsyncRuntime for Rt {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> SmallRng {
        let seed = NEXT_SEED.with(|cell| {
            let seed = cell.get().unwrap_or_else(rand::random);
            // SplitMix64's increment: a full-period walk over all seeds.
            cell.set(Some(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
            seed
        });
        SmallRng::seed_from_u64(seed)
    }

    fn new(threads: usize) -> Self {
        Self { inner: TokioRuntime::new(threads) }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.inner.block_on(future)
    }
}
