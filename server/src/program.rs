//! The process: what the command line asks for, and the exit code.
//!
//! Exit codes are etcd's: 0 for help, version and an orderly stop, 2 with the usage for a command
//! line that cannot be read, 1 for everything else that keeps the server from running.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use types::go::quote;

use crate::cli::{self, CliError, Invocation, RawConfig};
use crate::config::{Config, LogConfig, LogFormat, LogLevel, LogOutput};
use crate::ops::logging::Logs;
use crate::version;

/// Runs the program; `serve` runs a checked configuration until the server has stopped, and its
/// error is logged as the reason.
pub fn run(serve: impl FnOnce(Config) -> Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    crate::listen::raise_limit();
    let arguments = match texts(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            complain(&format!("{error}\n{}\n", cli::usage()));
            return ExitCode::from(2);
        }
    };
    if let Some(ended) = crate::proxy::run(&arguments) {
        return ended;
    }
    let environment = match variables(std::env::vars_os()) {
        Ok(environment) => environment,
        Err(error) => {
            let _logs = plain_logs();
            return refuse(&arguments, &error);
        }
    };
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

/// Names, paths and addresses end up in logs, in JSON and in the answers to clients, which are text.
fn texts(arguments: impl Iterator<Item = OsString>) -> Result<Vec<String>, String> {
    let text = |argument: OsString| {
        argument
            .into_string()
            .map_err(|it| format!("an argument is not text in UTF-8: {}", quote(it.as_bytes())))
    };
    arguments.map(text).collect()
}

/// The variables that are text; one that sets a flag has to be.
fn variables(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => found.push((name, value)),
            Err(value) if cli::is_variable(&name) => {
                let value = quote(value.as_bytes());
                return Err(format!("the variable {name} is not text in UTF-8: {value}"));
            }
            Err(_) => {}
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn words(words: &[&[u8]]) -> Vec<OsString> {
        words.iter().map(|word| OsString::from_vec(word.to_vec())).collect()
    }

    #[test]
    fn what_is_not_text_is_refused_where_it_would_count() {
        assert_eq!(
            texts(words(&[b"etcd", b"--name=x"]).into_iter()).unwrap(),
            ["etcd", "--name=x"]
        );
        let told = texts(words(&[b"etcd", b"--name=\xff"]).into_iter()).unwrap_err();
        assert_eq!(told, r#"an argument is not text in UTF-8: "--name=\xff""#);
        let pairs = |pairs: &[(&[u8], &[u8])]| {
            let pair = |(name, value): &(&[u8], &[u8])| {
                (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()))
            };
            variables(pairs.iter().map(pair).collect::<Vec<_>>().into_iter())
        };
        let others: [(&[u8], &[u8]); 3] =
            [(b"LS_COLORS", b"\xff"), (b"ETCD_\xff", b"x"), (b"ETCD_NAME", b"x")];
        assert_eq!(pairs(&others).unwrap(), [("ETCD_NAME".to_owned(), "x".to_owned())]);
        let told = pairs(&[(b"ETCD_DATA_DIR", b"/\xff")]).unwrap_err();
        assert_eq!(told, r#"the variable ETCD_DATA_DIR is not text in UTF-8: "/\xff""#);
    }
}
