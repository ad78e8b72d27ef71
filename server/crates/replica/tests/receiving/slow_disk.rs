//! A disk that takes as long as it is told to over a snapshot that arrives.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use disk::{DirEntry, DirLock, Disk, File, OpenMode, SimDisk};
use tokio::sync::mpsc::UnboundedSender;

/// An operation that nobody lets go fails in the end, so that a test that holds up its own thread does.
const HELD_MAX: Duration = Duration::from_secs(30);

/// Where operations wait.
struct Gate {
    begun: UnboundedSender<&'static str>,
    ends: Mutex<mpsc::Receiver<io::Result<()>>>,
}

impl Gate {
    /// Says which operation has begun, and waits for what comes of it.
    fn pass(&self, operation: &'static str) -> io::Result<()> {
        self.begun.send(operation).map_err(io::Error::other)?;
        self.ends.lock().unwrap().recv_timeout(HELD_MAX).map_err(io::Error::other)?
    }
}

/// The disk; everything but incoming snapshots is as fast as ever.
pub(super) struct SlowDisk {
    disk: SimDisk,
    gate: Arc<Gate>,
}

impl SlowDisk {
    /// `begun` hears of every write and flush of a snapshot, which ends when and as `ends` says.
    pub(super) fn new(
        disk: SimDisk,
        begun: UnboundedSender<&'static str>,
        ends: mpsc::Receiver<io::Result<()>>,
    ) -> Self {
        Self { disk, gate: Arc::new(Gate { begun, ends: Mutex::new(ends) }) }
    }
}

impl Disk for SlowDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn set_private(&self, path: &Path) -> io::Result<()> {
        self.disk.set_private(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = self.disk.open(path, mode)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.starts_with("incoming") {
            true => Ok(Arc::new(SlowFile { file, gate: self.gate.clone() })),
            false => Ok(file),
        }
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

struct SlowFile {
    file: Arc<dyn File>,
    gate: Arc<Gate>,
}

impl File for SlowFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass("write")?;
        self.file.write_all_at(buf, offset)
    }
    fn write_vectored_at(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.gate.pass("write")?;
        self.file.write_vectored_at(slices, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.pass("write")?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass("flush")?;
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.gate.pass("flush")?;
        self.file.sync_all()
    }
}
