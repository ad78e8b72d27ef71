//! `cargo xtask sim`: seeds of the simulator, one again or many.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;

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
}

/// Answers whether every seed kept every promise.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
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
    simulator(workspace, &arguments)
}

/// Runs the simulator; false if it found a broken promise.
fn simulator(workspace: &Workspace, arguments: &[OsString]) -> Result<bool> {
    let mut cargo = workspace.cargo(&["run", "--quiet", "--locked", "--package", "sim"]);
    let status = cargo.arg("--").args(arguments).status().context("start cargo")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(BROKEN) => Ok(false),
        _ => bail!("the simulator could not be built or ended by {status}"),
    }
}
