//! Programs written with other people's clients (`e2e::clients`) run unchanged against our server.
//!
//! That they run against Go etcd is what makes them a measure: a case that asks for something that
//! etcd does not do fails there first.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::Path;
use std::thread;

use e2e::clients::{Suite, suites};
use e2e::peers::{etcd_binaries, our_binary};
use e2e::processes::{Cluster, ServerOptions};

/// Fewer would mean that a program has not done what it is for.
const CASES_MIN: usize = 6;

/// Go, Rust and one more language at least.
const SUITES_MIN: usize = 3;

/// The cases that are not ok against a new cluster of this program.
fn failures(whose: &str, program: &Path, members: usize) -> Vec<String> {
    let suites = suites().unwrap();
    let ready = suites.iter().filter(|suite| matches!(suite, Suite::Ready { .. })).count();
    assert!(
        ready >= SUITES_MIN,
        "{ready} suites can run; install python3 with venv, or node with npm"
    );
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
                println!("{name} against {whose} ({members}): {ok} cases ok, {failed} failed");
                assert!(ok + failed >= CASES_MIN, "{name} has run {report:?} only");
                failures.extend(report.failed.iter().map(|why| format!("{name}: {why}")));
            }
        }
    }
    failures
}

/// At once: most of the time the cases wait for something.
fn both_serve_all_clients(members: usize) {
    let (theirs, ours) = (etcd_binaries().unwrap().etcd, our_binary("etcd").unwrap());
    thread::scope(|scope| {
        let go = scope.spawn(|| failures("Go etcd", &theirs, members));
        let ours = failures("ours", &ours, members);
        let go = go.join().unwrap();
        assert!(go.is_empty(), "Go etcd, so the programs are wrong:\n{}", go.join("\n"));
        assert!(ours.is_empty(), "ours:\n{}", ours.join("\n"));
    });
}

#[test]
fn every_client_is_served_by_one_member() {
    both_serve_all_clients(1);
}

#[test]
fn every_client_is_served_by_three_members() {
    both_serve_all_clients(3);
}
