//! Completion of command lines: what `etcdctl __complete` answers, and what shells make of our scripts.
//!
//! Go etcdctl is asked in both; its scripts, which distributions install, ask the same of ours.

use std::collections::VecDeque;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, io::Write as _};

use e2e::peers;
use tempfile::TempDir;

/// Lines whose last word a shell completes.
const TYPED: [&str; 18] = [
    "",
    "m",
    "user ",
    "user gr",
    "help user pa",
    "completion ",
    "completion b",
    "completion bash ",
    "-w json lease ",
    "--hex endpoint h",
    "get --prin",
    "get a --order ",
    "get --order=D",
    "get --endpoints=http://a:1,b:2 -w=pro",
    "get a:b --sort-by=",
    "snapshot s",
    "get --nonsense",
    "put a=b ",
];

/// Lines that no walk through the tree comes by.
const UNUSUAL: [&str; 22] = [
    "nothing ",
    "nothing -",
    "get --help ",
    "get --nonsense ",
    "get --nonsense=",
    "get --limit=x --pre",
    "get --prefix --pre",
    "get --prefix=false --pre",
    "get -- --pre",
    "get -- --order ",
    "get --order=",
    "get --order ASCEND --ord",
    "get -w=",
    "-w ",
    "endpoint --cluster ",
    "endpoint --cluster --clu",
    "endpoint health -h ",
    "user x ",
    "e h -",
    "help nothing ",
    "help user add ",
    "completion bash -",
];

/// Lines for which ours offers more, and why.
const DEVIATIONS: [(&str, &str); 2] = [
    ("member list --consistency ", "`get` offers these values"),
    ("check datascale --load ", "`check perf` offers these values"),
];

/// What a program answers to `__complete`.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    words: Vec<String>,
    described: bool,
    directive: String,
}

fn ask(program: &Path, line: &str) -> Answer {
    let output = Command::new(program).arg("__complete").args(line.split(' ')).output();
    let output =
        String::from_utf8(output.expect("ask a program").stdout).expect("an answer in UTF-8");
    let mut lines: Vec<&str> = output.lines().collect();
    let directive = lines.pop().unwrap_or_default().to_owned();
    let described = !lines.is_empty() && lines.iter().all(|line| line.contains('\t'));
    let word = |line: &&str| line.split('\t').next().unwrap_or_default().to_owned();
    Answer { words: lines.iter().map(word).collect(), described, directive }
}

/// Every command of Go etcdctl, and every flag that it offers there, with and without a value begun.
#[test]
fn every_command_and_flag_is_completed_alike() {
    let go = peers::etcd_binaries().expect("build Go etcd").etcdctl;
    let ours = peers::our_binary("etcdctl").expect("build our etcdctl");
    let mut different = String::new();
    let mut compared = 0;
    let mut both = |line: &str| {
        let (theirs, ours) = (ask(&go, line), ask(&ours, line));
        compared += 1;
        let deviates = DEVIATIONS.iter().any(|(deviating, _)| line == *deviating);
        if deviates != (theirs != ours) {
            different.push_str(&format!("{line:?}\n  Go   {theirs:?}\n  ours {ours:?}\n"));
        }
        theirs.words
    };
    let mut commands = VecDeque::from([String::new()]);
    while let Some(command) = commands.pop_front() {
        let children = both(&command);
        // What can follow `help` and `completion` are no commands of theirs.
        if !["help ", "completion "].contains(&command.as_str()) {
            commands.extend(children.iter().map(|child| format!("{command}{child} ")));
        }
        let flags = both(&format!("{command}-"));
        for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
            both(&format!("{command}{flag} "));
        }
    }
    for line in TYPED.into_iter().chain(UNUSUAL) {
        both(line);
    }
    assert!(different.is_empty(), "\n{different}");
    assert!(compared > 250, "{compared} lines only");
    let deviating = DEVIATIONS.len();
    let equal = compared - deviating;
    println!("{compared} commands compared, {equal} equal, {deviating} deviating with reason");
}

/// A directory in which shells complete: with our program, and with a file that they may offer.
fn room() -> TempDir {
    let room = tempfile::tempdir().expect("make a directory");
    let ours = peers::our_binary("etcdctl").expect("build our etcdctl");
    fs::create_dir(room.path().join("bin")).expect("make a directory");
    symlink(ours, room.path().join("bin/etcdctl")).expect("link our etcdctl");
    fs::create_dir(room.path().join("here")).expect("make a directory");
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

/// Compares what a shell has found for each line with what Go etcdctl offers.
fn compare(shell: &str, found: &[Vec<String>]) {
    let go = peers::etcd_binaries().expect("build Go etcd").etcdctl;
    assert_eq!(found.len(), TYPED.len(), "{found:?}");
    for (line, found) in TYPED.into_iter().zip(found) {
        let offered = ask(&go, line);
        let mut expected = offered.words;
        expected.retain(|word| word.starts_with(typed(line)));
        if expected.is_empty() && offered.directive == ":0" && typed(line).is_empty() {
            expected.push("some-file".to_owned());
        }
        let mut found = found.clone();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{shell}: {line:?}");
    }
    println!("{} lines completed in {shell}", TYPED.len());
}

/// Readline puts everything that it finds into the line, which is then shown.
const BASH: &str = r#"
source <(etcdctl completion bash)
bind '"\C-t": insert-completions'
show() { printf '%s\n' "$READLINE_LINE"; READLINE_LINE=; READLINE_POINT=0; }
bind -x '"\C-o": show'
PS1=
"#;

#[test]
fn bash_completes_what_go_etcdctl_offers() {
    let room = room();
    let Some(mut bash) = shell("bash", &room) else { return };
    fs::write(room.path().join("rc"), BASH).expect("write a file");
    let keys: String = TYPED.iter().map(|line| format!("etcdctl {line}\x14\x0f")).collect();
    bash.args(["--noprofile", "--rcfile", "../rc", "-i"]);
    bash.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut bash = bash.spawn().expect("start bash");
    // Which ends its input.
    bash.stdin.take().expect("its input").write_all(keys.as_bytes()).expect("type");
    let output = bash.wait_with_output().expect("wait for bash");
    let shown = String::from_utf8_lossy(&output.stdout);
    let found: Vec<Vec<String>> = shown
        .lines()
        .zip(TYPED)
        .map(|(shown, line)| {
            let line = format!("etcdctl {line}");
            let start = line.len() - typed(&line).len();
            let words = shown.get(start..).unwrap_or_else(|| panic!("{line:?} became {shown:?}"));
            // It stays as it is if nothing is found.
            let words = if shown == line { "" } else { words };
            words.split_whitespace().map(str::to_owned).collect()
        })
        .collect();
    compare("bash", &found);
}

/// What the completion system adds is written down.
const ZSH: &str = r#"
PROMPT=
autoload -U compinit; compinit -u -D
source <(etcdctl completion zsh)
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
    zpty -w -n inner "etcdctl $line"$'\x14\x0f'
    zpty -r inner shown '*NEXT*'
done
zpty -d inner
"#;

#[test]
fn zsh_completes_what_go_etcdctl_offers() {
    let room = room();
    let Some(mut zsh) = shell("zsh", &room) else { return };
    let home = tempfile::tempdir().expect("make a directory");
    fs::write(home.path().join(".zshrc"), ZSH).expect("write a file");
    zsh.env("ZDOTDIR", home.path()).args(["-f", "-c", ZSH_TYPES, "zsh"]).args(TYPED);
    let output = zsh.output().expect("run zsh");
    let found = fs::read_to_string(home.path().join("found"));
    let found = found.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    compare("zsh", &divided(&found));
}

#[test]
fn fish_completes_what_go_etcdctl_offers() {
    let room = room();
    let Some(mut fish) = shell("fish", &room) else { return };
    let complete = "etcdctl completion fish | source; \
                    for line in $argv; complete -C \"etcdctl $line\"; echo ...; end";
    let output = fish.args(["--no-config", "-c", complete]).args(TYPED).output().expect("run fish");
    let found = String::from_utf8_lossy(&output.stdout);
    let mut found = divided(&found);
    for (words, line) in found.iter_mut().zip(TYPED) {
        // It replaces the whole word.
        let word = line.rsplit(' ').next().unwrap_or_default();
        let flag = word.strip_suffix(typed(line)).unwrap_or_default();
        for word in words {
            let value = word.split('\t').next().unwrap_or_default();
            *word = value.strip_prefix(flag).unwrap_or(value).to_owned();
        }
    }
    compare("fish", &found);
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
