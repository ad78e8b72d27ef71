//! Go etcd's write-ahead log, read to its end; nothing here writes one.
//!
//! ```text
//! member/wal/<sequence>-<first index>.wal      both 16 hexadecimal digits; sequences without gaps
//! record: | length u64 LE | walpb.Record | padding |
//!         the lower 56 bits of the length count the record; if the top bit is set, bits 56 to 58
//!         count the padding to 8 bytes
//! walpb.Record: type, running CRC-32C of all data, data
//!   1 metadata, 2 raftpb.Entry, 3 raftpb.HardState, 4 the running sum so far, 5 snapshot mark
//! ```
//!
//! An entry replaces those at its index and above that came before it. A file is preallocated with
//! zeros, so a length of zero ends it. The last record of the last file may be torn by a crash: it was
//! never acknowledged and ends the log. Any other record that does not match its sum is damage.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use disk::{Disk, read_file};
use prost::Message;

const RECORD_ENTRY: i64 = 2;
const RECORD_STATE: i64 = 3;
const RECORD_CRC: i64 = 4;

const LENGTH_BYTES: usize = 8;
const SECTOR_BYTES: usize = 512;
/// Files are cut at 64 MiB, after the record that went beyond it.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: there are no log files in it", .0.display())]
    Empty(PathBuf),
    #[error("{}: the file with sequence {missing} is missing", path.display())]
    Gap { path: PathBuf, missing: u64 },
    #[error("{} is damaged at byte {offset}: {detail}", path.display())]
    Damaged { path: PathBuf, offset: usize, detail: String },
}

/// `walpb.Record`
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// `raftpb.Entry`
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// 0 for a request; others change the configuration of Raft.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// An `InternalRaftRequest`; empty in the first entry of a leader.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// `raftpb.HardState`
#[derive(Clone, PartialEq, Message)]
struct HardState {
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// What the log holds beyond a state.
#[derive(Debug, Default)]
pub struct Tail {
    /// Entries above the index that was asked for, by index, committed or not.
    pub entries: BTreeMap<u64, Entry>,
    /// The highest index that this member knew to be committed.
    pub commit: u64,
}

/// Reads all files of a log and keeps the entries above an index.
pub fn read_tail(disk: &dyn Disk, directory: &Path, above: u64) -> Result<Tail, WalError> {
    let names = names(disk, directory)?;
    let mut reader = Reader { above, tail: Tail::default(), crc: 0 };
    for (number, name) in names.iter().enumerate() {
        let path = directory.join(name);
        let bytes = read_file(disk, &path, FILE_BYTES_MAX)
            .map_err(|source| WalError::Io { path: path.clone(), source })?;
        let last = number + 1 == names.len();
        reader.file(Bytes::from(bytes), last).map_err(|(offset, detail)| WalError::Damaged {
            path,
            offset,
            detail,
        })?;
    }
    Ok(reader.tail)
}

/// The files in order; the temporary one, which is only preallocated, is not among them.
fn names(disk: &dyn Disk, directory: &Path) -> Result<Vec<String>, WalError> {
    let at = |source| WalError::Io { path: directory.to_owned(), source };
    let sequence = |name: &str| {
        let digits = name.strip_suffix(".wal")?.split_once('-')?.0;
        u64::from_str_radix(digits, 16).ok()
    };
    let entries = disk.list(directory).map_err(at)?;
    let mut files: Vec<(u64, String)> = entries
        .into_iter()
        .filter_map(|entry| Some((sequence(&entry.name)?, entry.name)))
        .collect();
    files.sort();
    let Some((first, _)) = files.first() else { return Err(WalError::Empty(directory.to_owned())) };
    for (expected, (found, _)) in (*first..).zip(&files) {
        if *found != expected {
            return Err(WalError::Gap { path: directory.to_owned(), missing: expected });
        }
    }
    Ok(files.into_iter().map(|(_, name)| name).collect())
}

struct Reader {
    above: u64,
    tail: Tail,
    /// The running sum; zero before the first record says where it stands.
    crc: u32,
}

type Fault = (usize, String);

impl Reader {
    fn file(&mut self, bytes: Bytes, last: bool) -> Result<(), Fault> {
        let mut offset = 0;
        while let Some((data, padding)) = frame(&bytes, offset).map_err(|it| (offset, it))? {
            let begin = offset + LENGTH_BYTES;
            let end = begin.checked_add(data).filter(|end| end + padding <= bytes.len());
            let Some(end) = end else {
                return if last { Ok(()) } else { Err((offset, "a record is cut off".to_owned())) };
            };
            if let Err(detail) = self.record(bytes.slice(begin..end)) {
                return match last && is_torn(&bytes, begin, end + padding) {
                    true => Ok(()),
                    false => Err((offset, detail)),
                };
            }
            offset = end + padding;
        }
        Ok(())
    }

    fn record(&mut self, bytes: Bytes) -> Result<(), String> {
        let record = Record::decode(bytes).map_err(|error| error.to_string())?;
        if record.kind == RECORD_CRC {
            if self.crc != 0 && self.crc != record.crc {
                return Err("the file does not continue the one before it".to_owned());
            }
            self.crc = record.crc;
            return Ok(());
        }
        let crc = crc32c::crc32c_append(self.crc, &record.data);
        if crc != record.crc {
            return Err("a record does not match its checksum".to_owned());
        }
        self.crc = crc;
        match record.kind {
            RECORD_ENTRY => {
                let entry = Entry::decode(record.data).map_err(|error| error.to_string())?;
                // A new leader has replaced what came after.
                self.tail.entries.split_off(&entry.index);
                if entry.index > self.above {
                    self.tail.entries.insert(entry.index, entry);
                }
            }
            RECORD_STATE => {
                let state = HardState::decode(record.data).map_err(|error| error.to_string())?;
                self.tail.commit = state.commit;
            }
            // Metadata and marks of snapshots say nothing about the state.
            _ => {}
        }
        Ok(())
    }
}

/// The lengths of the record and its padding; nothing at the end of what was written.
fn frame(bytes: &[u8], offset: usize) -> Result<Option<(usize, usize)>, String> {
    let Some(length) = bytes.get(offset..offset + LENGTH_BYTES) else { return Ok(None) };
    let length = u64::from_le_bytes(length.try_into().map_err(|_| "no length".to_owned())?);
    if length == 0 {
        return Ok(None);
    }
    let data = usize::try_from(length & !(0xff << 56)).map_err(|error| error.to_string())?;
    let padding = if length >> 63 == 1 { (length >> 56 & 7) as usize } else { 0 };
    Ok(Some((data, padding)))
}

/// Whether a part of the record was never written: the disk writes sectors, and one is all zero.
fn is_torn(bytes: &[u8], begin: usize, end: usize) -> bool {
    let mut from = begin;
    while from < end {
        let until = (from / SECTOR_BYTES + 1) * SECTOR_BYTES;
        if bytes[from..until.min(end)].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = until;
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use disk::{OpenMode, SimDisk};

    use super::*;

    /// A log of one file, as etcd writes it.
    #[derive(Default)]
    pub(crate) struct Writer {
        bytes: Vec<u8>,
        crc: u32,
    }

    impl Writer {
        fn record(&mut self, kind: i64, data: Vec<u8>) -> &mut Self {
            self.crc = crc32c::crc32c_append(self.crc, &data);
            let record = Record { kind, crc: self.crc, data: data.into() }.encode_to_vec();
            let padding = (8 - record.len() % 8) % 8;
            let mark = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
            self.bytes.extend((record.len() as u64 | mark).to_le_bytes());
            self.bytes.extend(record);
            self.bytes.resize(self.bytes.len() + padding, 0);
            self
        }

        fn entry(&mut self, term: u64, index: u64) -> &mut Self {
            self.request(term, index, vec![b'x'; 600])
        }

        pub(crate) fn request(&mut self, term: u64, index: u64, data: Vec<u8>) -> &mut Self {
            let entry = Entry { kind: 0, term, index, data: data.into() };
            self.record(RECORD_ENTRY, entry.encode_to_vec())
        }

        pub(crate) fn commit(&mut self, commit: u64) -> &mut Self {
            self.record(RECORD_STATE, HardState { commit }.encode_to_vec())
        }

        /// A disk with the log in a directory.
        pub(crate) fn disk(&self, directory: &Path) -> SimDisk {
            disk_with(&self.bytes, directory)
        }
    }

    fn disk_with(bytes: &[u8], directory: &Path) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir_all(directory).unwrap();
        let path = directory.join("0000000000000000-0000000000000000.wal");
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len() + 4096, 0);
        disk.open(&path, OpenMode::Create).unwrap().write_all_at(&padded, 0).unwrap();
        disk
    }

    fn read(bytes: &[u8], above: u64) -> Result<Tail, WalError> {
        let directory = Path::new("/wal");
        read_tail(&disk_with(bytes, directory), directory, above)
    }

    fn places(tail: &Tail) -> Vec<(u64, u64)> {
        tail.entries.values().map(|entry| (entry.term, entry.index)).collect()
    }

    #[test]
    fn a_later_entry_replaces_what_a_lost_leader_had_written() {
        let mut writer = Writer::default();
        writer.entry(1, 1).entry(1, 2).entry(1, 3).commit(1).entry(2, 2).commit(2);
        let tail = read(&writer.bytes, 1).unwrap();
        assert_eq!(places(&tail), [(2, 2)]);
        assert_eq!(tail.commit, 2);
    }

    #[test]
    fn a_torn_end_ends_the_log_and_other_damage_does_not() {
        let mut writer = Writer::default();
        writer.entry(1, 1).commit(1);
        let whole = writer.bytes.len();
        writer.entry(1, 2);
        let mut torn = writer.bytes.clone();
        let sector = (whole / SECTOR_BYTES + 1) * SECTOR_BYTES;
        torn[sector..].fill(0);
        assert_eq!(places(&read(&torn, 0).unwrap()), [(1, 1)]);
        let mut flipped = writer.bytes.clone();
        flipped[100] ^= 1;
        assert!(matches!(read(&flipped, 0), Err(WalError::Damaged { offset: 0, .. })));
        for length in 0..writer.bytes.len() {
            // Cut anywhere: no panic, and never an entry that was not whole but for its padding.
            let entries = read(&writer.bytes[..length], 0).map_or(0, |tail| tail.entries.len());
            assert!(entries <= 1 || length + 8 > writer.bytes.len(), "{length}");
        }
    }
}
