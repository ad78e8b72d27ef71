//! The commands of `etcdutl` and their flags, with Go's names.

use cobra::completion::{self, SHELLS};
use cobra::{Flag, Invocation, Kind, WRITE_OUT, one_argument};

use crate::{
    CommandError, defrag, file_hash_kv, import, migrate, snapshot_restore, snapshot_status,
};

/// What a command does; its answer is printed.
pub(crate) type Run = fn(&Invocation) -> Result<String, CommandError>;

type Command = cobra::Command<Run>;

const NAME: &str = "etcdutl";
/// The version of etcd that this tool stands in for.
const VERSION: &str = "etcdutl version: 3.7.3\nAPI version: 3.7\n";

const SHARED: [Flag; 2] = [
    WRITE_OUT,
    Flag::new(
        "timeout",
        Kind::Duration,
        "10s",
        "how long to wait for the lock of a data directory; 0 means for ever",
    ),
];

/// Which member of which cluster is made, and where.
const IDENTITY: [Flag; 7] = [
    Flag::new("data-dir", Kind::Text, "", "directory to make; <name>.etcd if none is given")
        .directory(),
    Flag::new(
        "wal-dir",
        Kind::Text,
        "",
        "directory for the log; in the data directory if none is given",
    )
    .directory(),
    Flag::new(
        "initial-cluster",
        Kind::Text,
        "default=http://localhost:2380",
        "all members of the new cluster with their peer URLs",
    ),
    Flag::new(
        "initial-cluster-token",
        Kind::Text,
        "etcd-cluster",
        "tells the new cluster from others with the same members",
    ),
    Flag::new(
        "initial-advertise-peer-urls",
        Kind::Text,
        "http://localhost:2380",
        "peer URLs of this member",
    ),
    Flag::new("name", Kind::Text, "default", "name of this member"),
    Flag::new(
        "drop-auth",
        Kind::Bool,
        "false",
        "leave users and roles behind, of data for which authentication was enabled",
    ),
];

/// The whole tree, in the order in which Go etcdutl adds its commands.
pub(crate) fn root() -> Command {
    Command {
        name: NAME,
        short: "Works on files and data directories of etcd that no server uses.",
        persistent: SHARED.to_vec(),
        children: vec![
            Command {
                name: "defrag",
                short: "Gives back what the storage of a data directory does not need",
                flags: vec![
                    Flag::new("data-dir", Kind::Text, "", "required; no server may be using it")
                        .directory()
                        .required(),
                ],
                run: Some(defrag),
                ..Command::default()
            },
            snapshot(),
            Command {
                name: "hashkv",
                usage: "<filename>",
                short: "Prints the hash of the keys in a snapshot and of their history",
                flags: vec![Flag::new(
                    "rev",
                    Kind::Integer,
                    "0",
                    "the last revision to hash (0 for all)",
                )],
                check: Some(one_argument),
                run: Some(file_hash_kv),
                ..Command::default()
            },
            Command {
                name: "version",
                short: "Tells the version",
                run: Some(|_| Ok(VERSION.to_owned())),
                ..Command::default()
            },
            completion(),
            Command {
                name: "migrate",
                short: "Makes a data directory fit another version of etcd",
                long: "Makes a data directory fit another version of etcd, as far as there is anything to make:\n\
                       the format of these directories is the same for all of them.",
                flags: vec![
                    Flag::new("data-dir", Kind::Text, "", "required; the directory")
                        .directory()
                        .required(),
                    Flag::new("target-version", Kind::Text, "", "required; X.Y, 3.5 or newer")
                        .required(),
                    Flag::new(
                        "force",
                        Kind::Bool,
                        "false",
                        "without effect: there is no storage version to override",
                    ),
                ],
                run: Some(migrate),
                ..Command::default()
            },
            import_command(),
            Command {
                name: "help",
                usage: "[command]",
                short: "Explains a command",
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

fn snapshot() -> Command {
    let mut flags = IDENTITY.to_vec();
    flags.extend([
        Flag::new(
            "skip-hash-check",
            Kind::Bool,
            "false",
            "take a file without a digest, as one that was copied from a data directory",
        ),
        Flag::new(
            "initial-memory-map-size",
            Kind::Unsigned,
            "0",
            "without effect: files are read, not mapped",
        ),
        Flag::new("bump-revision", Kind::Unsigned, "0", "by how much the revision is raised"),
        Flag::new(
            "mark-compacted",
            Kind::Bool,
            "false",
            "count everything before the raised revision as compacted (has to go with --bump-revision)",
        ),
    ]);
    Command {
        name: "snapshot",
        short: "Works on snapshots",
        children: vec![
            Command {
                name: "restore",
                usage: "<filename> --data-dir {output dir} [options]",
                short: "Makes the data directory of a member of a new cluster from a snapshot",
                flags,
                run: Some(snapshot_restore),
                ..Command::default()
            },
            Command {
                name: "status",
                usage: "<filename>",
                short: "Tells what is in a snapshot",
                run: Some(snapshot_status),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

fn import_command() -> Command {
    let mut flags = vec![
        Flag::new("from", Kind::Text, "", "required; the data directory of a member of Go etcd")
            .directory()
            .required(),
        Flag::new("from-wal-dir", Kind::Text, "", "its log, if that is not in its data directory")
            .directory(),
    ];
    flags.extend(IDENTITY);
    Command {
        name: "import",
        usage: "--from {data dir} --data-dir {output dir} [options]",
        short: "Makes a data directory from one of Go etcd, whose server must not be running",
        flags,
        run: Some(import),
        ..Command::default()
    }
}

fn completion() -> Command {
    Command {
        name: "completion",
        usage: "[bash|zsh|fish|powershell]",
        short: "Prints a script that completes command lines",
        first_arguments: &SHELLS,
        check: Some(completion::check),
        run: Some(|invocation| {
            let shell = invocation.arguments().first();
            Ok(shell.map(|shell| completion::script(NAME, shell)).unwrap_or_default())
        }),
        ..Command::default()
    }
}
