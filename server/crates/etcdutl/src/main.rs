//! The `etcdutl` program; its work is done in the library.

mod command_line;

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser};
use command_line::{
    Command, CommandLine, FileNames, HashKvArguments, IdentityArguments, ImportArguments,
    MigrateArguments, RestoreArguments, SnapshotCommand,
};
use disk::{Disk, OsDisk};
use etcdutl::data_dir::{self, DataDir, DataDirError, TargetError};
use etcdutl::hash_kv::{HashKvError, hash_kv};
use etcdutl::import::GoDataDir;
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
/// What a shell says of a program that SIGPIPE has ended, as Go's is.
const EXIT_NOBODY_READS: u8 = 141;

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
    /// cobra's words for a flag that has to be there.
    #[error("required flag(s) {0} not set")]
    Required(String),
    #[error("accepts 1 arg(s), received {0}")]
    OneArgument(usize),
    #[error("invalid argument {0:?} for \"etcdutl completion\"")]
    Shell(String),
    #[error("Failed to defragment etcd data[{path}] ({source})")]
    Defrag { path: String, source: DataDirError },
    #[error(transparent)]
    HashKv(#[from] HashKvError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(
        "cannot migrate to {0}.{1}: the format of this data directory is Keelson's own and has no \
         versions of etcd. To go to another version, take `etcdctl snapshot save` from the running \
         server and restore it with the etcdutl of that version"
    )]
    OtherVersion(u64, u64),
    #[error("write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::StatusArguments
            | Self::RestoreArguments
            | Self::MarkCompacted
            | Self::Target(_) => EXIT_BAD_ARGUMENTS,
            Self::Format(_) => EXIT_BAD_FEATURE,
            _ => EXIT_ERROR,
        }
    }
}

fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => return refuse(&error),
    };
    match run(&command_line) {
        Ok(answer) => match std::io::stdout().write_all(answer.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                ExitCode::from(EXIT_NOBODY_READS)
            }
            Err(error) => fail(&error.into()),
        },
        Err(error) => fail(&error),
    }
}

/// Shows help, which is no error, or what is wrong with a command line, in cobra's words where it has
/// some. Nothing can be done if nobody reads it.
fn refuse(error: &clap::Error) -> ExitCode {
    let given = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let mut out = std::io::stdout();
    let mut err = std::io::stderr();
    let _ = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(out, "{}", error.render());
            return ExitCode::SUCCESS;
        }
        ErrorKind::InvalidSubcommand => {
            let name = given(ContextKind::InvalidSubcommand);
            let usage = "Run 'etcdutl --help' for usage.";
            writeln!(err, "Error: unknown command {name:?} for \"etcdutl\"\n{usage}")
        }
        ErrorKind::UnknownArgument if given(ContextKind::InvalidArg).starts_with("--") => {
            writeln!(err, "Error: unknown flag: {}", given(ContextKind::InvalidArg))
        }
        ErrorKind::UnknownArgument if given(ContextKind::InvalidArg).starts_with('-') => {
            let flags = given(ContextKind::InvalidArg);
            let letter = flags.trim_start_matches('-').chars().next().unwrap_or('-');
            writeln!(err, "Error: unknown shorthand flag: {letter:?} in {flags}")
        }
        ErrorKind::ValueValidation => {
            let value = given(ContextKind::InvalidValue);
            let flag = flag_name(&given(ContextKind::InvalidArg));
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            writeln!(err, "Error: invalid argument {value:?} for {flag:?} flag: {why}")
        }
        ErrorKind::InvalidValue if given(ContextKind::InvalidValue).is_empty() => {
            let flag = flag_name(&given(ContextKind::InvalidArg));
            writeln!(err, "Error: flag needs an argument: {flag}")
        }
        _ => write!(err, "{}", error.render()),
    };
    ExitCode::from(EXIT_ERROR)
}

/// A flag without the name of its value.
fn flag_name(shown: &str) -> String {
    shown.split([' ', '[']).next().unwrap_or_default().to_owned()
}

/// What `snapshot` has.
fn snapshot_help() -> String {
    let mut command = CommandLine::command();
    command.build();
    let found = command.find_subcommand_mut("snapshot");
    found.map(|snapshot| snapshot.render_help().to_string()).unwrap_or_default()
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
        Command::Snapshot { command: SnapshotCommand::Other(_) } => Ok(snapshot_help()),
        Command::Defrag(arguments) => {
            defrag(arguments.data_dir.as_deref().map(Path::new), command_line.timeout)
        }
        Command::Hashkv(arguments) => file_hash_kv(arguments, &command_line.write_out),
        Command::Import(arguments) => import(arguments),
        Command::Migrate(arguments) => migrate(arguments),
        Command::Completion { shell } => completion(shell),
        Command::Version { .. } => {
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

fn defrag(data_dir: Option<&Path>, timeout: Duration) -> Result<String, CommandError> {
    let required = || CommandError::Required("\"data-dir\"".to_owned());
    let path = data_dir.ok_or_else(required)?;
    let patience = Some(timeout).filter(|timeout| !timeout.is_zero());
    let done = DataDir::open(Arc::new(OsDisk::new()), path, patience)
        .and_then(|data_dir| data_dir.defragment());
    let (before, after) =
        done.map_err(|source| CommandError::Defrag { path: shown(path), source })?;
    let fields = serde_json::json!({
        "path": shown(path),
        "current-db-size-bytes-diff": after.total as i64 - before.total as i64,
        "current-db-size-bytes": after.total,
        "current-db-size-in-use-bytes": after.in_use,
    });
    log("info", "finished defragmenting directory", Some(&fields));
    Ok(String::new())
}

/// The checks come in Go's order: arguments, format, file, content.
fn file_hash_kv(arguments: &HashKvArguments, write_out: &str) -> Result<String, CommandError> {
    let [name] = &arguments.names.files[..] else {
        return Err(CommandError::OneArgument(arguments.names.files.len()));
    };
    let format = write_out.parse::<Format>();
    if format == Err(FormatError::Unknown) {
        return Err(FormatError::Unknown.into());
    }
    let file = SnapshotFile::open(&OsDisk::new(), Path::new(name))?;
    let answer = hash_kv(file.bbolt()?, arguments.rev)?;
    Ok(print::hash_kv(&answer, format?))
}

/// A path in a message.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn migrate(arguments: &MigrateArguments) -> Result<String, CommandError> {
    let (Some(path), Some(target)) = (&arguments.data_dir, &arguments.target_version) else {
        let flags = [
            ("\"data-dir\"", arguments.data_dir.is_none()),
            ("\"target-version\"", arguments.target_version.is_none()),
        ];
        let missing: Vec<&str> =
            flags.iter().filter(|(_, missing)| *missing).map(|(name, _)| *name).collect();
        return Err(CommandError::Required(missing.join(", ")));
    };
    let target = data_dir::parse_target(target)?;
    if !data_dir::is_current(&OsDisk::new(), Path::new(path), target)? {
        return Err(CommandError::OtherVersion(target.0, target.1));
    }
    let fields = serde_json::json!({ "storage-version": format!("{}.{}", target.0, target.1) });
    log("info", "storage version up-to-date", Some(&fields));
    Ok(String::new())
}

fn completion(shells: &[String]) -> Result<String, CommandError> {
    let [name] = shells else { return Err(CommandError::OneArgument(shells.len())) };
    let shell = command_line::shell(name).ok_or_else(|| CommandError::Shell(name.clone()))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "etcdutl", &mut script);
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// A line on the standard error; if that is closed, nobody wants to know.
fn log(level: &str, message: &str, fields: Option<&serde_json::Value>) {
    let fields = fields.map(|fields| format!("\t{fields}")).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "{level}\t{message}{fields}");
}

/// Nothing goes to the standard output, as in Go; what was done is logged.
fn snapshot_restore(arguments: &RestoreArguments) -> Result<String, CommandError> {
    let [snapshot] = &arguments.names.files[..] else { return Err(CommandError::RestoreArguments) };
    if (arguments.bump_revision > 0) != arguments.mark_compacted {
        return Err(CommandError::MarkCompacted);
    }
    let order = Restore {
        skip_hash_check: arguments.skip_hash_check,
        bump_revision: arguments.bump_revision,
        ..order(PathBuf::from(snapshot), &arguments.identity)
    };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    log_restored(&order, &restore::restore(&disk, &order)?);
    Ok(String::new())
}

fn import(arguments: &ImportArguments) -> Result<String, CommandError> {
    let required = || CommandError::Required("\"from\"".to_owned());
    let from = arguments.from.as_deref().ok_or_else(required)?;
    let wal_dir = arguments.from_wal_dir.as_deref().map(Path::new);
    let from = GoDataDir::open(Path::new(from), wal_dir).map_err(RestoreError::from)?;
    let order = order(from.backend(), &arguments.identity);
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let restored = restore::import(&disk, &order, &from)?;
    if restored.unsettled > 0 {
        let told = "the log does not say of its last requests that they were committed; they are taken \
                    over, as by this member if it were elected: of several members import the one that \
                    led last";
        log("warn", told, Some(&serde_json::json!({ "requests": restored.unsettled })));
    }
    log_restored(&order, &restored);
    Ok(String::new())
}

/// What to make, of a file and as whom.
fn order(snapshot: PathBuf, identity: &IdentityArguments) -> Restore {
    let data_dir = match &identity.data_dir {
        path if path.is_empty() => restore::default_data_dir(&identity.name),
        path => PathBuf::from(path),
    };
    Restore {
        snapshot,
        name: identity.name.clone(),
        data_dir,
        wal_dir: Some(&identity.wal_dir).filter(|path| !path.is_empty()).map(PathBuf::from),
        initial_cluster: identity.initial_cluster.clone(),
        initial_cluster_token: identity.initial_cluster_token.clone(),
        advertise_peer_urls: identity.initial_advertise_peer_urls.clone(),
        skip_hash_check: false,
        bump_revision: 0,
        drop_auth: identity.drop_auth,
    }
}

fn log_restored(order: &Restore, restored: &Restored) {
    let fields = serde_json::json!({
        "path": shown(&order.snapshot),
        "data-dir": shown(&order.data_dir),
        "cluster-id": restored.founding.cluster_id.to_string(),
        "member-id": restored.member.to_string(),
        "revision": restored.revision.0,
        "compact-revision": restored.compact_revision.0,
    });
    if restored.dropped_auth {
        let message = "users and roles of the snapshot were not restored; the cluster is open to \
                       everyone";
        log("warn", message, None);
    }
    for member in &restored.founding.members {
        let fields = serde_json::json!({
            "cluster-id": restored.founding.cluster_id.to_string(),
            "local-member-id": "0",
            "added-peer-id": member.id.to_string(),
            "added-peer-peer-urls": member.peer_urls,
            "added-peer-is-learner": false,
        });
        log("info", "added member", Some(&fields));
    }
    log("info", "restored snapshot", Some(&fields));
}
