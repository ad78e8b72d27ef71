//! `sim --seed S` replays one run; `sim --seeds N [--first F] [--jobs J]` runs many.
//!
//! One line per seed; on a failure everything that is needed to see it again. The exit status is 0
//! if every seed kept every promise, 3 if one did not, 1 if the arguments are wrong.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sim::{Counts, Event, Report};

/// The exit status after a broken promise.
const BROKEN: u8 = 3;

/// A seed that takes longer than this on a real clock does not make progress.
const STUCK: Duration = Duration::from_secs(180);

struct Arguments {
    first: u64,
    seeds: u64,
    jobs: u64,
    verbose: bool,
    /// Run each seed twice and compare.
    twice: bool,
    keep_going: bool,
    log: bool,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut arguments = Arguments {
        first: 1,
        seeds: 1,
        jobs: 2,
        verbose: false,
        twice: false,
        keep_going: false,
        log: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut number = || -> anyhow::Result<u64> {
            let text = given.next().with_context(|| format!("{name} needs a number"))?;
            text.parse().with_context(|| format!("{name} needs a number, not {text:?}"))
        };
        match name.as_str() {
            "--seed" => {
                arguments.first = number()?;
                arguments.seeds = 1;
            }
            "--first" => arguments.first = number()?,
            "--seeds" => arguments.seeds = number()?,
            "--jobs" => arguments.jobs = number()?.max(1),
            "--verbose" => arguments.verbose = true,
            "--twice" => arguments.twice = true,
            "--keep-going" => arguments.keep_going = true,
            "--log" => arguments.log = true,
            other => bail!(
                "unknown argument {other:?}; use --seed S | --seeds N [--first F] [--jobs J] \
                 [--twice] [--keep-going] [--verbose] [--log]"
            ),
        }
    }
    Ok(arguments)
}

#[allow(clippy::print_stdout, reason = "a command-line tool")]
fn print(report: &Report, took: Duration) {
    let verdict = if report.violation.is_some() { "FAILED" } else { "ok" };
    println!(
        "seed {} {verdict} hash {:016x} simulated {:.1}s took {:.1}s operations {} acknowledged {} \
         revisions {} watches {} unauthorized {} logins {} fenced {} expired {} kept {} \
         renewals {} snapshots {} partial {} silent {}",
        report.seed,
        report.hash,
        report.simulated.as_secs_f64(),
        took.as_secs_f64(),
        report.operations,
        report.acknowledged,
        report.revisions,
        report.watches,
        report.unauthorized,
        report.logins,
        report.fenced_writes,
        report.counts.of(Event::LeaseExpired),
        report.leases_kept,
        report.renewals,
        report.counts.of(Event::SnapshotWhole),
        report.counts.of(Event::SnapshotPartial),
        report.counts.of(Event::SnapshotSilent),
    );
    if let Some(violation) = &report.violation {
        let tail = report.last.len().saturating_sub(40);
        for line in &report.last[tail..] {
            let cut = line.char_indices().nth(400).map_or(line.len(), |(at, _)| at);
            println!("    {}", &line[..cut]);
        }
        println!("  {violation}");
        println!("  again: cargo xtask sim --seed {}", report.seed);
    }
}

#[allow(clippy::print_stdout, reason = "a command-line tool")]
fn run_one(seed: u64, arguments: &Arguments) -> Report {
    let begin = Instant::now();
    let finished = Arc::new(AtomicBool::new(false));
    let watchdog = finished.clone();
    std::thread::spawn(move || {
        while !watchdog.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(200));
            if begin.elapsed() > STUCK {
                println!("seed {seed} STUCK\n  again: cargo xtask sim --seed {seed}");
                std::process::exit(i32::from(BROKEN));
            }
        }
    });
    let mut report = sim::run(seed, arguments.verbose);
    if arguments.twice && report.violation.is_none() {
        let again = sim::run(seed, false);
        if again.hash != report.hash {
            report.violation = Some(format!(
                "NOT DETERMINISTIC: {:016x} with {} notes, then {:016x} with {}",
                report.hash, report.notes, again.hash, again.notes
            ));
        }
    }
    finished.store(true, Ordering::Release);
    print(&report, begin.elapsed());
    report
}

#[allow(clippy::print_stdout, reason = "a command-line tool")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arc::new(arguments()?);
    if arguments.log {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
    }
    if !cfg!(tokio_unstable) {
        println!("built without --cfg tokio_unstable: a run cannot be replayed exactly");
    }
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(arguments.first));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let counts = Arc::new(Mutex::new(Counts::default()));
    let workers: Vec<_> = (0..arguments.jobs.min(arguments.seeds))
        .map(|_| {
            let (arguments, next) = (arguments.clone(), next.clone());
            let (failed, counts) = (failed.clone(), counts.clone());
            std::thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
                    let over = seed >= arguments.first + arguments.seeds;
                    if over || (!lock().is_empty() && !arguments.keep_going) {
                        return;
                    }
                    let report = run_one(seed, &arguments);
                    counts.lock().unwrap_or_else(PoisonError::into_inner).add_all(&report.counts);
                    if report.violation.is_some() {
                        lock().push(seed);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
    }
    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    failed.sort_unstable();
    print!("what happened:\n{}", counts.lock().unwrap_or_else(PoisonError::into_inner));
    println!(
        "{} seeds in {:.0}s, failed: {failed:?}",
        arguments.seeds,
        begin.elapsed().as_secs_f64()
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(BROKEN) })
}
