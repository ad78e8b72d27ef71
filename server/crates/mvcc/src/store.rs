//! The store: one index, its writer and its readers.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use revlog::{RevStore, RevStoreError};
use types::{LeaseId, RecordRevision, Revision};

use crate::compaction::{Sweep, Sweeper};
use crate::compaction_hash::{self, CompactionHashes};
use crate::image::{self, ImageError, RestoreError};
use crate::index::Index;
use crate::read::ReadView;
use crate::rebuild;
use crate::writer::Writer;

/// How many keys a reader or a background step handles under one hold of the lock.
pub(crate) const CHUNK: usize = 500;

const LOCK: &str = "no holder of an mvcc lock panics";

/// The positions that go with an image or a set of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreMeta {
    pub revision: Revision,
    pub compact_revision: Revision,
}

/// The history of the key space. See the crate's documentation.
pub struct Store {
    shared: Arc<Shared>,
}

/// What the store, its writer and its readers have in common. Locks are taken in the order sweeper,
/// index, compaction hashes.
pub(crate) struct Shared {
    index: RwLock<Index>,
    /// What the records took on disk after the last entry.
    bytes: AtomicU64,
    sweeper: Mutex<Sweeper>,
    compaction_hashes: Mutex<CompactionHashes>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().expect(LOCK)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().expect(LOCK)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn note_bytes(&self, revs: &dyn RevStore) {
        self.bytes.store(revs.size().total, Ordering::Relaxed);
    }

    pub(crate) fn sweeper(&self) -> MutexGuard<'_, Sweeper> {
        self.sweeper.lock().expect(LOCK)
    }

    pub(crate) fn compaction_hashes(&self) -> MutexGuard<'_, CompactionHashes> {
        self.compaction_hashes.lock().expect(LOCK)
    }
}

impl Store {
    /// A store without history: revision 1, nothing compacted, as a new etcd.
    pub fn empty(revs: Arc<dyn RevStore>) -> Self {
        Self::of(Index::new(revs, 1, -1), Sweeper::new(-1))
    }

    /// The store that [`Store::write_image`] wrote. The record store must hold nothing above the
    /// image's revision: `RevStore::truncate_above` comes first.
    pub fn restore(revs: Arc<dyn RevStore>, image: &mut dyn Read) -> Result<Self, RestoreError> {
        let (index, sweeper) = image::read(revs, image)?;
        Ok(Self::of(index, sweeper))
    }

    /// The store that the records alone describe: after an import or a snapshot that came without an
    /// index. The record store must hold the complete history above `meta.compact_revision`; of
    /// what that compaction made dead, a record may be left only together with its successor.
    pub fn rebuild(revs: Arc<dyn RevStore>, meta: StoreMeta) -> Result<Self, RestoreError> {
        let (index, sweeper) = rebuild::scan(revs, meta)?;
        Ok(Self::of(index, sweeper))
    }

    pub(crate) fn of(index: Index, sweeper: Sweeper) -> Self {
        let bytes = AtomicU64::new(index.revs.size().total);
        let (index, sweeper) = (RwLock::new(index), Mutex::new(sweeper));
        let compaction_hashes = Mutex::default();
        Self { shared: Arc::new(Shared { index, bytes, sweeper, compaction_hashes }) }
    }

    /// Replaces the whole content by that of `other`, after a snapshot of the leader: every view
    /// handed out before reads the new content from now on.
    pub fn install(&self, other: Store) {
        let mut sweeper = self.shared.sweeper();
        let mut index = self.shared.write();
        let epoch = index.epoch + 1;
        std::mem::swap(&mut *sweeper, &mut *other.shared.sweeper());
        std::mem::swap(&mut *index, &mut *other.shared.write());
        index.epoch = epoch;
        // Those that were taken are of the same history, which other members have gone through, too.
        self.shared.compaction_hashes().forget_waiting(i64::MAX);
        self.shared.note_bytes(&*index.revs);
    }

    /// Takes the write lock. The applier holds the writer for a whole Raft entry and must end it
    /// with [`Writer::commit`]; a writer dropped with changes makes the store refuse to go on.
    pub fn writer(&self) -> Writer<'_> {
        Writer::new(&self.shared)
    }

    /// A handle for readers.
    pub fn read(&self) -> ReadView {
        ReadView::new(Arc::clone(&self.shared))
    }

    /// The revision of the last committed transaction.
    pub fn revision(&self) -> Revision {
        Revision(self.shared.read().revision)
    }

    /// The revision of the last compaction; -1 before the first.
    pub fn compact_revision(&self) -> Revision {
        Revision(self.shared.read().compact_revision)
    }

    /// How many keys exist now.
    pub fn key_count(&self) -> u64 {
        self.shared.read().live()
    }

    /// The record store beneath.
    pub fn revs(&self) -> Arc<dyn RevStore> {
        Arc::clone(&self.shared.read().revs)
    }

    /// Shows every key that has a lease, in order: attachments are not stored elsewhere.
    pub fn attachments(&self, visit: &mut dyn FnMut(LeaseId, &[u8])) {
        for (key, history) in self.shared.read().walk_all(None) {
            if let Some(version) = history.live().filter(|version| version.lease != 0) {
                visit(LeaseId(version.lease), key);
            }
        }
    }

    /// Takes the hashes of compactions that have none yet, before [`Store::compact_step`] drops what they
    /// are of; that must not be called meanwhile. It reads much, and holds no lock for long.
    pub fn hash_compactions(&self) {
        compaction_hash::take(&self.shared);
    }

    /// Drops dead versions of up to `max_keys` keys from the index. To be called in the background
    /// until it answers [`Sweep::Done`], after every compaction.
    pub fn compact_step(&self, max_keys: usize) -> Sweep {
        self.shared.sweeper().step(&self.shared, max_keys)
    }

    /// The records that compactions made unreachable, that the index has let go of and that are not
    /// removed yet, in order.
    pub fn garbage(&self) -> Vec<RecordRevision> {
        self.shared.sweeper().garbage()
    }

    /// Every record that the index names, in order.
    pub fn records(&self) -> Vec<RecordRevision> {
        let index = self.shared.read();
        let mut named: Vec<_> = index
            .walk_all(None)
            .flat_map(|(_, history)| history.versions().map(|version| version.record()))
            .collect();
        named.sort_unstable();
        named
    }

    /// Frees the garbage of compactions up to `upto` and answers how many records that were.
    /// `upto` must not exceed the compact revision of the newest durable image: a replay from that
    /// image may still read what later compactions made unreachable.
    pub fn remove_garbage(&self, upto: Revision) -> Result<usize, RevStoreError> {
        let revs = self.revs();
        self.shared.sweeper().remove_garbage(&*revs, upto.0)
    }

    /// The positions as they are now, which an image can be pinned to.
    pub fn meta(&self) -> StoreMeta {
        let index = self.shared.read();
        StoreMeta {
            revision: Revision(index.revision),
            compact_revision: Revision(index.compact_revision),
        }
    }

    /// Writes the key index and its positions. Writers and readers go on meanwhile; what they add is
    /// not part of the image. The caller adds a digest.
    pub fn write_image(&self, out: &mut dyn Write) -> Result<StoreMeta, ImageError> {
        let meta = self.meta();
        self.write_image_at(meta, out)?;
        Ok(meta)
    }

    /// Writes the key index as it was when [`Store::meta`] answered `meta`, although writers have
    /// gone on since. Between the two nobody may call [`Store::compact_step`]: a sweep for a later
    /// compaction would take versions away that were readable at `meta`, and is an error here.
    pub fn write_image_at(&self, meta: StoreMeta, out: &mut dyn Write) -> Result<(), ImageError> {
        let sweeper = self.shared.sweeper();
        image::write(&self.shared, &sweeper, meta, out)
    }
}
