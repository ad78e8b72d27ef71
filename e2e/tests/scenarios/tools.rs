//! The tools whose command lines are compared with Go's.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::peers;

/// One of etcd's tools, and what is completed.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// Lines whose last word a shell completes.
    pub(crate) typed: &'static [&'static str],
    /// Lines that no walk through the tree comes by.
    pub(crate) unusual: &'static [&'static str],
    /// What only ours has.
    pub(crate) own: &'static [&'static str],
    /// How many lines are compared at the least.
    pub(crate) many: usize,
}

pub(crate) const TOOLS: [Tool; 2] = [
    Tool { name: "etcdctl", typed: &CTL_TYPED, unusual: &CTL_UNUSUAL, own: &[], many: 250 },
    Tool {
        name: "etcdutl",
        typed: &UTL_TYPED,
        unusual: &UTL_UNUSUAL,
        own: &["import", "--drop-auth"],
        many: 75,
    },
];

const CTL_TYPED: [&str; 18] = [
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

const CTL_UNUSUAL: [&str; 22] = [
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

const UTL_TYPED: [&str; 15] = [
    "",
    "m",
    "snapshot ",
    "snap r",
    "help snapshot ",
    "completion ",
    "completion z",
    "-w json snapshot s",
    "snapshot restore --ini",
    "snapshot restore a:b --data-dir ",
    "snapshot status ",
    "defrag ",
    "migrate --data-dir=a --t",
    "hashkv --rev ",
    "hashkv -w=pro",
];

const UTL_UNUSUAL: [&str; 12] = [
    "nothing ",
    "nothing -",
    "defrag --data-dir=x -",
    "defrag --data-dir x ",
    "migrate --target-version=3.6 ",
    "migrate --target-version=3.6 --data-dir x --f",
    "migrate --force ",
    "snapshot restore f --n",
    "snapshot restore --bump-revision=x --n",
    "snapshot --help ",
    "help nothing ",
    "completion bash -",
];

impl Tool {
    pub(crate) fn go(&self) -> PathBuf {
        let built = peers::etcd_binaries().expect("build Go etcd");
        if self.name == "etcdctl" { built.etcdctl } else { built.etcdutl }
    }

    pub(crate) fn ours(&self) -> PathBuf {
        peers::our_binary(self.name).expect("build our tools")
    }

    /// The beginning of a line for the tool itself, which is empty, and for each command that Go's offers.
    pub(crate) fn commands(&self) -> Vec<String> {
        let go = self.go();
        let mut found = vec![String::new()];
        let mut looked_at = 0;
        while let Some(command) = found.get(looked_at).cloned() {
            looked_at += 1;
            // What can follow `help` and `completion` are no commands of theirs, nor are flags that have to
            // be given.
            if !["help ", "completion "].contains(&command.as_str()) {
                let children = ask(&go, &command).words.into_iter();
                let children = children.filter(|word| !word.starts_with('-'));
                found.extend(children.map(|child| format!("{command}{child} ")));
            }
        }
        found
    }
}

/// What a program answers to `__complete`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) words: Vec<String>,
    pub(crate) described: bool,
    pub(crate) directive: String,
}

pub(crate) fn ask(program: &Path, line: &str) -> Answer {
    let output = Command::new(program).arg("__complete").args(line.split(' ')).output();
    let output =
        String::from_utf8(output.expect("ask a program").stdout).expect("an answer in UTF-8");
    let mut lines: Vec<&str> = output.lines().collect();
    let directive = lines.pop().unwrap_or_default().to_owned();
    let described = !lines.is_empty() && lines.iter().all(|line| line.contains('\t'));
    let word = |line: &&str| line.split('\t').next().unwrap_or_default().to_owned();
    Answer { words: lines.iter().map(word).collect(), described, directive }
}
