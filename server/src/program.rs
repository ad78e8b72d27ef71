//! The process: what the command line asks for, and the exit code.
//!
//! Exit codes are etcd's: 0 for help, version and an orderly stop, 2 with the usage for a command
//! line that cannot be read, 1 for everything else that keeps the server from running.

use std::process::ExitCode;

use crate::cli::{self, CliError, Invocation, RawConfig};
use crate::config::{Config, LogConfig, LogFormat, LogLevel, LogOutput};
use crate::ops::logging::Logs;
use crate::version;

/// Runs the program; `serve` runs a checked configuration until the server has stopped, and its
/// error is logged as the reason.
pub fn run(serve: impl FnOnce(Config) -> Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(ended) = crate::proxy::run(&arguments) {
        return ended;
    }
    // etcd does not know of environment variables that are no text either.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    match cli::parse(arguments.iter().skip(1).cloned(), environment) {
        Ok(Invocation::Help) => {
            print(&format!("{}{}", cli::usage(), cli::full_help()));
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version) => {
            print(&version::report());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Run(raw)) => start(raw, &arguments, serve),
        Err(CliError::Usage(error)) => {
            complain(&format!("{error}\n{}\n", cli::usage()));
            ExitCode::from(2)
        }
        Err(ref error @ CliError::Shadowed { ref variable }) => {
            let _logs = plain_logs();
            tracing::error!("environment-variable" = variable, "{error}");
            ExitCode::FAILURE
        }
        Err(CliError::Verify(error)) => {
            let _logs = plain_logs();
            refuse(&arguments, &error)
        }
    }
}

fn start(
    raw: RawConfig,
    arguments: &[String],
    serve: impl FnOnce(Config) -> Result<(), Box<dyn std::error::Error>>,
) -> ExitCode {
    let config = match Config::load(raw) {
        Ok(config) => config,
        Err(error) => {
            let _logs = plain_logs();
            return refuse(arguments, &error.0);
        }
    };
    let _logs = match Logs::start(&config.log) {
        Ok(logs) => logs,
        Err(error) => {
            complain(&format!("{error}\n"));
            return ExitCode::FAILURE;
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(args = ?arguments, "Running: ");
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the server cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// The text that etcd logs, which people and tools search for.
fn refuse(arguments: &[String], error: &str) -> ExitCode {
    tracing::info!(args = ?arguments, "Running: ");
    tracing::warn!(error, "failed to verify flags");
    if error.starts_with("--advertise-client-urls is required") {
        tracing::warn!(error, "advertise client URLs are not set");
    }
    ExitCode::FAILURE
}

/// Logs to stderr when there is no configuration that says where to.
fn plain_logs() -> Option<Logs> {
    let config = LogConfig {
        outputs: vec![LogOutput::Stderr],
        level: LogLevel::Info,
        format: LogFormat::Json,
        rotation: None,
    };
    Logs::start(&config).ok()
}

/// A reader that has gone away is no error of ours.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn complain(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}
