//! A small client of etcd's v3 API, for `etcdctl`, the operator and the end-to-end tests.
//!
//! In: a [`Config`] and typed requests of `proto`. Out: typed responses, or an [`Error`] that prints
//! as Go's clientv3 prints it. It works against any server that speaks the protocol.
//!
//! What it guarantees, with the rules of clientv3 (client/v3/retry.go):
//! - A call waits for a usable connection until its deadline; a refused connection is not an error
//!   while there is time ("wait for ready").
//! - Reads are repeated on `UNAVAILABLE`. A mutation is repeated only when it certainly never left
//!   this process, because otherwise it might be applied twice. As in clientv3, granting and
//!   revoking leases, alarms and moving the leader count as repeatable.
//! - Connected endpoints are used in turn; lost ones are dialled again in the background.
//! - An expired token is fetched again and the call repeated.
//! - A [`WatchStream`] resumes after the last revision it delivered: none lost, none twice.
//!
//! - [`discover_endpoints`] finds servers by DNS.
//!
//! Deliberately absent: concurrency recipes, caching and namespaces.

mod call;
mod config;
mod connection;
mod der;
mod discovery;
mod error;
mod keep_alive;
mod pool;
mod range_end;
mod renewal;
mod tls;
mod tls_reason;
mod watch;

pub use call::Client;
pub use config::{Config, Credentials, Refused, TlsOptions};
pub use connection::http_get;
pub use discovery::{
    ClientTarget, SrvTarget, discover_client_targets, discover_endpoints, look_up_srv,
};
pub use error::{Error, io_reason};
pub use keep_alive::KeepAlive;
pub use range_end::prefix_range_end;
pub use tls::{
    AcceptAny, Judged, LastWord, Verdict, chain_or_trusted, client_chain_or_trusted,
    signature_algorithms,
};
pub use tls_reason::{name_not_allowed, tls_reason};
pub use watch::{ProgressRequester, WatchStream};
