//! Carrying the state to a member that lacks too much of the log.
//!
//! The sender asks which records the receiver has, and streams the machine's snapshot at its applied
//! index without those; nothing is copied first, so apply goes on meanwhile. The receiver writes the
//! stream to a file, checks its digest, and only then hands it to openraft, which has it installed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disk::File;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use proto::peerpb;
use proto::peerpb::snapshot_chunk::Part;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use types::{Planted, Revision};

use crate::raft_types::{CommittedLeaderId, Node};
use crate::reception::next_chunk;
use crate::store::IncomingFile;

/// The version of what the chunks carry: the machine's snapshot stream with all records.
const ALL_RECORDS: u32 = 1;

/// The same without those that the receiver has said to have.
const MISSED_RECORDS: u32 = 2;

/// The size of one chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait between the thread that reads the state and the network.
const CHUNKS_WAITING_MAX: usize = 8;

/// How many received bytes may wait to be made durable: what the last flush, whose end the sender waits
/// for in silence, has left to do.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// How much is received between two looks at the free space.
const LOOK_BYTES: u64 = 4 << 20;

pub(crate) type Snapshot = openraft::storage::Snapshot<CommittedLeaderId, u64, Node, SnapshotData>;

/// Where the bytes of a snapshot are.
pub(crate) enum SnapshotData {
    /// In this member's image; a snapshot for another member is taken from the live state instead.
    Saved,
    /// In this member's live state.
    Live(Box<machine::SnapshotJob>, Blocking),
    /// In a file that was received and checked, without the records up to a revision, which are in this
    /// member's live state; 0 for none.
    Received(IncomingFile, Revision),
}

/// The format of a snapshot without the records up to `held`.
pub(crate) fn format(held: Revision) -> u32 {
    if held.0 > 0 { MISSED_RECORDS } else { ALL_RECORDS }
}

/// Up to which revision a snapshot leaves records out.
///
/// # Errors
/// Its format is unknown.
pub(crate) fn left_out(header: &peerpb::SnapshotHeader) -> Result<Revision, String> {
    match header.format {
        ALL_RECORDS => Ok(Revision(0)),
        MISSED_RECORDS => Ok(Revision(header.records_above)),
        other => Err(format!("snapshot format {other} is not understood")),
    }
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

fn write_chunks(
    data: SnapshotData,
    held: Revision,
    pass: impl FnMut(Part) -> io::Result<()>,
) -> io::Result<()> {
    let SnapshotData::Live(job, _) = data else {
        return Err(io::Error::other("only the live state can be sent"));
    };
    let mut writer = ChunkWriter::new(pass);
    job.write(&mut writer, held).map_err(|error| io::Error::other(error.to_string()))?;
    writer.finish()
}

/// The chunks of a snapshot. A failure while reading the state ends the stream without its trailer,
/// so that the receiver discards what it has.
pub(crate) fn send(
    header: peerpb::SnapshotHeader,
    data: SnapshotData,
) -> BoxStream<'static, peerpb::SnapshotChunk> {
    let chunk = |part| peerpb::SnapshotChunk { part: Some(part) };
    let held = Revision(header.records_above);
    let first = stream::once(async move { chunk(Part::Header(header)) });
    let inline = matches!(data, SnapshotData::Live(_, Blocking::Inline));
    if inline {
        let mut parts = Vec::new();
        let written = write_chunks(data, held, |part| {
            parts.push(part);
            Ok(())
        });
        report(written);
        return first.chain(stream::iter(parts.into_iter().map(chunk))).boxed();
    }
    let (parts, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    tokio::task::spawn_blocking(move || {
        report(write_chunks(data, held, |part| {
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

/// A snapshot as far as it has come. Whoever drops it removes the file.
struct Incoming {
    file: Arc<dyn File>,
    at: IncomingFile,
    digest: Sha256,
    bytes: u64,
    /// How many of them are durable.
    synced: u64,
    /// How many there were when the free space was looked at.
    looked_at: u64,
}

impl Incoming {
    fn create(at: IncomingFile) -> io::Result<Self> {
        let file = at.create()?;
        Ok(Self { file, at, digest: Sha256::new(), bytes: 0, synced: 0, looked_at: 0 })
    }

    fn write(mut self, bytes: &[u8]) -> io::Result<Self> {
        self.digest.update(bytes);
        self.file.write_all_at(bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        if self.bytes - self.looked_at >= LOOK_BYTES {
            self.at.require_room(self.bytes)?;
            self.looked_at = self.bytes;
        }
        if self.bytes - self.synced >= UNSYNCED_BYTES_MAX {
            self.file.sync_data()?;
            self.synced = self.bytes;
        }
        Ok(self)
    }

    fn finish(self, digest: &[u8]) -> io::Result<Received> {
        if digest != self.digest.finalize().as_slice() {
            return Err(io::Error::other("the snapshot does not match its digest"));
        }
        self.file.sync_data()?;
        Ok(Received { file: self.at, bytes: self.bytes })
    }
}

/// A snapshot that came whole.
pub(crate) struct Received {
    pub(crate) file: IncomingFile,
    pub(crate) bytes: u64,
}

/// Receives the chunks after the header into a file and checks their digest. The file travels to where
/// work may block and back with every chunk, so that a slow disk never stops Raft, and a call that is
/// given up meanwhile leaves its removal there too.
///
/// # Errors
/// When the stream ends early, goes silent, is malformed or does not match its digest; the file is
/// removed then.
pub(crate) async fn receive(
    at: IncomingFile,
    blocking: Blocking,
    chunks: &mut (impl futures_util::Stream<Item = peerpb::SnapshotChunk> + Unpin),
    silence_max: Duration,
) -> io::Result<Received> {
    let mut incoming = blocking.run(move || Incoming::create(at)).await?;
    while let Some(chunk) = next_chunk(chunks, silence_max).await? {
        match chunk.part {
            Some(Part::Data(bytes)) => {
                incoming = blocking.run(move || incoming.write(&bytes)).await?;
            }
            Some(Part::Trailer(trailer)) => {
                if next_chunk(chunks, silence_max).await?.is_some() {
                    return Err(io::Error::other("the snapshot stream goes on after its trailer"));
                }
                return blocking.run(move || incoming.finish(&trailer.digest)).await;
            }
            Some(Part::Header(_)) | None => {
                return Err(io::Error::other("an unexpected part in the snapshot stream"));
            }
        }
    }
    if Planted::PartialSnapshot.is_made() {
        return Ok(Received { file: incoming.at, bytes: incoming.bytes });
    }
    Err(io::Error::other("the snapshot stream ended before its trailer"))
}
