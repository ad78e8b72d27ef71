//! `cargo xtask`: everything a developer does, in one program.
//!
//! `up` and `down` are the main job: the whole product on this machine. `test` is what CI runs.
//! Each command is a list of steps in its own file; `progress` shows them, `workspace` knows where
//! things are, `prerequisites` installs what is missing. The cluster itself is `e2e::kubernetes`.

mod bench;
mod counts;
mod etcd_suites;
mod image;
mod local;
mod operator;
mod prerequisites;
mod programs;
mod progress;
mod pulse;
mod sim;
mod store_log;
mod test;
mod up;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::kubernetes::{Layout, NodeNumber, launch, node_init};

use progress::Progress;
use workspace::Workspace;

/// Builds, runs and tests Keelson.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs all tests, or the groups that are named.
    Test(test::Options),
    /// The quick part of the tests: format, clippy, unit and property tests.
    Check,
    /// Starts everything: a local Kubernetes on our etcd, the operator, an example cluster.
    Up(up::Options),
    /// Removes what `up` has started, completely.
    Down(up::DownOptions),
    /// Runs seeds of the simulator, or replays one.
    Sim(sim::Options),
    /// Builds the container image (OCI layout, tarball and root file system).
    Image(image::Options),
    /// Measures our server and Go etcd side by side.
    Bench(bench::Options),
    /// Runs etcd's own end-to-end tests with our programs.
    EtcdSuites(etcd_suites::Options),
    /// How a local Kubernetes starts its processes; not for people.
    #[command(hide = true, subcommand)]
    Internal(Internal),
}

#[derive(Subcommand)]
enum Internal {
    Launch {
        #[arg(long)]
        group: String,
        #[arg(long)]
        die_with_parent: bool,
        #[arg(last = true)]
        command_line: Vec<OsString>,
    },
    NodeInit {
        #[arg(long)]
        node: u8,
        #[arg(long)]
        root: PathBuf,
        #[arg(long)]
        programs: PathBuf,
    },
}

fn main() -> ExitCode {
    let progress = Progress::start();
    match run(Arguments::parse().command, &progress) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether what was asked for has succeeded; an error is why it could not be done.
fn run(task: Task, progress: &Progress) -> Result<bool> {
    if let Task::Internal(task) = task {
        return internal(task).map(|()| true);
    }
    let workspace = Workspace::find()?;
    match task {
        Task::Test(options) => test::run(&workspace, progress, &options),
        Task::Check => test::run(&workspace, progress, &test::Options::quick()),
        Task::Up(options) => up::up(&workspace, progress, &options).map(|()| true),
        Task::Down(options) => up::down(&workspace, progress, &options).map(|()| true),
        Task::Sim(options) => sim::run(&workspace, &options),
        Task::Image(options) => image::build(&workspace, progress, &options).map(|_| true),
        Task::Bench(options) => bench::run(&workspace, progress, &options),
        Task::EtcdSuites(options) => etcd_suites::run(&workspace, progress, &options),
        Task::Internal(_) => unreachable!("handled above"),
    }
}

fn internal(task: Internal) -> Result<()> {
    match task {
        Internal::Launch { group, die_with_parent, command_line } => {
            launch::become_program(&group, die_with_parent, &command_line)
        }
        Internal::NodeInit { node, root, programs } => {
            node_init::run(&Layout::at(root), NodeNumber(node), &programs)
        }
    }
}
