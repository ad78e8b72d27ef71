//! Flags, read by the rules of Go's pflag, with its error texts.
//!
//! Flags and arguments may be mixed; `--` ends the flags; a bool needs no value; short flags can be
//! joined (`-iw json`).

use std::collections::BTreeMap;
use std::time::Duration;

use types::go::{self, NumberError};

use crate::words::{self, Word};

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Text,
    /// Separated by commas; every use adds to the list.
    List,
    Integer,
    /// An integer that is not negative.
    Unsigned,
    Duration,
}

/// A flag that a command knows.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
    /// What a shell offers for its value.
    pub values: &'static [&'static str],
    /// Whether its value is a directory.
    pub is_directory: bool,
    /// Whether the command is not run without it.
    pub is_required: bool,
}

impl Flag {
    pub const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Flag {
        Flag {
            name,
            short: None,
            kind,
            default,
            help,
            values: &[],
            is_directory: false,
            is_required: false,
        }
    }

    pub const fn short(self, short: char) -> Flag {
        Flag { short: Some(short), ..self }
    }

    pub const fn values(self, values: &'static [&'static str]) -> Flag {
        Flag { values, ..self }
    }

    pub const fn directory(self) -> Flag {
        Flag { is_directory: true, ..self }
    }

    pub const fn required(self) -> Flag {
        Flag { is_required: true, ..self }
    }

    fn check(&self, value: &[u8]) -> Result<(), String> {
        let told = |error: NumberError| error.to_string();
        match self.kind {
            Kind::Bool => go::parse_bool(value).map(drop).map_err(told),
            Kind::Integer => go::parse_int(value, 0).map(drop).map_err(told),
            Kind::Unsigned => go::parse_unsigned(value, 0).map(drop).map_err(told),
            Kind::Duration => go::parse_duration(value).map(drop),
            Kind::Text | Kind::List => Ok(()),
        }
    }
}

/// The flag that every command has.
pub(crate) const HELP: &str = "help";

/// The same with its letter; what it tells depends on the command.
pub(crate) const HELP_FLAG: Flag = Flag::new(HELP, Kind::Bool, "false", "").short('h');

/// The flag of all of etcd's tools for how they print their answers.
pub const WRITE_OUT: Flag = Flag::new(
    "write-out",
    Kind::Text,
    "simple",
    "output format: fields, json, protobuf, simple or table",
)
.short('w')
.values(&["fields", "json", "protobuf", "simple", "table"]);

/// What was given for a flag.
#[derive(Clone, Debug)]
struct Value {
    word: Word,
    /// The same, as far as it is text.
    shown: String,
}

/// Flags and arguments of a command line.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    known: BTreeMap<&'static str, Flag>,
    values: BTreeMap<&'static str, Value>,
    /// The arguments that are no flags, also those after `--`.
    pub arguments: Vec<Word>,
    /// How many arguments stand before `--`, if it is there.
    pub before_dashes: Option<usize>,
}

impl Matches {
    /// Reads a command line.
    pub fn parse(flags: &[Flag], command_line: &[Word]) -> Result<Matches, String> {
        let known = flags.iter().map(|flag| (flag.name, *flag)).collect();
        let mut matches = Matches { known, ..Matches::default() };
        let mut words = command_line.iter();
        while let Some(word) = words.next() {
            match &word[..] {
                b"--" => {
                    matches.before_dashes = Some(matches.arguments.len());
                    matches.arguments.extend(words.cloned());
                    break;
                }
                [b'-', b'-', long @ ..] => matches.long(word, long, &mut words)?,
                [b'-', letters @ ..] if !letters.is_empty() => {
                    matches.shorts(letters, &mut words)?
                }
                _ => matches.arguments.push(word.clone()),
            }
        }
        Ok(matches)
    }

    fn long<'a>(
        &mut self,
        word: &Word,
        long: &[u8],
        rest: &mut impl Iterator<Item = &'a Word>,
    ) -> Result<(), String> {
        let equals = long.iter().position(|byte| *byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&long[..at], Some(word.slice_ref(&long[at + 1..]))),
            None => (long, None),
        };
        if name.is_empty() || name.starts_with(b"-") {
            return Err(format!("bad flag syntax: {}", words::shown(word)));
        }
        let name = words::shown(name);
        let Some(flag) = self.known.get(&*name).copied() else {
            return Err(format!("unknown flag: --{name}"));
        };
        let value = match value {
            Some(value) => value,
            None if flag.kind == Kind::Bool => Word::from_static(b"true"),
            None => {
                rest.next().cloned().ok_or_else(|| format!("flag needs an argument: --{name}"))?
            }
        };
        self.set(flag, value)
    }

    fn shorts<'a>(
        &mut self,
        letters: &[u8],
        rest: &mut impl Iterator<Item = &'a Word>,
    ) -> Result<(), String> {
        let mut remaining = letters;
        while let [letter, after @ ..] = remaining {
            let told = || format!("{} in -{}", quote_letter(*letter), words::shown(remaining));
            let is_it = |flag: &&Flag| flag.short == Some(char::from(*letter));
            let flag = self.known.values().find(is_it).copied();
            let flag = flag.ok_or_else(|| format!("unknown shorthand flag: {}", told()))?;
            if let Some(value) = after.strip_prefix(b"=") {
                return self.set(flag, Word::copy_from_slice(value));
            }
            if flag.kind == Kind::Bool {
                self.set(flag, Word::from_static(b"true"))?;
                remaining = after;
                continue;
            }
            let value = match after {
                [] => rest.next().cloned(),
                after => Some(Word::copy_from_slice(after)),
            };
            let value = value.ok_or_else(|| format!("flag needs an argument: {}", told()))?;
            return self.set(flag, value);
        }
        Ok(())
    }

    fn set(&mut self, flag: Flag, value: Word) -> Result<(), String> {
        if let Err(reason) = flag.check(&value) {
            let shown = match flag.short {
                Some(short) => format!("-{short}, --{}", flag.name),
                None => format!("--{}", flag.name),
            };
            let value = go::quote(&value);
            return Err(format!("invalid argument {value} for \"{shown}\" flag: {reason}"));
        }
        let word = match self.values.get(flag.name) {
            Some(earlier) if flag.kind == Kind::List => {
                Word::from([&earlier.word[..], b",", &value].concat())
            }
            _ => value,
        };
        let shown = words::shown(&word).into_owned();
        self.values.insert(flag.name, Value { word, shown });
        Ok(())
    }

    /// Sets a flag from the environment. A value that does not parse is passed over, as etcdctl does it.
    pub fn set_from_environment(&mut self, name: &str, value: Word) {
        if let Some(flag) = self.known.get(name).copied() {
            let _ = self.set(flag, value);
        }
    }

    /// The flags that have to be given and were not.
    pub fn missing(&self) -> impl Iterator<Item = &Flag> {
        self.known.values().filter(|flag| flag.is_required && !self.is_set(flag.name))
    }

    /// Complains in cobra's words of flags that have to be given and were not.
    pub fn check_required(&self) -> Result<(), String> {
        let missing: Vec<String> = self.missing().map(|flag| format!("{:?}", flag.name)).collect();
        match &missing[..] {
            [] => Ok(()),
            missing => Err(format!("required flag(s) {} not set", missing.join(", "))),
        }
    }

    /// Whether the flag was given, on the command line or in the environment.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a flag, or its default. For what is compared, parsed or shown: what is no text in it
    /// is replaced.
    pub fn text(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(value) => &value.shown,
            None => self.default_of(name),
        }
    }

    /// The value of a flag, or its default, as it was given.
    pub fn word(&self, name: &str) -> Word {
        match self.values.get(name) {
            Some(value) => value.word.clone(),
            None => Word::from_static(self.default_of(name).as_bytes()),
        }
    }

    fn default_of(&self, name: &str) -> &'static str {
        self.known.get(name).map_or("", |flag| flag.default)
    }

    /// The value of a bool flag.
    pub fn is_true(&self, name: &str) -> bool {
        // Values are checked when they are set, and an unknown flag is not set.
        go::parse_bool(self.text(name)).unwrap_or(false)
    }

    /// The value of an integer flag.
    pub fn integer(&self, name: &str) -> i64 {
        go::parse_int(self.text(name), 0).unwrap_or(0)
    }

    /// The value of a flag for integers that are not negative.
    pub fn unsigned(&self, name: &str) -> u64 {
        go::parse_unsigned(self.text(name), 0).unwrap_or(0)
    }

    /// The value of a duration flag.
    pub fn duration(&self, name: &str) -> Duration {
        go::parse_duration(self.text(name)).unwrap_or(Duration::ZERO)
    }

    /// The value of a list flag.
    pub fn list(&self, name: &str) -> Vec<String> {
        match self.text(name) {
            "" => Vec::new(),
            text => text.split(',').map(str::to_owned).collect(),
        }
    }
}

/// pflag's `%q` of a byte, which it has taken for the first one of that character in UTF-8.
fn quote_letter(letter: u8) -> String {
    let letter = char::from(letter);
    let letter = char::from(letter.encode_utf8(&mut [0; 4]).as_bytes()[0]);
    let quoted = go::quote(letter.encode_utf8(&mut [0; 4]).as_bytes());
    match letter {
        '\'' => "'\\''".to_owned(),
        '"' => "'\"'".to_owned(),
        _ => format!("'{}'", quoted.trim_matches('"')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 5] = [
        Flag::new("write-out", Kind::Text, "simple", "").short('w'),
        Flag::new("interactive", Kind::Bool, "false", "").short('i'),
        Flag::new("limit", Kind::Integer, "0", ""),
        Flag::new("endpoints", Kind::List, "127.0.0.1:2379", ""),
        Flag::new("dial-timeout", Kind::Duration, "2s", ""),
    ];

    fn parse(line: &str) -> Result<Matches, String> {
        let words: Vec<Word> = line.split(' ').map(|word| Word::from(word.to_owned())).collect();
        Matches::parse(&FLAGS, &words)
    }

    #[test]
    fn flags_and_arguments_mix() {
        let matches =
            parse("a --limit 0x10 -iwjson b --endpoints=x,y --endpoints z -- --c").unwrap();
        assert_eq!(matches.arguments, ["a", "b", "--c"]);
        assert_eq!(matches.before_dashes, Some(2));
        assert_eq!(matches.integer("limit"), 16);
        assert!(matches.is_true("interactive"));
        assert_eq!(matches.text("write-out"), "json");
        assert_eq!(matches.list("endpoints"), ["x", "y", "z"]);
        assert_eq!(matches.duration("dial-timeout"), Duration::from_secs(2));
    }

    #[test]
    fn values_and_arguments_need_not_be_text() {
        let words = [&b"--write-out=\xff"[..], b"k\xfe", b"--endpoints", b"a\xff", b"-i"];
        let words = words.map(Word::from_static);
        let matches = Matches::parse(&FLAGS, &words).unwrap();
        assert_eq!(matches.arguments, [&b"k\xfe"[..]]);
        assert_eq!(matches.word("write-out"), &b"\xff"[..]);
        assert_eq!(matches.word("endpoints"), &b"a\xff"[..]);
        let limit = Matches::parse(&FLAGS, &[Word::from_static(b"--limit=\xff")]).unwrap_err();
        assert!(limit.starts_with(r#"invalid argument "\xff" for "--limit" flag: "#), "{limit}");
        let letter = Matches::parse(&FLAGS, &[Word::from_static(b"-\xff")]).unwrap_err();
        assert_eq!(letter, "unknown shorthand flag: '\u{c3}' in -\u{fffd}");
    }

    #[test]
    fn bad_flags_have_pflags_errors() {
        for (line, error) in [
            ("--nope", "unknown flag: --nope"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("-ix", "unknown shorthand flag: 'x' in -x"),
            ("--limit", "flag needs an argument: --limit"),
            ("-w", "flag needs an argument: 'w' in -w"),
            ("---", "bad flag syntax: ---"),
            (
                "--interactive=maybe",
                "invalid argument \"maybe\" for \"-i, --interactive\" flag: \
                 strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "--dial-timeout=2x",
                "invalid argument \"2x\" for \"--dial-timeout\" flag: \
                 time: unknown unit \"x\" in duration \"2x\"",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), error, "{line}");
        }
    }
}
