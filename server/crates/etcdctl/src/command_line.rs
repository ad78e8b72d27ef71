//! Finds the command of a command line, by the rules of Go's cobra with prefix matching.
//!
//! A command may be abbreviated to any prefix that no other command shares. Flags may stand before
//! the command, so finding it has to know which flags take a value.

use std::pin::Pin;

use crate::exit::Outcome;
use crate::flags::{Flag, HELP_FLAG, Kind, Matches};
use crate::words::Word;

/// What a command does.
pub(crate) type Run = fn(Invocation) -> Pin<Box<dyn Future<Output = Outcome>>>;

/// Looks at the arguments of a command before it runs.
pub(crate) type Check = fn(&[Word]) -> Result<(), String>;

/// Under which heading the help lists a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    KeyValue,
    Maintenance,
    Concurrency,
    Authentication,
    Utility,
}

/// A command of the tree.
#[derive(Clone, Default)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// What follows the command's path in its usage line.
    pub(crate) usage: &'static str,
    pub(crate) short: &'static str,
    /// Replaces `short` at the top of the command's own help.
    pub(crate) long: &'static str,
    pub(crate) group: Option<Group>,
    pub(crate) flags: Vec<Flag>,
    /// Flags that the subcommands know too.
    pub(crate) persistent: Vec<Flag>,
    pub(crate) children: Vec<Command>,
    pub(crate) run: Option<Run>,
    /// Refuses arguments in cobra's words; the usage follows.
    pub(crate) check: Option<Check>,
    /// What the first argument can be, if it has to be one of a few words.
    pub(crate) first_arguments: &'static [&'static str],
}

/// A command with everything that was given to it.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    pub(crate) matches: Matches,
    /// Flags known above the command, which the environment can set.
    pub(crate) inherited: Vec<Flag>,
    /// The whole command line with the program's name.
    pub(crate) command_line: Vec<Word>,
}

impl Invocation {
    pub(crate) fn arguments(&self) -> &[Word] {
        &self.matches.arguments
    }
}

/// The commands from the root to the one that was found, and the words left for it.
pub(crate) struct Found<'a> {
    pub(crate) path: Vec<&'a Command>,
    pub(crate) words: Vec<Word>,
}

impl Command {
    /// Finds the command that the words name.
    pub(crate) fn find(&self, words: &[Word]) -> Found<'_> {
        let mut path = vec![self];
        let mut words = words.to_vec();
        loop {
            let flags = known_flags(&path);
            let positions = positionals(&words, &flags);
            let Some(&first) = positions.first() else { return Found { path, words } };
            let current = path[path.len() - 1];
            let Some(child) = current.child(&words[first]) else { return Found { path, words } };
            words.remove(first);
            path.push(child);
        }
    }

    fn child(&self, name: &[u8]) -> Option<&Command> {
        let exact = self.children.iter().find(|child| child.name.as_bytes() == name);
        let mut begins =
            self.children.iter().filter(|child| child.name.as_bytes().starts_with(name));
        exact.or_else(|| match (begins.next(), begins.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        })
    }

    /// Commands whose names are like a mistyped one, in the order of the tree.
    pub(crate) fn suggestions(&self, typed: &str) -> Vec<&'static str> {
        let typed = typed.to_lowercase();
        let alike = |name: &str| edit_distance(&typed, name) <= 2 || name.starts_with(&typed);
        self.children.iter().map(|child| child.name).filter(|name| alike(name)).collect()
    }
}

impl Found<'_> {
    /// The command.
    pub(crate) fn command(&self) -> &Command {
        self.path[self.path.len() - 1]
    }

    /// Its name with those above it.
    pub(crate) fn full_name(&self) -> String {
        self.path.iter().map(|command| command.name).collect::<Vec<_>>().join(" ")
    }

    /// The first word that is no flag, which is no command either.
    pub(crate) fn first_argument(&self) -> Option<&[u8]> {
        let flags = known_flags(&self.path);
        positionals(&self.words, &flags).first().map(|&index| &self.words[index][..])
    }

    /// The flags that the command knows, its own and those from above.
    pub(crate) fn known_flags(&self) -> Vec<Flag> {
        known_flags(&self.path)
    }

    /// Reads the flags of the command.
    pub(crate) fn parse(&self) -> Result<Matches, String> {
        Matches::parse(&known_flags(&self.path), &self.words)
    }

    /// Flags that the commands above pass down.
    pub(crate) fn inherited(&self) -> Vec<Flag> {
        let above = &self.path[..self.path.len() - 1];
        above.iter().flat_map(|command| command.persistent.iter().copied()).collect()
    }
}

/// All flags that count for the last command of a path.
fn known_flags(path: &[&Command]) -> Vec<Flag> {
    let mut flags = vec![HELP_FLAG];
    flags.extend(path.iter().flat_map(|command| command.persistent.iter().copied()));
    flags.extend(path[path.len() - 1].flags.iter().copied());
    flags
}

/// Where the words stand that are neither flags nor values of flags. A flag that is not known is
/// taken to have a value.
fn positionals(words: &[Word], flags: &[Flag]) -> Vec<usize> {
    let is_bool = |matches: &dyn Fn(&Flag) -> bool| {
        flags.iter().any(|flag| matches(flag) && flag.kind == Kind::Bool)
    };
    let mut positions = Vec::new();
    let mut index = 0;
    while index < words.len() {
        let word = &words[index][..];
        let takes_value = match word {
            b"--" => break,
            _ if word.contains(&b'=') => false,
            [b'-', b'-', name @ ..] => !is_bool(&|flag| flag.name.as_bytes() == name),
            [b'-', letter] => !is_bool(&|flag| flag.short == Some(char::from(*letter))),
            _ => false,
        };
        if takes_value {
            index += 1;
        } else if !word.is_empty() && !word.starts_with(b"-") {
            positions.push(index);
        }
        index += 1;
    }
    positions
}

/// Levenshtein's distance, of bytes as in cobra.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Command {
        let leaf = |name| Command { name, ..Command::default() };
        let write_out = Flag::new("write-out", Kind::Text, "", "").short('w');
        let endpoint = Command { children: vec![leaf("health")], ..leaf("endpoint") };
        Command {
            persistent: vec![write_out, Flag::new("hex", Kind::Bool, "false", "")],
            children: vec![leaf("get"), leaf("del"), leaf("lease"), leaf("lock"), endpoint],
            ..leaf("etcdctl")
        }
    }

    fn find(line: &str) -> (String, Vec<Word>) {
        let tree = tree();
        let words: Vec<Word> =
            line.split_whitespace().map(|it| Word::from(it.to_owned())).collect();
        let found = tree.find(&words);
        (found.full_name(), found.words.clone())
    }

    #[test]
    fn flags_may_stand_before_the_command() {
        assert_eq!(find("-w json get a").0, "etcdctl get");
        assert_eq!(find("--hex get a").1, ["--hex", "a"]);
        assert_eq!(find("--write-out get get get").1, ["--write-out", "get", "get"]);
        assert_eq!(find("--write-out=x e h").0, "etcdctl endpoint health");
    }

    #[test]
    fn prefixes_count_when_only_one_command_has_them() {
        assert_eq!(find("le x").0, "etcdctl lease");
        assert_eq!(find("l x").0, "etcdctl");
        assert_eq!(find("-- get").0, "etcdctl");
    }

    #[test]
    fn suggestions_are_near_or_begin_alike() {
        assert_eq!(tree().suggestions("l"), ["del", "lease", "lock"]);
        assert_eq!(tree().suggestions("geet"), ["get"]);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
