//! The arguments of `etcdutl`: commands and flags, with Go's names.

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

/// An administrative command line tool for etcd3.
#[derive(Parser)]
#[command(name = "etcdutl", infer_subcommands = true, disable_help_subcommand = false)]
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
        rest: Vec<String>,
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
    Other(#[allow(dead_code, reason = "the help is the same for all")] Vec<String>),
}

#[derive(Args)]
pub(crate) struct FileNames {
    /// The snapshot file: exactly one.
    #[arg(value_name = "filename")]
    pub(crate) files: Vec<String>,
}

/// Which member of which cluster is made, and where.
#[derive(Args)]
pub(crate) struct IdentityArguments {
    /// Path to the output data directory; <name>.etcd if none is given.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) data_dir: String,
    /// Path to the WAL directory (use --data-dir if none given).
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) wal_dir: String,
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
          default_missing_value = "true")]
    pub(crate) drop_auth: bool,
}

/// What is made from a data directory of Go etcd.
#[derive(Args)]
pub(crate) struct ImportArguments {
    /// Required. The data directory of a member of Go etcd, which must not be running.
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// Its WAL directory, if that is not in its data directory.
    #[arg(long)]
    pub(crate) from_wal_dir: Option<String>,
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
          default_missing_value = "true")]
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
          default_missing_value = "true")]
    pub(crate) mark_compacted: bool,
}

#[derive(Args)]
pub(crate) struct DefragArguments {
    /// Required. The data directory, which no server may be using.
    #[arg(long)]
    pub(crate) data_dir: Option<String>,
    /// Nothing is made of what else is given.
    #[allow(dead_code, reason = "etcd takes it and makes nothing of it either")]
    #[arg(hide = true)]
    pub(crate) rest: Vec<String>,
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
    pub(crate) data_dir: Option<String>,
    /// Target etcd version, "X.Y", for example 3.7. Minimal value 3.5.
    #[arg(long)]
    pub(crate) target_version: Option<String>,
    /// Taken for compatibility and without effect: there is no storage version to override.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true")]
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

/// A number as Go's `strconv` reads it, and complains about it.
fn number<T: FromStr<Err = ParseIntError>>(function: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.{function}: parsing {text:?}: {why}")
    })
}

fn unsigned(text: &str) -> Result<u64, String> {
    number("ParseUint", text)
}

fn signed(text: &str) -> Result<i64, String> {
    number("ParseInt", text)
}

/// A duration in Go's notation, as in `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let (number, unit_on) = rest.split_at(digits.unwrap_or(rest.len()));
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let letters = unit_on.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, next) = unit_on.split_at(letters.unwrap_or(unit_on.len()));
        total += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = next;
    }
    match text {
        "" => Err(invalid()),
        _ => Duration::try_from_secs_f64(total).map_err(|_| invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["", "10", "-1s", "5x", "s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
