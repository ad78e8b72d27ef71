//! The `etcdutl` program; its work is done in the library.

mod commands;

use std::env;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use cobra::{Exit, Invocation, Matches, Word, exit, words};
use disk::{Disk, OsDisk};
use etcdutl::data_dir::{self, DataDir, DataDirError, TargetError};
use etcdutl::hash_kv::{HashKvError, hash_kv};
use etcdutl::import::GoDataDir;
use etcdutl::print::{self, Format, FormatError};
use etcdutl::restore::{self, Restore, RestoreError, Restored};
use etcdutl::snapshot_file::{SnapshotError, SnapshotFile};
use etcdutl::status::{StatusError, status};

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
    #[error("--{0} is no text in UTF-8")]
    NotText(&'static str),
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
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::StatusArguments
            | Self::RestoreArguments
            | Self::MarkCompacted
            | Self::Target(_) => exit::BAD_ARGUMENTS,
            Self::Format(_) => exit::BAD_FEATURE,
            _ => exit::ERROR,
        }
    }
}

fn main() -> ExitCode {
    let words = env::args_os().map(|argument| Word::from(argument.into_vec()));
    cobra::run(&commands::root(), words.collect(), |run, invocation| {
        let answer = run(&invocation).map_err(|error| Exit::with(error.exit_code(), error))?;
        cobra::write(answer.as_bytes())
    })
}

/// The checks come in Go's order: arguments, file, format, content.
fn snapshot_status(invocation: &Invocation) -> Result<String, CommandError> {
    let [name] = invocation.arguments() else { return Err(CommandError::StatusArguments) };
    let file = SnapshotFile::open(&OsDisk::new(), &words::path(name))?;
    let format: Format = match invocation.matches.text("write-out").parse() {
        Err(FormatError::Protobuf) => {
            status(&file.bbolt()?)?;
            return Err(FormatError::Protobuf.into());
        }
        other => other?,
    };
    Ok(print::status(&status(&file.bbolt()?)?, format))
}

fn defrag(invocation: &Invocation) -> Result<String, CommandError> {
    let path = words::path(&invocation.matches.word("data-dir"));
    let path = path.as_path();
    let timeout = invocation.matches.duration("timeout");
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

/// The checks come in Go's order: format, file, content.
fn file_hash_kv(invocation: &Invocation) -> Result<String, CommandError> {
    let matches = &invocation.matches;
    let format = matches.text("write-out").parse::<Format>();
    if format == Err(FormatError::Unknown) {
        return Err(FormatError::Unknown.into());
    }
    // There is exactly one argument: that is checked before.
    let name = invocation.arguments().first().map(|name| words::path(name)).unwrap_or_default();
    let file = SnapshotFile::open(&OsDisk::new(), &name)?;
    let answer = hash_kv(file.bbolt()?, matches.integer("rev"))?;
    Ok(print::hash_kv(&answer, format?))
}

/// A path in a message.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn migrate(invocation: &Invocation) -> Result<String, CommandError> {
    let matches = &invocation.matches;
    let target = data_dir::parse_target(matches.text("target-version"))?;
    let path = words::path(&matches.word("data-dir"));
    if !data_dir::is_current(&OsDisk::new(), &path, target)? {
        return Err(CommandError::OtherVersion(target.0, target.1));
    }
    let fields = serde_json::json!({ "storage-version": format!("{}.{}", target.0, target.1) });
    log("info", "storage version up-to-date", Some(&fields));
    Ok(String::new())
}

/// A line on the standard error; if that is closed, nobody wants to know.
fn log(level: &str, message: &str, fields: Option<&serde_json::Value>) {
    let fields = fields.map(|fields| format!("\t{fields}")).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "{level}\t{message}{fields}");
}

/// Nothing goes to the standard output, as in Go; what was done is logged.
fn snapshot_restore(invocation: &Invocation) -> Result<String, CommandError> {
    let [snapshot] = invocation.arguments() else { return Err(CommandError::RestoreArguments) };
    let matches = &invocation.matches;
    let bump_revision = matches.unsigned("bump-revision");
    if (bump_revision > 0) != matches.is_true("mark-compacted") {
        return Err(CommandError::MarkCompacted);
    }
    let order = Restore {
        skip_hash_check: matches.is_true("skip-hash-check"),
        bump_revision,
        ..order(words::path(snapshot), matches)?
    };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    log_restored(&order, &restore::restore(&disk, &order)?);
    Ok(String::new())
}

fn import(invocation: &Invocation) -> Result<String, CommandError> {
    let matches = &invocation.matches;
    let wal_dir = path_of(matches, "from-wal-dir");
    let from = words::path(&matches.word("from"));
    let from = GoDataDir::open(&from, wal_dir.as_deref()).map_err(RestoreError::from)?;
    let order = order(from.backend(), matches)?;
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
fn order(snapshot: PathBuf, matches: &Matches) -> Result<Restore, CommandError> {
    let name = text_of(matches, "name")?;
    let default_data_dir = || restore::default_data_dir(&name);
    Ok(Restore {
        snapshot,
        data_dir: path_of(matches, "data-dir").unwrap_or_else(default_data_dir),
        wal_dir: path_of(matches, "wal-dir"),
        initial_cluster: text_of(matches, "initial-cluster")?,
        initial_cluster_token: text_of(matches, "initial-cluster-token")?,
        advertise_peer_urls: text_of(matches, "initial-advertise-peer-urls")?,
        skip_hash_check: false,
        bump_revision: 0,
        drop_auth: matches.is_true("drop-auth"),
        name,
    })
}

/// The file or directory that a flag names, if any.
fn path_of(matches: &Matches, flag: &str) -> Option<PathBuf> {
    Some(matches.word(flag)).filter(|word| !word.is_empty()).map(|word| words::path(&word))
}

/// What a flag says that becomes part of the cluster, where nothing may be replaced.
fn text_of(matches: &Matches, flag: &'static str) -> Result<String, CommandError> {
    let word = matches.word(flag);
    str::from_utf8(&word).map(str::to_owned).map_err(|_| CommandError::NotText(flag))
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
