//! What strangers can hand to the server and its tools, as functions of bytes that must never panic.
//!
//! The programs in `fuzz_targets` let libFuzzer search for an input that makes one of them panic:
//!
//! ```text
//! cargo install cargo-fuzz
//! cargo fuzz run --fuzz-dir server/crates/fuzz --features libfuzzer --sanitizer none gateway
//! ```
//!
//! `tests/smoke.rs` tries the inputs of `corpus` and mutations of them in every test run. An input
//! that was once found to panic belongs into the corpus.

mod go_wal;
mod snapshot;

pub use go_wal::go_wal;
pub use server::fuzz::{configuration, gateway, initial_cluster, token};
pub use snapshot::snapshot;

/// A function that takes what a stranger sends.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Where inputs to begin with are, seen from this package.
    pub corpus: &'static str,
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "gateway", corpus: "corpus/gateway", run: gateway },
    Target { name: "token", corpus: "corpus/token", run: token },
    Target { name: "configuration", corpus: "corpus/configuration", run: configuration },
    Target { name: "initial_cluster", corpus: "corpus/initial_cluster", run: initial_cluster },
    Target { name: "snapshot", corpus: "../etcdutl/tests/data", run: snapshot },
    Target { name: "go_wal", corpus: "corpus/go_wal", run: go_wal },
];
