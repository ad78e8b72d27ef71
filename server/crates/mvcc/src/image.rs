//! The key index on disk.
//!
//! ```text
//! image    = header, block*, end, garbage block*, end, trailer
//! header   = "KEELMVCC" | format u32 = 1 | revision i64 | compact_revision i64 | swept i64
//! block    = length u32 > 0 | length bytes          end = 0 u32
//! trailer  = number of keys u64 | number of garbage records u64
//!
//! in a block of keys, in increasing order and each shortened by what it shares with the one before
//! in the same block; numbers are LEB128, signed ones zigzag:
//!   key     = shared length, rest length, rest, number of versions, version+
//!   version = flags (bit 0 deletion), main, sub, and of a put main - create, version, lease
//! in a garbage block: (main, sub)*
//! fixed numbers are little endian
//! ```
//! Blocks let the reader of a stream take exactly what belongs to the image, so that other sections
//! can follow. There is no checksum here: the caller digests all sections together.
//!
//! Writing goes on beside the writer of the store: versions above the pinned revision are left out.
//! The sweeper's lock is held throughout, so nothing that the image's compact revision leaves
//! readable disappears while it is written.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use revlog::{RevStore, RevStoreError};
use types::RecordRevision;

use crate::compaction::Sweeper;
use crate::history::{KeyHistory, Version};
use crate::index::Index;
use crate::store::{CHUNK, Shared, StoreMeta};

const MAGIC: &[u8; 8] = b"KEELMVCC";
const FORMAT: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 8 + 8;

/// Blocks are at most this long when read; written ones are far shorter unless keys are huge.
const MAX_BLOCK: u32 = 1 << 30;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("writing the key index: {0}")]
    Write(#[from] io::Error),
    #[error("key index: {0}")]
    Store(#[from] RevStoreError),
    #[error("the store was replaced while its key index was written; write it again")]
    Replaced,
    #[error(
        "the key index cannot be written as of revision {} and compact revision {}: it has moved \
         past that compaction",
        .meta.revision, .meta.compact_revision
    )]
    Overtaken { meta: StoreMeta },
}

/// Why a store could not be brought back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("reading the key index: {0}")]
    Read(#[from] io::Error),
    #[error("key index: {0}")]
    Store(#[from] RevStoreError),
    #[error("this is not a key index (it begins with {found:02x?})")]
    Magic { found: [u8; 8] },
    #[error("key index has format {found}, this program knows {FORMAT}; use a newer program")]
    Format { found: u32 },
    #[error("revision {revision} and compact revision {compact_revision} contradict each other")]
    Meta { revision: i64, compact_revision: i64 },
    #[error("key index is damaged: {0}")]
    Damaged(&'static str),
    #[error("record {record} {detail}")]
    Record { record: RecordRevision, detail: String },
}

pub(crate) fn write(
    shared: &Shared,
    sweeper: &Sweeper,
    meta: StoreMeta,
    out: &mut dyn Write,
) -> Result<(), ImageError> {
    let (revision, compacted) = (meta.revision.0, meta.compact_revision.0);
    let epoch = {
        let index = shared.read();
        index.check()?;
        let ahead = revision > index.revision || compacted > index.compact_revision;
        if ahead || sweeper.touched() > compacted {
            return Err(ImageError::Overtaken { meta });
        }
        index.epoch
    };
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    for number in [revision, compacted, sweeper.swept().min(compacted)] {
        out.write_all(&number.to_le_bytes())?;
    }
    let keys = write_keys(shared, revision, epoch, out)?;
    let garbage = sweeper.garbage();
    for chunk in garbage.chunks(CHUNK) {
        let mut block = Vec::new();
        for record in chunk {
            put_unsigned(&mut block, record.main as u64);
            put_unsigned(&mut block, record.sub as u64);
        }
        write_block(out, &block)?;
    }
    write_block(out, &[])?;
    out.write_all(&keys.to_le_bytes())?;
    out.write_all(&(garbage.len() as u64).to_le_bytes())?;
    Ok(())
}

fn write_keys(
    shared: &Shared,
    revision: i64,
    epoch: u64,
    out: &mut dyn Write,
) -> Result<u64, ImageError> {
    let mut keys = 0;
    let mut resume: Option<Box<[u8]>> = None;
    loop {
        let mut block = Vec::new();
        let mut previous: &[u8] = &[];
        let index = shared.read();
        if index.epoch != epoch {
            return Err(ImageError::Replaced);
        }
        for (key, history) in index.walk_all(resume.as_deref()).take(CHUNK) {
            if write_key(&mut block, previous, key, history, revision) {
                keys += 1;
                previous = key;
            }
        }
        resume = index.walk_all(resume.as_deref()).take(CHUNK).last().map(|(key, _)| key.into());
        drop(index);
        if !block.is_empty() {
            write_block(out, &block)?;
        }
        if resume.is_none() {
            write_block(out, &[])?;
            return Ok(keys);
        }
    }
}

fn write_key(
    block: &mut Vec<u8>,
    previous: &[u8],
    key: &[u8],
    history: &KeyHistory,
    revision: i64,
) -> bool {
    let count = history.versions().take_while(|version| version.main <= revision).count();
    if count == 0 {
        return false;
    }
    let same = previous.iter().zip(key).take_while(|(a, b)| a == b).count();
    put_unsigned(block, same as u64);
    put_unsigned(block, (key.len() - same) as u64);
    block.extend_from_slice(&key[same..]);
    put_unsigned(block, count as u64);
    for version in history.versions().take(count) {
        block.push(u8::from(version.tombstone));
        put_unsigned(block, version.main as u64);
        put_unsigned(block, u64::from(version.sub));
        if !version.tombstone {
            put_unsigned(block, (version.main - version.create) as u64);
            put_unsigned(block, version.version as u64);
            put_unsigned(block, zigzag(version.lease));
        }
    }
    true
}

fn write_block(out: &mut dyn Write, block: &[u8]) -> io::Result<()> {
    let length = u32::try_from(block.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(block)
}

pub(crate) fn read(
    revs: Arc<dyn RevStore>,
    image: &mut dyn Read,
) -> Result<(Index, Sweeper), RestoreError> {
    let (revision, compacted, swept) = read_header(image)?;
    let mut keys = Vec::new();
    while let Some(block) = read_block(image)? {
        read_keys(&block, revision, &mut keys)?;
    }
    let mut garbage = Vec::new();
    while let Some(block) = read_block(image)? {
        let mut fields = Fields { bytes: &block };
        while !fields.bytes.is_empty() {
            garbage.push(RecordRevision { main: fields.signed()?, sub: fields.signed()? });
        }
    }
    let mut trailer = [0; 16];
    image.read_exact(&mut trailer)?;
    let expected = [keys.len() as u64, garbage.len() as u64].map(u64::to_le_bytes).concat();
    if trailer[..] != expected[..] {
        return Err(RestoreError::Damaged("its parts do not add up to the numbers at its end"));
    }
    let keys: BTreeMap<_, _> = keys.into_iter().collect();
    let sweeper = Sweeper::new(swept).with_garbage(compacted, garbage);
    Ok((Index::new(revs, revision, compacted).with_keys(keys), sweeper))
}

fn read_header(image: &mut dyn Read) -> Result<(i64, i64, i64), RestoreError> {
    let mut header = [0; HEADER];
    image.read_exact(&mut header)?;
    let found: [u8; 8] = header[..8].try_into().expect("eight bytes were asked for");
    if &found != MAGIC {
        return Err(RestoreError::Magic { found });
    }
    let format = u32::from_le_bytes(header[8..12].try_into().expect("four bytes were asked for"));
    if format != FORMAT {
        return Err(RestoreError::Format { found: format });
    }
    let number = |at: usize| {
        i64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes were asked for"))
    };
    let (revision, compact_revision, swept) = (number(12), number(20), number(28));
    if revision < 1 || compact_revision > revision || swept > compact_revision {
        return Err(RestoreError::Meta { revision, compact_revision });
    }
    Ok((revision, compact_revision, swept))
}

fn read_block(image: &mut dyn Read) -> Result<Option<Vec<u8>>, RestoreError> {
    let mut length = [0; 4];
    image.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_BLOCK {
        return Err(RestoreError::Damaged("a block is longer than a block can be"));
    }
    let mut block = Vec::new();
    image.take(u64::from(length)).read_to_end(&mut block)?;
    if block.len() != length as usize {
        return Err(RestoreError::Damaged("it ends in the middle of a block"));
    }
    Ok((length > 0).then_some(block))
}

fn read_keys(
    block: &[u8],
    revision: i64,
    keys: &mut Vec<(Box<[u8]>, KeyHistory)>,
) -> Result<(), RestoreError> {
    let mut fields = Fields { bytes: block };
    let mut key = Vec::new();
    let first = keys.len();
    while !fields.bytes.is_empty() {
        let same = fields.length()?;
        let rest = fields.length()?;
        if same > key.len() {
            return Err(RestoreError::Damaged("a key shares more than the key before it has"));
        }
        key.truncate(same);
        key.extend_from_slice(fields.take(rest)?);
        let history = read_history(&mut fields, revision)?;
        let follows = keys.last().is_none_or(|(last, _)| last[..] < key[..]);
        if !follows {
            return Err(RestoreError::Damaged("keys are not in increasing order"));
        }
        keys.push((key.as_slice().into(), history));
    }
    match keys.len() > first {
        true => Ok(()),
        false => Err(RestoreError::Damaged("a block holds no key")),
    }
}

fn read_history(fields: &mut Fields<'_>, revision: i64) -> Result<KeyHistory, RestoreError> {
    let count = fields.unsigned()?;
    let mut history: Option<KeyHistory> = None;
    for _ in 0..count {
        let version = read_version(fields)?;
        if version.main < 1 || version.main > revision {
            return Err(RestoreError::Damaged("a version lies outside of the revisions"));
        }
        match &mut history {
            None => history = Some(KeyHistory::new(version)),
            Some(known) if known.newest().record() < version.record() => known.push(version),
            Some(_) => return Err(RestoreError::Damaged("versions are not in increasing order")),
        }
    }
    history.ok_or(RestoreError::Damaged("a key has no version"))
}

fn read_version(fields: &mut Fields<'_>) -> Result<Version, RestoreError> {
    let flags = fields.take(1)?[0];
    let main = fields.signed()?;
    let sub = u32::try_from(fields.unsigned()?)
        .map_err(|_| RestoreError::Damaged("the number of a record is out of range"))?;
    match flags {
        1 => Ok(Version::tombstone(main, sub)),
        0 => {
            let create = main.checked_sub(fields.signed()?).filter(|create| *create >= 0);
            let create = create.ok_or(RestoreError::Damaged("a version is older than its key"))?;
            let version = fields.signed()?;
            let lease = unzigzag(fields.unsigned()?);
            Ok(Version { main, create, version, lease, sub, tombstone: false })
        }
        _ => Err(RestoreError::Damaged("a version has unknown flags")),
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RestoreError> {
        if length > self.bytes.len() {
            return Err(RestoreError::Damaged("a block ends in the middle of a field"));
        }
        let (taken, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        Ok(taken)
    }

    fn unsigned(&mut self) -> Result<u64, RestoreError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let part = u64::from(byte & 0x7f);
            if part.checked_shl(shift).is_none_or(|shifted| shifted >> shift != part) {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(RestoreError::Damaged("a number is too long"))
    }

    /// A number that must not be negative.
    fn signed(&mut self) -> Result<i64, RestoreError> {
        i64::try_from(self.unsigned()?).map_err(|_| RestoreError::Damaged("a number is too large"))
    }

    fn length(&mut self) -> Result<usize, RestoreError> {
        usize::try_from(self.unsigned()?)
            .map_err(|_| RestoreError::Damaged("a length is too large"))
    }
}

fn put_unsigned(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}
