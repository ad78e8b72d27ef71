//! What the log knows beside its entries, and how each record changes it. The owner and recovery
//! follow the same rules here, so that a log reads back as it was written.

use types::LogIndex;

use crate::limits::INDEX_MAX;
use crate::record::{Content, LogId, Vote};

/// Everything the log knows beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// The last entry; after a purge of everything, the purged one.
    pub(crate) last: Option<LogId>,
    pub(crate) incarnation: u64,
}

/// Why a record cannot come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discontinuity {
    /// An entry does not follow the last one.
    #[error("log entry {got} comes where {expected} belongs")]
    Entry {
        /// The index that must come next.
        expected: LogIndex,
        /// The index that came.
        got: LogIndex,
    },
    /// A truncation reaches behind the purged entries or beyond the last one.
    #[error("cannot cut the log after {after:?}: it was purged to {purged:?} and ends at {last:?}")]
    Truncate {
        /// The entry that should become the last.
        after: Option<LogIndex>,
        /// The last purged entry.
        purged: Option<LogIndex>,
        /// The last entry.
        last: Option<LogIndex>,
    },
    /// An index that leaves no room for a next one.
    #[error("log index {0} is out of range")]
    OutOfRange(LogIndex),
}

impl LogState {
    /// Whether the record may come next.
    pub(crate) fn check(&self, content: &Content) -> Result<(), Discontinuity> {
        match content {
            Content::Entry { id, .. } => {
                within_limit(id.index)?;
                let Some(last) = self.last else { return Ok(()) };
                let expected = LogIndex(last.index.0 + 1);
                if id.index == expected {
                    Ok(())
                } else {
                    Err(Discontinuity::Entry { expected, got: id.index })
                }
            }
            Content::Truncate { after } => {
                let after = after.map(|id| id.index);
                let purged = self.purged.map(|id| id.index);
                let last = self.last.map(|id| id.index);
                // `None` is smaller than every index, which is what "before the first" means.
                if after < purged || after > last {
                    Err(Discontinuity::Truncate { after, purged, last })
                } else {
                    Ok(())
                }
            }
            Content::Purge { upto } => within_limit(upto.index),
            Content::Vote(_) | Content::Committed(_) | Content::Mark(_) => Ok(()),
        }
    }

    /// Follows the record.
    pub(crate) fn follow(&mut self, content: &Content) {
        match content {
            Content::Entry { id, .. } => self.last = Some(*id),
            Content::Vote(vote) => self.vote = Some(*vote),
            Content::Committed(committed) => self.committed = *committed,
            Content::Truncate { after } => self.last = *after,
            Content::Purge { upto } => {
                self.purged = later(self.purged, *upto);
                self.last = later(self.last, *upto);
            }
            Content::Mark(mark) => self.incarnation = self.incarnation.max(mark.incarnation),
        }
    }
}

fn within_limit(index: LogIndex) -> Result<(), Discontinuity> {
    if index.0 <= INDEX_MAX { Ok(()) } else { Err(Discontinuity::OutOfRange(index)) }
}

fn later(known: Option<LogId>, new: LogId) -> Option<LogId> {
    match known {
        Some(known) if known.index >= new.index => Some(known),
        _ => Some(new),
    }
}
