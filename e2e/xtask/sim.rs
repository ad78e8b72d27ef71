//! `cargo xtask sim`: seeds of the simulator, one again, many, or with bugs planted in the rooms that
//! it must find.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;

/// The planted bugs, each a feature of crate `sim`, and how many seeds may pass before it is found.
pub(crate) const PLANTED: [(&str, u64); 3] =
    [("bug-ack-before-fsync", 100), ("bug-stale-read-index", 100), ("bug-lost-delete-event", 300)];

/// What the simulator exits with, and cargo passes on, when a promise was broken.
const BROKEN: i32 = 3;

#[derive(Args)]
pub(crate) struct Options {
    /// Replay this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many seeds.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Seeds at once.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Run each seed twice and compare the hashes of all that happened.
    #[arg(long)]
    twice: bool,
    /// Print everything that happens.
    #[arg(long)]
    verbose: bool,
    /// Go on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// See that every planted bug is found.
    #[arg(long)]
    planted: bool,
}

/// Answers whether every seed kept every promise, or every planted bug was found.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.planted {
        return planted(workspace);
    }
    let mut arguments: Vec<OsString> = Vec::new();
    let mut number = |name: &str, number: u64| {
        arguments.extend([name.into(), number.to_string().into()]);
    };
    match options.seed {
        Some(seed) => number("--seed", seed),
        None => {
            number("--first", options.first);
            number("--seeds", options.seeds);
            number("--jobs", options.jobs);
        }
    }
    let switches = [
        ("--twice", options.twice),
        ("--verbose", options.verbose),
        ("--keep-going", options.keep_going),
    ];
    arguments.extend(switches.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).into()));
    simulator(workspace, None, &arguments)
}

fn planted(workspace: &Workspace) -> Result<bool> {
    let mut all_found = true;
    for (bug, seeds) in PLANTED {
        let arguments = ["--seeds".into(), seeds.to_string().into()];
        let found = !simulator(workspace, Some(bug), &arguments)?;
        println!("{bug}: {}", if found { "found" } else { "NOT FOUND" });
        all_found &= found;
    }
    Ok(all_found)
}

/// Runs the simulator; false if it found a broken promise.
fn simulator(workspace: &Workspace, feature: Option<&str>, arguments: &[OsString]) -> Result<bool> {
    let mut cargo = workspace.cargo(&["run", "--quiet", "--locked", "--package", "sim"]);
    if let Some(feature) = feature {
        cargo.args(["--features", feature]);
    }
    let status = cargo.arg("--").args(arguments).status().context("start cargo")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(BROKEN) => Ok(false),
        _ => bail!("the simulator could not be built or ended by {status}"),
    }
}
