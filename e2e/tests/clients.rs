//! Programs written with other people's clients (`e2e::clients`) run unchanged against our server.
//!
//! That they run against Go etcd is what makes them a measure: a case that asks for something that
//! etcd does not do fails there first.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::Path;

use e2e::clients::{Suite, suites};
use e2e::peers::{etcd_binaries, our_binary};
use e2e::processes::{Cluster, ServerOptions};

/// Fewer would mean that a program has not done what it is for.
const CASES_MIN: usize = 6;

fn all_cases_are_ok(program: &Path, members: usize) {
    let suites = suites().unwrap();
    let options = ServerOptions {
        members,
        // A case waits for it.
        flags: vec!["--watch-progress-notify-interval=200ms".to_owned()],
        ..ServerOptions::one(program)
    };
    let cluster = Cluster::start(&options).unwrap();
    let mut failures = Vec::new();
    // One after the other, because some compact the history and some turn authentication on.
    for suite in &suites {
        match suite {
            Suite::NoRuntime { name, missing } => {
                println!("SKIPPED {name}: this machine has no {missing}");
            }
            Suite::Ready { name, .. } => {
                let report = suite.run(&cluster).unwrap().unwrap();
                let (ok, failed) = (report.ok.len(), report.failed.len());
                println!("{name}: {ok} cases ok, {failed} failed");
                assert!(ok + failed >= CASES_MIN, "{name} has run {report:?} only");
                failures.extend(report.failed.iter().map(|why| format!("{name}: {why}")));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_client_is_served_by_go_etcd() {
    all_cases_are_ok(&etcd_binaries().unwrap().etcd, 1);
}

#[test]
fn every_client_is_served_by_three_members_of_go_etcd() {
    all_cases_are_ok(&etcd_binaries().unwrap().etcd, 3);
}

#[test]
fn every_client_is_served_by_our_etcd() {
    all_cases_are_ok(&our_binary("server", "etcd").unwrap(), 1);
}

#[test]
fn every_client_is_served_by_three_members_of_our_etcd() {
    all_cases_are_ok(&our_binary("server", "etcd").unwrap(), 3);
}
