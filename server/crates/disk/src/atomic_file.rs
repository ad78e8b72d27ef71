//! A file that is either the old one or the whole new one, whenever the power fails.
//!
//! ```text
//! create name.tmp → write → fsync name.tmp → rename to name → fsync the directory
//! ```
//!
//! The file's fsync comes before the rename, or the name could appear over empty bytes; the
//! directory's comes after, or the name could vanish again. A leftover `name.tmp` is only ever the
//! remains of a crash. The next attempt at the same name overwrites it; who gives each file another name
//! has to remove it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Disk, File, OpenMode};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes `bytes` under `name` in `directory`, replacing what was there in one step.
pub fn write_file_atomically(
    disk: &dyn Disk,
    directory: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let mut file = AtomicFile::create(disk, directory, name)?;
    file.write_all(bytes)?;
    file.commit()
}

/// The streaming form: bytes are written through [`Write`], and the file appears under its name
/// only with [`AtomicFile::commit`]. Dropped without it, the target stays as it was.
pub struct AtomicFile<'a> {
    disk: &'a dyn Disk,
    directory: &'a Path,
    target: PathBuf,
    temporary: PathBuf,
    file: Arc<dyn File>,
    buffer: Vec<u8>,
    written: u64,
    committed: bool,
}

impl<'a> AtomicFile<'a> {
    /// Opens the temporary file `name.tmp` beside the target.
    pub fn create(disk: &'a dyn Disk, directory: &'a Path, name: &str) -> io::Result<Self> {
        let temporary = directory.join(format!("{name}.tmp"));
        let file = disk.open(&temporary, OpenMode::CreateOrOpen)?;
        file.set_len(0)?;
        Ok(Self {
            disk,
            directory,
            target: directory.join(name),
            temporary,
            file,
            buffer: Vec::new(),
            written: 0,
            committed: false,
        })
    }

    /// The bytes given so far.
    pub fn bytes_written(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Makes the file durable under its name.
    ///
    /// # Errors
    /// After an error before the rename the old file is intact. After one in the last step, the
    /// sync of the directory, either file may be there after a power loss: treat it as fatal.
    pub fn commit(mut self) -> io::Result<()> {
        self.write_buffer()?;
        self.file.sync_all()?;
        self.disk.rename(&self.temporary, &self.target)?;
        self.committed = true;
        self.disk.sync_dir(self.directory)
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for AtomicFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && bytes.len() >= BUFFER_BYTES {
            self.file.write_all_at(bytes, self.written)?;
            self.written += bytes.len() as u64;
            return Ok(bytes.len());
        }
        let room = BUFFER_BYTES.saturating_sub(self.buffer.len());
        let taken = &bytes[..bytes.len().min(room)];
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() == BUFFER_BYTES {
            self.write_buffer()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_buffer()
    }
}

impl Drop for AtomicFile<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: a leftover is harmless and overwritten by the next attempt, but on a
            // full disk its space is wanted back now.
            let _ = self.disk.remove_file(&self.temporary);
        }
    }
}
