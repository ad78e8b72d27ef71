//! The benchmark: our server and Go etcd side by side, under a client that costs next to nothing.
//!
//! On a machine with two cores an ordinary gRPC client needs more CPU than the server it measures,
//! so both servers look alike through it. The client here speaks HTTP/2 frames itself, on one
//! thread, from requests that are encoded in advance: about a microsecond per call. What it leaves
//! out is convenience, never the protocol: it obeys flow control, decodes response headers and
//! counts a call as done only if `grpc-status` is 0 and the answer is as long as it must be.
//!
//! In: two programs that take etcd's flags. Out: a table, a JSON file, and whether the floors hold.
//! `wire` is a socket with or without TLS, `access` gets a token, `http2` one connection, `swarm` keeps many calls in flight, `workloads` and `fan_out` are what
//! is asked, `runner` starts the servers and alternates between them, `report` judges.
//! Deliberately absent: an open loop, named here so that nobody takes the percentiles for more than
//! those of a closed loop.

mod access;
pub mod fan_out;
pub mod http2;
pub mod latency;
pub mod protobuf;
pub mod report;
pub mod resources;
pub mod runner;
pub mod swarm;
pub mod wire;
pub mod workloads;
