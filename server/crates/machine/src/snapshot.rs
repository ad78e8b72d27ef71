//! Snapshots: the state for a member that the log no longer reaches, with the values that it lacks.
//!
//! A snapshot is the container of `frames.rs` with the sections of an image and, last, records in order
//! of revision:
//!
//! ```text
//! +----------+---------+--------------+------------+-----------+   little endian, repeated
//! | main i64 | sub i64 | tombstone u8 | length u32 | key-value |   to the end of the section
//! +----------+---------+--------------+------------+-----------+
//! ```
//!
//! The index section decides which records there are. Those up to a revision that the receiver has come
//! to itself can be left out: apply is deterministic, so the receiver has the same ones, and catching up
//! costs what was missed. The receiver copies them from the store it had, so that both states are whole
//! until the new one takes the place of the old one.
//!
//! Of what compactions made dead, the two may have freed different parts. The receiver therefore sweeps
//! the index before it looks for its records, and then wants exactly those that are left: a snapshot
//! after which one is missing is not installed. Records that are known garbage are not sent. The record
//! store is read while apply and background removal go on, which is safe: what the index section names
//! is not garbage while this job lives, because a job holds off the sweep that would make it so.

use std::io::{self, Read, Write};
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use mvcc::{StoreMeta, Sweep};
use revlog::{Record, RevStore};
use tables::LogPosition;
use types::{RecordRevision, Revision};

use crate::frames::{FrameReader, FrameWriter, Kind, Section, SectionReader};
use crate::image::{RestoreError, WriteError, read_state, write_state};
use crate::machine::{Machine, Moment};

const RECORD_HEAD: usize = 8 + 8 + 1 + 4;

/// A longer key-value is damage.
const KEY_VALUE_BYTES_MAX: u32 = 1 << 30;

/// Records are handed to the receiver's store in groups of about this many bytes.
const APPEND_BYTES: usize = 4 << 20;

/// How many keys of an index that nobody else uses yet are swept in one step.
const SWEEP_KEYS: usize = 10_000;

/// The records that the receiver of a snapshot has, of the same history.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Where they are.
    pub records: &'a dyn RevStore,
    /// The snapshot leaves records up to this revision out.
    pub upto: Revision,
}

/// A snapshot of one moment, on its way to another member. While it lives the index is not swept.
pub struct SnapshotJob {
    moment: Moment,
}

impl SnapshotJob {
    pub(crate) fn new(moment: Moment) -> Self {
        Self { moment }
    }

    /// The last entry that the snapshot holds.
    pub fn applied(&self) -> Option<LogPosition> {
        self.moment.tables.applied
    }

    /// Its revision and compact revision.
    pub fn positions(&self) -> StoreMeta {
        self.moment.meta
    }

    /// Writes the snapshot, without the records up to `held`, which its receiver has; 0 if it has none.
    pub fn write(&self, out: &mut dyn Write, held: Revision) -> Result<(), WriteError> {
        let mut frames = FrameWriter::new(out, Kind::Snapshot)?;
        write_state(&self.moment, &mut frames)?;
        frames.section(Section::Records, |out| self.write_records(out, held))?;
        Ok(frames.finish()?)
    }

    fn write_records(&self, out: &mut dyn Write, held: Revision) -> Result<(), WriteError> {
        let garbage = self.moment.store.garbage();
        let above = |revision: Revision| RecordRevision::first_of(Revision(revision.0 + 1));
        let mut written: io::Result<()> = Ok(());
        let mut visit = |record: Record| {
            if garbage.binary_search(&record.revision).is_err() {
                written = write_record(out, &record);
            }
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let (from, until) = (above(held), above(self.moment.meta.revision));
        if from < until {
            self.moment.store.revs().scan(from, until, &mut visit)?;
        }
        Ok(written?)
    }
}

fn write_record(out: &mut dyn Write, record: &Record) -> io::Result<()> {
    let length = u32::try_from(record.key_value.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut head = [0; RECORD_HEAD];
    head[0..8].copy_from_slice(&record.revision.main.to_le_bytes());
    head[8..16].copy_from_slice(&record.revision.sub.to_le_bytes());
    head[16] = u8::from(record.tombstone);
    head[17..].copy_from_slice(&length.to_le_bytes());
    out.write_all(&head)?;
    out.write_all(&record.key_value)
}

impl Machine {
    /// The state that [`SnapshotJob::write`] wrote, with its values in a new, empty record store, into
    /// which those that the snapshot leaves out are copied from `held`. The record store is flushed; an
    /// image of the result must be durable before the old state goes.
    ///
    /// # Errors
    /// The snapshot is damaged, or foreign, or newer than this program, or a record is missing, or a disk
    /// failed. The record store is of no use then and has to be thrown away.
    pub fn install(
        snapshot: &mut dyn Read,
        records: Arc<dyn RevStore>,
        held: Option<Held<'_>>,
    ) -> Result<Machine, RestoreError> {
        if records.last()?.is_some() {
            return Err(RestoreError::NotEmpty);
        }
        let mut frames = FrameReader::new(snapshot, Kind::Snapshot)?;
        let (tables, leases, store) = read_state(&mut frames, &records)?;
        while store.compact_step(SWEEP_KEYS) == Sweep::More {}
        let mut wanted = Wanted::new(&*records, store.records());
        if let Some(held) = held {
            wanted.copy(held)?;
        }
        frames.section(Section::Records, |input| {
            read_records(input, &mut wanted, store.revision())
        })?;
        frames.finish()?;
        wanted.finish()?;
        records.flush(tables.applied_index())?;
        Ok(Machine::of(store, leases, tables))
    }
}

/// The records that the key index names, on their way into the store.
struct Wanted<'a> {
    into: &'a dyn RevStore,
    /// Those that have not come yet.
    named: Peekable<vec::IntoIter<RecordRevision>>,
    group: Vec<Record>,
    group_bytes: usize,
}

impl<'a> Wanted<'a> {
    fn new(into: &'a dyn RevStore, named: Vec<RecordRevision>) -> Self {
        Self { into, named: named.into_iter().peekable(), group: Vec::new(), group_bytes: 0 }
    }

    /// Takes the next record in order of revision, if it is named.
    fn take(&mut self, record: Record) -> Result<(), RestoreError> {
        match self.named.peek() {
            Some(next) if *next < record.revision => {
                return Err(RestoreError::Missing { record: *next });
            }
            Some(next) if *next == record.revision => self.named.next(),
            _ => return Ok(()),
        };
        self.group_bytes += record.key_value.len();
        self.group.push(record);
        if self.group_bytes >= APPEND_BYTES {
            self.append()?;
        }
        Ok(())
    }

    fn append(&mut self) -> Result<(), RestoreError> {
        if !self.group.is_empty() {
            self.into.append(&self.group)?;
        }
        self.group.clear();
        self.group_bytes = 0;
        Ok(())
    }

    /// Takes what the receiver has.
    fn copy(&mut self, held: Held<'_>) -> Result<(), RestoreError> {
        let until = RecordRevision::first_of(Revision(held.upto.0 + 1));
        let mut taken = Ok(());
        held.records.scan(RecordRevision::default(), until, &mut |record| {
            taken = self.take(record);
            match taken {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        taken
    }

    fn finish(mut self) -> Result<(), RestoreError> {
        self.append()?;
        match self.named.next() {
            None => Ok(()),
            Some(record) => Err(RestoreError::Missing { record }),
        }
    }
}

fn read_records(
    input: &mut SectionReader<'_, '_>,
    wanted: &mut Wanted<'_>,
    newest: Revision,
) -> Result<(), RestoreError> {
    let mut last = RecordRevision::default();
    while input.fill()? {
        let record = read_record(input)?;
        let damaged = |detail| RestoreError::Records { detail };
        if record.revision <= last {
            return Err(damaged("they are not in increasing order"));
        }
        if record.revision.main > newest.0 {
            return Err(damaged("one lies above the snapshot's revision"));
        }
        last = record.revision;
        wanted.take(record)?;
    }
    Ok(())
}

fn read_record(input: &mut dyn Read) -> Result<Record, RestoreError> {
    let mut head = [0; RECORD_HEAD];
    input.read_exact(&mut head)?;
    let word = |at: usize| {
        i64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes were asked for"))
    };
    let length = u32::from_le_bytes(head[17..].try_into().expect("four bytes are left"));
    let tombstone = match head[16] {
        0 => false,
        1 => true,
        _ => return Err(RestoreError::Records { detail: "one is neither a put nor a deletion" }),
    };
    if length > KEY_VALUE_BYTES_MAX || word(0) < 1 || word(8) < 0 {
        return Err(RestoreError::Records { detail: "one has an impossible head" });
    }
    let mut key_value = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut key_value)?;
    if key_value.len() != length as usize {
        return Err(RestoreError::Records { detail: "the last one is cut" });
    }
    Ok(Record {
        revision: RecordRevision { main: word(0), sub: word(8) },
        tombstone,
        key_value: Bytes::from(key_value),
    })
}
