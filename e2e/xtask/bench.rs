//! `cargo xtask bench`: our server and Go etcd side by side. The load generator is a program of its
//! own, because it has to be compiled for speed and this one is not.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::prerequisites;
use crate::progress::Progress;
use crate::workspace::{Profile, Workspace};

#[derive(Args)]
pub(crate) struct Options {
    /// One short round of about a minute; floors are shown, not judged.
    #[arg(long)]
    quick: bool,
    /// Only these: put, get, range, txn, watch, start, tls, auth.
    #[arg(long, value_delimiter = ',', value_name = "WORK")]
    only: Vec<String>,
    /// How often everything is measured.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of one measurement.
    #[arg(long)]
    seconds: Option<f64>,
}

/// Answers whether the floors hold.
pub(crate) fn run(workspace: &Workspace, progress: &Progress, options: &Options) -> Result<bool> {
    prerequisites::require_go()?;
    for (what, line) in [
        ("build our server", ["build", "--release", "--package", "server", "--bin", "etcd"]),
        ("build the load generator", ["build", "--release", "--package", "e2e", "--bin", "bench"]),
    ] {
        progress.running(what, &workspace.log(what), &mut workspace.cargo(&line))?;
    }
    // Built below the same directory as for all tests of this workspace.
    let peers = progress.working("build Go etcd", e2e::peers::etcd_binaries)?;
    let mut command = Command::new(workspace.program(Profile::Release, "bench"));
    command
        .arg("--ours")
        .arg(workspace.program(Profile::Release, "etcd"))
        .arg("--etcd")
        .arg(peers.etcd)
        .arg("--directory")
        .arg(workspace.state().join("bench"))
        .arg("--json")
        .arg(workspace.state().join("bench.json"));
    if options.quick {
        command.arg("--quick");
    }
    if !options.only.is_empty() {
        command.arg("--only").arg(options.only.join(","));
    }
    if let Some(rounds) = options.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(seconds) = options.seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    Ok(command.status().context("start the load generator")?.success())
}
