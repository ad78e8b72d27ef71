//! `completion`: scripts that let a shell complete command lines.
//!
//! The scripts know nothing: they ask [`crate::complete`] with the words typed so far, which answers
//! from the same tree of commands that the parser uses. So they stay right when commands change.

use crate::command_line::{Command, Group, Invocation};
use crate::exit::Outcome;
use crate::words::Word;
use crate::{go, output};

const SHELLS: [&str; 4] = ["bash", "zsh", "fish", "powershell"];

/// In the order of the shells.
const SCRIPTS: [&str; 4] = [
    include_str!("completion/etcdctl.bash"),
    include_str!("completion/etcdctl.zsh"),
    include_str!("completion/etcdctl.fish"),
    include_str!("completion/etcdctl.ps1"),
];

pub(crate) fn command() -> Command {
    Command {
        name: "completion",
        usage: "[bash|zsh|fish|powershell]",
        short: "Prints a script that completes command lines",
        long: "Prints a script that lets a shell complete etcdctl's command lines. To load it:\n\n  \
               bash        source <(etcdctl completion bash)\n  \
               zsh         source <(etcdctl completion zsh)\n  \
               fish        etcdctl completion fish | source\n  \
               powershell  etcdctl completion powershell | Out-String | Invoke-Expression\n\nTo load \
               it in every session, put that line into the shell's start-up file.",
        group: Some(Group::Utility),
        first_arguments: &SHELLS,
        check: Some(check),
        run: Some(|invocation| Box::pin(completion(invocation))),
        ..Command::default()
    }
}

/// The arguments, in cobra's words.
fn check(arguments: &[Word]) -> Result<(), String> {
    match arguments {
        [shell] if SHELLS.iter().any(|name| shell == name) => Ok(()),
        [shell] => {
            let shell = go::quote(shell);
            Err(format!("invalid argument {shell} for \"etcdctl completion\""))
        }
        _ => Err(format!("accepts 1 arg(s), received {}", arguments.len())),
    }
}

async fn completion(invocation: Invocation) -> Outcome {
    let wanted = |shell: &str| invocation.arguments().iter().any(|argument| argument == shell);
    let script = SHELLS.into_iter().zip(SCRIPTS).find(|(shell, _)| wanted(shell));
    output::write(script.map_or("", |(_, script)| script).as_bytes())
}
