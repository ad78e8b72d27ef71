//! What happened to members and to what they do, counted. A fault that stops happening proves nothing any
//! more, and would do so unseen: `tests/seeds.rs` demands so many of each.
//!
//! Counted is what happens until everything is mended. In what follows every run loses its power and elects
//! leaders, whatever its faults were. Counting takes no part in a run: it draws nothing and is not in its
//! hash.

use std::fmt;

macro_rules! events {
    ($($(#[$doc:meta])+ $event:ident = $name:literal,)+) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])+ $event,)+
        }

        impl Event {
            /// All of them.
            pub const ALL: &[Event] = &[$(Event::$event),+];

            /// What a reader is told.
            pub fn name(self) -> &'static str {
                match self {
                    $(Event::$event => $name,)+
                }
            }
        }
    };
}

events! {
    /// A member's machine lost its power, between two operations of its disk.
    PowerLoss = "power losses",
    /// One lost it in the middle of an operation.
    PowerLossAtOperation = "power losses at an operation",
    /// All lost it at once.
    PowerLossOfAll = "power losses of all",
    /// A sector kept nothing of what was written to it and not synced.
    SectorLost = "unsynced sectors lost",
    /// A sector kept a part of it, or an older version.
    SectorTorn = "unsynced sectors torn",
    /// A file was not made, renamed or removed after all.
    NameLost = "unsynced names lost",
    /// A process was killed.
    Kill = "kills",
    /// A process was told to stop.
    Stop = "orderly stops",
    /// It led before and another did afterwards.
    HandOver = "leaders handed over by a stop",
    /// A process ended by itself: its disk had failed.
    DiskError = "ends by a disk error",
    /// A member was started again among faults.
    Restart = "restarts",
    /// A process was paused.
    Pause = "pauses",
    /// The members were divided.
    Partition = "partitions",
    /// One member did not reach another, which reached it.
    OneWayCut = "one-way cuts",
    /// A message was lost by chance.
    MessageLost = "messages lost",
    /// A message met a cut.
    MessageCut = "messages cut off",
    /// A message took very long.
    MessageLate = "messages late",
    /// The log says that a member was added.
    MemberAdded = "members added",
    /// The log says that one votes that did not.
    MemberPromoted = "members promoted",
    /// The log says that one has left.
    MemberRemoved = "members removed",
    /// The log goes on in a later term.
    LeaderChange = "changes of the leader",
    /// A leader made another member lead, because it was asked to.
    LeaderMoved = "leaders moved",
    /// A snapshot arrived and was answered.
    SnapshotWhole = "snapshots whole",
    /// One arrived in several pieces.
    SnapshotInPieces = "snapshots in pieces",
    /// One arrived without the records that its receiver had.
    SnapshotOfMissed = "snapshots of what was missed",
    /// One ended after some of its state had come.
    SnapshotPartial = "snapshots in part",
    /// One ended because its receiver heard nothing more of it.
    SnapshotSilent = "snapshots gone silent",
    /// The nemesis broke one in its middle.
    SnapshotStruck = "snapshots struck",
    /// A snapshot replaced the state of a member.
    SnapshotInstalled = "snapshots installed",
    /// The power failed while it did.
    InstallInterrupted = "installations interrupted",
    /// It replaced the state under watches.
    WatchesReset = "states replaced under watches",
    /// A member saved its state.
    ImageSaved = "images saved",
    /// A member has dropped what was compacted.
    Compaction = "compactions finished",
    /// A lease was over in time.
    LeaseExpired = "leases expired",
    /// A watch told of what had happened before it began.
    WatchResumed = "watches resumed",
    /// A watch was too late: what it asked for was compacted.
    WatchCompacted = "watches cancelled by a compaction",
}

/// How often each of them happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; Event::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Event::ALL.len()])
    }
}

impl Counts {
    /// How often this happened.
    pub fn of(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    /// It happened so many times more.
    pub fn add(&mut self, event: Event, times: u64) {
        self.0[event as usize] += times;
    }

    /// Adds what happened elsewhere.
    pub fn add_all(&mut self, others: &Counts) {
        for (sum, other) in self.0.iter_mut().zip(others.0) {
            *sum += other;
        }
    }
}

/// One line for each.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in Event::ALL {
            writeln!(f, "{:>9} {}", self.of(*event), event.name())?;
        }
        Ok(())
    }
}
