//! The simulator: the real rooms below the edge, openraft included, on a simulated disk, network and
//! clock, decided by one number.
//!
//! # A run
//! [`swarm::Plan`] derives the whole setting from a seed. [`cluster`] starts members of crate
//! `replica` over [`disk::SimDisk`] and [`network`]; clients ([`workload`], [`watcher`], [`locker`],
//! [`keeper`], [`administrator`]) use them through [`session`] and [`edge`] while [`nemesis`] breaks them; then
//! everything is mended, must serve again, and loses its power once more. [`checkers`] judge the
//! [`history`], which is what clients saw, and the [`journal`], which is what members applied.
//!
//! # What is real
//! Everything but the device, the wire, the clock and chance: log, recovery, openraft, apply with its
//! judgement of permissions, tokens, images, snapshots, compaction, membership, the clock of leases, the
//! recipes of lock and election, the hub of watches. Of the edge, [`edge`] repeats the order of the
//! server's steps; each step is the server's own. Snapshots travel in pieces, and either end or the way may
//! break between two of them. One thread runs everything on tokio's
//! paused clock, so a run takes no longer than its work, and is the same every time.
//!
//! # Exactness
//! tokio chooses by chance in places; its seed can be set only under `--cfg tokio_unstable`, which
//! `.cargo/config.toml` sets. Where `RUSTFLAGS` takes its place the checks are as strict, but a run
//! that fails may not fail again.
//!
//! # Invariants
//! - A seed decides everything; nothing here reads a clock, the environment or the order of a hash
//!   map.
//! - Nothing leaves a member whose power has failed.
//! - A client never repeats what may have happened.
//! - Every proposal of a client is marked with its operation, so that the log says whose it is.
//!
//! # Deliberately absent, to be grown
//! gRPC over a simulated wire, permissions of watches and of keeping leases alive, hashing of passwords, JWT, clock drift, full disks, bit rot, members of different versions.

pub mod administrator;
pub mod auth;
pub mod chance;
pub mod checkers;
pub mod cluster;
pub mod counts;
pub mod edge;
pub mod history;
pub mod journal;
pub mod keeper;
pub mod locker;
pub mod nemesis;
pub mod network;
pub mod session;
pub mod simulation;
pub mod sink;
pub mod swarm;
pub mod trace;
pub mod watcher;
pub mod workload;

pub use counts::{Counts, Event};
pub use simulation::{Report, first_violation, run, run_all, run_plan};
pub use swarm::Plan;
