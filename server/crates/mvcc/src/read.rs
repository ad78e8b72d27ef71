//! Readers: ranges at a pinned revision, in chunks, with values fetched outside the lock.
//!
//! A reader may be overtaken: between two chunks, or between a chunk and the fetch of its values, a
//! compaction may pass the pinned revision and its records may go. Every chunk checks the watermark
//! under the same lock under which it walks, and a record that cannot be fetched is explained by the
//! watermark or is an error. So an answer is right, or `Compacted`, never wrong. A read of the newest
//! revision that was overtaken starts again at what is newest then.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use revlog::{Record, RevStore, RevStoreError, StoreSize};
use types::{KeyRange, RangeEnd, RecordRevision, Revision};

use crate::backup;
use crate::changes::{self, Limits};
use crate::event::RevisionEvents;
use crate::hash::{self, HashAnswer};
use crate::history::{KeyHead, Version};
use crate::index::Index;
use crate::query::{Hit, RangeAnswer, RangeError, RangeQuery, Scan, encode_key};
use crate::selection::Selection;
use crate::store::{CHUNK, Shared, StoreMeta};
use crate::writer::missing;

/// How often a read of the newest revision starts again before it reports `Compacted`.
const ATTEMPTS: usize = 8;

/// A reader's handle: cheap to clone, holds no lock and pins nothing.
#[derive(Clone)]
pub struct ReadView {
    shared: Arc<Shared>,
}

/// A revision that a read is pinned to, with the record store that had it.
#[derive(Clone)]
pub(crate) struct Pin {
    pub(crate) at: i64,
    pub(crate) newest: i64,
    pub(crate) epoch: u64,
    pub(crate) revs: Arc<dyn RevStore>,
}

impl Pin {
    fn of(index: &Index, revision: i64) -> Result<Pin, RangeError> {
        let at = index.pin(revision, index.revision)?;
        Ok(Pin { at, newest: index.revision, epoch: index.epoch, revs: Arc::clone(&index.revs) })
    }
}

/// Why an attempt to read ended.
#[derive(Debug)]
pub enum Interruption {
    /// A compaction passed the pinned revision, or the content was replaced: begin again.
    Overtaken,
    /// It cannot be read.
    Failed(RangeError),
}

impl From<RangeError> for Interruption {
    fn from(error: RangeError) -> Self {
        Interruption::Failed(error)
    }
}

/// Of an attempt that cannot begin again: whoever read a part of the answer has seen a revision that is
/// gone.
impl From<Interruption> for RangeError {
    fn from(interruption: Interruption) -> Self {
        match interruption {
            Interruption::Overtaken => RangeError::Compacted,
            Interruption::Failed(error) => error,
        }
    }
}

impl From<RevStoreError> for Interruption {
    fn from(error: RevStoreError) -> Self {
        Interruption::Failed(RangeError::Store(error))
    }
}

impl ReadView {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The revision of the last committed transaction.
    pub fn revision(&self) -> Revision {
        Revision(self.shared.read().revision)
    }

    /// The revision of the last compaction; -1 before the first.
    pub fn compact_revision(&self) -> Revision {
        Revision(self.shared.read().compact_revision)
    }

    /// What the records took on disk after the last entry. It does not wait for the writer, and is
    /// too high after space was freed until the next entry.
    pub fn store_bytes(&self) -> u64 {
        self.shared.bytes()
    }

    /// What the records take on disk.
    pub fn store_size(&self) -> StoreSize {
        let revs = Arc::clone(&self.shared.read().revs);
        revs.size()
    }

    /// Gives free space back to the file system; reads and writes go on.
    ///
    /// # Errors
    /// When files cannot be rewritten.
    pub fn defragment(&self) -> Result<(), RevStoreError> {
        let revs = Arc::clone(&self.shared.read().revs);
        revs.defragment()
    }

    /// How many keys there are, those included that are deleted and not compacted.
    pub fn key_count(&self) -> u64 {
        self.shared.read().live()
    }

    /// What is known of a key now without reading its value, if it exists.
    pub fn head(&self, key: &[u8]) -> Option<KeyHead> {
        self.shared.read().get(key)?.live().map(Version::head)
    }

    /// Answers a range request.
    pub fn range(&self, query: &RangeQuery) -> Result<RangeAnswer, RangeError> {
        settle(|| self.select(query)?.read())
    }

    /// Chooses what a range answers with, without reading values. What is done with the selection
    /// may be overtaken as the choice itself may; [`settle`] begins again then.
    pub fn select(&self, query: &RangeQuery) -> Result<Selection<'_>, Interruption> {
        let mut index = self.shared.read();
        let pin = Pin::of(&index, query.revision)?;
        let mut scan = Scan::new(query, pin.at);
        while !scan.step(&index, CHUNK) {
            // Between two chunks the writer gets its turn.
            drop(index);
            index = self.shared.read();
            if index.compact_revision > pin.at || index.epoch != pin.epoch {
                return Err(Interruption::Overtaken);
            }
        }
        drop(index);
        let (hits, count) = (scan.hits, scan.count);
        Ok(Selection::new(&self.shared, pin, query, hits, count))
    }

    /// Starts a range that is answered in parts, all at one revision (RangeStream).
    pub fn range_stream(&self, query: RangeQuery) -> Result<RangeCursor, RangeError> {
        let pin = self.pin(query.revision)?;
        let left = u64::try_from(query.limit).ok().filter(|limit| *limit > 0);
        Ok(RangeCursor {
            view: self.clone(),
            query,
            pin,
            resume: None,
            left,
            count: 0,
            more: false,
            done: false,
        })
    }

    /// The events of whole revisions from `from` up to, and without, `until`, stopping after the
    /// revision that reaches `max_events`. `Compacted` if `from` lies below the compact revision; a
    /// watch may start at exactly that revision, as in etcd. `until` beyond the newest revision is
    /// taken as the end.
    pub fn history(
        &self,
        from: Revision,
        until: Revision,
        max_events: usize,
    ) -> Result<Vec<RevisionEvents>, RangeError> {
        self.history_within(from, until, max_events, usize::MAX)
    }

    /// The same, stopping also after the revision whose records reach `max_bytes` in sum.
    pub fn history_within(
        &self,
        from: Revision,
        until: Revision,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<RevisionEvents>, RangeError> {
        let limits = Limits { events: max_events, bytes: max_bytes };
        changes::between(&self.shared, from.0, until.0, limits)
    }

    /// The record at exactly this place, if it is there.
    pub fn record(&self, record: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        let revs = Arc::clone(&self.shared.read().revs);
        revs.get(record)
    }

    /// Visits, in order of revision, every record up to `revision` that a reader can still reach, until
    /// `visit` breaks; answers the moment the records belong to.
    ///
    /// # Errors
    /// `Compacted` when a compaction went by meanwhile: what was visited is of no use, begin again.
    pub fn backup(
        &self,
        revision: Revision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<StoreMeta, RangeError> {
        backup::records(&self.shared, revision, visit)
    }

    /// The hash that Go etcd's HashKV answers for the same history; `revision` 0 is the newest.
    pub fn hash_kv(&self, revision: i64) -> Result<HashAnswer, RangeError> {
        hash::hash_kv(&self.shared, revision)
    }

    /// The hash that was taken when the history was compacted to exactly this revision, if it is kept
    /// still.
    pub fn hash_of_compaction(&self, revision: i64) -> Option<HashAnswer> {
        let answer = self.shared.compaction_hashes().of(revision)?;
        Some(HashAnswer { current_revision: self.revision(), ..answer })
    }

    fn pin(&self, revision: i64) -> Result<Pin, RangeError> {
        Pin::of(&self.shared.read(), revision)
    }
}

/// Reads, and begins again as often as compactions overtake it, within reason.
///
/// # Errors
/// What ends the attempt, or `Compacted` when it was overtaken each time.
pub fn settle<T>(mut attempt: impl FnMut() -> Result<T, Interruption>) -> Result<T, RangeError> {
    for _ in 0..ATTEMPTS {
        match attempt() {
            Ok(answer) => return Ok(answer),
            Err(Interruption::Failed(error)) => return Err(error),
            Err(Interruption::Overtaken) => {}
        }
    }
    Err(RangeError::Compacted)
}

/// The value of a record that the index named under `pin`.
pub(crate) fn fetch(
    shared: &Shared,
    pin: &Pin,
    record: RecordRevision,
) -> Result<Bytes, Interruption> {
    let failure = match pin.revs.get(record) {
        Ok(Some(found)) => return Ok(found.key_value),
        Ok(None) => missing(record),
        Err(error) => error,
    };
    let index = shared.read();
    if index.compact_revision > pin.at || index.epoch != pin.epoch {
        return Err(Interruption::Overtaken);
    }
    Err(failure.into())
}

/// A range being answered in parts, in the order of keys, at one revision. Filters and other orders
/// are the caller's to refuse: see [`RangeQuery::is_plain`]. It holds a place and no keys or values, so
/// a copy of it is cheap.
#[derive(Clone)]
pub struct RangeCursor {
    view: ReadView,
    query: RangeQuery,
    pin: Pin,
    resume: Option<Box<[u8]>>,
    /// How many keys the limit still allows.
    left: Option<u64>,
    count: i64,
    more: bool,
    done: bool,
}

impl RangeCursor {
    /// The store's newest revision when the range began: the header's revision.
    pub fn revision(&self) -> Revision {
        Revision(self.pin.newest)
    }

    /// Up to `max_keys` further encoded key-values; empty when there are no more. A cursor over
    /// `count_only` has none at all.
    pub fn next(&mut self, max_keys: usize) -> Result<Vec<Bytes>, RangeError> {
        Ok(self.select(max_keys)?.read()?.kvs)
    }

    /// The same without reading the values yet.
    pub fn select(&mut self, max_keys: usize) -> Result<Selection<'static>, RangeError> {
        let mut hits = Vec::new();
        while hits.len() < max_keys && !self.done && !self.query.count_only && self.left != Some(0)
        {
            self.walk(max_keys, &mut hits)?;
        }
        let shared = Arc::clone(&self.view.shared);
        Ok(Selection::chosen(shared, self.pin.clone(), &self.query, hits))
    }

    /// Whether there are no further keys.
    pub fn is_at_end(&self) -> Result<bool, RangeError> {
        Ok(self.clone().select(1)?.is_empty())
    }

    /// Counts what is left and answers the count of the whole range and whether the limit left keys
    /// out: what the last part of a stream carries.
    pub fn finish(mut self) -> Result<(i64, bool), RangeError> {
        while !self.done {
            self.left = Some(0);
            self.walk(usize::MAX, &mut Vec::new())?;
        }
        Ok((self.count, self.more && !self.query.count_only))
    }

    /// Walks one chunk of the index, taking hits while `max_keys` and the limit allow. It stops
    /// early when it has enough, so that the next call goes on behind the last key taken.
    fn walk(&mut self, max_keys: usize, hits: &mut Vec<Hit>) -> Result<(), RangeError> {
        let index = self.view.shared.read();
        if index.compact_revision > self.pin.at || index.epoch != self.pin.epoch {
            return Err(RangeError::Compacted);
        }
        let resume = self.resume.take();
        let mut walk = index.walk(&self.query.range, resume.as_deref());
        let mut last = None;
        for _ in 0..CHUNK {
            let Some((key, history)) = walk.next() else {
                self.done = true;
                return Ok(());
            };
            last = Some(key);
            let Some(version) = history.at(self.pin.at) else { continue };
            self.count += 1;
            if self.left == Some(0) {
                self.more = true;
                continue;
            }
            self.left = self.left.map(|left| left - 1);
            let encoded = match self.query.keys_only {
                true => encode_key(key, version),
                false => Bytes::new(),
            };
            hits.push(Hit { version: *version, encoded });
            if hits.len() == max_keys {
                break;
            }
        }
        self.resume = last.map(Into::into);
        debug_assert!(self.resume.is_some() || matches!(self.query.range.end, RangeEnd::Single));
        Ok(())
    }
}

/// A range over exactly one key needs no chunks; kept here so that callers need not build a query.
impl ReadView {
    /// The encoded key-value of one key at `revision` (0: the newest), if it existed then.
    pub fn get(&self, key: &[u8], revision: i64) -> Result<Option<Bytes>, RangeError> {
        let range = KeyRange::single(Bytes::copy_from_slice(key));
        let query = RangeQuery { revision, ..RangeQuery::all(range) };
        Ok(self.range(&query)?.kvs.pop())
    }
}
