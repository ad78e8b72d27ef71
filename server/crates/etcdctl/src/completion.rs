//! `completion`: scripts that let a shell complete command lines.

use cobra::completion::{SHELLS, check, script};

use crate::command::{Command, Group};
use crate::output;

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
        group: Group::UTILITY,
        first_arguments: &SHELLS,
        check: Some(check),
        run: Some(|invocation| {
            Box::pin(async move {
                let shell = invocation.arguments().first();
                let script = shell.map(|shell| script("etcdctl", shell));
                output::write(script.unwrap_or_default().as_bytes())
            })
        }),
        ..Command::default()
    }
}
