//! What a range answers with, between the choice of its keys and the reading of their values.
//!
//! Whoever must know what an answer will take in memory before it is there asks the selection: the
//! lengths of the values are known without reading them. Then values are read one at a time, so that
//! the caller need not hold all of them beside the answer it makes of them.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use types::{RecordRevision, Revision};

use crate::query::{Hit, RangeAnswer, RangeQuery, SortTarget, by_value, order};
use crate::read::{Interruption, Pin, fetch};
use crate::store::{CHUNK, Shared};

/// Chosen keys of a range, in the order of the answer, at a pinned revision.
pub struct Selection<'v> {
    /// Borrowed where that does: counting references for each read of a key moves the count from core
    /// to core.
    shared: Cow<'v, Arc<Shared>>,
    pin: Pin,
    hits: std::vec::IntoIter<Hit>,
    /// Whether the hits carry what is answered for them.
    is_read: bool,
    /// Of a range that is to be sorted by values, which are not read yet.
    sorts_by_value: Option<RangeQuery>,
    more: bool,
    count: i64,
}

impl<'v> Selection<'v> {
    /// Of what a walk over a whole range found.
    pub(crate) fn new(
        shared: &'v Arc<Shared>,
        pin: Pin,
        query: &RangeQuery,
        mut hits: Vec<Hit>,
        count: i64,
    ) -> Self {
        let sorts_by_value = (query.sort_target == SortTarget::Value).then(|| query.clone());
        let more = sorts_by_value.is_none() && order(query, &mut hits);
        let (is_read, shared) = (query.is_from_index(), Cow::Borrowed(shared));
        Self { shared, pin, hits: hits.into_iter(), is_read, sorts_by_value, more, count }
    }

    /// Of one part of a range, which is in order already.
    pub(crate) fn chosen(
        shared: Arc<Shared>,
        pin: Pin,
        query: &RangeQuery,
        hits: Vec<Hit>,
    ) -> Self {
        let (is_read, hits, shared) = (query.keys_only, hits.into_iter(), Cow::Owned(shared));
        Self { shared, pin, hits, is_read, sorts_by_value: None, more: false, count: 0 }
    }

    /// The store's newest revision when the keys were chosen: the header's revision.
    pub fn revision(&self) -> Revision {
        Revision(self.pin.newest)
    }

    /// How many keys are in the range.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Whether the limit left keys out; of a range that is sorted by values once that was done.
    pub fn more(&self) -> bool {
        self.more
    }

    /// How many keys are left.
    pub fn len(&self) -> usize {
        self.hits.len()
    }

    /// Whether all has been taken.
    pub fn is_empty(&self) -> bool {
        self.hits.len() == 0
    }

    /// The bytes of the encoded key-values that are left.
    pub fn bytes_left(&self) -> Result<u64, Interruption> {
        let hits = self.hits.as_slice();
        if self.is_read {
            return Ok(hits.iter().map(|hit| hit.encoded.len() as u64).sum());
        }
        let mut bytes = 0;
        for chunk in hits.chunks(CHUNK) {
            let records: Vec<RecordRevision> =
                chunk.iter().map(|hit| hit.version.record()).collect();
            bytes += self.pin.revs.key_value_bytes(&records)?;
        }
        Ok(bytes)
    }

    /// Whether values decide about the order and the choice: all of them have to be read first, by
    /// [`Selection::sort_by_value`].
    pub fn sorts_by_value(&self) -> bool {
        self.sorts_by_value.is_some()
    }

    /// Reads all values, sorts by them and leaves out what the limit leaves out.
    pub fn sort_by_value(&mut self) -> Result<(), Interruption> {
        let Some(query) = self.sorts_by_value.take() else { return Ok(()) };
        let hits = std::mem::take(&mut self.hits).collect::<Vec<_>>();
        let versions: Vec<_> = hits.iter().map(|hit| hit.version).collect();
        let mut fetch = |record| fetch(&self.shared, &self.pin, record);
        let (kvs, more) = by_value(&query, hits, &mut fetch)?;
        // Which version a hit had is of no interest once its bytes are there.
        let hits: Vec<Hit> = versions
            .into_iter()
            .zip(kvs)
            .map(|(version, encoded)| Hit { version, encoded })
            .collect();
        self.hits = hits.into_iter();
        (self.is_read, self.more) = (true, more);
        Ok(())
    }

    /// The next encoded `mvccpb.KeyValue`.
    pub fn next_key_value(&mut self) -> Result<Option<Bytes>, Interruption> {
        debug_assert!(self.sorts_by_value.is_none(), "values are not in order yet");
        let Some(hit) = self.hits.next() else { return Ok(None) };
        match self.is_read {
            true => Ok(Some(hit.encoded)),
            false => fetch(&self.shared, &self.pin, hit.version.record()).map(Some),
        }
    }

    /// Reads all that is left.
    pub(crate) fn read(mut self) -> Result<RangeAnswer, Interruption> {
        self.sort_by_value()?;
        let mut kvs = Vec::with_capacity(self.hits.len());
        while let Some(key_value) = self.next_key_value()? {
            kvs.push(key_value);
        }
        Ok(RangeAnswer { kvs, more: self.more, count: self.count, revision: self.revision() })
    }
}
