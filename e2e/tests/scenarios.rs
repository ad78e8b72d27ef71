//! The scripts in `e2e/scenarios` give the same output for every pair of server and client.
//!
//! Their expected output was written by Go etcdctl against Go etcd. To write it again after a script
//! was changed, run this test with `UPDATE_SCENARIOS=1`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use e2e::peers;
use e2e::script::{Programs, Script};

/// The scripts hold what Go etcd does: without this the other tests would compare with an invention.
#[test]
fn go_etcdctl_drives_go_etcd() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let programs = Programs { etcd: go.etcd, etcdctl: go.etcdctl, etcdutl: go.etcdutl };
    if env::var_os("UPDATE_SCENARIOS").is_some() {
        update(&programs);
    }
    run_all(&programs);
}

#[test]
fn our_etcdctl_drives_go_etcd() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let etcdctl = peers::our_binary("etcdctl").expect("build our etcdctl");
    run_all(&Programs { etcd: go.etcd, etcdctl, etcdutl: go.etcdutl });
}

#[test]
fn go_etcdctl_drives_our_etcd() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let etcd = peers::our_binary("etcd").expect("build our etcd");
    let programs = Programs { etcd, etcdctl: go.etcdctl, etcdutl: go.etcdutl };
    run_all(&programs);
}

/// The table in `server/README.md` has a row about these scripts.
#[test]
fn the_readme_says_how_many_commands_are_compared() {
    let count = |path: PathBuf| Script::load(&path).expect("read a scenario").len();
    let commands: usize = all_scenarios().into_iter().map(count).sum();
    let shown = format!("{},{:03}", commands / 1000, commands % 1000);
    let row = format!("| `scenarios`, for each pairing | {shown} | {shown} | 0 |");
    let readme = include_str!("../../server/README.md");
    assert!(readme.lines().any(|line| line == row), "server/README.md has no row {row}");
}

/// Command lines, of which bash is asked for the last word.
const TYPED: [&[&str]; 10] = [
    &[""],
    &["m"],
    &["user", ""],
    &["user", "gr"],
    &["-w", "json", "lease", ""],
    &["--hex", "endpoint", "h"],
    &["get", "--prin"],
    &["get", "a", "--order", ""],
    &["snapshot", "s"],
    &["get", "--nonsense"],
];

/// Bash itself runs our script, which offers what Go etcdctl offers to its own.
#[test]
fn bash_completes_what_go_etcdctl_offers() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let ours = peers::our_binary("etcdctl").expect("build our etcdctl");
    let directory = tempfile::tempdir().expect("make a directory");
    symlink(&ours, directory.path().join("etcdctl")).expect("link our etcdctl");
    let paths = env::var_os("PATH").unwrap_or_default();
    let paths = [directory.path().to_owned()].into_iter().chain(env::split_paths(&paths));
    let paths = env::join_paths(paths).expect("make a search path");
    let complete = "source <(etcdctl completion bash); complete -p etcdctl >&2; \
                    COMP_WORDS=(etcdctl \"$@\"); COMP_CWORD=$#; _etcdctl; \
                    printf '%s\\n' \"${COMPREPLY[@]}\"";
    for words in TYPED {
        let offered = Command::new(&go.etcdctl).arg("__complete").args(words).output();
        let offered = offered.expect("ask Go etcdctl").stdout;
        let offered = String::from_utf8_lossy(&offered).into_owned();
        // The last line tells the shell what to make of it.
        let lines = offered.lines().filter(|line| !line.starts_with(':'));
        let mut expected: Vec<&str> =
            lines.map(|line| line.split('\t').next().unwrap_or_default()).collect();
        let mut bash = Command::new("bash");
        bash.args(["-c", complete, "bash"]).args(words).env("PATH", &paths);
        let answer = bash.output().expect("run bash");
        let registered = String::from_utf8_lossy(&answer.stderr);
        assert!(registered.contains("-F _etcdctl etcdctl"), "{words:?}: {registered}");
        let found = String::from_utf8_lossy(&answer.stdout);
        let mut found: Vec<&str> = found.lines().filter(|line| !line.is_empty()).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{words:?}");
        assert_eq!(found.is_empty(), words.contains(&"--nonsense"), "{words:?}");
    }
}

fn all_scenarios() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = fs::read_dir(&directory).expect("list the scenarios");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("read a directory entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "there are no scenarios in {}", directory.display());
    paths
}

fn scenarios() -> Vec<PathBuf> {
    let mut paths = all_scenarios();
    // One script can be run alone by the beginning of its name.
    if let Some(only) = env::var_os("SCENARIO") {
        let only = only.to_string_lossy().into_owned();
        paths.retain(|path| {
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&only))
        });
        assert!(!paths.is_empty(), "no scenario begins with {only}");
    }
    paths
}

fn run_all(programs: &Programs) {
    let mut failures = String::new();
    let mut commands = 0;
    for path in scenarios() {
        let expected = Script::load(&path).expect("read a scenario");
        assert!(!expected.is_empty(), "{} has no commands", path.display());
        commands += expected.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match expected.run(programs) {
            Ok((actual, complaints)) => {
                if let Some(differences) = expected.differences(&actual) {
                    failures.push_str(&format!("== {name}\n{differences}{complaints}"));
                }
            }
            Err(error) => failures.push_str(&format!("== {name}\n{error:#}\n")),
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    println!("{commands} commands compared, {commands} equal");
}

fn update(programs: &Programs) {
    for path in scenarios() {
        let script = Script::load(&path).expect("read a scenario");
        let (actual, _) =
            script.run(programs).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
        fs::write(&path, actual.text()).expect("write a scenario");
    }
}
