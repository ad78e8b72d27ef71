//! The write-ahead log of Go etcd, which `etcdutl import` reads.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use disk::{Disk, OpenMode, SimDisk};
use etcdutl::import::GoDataDir;
use tempfile::TempDir;

const LOG: &str = "/wal";

/// Reads the bytes as the files of a log, and as the content of one whose sums are right: none that was
/// damaged by chance gets beyond those.
pub fn go_wal(input: &[u8]) {
    let half = input.len() / 2;
    read(&[input]);
    read(&[input, input]);
    read(&[&input[..half], &input[half..]]);
    read(&[&with_sums(input)]);
}

/// Takes over the requests of a log, above any index that a backend may stand at.
fn read(files: &[&[u8]]) {
    static BACKEND: OnceLock<TempDir> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory for an empty backend");
        let snap = directory.path().join("member/snap");
        fs::create_dir_all(&snap).and_then(|()| fs::write(snap.join("db"), "")).expect("a backend");
        directory
    });
    let disk = SimDisk::new(0);
    let log = Path::new(LOG);
    disk.create_dir_all(log).expect("the simulated disk takes everything");
    for (sequence, bytes) in files.iter().enumerate() {
        let path = log.join(format!("{sequence:016x}-0000000000000000.wal"));
        let file = disk.open(&path, OpenMode::Create);
        file.and_then(|file| file.write_all_at(bytes, 0)).expect("as above");
    }
    let from = GoDataDir::open(backend.path(), Some(log)).expect("nobody else holds the backend");
    for consistent_index in [0, 3, u64::MAX - 1, u64::MAX] {
        let _ = from.requests_above(&disk, consistent_index);
    }
}

/// A log of records with right sums. Of each piece of the input the first byte is the kind of a record, the
/// second the length of its data.
fn with_sums(input: &[u8]) -> Vec<u8> {
    let (mut log, mut crc, mut rest) = (Vec::new(), 0, input);
    while let [kind, length, after @ ..] = rest {
        let (data, next) = after.split_at(after.len().min(usize::from(*length)));
        rest = next;
        crc = crc32c::crc32c_append(crc, data);
        // A `walpb.Record`: kind, sum, data.
        let mut record = vec![0x08, kind % 8, 0x10];
        varint(crc, &mut record);
        record.push(0x1a);
        varint(data.len() as u32, &mut record);
        record.extend(data);
        let padding = (8 - record.len() % 8) % 8;
        let mark = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
        log.extend((record.len() as u64 | mark).to_le_bytes());
        log.extend(record);
        log.resize(log.len() + padding, 0);
    }
    log
}

fn varint(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
