//! `__complete`: what can stand next on a command line.
//!
//! Shells ask it: by the scripts of [`crate::completion`], and by those that Go's tools have printed
//! and that distributions install. So question and answer are cobra's. The words of the line follow
//! the command; the last one, which may be empty, is to be completed. The answer has a line for each
//! word that can stand there, a tab, and what it is; its last line is a directive, a number behind a
//! colon.
//!
//! Where we differ: Go etcdctl never offers the flags that all commands share. They are offered here
//! as soon as a letter of their name is typed; before that, they would hide the command's own.

use crate::command::{Command, Found};
use crate::exit::{self, Exit, Outcome};
use crate::flags::{Flag, HELP, HELP_FLAG, Kind, Matches};
use crate::run::write;
use crate::words::{self, Word};

/// The hidden commands: with what the words are, and without.
const COMPLETE: [(&str, bool); 2] = [("__complete", true), ("__completeNoDesc", false)];

/// What can stand in place of the last word.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    /// A word, and behind a tab what it is.
    words: Vec<String>,
    /// What the shell offers if there are none.
    files: Files,
}

/// What of the file system can stand there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Files {
    #[default]
    Any,
    Directories,
    None,
}

/// What the last word is.
enum Asked {
    /// A command, an argument, or the name of a flag.
    Word,
    ValueOf(Flag),
    ValueOfUnknownFlag,
}

/// Answers if the command line asks for it.
pub(crate) fn run<R>(root: &Command<R>, command_line: &[Word]) -> Option<Outcome> {
    let (name, words) = command_line.split_first()?;
    let (_, described) = COMPLETE.into_iter().find(|(complete, _)| name == complete)?;
    if words.is_empty() {
        let message = "requires at least 1 arg(s), only received 0";
        return Some(Err(Exit::with(exit::ERROR, message)));
    }
    Some(write(complete(root, words).text(described).as_bytes()))
}

impl Answer {
    fn text(&self, described: bool) -> String {
        let mut text = String::new();
        for line in &self.words {
            let word = line.split('\t').next().unwrap_or_default();
            text.push_str(if described { line } else { word });
            text.push('\n');
        }
        // cobra's ShellCompDirectiveDefault, ...NoFileComp and ...FilterDirs.
        text.push_str(match self.files {
            Files::Any => ":0\n",
            Files::None => ":4\n",
            Files::Directories => ":16\n",
        });
        text
    }
}

fn complete<R>(root: &Command<R>, words: &[Word]) -> Answer {
    let Some((typed, before)) = words.split_last() else { return Answer::default() };
    let typed = words::shown(typed);
    let found = root.find(before);
    if found.path.len() == 1 && found.first_argument().is_some() {
        return Answer::default();
    }
    let known = found.known_flags();
    let (asked, before) = asked(&known, &found.words, &typed);
    let Ok(matches) = Matches::parse(&known, before) else { return Answer::default() };
    let flags_end = matches.before_dashes.is_some();
    if matches.is_set(HELP) {
        return Answer { words: Vec::new(), files: Files::None };
    }
    match asked {
        Asked::ValueOfUnknownFlag if !flags_end => Answer::default(),
        Asked::ValueOf(_) if flags_end => Answer::default(),
        // Shells look for those that begin as the word does.
        Asked::ValueOf(flag) => Answer {
            words: flag.values.iter().map(|value| (*value).to_owned()).collect(),
            files: if flag.is_directory { Files::Directories } else { Files::Any },
        },
        Asked::Word if typed.starts_with('-') && !typed.contains('=') && !flags_end => {
            Answer { words: flags(&found, &matches, &typed), files: Files::None }
        }
        Asked::Word | Asked::ValueOfUnknownFlag => arguments(root, &found, &matches, &typed),
    }
}

/// What the last word is, and the words before it without the flag whose value it is.
fn asked<'a>(known: &[Flag], before: &'a [Word], typed: &str) -> (Asked, &'a [Word]) {
    let named = |name: &str| {
        let mut letters = name.chars();
        let letter = letters.next().filter(|_| letters.as_str().is_empty());
        known.iter().copied().find(|flag| match letter {
            Some(letter) => flag.short == Some(letter),
            None => flag.name == name,
        })
    };
    let value_of = |flag: Option<Flag>| flag.map_or(Asked::ValueOfUnknownFlag, Asked::ValueOf);
    if typed.starts_with('-') {
        let asked =
            typed.split_once('=').map_or(Asked::Word, |(flag, _)| value_of(named(name(flag))));
        return (asked, before);
    }
    let Some((flag, earlier)) = before.split_last() else { return (Asked::Word, before) };
    let flag = words::shown(flag);
    if !flag.starts_with('-') || flag.contains('=') || name(&flag).is_empty() {
        return (Asked::Word, before);
    }
    match named(name(&flag)) {
        Some(flag) if flag.kind == Kind::Bool => (Asked::Word, before),
        flag @ Some(_) => (value_of(flag), earlier),
        None => (Asked::ValueOfUnknownFlag, before),
    }
}

/// The name in `--name`, or the last letter in `-abc`.
fn name(flag: &str) -> &str {
    flag.strip_prefix("--").unwrap_or_else(|| {
        let letters = flag.trim_start_matches('-');
        letters.char_indices().next_back().map_or("", |(last, _)| &letters[last..])
    })
}

/// The names of flags that begin like this and were not given yet: those that have to be given, or else
/// those from above, then the command's own.
fn flags<R>(found: &Found<'_, R>, matches: &Matches, typed: &str) -> Vec<String> {
    let required = required_flags(matches, typed);
    if !required.is_empty() {
        return required;
    }
    let command = found.command();
    let help = format!("help for {}", command.name);
    let root = found.path[0];
    let shared = |flag: &Flag| {
        let is_shared = || root.persistent.iter().any(|shared| shared.name == flag.name);
        root.options.is_some() && (found.path.len() == 1 || is_shared())
    };
    let has_letter = typed.len() > "--".len();
    let is_offered = |flag: &Flag| {
        let again = flag.kind == Kind::List || !matches.is_set(flag.name);
        again && (has_letter || !shared(flag))
    };
    let mut own = [&command.flags[..], &command.persistent].concat();
    own.push(HELP_FLAG);
    let mut lines = Vec::new();
    for mut flags in [found.inherited(), own] {
        flags.sort_by_key(|flag| flag.name);
        for flag in flags.into_iter().filter(is_offered) {
            let about = if flag.name == HELP { &help } else { flag.help };
            lines.extend(named(&flag, about, typed));
        }
    }
    lines
}

/// Commands and arguments that begin like this.
fn arguments<R>(root: &Command<R>, found: &Found<'_, R>, matches: &Matches, typed: &str) -> Answer {
    let command = found.command();
    let given = &matches.arguments;
    if command.name == HELP {
        let topic = root.find(given);
        let is_one = topic.path.len() > 1 || given.is_empty();
        let words = if is_one { children(topic.command(), typed) } else { Vec::new() };
        return Answer { words, files: Files::None };
    }
    let takes_others = command.children.is_empty() && command.first_arguments.is_empty();
    // A command's own flag means that it is meant itself, not one below it.
    let is_meant = command.flags.iter().any(|flag| matches.is_set(flag.name));
    if takes_others || is_meant || !given.is_empty() {
        return Answer { words: required_flags(matches, typed), files: Files::Any };
    }
    let mut words = children(command, typed);
    let first = command.first_arguments.iter().filter(|word| word.starts_with(typed));
    words.extend(first.map(|word| (*word).to_owned()));
    Answer { words, files: Files::None }
}

/// Flags without which the command is not run, and that were not given yet.
fn required_flags(matches: &Matches, typed: &str) -> Vec<String> {
    matches.missing().flat_map(|flag| named(flag, flag.help, typed)).collect()
}

/// The names of a flag that begin like this.
fn named(flag: &Flag, about: &str, typed: &str) -> Vec<String> {
    let names = [Some(format!("--{}", flag.name)), flag.short.map(|it| format!("-{it}"))];
    let names = names.into_iter().flatten().filter(|name| name.starts_with(typed));
    names.map(|name| format!("{name}\t{about}")).collect()
}

fn children<R>(command: &Command<R>, typed: &str) -> Vec<String> {
    let mut children: Vec<&Command<R>> = command.children.iter().collect();
    children.retain(|child| child.name.starts_with(typed));
    children.sort_by_key(|child| child.name);
    children.iter().map(|child| format!("{}\t{}", child.name, child.short)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::SHELLS;

    fn leaf(name: &'static str) -> Command<()> {
        Command { name, ..Command::default() }
    }

    fn text(name: &'static str) -> Flag {
        Flag::new(name, Kind::Text, "", "")
    }

    fn switch(name: &'static str) -> Flag {
        Flag::new(name, Kind::Bool, "false", "")
    }

    /// Of a program whose shared flags are listed by a command of its own.
    fn root() -> Command<()> {
        let order = text("order").values(&["ASCEND", "DESCEND"]);
        let perf =
            Command { flags: vec![text("load").values(&["small", "large"])], ..leaf("perf") };
        let user = vec![leaf("add"), leaf("grant-role"), leaf("passwd")];
        Command {
            persistent: vec![
                Flag::new("endpoints", Kind::List, "", ""),
                text("cacert"),
                switch("hex"),
                text("write-out").short('w').values(&["json", "simple"]),
            ],
            options: Some("options"),
            children: vec![
                Command {
                    flags: vec![order, switch("prefix"), switch("print-value-only")],
                    ..leaf("get")
                },
                leaf("put"),
                Command { short: "Manages users", children: user, ..leaf("user") },
                Command {
                    children: vec![leaf("health")],
                    persistent: vec![switch("cluster")],
                    ..leaf("endpoint")
                },
                Command { children: vec![perf], ..leaf("check") },
                Command { children: vec![leaf("save")], ..leaf("snapshot") },
                Command { first_arguments: &SHELLS, ..leaf("completion") },
                leaf("help"),
                leaf("make-mirror"),
            ],
            ..leaf("program")
        }
    }

    fn answer(line: &str) -> Answer {
        let words: Vec<Word> = line.split(' ').map(|it| Word::from(it.to_owned())).collect();
        complete(&root(), &words)
    }

    fn offered(line: &str) -> Vec<String> {
        let words = answer(line).words;
        words.iter().map(|it| it.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn commands_flags_and_values_are_offered_where_they_can_stand() {
        for (line, words) in [
            ("us", &["user"][..]),
            ("user gr", &["grant-role"]),
            ("--hex user pa", &["passwd"]),
            ("get a --prin", &["--print-value-only"]),
            ("get --prefix --pr", &["--print-value-only"]),
            ("endpoint health --clu", &["--cluster"]),
            ("endpoint health -", &["--cluster", "--help", "-h"]),
            ("get --order=", &["ASCEND", "DESCEND"]),
            ("-w ", &["json", "simple"]),
            ("get -w=j", &["json", "simple"]),
            ("get -w=x --order ", &["ASCEND", "DESCEND"]),
            ("check perf --load ", &["small", "large"]),
            ("completion ", &["bash", "zsh", "fish", "powershell"]),
            ("help completion ", &[]),
            ("help us", &["user"]),
            ("help user pa", &["passwd"]),
            ("help nothing ", &[]),
            ("get a b", &[]),
            ("get --help ", &[]),
            ("get -- --pre", &[]),
            ("nothing ", &[]),
            ("__", &[]),
        ] {
            assert_eq!(offered(line), words, "{line}");
        }
        assert!(offered("").iter().any(|word| word == "make-mirror"));
    }

    #[test]
    fn shared_flags_are_offered_once_a_letter_is_typed() {
        assert_eq!(offered("get --endp"), ["--endpoints"]);
        // More than one list of them can be given, but not more than one of these.
        assert_eq!(offered("get --endpoints x --endp"), ["--endpoints"]);
        assert_eq!(offered("get --cacert x --cac"), [""; 0]);
        assert_eq!(offered("--"), [""; 0]);
    }

    #[test]
    fn files_are_offered_where_a_word_can_be_one() {
        for line in ["put ", "snapshot save ", "--cacert ", "get --order ", "completion bash "] {
            assert_eq!(answer(line).text(true).lines().last(), Some(":0"), "{line}");
        }
        for line in ["", "snap", "snapshot ", "completion ", "completion x", "get --", "help "] {
            assert_eq!(answer(line).text(true).lines().last(), Some(":4"), "{line}");
        }
        assert_eq!(answer("completion b").text(true), "bash\n:4\n");
        assert_eq!(answer("us").text(false), "user\n:4\n");
        assert_eq!(answer("us").text(true), "user\tManages users\n:4\n");
    }

    #[test]
    fn what_has_to_be_given_is_offered_first_and_then_only_once() {
        let required = |name| text(name).required();
        let migrate = Command {
            flags: vec![required("data-dir").directory(), required("target"), switch("force")],
            ..leaf("migrate")
        };
        let root =
            Command { children: vec![migrate], persistent: vec![switch("hex")], ..leaf("program") };
        let answer = |line: &str| {
            let words: Vec<Word> = line.split(' ').map(|it| Word::from(it.to_owned())).collect();
            complete(&root, &words).text(false)
        };
        for (line, text) in [
            ("migrate ", "--data-dir\n--target\n:0\n"),
            ("migrate -", "--data-dir\n--target\n:4\n"),
            ("migrate --data-dir ", ":16\n"),
            ("migrate --data-dir=", ":16\n"),
            ("migrate --data-dir x --", "--target\n:4\n"),
            ("migrate --data-dir x --target x --", "--hex\n--force\n--help\n:4\n"),
            ("migrate --data-dir x --target x ", ":0\n"),
            ("--", "--help\n--hex\n:4\n"),
        ] {
            assert_eq!(answer(line), text, "{line}");
        }
    }
}
