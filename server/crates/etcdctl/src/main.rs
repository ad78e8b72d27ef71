//! `etcdctl`: the command line of etcd's v3 API, a drop-in for Go etcdctl 3.7.
//!
//! In: arguments, `ETCDCTL_*` variables, standard input. Out: text on standard output and error and
//! an exit code, all as Go etcdctl's, because scripts read them; `e2e/scenarios` holds both to the
//! same texts. Help texts have Go's shape and our words.
//!
//! A run is: `cobra` finds the command in the tree of [`commands`] and reads its flags, the command's own
//! file checks the arguments and makes the request, [`global`] makes the client, [`output`] prints the answer.
//!
//! Where we differ on purpose: what makes Go etcdctl panic (an unknown operator or a lease in a
//! comparison of `txn`) is an error or works here; `ETCDCTL_COMMAND_TIMEOUT` counts for every
//! command; `make-mirror --rev` keeps the prefix of keys, as it does without `--rev`.

mod alarm;
mod auth;
mod check;
mod command;
mod commands;
mod compaction;
mod completion;
mod concurrency;
mod defrag;
mod del;
mod downgrade;
mod elect;
mod endpoint;
mod execute;
mod get;
mod global;
mod go;
mod lease;
mod lock;
mod log;
mod make_mirror;
mod member;
mod move_leader;
mod output;
mod put;
mod role;
mod snapshot;
mod terminal;
mod txn;
mod user;
mod version;
mod watch;
mod words;

use std::env;
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;

use words::Word;

fn main() -> ExitCode {
    let words = env::args_os().map(|argument| Word::from(argument.into_vec()));
    commands::run(words.collect())
}
