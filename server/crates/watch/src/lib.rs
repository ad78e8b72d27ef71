//! Watches: who hears of which change, off the apply path.
//!
//! # What it is
//! The applier hands each entry's events to [`Hub::publish`], which costs it a lock and a move
//! whatever the number of watchers. One task, [`HubTask`], owns all watchers. It finds those
//! concerned in an interval index, encodes each event once, and puts messages into the queues of the
//! streams; a gRPC handler takes them out of its [`StreamOutput`] and writes them.
//!
//! A watcher is
//! - *synced*: fed from what the applier publishes. Everything up to the hub's position is in its
//!   stream's queue;
//! - *behind*: it starts in the past or missed something, and is fed from the history, in slices
//!   shared by all watchers that are behind at the same place;
//! - *blocked*: its stream's client does not read. The queue of a stream is bounded in bytes; what
//!   does not fit is not kept but read from the history when there is room again. Only compaction
//!   can cancel a watch, and then it is told (etcd#17529).
//!
//! ```text
//! applier → backlog → ┌ fan out to synced watchers ┐
//!                     │                            ├→ queue of each stream → gRPC
//! history (ReadView) →└ catch up of those behind   ┘
//! ```
//!
//! # Invariants
//! - A stream's messages leave in one order, through one queue. A progress message with revision r
//!   comes after every event up to r of the watchers it speaks for (etcd#15220).
//! - A watcher gets each matching event from its start on exactly once, in order of revisions, and a
//!   revision is never divided between two messages unless the watcher allows fragments.
//! - Nothing before a watcher's start revision is sent to it, also when that lies in the future
//!   (etcd#20221).
//! - Neither the applier nor a reader of the store ever waits for the hub: it takes no lock of
//!   theirs for longer than one chunk, and its backlog is bounded. When the backlog overflows,
//!   everyone is behind for a moment; nothing is lost.
//!
//! # Deliberately absent
//! gRPC, authorisation and the check for a leader belong to the server's edge. There is no clock
//! but tokio's, so that a simulator can turn it.

mod catch_up;
#[cfg(any(test, feature = "check"))]
pub mod check;
mod encoded;
mod hub;
mod index;
mod message;
mod queue;
mod task;
mod watcher;

#[cfg(test)]
mod tests;

pub use encoded::EncodedEvents;
pub use hub::{CreateWatch, Hub, HubOptions, HubStats, StreamHandle};
pub use message::WatchMessage;
pub use queue::StreamOutput;
pub use task::HubTask;
