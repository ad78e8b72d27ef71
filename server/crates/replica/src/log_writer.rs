//! The one writer of the log: takes whatever waits, appends it, syncs once, and only then tells.
//!
//! It runs on a thread of its own, so that an fdatasync never stops an election timer; in a
//! simulation it is a task like any other, with a delay in place of the device's. Group commit
//! follows from the shape of the loop: while one flush is under way, the next batch gathers.
//!
//! Invariant: completions are told in the order of the operations and only after the fdatasync that
//! covers them. After a failed write or flush nothing more is written, every further operation is
//! answered with the error, and openraft ends, which ends the process (a page that failed to reach
//! the disk may be dropped from the cache, so a second fsync proves nothing).
//!
//! The writer ends when it is told to, not when nobody can ask anything of it any more: openraft's
//! replication tasks read the log through the same handle that writes it, outlive openraft's own end,
//! and may wait for a peer for as long as an election takes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::entry::RaftEntry;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use types::{LogIndex, Planted};
use wal::Wal;

use crate::codec;
use crate::limits::NO_SPACE_PAUSE;
use crate::log_store::{Shared, WriteOperation};
use crate::metrics::LogMetrics;
use crate::raft_types::{Entry, TypeConfig, index_of, term_of};

/// How many operations one flush covers at most.
const GROUP_OPERATIONS_MAX: usize = 1024;

/// A flush that takes longer is worth a line in the log, as in etcd (`storage/wal`): what waits for it
/// is late, and elections come of it.
const SYNC_SLOW: Duration = Duration::from_secs(1);

/// How long the log waits before it uses the pause.
const IDLE: Duration = Duration::from_millis(20);

/// Where the log writer runs.
pub enum LogWriterPlacement {
    /// On a thread of its own: the server.
    OwnThread,
    /// As a task beside the others, each flush taking the time the function says: the simulator.
    Task(Box<dyn FnMut() -> Duration + Send>),
}

pub(crate) struct LogWriter {
    wal: Wal,
    shared: Arc<Shared>,
    operations: mpsc::Receiver<WriteOperation>,
    metrics: LogMetrics,
    stage: watch::Receiver<Stage>,
}

/// How far the member is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Runs,
    /// openraft is ending and may wait for the log: a full disk is an error now.
    Hurries,
    /// openraft has ended: what waits is written, and nothing more is taken.
    Ends,
}

/// What a flush owes to those who wait for it.
enum Completion {
    Entries(IOFlushed<TypeConfig>, Option<LogIndex>),
    Vote(oneshot::Sender<io::Result<()>>),
}

impl LogWriter {
    /// Starts a writer of this log, which ends when it is told to or when nobody holds the other end of
    /// `operations`.
    pub(crate) fn start(
        wal: Wal,
        shared: Arc<Shared>,
        operations: mpsc::Receiver<WriteOperation>,
        metrics: LogMetrics,
        placement: LogWriterPlacement,
    ) -> io::Result<RunningWriter> {
        let (stage, told) = watch::channel(Stage::Runs);
        let writer = LogWriter { wal, shared, operations, metrics, stage: told };
        let place = match placement {
            LogWriterPlacement::OwnThread => {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build()?;
                let thread = std::thread::Builder::new()
                    .name("log-writer".into())
                    .spawn(move || runtime.block_on(writer.run(None)))?;
                Place::Thread(thread)
            }
            LogWriterPlacement::Task(delay) => {
                Place::Task(crate::runtime::spawn(writer.run(Some(delay))))
            }
        };
        Ok(RunningWriter { stage, place })
    }

    async fn run(mut self, mut delay: Option<Box<dyn FnMut() -> Duration + Send>>) {
        let mut group = Vec::with_capacity(GROUP_OPERATIONS_MAX);
        while self.next_group(&mut group).await {
            let written = self.write_group(&mut group).await;
            self.shared.set_in_reserve(self.wal.space() == wal::Space::Reserve);
            let written = match written {
                Ok(completions) if Planted::AckBeforeFsync.is_made() => {
                    self.complete(completions, &Ok(()));
                    Ok(vec![Completion::Vote(oneshot::channel().0)])
                }
                written => written,
            };
            if let Some(delay) = &mut delay {
                tokio::time::sleep(delay()).await;
            }
            let (completions, result) = match written {
                Ok(completions) => {
                    let result = self.sync(!completions.is_empty());
                    (completions, result)
                }
                Err((completions, error)) => (completions, Err(error)),
            };
            self.complete(completions, &result);
            if let Err(error) = result {
                tracing::error!(%error, "the write-ahead log cannot be written; this member stops");
                return self.refuse_the_rest(&error).await;
            }
        }
        self.write_committed();
        if let Err(error) = self.wal.close() {
            tracing::error!(%error, "closing the write-ahead log");
        }
    }

    /// Waits for operations; false once there will be none. Idle moments go into work that makes
    /// later appends faster and damage easier to tell from a torn write.
    async fn next_group(&mut self, group: &mut Vec<WriteOperation>) -> bool {
        let mut left = true;
        while left && self.operations.is_empty() {
            // An error here is not lost: the next append meets it.
            left = self.wal.prepare().unwrap_or(false);
        }
        self.shared.set_in_reserve(self.wal.space() == wal::Space::Reserve);
        if let Ok(received) = tokio::time::timeout(IDLE, self.receive(group)).await {
            return received;
        }
        if let Err(error) = self.wal.mark() {
            tracing::warn!(%error, "marking the end of the write-ahead log");
        }
        self.write_committed();
        self.receive(group).await
    }

    /// Takes what waits, or waits for something; false once there will be nothing.
    async fn receive(&mut self, group: &mut Vec<WriteOperation>) -> bool {
        let received = tokio::select! {
            biased;
            received = self.operations.recv_many(group, GROUP_OPERATIONS_MAX) => received,
            () = reached(&mut self.stage, Stage::Ends) => {
                self.operations.close();
                self.operations.recv_many(group, GROUP_OPERATIONS_MAX).await
            }
        };
        received > 0
    }

    /// Appends every operation of the group; what it returns must be completed after the flush.
    async fn write_group(
        &mut self,
        group: &mut Vec<WriteOperation>,
    ) -> Result<Vec<Completion>, (Vec<Completion>, io::Error)> {
        let mut completions = Vec::with_capacity(group.len());
        let mut failure = None;
        for operation in group.drain(..) {
            let result = match (&failure, operation) {
                (Some(_), operation) => {
                    completions.extend(completion_of(operation));
                    continue;
                }
                (None, operation) => {
                    let written = self.write_when_there_is_space(&operation).await;
                    completions.extend(completion_of(operation));
                    written
                }
            };
            if let Err(error) = result {
                failure = Some(io::Error::other(error.to_string()));
            }
        }
        match failure {
            None => Ok(completions),
            Some(error) => Err((completions, error)),
        }
    }

    /// A full disk is waited out: nothing of the operation is in the log, and what comes after it must
    /// not overtake it. Whoever waits for an answer meanwhile times out. A member that is to end does
    /// not wait: the operation was never acknowledged.
    async fn write_when_there_is_space(
        &mut self,
        operation: &WriteOperation,
    ) -> Result<(), wal::WalError> {
        loop {
            match self.write(operation) {
                Err(error @ wal::WalError::NoSpace { .. }) => {
                    if *self.stage.borrow() >= Stage::Hurries {
                        return Err(error);
                    }
                    tracing::error!(%error, "the disk is full; the write-ahead log waits for space");
                    self.shared.set_in_reserve(true);
                    let told = reached(&mut self.stage, Stage::Hurries);
                    // Either way the operation is tried once more.
                    let _ = tokio::time::timeout(NO_SPACE_PAUSE, told).await;
                }
                written => return written,
            }
        }
    }

    fn write(&mut self, operation: &WriteOperation) -> Result<(), wal::WalError> {
        match operation {
            WriteOperation::Append { entries, .. } => self.append(entries),
            WriteOperation::Vote { vote, .. } => self.wal.append(&[codec::vote_record(vote)]),
            WriteOperation::TruncateAfter(id) => {
                self.wal.truncate_after(id.as_ref().map(codec::wal_log_id))
            }
            WriteOperation::Purge(id) => self.wal.purge(codec::wal_log_id(id)),
        }
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), wal::WalError> {
        let mut records = Vec::with_capacity(entries.len() + 1);
        records.extend(self.unwritten_committed());
        records.extend(entries.iter().map(codec::entry_record));
        let started = Instant::now();
        let result = self.wal.append(&records);
        self.metrics.write_duration.observe(started.elapsed().as_secs_f64());
        self.metrics.bytes.add(entries.iter().map(codec::entry_bytes).sum::<usize>() as f64);
        result
    }

    /// How far the log is committed, if the log does not say so yet and has that entry. What waits in
    /// the queue may still replace an entry of the same index: but a log whose end is neither before
    /// the entry nor of an older term has the committed one (Raft §5.4.3).
    fn unwritten_committed(&self) -> Option<wal::Record> {
        let committed = self.shared.committed()?;
        let (term, index) = (term_of(&committed), index_of(&committed));
        let reached = self.wal.last().is_some_and(|last| last.index >= index && last.term >= term);
        let unwritten = self.wal.committed().is_none_or(|written| written.index < index);
        (reached && unwritten).then(|| codec::committed_record(&committed))
    }

    fn write_committed(&mut self) {
        if let Some(record) = self.unwritten_committed()
            && let Err(error) = self.wal.append(&[record])
        {
            tracing::warn!(%error, "noting the commit position in the write-ahead log");
        }
    }

    fn sync(&mut self, anyone_waits: bool) -> io::Result<()> {
        if !anyone_waits {
            return Ok(());
        }
        let started = Instant::now();
        let result = self.wal.sync().map_err(|error| io::Error::other(error.to_string()));
        let took = started.elapsed();
        self.metrics.fsync_duration.observe(took.as_secs_f64());
        if took > SYNC_SLOW {
            tracing::warn!(?took, "expected-duration" = ?SYNC_SLOW, "slow fdatasync");
        }
        result
    }

    fn complete(&self, completions: Vec<Completion>, result: &io::Result<()>) {
        let outcome = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for completion in completions {
            match completion {
                Completion::Entries(flushed, last) => {
                    if let (Ok(()), Some(last)) = (result, last) {
                        self.shared.set_flushed(last);
                    }
                    flushed.io_completed(outcome());
                }
                Completion::Vote(done) => {
                    // The asker may have gone: openraft is shutting down.
                    let _ = done.send(outcome());
                }
            }
        }
    }

    async fn refuse_the_rest(mut self, error: &io::Error) {
        let mut group = Vec::new();
        while self.receive(&mut group).await {
            let failed = Err(io::Error::new(error.kind(), error.to_string()));
            self.complete(group.drain(..).filter_map(completion_of).collect(), &failed);
        }
    }
}

fn completion_of(operation: WriteOperation) -> Option<Completion> {
    match operation {
        WriteOperation::Append { entries, flushed } => {
            let last = entries.last().map(|entry| index_of(&entry.log_id()));
            Some(Completion::Entries(flushed, last))
        }
        WriteOperation::Vote { done, .. } => Some(Completion::Vote(done)),
        WriteOperation::TruncateAfter(_) | WriteOperation::Purge(_) => None,
    }
}

/// Returns once the member is as far on its way to its end; never if nobody will say so.
async fn reached(told: &mut watch::Receiver<Stage>, stage: Stage) {
    if told.wait_for(|now| *now >= stage).await.is_err() {
        std::future::pending().await
    }
}

/// The writer, for who ends it.
pub(crate) struct RunningWriter {
    stage: watch::Sender<Stage>,
    place: Place,
}

enum Place {
    Thread(std::thread::JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

impl RunningWriter {
    /// From now on no operation waits for space on the disk.
    pub(crate) fn hurry(&self) {
        self.stage.send_replace(Stage::Hurries);
    }

    /// Ends the writer behind what waits for it.
    pub(crate) async fn end(self) {
        self.stage.send_replace(Stage::Ends);
        let ended = match self.place {
            // Not joined here: openraft's tasks must be able to go on, and to let go of the log.
            Place::Thread(thread) => {
                let join = move || thread.join().map_err(|_| "it panicked".to_owned());
                let joined = tokio::task::spawn_blocking(join).await;
                joined.unwrap_or_else(|error| Err(error.to_string()))
            }
            Place::Task(task) => task.await.map_err(|error| error.to_string()),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the log writer ended abnormally");
        }
    }
}
