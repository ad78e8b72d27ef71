//! openraft's log storage over the `wal` room.
//!
//! Three positions move forward here, each behind the one before (openraft calls them accepted,
//! submitted and flushed): an entry is *accepted* when openraft hands it over and it is kept in the
//! [`Tail`]; it is *submitted* when the log writer has appended it to a segment; it is *flushed*
//! when the writer's fdatasync returned. Only then does openraft hear of it, in order, so that
//! nothing is acknowledged and no vote is answered before it is durable.
//!
//! The tail keeps the newest entries in memory, bounded by bytes, for replication and apply; older
//! ones are read back from the segments.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{mpsc, oneshot};
use types::{LogIndex, MemberId};

use crate::codec;
use crate::raft_types::{Entry, LogId, TypeConfig, Vote, index_of, log_id, optional_index};
use crate::solitude::{Solitude, names_another};

/// How many bytes of newest entries stay in memory once they are flushed.
const TAIL_BYTES_MAX: usize = 64 << 20;

/// How many bytes of entries one replication request carries at most.
const REPLICATION_BYTES_MAX: usize = 1 << 20;

/// How many operations may wait for the log writer; openraft waits when the queue is full.
pub(crate) const WRITE_QUEUE_LENGTH: usize = 4096;

/// One step for the log writer; it takes them strictly in order.
pub(crate) enum WriteOperation {
    /// Append entries and tell openraft once they are durable.
    Append { entries: Vec<Entry>, flushed: IOFlushed<TypeConfig> },
    /// Store a vote and answer once it is durable.
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    /// Drop every entry after this one, or all.
    TruncateAfter(Option<LogId>),
    /// Entries up to this one are covered by a durable image.
    Purge(LogId),
}

/// The storage that openraft writes to and reads from.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    queue: mpsc::Sender<WriteOperation>,
}

/// What the log writer shares with the storage.
pub(crate) struct Shared {
    // A std mutex: every critical section is a few pointer moves and none awaits.
    tail: Mutex<Tail>,
    segments: wal::Reader,
    in_reserve: AtomicBool,
    me: MemberId,
    pub(crate) solitude: Solitude,
}

#[derive(Default)]
struct Tail {
    entries: VecDeque<TailEntry>,
    bytes: usize,
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Entries up to here are in the segments and may leave the tail.
    flushed: LogIndex,
}

struct TailEntry {
    entry: Entry,
    bytes: usize,
}

impl LogStore {
    pub(crate) fn new(
        recovered: &wal::Recovered,
        segments: wal::Reader,
        queue: mpsc::Sender<WriteOperation>,
        me: MemberId,
    ) -> Self {
        let last = recovered.last.map(|id| log_id(id.term, id.index));
        let purged = recovered.purged.map(|id| log_id(id.term, id.index));
        let tail = Tail {
            purged,
            last: last.max(purged),
            vote: recovered.vote.map(codec::vote_from_wal),
            committed: recovered.committed.map(|id| log_id(id.term, id.index)),
            flushed: recovered.last.map_or(LogIndex(0), |id| id.index),
            ..Tail::default()
        };
        let shared = Shared {
            tail: Mutex::new(tail),
            segments,
            in_reserve: AtomicBool::new(false),
            me,
            solitude: Solitude::default(),
        };
        Self { shared: Arc::new(shared), queue }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    async fn enqueue(&self, operation: WriteOperation) -> io::Result<()> {
        self.queue.send(operation).await.map_err(|_| io::Error::other("the log writer has stopped"))
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_in_reserve(&self, in_reserve: bool) {
        self.in_reserve.store(in_reserve, Ordering::Relaxed);
    }

    pub(crate) fn is_in_reserve(&self) -> bool {
        self.in_reserve.load(Ordering::Relaxed)
    }

    /// How far the log is known to be committed.
    pub(crate) fn committed(&self) -> Option<LogId> {
        self.tail().committed
    }

    /// The log writer has made entries up to `index` durable.
    pub(crate) fn set_flushed(&self, index: LogIndex) {
        let mut tail = self.tail();
        tail.flushed = tail.flushed.max(index);
        tail.evict();
    }

    /// Whether the entry at openraft's `index` has been purged.
    pub(crate) fn is_purged(&self, index: u64) -> bool {
        self.tail().purged.as_ref().is_some_and(|purged| index <= purged.index())
    }

    /// At least one entry, if there is one, without a hole, and no more than about `bytes_max`.
    fn read(&self, from: u64, until: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (tail_first, purged) = {
                let tail = self.tail();
                let first = tail.first_in_memory();
                if from >= first {
                    return Ok(tail.slice(from, until, bytes_max));
                }
                (first, tail.purged.is_some())
            };
            let stored = self
                .segments
                .read(LogIndex(from + 1), LogIndex(until.min(tail_first) + 1), bytes_max as u64)
                .map_err(|error| io::Error::other(error.to_string()))?;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for record in stored {
                bytes += record.payload.len();
                entries.push(codec::entry_from_wal(record)?);
            }
            // A log that was never purged and holds nothing so far back begins in the tail.
            let begin = if purged { from } else { tail_first };
            let next = entries.last().map_or(begin, |entry: &Entry| entry.log_id().index() + 1);
            if next < tail_first || bytes >= bytes_max || next >= until {
                return Ok(entries);
            }
            let in_tail = self.tail().continued(next, until, bytes_max - bytes);
            match in_tail {
                Some(further) => entries.extend(further),
                None if entries.is_empty() => continue,
                None => {}
            }
            return Ok(entries);
        }
    }
}

impl Tail {
    fn first_in_memory(&self) -> u64 {
        match self.entries.front() {
            Some(first) => first.entry.log_id().index(),
            None => self.last.as_ref().map_or(0, |last| last.index() + 1),
        }
    }

    /// What follows entries that were read elsewhere; nothing if the tail does not begin so early any more:
    /// the log writer lets go of entries while somebody reads the segments.
    fn continued(&self, next: u64, until: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        (next >= self.first_in_memory()).then(|| self.slice(next, until, bytes_max))
    }

    /// At least one entry, and no more than fit into `bytes_max`; `from` is not before the first in memory.
    fn slice(&self, from: u64, until: u64, bytes_max: usize) -> Vec<Entry> {
        let start = (from - self.first_in_memory()) as usize;
        let count = until.saturating_sub(from) as usize;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for kept in self.entries.iter().skip(start).take(count) {
            bytes += kept.bytes;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(kept.entry.clone());
        }
        entries
    }

    fn push(&mut self, entry: &Entry) {
        let id = entry.log_id();
        if let Some(last) = &self.last {
            assert_eq!(last.index() + 1, id.index(), "the log has no holes: {last} then {id}");
        }
        let bytes = codec::entry_bytes(entry);
        self.bytes += bytes;
        self.last = Some(id);
        self.entries.push_back(TailEntry { entry: entry.clone(), bytes });
    }

    fn evict(&mut self) {
        while self.bytes > TAIL_BYTES_MAX
            && self.entries.front().is_some_and(|e| index_of(&e.entry.log_id()) <= self.flushed)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes;
        }
    }

    fn truncate_after(&mut self, last: Option<LogId>) {
        let keep = optional_index(last.as_ref());
        while self.entries.back().is_some_and(|e| index_of(&e.entry.log_id()) > keep) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.bytes;
            }
        }
        self.flushed = self.flushed.min(keep);
        self.last = last;
    }

    fn purge(&mut self, upto: LogId) {
        while self.entries.front().is_some_and(|e| e.entry.log_id().index() <= upto.index()) {
            self.pop_front();
        }
        self.purged = Some(upto);
        self.last = self.last.max(Some(upto));
    }
}

/// The half-open index range that `range` means, up to and without `end`.
fn bounds(range: &impl RangeBounds<u64>, end: u64) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => *from + 1,
        Bound::Unbounded => 0,
    };
    let until = match range.end_bound() {
        Bound::Included(last) => *last + 1,
        Bound::Excluded(until) => *until,
        Bound::Unbounded => end,
    };
    (from, until.min(end))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, until) = {
            let tail = self.shared.tail();
            let end = tail.last.as_ref().map_or(0, |last| last.index() + 1);
            let (from, until) = bounds(&range, end);
            (from.max(tail.purged.as_ref().map_or(0, |id| id.index() + 1)), until)
        };
        if from >= until {
            return Ok(Vec::new());
        }
        let mut entries = self.shared.read(from, until, usize::MAX)?;
        while let Some(next) = entries.last().map(|entry| entry.log_id().index() + 1)
            && next < until
        {
            let more = self.shared.read(next, until, usize::MAX)?;
            if more.is_empty() {
                break;
            }
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.shared.read(start, end, REPLICATION_BYTES_MAX);
        // A replication stream may outlive openraft's decision to send its follower a snapshot
        // instead; the entries that it still wants are then purged under it. An error would end this
        // leader; for an empty answer openraft makes an empty request, by which the network knows
        // the stream and ends it.
        if self.shared.is_purged(start) { Ok(Vec::new()) } else { entries }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.tail().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let tail = self.shared.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        self.enqueue(WriteOperation::Vote { vote: *vote, done }).await?;
        durable.await.map_err(|_| io::Error::other("the log writer has stopped"))??;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // The log writer notes it with its next group: an older one is always safe, and a record and a
        // wake of its own for every entry would double the writer's work.
        if committed.is_some() {
            self.shared.tail().committed = committed;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        // Before anybody else can have the entry.
        if entries
            .iter()
            .any(|entry| names_another(entry.get_membership().as_ref(), self.shared.me))
        {
            self.shared.solitude.end();
        }
        {
            let mut tail = self.shared.tail();
            entries.iter().for_each(|entry| tail.push(entry));
        }
        self.enqueue(WriteOperation::Append { entries, flushed: callback }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        {
            let mut tail = self.shared.tail();
            // Nothing lies behind the end, and a log on disk cannot be cut there.
            if optional_index(last_log_id.as_ref()) > optional_index(tail.last.as_ref()) {
                return Ok(());
            }
            tail.truncate_after(last_log_id);
        }
        self.enqueue(WriteOperation::TruncateAfter(last_log_id)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.shared.tail().purge(log_id);
        tracing::info!("compact-index" = index_of(&log_id).0, "compacted Raft logs");
        self.enqueue(WriteOperation::Purge(log_id)).await
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::entry::RaftEntry;
    use types::Term;

    use super::*;

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id().index()).collect()
    }

    /// The log writer let go of entries between the two halves of a read, and the answer had a hole: the
    /// follower that it was for ended with "the log has no holes".
    #[test]
    fn a_tail_that_has_moved_on_continues_nothing() {
        let mut tail = Tail::default();
        for index in 1..=9 {
            let id = log_id(Term(1), LogIndex(index));
            tail.push(&Entry::new(id, EntryPayload::Blank));
        }
        let first = tail.first_in_memory();
        let all = tail.slice(first, u64::MAX, usize::MAX);
        assert_eq!(
            indexes(&tail.continued(first, first + 3, usize::MAX).unwrap()),
            indexes(&all[..3])
        );
        tail.pop_front();
        tail.pop_front();
        assert!(tail.continued(first, u64::MAX, usize::MAX).is_none());
        assert!(tail.continued(first + 1, u64::MAX, usize::MAX).is_none());
        let rest = tail.continued(first + 2, u64::MAX, usize::MAX).unwrap();
        assert_eq!(indexes(&rest), indexes(&all[2..]));
    }
}
