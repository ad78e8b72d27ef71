//! What was written to the files last, still in memory for readers that follow the writer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::format::SegmentName;

/// The newest writes, up to a number of bytes; the newest one of all is kept in any case while it
/// is being written.
pub(super) struct Recent {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    bytes_max: usize,
}

/// One write: whole records of one segment.
struct Chunk {
    name: SegmentName,
    start: u32,
    bytes: Bytes,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the newest write. Nothing is evicted yet: the bytes are not in the file.
    pub(super) fn push(&mut self, name: SegmentName, start: u32, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.chunks.push_back(Chunk { name, start, bytes });
        }
    }

    /// Takes the newest write back.
    pub(super) fn pop(&mut self) {
        if let Some(chunk) = self.chunks.pop_back() {
            self.bytes -= chunk.bytes.len();
        }
    }

    /// Forgets the oldest writes beyond the limit, once all are in the files, and gives back the
    /// room of one of them, emptied.
    pub(super) fn evict(&mut self) -> Vec<u8> {
        let mut room = Vec::new();
        while self.bytes > self.bytes_max
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.bytes -= chunk.bytes.len();
            if chunk.bytes.is_unique() {
                room = Vec::from(chunk.bytes);
                room.clear();
            }
        }
        room
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }

    /// The bytes of the segment from `offset` to the end of the write that holds it.
    pub(super) fn find(&self, name: SegmentName, offset: u32) -> Option<Bytes> {
        let after =
            self.chunks.partition_point(|chunk| (chunk.name.id, chunk.start) <= (name.id, offset));
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        let skipped = (offset.checked_sub(chunk.start)?) as usize;
        (chunk.name == name && skipped < chunk.bytes.len()).then(|| chunk.bytes.slice(skipped..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_found_in_the_write_that_holds_them_until_it_is_evicted() {
        let first = SegmentName { id: 1, generation: 0 };
        let second = SegmentName { id: 2, generation: 0 };
        let mut recent = Recent::new(9);
        recent.push(first, 32, Bytes::from_static(b"abcd"));
        recent.push(first, 36, Bytes::from_static(b"efgh"));
        recent.push(second, 32, Bytes::from_static(b"ijkl"));
        assert_eq!(recent.find(first, 33).as_deref(), Some(&b"bcd"[..]));
        recent.evict();
        let cases = [
            (first, 33, None),
            (first, 36, Some(&b"efgh"[..])),
            (first, 39, Some(&b"h"[..])),
            (first, 40, None),
            (second, 32, Some(&b"ijkl"[..])),
            (second, 31, None),
            (SegmentName { id: 2, generation: 1 }, 32, None),
            (SegmentName { id: 3, generation: 0 }, 0, None),
        ];
        for (name, offset, expected) in cases {
            assert_eq!(recent.find(name, offset).as_deref(), expected, "{name:?} {offset}");
        }
        recent.pop();
        assert_eq!(recent.find(second, 32), None);
        recent.clear();
        assert_eq!(recent.find(first, 36), None);
    }
}
