//! Images: what a member starts from. Everything but the values, which stay in the record store.
//!
//! An image is the container of `frames.rs` with the sections tables, leases and index, all as of one
//! applied entry. To make one durable, in this order:
//! 1. [`crate::Machine::image`] takes the moment (short, between two entries);
//! 2. [`ImageJob::write`] flushes the record store through that moment, then writes; apply goes on;
//! 3. the caller makes the file durable and visible by a rename;
//! 4. [`ImageJob::remove_garbage`] frees what no replay can ask for any more; the log below the
//!    image's position may go.
//!
//! At start [`Machine::restore`] builds everything from the image, compares the digest, and only then
//! cuts the record store back to the image's revision. What was above it is in the log and comes
//! again by ordinary apply.

use std::io::{self, Read, Write};
use std::sync::Arc;

use lease::Lessor;
use mvcc::{Store, StoreMeta};
use revlog::{RevStore, RevStoreError};
use tables::{LogPosition, Tables};
use types::RecordRevision;

use crate::frames::{FrameError, FrameReader, FrameWriter, Kind, Section};
use crate::machine::{Machine, Moment};

/// The tables of a cluster are far smaller; more is damage.
const TABLES_BYTES_MAX: u64 = 256 << 20;

/// Why an image or a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file or stream does not take more.
    #[error("write state: {0}")]
    Io(#[from] io::Error),
    /// The key index could not be written.
    #[error(transparent)]
    Index(#[from] mvcc::ImageError),
    /// The record store could not be flushed or read.
    #[error(transparent)]
    Store(#[from] RevStoreError),
}

/// Who writes an image wants to tell a full disk from a broken one.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Io(error) | WriteError::Index(mvcc::ImageError::Write(error)) => error,
            WriteError::Store(RevStoreError::Io { source, .. }) if is_full(&source) => source,
            other => io::Error::other(other),
        }
    }
}

/// Why an image or a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The container is damaged or of another kind.
    #[error(transparent)]
    Frames(#[from] FrameError),
    /// The tables cannot be read.
    #[error(transparent)]
    Tables(#[from] tables::DecodeError),
    /// The leases cannot be read.
    #[error(transparent)]
    Leases(#[from] lease::ImageError),
    /// The key index cannot be read.
    #[error(transparent)]
    Index(#[from] mvcc::RestoreError),
    /// The record store failed.
    #[error(transparent)]
    Store(#[from] RevStoreError),
    /// The record store to install a snapshot into holds records already.
    #[error("a snapshot is installed into an empty record store, this one holds records")]
    NotEmpty,
    /// A record of a snapshot that no writer writes.
    #[error("records of the snapshot are damaged: {detail}")]
    Records { detail: &'static str },
    /// Neither a snapshot nor its receiver has a record that its key index names.
    #[error("record {record} is missing: the snapshot leaves it out and it is not here either")]
    Missing { record: RecordRevision },
    /// A lease lists a key that does not name it, or a key names a lease that does not list it.
    #[error("leases and keys of the state file contradict each other")]
    Attachments,
}

impl From<io::Error> for RestoreError {
    fn from(error: io::Error) -> Self {
        RestoreError::Frames(error.into())
    }
}

/// An image of one moment, on its way to disk. While it lives the index is not swept.
pub struct ImageJob {
    moment: Moment,
}

impl ImageJob {
    pub(crate) fn new(moment: Moment) -> Self {
        Self { moment }
    }

    /// The last entry that the image holds.
    pub fn applied(&self) -> Option<LogPosition> {
        self.moment.tables.applied
    }

    /// Its revision and compact revision.
    pub fn positions(&self) -> StoreMeta {
        self.moment.meta
    }

    /// Flushes the record store, then writes the image.
    ///
    /// # Errors
    /// After a failed flush nobody knows what the disk holds: the process must stop.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), WriteError> {
        self.moment.store.revs().flush(self.moment.tables.applied_index())?;
        let mut frames = FrameWriter::new(out, Kind::Image)?;
        write_state(&self.moment, &mut frames)?;
        Ok(frames.finish()?)
    }

    /// Frees the records that compactions up to this image's made dead. Only to be called once the
    /// image is durable: until then a replay from the image before it could still read them.
    pub fn remove_garbage(&self) -> Result<usize, RevStoreError> {
        self.moment.store.remove_garbage(self.moment.meta.compact_revision)
    }
}

/// The sections that images and snapshots share.
pub(crate) fn write_state(moment: &Moment, frames: &mut FrameWriter<'_>) -> Result<(), WriteError> {
    frames.section(Section::Tables, |out| out.write_all(&moment.tables.encode()))?;
    frames.section(Section::Leases, |out| moment.leases.write_image(out))?;
    frames.section(Section::Index, |out| {
        moment.store.write_image_at(moment.meta, out).map_err(WriteError::from)
    })
}

/// Reads them back. The store is not to be used before the container's digest was compared.
pub(crate) fn read_state(
    frames: &mut FrameReader<'_>,
    records: &Arc<dyn RevStore>,
) -> Result<(Tables, Lessor, Store), RestoreError> {
    let tables = frames.section(Section::Tables, |input| {
        let mut bytes = Vec::new();
        input.take(TABLES_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok::<_, RestoreError>(Tables::decode(&bytes)?)
    })?;
    let leases = frames
        .section(Section::Leases, |input| Lessor::read_image(input).map_err(RestoreError::from))?;
    let store = frames.section(Section::Index, |input| {
        Store::restore(Arc::clone(records), input).map_err(RestoreError::from)
    })?;
    check_attachments(&leases, &store)?;
    Ok((tables, leases, store))
}

/// A key names its lease and a lease its keys; both come from the same moment and must agree. A key
/// may name a lease that does not exist: Go etcd keeps such keys, and an import keeps them as well.
fn check_attachments(leases: &Lessor, store: &Store) -> Result<(), RestoreError> {
    let mut attached = 0usize;
    let mut agree = true;
    store.attachments(&mut |id, key| {
        if let Some(lease) = leases.get(id) {
            attached += 1;
            agree &= lease.has(key);
        }
    });
    let known: usize = leases.iter().map(|(_, lease)| lease.keys().len()).sum();
    match agree && attached == known {
        true => Ok(()),
        false => Err(RestoreError::Attachments),
    }
}

impl Machine {
    /// The state that [`ImageJob::write`] wrote, over the record store it was written beside.
    ///
    /// # Errors
    /// The image is damaged, or foreign, or newer than this program; the record store is untouched
    /// then, and an older image may be tried.
    pub fn restore(
        image: &mut dyn Read,
        records: Arc<dyn RevStore>,
    ) -> Result<Machine, RestoreError> {
        let mut frames = FrameReader::new(image, Kind::Image)?;
        let (tables, leases, store) = read_state(&mut frames, &records)?;
        frames.finish()?;
        records.truncate_above(store.revision())?;
        Ok(Machine::of(store, leases, tables))
    }
}
