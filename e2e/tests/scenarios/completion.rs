//! Completion of command lines: what the tools answer to `__complete`, and what shells make of our scripts.
//!
//! Go's tools are asked in both; their scripts, which distributions install, ask the same of ours.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::{env, fs, io::Write as _};

use tempfile::TempDir;

use super::tools::{TOOLS, Tool, ask};

/// Every command of Go's tools, and every flag that they offer there, with and without a value begun.
#[test]
fn every_command_and_flag_is_completed_alike() {
    for tool in &TOOLS {
        let (go, ours) = (tool.go(), tool.ours());
        let mut different = String::new();
        let mut compared = 0;
        let mut both = |line: &str| {
            let (theirs, mut ours) = (ask(&go, line), ask(&ours, line));
            compared += 1;
            ours.words.retain(|word| !tool.own.contains(&word.as_str()));
            if theirs != ours {
                different.push_str(&format!("{line:?}\n  Go   {theirs:?}\n  ours {ours:?}\n"));
            }
            theirs.words
        };
        for command in tool.commands() {
            both(&command);
            let flags = both(&format!("{command}-"));
            for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
                both(&format!("{command}{flag} "));
            }
        }
        for line in tool.typed.iter().chain(tool.unusual) {
            both(line);
        }
        let name = tool.name;
        assert!(different.is_empty(), "{name}\n{different}");
        assert!(compared > tool.many, "{name}: {compared} lines only");
        println!("{compared} commands compared, {compared} equal, 0 deviating with reason");
    }
}

/// A directory in which shells complete: with our tools, and with files that they may offer.
fn room() -> TempDir {
    let room = tempfile::tempdir().expect("make a directory");
    fs::create_dir(room.path().join("bin")).expect("make a directory");
    for tool in &TOOLS {
        symlink(tool.ours(), room.path().join("bin").join(tool.name)).expect("link our tool");
    }
    fs::create_dir_all(room.path().join("here/some-directory")).expect("make a directory");
    fs::write(room.path().join("here/some-file"), "").expect("write a file");
    room
}

/// The shell in a room, if this machine has it.
fn shell(name: &str, room: &TempDir) -> Option<Command> {
    if Command::new(name).arg("--version").output().is_err() {
        println!("SKIPPED completion in {name}: this machine has no {name}");
        return None;
    }
    let paths = env::var_os("PATH").unwrap_or_default();
    let paths = [room.path().join("bin")].into_iter().chain(env::split_paths(&paths));
    let mut shell = Command::new(name);
    shell
        .current_dir(room.path().join("here"))
        .env("PATH", env::join_paths(paths).expect("make a search path"))
        .env("HOME", room.path())
        .env("TERM", "xterm");
    Some(shell)
}

/// What is completed of a line: what follows its last space, or the `=` of its last flag.
fn typed(line: &str) -> &str {
    let word = line.rsplit(' ').next().unwrap_or_default();
    match word.split_once('=') {
        Some((_, value)) if word.starts_with('-') => value,
        _ => word,
    }
}

/// Compares what a shell has found for each line with what Go's tool offers.
fn compare(shell: &str, tool: &Tool, found: &[Vec<String>]) {
    let go = tool.go();
    assert_eq!(found.len(), tool.typed.len(), "{found:?}");
    for (line, found) in tool.typed.iter().zip(found) {
        let offered = ask(&go, line);
        let mut expected = offered.words;
        expected.retain(|word| word.starts_with(typed(line)));
        if expected.is_empty() && typed(line).is_empty() {
            let files: &[&str] = match offered.directive.as_str() {
                ":0" => &["some-directory", "some-file"],
                ":16" => &["some-directory"],
                _ => &[],
            };
            expected.extend(files.iter().map(|file| (*file).to_owned()));
        }
        let found = found.iter().map(|word| word.trim_end_matches('/').to_owned());
        let mut found: Vec<String> = found.filter(|word| !tool.own.contains(&&**word)).collect();
        expected.sort_unstable();
        found.sort_unstable();
        // zsh adds a directory twice.
        found.dedup();
        assert_eq!(found, expected, "{shell}: {} {line:?}", tool.name);
    }
    println!("{} lines of {} completed in {shell}", tool.typed.len(), tool.name);
}

/// Readline puts everything that it finds into the line, which is then shown.
const BASH: &str = r#"
source <(etcdctl completion bash)
source <(etcdutl completion bash)
bind '"\C-t": insert-completions'
show() { printf '%s\n' "$READLINE_LINE"; READLINE_LINE=; READLINE_POINT=0; }
bind -x '"\C-o": show'
PS1=
"#;

#[test]
fn bash_completes_what_gos_tools_offer() {
    let room = room();
    for tool in &TOOLS {
        let Some(mut bash) = shell("bash", &room) else { return };
        fs::write(room.path().join("rc"), BASH).expect("write a file");
        let lines = tool.typed.iter().map(|line| format!("{} {line}", tool.name));
        let keys: String = lines.clone().map(|line| format!("{line}\x14\x0f")).collect();
        bash.args(["--noprofile", "--rcfile", "../rc", "-i"]);
        bash.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut bash = bash.spawn().expect("start bash");
        // Which ends its input.
        bash.stdin.take().expect("its input").write_all(keys.as_bytes()).expect("type");
        let output = bash.wait_with_output().expect("wait for bash");
        let shown = String::from_utf8_lossy(&output.stdout);
        let found: Vec<Vec<String>> = shown
            .lines()
            .zip(lines)
            .map(|(shown, line)| {
                let start = line.len() - typed(&line).len();
                let words = shown.get(start..);
                let words = words.unwrap_or_else(|| panic!("{line:?} became {shown:?}"));
                // It stays as it is if nothing is found.
                let words = if shown == line { "" } else { words };
                words.split_whitespace().map(str::to_owned).collect()
            })
            .collect();
        compare("bash", tool, &found);
    }
}

/// What the completion system adds is written down.
const ZSH: &str = r#"
PROMPT=
autoload -U compinit; compinit -u -D
source <(etcdctl completion zsh)
source <(etcdutl completion zsh)
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a matching
    builtin compadd -A matching "$@"
    print -rl -- $matching >>$ZDOTDIR/found
    builtin compadd "$@"
}
bindkey '^T' complete-word
next() { print -r -- ... >>$ZDOTDIR/found; BUFFER=; zle -I; print NEXT; }
zle -N next
bindkey '^O' next
zle-line-init() { print READY; }
zle -N zle-line-init
"#;

/// Gives a shell at a terminal these lines.
const ZSH_TYPES: &str = r#"
zmodload zsh/zpty
zpty inner 'exec zsh -d -i'
zpty -r inner shown '*READY*'
for line in "$@"; do
    zpty -w -n inner "$line"$'\x14\x0f'
    zpty -r inner shown '*NEXT*'
done
zpty -d inner
"#;

#[test]
fn zsh_completes_what_gos_tools_offer() {
    let room = room();
    for tool in &TOOLS {
        let Some(mut zsh) = shell("zsh", &room) else { return };
        let home = tempfile::tempdir().expect("make a directory");
        fs::write(home.path().join(".zshrc"), ZSH).expect("write a file");
        let lines = tool.typed.iter().map(|line| format!("{} {line}", tool.name));
        zsh.env("ZDOTDIR", home.path()).args(["-f", "-c", ZSH_TYPES, "zsh"]).args(lines);
        let output = zsh.output().expect("run zsh");
        let found = fs::read_to_string(home.path().join("found"));
        let found = found.unwrap_or_else(|error| panic!("{error}: {output:?}"));
        compare("zsh", tool, &divided(&found));
    }
}

#[test]
fn fish_completes_what_gos_tools_offer() {
    let room = room();
    for tool in &TOOLS {
        let Some(mut fish) = shell("fish", &room) else { return };
        let name = tool.name;
        let complete = format!(
            "{name} completion fish | source; \
             for line in $argv; complete -C \"{name} $line\"; echo ...; end"
        );
        let fish = fish.args(["--no-config", "-c", &complete]).args(tool.typed);
        let output = fish.output().expect("run fish");
        let found = String::from_utf8_lossy(&output.stdout);
        let mut found = divided(&found);
        for (words, line) in found.iter_mut().zip(tool.typed) {
            // It replaces the whole word.
            let word = line.rsplit(' ').next().unwrap_or_default();
            let flag = word.strip_suffix(typed(line)).unwrap_or_default();
            for word in words {
                let value = word.split('\t').next().unwrap_or_default();
                *word = value.strip_prefix(flag).unwrap_or(value).to_owned();
            }
        }
        compare("fish", tool, &found);
    }
}

/// The lines before each `...`.
fn divided(lines: &str) -> Vec<Vec<String>> {
    let mut parts = vec![Vec::new()];
    for line in lines.lines() {
        match line {
            "..." => parts.push(Vec::new()),
            "" => {}
            line => parts.last_mut().expect("a part").push(line.to_owned()),
        }
    }
    // Nothing follows the last.
    parts.pop();
    parts
}
