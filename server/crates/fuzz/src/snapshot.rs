//! Snapshot files: etcd's backend format, from whoever made it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, OpenMode, SimDisk};
use etcdutl::hash_kv::hash_kv;
use etcdutl::restore::{Restore, restore};
use etcdutl::snapshot_file::SnapshotFile;
use etcdutl::status::status;

/// Reads the bytes in each way that `etcdutl` reads a snapshot. The last of them, which are of the digest
/// in a file that is whole, are also the numbers that its flags give.
///
/// # Panics
/// When a file that is refused leaves a data directory behind.
pub fn snapshot(input: &[u8]) {
    let numbers = input.last_chunk().map_or([0; 2], |last: &[u8; 16]| numbers(last));
    let [hash_revision, bump_revision] = numbers;
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(0));
    let path = Path::new("/snapshot.db");
    let file = disk.open(path, OpenMode::Create).and_then(|file| file.write_all_at(input, 0));
    file.expect("the simulated disk takes everything");
    if let Ok(file) = SnapshotFile::open(&*disk, path) {
        let _ = file.verify_digest();
        if let Ok(content) = file.bbolt() {
            let _ = content.check();
            let _ = status(&content);
            let _ = hash_kv(content, hash_revision.cast_signed());
        }
    }
    let order = Restore {
        snapshot: path.to_owned(),
        name: "m1".to_owned(),
        data_dir: PathBuf::from("/m1.etcd"),
        wal_dir: None,
        initial_cluster: "m1=http://127.0.0.1:2380".to_owned(),
        initial_cluster_token: "token".to_owned(),
        advertise_peer_urls: "http://127.0.0.1:2380".to_owned(),
        // A digest that must fit would keep out every mutation.
        skip_hash_check: true,
        bump_revision,
        drop_auth: false,
    };
    let restored = restore(&disk, &order);
    let left = disk.list(&order.data_dir).is_ok_and(|entries| !entries.is_empty());
    assert!(restored.is_ok() || !left, "half a data directory after {:?}", restored.err());
}

/// Two numbers, each as often small as large, and sometimes 0.
fn numbers(bytes: &[u8; 16]) -> [u64; 2] {
    let number = |half: &[u8]| {
        let (shift, rest) = half.split_first().unwrap_or((&0, &[]));
        let number =
            rest.iter().fold(u64::from(*shift), |number, byte| number << 8 | u64::from(*byte));
        // The first byte, which also says how large it gets, stands at its top.
        number >> (shift % 64)
    };
    let (one, other) = bytes.split_at(8);
    [number(one), number(other)]
}
