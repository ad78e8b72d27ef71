//! The tree of commands, and a run from its arguments to its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use crate::command_line::{Command, Found, Group, Invocation};
use crate::exit::{self, Exit, Outcome};
use crate::flags::{Flag, HELP};
use crate::words::{self, Word};
use crate::{
    alarm, auth, check, compaction, complete, completion, defrag, del, downgrade, elect, endpoint,
    get, global, go, help, lease, lock, log, make_mirror, member, move_leader, output, put, role,
    snapshot, txn, user, version, watch,
};

/// Runs a command line, which begins with the program's name.
pub(crate) fn run(command_line: Vec<Word>) -> ExitCode {
    let exit = match dispatch(command_line) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(exit) => exit,
    };
    if let Some(message) = exit.message {
        // There is nowhere left to tell that standard error cannot be written.
        let _ = writeln!(std::io::stderr(), "Error: {message}");
    }
    ExitCode::from(exit.code)
}

fn dispatch(command_line: Vec<Word>) -> Outcome {
    let root = root();
    let words = command_line.get(1..).unwrap_or_default();
    if let Some(answered) = complete::run(&root, words) {
        return answered;
    }
    let found = root.find(words);
    if found.path.len() == 1
        && let Some(unknown) = found.first_argument()
    {
        return Err(Exit::with(exit::ERROR, unknown_command(&root, unknown)));
    }
    let matches = match found.parse() {
        Ok(matches) => matches,
        Err(reason) => return Err(with_usage(&found, &reason)),
    };
    let command = found.command();
    if !matches.is_true(HELP)
        && let Some(Err(reason)) = command.check.map(|check| check(&matches.arguments))
    {
        return Err(with_usage(&found, &reason));
    }
    match command.run {
        Some(run) if !matches.is_true(HELP) => {
            let inherited = found.inherited();
            let invocation = Invocation { matches, inherited, command_line: command_line.clone() };
            block_on(run(invocation))
        }
        _ if command.name == "help" => help_about(&root, &matches.arguments),
        _ => output::write(help::help(&found).as_bytes()),
    }
}

/// Tells what is wrong with a command line and how it should be.
fn with_usage(found: &Found<'_>, reason: &str) -> Exit {
    let usage = format!("Error: {reason}\n{}\n", help::usage(found));
    let _ = std::io::stderr().write_all(usage.as_bytes());
    Exit::silent(exit::ERROR)
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

fn unknown_command(root: &Command, typed: &[u8]) -> String {
    let mut text = format!("unknown command {} for {:?}\n", go::quote(typed), root.name);
    let suggestions = root.suggestions(&words::shown(typed));
    if !suggestions.is_empty() {
        text.push_str("\nDid you mean this?\n");
        for suggestion in suggestions {
            text.push_str(&format!("\t{suggestion}\n"));
        }
        text.push('\n');
    }
    text.push_str(&format!("Run '{} --help' for usage.", root.name));
    text
}

fn help_about(root: &Command, topic: &[Word]) -> Outcome {
    let found = root.find(topic);
    if found.path.len() == 1 && !topic.is_empty() {
        let topic: Vec<String> = topic.iter().map(|word| unquoted(word)).collect();
        let root = Found { path: vec![root], words: Vec::new() };
        let text = format!("Unknown help topic [{}]\n{}", topic.join(" "), help::usage(&root));
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Ok(());
    }
    output::write(help::help(&found).as_bytes())
}

/// Go's `%#q`: as it is, if that can be.
fn unquoted(word: &[u8]) -> String {
    str::from_utf8(word).map_or_else(|_| go::quote(word), |word| format!("`{word}`"))
}

/// The whole tree, in the order in which Go etcdctl adds its commands, which is the order of
/// suggestions.
pub(crate) fn root() -> Command {
    Command {
        name: "etcdctl",
        short: "Talks to an etcd cluster over the v3 API.",
        persistent: global::FLAGS.to_vec(),
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
                group: Some(Group::Utility),
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
        group: Some(Group::Utility),
        run: Some(|_| {
            Box::pin(async {
                let flags: &[Flag] = &global::FLAGS;
                let list = help::flag_list(flags, None);
                let text = format!("The following options can be passed to any command:\n\n{list}");
                output::write(text.as_bytes())
            })
        }),
        ..Command::default()
    }
}
