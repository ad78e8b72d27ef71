//! Commands that `lock` and `watch` run, with nothing on their standard input.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use cobra::exit;
use tokio::process::Command;

use crate::go;
use crate::words::{self, Word};

/// Why a command did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its exit code, or ours if it has none.
    pub(crate) code: u8,
    /// Go's words.
    pub(crate) text: String,
}

/// Runs a command with more variables in its environment to its end.
pub(crate) async fn run(command: &[Word], variables: &[(&str, &[u8])]) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let mut process = Command::new(words::os(program));
    process.args(arguments.iter().map(|it| words::os(it))).stdin(Stdio::null());
    process.envs(variables.iter().map(|(name, value)| (*name, words::os(value))));
    match process.status().await {
        Ok(status) => ended(status),
        Err(error) => Err(Failure { code: exit::ERROR, text: not_started(program, &error) }),
    }
}

fn ended(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => {
            // An exit code is one byte.
            let code = u8::try_from(code).unwrap_or(exit::ERROR);
            Err(Failure { code, text: format!("exit status {code}") })
        }
        // Go's exit code -1.
        None => Err(Failure { code: u8::MAX, text: signal_text(status.signal().unwrap_or(0)) }),
    }
}

/// Go's words for the signals that end programs.
fn signal_text(number: i32) -> String {
    let name = match number {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        6 => "aborted",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        15 => "terminated",
        other => return format!("signal: signal {other}"),
    };
    format!("signal: {name}")
}

/// Go's words for a program that cannot be run: one without a slash was looked for and not found.
fn not_started(program: &[u8], error: &std::io::Error) -> String {
    if program.contains(&b'/') {
        format!("fork/exec {}: {}", words::shown(program), client::io_reason(error))
    } else {
        format!("exec: {}: executable file not found in $PATH", go::quote(program))
    }
}
