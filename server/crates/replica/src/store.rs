//! The state machine on disk: images, and the records they index.
//!
//! ```text
//! member/image/<index>.image    see `images`
//! member/store/<epoch>/         the records of one RevStore
//! member/incoming.snapshot<n>   a snapshot that is being received or installed
//! ```
//!
//! Invariants: an image is written only after the records up to its index are durable; records that
//! compaction made unreachable are removed only after an image that knows of the compaction is
//! durable. So a replay from any kept image finds every record it needs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, File, OpenMode};
use machine::{Held, ImageJob, Machine};
use revlog::RevStore;
use types::{ClusterId, LogIndex, Revision};

use crate::codec;
use crate::images::{ImageError, ImageHeader, Images};
use crate::limits::space_reserve;
use crate::raft_types::{LogId, SnapshotMeta, StoredMembership, optional_index};
use crate::watermark::Watermark;

/// How the names of received snapshots begin.
const INCOMING: &str = "incoming.snapshot";

/// What etcd calls the compact revision of a store that was never compacted.
const NEVER_COMPACTED: Revision = Revision(-1);

/// Opens the engine that keeps records, in a directory of its own.
pub type OpenEngine =
    Arc<dyn Fn(&Path) -> Result<Arc<dyn RevStore>, revlog::RevStoreError> + Send + Sync>;

/// Why the state on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] revlog::RevStoreError),
    /// The machine cannot be restored from the image.
    #[error("restore the state machine: {0}")]
    Restore(String),
    /// An operation on the directory failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The state machine's files.
pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    images: Images,
    open_engine: OpenEngine,
    epoch: AtomicU64,
    /// Held while an image is written and put in place of the one before. A std mutex: only threads
    /// for such work wait for it.
    changing: Mutex<()>,
    /// How many snapshots were received; each has a file of its own.
    received: AtomicU64,
    /// The applied index of the newest durable image.
    saved: Watermark,
    /// The compact revision of the newest durable image.
    saved_compaction: AtomicI64,
    /// How long the newest durable image is.
    image_bytes: AtomicU64,
}

/// A snapshot from another member on its way into the state; the file goes away with this value.
pub(crate) struct IncomingFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// What installing it writes besides: the records that it leaves out.
    copied: u64,
    /// What has to be left free.
    reserve: u64,
}

impl IncomingFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file, which is not there yet.
    pub(crate) fn create(&self) -> io::Result<Arc<dyn File>> {
        self.disk.open(&self.path, OpenMode::Create)
    }

    /// Refuses to go on where what was received would not find room once more, beside what is copied of the
    /// member's own, as installing it needs, which cannot be taken back half way. The reserve is left alone: a member that lags must not raise the alarm
    /// that stops all writes of the others. What is in the reserve anyway may go on.
    ///
    /// # Errors
    /// Says how much is missing.
    pub(crate) fn require_room(&self, received: u64) -> io::Result<()> {
        let free = self.disk.available_space(&self.path)?;
        let was_in_reserve = free.saturating_add(received) < self.reserve;
        let kept = if was_in_reserve { 0 } else { self.reserve };
        match (received + self.copied + kept).checked_sub(free) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("at least {missing} more bytes of disk are needed to install a snapshot"),
            )),
        }
    }
}

impl Drop for IncomingFile {
    fn drop(&mut self) {
        // Best effort: whatever is left is removed at the next start.
        let _ = self.disk.remove_file(&self.path);
    }
}

/// What a member starts from.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    pub(crate) machine: Machine,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Store {
    /// Loads the newest image, or an empty state if there is none.
    pub(crate) fn load(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        images: Images,
        open_engine: OpenEngine,
        cluster: ClusterId,
    ) -> Result<Loaded, StoreError> {
        if let Some((_, path)) = images.list()?.into_iter().next() {
            let (header, machine) =
                Self::load_image(&*disk, &directory, &images, &open_engine, &path)?;
            let epoch = header.epoch;
            let (applied, membership) = position(header)?;
            let store = Self::new(disk, directory, images, open_engine, epoch);
            store.saved.set(optional_index(applied.as_ref()));
            store.note_compaction(machine.positions().compact_revision);
            store.image_bytes.store(store.images.bytes(&path)?, Ordering::Release);
            store.sweep()?;
            store.sweep_incoming()?;
            return Ok(Loaded { store, machine, applied, membership });
        }
        let records_path = store_path(&directory, 0);
        disk.create_dir_all(&records_path)?;
        let records = open_engine(&records_path)?;
        records.truncate_above(Revision(0))?;
        let machine = Machine::new(records, cluster);
        let store = Self::new(disk, directory, images, open_engine, 0);
        store.sweep_incoming()?;
        Ok(Loaded { store, machine, applied: None, membership: StoredMembership::default() })
    }

    fn new(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        images: Images,
        open_engine: OpenEngine,
        epoch: u64,
    ) -> Self {
        Self {
            disk,
            directory,
            images,
            open_engine,
            epoch: AtomicU64::new(epoch),
            changing: Mutex::default(),
            received: AtomicU64::new(0),
            saved: Watermark::default(),
            saved_compaction: AtomicI64::new(NEVER_COMPACTED.0),
            image_bytes: AtomicU64::new(0),
        }
    }

    fn load_image(
        disk: &dyn Disk,
        directory: &Path,
        images: &Images,
        open_engine: &OpenEngine,
        path: &Path,
    ) -> Result<(ImageHeader, Machine), StoreError> {
        let (header, mut file) = images.read(path)?;
        let records_path = store_path(directory, header.epoch);
        disk.create_dir_all(&records_path)?;
        let records = open_engine(&records_path)?;
        let machine = Machine::restore(&mut file, records).map_err(|error| {
            let path = path.display().to_string();
            StoreError::Image(ImageError::Damaged { path, detail: error.to_string() })
        })?;
        Ok((header, machine))
    }

    /// The applied index of the newest durable image; 0 if there is none.
    pub(crate) fn saved(&self) -> LogIndex {
        self.saved.get()
    }

    /// Returns once an image at `index` or beyond is durable.
    pub(crate) async fn wait_saved(&self, index: LogIndex) {
        self.saved.reach(index).await;
    }

    /// The compact revision of the newest durable image.
    pub(crate) fn saved_compaction(&self) -> Revision {
        Revision(self.saved_compaction.load(Ordering::Acquire))
    }

    /// Bytes of the disk that are not for writes: what leads out of a full disk needs them.
    pub(crate) fn space_reserve(&self) -> u64 {
        space_reserve(self.image_bytes.load(Ordering::Acquire))
    }

    fn note_compaction(&self, revision: Revision) {
        self.saved_compaction.store(revision.0, Ordering::Release);
    }

    /// Which of the states that this member has had is current: each snapshot from a leader begins one.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Makes an image of the state of `epoch` durable, then frees what it allows to be freed. If a
    /// snapshot has replaced that state meanwhile, nothing is written: its records are gone, and what
    /// is on disk is newer.
    pub(crate) fn save(&self, epoch: u64, meta: &SnapshotMeta, image: &ImageJob) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch != self.epoch() {
            tracing::info!(epoch, "a snapshot from the leader has overtaken this member's own");
            return Ok(());
        }
        self.write_image(meta, image)?;
        image.remove_garbage().map_err(|error| io::Error::other(error.to_string()))?;
        self.images.sweep()
    }

    fn write_image(&self, meta: &SnapshotMeta, image: &ImageJob) -> io::Result<()> {
        let header = self.images.header(
            self.epoch(),
            meta.last_log_id.as_ref().map(codec::log_id_message),
            codec::stored_membership_message(&meta.last_membership),
        );
        // The job flushes the records first, so that the image never refers to what could be lost.
        let bytes = self.images.write(&header, |out| Ok(image.write(out)?))?;
        self.image_bytes.store(bytes, Ordering::Release);
        self.note_compaction(image.positions().compact_revision);
        self.saved.set(optional_index(meta.last_log_id.as_ref()));
        Ok(())
    }

    /// Replaces the whole state by a received snapshot. The rename of the new image is the moment
    /// of exchange: before it a restart finds the old state, after it the new one. The records that the
    /// snapshot leaves out come from the state that it replaces.
    pub(crate) fn install(
        &self,
        received: &Path,
        held: Option<Held<'_>>,
        meta: &SnapshotMeta,
    ) -> io::Result<Machine> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.epoch() + 1;
        let path = store_path(&self.directory, epoch);
        if self.disk.exists(&path)? {
            self.disk.remove_dir_all(&path)?;
        }
        self.disk.create_dir_all(&path)?;
        let other = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        let records = (self.open_engine)(&path).map_err(|error| other(&error))?;
        let mut file = disk::FileReader::open(&*self.disk, received)?;
        let machine = Machine::install(&mut file, records, held).map_err(|error| other(&error))?;
        self.disk.sync_dir(&self.directory.join("store"))?;
        self.epoch.store(epoch, Ordering::Release);
        self.write_image(meta, &machine.image())?;
        self.sweep()?;
        Ok(machine)
    }

    /// A file to receive a snapshot into. Each gets its own: the next may arrive while the one before
    /// is being installed. Installing it will copy so many bytes besides.
    pub(crate) fn incoming_file(&self, copied: u64) -> IncomingFile {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("{INCOMING}{number}"));
        IncomingFile { disk: self.disk.clone(), path, copied, reserve: self.space_reserve() }
    }

    /// Removes what a process before was receiving when it ended.
    fn sweep_incoming(&self) -> io::Result<()> {
        for entry in self.disk.list(&self.directory)? {
            if entry.name.starts_with(INCOMING) {
                self.disk.remove_file(&self.directory.join(&entry.name))?;
            }
        }
        Ok(())
    }

    /// Removes what no image names: other epochs and old images.
    fn sweep(&self) -> io::Result<()> {
        let current = self.epoch().to_string();
        let stores = self.directory.join("store");
        for entry in self.disk.list(&stores)? {
            if entry.name != current {
                self.disk.remove_dir_all(&stores.join(&entry.name))?;
            }
        }
        self.images.sweep()
    }
}

pub(crate) fn store_path(directory: &Path, epoch: u64) -> PathBuf {
    directory.join("store").join(epoch.to_string())
}

/// Where in the log an image stands.
fn position(header: ImageHeader) -> Result<(Option<LogId>, StoredMembership), StoreError> {
    let malformed = |error: codec::Malformed| StoreError::Restore(error.to_string());
    let applied = codec::optional_log_id(header.applied).map_err(malformed)?;
    let membership = codec::stored_membership_from_message(header.membership).map_err(malformed)?;
    Ok((applied, membership))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use disk::{Fault, SimDisk};
    use futures_util::{StreamExt, stream};
    use machine::{
        AppliedEntry, AppliedPayload, Batch, CommandKind, LogPosition, Proposal, Ticket,
    };
    use proto::etcdserverpb::PutRequest;
    use proto::peerpb::{self, snapshot_chunk::Part};
    use sha2::{Digest, Sha256};
    use types::{MemberId, Term};

    use super::*;
    use crate::limits::SPACE_RESERVE_BYTES;
    use crate::raft_types::log_id;
    use crate::snapshot::{self, Blocking};

    const CLUSTER: ClusterId = ClusterId(7);
    const DIRECTORY: &str = "member";

    const NONE: Revision = Revision(0);

    /// So small that a snapshot comes in several.
    const PIECE_BYTES: usize = 64;

    fn load(disk: &Arc<SimDisk>) -> Loaded {
        let disk: Arc<dyn Disk> = disk.clone();
        let directory = PathBuf::from(DIRECTORY);
        let images =
            Images::open(disk.clone(), directory.join("image"), CLUSTER, MemberId(1)).unwrap();
        let engine_disk = disk.clone();
        let engine: OpenEngine = Arc::new(move |path: &Path| {
            let options = revlog::RevLogOptions::default();
            Ok(Arc::new(revlog::RevLog::open(engine_disk.clone(), path, options)?))
        });
        Store::load(disk, directory, images, engine, CLUSTER).unwrap()
    }

    /// Applies entry `index`, the same one on every member.
    fn put(machine: &mut Machine, index: u64) {
        let value = format!("of {index}").into();
        let request = PutRequest { key: "k".into(), value, ..PutRequest::default() };
        let proposal = Proposal::new(CommandKind::Put, &request);
        let ticket = Ticket { origin: MemberId(1), seq: index };
        let position = LogPosition { term: Term(1), index: LogIndex(index) };
        let payload = AppliedPayload::Batch(Batch::encode(&[(ticket, proposal)]));
        machine.apply(&[AppliedEntry { position, payload }]).unwrap();
    }

    fn meta(index: u64) -> SnapshotMeta {
        let last_log_id = Some(log_id(Term(1), LogIndex(index)));
        SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }
    }

    /// A leader that has applied so many entries.
    fn leader(entries: u64) -> Machine {
        let mut leader = load(&Arc::new(SimDisk::new(1))).machine;
        (1..=entries).for_each(|index| put(&mut leader, index));
        leader
    }

    /// Receives a snapshot of `leader` in pieces.
    fn receive(store: &Store, leader: &Machine, held: Revision) -> io::Result<IncomingFile> {
        let mut snapshot = Vec::new();
        leader.snapshot().write(&mut snapshot, held).unwrap();
        let digest = Sha256::digest(&snapshot).to_vec().into();
        let pieces = snapshot.chunks(PIECE_BYTES).map(|piece| Part::Data(piece.to_vec().into()));
        let parts = pieces.chain([Part::Trailer(peerpb::SnapshotTrailer { digest })]);
        let chunks = parts.map(|part| peerpb::SnapshotChunk { part: Some(part) });
        let mut chunks = stream::iter(chunks.collect::<Vec<_>>());
        let (file, silence_max) = (store.incoming_file(0), Duration::from_secs(10));
        let received = snapshot::receive(file, Blocking::Inline, &mut chunks, silence_max);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(received).map(|received| received.file)
    }

    fn value(machine: &Machine) -> String {
        let value = machine.views().mvcc.get(b"k", 0).unwrap().unwrap();
        let value = mvcc::KeyValue::decode(&value).unwrap().value;
        String::from_utf8(value.to_vec()).unwrap()
    }

    /// T03 (etcd PR#13933): the index and the state that it speaks for change together. The power fails
    /// at every single operation of an installation, of a whole state and of what was missed.
    #[test]
    fn t03_a_crash_anywhere_in_an_installation_leaves_the_old_state_or_the_new_one() {
        for held in [NONE, Revision(3)] {
            crash_everywhere(held);
        }
    }

    fn crash_everywhere(upto: Revision) {
        let leader = leader(9);
        let (mut old, mut new) = (0, 0);
        for at in 1.. {
            let disk = Arc::new(SimDisk::new(at));
            let Loaded { store, machine: mut follower, .. } = load(&disk);
            (1..=3).for_each(|index| put(&mut follower, index));
            store.save(store.epoch(), &meta(3), &follower.image()).unwrap();
            disk.inject(Fault::CrashAt(disk.mutations() + at));
            let own = follower.records();
            let held = Some(Held { records: &*own, upto }).filter(|held| held.upto > NONE);
            let installed = receive(&store, &leader, upto)
                .and_then(|incoming| store.install(incoming.path(), held, &meta(9)).map(drop));
            let crashed = disk.is_crashed();
            assert!(crashed || installed.is_ok(), "operation {at}: {installed:?}");
            drop((store, follower, own));
            disk.clear_faults();
            disk.restart();
            let again = load(&disk);
            let found = (again.applied, value(&again.machine));
            if found == (meta(9).last_log_id, "of 9".to_owned()) {
                new += 1;
            } else {
                assert_eq!(found, (meta(3).last_log_id, "of 3".to_owned()), "operation {at}");
                assert!(installed.is_err(), "operation {at}: an installation is lost");
                old += 1;
            }
            let revision = again.machine.views().mvcc.revision();
            let expected = optional_index(again.applied.as_ref()).0 + 1;
            assert_eq!(revision.0 as u64, expected, "operation {at}");
            let images = disk.list(&Path::new(DIRECTORY).join("image")).unwrap();
            let unfinished = images.iter().filter(|entry| !entry.name.ends_with(".image"));
            assert_eq!(unfinished.count(), 0, "operation {at}: {images:?}");
            if !crashed {
                break;
            }
        }
        assert!(old >= 5 && new >= 3, "{old} crashes left the old state, {new} the new one");
    }

    /// T15 (etcd #18055): the second snapshot arrives while the file of the first is still held.
    #[test]
    fn t15_two_snapshots_one_behind_the_other_are_both_installed() {
        let disk = Arc::new(SimDisk::new(2));
        let Loaded { store, .. } = load(&disk);
        let first = receive(&store, &leader(5), NONE).unwrap();
        let second = receive(&store, &leader(9), NONE).unwrap();
        let after_first = store.install(first.path(), None, &meta(5)).unwrap();
        let after_second = store.install(second.path(), None, &meta(9)).unwrap();
        drop((first, second));
        assert_eq!(after_first.views().mvcc.revision(), Revision(6), "a reader may still hold it");
        assert_eq!(after_second.views().mvcc.revision(), Revision(10));
        assert_eq!(store.images.list().unwrap().len(), 1);
        drop((store, after_first, after_second));
        disk.restart();
        let again = load(&disk);
        assert_eq!(again.applied, meta(9).last_log_id);
        assert_eq!(again.machine.views().mvcc.revision(), Revision(10));
    }

    /// T16 (etcd #20271): a follower that was away writes an image of what it had (etcd defragments)
    /// while the leader's snapshot arrives.
    #[test]
    fn t16_an_image_that_a_snapshot_has_overtaken_is_not_written() {
        let leader = leader(9);
        let disk = Arc::new(SimDisk::new(2));
        let Loaded { store, machine: mut follower, .. } = load(&disk);
        put(&mut follower, 1);
        let (epoch, image) = (store.epoch(), follower.image());

        let incoming = receive(&store, &leader, NONE).unwrap();
        let installed = store.install(incoming.path(), None, &meta(9)).unwrap();
        store.save(epoch, &meta(1), &image).unwrap();

        assert_eq!(store.saved(), LogIndex(9), "what is on disk does not go back");
        assert_eq!(store.images.list().unwrap().len(), 1);
        store.save(store.epoch(), &meta(9), &installed.image()).unwrap();
        drop((store, installed, follower, image));
        let again = load(&disk);
        assert_eq!(again.applied, meta(9).last_log_id);
        assert_eq!(value(&again.machine), "of 9");
    }

    /// It filled the disk, and the alarm of one small member stopped the writes of all.
    #[test]
    fn a_snapshot_without_room_is_given_up_before_the_reserve_is_touched() {
        const MIB: u64 = 1 << 20;
        let disk = Arc::new(SimDisk::new(1));
        let store = load(&disk).store;
        let leave = |bytes| disk.set_capacity(Some(disk.used_bytes() + bytes));
        leave(SPACE_RESERVE_BYTES + 40 * MIB);
        let least = std::cell::Cell::new(u64::MAX);
        let piece = Part::Data(vec![7; 1 << 20].into());
        let chunks = (0..60).map(|_| peerpb::SnapshotChunk { part: Some(piece.clone()) });
        let look = |_: &_| {
            let free = disk.available_space(Path::new(DIRECTORY)).unwrap();
            least.set(least.get().min(free));
        };
        let mut chunks = Box::pin(stream::iter(chunks).inspect(look));
        let silence_max = Duration::from_secs(10);
        let received =
            snapshot::receive(store.incoming_file(0), Blocking::Inline, &mut chunks, silence_max);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let error = runtime.block_on(received).err().expect("it has no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert!(least.get() > SPACE_RESERVE_BYTES, "{} bytes were left", least.get());
        assert!(least.get() < SPACE_RESERVE_BYTES + 24 * MIB, "half of the room may be used");
        let names = disk.list(Path::new(DIRECTORY)).unwrap();
        assert!(names.iter().all(|entry| !entry.name.starts_with(INCOMING)), "{names:?}");

        // Who is in the reserve anyway may receive what has room.
        leave(10 * MIB);
        assert!(store.incoming_file(0).require_room(4 * MIB).is_ok());
        assert!(store.incoming_file(0).require_room(11 * MIB).is_err());
    }
}
