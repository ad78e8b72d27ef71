//! The tree of commands, and a run of one.

use std::process::ExitCode;

use cobra::{Exit, Flag, Outcome, Word, exit};

use crate::command::{Command, Group};
use crate::{
    alarm, auth, check, compaction, completion, defrag, del, downgrade, elect, endpoint, get,
    global, lease, lock, log, make_mirror, member, move_leader, output, put, role, snapshot, txn,
    user, version, watch,
};

/// Runs a command line, which begins with the program's name.
pub(crate) fn run(command_line: Vec<Word>) -> ExitCode {
    cobra::run(&root(), command_line, |run, invocation| block_on(run(invocation)))
}

/// One thread is enough: a command makes one request at a time, or waits.
fn block_on(run: impl Future<Output = Outcome>) -> Outcome {
    // Only fails if a subscriber is set already, and none is.
    let _ = tracing::subscriber::set_global_default(log::Lines);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::with(exit::ERROR, error))?;
    let outcome = runtime.block_on(run);
    // Tasks that still read standard input must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// The whole tree, in the order in which Go etcdctl adds its commands, which is the order of
/// suggestions.
pub(crate) fn root() -> Command {
    Command {
        name: "etcdctl",
        short: "Talks to an etcd cluster over the v3 API.",
        persistent: global::FLAGS.to_vec(),
        options: Some("options"),
        groups: Group::ALL,
        children: vec![
            get::command(),
            put::command(),
            del::command(),
            txn::command(),
            compaction::command(),
            alarm::command(),
            defrag::command(),
            endpoint::command(),
            move_leader::command(),
            watch::command(),
            version::command(),
            lease::command(),
            member::command(),
            snapshot::command(),
            make_mirror::command(),
            lock::command(),
            elect::command(),
            auth::command(),
            user::command(),
            role::command(),
            check::command(),
            completion::command(),
            downgrade::command(),
            options(),
            Command {
                name: "help",
                usage: "[command]",
                short: "Explains a command",
                group: Group::UTILITY,
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

fn options() -> Command {
    Command {
        name: "options",
        short: "Lists the flags that all commands share",
        group: Group::UTILITY,
        run: Some(|_| {
            Box::pin(async {
                let flags: &[Flag] = &global::FLAGS;
                let list = cobra::flag_list(flags, None);
                let text = format!("The following options can be passed to any command:\n\n{list}");
                output::write(text.as_bytes())
            })
        }),
        ..Command::default()
    }
}
