//! The `etcdutl` command line; its work is done in the library.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use disk::OsDisk;
use etcdutl::print::{self, Format, FormatError};
use etcdutl::snapshot_file::{SnapshotError, SnapshotFile};
use etcdutl::status::{StatusError, status};

/// The version of etcd that this tool stands in for.
const ETCD_VERSION: &str = "3.7.3";
const API_VERSION: &str = "3.7";

// Exit codes of etcd's `pkg/cobrautl`.
const EXIT_ERROR: u8 = 1;
const EXIT_BAD_FEATURE: u8 = 4;
const EXIT_BAD_ARGUMENTS: u8 = 128;

/// An administrative command line tool for etcd3.
#[derive(Parser)]
#[command(name = "etcdutl", infer_subcommands = true, disable_help_subcommand = false)]
struct CommandLine {
    /// Set the output format (fields, json, protobuf, simple, table).
    #[arg(short, long, global = true, default_value = "simple")]
    write_out: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Manages etcd node snapshots.
    #[command(infer_subcommands = true)]
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Prints the version of etcdutl.
    Version,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Gets backend snapshot status of a given file.
    Status(FileNames),
}

#[derive(Args)]
struct FileNames {
    /// The snapshot file: exactly one.
    #[arg(value_name = "filename")]
    files: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("snapshot status requires exactly one argument")]
    StatusArguments,
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::StatusArguments => EXIT_BAD_ARGUMENTS,
            Self::Format(_) => EXIT_BAD_FEATURE,
            Self::Snapshot(_) | Self::Status(_) | Self::Output(_) => EXIT_ERROR,
        }
    }
}

fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Help goes to the standard output and is no error; nothing can be done if it is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_ERROR } else { 0 });
        }
    };
    match run(&command_line) {
        Ok(answer) => match std::io::stdout().write_all(answer.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.into()),
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &CommandError) -> ExitCode {
    // If the standard error is closed, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "Error: {error}");
    ExitCode::from(error.exit_code())
}

/// Does what is asked and gives the text for the standard output.
fn run(command_line: &CommandLine) -> Result<String, CommandError> {
    match &command_line.command {
        Command::Snapshot { command: SnapshotCommand::Status(names) } => {
            snapshot_status(names, &command_line.write_out)
        }
        Command::Version => {
            Ok(format!("etcdutl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\n"))
        }
    }
}

/// The checks come in Go's order: arguments, file, format, content.
fn snapshot_status(names: &FileNames, write_out: &str) -> Result<String, CommandError> {
    let [name] = &names.files[..] else { return Err(CommandError::StatusArguments) };
    let file = SnapshotFile::open(&OsDisk::new(), Path::new(name))?;
    let format: Format = match write_out.parse() {
        Err(FormatError::Protobuf) => {
            status(&file.bbolt()?)?;
            return Err(FormatError::Protobuf.into());
        }
        other => other?,
    };
    Ok(print::status(&status(&file.bbolt()?)?, format))
}
