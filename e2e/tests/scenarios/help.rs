//! What `--help` shows of a command: how it is used, and its flags with their types and defaults.
//!
//! The descriptions are each one's own words, and so are the lists of commands; those that
//! `__complete` offers are compared in [`super::completion`].

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::tools::TOOLS;

/// Flags whose types or defaults differ, and why.
const DEVIATIONS: [(&str, &str); 1] =
    [("--initial-memory-map-size", "without effect: files are read, not mapped")];

/// How a command is used and, by heading, its flags.
#[derive(Debug, Default, PartialEq, Eq)]
struct Help {
    usage: Vec<String>,
    flags: BTreeMap<String, Vec<String>>,
}

/// A flag without its description: `-w, --write-out string (default "simple")`.
fn flag(line: &str) -> String {
    let (flag, about) = line.trim().split_once("   ").unwrap_or((line.trim(), ""));
    let default = about.rfind("(default ").map_or("", |start| &about[start..]);
    format!("{flag} {default}").trim_end().to_owned()
}

fn help(program: &Path, command: &str, own: &[&str]) -> Help {
    let output = Command::new(program)
        .args(command.split_whitespace())
        .arg("--help")
        .output()
        .expect("run a tool");
    assert!(output.status.success(), "{command}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("help in UTF-8");
    let mut help = Help::default();
    let mut heading = "";
    for line in text.lines().filter(|line| !line.is_empty()) {
        match line {
            line if !line.starts_with(' ') => heading = line,
            line if heading == "Usage:" => help.usage.push(line.trim().to_owned()),
            line if heading.ends_with("Flags:") => {
                let is_own = own.iter().any(|own| line.split_whitespace().any(|word| word == *own));
                let flags = help.flags.entry(heading.to_owned()).or_default();
                flags.extend((!is_own).then(|| flag(line)));
            }
            _ => {}
        }
    }
    help
}

#[test]
fn every_command_is_used_alike_and_has_the_same_flags() {
    for tool in &TOOLS {
        let (mut different, mut compared, mut deviating) = (String::new(), 0, 0);
        for command in tool.commands() {
            let mut both =
                [tool.go(), tool.ours()].map(|program| help(&program, &command, tool.own));
            compared += both[0].usage.len() + both[0].flags.values().map(Vec::len).sum::<usize>();
            for (name, _) in DEVIATIONS {
                let is_it = |flag: &String| flag.split_whitespace().next() == Some(name);
                let mut of_both = both.iter_mut().map(|help| {
                    help.flags.values_mut().find_map(|flags| {
                        let at = flags.iter().position(is_it)?;
                        Some(flags.remove(at))
                    })
                });
                let (go, ours) = (of_both.next().flatten(), of_both.next().flatten());
                assert!(go.is_none() || go != ours, "{name}: no longer differs");
                deviating += usize::from(go.is_some());
            }
            let [go, ours] = both;
            if go != ours {
                let name = tool.name;
                different.push_str(&format!("{name} {command}\n  Go   {go:?}\n  ours {ours:?}\n"));
            }
        }
        assert!(different.is_empty(), "\n{different}");
        assert!(compared > 25, "{}: {compared} lines only", tool.name);
        let equal = compared - deviating;
        println!(
            "{compared} lines of help compared, {equal} equal, {deviating} deviating with reason"
        );
    }
}
