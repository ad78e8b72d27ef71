//! Reading a file from its beginning, through the seam.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::{Disk, File, OpenMode};

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// A sequential, buffered reader.
pub struct FileReader {
    file: Arc<dyn File>,
    offset: u64,
    buffer: Vec<u8>,
    consumed: usize,
}

impl FileReader {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// When there is no such file or it cannot be opened.
    pub fn open(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::Read)?;
        Ok(Self { file, offset: 0, buffer: Vec::new(), consumed: 0 })
    }

    fn refill(&mut self) -> io::Result<()> {
        self.buffer.resize(BUFFER_BYTES, 0);
        let read = self.file.read_at(&mut self.buffer, self.offset)?;
        self.buffer.truncate(read);
        self.offset += read as u64;
        self.consumed = 0;
        Ok(())
    }
}

impl Read for FileReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.consumed == self.buffer.len() {
            self.refill()?;
        }
        let available = &self.buffer[self.consumed..];
        let count = available.len().min(target.len());
        target[..count].copy_from_slice(&available[..count]);
        self.consumed += count;
        Ok(count)
    }
}
