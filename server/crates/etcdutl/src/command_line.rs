//! The arguments of `etcdutl`: commands and flags, with Go's names. Names of files need not be UTF-8.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use types::go::{self, NumberError};

/// An administrative command line tool for etcd3.
#[derive(Parser)]
#[command(
    name = "etcdutl",
    infer_subcommands = true,
    disable_help_subcommand = false,
    args_override_self = true
)]
pub(crate) struct CommandLine {
    /// Set the output format (fields, json, protobuf, simple, table).
    #[arg(short, long, global = true, default_value = "simple")]
    pub(crate) write_out: String,
    /// Time to wait to obtain a file lock on the data directory, 0 to block indefinitely.
    #[arg(long, global = true, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Manages etcd node snapshots.
    #[command(infer_subcommands = true)]
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Defragments the storage of a member that is not running.
    Defrag(DefragArguments),
    /// Prints the KV history hash of a given file.
    Hashkv(HashKvArguments),
    /// Makes a data directory from one that Go etcd has left.
    Import(ImportArguments),
    /// Prints the version of etcdutl.
    Version {
        /// Nothing is made of what else is given.
        #[allow(dead_code, reason = "etcd takes it and makes nothing of it either")]
        #[arg(hide = true)]
        rest: Vec<OsString>,
    },
    /// Generates a completion script.
    Completion {
        /// The shell: bash, zsh, fish or powershell.
        shell: Vec<String>,
    },
    /// Makes a data directory compatible with another version of etcd, as far as there is anything to
    /// make.
    Migrate(MigrateArguments),
}

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Gets backend snapshot status of a given file.
    Status(FileNames),
    /// Restores an etcd member snapshot to an etcd directory.
    Restore(RestoreArguments),
    /// What there is not, which is answered with the help.
    #[command(external_subcommand)]
    Other(#[allow(dead_code, reason = "the help is the same for all")] Vec<OsString>),
}

#[derive(Args)]
pub(crate) struct FileNames {
    /// The snapshot file: exactly one.
    #[arg(value_name = "filename")]
    pub(crate) files: Vec<OsString>,
}

/// Which member of which cluster is made, and where.
#[derive(Args)]
pub(crate) struct IdentityArguments {
    /// Path to the output data directory; <name>.etcd if none is given.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) data_dir: OsString,
    /// Path to the WAL directory (use --data-dir if none given).
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) wal_dir: OsString,
    /// Initial cluster configuration for restore bootstrap.
    #[arg(long, default_value = "default=http://localhost:2380")]
    pub(crate) initial_cluster: String,
    /// Initial cluster token for the etcd cluster during restore bootstrap.
    #[arg(long, default_value = "etcd-cluster")]
    pub(crate) initial_cluster_token: String,
    /// List of this member's peer URLs to advertise to the rest of the cluster.
    #[arg(long, default_value = "http://localhost:2380")]
    pub(crate) initial_advertise_peer_urls: String,
    /// Human-readable name for this member.
    #[arg(long, default_value = "default")]
    pub(crate) name: String,
    /// Restore without the users and roles of a snapshot that was taken with authentication enabled.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = truth)]
    pub(crate) drop_auth: bool,
}

/// What is made from a data directory of Go etcd.
#[derive(Args)]
pub(crate) struct ImportArguments {
    /// Required. The data directory of a member of Go etcd, which must not be running.
    #[arg(long)]
    pub(crate) from: Option<OsString>,
    /// Its WAL directory, if that is not in its data directory.
    #[arg(long)]
    pub(crate) from_wal_dir: Option<OsString>,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
}

#[derive(Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    pub(crate) names: FileNames,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Ignore snapshot integrity hash value (required if copied from data directory).
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = truth)]
    pub(crate) skip_hash_check: bool,
    /// Taken for compatibility and not used: files are read, not mapped.
    #[arg(long, default_value_t = 0, hide_default_value = true, value_parser = unsigned,
          allow_negative_numbers = true)]
    pub(crate) initial_memory_map_size: u64,
    /// How much to increase the latest revision after restore.
    #[arg(long, default_value_t = 0, value_parser = unsigned, allow_negative_numbers = true)]
    pub(crate) bump_revision: u64,
    /// Mark the latest revision after restore as the point of scheduled compaction (required if
    /// --bump-revision > 0, disallowed otherwise).
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = truth)]
    pub(crate) mark_compacted: bool,
}

#[derive(Args)]
pub(crate) struct DefragArguments {
    /// Required. The data directory, which no server may be using.
    #[arg(long)]
    pub(crate) data_dir: Option<OsString>,
    /// Nothing is made of what else is given.
    #[allow(dead_code, reason = "etcd takes it and makes nothing of it either")]
    #[arg(hide = true)]
    pub(crate) rest: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct HashKvArguments {
    #[command(flatten)]
    pub(crate) names: FileNames,
    /// Maximum revision to hash (default: latest revision).
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_negative_numbers = true,
          value_parser = signed)]
    pub(crate) rev: i64,
}

#[derive(Args)]
pub(crate) struct MigrateArguments {
    /// Path to the data directory.
    #[arg(long)]
    pub(crate) data_dir: Option<OsString>,
    /// Target etcd version, "X.Y", for example 3.7. Minimal value 3.5.
    #[arg(long)]
    pub(crate) target_version: Option<String>,
    /// Taken for compatibility and without effect: there is no storage version to override.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_parser = truth)]
    pub(crate) force: bool,
}

/// The shells in Go's names.
pub(crate) fn shell(name: &str) -> Option<Shell> {
    Some(match name {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        "powershell" => Shell::PowerShell,
        _ => return None,
    })
}

fn unsigned(text: &str) -> Result<u64, NumberError> {
    go::parse_unsigned(text, 0)
}

fn signed(text: &str) -> Result<i64, NumberError> {
    go::parse_int(text, 0)
}

fn truth(text: &str) -> Result<bool, NumberError> {
    go::parse_bool(text)
}

/// A duration in Go's notation, as in `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    go::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(flags: &[&str]) -> RestoreArguments {
        let words = ["etcdutl", "snapshot", "restore", "file"].iter().chain(flags);
        match CommandLine::try_parse_from(words).map(|line| line.command) {
            Ok(Command::Snapshot { command: SnapshotCommand::Restore(arguments) }) => arguments,
            other => panic!("{flags:?}: {:?}", other.err()),
        }
    }

    #[test]
    fn flags_are_read_as_pflag_reads_them() {
        let read = restore(&[
            "--name=a",
            "--bump-revision=0x1_0",
            "--skip-hash-check=T",
            "--name=b",
            "--mark-compacted",
            "--mark-compacted=0",
            "--initial-memory-map-size=010",
        ]);
        assert_eq!((read.identity.name.as_str(), read.bump_revision), ("b", 16));
        assert_eq!((read.skip_hash_check, read.mark_compacted), (true, false));
        assert_eq!((read.initial_memory_map_size, read.names.files.len()), (8, 1));
    }
}
