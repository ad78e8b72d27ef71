//! Events encoded once for all watchers.
//!
//! ```text
//! WatchResponse.events = 11:   0x5a | length | Event
//! Event:                       0x08 0x01 (only a deletion) | 0x12 length kv | [0x1a length prev_kv]
//! ```
//! Such a frame, or several in a row, is part of a `WatchResponse` as it stands: protobuf messages
//! may be concatenated field by field, so only header and watch id are written per watcher.

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use mvcc::{Event, EventKind, RangeError, ReadView, RevisionEvents};
use types::Revision;

const TAG_EVENTS: u8 = 11 << 3 | 2;
const TAG_TYPE: u8 = 1 << 3;
const TAG_KV: u8 = 2 << 3 | 2;
const TAG_PREV_KV: u8 = 3 << 3 | 2;

/// Encoded events, shared by every watcher that gets the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedEvents {
    frames: Arc<[Bytes]>,
    length: usize,
}

impl EncodedEvents {
    pub(crate) fn new(frames: Vec<Bytes>) -> Self {
        let length = frames.iter().map(Bytes::len).sum();
        Self { frames: frames.into(), length }
    }

    /// Bytes on the wire.
    pub fn encoded_len(&self) -> usize {
        self.length
    }

    /// One frame for each event.
    pub fn frames(&self) -> &[Bytes] {
        &self.frames
    }
}

/// Events of some revisions in a row, each encoded when the first watcher wants it.
pub(crate) struct Slice {
    events: Vec<(Revision, Event)>,
    plain: Vec<OnceCell<Bytes>>,
    with_previous: Vec<OnceCell<Bytes>>,
}

impl Slice {
    pub(crate) fn new(groups: Vec<RevisionEvents>) -> Self {
        let events: Vec<_> = groups
            .into_iter()
            .flat_map(|group| group.events.into_iter().map(move |event| (group.revision, event)))
            .collect();
        let cells = || std::iter::repeat_with(OnceCell::new).take(events.len()).collect();
        Self { plain: cells(), with_previous: cells(), events }
    }

    /// The events with their revisions, in order.
    pub(crate) fn events(&self) -> &[(Revision, Event)] {
        &self.events
    }

    pub(crate) fn revision(&self, at: usize) -> Revision {
        self.events[at].0
    }

    /// The frame of one event.
    pub(crate) fn frame(
        &self,
        at: usize,
        prev_kv: bool,
        view: &ReadView,
    ) -> Result<Bytes, RangeError> {
        let event = &self.events[at].1;
        if !prev_kv || event.previous.is_none() {
            return Ok(self.plain[at].get_or_init(|| encode(event, None)).clone());
        }
        let cell = &self.with_previous[at];
        if cell.get().is_none() {
            let frame = encode(event, previous(event, view)?.as_ref());
            cell.set(frame).expect("the cell was found empty and is of this thread");
        }
        Ok(cell.get().expect("the cell was just filled").clone())
    }
}

/// The encoded key-value before an event; none if compaction took it.
fn previous(event: &Event, view: &ReadView) -> Result<Option<Bytes>, RangeError> {
    let Some(record) = event.previous else { return Ok(None) };
    let failure = match view.record(record) {
        Ok(Some(found)) => return Ok(Some(found.key_value)),
        Ok(None) => None,
        Err(error) => Some(error),
    };
    // A reader one revision before the event no longer finds it, so a watcher need not either.
    if event.record.main - 1 < view.compact_revision().0 {
        return Ok(None);
    }
    match failure {
        Some(error) => Err(RangeError::Store(error)),
        None => Err(RangeError::Store(revlog::RevStoreError::Engine {
            engine: "watch",
            detail: format!("record {record}, which event {} replaced, is missing", event.record),
        })),
    }
}

fn encode(event: &Event, previous: Option<&Bytes>) -> Bytes {
    let delete = event.kind == EventKind::Delete;
    let field = |bytes: &Bytes| 1 + varint_len(bytes.len() as u64) + bytes.len();
    let body = if delete { 2 } else { 0 } + field(&event.key_value) + previous.map_or(0, field);
    let mut out = Vec::with_capacity(1 + varint_len(body as u64) + body);
    out.put_u8(TAG_EVENTS);
    put_varint(&mut out, body as u64);
    if delete {
        out.put_u8(TAG_TYPE);
        out.put_u8(1);
    }
    for (tag, bytes) in [(TAG_KV, Some(&event.key_value)), (TAG_PREV_KV, previous)] {
        if let Some(bytes) = bytes {
            out.put_u8(tag);
            put_varint(&mut out, bytes.len() as u64);
            out.put_slice(bytes);
        }
    }
    out.into()
}

pub(crate) fn put_varint(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

pub(crate) fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}
