//! The disk with a stopwatch at the files whose times etcd shows: images, which are its `.snap` files,
//! and snapshots that are being received, which are its `.snap.db` files. Every other file is handed
//! through as it is; the log measures itself.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use disk::{DirEntry, DirLock, Disk, File, OpenMode};
use prometheus::Histogram;

use super::metrics::Metrics;

/// A disk that measures some of its files.
pub struct MeasuredDisk {
    disk: Arc<dyn Disk>,
    metrics: Metrics,
}

impl MeasuredDisk {
    pub fn new(disk: Arc<dyn Disk>, metrics: Metrics) -> Self {
        Self { disk, metrics }
    }

    /// What is measured of a file, if anything: how long it takes to be flushed, and how long until
    /// then it takes to be encoded and written.
    fn meters(&self, path: &Path) -> Option<(Histogram, Option<Histogram>)> {
        let name = path.file_name()?.to_str()?;
        if name.ends_with(".image.tmp") {
            let metrics = &self.metrics;
            return Some((metrics.snap_fsync.clone(), Some(metrics.snap_marshalling.clone())));
        }
        name.starts_with("incoming.snapshot").then(|| (self.metrics.snap_db_fsync.clone(), None))
    }
}

impl Disk for MeasuredDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn set_private(&self, path: &Path) -> io::Result<()> {
        self.disk.set_private(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(path, mode)?;
        Ok(match self.meters(path) {
            Some((flush, encode)) => {
                Arc::new(MeasuredFile { file, opened: Instant::now(), flush, encode })
            }
            None => file,
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DirLock> {
        self.disk.lock(path)
    }

    fn available_space(&self, path: &Path) -> io::Result<u64> {
        self.disk.available_space(path)
    }
}

struct MeasuredFile {
    file: Arc<dyn File>,
    opened: Instant,
    flush: Histogram,
    encode: Option<Histogram>,
}

impl MeasuredFile {
    fn flushed(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let began = Instant::now();
        if let Some(encode) = &self.encode {
            encode.observe((began - self.opened).as_secs_f64());
        }
        flush()?;
        self.flush.observe(began.elapsed().as_secs_f64());
        Ok(())
    }
}

impl File for MeasuredFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn write_vectored_at(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_vectored_at(slices, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.flushed(|| self.file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.flushed(|| self.file.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use disk::SimDisk;
    use prometheus::Registry;

    use super::*;

    #[test]
    fn images_and_received_snapshots_are_measured_and_nothing_else() {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let measured = MeasuredDisk::new(Arc::new(SimDisk::new(1)), metrics.clone());
        let counts = || {
            [&metrics.snap_fsync, &metrics.snap_marshalling, &metrics.snap_db_fsync]
                .map(Histogram::get_sample_count)
        };
        measured.create_dir_all(Path::new("d")).unwrap();
        for (name, expected) in [
            ("00000000000000000001.image.tmp", [1, 1, 0]),
            ("incoming.snapshot3", [1, 1, 1]),
            ("identity.json.tmp", [1, 1, 1]),
        ] {
            let file = measured.open(&Path::new("d").join(name), OpenMode::Create).unwrap();
            file.write_all_at(b"bytes", 0).unwrap();
            file.sync_data().unwrap();
            assert_eq!(file.len().unwrap(), 5);
            assert_eq!(counts(), expected, "{name}");
        }
    }
}
