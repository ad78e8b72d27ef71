//! A run from its arguments to its exit code.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use types::go;

use crate::command::{Command, Found, Invocation};
use crate::exit::{self, Exit, Outcome};
use crate::flags::HELP;
use crate::words::{self, Word};
use crate::{complete, help};

/// Runs a command line, which begins with the program's name. What has to be run is given to `execute`;
/// help, completion and complaints are answered here.
pub fn run<R: Copy>(
    root: &Command<R>,
    command_line: Vec<Word>,
    execute: impl FnOnce(R, Invocation) -> Outcome,
) -> ExitCode {
    let exit = match dispatch(root, command_line, execute) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(exit) => exit,
    };
    if let Some(message) = exit.message {
        // There is nowhere left to tell that standard error cannot be written.
        let _ = writeln!(std::io::stderr(), "Error: {message}");
    }
    ExitCode::from(exit.code)
}

fn dispatch<R: Copy>(
    root: &Command<R>,
    command_line: Vec<Word>,
    execute: impl FnOnce(R, Invocation) -> Outcome,
) -> Outcome {
    let words = command_line.get(1..).unwrap_or_default();
    if let Some(answered) = complete::run(root, words) {
        return answered;
    }
    let found = root.find(words);
    if found.path.len() == 1
        && let Some(unknown) = found.first_argument()
    {
        return Err(Exit::with(exit::ERROR, unknown_command(root, unknown)));
    }
    let matches = match found.parse() {
        Ok(matches) => matches,
        Err(reason) => return Err(with_usage(&found, &reason)),
    };
    let command = found.command();
    match command.run {
        Some(run) if !matches.is_true(HELP) => {
            let check = command.check.unwrap_or(|_, _| Ok(()));
            let checked = check(&found.full_name(), &matches.arguments);
            if let Err(reason) = checked.and_then(|()| matches.check_required()) {
                return Err(with_usage(&found, &reason));
            }
            let inherited = found.inherited();
            execute(run, Invocation { matches, inherited, command_line: command_line.clone() })
        }
        _ if command.name == HELP && !matches.is_true(HELP) => help_about(root, &matches.arguments),
        _ => write(help::help(&found).as_bytes()),
    }
}

/// Writes to the standard output at once, so that the reader of a pipe sees events as they come.
pub fn write(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        // As of a program that SIGPIPE ends, which Go's is: whoever reads no more wants no complaint.
        ErrorKind::BrokenPipe => Exit::silent(exit::NOBODY_READS),
        _ => Exit::with(exit::IO, format!("cannot write the output: {error}")),
    })
}

/// Tells what is wrong with a command line and how it should be.
fn with_usage<R>(found: &Found<'_, R>, reason: &str) -> Exit {
    let usage = format!("Error: {reason}\n{}\n", help::usage(found));
    let _ = std::io::stderr().write_all(usage.as_bytes());
    Exit::silent(exit::ERROR)
}

fn unknown_command<R>(root: &Command<R>, typed: &[u8]) -> String {
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

fn help_about<R>(root: &Command<R>, topic: &[Word]) -> Outcome {
    let found = root.find(topic);
    if found.path.len() == 1 && !topic.is_empty() {
        let topic: Vec<String> = topic.iter().map(|word| unquoted(word)).collect();
        let root = Found { path: vec![root], words: Vec::new() };
        let text = format!("Unknown help topic [{}]\n{}", topic.join(" "), help::usage(&root));
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Ok(());
    }
    write(help::help(&found).as_bytes())
}

/// Go's `%#q`: as it is, if that can be.
fn unquoted(word: &[u8]) -> String {
    str::from_utf8(word).map_or_else(|_| go::quote(word), |word| format!("`{word}`"))
}
