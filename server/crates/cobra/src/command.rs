//! The tree of commands, and which of them a command line means, by the rules of Go's cobra with prefix
//! matching.
//!
//! A command may be abbreviated to any prefix that no other command shares. Flags may stand before
//! the command, so finding it has to know which flags take a value.

use crate::flags::{Flag, HELP_FLAG, Kind, Matches};
use crate::words::Word;

/// Looks at the arguments of a command, whose full name is given, before it runs.
pub type Check = fn(&str, &[Word]) -> Result<(), String>;

/// A command of the tree. `R` is what the program has to run one.
#[derive(Clone)]
pub struct Command<R> {
    pub name: &'static str,
    /// What follows the command's path in its usage line.
    pub usage: &'static str,
    pub short: &'static str,
    /// Replaces `short` at the top of the command's own help.
    pub long: &'static str,
    /// The heading under which the help lists it; empty if commands are not divided.
    pub group: &'static str,
    /// The headings of its children, in their order.
    pub groups: &'static [&'static str],
    pub flags: Vec<Flag>,
    /// Flags that the subcommands know too.
    pub persistent: Vec<Flag>,
    /// Of the root, the command that lists the persistent flags: no help shows them then.
    pub options: Option<&'static str>,
    pub children: Vec<Command<R>>,
    pub run: Option<R>,
    /// Refuses arguments in cobra's words; the usage follows.
    pub check: Option<Check>,
    /// What the first argument can be, if it has to be one of a few words.
    pub first_arguments: &'static [&'static str],
}

/// A command with everything that was given to it.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub matches: Matches,
    /// Flags known above the command, which the environment can set.
    pub inherited: Vec<Flag>,
    /// The whole command line with the program's name.
    pub command_line: Vec<Word>,
}

impl Invocation {
    pub fn arguments(&self) -> &[Word] {
        &self.matches.arguments
    }
}

/// The commands from the root to the one that was found, and the words left for it.
pub struct Found<'a, R> {
    pub(crate) path: Vec<&'a Command<R>>,
    pub(crate) words: Vec<Word>,
}

/// The [`Check`] of a command with one argument, in cobra's words.
pub fn one_argument(_: &str, arguments: &[Word]) -> Result<(), String> {
    match arguments {
        [_] => Ok(()),
        _ => Err(format!("accepts 1 arg(s), received {}", arguments.len())),
    }
}

impl<R> Default for Command<R> {
    fn default() -> Self {
        Self {
            name: "",
            usage: "",
            short: "",
            long: "",
            group: "",
            groups: &[],
            flags: Vec::new(),
            persistent: Vec::new(),
            options: None,
            children: Vec::new(),
            run: None,
            check: None,
            first_arguments: &[],
        }
    }
}

impl<R> Command<R> {
    /// Finds the command that the words name.
    pub fn find(&self, words: &[Word]) -> Found<'_, R> {
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

    fn child(&self, name: &[u8]) -> Option<&Command<R>> {
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

impl<R> Found<'_, R> {
    /// The command.
    pub fn command(&self) -> &Command<R> {
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
    pub fn parse(&self) -> Result<Matches, String> {
        Matches::parse(&known_flags(&self.path), &self.words)
    }

    /// Flags that the commands above pass down.
    pub(crate) fn inherited(&self) -> Vec<Flag> {
        let above = &self.path[..self.path.len() - 1];
        above.iter().flat_map(|command| command.persistent.iter().copied()).collect()
    }
}

/// All flags that count for the last command of a path.
fn known_flags<R>(path: &[&Command<R>]) -> Vec<Flag> {
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

    fn tree() -> Command<()> {
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
