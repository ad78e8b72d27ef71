//! The edge of the server and its wiring: flags, listeners, TLS, gRPC and HTTP services, health,
//! metrics, logs, and the chores that use the replica like any client.
//!
//! In: what users and clients send. Out: answers in etcd's words. This is the only room of the
//! server that knows gRPC, HTTP and TLS, and the only place where an error becomes a code
//! (`api::status`). State beyond connections does not live here.

mod api;
pub mod auth;
pub mod boot;
pub mod chores;
pub mod cli;
pub mod config;
mod dial;
mod discovery;
mod engine;
mod events;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod gates;
mod gateway;
pub mod identity;
pub mod ids;
mod leases;
pub mod listen;
mod member;
pub mod ops;
mod peer;
pub mod program;
mod proxy;
mod read_budget;
mod snapshot_file;
pub mod tls;
pub mod urls;
pub mod version;
