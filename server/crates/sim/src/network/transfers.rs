//! Snapshots on their way, piece by piece: whatever happens to the sender, to the receiver or to the way
//! between them may happen in the middle.
//!
//! The sender's process reads and paces the pieces, so that they stay away while it is paused and end with
//! it. A connection that breaks is not always noticed at the other end: the receiver's call may be dropped,
//! its stream may end before the trailer, or it hears nothing any more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use proto::peerpb::snapshot_chunk::Part;
use proto::peerpb::{SnapshotChunk, SnapshotResponse};
use replica::{Inbound, PeerError, PeerResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use types::MemberId;

use super::{Endpoint, Life, Network, NodePeers, PipeEnd, State, no_answer, pipe};
use crate::chance::Chance;
use crate::counts::Event;
use crate::swarm::TransferPlan;
use crate::trace::Trace;

/// Pieces that may wait at either end.
const PIECES_WAITING_MAX: usize = 2;

/// Before so many pieces of a snapshot its sender pauses; the rest follows at once, however long it is.
const PAUSES_MAX: usize = 20;

/// The pieces of a snapshot whose state is not divided: it is between its header and its trailer.
const UNDIVIDED_PIECES: u64 = 3;

/// The revision of a member that has no record.
const EMPTY_REVISION: i64 = 1;

/// A snapshot under way.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Counts all snapshots of a run, from 1.
    pub number: u64,
    pub from: MemberId,
    pub to: MemberId,
    /// Pieces that the receiver has taken.
    pub arrived: u64,
    /// Whether it leaves out what the receiver has.
    pub of_missed: bool,
}

/// The snapshots of a run.
pub(super) struct Transfers {
    chance: Chance,
    plan: TransferPlan,
    /// Whether every broken connection is noticed at once.
    perfect: bool,
    begun: u64,
    under_way: BTreeMap<u64, Transfer>,
}

/// How a receiver learns that its connection is broken.
enum Notice {
    /// The call is dropped.
    Reset,
    /// Nothing more comes, as if the sender could not read on.
    End,
    /// Not at all.
    None,
}

impl Transfers {
    pub(super) fn new(seed: u64, plan: TransferPlan) -> Self {
        Self {
            chance: Chance::new(seed, "transfers"),
            plan,
            perfect: false,
            begun: 0,
            under_way: BTreeMap::new(),
        }
    }

    /// From now on snapshots take no longer than their way and are ended as they should.
    pub(super) fn become_perfect(&mut self) {
        self.perfect = true;
        self.plan.pace_max_millis = 0;
    }

    fn begin(&mut self, from: MemberId, to: MemberId) -> u64 {
        self.begun += 1;
        let number = self.begun;
        self.under_way.insert(number, Transfer { number, from, to, arrived: 0, of_missed: false });
        number
    }

    fn arrived(&mut self, number: u64, piece: &SnapshotChunk) {
        let Some(transfer) = self.under_way.get_mut(&number) else { return };
        transfer.arrived += 1;
        if let Some(Part::Header(header)) = &piece.part {
            transfer.of_missed = header.records_above > EMPTY_REVISION;
        }
    }

    /// It is over for its receiver: with its answer, or without one.
    fn end(&mut self, number: u64, answer: Option<&PeerResult<SnapshotResponse>>, trace: &Trace) {
        let Some(transfer) = self.under_way.remove(&number) else { return };
        match answer {
            Some(Ok(_)) => {
                trace.count(Event::SnapshotWhole);
                if transfer.of_missed {
                    trace.count(Event::SnapshotOfMissed);
                }
                if transfer.arrived > UNDIVIDED_PIECES {
                    trace.count(Event::SnapshotInPieces);
                }
            }
            // The first piece is the header.
            _ if transfer.arrived < 2 => {}
            Some(Err(PeerError::NoAnswer(reason))) if reason.contains("gone silent") => {
                trace.count(Event::SnapshotPartial);
                trace.count(Event::SnapshotSilent);
            }
            _ => trace.count(Event::SnapshotPartial),
        }
    }

    fn notice(&mut self) -> Notice {
        match self.chance.below(3) {
            _ if self.perfect => Notice::Reset,
            0 => Notice::Reset,
            1 => Notice::End,
            _ => Notice::None,
        }
    }
}

impl Network {
    /// The snapshots under way, in the order in which they began.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.state().transfers.under_way.values().copied().collect()
    }

    /// How long a sender takes to find out that its connection is broken; it may be longer than the receiver
    /// waits for it.
    fn broken_for(&self) -> Duration {
        let mut state = self.state();
        let Transfers { chance, perfect, .. } = &mut state.transfers;
        Duration::from_millis(chance.between(100, if *perfect { 6_000 } else { 14_000 }))
    }

    /// How long a sender takes before its next piece.
    fn pause(&self) -> Duration {
        let mut state = self.state();
        let Transfers { chance, plan, .. } = &mut state.transfers;
        Duration::from_millis(chance.between(0, plan.pace_max_millis))
    }
}

/// Cuts a chunk into pieces of about the same size.
fn pieces_of(chunk: SnapshotChunk, count: u64) -> Vec<SnapshotChunk> {
    let Some(Part::Data(mut data)) = chunk.part else { return vec![chunk] };
    let size = data.len().div_ceil(count as usize).max(1);
    let mut pieces = Vec::new();
    while !data.is_empty() {
        let piece = data.split_to(size.min(data.len()));
        pieces.push(SnapshotChunk { part: Some(Part::Data(piece)) });
    }
    pieces
}

/// Sends a snapshot and waits for the answer.
pub(super) fn send(
    peers: &NodePeers,
    to: MemberId,
    chunks: BoxStream<'static, SnapshotChunk>,
) -> BoxFuture<'static, PeerResult<SnapshotResponse>> {
    let (network, life) = (peers.network.clone(), peers.life.clone());
    let (leave, leaving) = mpsc::channel(PIECES_WAITING_MAX);
    let (mut answer, answered) = oneshot::channel();
    life.spawn(read_out(network.clone(), life.clone(), chunks, leave));
    if life.is_alive() {
        tokio::spawn(async move {
            let result = carry(&network, &life, to, leaving, &mut answer).await;
            // The caller may have stopped waiting.
            let _ = answer.send(result);
        });
    }
    Box::pin(async move { answered.await.unwrap_or_else(|_| Err(no_answer())) })
}

/// What the sender's process does.
async fn read_out(
    network: Network,
    life: Life,
    mut chunks: BoxStream<'static, SnapshotChunk>,
    leave: mpsc::Sender<SnapshotChunk>,
) {
    let count = network.state().transfers.plan.pieces;
    let mut pauses = 0;
    while let Some(chunk) = chunks.next().await {
        for piece in pieces_of(chunk, count) {
            if pauses < PAUSES_MAX {
                pauses += 1;
                sleep(network.pause()).await;
            }
            if !life.is_alive() || leave.send(piece).await.is_err() {
                return;
            }
        }
    }
}

/// What the receiver's process does, until its call is dropped.
async fn receive(
    network: Network,
    number: u64,
    inbound: Inbound,
    arrived: mpsc::Receiver<SnapshotChunk>,
    reset: oneshot::Receiver<Infallible>,
    done: oneshot::Sender<PeerResult<SnapshotResponse>>,
) {
    let counted = network.clone();
    let pieces = stream::unfold(arrived, move |mut arrived| {
        let network = counted.clone();
        async move {
            let piece = arrived.recv().await?;
            network.state().transfers.arrived(number, &piece);
            Some((piece, arrived))
        }
    });
    let result = tokio::select! {
        biased;
        _ = reset => None,
        result = inbound.snapshot(pieces.boxed()) => Some(result),
    };
    let mut state = network.state();
    let State { transfers, trace, .. } = &mut *state;
    transfers.end(number, result.as_ref(), trace);
    let ended = result.as_ref().map(|result| result.as_ref().map(drop));
    state.trace.note(format_args!("snapshot {number} ended: {ended:?}"));
    drop(state);
    if let Some(result) = result {
        // The way back may be gone.
        let _ = done.send(result);
    }
}

async fn carry(
    network: &Network,
    sender: &Life,
    to: MemberId,
    mut pieces: mpsc::Receiver<SnapshotChunk>,
    answer: &mut oneshot::Sender<PeerResult<SnapshotResponse>>,
) -> PeerResult<SnapshotResponse> {
    let from = sender.member;
    if !network.pass(from, to, "snapshot").await {
        sleep(network.silence()).await;
        return Err(no_answer());
    }
    let Some(Endpoint { leases, life }) = network.endpoint(to) else {
        return Err(PeerError::Unreachable("nobody listens there".into()));
    };
    let number = network.state().transfers.begin(from, to);
    let (arrive, arrived) = mpsc::channel(PIECES_WAITING_MAX);
    let (open, reset) = oneshot::channel();
    let (done, mut received) = oneshot::channel();
    life.spawn(receive(network.clone(), number, leases.inbound, arrived, reset, done));
    let way = tokio::select! {
        biased;
        () = answer.closed() => PipeEnd::Broken,
        () = life.ended() => PipeEnd::Broken,
        () = arrive.closed() => PipeEnd::Closed,
        end = pipe(network, (from, to), "piece", &mut pieces, &arrive) => end,
    };
    let (stream, result) = match way {
        // A process that ends while it sends leaves as little behind.
        PipeEnd::Finished if !sender.is_alive() => (Some(arrive), None),
        PipeEnd::Broken => (Some(arrive), None),
        PipeEnd::Finished | PipeEnd::Closed => {
            drop(arrive);
            let result = tokio::select! {
                biased;
                () = answer.closed() => None,
                () = life.ended() => None,
                result = &mut received => result.ok(),
            };
            (None, result)
        }
    };
    let Some(result) = result else {
        break_off(network, number, open, stream, received);
        sleep(network.broken_for()).await;
        return Err(no_answer());
    };
    if !network.pass(to, from, "snapshot received").await {
        sleep(network.silence()).await;
        return Err(no_answer());
    }
    result
}

/// Lets the receiver know that nothing follows, or not.
fn break_off(
    network: &Network,
    number: u64,
    open: oneshot::Sender<Infallible>,
    stream: Option<mpsc::Sender<SnapshotChunk>>,
    received: oneshot::Receiver<PeerResult<SnapshotResponse>>,
) {
    let held = match network.state().transfers.notice() {
        Notice::Reset => None,
        Notice::End => Some((open, None)),
        Notice::None => Some((open, stream)),
    };
    let network = network.clone();
    tokio::spawn(async move {
        // Until the receiver has ended by itself, or its process has.
        let _ = received.await;
        drop(held);
        let mut state = network.state();
        let State { transfers, trace, .. } = &mut *state;
        transfers.end(number, None, trace);
    });
}
