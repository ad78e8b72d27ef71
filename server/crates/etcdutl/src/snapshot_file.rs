//! A snapshot file: the bytes of a bbolt file, and usually their SHA-256 behind them.
//!
//! ```text
//! | bbolt file, a multiple of 512 bytes | 32 bytes SHA-256 of the former |
//! ```
//!
//! `etcdctl snapshot save` appends the digest; a `db` file copied out of a data directory has none.
//! Which of both it is shows in the length alone (etcd's `hasChecksum`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use bbolt::{Bbolt, ReadAt, ReadError};
use disk::{Disk, File, OpenMode};
use sha2::{Digest, Sha256};

const DIGEST_BYTES: u64 = 32;
const SECTOR_BYTES: u64 = 512;
/// Bytes read at once while the digest is computed.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The words of Go's `os.Stat`, which scripts know.
    #[error("stat {path}: no such file or directory")]
    Missing { path: String },
    #[error("read {path}: {source}")]
    Io { path: String, source: io::Error },
    #[error(transparent)]
    Bbolt(#[from] ReadError),
    #[error("snapshot missing hash but --skip-hash-check=false")]
    NoDigest,
    /// Go prints digests as lists of numbers.
    #[error("expected sha256 {expected}, got {found}")]
    Digest { expected: String, found: String },
}

/// An open snapshot file.
pub struct SnapshotFile {
    path: String,
    content: Content,
    digest: Option<[u8; DIGEST_BYTES as usize]>,
}

/// The part of the file that is a bbolt file.
#[derive(Clone)]
pub struct Content {
    file: Arc<dyn File>,
    bytes: u64,
}

impl ReadAt for Content {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.bytes => self.file.read_exact_at(buf, offset),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }
}

impl SnapshotFile {
    /// Opens the file; the digest is not checked yet.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, SnapshotError> {
        let name = path.display().to_string();
        let failed = |source| SnapshotError::Io { path: name.clone(), source };
        let file = match disk.open(path, OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::Missing { path: name });
            }
            other => other.map_err(failed)?,
        };
        let length = file.len().map_err(failed)?;
        let mut bytes = length;
        let mut digest = None;
        if length % SECTOR_BYTES == DIGEST_BYTES {
            bytes = length - DIGEST_BYTES;
            let mut stored = [0; DIGEST_BYTES as usize];
            file.read_exact_at(&mut stored, bytes).map_err(failed)?;
            digest = Some(stored);
        }
        Ok(Self { path: name, content: Content { file, bytes }, digest })
    }

    /// Compares the digest.
    ///
    /// # Errors
    /// `NoDigest` for a file without one: whoever copied a `db` file knows and can skip this.
    pub fn verify_digest(&self) -> Result<(), SnapshotError> {
        let Some(stored) = self.digest else { return Err(SnapshotError::NoDigest) };
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = 0;
        while offset < self.content.bytes {
            let length = CHUNK_BYTES.min((self.content.bytes - offset) as usize);
            let part = &mut chunk[..length];
            self.content
                .read_exact_at(part, offset)
                .map_err(|source| SnapshotError::Io { path: self.path.clone(), source })?;
            hasher.update(&part[..]);
            offset += length as u64;
        }
        let found: [u8; DIGEST_BYTES as usize] = hasher.finalize().into();
        if found == stored {
            return Ok(());
        }
        Err(SnapshotError::Digest { expected: numbers(&stored), found: numbers(&found) })
    }

    /// The bbolt file in it.
    pub fn bbolt(&self) -> Result<Bbolt<Content>, SnapshotError> {
        Ok(Bbolt::open(self.content.clone())?)
    }
}

fn numbers(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}
