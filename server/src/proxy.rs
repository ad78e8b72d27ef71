//! The sub-commands of `etcd`, which stand between clients and a cluster and keep no data.
//!
//! `etcd gateway start` passes TCP connections on to the members ([`tcp`]), `etcd grpc-proxy start`
//! passes calls on ([`grpc`]). Their command lines are not read as
//! the server's is: etcd uses another library for them, and so the flags, the help and the texts of
//! errors have another form ([`command`]).
//!
//! Deliberately absent: balancing by load, and anything that looks into the bytes that the gateway
//! passes on; TLS goes through it from end to end.

mod command;
mod endpoints;
mod grpc;
mod remotes;
mod tcp;

use std::process::ExitCode;

use command::{Asked, Group};

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};
use crate::ops::logging::Logs;

/// Runs the sub-command that the arguments (with the program's name) begin with; nothing if they
/// begin with none.
pub(crate) fn run(arguments: &[String]) -> Option<ExitCode> {
    let group = command::GROUPS.iter().find(|group| arguments.get(1) == Some(&group.name()))?;
    Some(match command::parse(group, &arguments[2..]) {
        Asked::Help(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Asked::Refused(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
        Asked::Start(values) => start(group, &values, arguments),
    })
}

fn start(group: &Group, values: &command::Values, arguments: &[String]) -> ExitCode {
    let _logs = match Logs::start(&LogConfig {
        outputs: vec![LogOutput::Stderr],
        level: if values.is_true("debug") { LogLevel::Debug } else { LogLevel::Info },
        format: LogFormat::Json,
        rotation: None,
    }) {
        Ok(logs) => logs,
        Err(error) => {
            complain(&format!("{error}\n"));
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(args = ?arguments, "Running: ");
    match (group.start)(values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal::Printed(text)) => {
            print(&text);
            ExitCode::FAILURE
        }
        Err(Refusal::Complained(text)) => {
            complain(&format!("{text}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Why a proxy does not run. etcd writes some of these to its output and others to its errors.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Written to the output as it is.
    #[error("{0}")]
    Printed(String),
    /// Written to the errors.
    #[error("{0}")]
    Complained(String),
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
