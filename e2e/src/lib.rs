//! Tests of the whole product from outside: real processes, real clients, real peers.
//!
//! In: the binaries of this workspace and of the peers that they are compared with. Out: the
//! harness that the tests in `e2e/tests` and the developer commands are written with. Deliberately
//! absent: anything that looks inside our processes; what a user cannot see is tested in the room
//! that owns it.

pub mod authority;
pub mod bench;
pub mod clients;
pub mod exposition;
pub mod gateway;
pub mod image;
pub mod kubernetes;
pub mod namespace;
pub mod peers;
mod ports;
pub mod processes;
pub mod script;
pub mod serving;
