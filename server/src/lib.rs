//! The edge of the server and its wiring: flags, listeners, TLS, gRPC and HTTP services, health,
//! metrics, logs, and the chores that use the replica like any client.
//!
//! In: what users and clients send. Out: answers in etcd's words. This is the only room of the
//! server that knows gRPC, HTTP and TLS, and the only place where an error becomes a code
//! (`api::status`). State beyond connections does not live here.

pub mod chores;
pub mod cli;
pub mod config;
pub mod gates;
pub mod ids;
pub mod listen;
pub mod ops;
pub mod program;
pub mod tls;
pub mod urls;
pub mod version;
