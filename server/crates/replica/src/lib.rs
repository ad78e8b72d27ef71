//! The replica: openraft joined to the log, the state machine and the other members.
//!
//! This is the only room that names openraft. In go proposals and questions through [`Handle`] and
//! messages of other members through [`Inbound`]; out come answers, events, and messages through
//! [`Peers`]. Nothing above sees an openraft type.
//!
//! ```text
//! Handle::propose → ProposalQueue → driver → openraft → LogStore → log writer (fdatasync)
//!                                     │                └→ Network → Peers → Inbound of the others
//!                                     └ on a follower: Peers::forward → the leader's Inbound
//! openraft, once committed → StateMachine → machine::apply → outcomes → Mailboxes → the waiter
//!                                                         └→ events → EventSink
//! ```
//!
//! Invariants:
//! - Nothing is acknowledged and no vote is answered before it is durable (`log_writer`).
//! - A batch is handed to a leader at most once; what may have happened is never retried.
//! - A linearizable read waits for an index confirmed after the read arrived (`reads`).
//! - Member ids are never reused, and a message for another member or cluster is refused
//!   (`inbound`).
//!
//! Deliberately absent: gRPC, TLS and the meaning of requests.

mod codec;
mod completion;
mod contact;
mod forced;
mod handle;
mod heartbeats;
mod image_schedule;
mod images;
mod inbound;
mod initial_state;
mod limits;
mod log_store;
mod log_writer;
mod membership;
mod metrics;
mod network;
mod observation;
mod peers;
mod proposals;
mod protocol;
mod questions;
mod raft_types;
mod reads;
mod reception;
pub mod runtime;
mod snapshot;
mod solitude;
mod start;
mod state_machine;
mod status;
mod store;
mod unavailable;
mod watermark;

pub use handle::Handle;
pub use inbound::Inbound;
pub use initial_state::{initial_records_directory, write_initial_state};
pub use limits::{Rules, SPACE_RESERVE_BYTES};
pub use log_writer::LogWriterPlacement;
pub use membership::{MembershipChange, MembershipRefusal};
pub use metrics::LogMetrics;
pub use observation::Observation;
pub use peers::{AppendResponses, Peer, PeerError, PeerResult, Peers};
pub use protocol::{ProtocolVersions, Skew};
pub use questions::PeerHash;
pub use raft_types::Node;
pub use snapshot::Blocking;
pub use start::{Bootstrap, ImagePolicy, Parts, Replica, StartError, Timing, start};
pub use state_machine::EventSink;
pub use status::Status;
pub use store::{OpenEngine, StoreError};
pub use unavailable::Unavailable;

#[cfg(test)]
mod tests;
