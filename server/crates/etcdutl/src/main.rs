//! The `etcdutl` command line; its work is done in the library.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgAction, Args, Parser, Subcommand};
use disk::{Disk, OsDisk};
use etcdutl::print::{self, Format, FormatError};
use etcdutl::restore::{self, Restore, RestoreError, Restored};
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
    /// Restores an etcd member snapshot to an etcd directory.
    Restore(RestoreArguments),
}

#[derive(Args)]
struct FileNames {
    /// The snapshot file: exactly one.
    #[arg(value_name = "filename")]
    files: Vec<String>,
}

#[derive(Args)]
struct RestoreArguments {
    #[command(flatten)]
    names: FileNames,
    /// Path to the output data directory; <name>.etcd if none is given.
    #[arg(long, default_value = "", hide_default_value = true)]
    data_dir: String,
    /// Path to the WAL directory (use --data-dir if none given).
    #[arg(long, default_value = "", hide_default_value = true)]
    wal_dir: String,
    /// Initial cluster configuration for restore bootstrap.
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Initial cluster token for the etcd cluster during restore bootstrap.
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// List of this member's peer URLs to advertise to the rest of the cluster.
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Human-readable name for this member.
    #[arg(long, default_value = "default")]
    name: String,
    /// Ignore snapshot integrity hash value (required if copied from data directory).
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true")]
    skip_hash_check: bool,
    /// Taken for compatibility and not used: files are read, not mapped.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    initial_memory_map_size: u64,
    /// How much to increase the latest revision after restore.
    #[arg(long, default_value_t = 0)]
    bump_revision: u64,
    /// Mark the latest revision after restore as the point of scheduled compaction (required if
    /// --bump-revision > 0, disallowed otherwise).
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true")]
    mark_compacted: bool,
    /// Restore without the users and roles of the snapshot; the cluster is then open to everyone.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true")]
    drop_auth: bool,
}

#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("snapshot restore requires exactly one argument")]
    RestoreArguments,
    /// The flag is called otherwise; so are Go's words.
    #[error("--mark-compacted required if --revision-bump > 0")]
    MarkCompacted,
    #[error(transparent)]
    Restore(#[from] RestoreError),
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
            Self::StatusArguments | Self::RestoreArguments | Self::MarkCompacted => {
                EXIT_BAD_ARGUMENTS
            }
            Self::Format(_) => EXIT_BAD_FEATURE,
            Self::Snapshot(_) | Self::Status(_) | Self::Restore(_) | Self::Output(_) => EXIT_ERROR,
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
        Command::Snapshot { command: SnapshotCommand::Restore(arguments) } => {
            snapshot_restore(arguments)
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

/// Nothing goes to the standard output, as in Go; what was done is logged.
fn snapshot_restore(arguments: &RestoreArguments) -> Result<String, CommandError> {
    let [snapshot] = &arguments.names.files[..] else { return Err(CommandError::RestoreArguments) };
    if (arguments.bump_revision > 0) != arguments.mark_compacted {
        return Err(CommandError::MarkCompacted);
    }
    let data_dir = match arguments.data_dir.as_str() {
        "" => restore::default_data_dir(&arguments.name),
        path => PathBuf::from(path),
    };
    let order = Restore {
        snapshot: PathBuf::from(snapshot),
        name: arguments.name.clone(),
        data_dir,
        wal_dir: Some(&arguments.wal_dir).filter(|path| !path.is_empty()).map(PathBuf::from),
        initial_cluster: arguments.initial_cluster.clone(),
        initial_cluster_token: arguments.initial_cluster_token.clone(),
        advertise_peer_urls: arguments.initial_advertise_peer_urls.clone(),
        skip_hash_check: arguments.skip_hash_check,
        bump_revision: arguments.bump_revision,
        drop_auth: arguments.drop_auth,
    };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    log_restored(&order, &restore::restore(&disk, &order)?);
    Ok(String::new())
}

fn log_restored(order: &Restore, restored: &Restored) {
    let fields = serde_json::json!({
        "path": order.snapshot.display().to_string(),
        "data-dir": order.data_dir.display().to_string(),
        "cluster-id": restored.founding.cluster_id.to_string(),
        "member-id": restored.member.to_string(),
        "revision": restored.revision.0,
        "compact-revision": restored.compact_revision.0,
    });
    // If the standard error is closed, nobody wants to know.
    if restored.dropped_auth {
        let _ = writeln!(
            std::io::stderr(),
            "warn\tusers and roles of the snapshot were not restored; the cluster is open to everyone"
        );
    }
    let _ = writeln!(std::io::stderr(), "info\trestored snapshot\t{fields}");
}
