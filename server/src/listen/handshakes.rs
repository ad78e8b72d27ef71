//! TLS handshakes under way, of which there are only so many (GHSA-6vch).
//!
//! A handshake takes milliseconds, and for as long as a client keeps silent in one, it takes memory. So where
//! there are too many, the oldest is given up for the newest: silent clients cost no more than that, and
//! nobody waits behind them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Those of one thread.
pub(super) struct Handshakes {
    most: usize,
    // A std mutex: held for a look at the map, which never waits.
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    begun: u64,
    /// By the order in which they began.
    ends: BTreeMap<u64, CancellationToken>,
}

impl Handshakes {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, under_way: Mutex::default() })
    }

    /// One more; it counts until it is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Handshake {
        let mut under_way = self.lock();
        if under_way.ends.len() >= self.most
            && let Some((_, oldest)) = under_way.ends.pop_first()
        {
            oldest.cancel();
        }
        under_way.begun += 1;
        let (number, given_up) = (under_way.begun, CancellationToken::new());
        under_way.ends.insert(number, given_up.clone());
        Handshake { number, given_up, all: self.clone() }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().ends.len()
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Handshake {
    number: u64,
    given_up: CancellationToken,
    all: Arc<Handshakes>,
}

impl Handshake {
    /// What `step` comes to, unless it has to make room before, or the time is over.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = T>,
    ) -> io::Result<T> {
        tokio::select! {
            biased;
            ended = tokio::time::timeout(limit, step) => {
                ended.map_err(|_| io::ErrorKind::TimedOut.into())
            }
            () = self.given_up.cancelled() => {
                Err(io::Error::other("too many handshakes; this was the oldest"))
            }
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.lock().ends.remove(&self.number);
    }
}
