//! Accepting connections and serving them, one thread per core.
//!
//! In: URLs to listen on, TLS, and what each RPC thread serves. Out: answers, until the drain.
//!
//! ```text
//! acceptor (any runtime) ── accepted socket ──► the RPC thread with the fewest connections
//!                                               TLS → gathered writes → HTTP/1 or HTTP/2
//!                                               → gRPC services | HTTP handlers
//! ```
//!
//! A connection stays on its thread: waking another thread for each call costs twice the CPU. One
//! acceptor deals the sockets out, instead of one SO_REUSEPORT socket per thread, because the kernel
//! spreads few connections badly, because a port that another process holds must be an error, and
//! because unix sockets need it anyway.
//!
//! Invariants: connections and handshakes are bounded and timed; after the drain began no new
//! connection is accepted and clients are told by GOAWAY (HTTP/1: `connection: close`); a client
//! that pings too often is told to calm down and dropped.

mod accept;
mod coalesce;
mod connection;
mod descriptors;
mod dispatch;
mod handshakes;
mod ping_police;
mod threads;

pub(crate) use accept::bind_tcp;
pub use accept::{BindError, Endpoint, ListenOptions, Listeners};
pub use connection::{AfterUpgrade, ConnectionInfo, ConnectionSettings};
pub(crate) use descriptors::raise_limit;
pub use dispatch::{DirectService, GrpcCalls, HttpBody, HttpFuture, HttpHandler, Services};
pub use threads::{RpcThread, RpcThreads, ServiceSet};

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// `--listen-client-urls`.
    Client,
    /// `--listen-client-http-urls`.
    ClientHttp,
    /// `--listen-metrics-urls`.
    Metrics,
    /// `--listen-peer-urls`.
    Peer,
}

#[cfg(test)]
mod tests;
