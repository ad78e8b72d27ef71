//! `cargo xtask bench` runs this program, compiled for speed; see `e2e::bench` for what it does.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use e2e::bench::report;
use e2e::bench::runner::{self, CASES, Case, Options};

/// Our server and Go etcd side by side.
#[derive(Parser)]
struct Arguments {
    /// Our server's program.
    #[arg(long)]
    ours: PathBuf,
    /// Go etcd's program.
    #[arg(long)]
    etcd: PathBuf,
    /// Where data directories are made.
    #[arg(long)]
    directory: PathBuf,
    /// Where the results are written.
    #[arg(long)]
    json: PathBuf,
    /// One short round; the figures are rough and the floors are shown, not judged.
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

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether the floors hold.
fn run(arguments: &Arguments) -> Result<bool> {
    let options = options(arguments)?;
    let started = Instant::now();
    let say = |text: &str| println!("[{:>6.1} s] {text}", started.elapsed().as_secs_f64());
    let rows = runner::run(&options, &say)?;
    let floors = report::floors(&rows);
    println!("\n{}", report::table(&rows));
    for floor in &floors {
        let verdict = if floor.holds() { "holds" } else { "MISSED" };
        println!("{verdict:>6}  {}: {:.2}x of {:.1}x", floor.name, floor.found, floor.wanted);
    }
    let text = serde_json::to_string_pretty(&report::json(&options, &rows, &floors))?;
    fs::write(&arguments.json, text)
        .with_context(|| format!("write {}", arguments.json.display()))?;
    println!("\nAll figures are in {}", arguments.json.display());
    Ok(arguments.quick || floors.iter().all(report::Floor::holds))
}

fn options(arguments: &Arguments) -> Result<Options> {
    let mut groups: Vec<&str> = CASES.into_iter().map(Case::group).collect();
    if let Some(unknown) = arguments.only.iter().find(|one| !groups.contains(&one.as_str())) {
        groups.sort_unstable();
        groups.dedup();
        bail!("--only {unknown}: there are {}", groups.join(", "));
    }
    let chosen = |case: &Case| {
        arguments.only.is_empty() || arguments.only.iter().any(|one| one == case.group())
    };
    let quick = arguments.quick;
    let seconds = arguments.seconds.unwrap_or(if quick { 0.5 } else { 3.0 });
    if !(0.1..=600.0).contains(&seconds) {
        bail!("--seconds {seconds}: choose 0.1 to 600");
    }
    Ok(Options {
        ours: arguments.ours.clone(),
        etcd: arguments.etcd.clone(),
        directory: arguments.directory.clone(),
        rounds: arguments.rounds.unwrap_or(if quick { 1 } else { 3 }),
        duration: Duration::from_secs_f64(seconds),
        warm_up: Duration::from_secs_f64(if quick { 0.2 } else { 0.7 }),
        keys: if quick { 10_000 } else { 100_000 },
        start_keys: if quick { 50_000 } else { 1_000_000 },
        cases: CASES.into_iter().filter(chosen).collect(),
    })
}
