//! Scripts of commands with the output that they must have, for any server and any `etcdctl`.
//!
//! A script is a text file. Go etcdctl against Go etcd has written its output; every other pair of
//! server and client has to give the same, after what differs from run to run is masked:
//!
//! ```text
//! # A comment, which ends up in failures.
//! server members=2 tls flags=--quota-backend-bytes=65536    optional, first: what to start
//! $ etcdctl txn                  runs a command to its end
//! until 4 $ etcdctl watch a      runs a command until it has printed 4 lines, then ends it
//! < put a b                      a line of standard input
//! | SUCCESS                      a line of standard output
//! ! Error: EOF                   a line of standard error
//! = 3                            the exit code, unless it is zero
//! ```
//!
//! Words can be quoted with `'` and `"`; `NAME=value` before the program sets a variable. In commands
//! and output `<m1>` and `<endpoint1>` are the id and address of the first member, `<cluster>` the
//! id of the cluster, `<id1>` the first other id that the script has seen (with `#` in decimal), and
//! `<dir>` an empty directory, in which commands run. Through `sh -c` a command can call `etcdctl` and
//! Go's `etcdutl`. The endpoints of the cluster are in `ETCDCTL_ENDPOINTS` unless a
//! command names its own.

mod mask;
mod run;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

pub use run::Programs;

use crate::processes::Tls;

/// A script as it stands in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    server: ServerLine,
    items: Vec<Item>,
}

/// What the first line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerLine {
    text: Option<String>,
    members: usize,
    tls: Tls,
    flags: Vec<String>,
}

impl Default for ServerLine {
    fn default() -> ServerLine {
        ServerLine { text: None, members: 1, tls: Tls::Off, flags: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    /// A comment or an empty line, kept as it is.
    Text(String),
    Step(Step),
}

/// A command with its input and its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Step {
    line: String,
    command: String,
    until: Option<usize>,
    input: Vec<String>,
    /// Lines of output with their first character.
    output: Vec<String>,
}

impl Script {
    /// Reads a script.
    pub fn load(path: &Path) -> Result<Script> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Script::parse(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn parse(text: &str) -> Result<Script> {
        let mut script = Script::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            match line.split_at_checked(2) {
                _ if line.is_empty() || line.starts_with('#') => {
                    script.items.push(Item::Text(line.to_owned()));
                }
                _ if line.starts_with("server ") => script.server = ServerLine::parse(line)?,
                Some(("$ ", command)) => script.push_step(line, command, None),
                _ if line.starts_with("until ") => {
                    let (count, command) = line["until ".len()..]
                        .split_once(" $ ")
                        .with_context(|| format!("line {number}: `until N $ command`"))?;
                    let count =
                        count.parse().with_context(|| format!("line {number}: a number"))?;
                    script.push_step(line, command, Some(count));
                }
                _ => {
                    let Some(Item::Step(step)) = script.items.last_mut() else {
                        bail!("line {number}: input or output without a command: {line}");
                    };
                    match line.as_bytes()[0] {
                        b'<' => step.input.push(line.get(2..).unwrap_or_default().to_owned()),
                        b'|' | b'!' | b'=' => step.output.push(line.to_owned()),
                        _ => bail!("line {number}: begins with none of `$<|!=#`: {line}"),
                    }
                }
            }
        }
        Ok(script)
    }

    fn push_step(&mut self, line: &str, command: &str, until: Option<usize>) {
        let (line, command) = (line.to_owned(), command.to_owned());
        self.items.push(Item::Step(Step { line, command, until, ..Step::default() }));
    }

    /// Runs the script and returns it with the output that it has now.
    ///
    /// What comes beside the outputs is what the servers complained about meanwhile.
    pub fn run(&self, programs: &Programs) -> Result<(Script, String)> {
        let mut runner = run::Runner::start(&self.server, programs)?;
        let mut items = Vec::new();
        for item in &self.items {
            items.push(match item {
                Item::Text(text) => Item::Text(text.clone()),
                Item::Step(step) => {
                    let output =
                        runner.run(step).with_context(|| format!("run `{}`", step.line))?;
                    Item::Step(Step { output, ..step.clone() })
                }
            });
        }
        Ok((Script { server: self.server.clone(), items }, runner.complaints()))
    }

    /// The steps whose output differs, as text; nothing if there are none.
    pub fn differences(&self, actual: &Script) -> Option<String> {
        let mut text = String::new();
        for (expected, actual) in self.items.iter().zip(&actual.items) {
            if let (Item::Step(expected), Item::Step(actual)) = (expected, actual)
                && expected.output != actual.output
            {
                text.push_str(&format!("{}\n", expected.line));
                text.push_str("  expected:\n");
                expected.output.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
                text.push_str("  but got:\n");
                actual.output.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
            }
        }
        Some(text).filter(|text| !text.is_empty())
    }

    /// How many commands it has.
    pub fn len(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::Step(_))).count()
    }

    /// Whether it has no commands.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let server = self.server.text.iter().map(String::as_str);
        let items = self.items.iter().flat_map(|item| match item {
            Item::Text(line) => vec![line.clone()],
            Item::Step(step) => {
                let input = step.input.iter().map(|line| format!("< {line}").trim_end().to_owned());
                let output = step.output.iter().cloned();
                [step.line.clone()].into_iter().chain(input).chain(output).collect()
            }
        });
        let mut server_line = server.map(str::to_owned).collect::<Vec<_>>();
        for line in items {
            // The server's line stands after the comment at the head.
            if !line.starts_with('#') {
                server_line.drain(..).for_each(|line| text.push_str(&format!("{line}\n")));
            }
            text.push_str(&format!("{line}\n"));
        }
        text
    }
}

impl ServerLine {
    fn parse(line: &str) -> Result<ServerLine> {
        let mut server = ServerLine { text: Some(line.to_owned()), ..ServerLine::default() };
        for word in line.split_whitespace().skip(1) {
            match word.split_once('=') {
                Some(("members", count)) => server.members = count.parse().context("a number")?,
                Some(("flags", flags)) => {
                    server.flags.extend(flags.split(',').map(str::to_owned));
                }
                None if word == "tls" => server.tls = Tls::Files,
                None if word == "auto-tls" => server.tls = Tls::Auto,
                _ => bail!("`server` takes members=N, flags=F,.., tls and auto-tls, not {word}"),
            }
        }
        Ok(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_written_as_it_was_read() {
        let text = "# about\nserver members=2\n\n$ etcdctl txn -i\n< mod(\"a\") = \"0\"\n<\n| OK\n! no\n\
                    = 3\n\nuntil 2 $ etcdctl watch a\n| PUT\n";
        let script = Script::parse(text).unwrap();
        assert_eq!(script.text(), text);
        assert_eq!(script.len(), 2);
        assert_eq!(script.server.members, 2);
        assert!(Script::parse("| output\n").is_err());
    }
}
