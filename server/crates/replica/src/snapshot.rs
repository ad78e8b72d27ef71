//! Carrying a whole state to a member that lacks too much of the log.
//!
//! The sender streams the machine's snapshot at its applied index; nothing is copied first, so apply
//! goes on meanwhile. The receiver writes the stream to a file, checks its digest, and only then
//! hands it to openraft, which has it installed.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disk::Disk;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use proto::peerpb;
use proto::peerpb::snapshot_chunk::Part;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use types::Planted;

use crate::raft_types::{CommittedLeaderId, Node};
use crate::reception::next_chunk;
use crate::store::IncomingFile;

/// The version of what the chunks carry: the machine's snapshot stream.
pub(crate) const STREAM_FORMAT: u32 = 1;

/// The size of one chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait between the thread that reads the state and the network.
const CHUNKS_WAITING_MAX: usize = 8;

pub(crate) type Snapshot = openraft::storage::Snapshot<CommittedLeaderId, u64, Node, SnapshotData>;

/// Where the bytes of a snapshot are.
pub(crate) enum SnapshotData {
    /// In this member's image; a snapshot for another member is taken from the live state instead.
    Saved,
    /// In this member's live state.
    Live(Box<machine::SnapshotJob>, Blocking),
    /// In a file that was received and checked.
    Received(IncomingFile),
}

/// Where work runs that reads or writes much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// On threads for such work: the server.
    Threads,
    /// In place: the simulator, which has one thread and no real disk.
    Inline,
}

impl Blocking {
    /// Runs `work` and returns its result; never blocks a runtime's thread in the server.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Blocking::Inline => work(),
            Blocking::Threads => {
                tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
            }
        }
    }
}

/// Cuts what is written into chunks and passes them on.
struct ChunkWriter<F> {
    buffer: Vec<u8>,
    digest: Sha256,
    pass: F,
}

impl<F: FnMut(Part) -> io::Result<()>> ChunkWriter<F> {
    fn new(pass: F) -> Self {
        Self { buffer: Vec::with_capacity(CHUNK_BYTES), digest: Sha256::new(), pass }
    }

    fn pass_buffer(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.digest.update(&full);
        (self.pass)(Part::Data(Bytes::from(full)))
    }

    fn finish(mut self) -> io::Result<()> {
        self.pass_buffer()?;
        let digest = Bytes::copy_from_slice(&self.digest.finalize());
        (self.pass)(Part::Trailer(peerpb::SnapshotTrailer { digest }))
    }
}

impl<F: FnMut(Part) -> io::Result<()>> Write for ChunkWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (CHUNK_BYTES - self.buffer.len()).min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..room]);
        if self.buffer.len() == CHUNK_BYTES {
            self.pass_buffer()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_chunks(data: SnapshotData, pass: impl FnMut(Part) -> io::Result<()>) -> io::Result<()> {
    let SnapshotData::Live(job, _) = data else {
        return Err(io::Error::other("only the live state can be sent"));
    };
    let mut writer = ChunkWriter::new(pass);
    job.write(&mut writer).map_err(|error| io::Error::other(error.to_string()))?;
    writer.finish()
}

/// The chunks of a snapshot. A failure while reading the state ends the stream without its trailer,
/// so that the receiver discards what it has.
pub(crate) fn send(
    header: peerpb::SnapshotHeader,
    data: SnapshotData,
) -> BoxStream<'static, peerpb::SnapshotChunk> {
    let chunk = |part| peerpb::SnapshotChunk { part: Some(part) };
    let first = stream::once(async move { chunk(Part::Header(header)) });
    let inline = matches!(data, SnapshotData::Live(_, Blocking::Inline));
    if inline {
        let mut parts = Vec::new();
        let written = write_chunks(data, |part| {
            parts.push(part);
            Ok(())
        });
        report(written);
        return first.chain(stream::iter(parts.into_iter().map(chunk))).boxed();
    }
    let (parts, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    tokio::task::spawn_blocking(move || {
        report(write_chunks(data, |part| {
            parts.blocking_send(part).map_err(|_| io::Error::other("the receiver has gone"))
        }));
    });
    let rest = stream::unfold(waiting, |mut waiting| async move {
        waiting.recv().await.map(|part| (part, waiting))
    });
    first.chain(rest.map(chunk)).boxed()
}

fn report(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "sending a snapshot ended early");
    }
}

/// Receives the chunks after the header into a file and checks their digest.
///
/// # Errors
/// When the stream ends early, goes silent, is malformed or does not match its digest; the file is
/// removed then.
/// The answer is the file's length.
pub(crate) async fn receive(
    disk: &Arc<dyn Disk>,
    path: &Path,
    chunks: &mut (impl futures_util::Stream<Item = peerpb::SnapshotChunk> + Unpin),
    silence_max: Duration,
) -> io::Result<u64> {
    let result = receive_into(disk, path, chunks, silence_max).await;
    if result.is_err() && disk.exists(path)? {
        disk.remove_file(path)?;
    }
    result
}

async fn receive_into(
    disk: &Arc<dyn Disk>,
    path: &Path,
    chunks: &mut (impl futures_util::Stream<Item = peerpb::SnapshotChunk> + Unpin),
    silence_max: Duration,
) -> io::Result<u64> {
    if disk.exists(path)? {
        disk.remove_file(path)?;
    }
    let file = disk.open(path, disk::OpenMode::Create)?;
    let mut digest = Sha256::new();
    let mut offset = 0;
    while let Some(chunk) = next_chunk(chunks, silence_max).await? {
        match chunk.part {
            Some(Part::Data(bytes)) => {
                digest.update(&bytes);
                file.write_all_at(&bytes, offset)?;
                offset += bytes.len() as u64;
            }
            Some(Part::Trailer(trailer)) => {
                if trailer.digest.as_ref() != digest.finalize().as_slice() {
                    return Err(io::Error::other("the snapshot does not match its digest"));
                }
                file.sync_data()?;
                return Ok(offset);
            }
            Some(Part::Header(_)) | None => {
                return Err(io::Error::other("an unexpected part in the snapshot stream"));
            }
        }
    }
    if Planted::PartialSnapshot.is_made() {
        return Ok(offset);
    }
    Err(io::Error::other("the snapshot stream ended before its trailer"))
}
