//! The second engine: sled 0.34 behind the same seam.
//!
//! ```text
//! key   | 'r' | main u64 BE | sub u64 BE |     value | flags u8 | key_value .. |
//! key   | 'a' |                                value | applied index u64 LE |
//! ```
//!
//! # Why a flush is more than sled's
//!
//! sled 0.34 makes its log durable with `sync_file_range`, which hands the pages to the device but
//! does not flush the device's cache (sled#1452); that call is made a whole sync (`log_sync`), because
//! sled uses space again that it takes for copied. [`RevStore::flush`] lets sled write, and then
//! fsyncs every file of the directory, and the directory, itself; only then may the Raft log drop
//! what the store holds. It does so twice, for the records and then for the applied index, so that
//! no applied index is ever on disk without its records.
//!
//! sled opens its files by itself: this is the one engine that does not go through the `disk` room,
//! so the simulator cannot run it. What holds for it is shown by the conformance suite, by killing real
//! processes, and by power losses over what was synced (`tests/sled_power_loss.rs`).
//!
//! # Deliberately absent
//!
//! A checksum of our own: sled has one per message of its log. Space is reused by sled but never
//! returned to the file system, so [`RevStore::defragment`] has nothing to do.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "sled uses std::fs itself, so its adapter has to sync the same files"
)]

mod log_sync;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sled::IVec;
use types::{LogIndex, RecordRevision, Revision};

use self::log_sync::LogSync;
use crate::{Record, RevStore, RevStoreError, StoreSize};

const ENGINE: &str = "sled";
const RECORD_PREFIX: u8 = b'r';
const RECORD_KEY_BYTES: usize = 17;
const APPLIED_KEY: &[u8] = b"a";
const FLAG_TOMBSTONE: u8 = 1;
/// Removals made in one atomic batch of sled.
const BATCH_RECORDS: usize = 1_000;

/// Makes a file or a directory durable. A parameter, so that a test can watch and refuse.
pub trait FileSync: Send + Sync {
    /// Makes the bytes of the open file, or the names in the open directory, durable.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()>;
}

/// `fsync`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFileSync;

impl FileSync for OsFileSync {
    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()
    }
}

/// How to open a [`SledStore`].
#[derive(Clone)]
pub struct SledOptions {
    /// The memory of sled's page cache.
    pub cache_bytes: u64,
    /// What makes files durable.
    pub file_sync: Arc<dyn FileSync>,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 * 1024 * 1024, file_sync: Arc::new(OsFileSync) }
    }
}

/// A [`RevStore`] in a directory of sled.
pub struct SledStore {
    db: sled::Db,
    _log_sync: LogSync,
    directory: PathBuf,
    file_sync: Arc<dyn FileSync>,
    /// sled's log, held open from the start: an error of the kernel's own write-back is reported to
    /// the handles that were open when it happened.
    log_file: File,
    flushed: AtomicU64,
    live_bytes: AtomicU64,
    /// The newest record; guards the order of appends. A std mutex: there is one appender.
    last: Mutex<Option<RecordRevision>>,
}

/// How long an earlier handle of the same store may take to let go of it.
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// Opens sled's database. Its threads end, and give up its lock, a moment after the last handle is
/// dropped; so a lock that is held is waited for, and only one that stays held is an error.
fn open_when_released(directory: &Path, options: &SledOptions) -> Result<sled::Db, RevStoreError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        let opened = sled::Config::new()
            .path(directory)
            .cache_capacity(options.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            // Who flushes is decided above; a flush of sled's own would not be durable anyway.
            .flush_every_ms(None)
            .open();
        match opened {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && waited < RELEASE_WAIT =>
            {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            other => return other.map_err(engine_error),
        }
    }
}

impl SledStore {
    /// Opens the store in `directory`, creating it if there is none.
    ///
    /// # Errors
    /// `Engine` with sled's own words if it cannot read what it wrote.
    pub fn open(directory: &Path, options: SledOptions) -> Result<Self, RevStoreError> {
        std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let log_sync = LogSync::of(directory, options.file_sync.clone())
            .map_err(io_error("watch", directory))?;
        let db = open_when_released(directory, &options)?;
        let log_path = directory.join("db");
        let log_file = File::open(&log_path).map_err(io_error("open", &log_path))?;
        let flushed = match db.get(APPLIED_KEY).map_err(engine_error)? {
            None => 0,
            Some(value) => match <[u8; 8]>::try_from(value.as_ref()) {
                Ok(bytes) => u64::from_le_bytes(bytes),
                Err(_) => return Err(damaged(directory, "the applied index has a wrong length")),
            },
        };
        let mut live_bytes = 0;
        let mut last = None;
        for item in db.scan_prefix([RECORD_PREFIX]) {
            let (key, value) = item.map_err(engine_error)?;
            live_bytes += (key.len() + value.len()) as u64;
            last = Some(decode(directory, &key, &value)?.revision);
        }
        Ok(Self {
            db,
            _log_sync: log_sync,
            directory: directory.to_path_buf(),
            file_sync: options.file_sync,
            log_file,
            flushed: AtomicU64::new(flushed),
            live_bytes: AtomicU64::new(live_bytes),
            last: Mutex::new(last),
        })
    }

    fn last_record(&self) -> MutexGuard<'_, Option<RecordRevision>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets sled write everything out and then makes its files durable.
    fn flush_and_sync(&self) -> Result<(), RevStoreError> {
        self.db.flush().map_err(engine_error)?;
        let log_path = self.directory.join("db");
        self.file_sync.sync(&log_path, &self.log_file).map_err(io_error("sync", &log_path))?;
        self.sync_tree(&self.directory)
    }

    /// Fsyncs every file below `directory`, then the directory itself.
    fn sync_tree(&self, directory: &Path) -> Result<(), RevStoreError> {
        let entries = std::fs::read_dir(directory).map_err(io_error("list", directory))?;
        for entry in entries {
            let path = entry.map_err(io_error("list", directory))?.path();
            let file = match File::open(&path) {
                Ok(file) => file,
                // sled replaces its snapshot files now and then; a removed one is not missed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_error("open", &path)(error)),
            };
            if file.metadata().map_err(io_error("look at", &path))?.is_dir() {
                self.sync_tree(&path)?;
            } else {
                self.file_sync.sync(&path, &file).map_err(io_error("sync", &path))?;
            }
        }
        let handle = File::open(directory).map_err(io_error("open", directory))?;
        self.file_sync.sync(directory, &handle).map_err(io_error("sync", directory))
    }

    /// Removes these keys and forgets their bytes.
    fn remove_keys(&self, keys: impl Iterator<Item = Vec<u8>>) -> Result<(), RevStoreError> {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let mut batch = sled::Batch::default();
            let mut freed = 0;
            for key in keys.by_ref().take(BATCH_RECORDS) {
                if let Some(value) = self.db.get(&key).map_err(engine_error)? {
                    freed += (key.len() + value.len()) as u64;
                    batch.remove(key);
                }
            }
            self.db.apply_batch(batch).map_err(engine_error)?;
            self.live_bytes.fetch_sub(freed, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl RevStore for SledStore {
    fn append(&self, records: &[Record]) -> Result<(), RevStoreError> {
        let mut last = self.last_record();
        let mut items = Vec::with_capacity(records.len());
        let mut newest = *last;
        for record in records {
            let revision = record.revision;
            let ordered = newest.is_none_or(|newest| newest < revision);
            let Some(key) = encode_key(revision).filter(|_| ordered) else {
                let detail = format!("record {revision} after {newest:?} breaks the order");
                return Err(RevStoreError::Engine { engine: ENGINE, detail });
            };
            let mut value = Vec::with_capacity(1 + record.key_value.len());
            value.push(if record.tombstone { FLAG_TOMBSTONE } else { 0 });
            value.extend_from_slice(&record.key_value);
            items.push((key, value));
            newest = Some(revision);
        }
        // One by one: sled syncs at the end of every batch, and nobody asks for that before a flush.
        for (key, value) in items {
            let added = (key.len() + value.len()) as u64;
            self.db.insert(key, value).map_err(engine_error)?;
            self.live_bytes.fetch_add(added, Ordering::Relaxed);
        }
        *last = newest;
        Ok(())
    }

    fn get(&self, revision: RecordRevision) -> Result<Option<Record>, RevStoreError> {
        let Some(key) = encode_key(revision) else { return Ok(None) };
        match self.db.get(key).map_err(engine_error)? {
            None => Ok(None),
            Some(value) => decode(&self.directory, &key, &value).map(Some),
        }
    }

    fn scan(
        &self,
        from: RecordRevision,
        until: RecordRevision,
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), RevStoreError> {
        let (from, until) = (encode_bound(from), encode_bound(until));
        if from >= until {
            return Ok(());
        }
        for item in self.db.range(&from[..]..&until[..]) {
            let (key, value) = item.map_err(engine_error)?;
            if visit(decode(&self.directory, &key, &value)?).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn remove(&self, revisions: &[RecordRevision]) -> Result<(), RevStoreError> {
        let keys = revisions.iter().filter_map(|&revision| encode_key(revision));
        self.remove_keys(keys.map(Vec::from))
    }

    fn truncate_above(&self, revision: Revision) -> Result<(), RevStoreError> {
        let mut last = self.last_record();
        let Some(above) = revision.0.checked_add(1) else { return Ok(()) };
        let from = encode_bound(RecordRevision { main: above, sub: 0 });
        let keys: Result<Vec<IVec>, _> =
            self.db.range(&from[..]..&[RECORD_PREFIX + 1][..]).keys().collect();
        let keys = keys.map_err(engine_error)?;
        self.remove_keys(keys.into_iter().map(|key| key.to_vec()))?;
        *last = match self.db.get_lt([RECORD_PREFIX + 1]).map_err(engine_error)? {
            Some((key, _)) => decode_key(&key),
            None => None,
        };
        Ok(())
    }

    fn flush(&self, applied: LogIndex) -> Result<(), RevStoreError> {
        self.flush_and_sync()?;
        self.db.insert(APPLIED_KEY, &applied.0.to_le_bytes()).map_err(engine_error)?;
        self.flush_and_sync()?;
        self.flushed.store(applied.0, Ordering::Release);
        Ok(())
    }

    fn flushed(&self) -> LogIndex {
        LogIndex(self.flushed.load(Ordering::Acquire))
    }

    fn last(&self) -> Result<Option<RecordRevision>, RevStoreError> {
        let newest = self.db.get_lt([RECORD_PREFIX + 1]).map_err(engine_error)?;
        Ok(newest.and_then(|(key, _)| decode_key(&key)))
    }

    /// `in_use` counts keys and values, not what sled's pages add to them.
    fn size(&self) -> StoreSize {
        let in_use = self.live_bytes.load(Ordering::Relaxed);
        // The size is for metrics and quota; sled's own count includes free segments.
        let total = self.db.size_on_disk().unwrap_or(in_use).max(in_use);
        StoreSize { total, in_use }
    }

    fn defragment(&self) -> Result<(), RevStoreError> {
        Ok(())
    }
}

/// The key of a record that can exist.
fn encode_key(revision: RecordRevision) -> Option<[u8; RECORD_KEY_BYTES]> {
    (revision.main >= 0 && revision.sub >= 0).then(|| encode_bound(revision))
}

/// The key of a bound of a range: what is below every record becomes the lowest key.
fn encode_bound(revision: RecordRevision) -> [u8; RECORD_KEY_BYTES] {
    let (main, sub) = match (u64::try_from(revision.main), u64::try_from(revision.sub)) {
        (Err(_), _) => (0, 0),
        (Ok(main), Err(_)) => (main, 0),
        (Ok(main), Ok(sub)) => (main, sub),
    };
    let mut key = [RECORD_PREFIX; RECORD_KEY_BYTES];
    key[1..9].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

fn decode_key(key: &[u8]) -> Option<RecordRevision> {
    let (prefix, rest) = key.split_first()?;
    let (main, rest) = rest.split_first_chunk::<8>()?;
    let sub = <[u8; 8]>::try_from(rest).ok()?;
    let main = i64::try_from(u64::from_be_bytes(*main)).ok()?;
    let sub = i64::try_from(u64::from_be_bytes(sub)).ok()?;
    (*prefix == RECORD_PREFIX).then_some(RecordRevision { main, sub })
}

fn decode(directory: &Path, key: &[u8], value: &[u8]) -> Result<Record, RevStoreError> {
    let revision = decode_key(key).ok_or_else(|| damaged(directory, "a key is no revision"))?;
    match value.split_first() {
        Some((flags, key_value)) if flags & !FLAG_TOMBSTONE == 0 => Ok(Record {
            revision,
            tombstone: *flags == FLAG_TOMBSTONE,
            key_value: Bytes::copy_from_slice(key_value),
        }),
        _ => Err(damaged(directory, "a record has unknown flags")),
    }
}

fn engine_error(error: sled::Error) -> RevStoreError {
    RevStoreError::Engine { engine: ENGINE, detail: error.to_string() }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RevStoreError {
    let path = path.display().to_string();
    move |source| RevStoreError::Io { operation, path, source }
}

fn damaged(directory: &Path, detail: &str) -> RevStoreError {
    RevStoreError::Damaged {
        path: directory.display().to_string(),
        offset: 0,
        detail: format!(
            "{detail}; remove this member's data directory and let it rejoin, or restore a backup"
        ),
    }
}
