//! `completion`: scripts that let a shell complete command lines.
//!
//! The scripts know nothing: they ask the hidden command `__complete` with the words typed so far,
//! which answers from the same tree of commands that the parser uses. So they stay right when
//! commands change.

use crate::command_line::{Command, Group, Invocation};
use crate::exit::Outcome;
use crate::flags::{Flag, Kind};
use crate::words::{self, Word};
use crate::{go, output};

/// The hidden command.
pub(crate) const COMPLETE: &str = "__complete";

const SHELLS: [(&str, &str); 4] =
    [("bash", BASH), ("zsh", ZSH), ("fish", FISH), ("powershell", POWERSHELL)];

const BASH: &str = r#"# bash completion for etcdctl
_etcdctl() {
    local line words=()
    while IFS= read -r line; do
        words+=("${line%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=("${words[@]}")
}
complete -o bashdefault -o default -F _etcdctl etcdctl
"#;

const ZSH: &str = r#"#compdef etcdctl
# zsh completion for etcdctl
_etcdctl() {
    local line
    local -a found
    while IFS= read -r line; do
        found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done < <("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe etcdctl found
    else
        _files
    fi
}
if [ "$funcstack[1]" = "_etcdctl" ]; then
    _etcdctl
else
    compdef _etcdctl etcdctl
fi
"#;

const FISH: &str = r#"# fish completion for etcdctl
function __etcdctl_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c etcdctl -a '(__etcdctl_complete)'
"#;

const POWERSHELL: &str = r#"# powershell completion for etcdctl
Register-ArgumentCompleter -Native -CommandName etcdctl -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | ForEach-Object { "$_" })
    $typed = @($words | Select-Object -Skip 1)
    if ($wordToComplete -eq '') { $typed += '""' }
    & $words[0] __complete '--' @typed 2>$null | ForEach-Object {
        $name, $about = $_ -split "`t", 2
        if (-not $about) { $about = $name }
        [System.Management.Automation.CompletionResult]::new($name, $name, 'ParameterValue', $about)
    }
}
"#;

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
        check: Some(check),
        run: Some(|invocation| Box::pin(completion(invocation))),
        ..Command::default()
    }
}

/// The arguments, in cobra's words.
fn check(arguments: &[Word]) -> Result<(), String> {
    match arguments {
        [shell] if SHELLS.iter().any(|(name, _)| shell == name) => Ok(()),
        [shell] => {
            let shell = go::quote(shell);
            Err(format!("invalid argument {shell} for \"etcdctl completion\""))
        }
        _ => Err(format!("accepts 1 arg(s), received {}", arguments.len())),
    }
}

async fn completion(invocation: Invocation) -> Outcome {
    let script = SHELLS.iter().find(|(name, _)| invocation.arguments().iter().any(|it| it == name));
    output::write(script.map_or("", |(_, script)| script).as_bytes())
}

/// What can stand for the last of the words, a line each: the word, a tab, what it is.
pub(crate) fn complete(root: &Command, words: &[Word]) -> Vec<String> {
    let Some((typed, before)) = words.split_last() else { return Vec::new() };
    let found = root.find(before);
    let typed = words::shown(typed);
    let flags = found.known_flags();
    let of_word = |word: &str| {
        flags.iter().find(|flag| {
            word.strip_prefix("--") == Some(flag.name)
                || word.strip_prefix('-').is_some_and(|it| it.chars().eq(flag.short))
        })
    };
    // The value of the flag before it.
    if let Some(flag) = before.last().and_then(|word| of_word(&words::shown(word)))
        && flag.kind != Kind::Bool
    {
        let values = flag.values().iter().filter(|value| value.starts_with(&*typed));
        return values.map(|value| (*value).to_owned()).collect();
    }
    let line = |name: &str, about: &str| format!("{name}\t{about}");
    if typed.starts_with('-') {
        let name = |flag: &&Flag| format!("--{}", flag.name).starts_with(&*typed);
        let lines = flags.iter().filter(name);
        return lines.map(|flag| line(&format!("--{}", flag.name), flag.help)).collect();
    }
    if found.first_argument().is_some() {
        return Vec::new();
    }
    let children = found.command().children.iter();
    children
        .filter(|child| !child.hidden && child.name.starts_with(&*typed))
        .map(|child| line(child.name, child.short))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::root;

    fn offered(line: &str) -> Vec<String> {
        let words: Vec<Word> = line.split(' ').map(|it| Word::from(it.to_owned())).collect();
        let lines = complete(&root(), &words);
        lines.iter().map(|it| it.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn commands_flags_and_values_are_offered_where_they_can_stand() {
        for (line, words) in [
            ("us", &["user"][..]),
            ("user gr", &["grant-role"]),
            ("--hex user pa", &["passwd"]),
            ("-w js", &["json"]),
            ("get --write-out t", &["table"]),
            ("get a --prin", &["--print-value-only"]),
            ("check perf --load s", &["small"]),
            ("endpoint health --clu", &["--cluster"]),
            ("get a b", &[]),
            ("__", &[]),
        ] {
            assert_eq!(offered(line), words, "{line}");
        }
        assert!(offered("").iter().any(|word| word == "make-mirror"));
        assert!(!offered("").iter().any(|word| word == COMPLETE));
    }
}
