//! Receiving snapshots, one at a time.
//!
//! A sender may be frozen or lose its power in the middle of one, and its connection may take long to
//! find out. Whoever leads next has to bring this member up all the same: where a quorum needs it, nothing
//! commits before. So a snapshot is given up when a later one arrives, when this member has voted in a
//! later term, and when the sender says nothing for too long.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use proto::peerpb;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::timeout;
use types::Term;

use crate::status::Status;

/// How long a sender may say nothing between two chunks. The server's connections between members find
/// out within the same time that the other end has gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The same in election timeouts, where those are so long that the way must be slow.
const SILENCE_MAX_ELECTIONS: u32 = 2;

/// Why a snapshot was not received to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GivenUp {
    #[error("a later snapshot has arrived")]
    Overtaken,
    #[error("the term of its leader is over")]
    Outvoted,
}

/// A snapshot that has arrived: the leader's term, and which one of them all it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Arrival {
    term: Term,
    number: u64,
}

/// The snapshots that arrive at this member.
#[derive(Default)]
pub(crate) struct Receptions {
    turn: Mutex<()>,
    newest: watch::Sender<Arrival>,
}

/// One of them, from its header on.
pub(crate) struct Reception<'a> {
    receptions: &'a Receptions,
    arrival: Arrival,
}

impl Receptions {
    /// Takes note of a snapshot, whose sender has given up the one before, if it has not lost it to a
    /// leader of a later term. That leader's is not given up for an earlier one.
    pub(crate) fn arrived(&self, term: Term) -> Result<Reception<'_>, GivenUp> {
        let mut arrival = Arrival::default();
        let is_newest = self.newest.send_if_modified(|newest| {
            if term < newest.term {
                return false;
            }
            *newest = Arrival { term, number: newest.number + 1 };
            arrival = *newest;
            true
        });
        match is_newest {
            true => Ok(Reception { receptions: self, arrival }),
            false => Err(GivenUp::Outvoted),
        }
    }
}

impl<'a> Reception<'a> {
    /// Waits for the one before to be given up, or installed.
    pub(crate) async fn turn(&self) -> MutexGuard<'a, ()> {
        self.receptions.turn.lock().await
    }

    /// Returns once there is no use in receiving the rest.
    pub(crate) async fn given_up(&self, status: &watch::Receiver<Status>) -> GivenUp {
        let (mut newest, mut status) = (self.receptions.newest.subscribe(), status.clone());
        // Both senders live as long as this member; one that stops receives nothing any more.
        tokio::select! {
            biased;
            _ = newest.wait_for(|newest| *newest != self.arrival) => GivenUp::Overtaken,
            _ = status.wait_for(|status| status.term > self.arrival.term) => GivenUp::Outvoted,
        }
    }
}

/// How long the sender of a snapshot may say nothing.
pub(crate) fn silence_max(election_timeout: Duration) -> Duration {
    SILENCE_MAX.max(election_timeout * SILENCE_MAX_ELECTIONS)
}

/// The next chunk, unless it is overdue.
pub(crate) async fn next_chunk(
    chunks: &mut (impl Stream<Item = peerpb::SnapshotChunk> + Unpin),
    silence_max: Duration,
) -> io::Result<Option<peerpb::SnapshotChunk>> {
    timeout(silence_max, chunks.next())
        .await
        .map_err(|_| io::Error::other("the sender of the snapshot has gone silent"))
}
