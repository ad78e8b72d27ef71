//! A large answer on its way: in pieces, each with its part of the budget.
//!
//! A piece is given back as soon as it has left, and the rest can be taken away from a client that does
//! not read. That happens only while others wait for the memory, and only after the client took no
//! piece for a while; without it, one client could keep all others from reading for ever. What the
//! connection has in its hands already, two pieces at most, stays counted until the client takes it or
//! goes.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes};
use tokio::time::Instant;

use super::{ReadBudget, SMALL_BYTES_MAX, Share, Shared};

/// Bytes of a piece.
const PIECE_BYTES: usize = SMALL_BYTES_MAX;
/// Fewer would not be worth a frame, should an answer be longer than was said.
const PIECE_BYTES_MIN: usize = 1024;
/// What a field's key and length take at most, which are not divided.
const FIELD_HEAD_BYTES_MAX: usize = 16;

/// The client did not read, and others needed the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled;

/// The pieces of an answer that its call has not taken yet.
pub(crate) struct Outgoing {
    id: u64,
    bytes: usize,
    shared: Arc<Shared>,
    // A std mutex: held to take a piece or all of them, never across an await.
    state: Mutex<State>,
}

struct State {
    pieces: VecDeque<Bytes>,
    /// When the call took the last piece, or began.
    taken: Instant,
    dropped: bool,
}

impl Outgoing {
    /// How many bytes it has, or had.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next piece; none after the last.
    pub(crate) fn next_piece(&self) -> Result<Option<Bytes>, Stalled> {
        let mut state = self.lock();
        if state.dropped {
            return Err(Stalled);
        }
        state.taken = Instant::now();
        Ok(state.pieces.pop_front())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.shared.outgoing().remove(&self.id);
    }
}

impl Shared {
    fn outgoing(
        &self,
    ) -> MutexGuard<'_, std::collections::BTreeMap<u64, std::sync::Weak<Outgoing>>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadBudget {
    /// Takes what is left of their answers from clients that do not read.
    pub(super) fn drop_stalled(&self) {
        let now = Instant::now();
        let held: Vec<Arc<Outgoing>> =
            self.shared.outgoing().values().filter_map(std::sync::Weak::upgrade).collect();
        for outgoing in held {
            let mut state = outgoing.lock();
            let is_stalled = now - state.taken >= self.shared.options.stall;
            if is_stalled && !state.pieces.is_empty() {
                state.dropped = true;
                let pieces = std::mem::take(&mut state.pieces);
                drop(state);
                drop(pieces);
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Writes an answer of a size that is known, in pieces.
pub(crate) struct OutgoingWriter {
    budget: ReadBudget,
    pieces: VecDeque<Bytes>,
    current: Vec<u8>,
    share: Share,
    /// Bytes that are still to come, or fewer.
    left: usize,
    written: usize,
}

impl OutgoingWriter {
    /// For an answer of at most `bytes`, whose `share` may be smaller if they are more than there are.
    pub(crate) fn new(budget: &ReadBudget, share: Share, bytes: usize) -> Self {
        Self {
            budget: budget.clone(),
            pieces: VecDeque::new(),
            current: Vec::new(),
            share,
            left: bytes,
            written: 0,
        }
    }

    /// Appends a length-delimited field.
    pub(crate) fn put_field(&mut self, tag: u32, bytes: &[u8]) {
        let mut head = [0; FIELD_HEAD_BYTES_MAX];
        let mut rest = &mut head[..];
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut rest);
        prost::encoding::encode_varint(bytes.len() as u64, &mut rest);
        let unused = rest.remaining_mut();
        self.put(&head[..FIELD_HEAD_BYTES_MAX - unused]);
        self.put(bytes);
    }

    /// Appends bytes.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.current.capacity() == 0 {
                self.current = Vec::with_capacity(self.left.clamp(PIECE_BYTES_MIN, PIECE_BYTES));
            }
            let room = self.current.capacity() - self.current.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.current.extend_from_slice(now);
            bytes = later;
            if self.current.len() == self.current.capacity() {
                self.end_piece();
            }
        }
    }

    fn end_piece(&mut self) {
        let piece = std::mem::take(&mut self.current);
        if piece.is_empty() {
            return;
        }
        // Where the share is smaller than the answer, it belongs to the pieces that leave last.
        let after = self.left.saturating_sub(piece.len());
        let own = self.share.bytes().saturating_sub(after as u64).min(piece.capacity() as u64);
        self.left = after;
        self.written += piece.len();
        self.pieces.push_back(self.share.split(own).attach(piece.into()));
    }

    /// The answer; what was not needed of the share is given back.
    pub(crate) fn finish(mut self) -> Arc<Outgoing> {
        self.end_piece();
        let shared = Arc::clone(&self.budget.shared);
        let id = shared.next_outgoing.fetch_add(1, Ordering::Relaxed);
        let (pieces, taken) = (self.pieces, Instant::now());
        let state = Mutex::new(State { pieces, taken, dropped: false });
        let outgoing = Arc::new(Outgoing { id, bytes: self.written, shared, state });
        outgoing.shared.outgoing().insert(id, Arc::downgrade(&outgoing));
        outgoing
    }
}
