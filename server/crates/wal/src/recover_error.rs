//! Why a log is not opened, in words that say what to do.

use std::io;
use std::path::PathBuf;

use types::LogIndex;

use crate::log_state::Discontinuity;
use crate::record::Identity;
use crate::wal::WalError;

/// The way out when a log cannot be trusted.
pub(crate) const WAY_BACK: &str = "remove this member from the cluster, clear its data directory \
     and add it again as a new member, or restore the cluster from a backup";

/// Why a log was not opened. Nothing was changed on the disk by then, unless the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The disk gave an error.
    #[error("open log, {file}: {source}")]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// The disk's error.
        source: io::Error,
    },
    /// Another version wrote this directory.
    #[error(
        "{file} says {found:?}, this version reads \"keelson wal 1\"; start the version that wrote it"
    )]
    UnsupportedFormat {
        /// The format file.
        file: PathBuf,
        /// Its first line.
        found: String,
    },
    /// Another version wrote this segment.
    #[error("{file} has format version {version}, unknown here; start the version that wrote it")]
    UnsupportedVersion {
        /// The segment.
        file: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A verified record of a kind unknown here.
    #[error(
        "{file} holds a record of unknown kind {kind} (flags {flags}) at offset {offset}; start the version that wrote it"
    )]
    UnknownRecord {
        /// The segment.
        file: PathBuf,
        /// Where it starts.
        offset: u64,
        /// Its kind.
        kind: u8,
        /// Its flags.
        flags: u8,
    },
    /// The directory belongs to somebody else.
    #[error(
        "{file} belongs to member {} of cluster {}, but this is member {} of cluster {}: directory \
         of another cluster or member; check the data directory and the member's name",
        found.member_id, found.cluster_id, expected.member_id, expected.cluster_id
    )]
    WrongIdentity {
        /// The segment.
        file: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who asked.
        expected: Identity,
    },
    /// A file that must be there is not.
    #[error("{file} is missing from the log; {WAY_BACK}")]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// There is no log where one had begun.
    #[error(
        "the log of this member is gone: {directory} is empty; put back what was there (is it mounted?), or \
         {WAY_BACK}"
    )]
    Gone {
        /// The log's directory.
        directory: PathBuf,
    },
    /// A segment is shorter than its header says.
    #[error("{file} has {found} bytes instead of {expected}; {WAY_BACK}")]
    Short {
        /// The segment.
        file: PathBuf,
        /// Its length.
        found: u64,
        /// The length it must have.
        expected: u64,
    },
    /// A segment's header does not verify, or does not continue the segment before.
    #[error("{file} has a damaged header; {WAY_BACK}")]
    DamagedHeader {
        /// The segment.
        file: PathBuf,
    },
    /// A record that was synced does not verify any more.
    #[error(
        "{file} is damaged at offset {offset}: {proof} proves that a valid record was synced there; {WAY_BACK}"
    )]
    DamagedRecord {
        /// The segment.
        file: PathBuf,
        /// Where the record must start.
        offset: u64,
        /// What proves that it was there.
        proof: Proof,
    },
    /// Verified records that cannot follow each other.
    #[error("{file} holds an impossible record at offset {offset}: {source}; {WAY_BACK}")]
    Impossible {
        /// The segment.
        file: PathBuf,
        /// Where it starts.
        offset: u64,
        /// Why it cannot be.
        source: Discontinuity,
    },
    /// Entries between the purged ones and the first segment are gone.
    #[error("log entries after {purged:?} up to {upto} are missing in {directory}; {WAY_BACK}")]
    Hole {
        /// The log's directory.
        directory: PathBuf,
        /// The last purged entry.
        purged: Option<LogIndex>,
        /// The last missing entry.
        upto: LogIndex,
    },
    /// The log was read, but could not be made ready for appending.
    #[error(transparent)]
    Unusable(#[from] WalError),
}

/// What shows that a record had been synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A later mark in the same segment.
    Mark {
        /// Where it starts.
        offset: u64,
    },
    /// The segment after.
    NextSegment {
        /// That segment.
        file: PathBuf,
    },
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Proof::Mark { offset } => write!(f, "a mark at offset {offset}"),
            Proof::NextSegment { file } => write!(f, "the next segment, {}", file.display()),
        }
    }
}
