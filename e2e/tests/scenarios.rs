//! The scripts in `e2e/scenarios` give the same output for every pair of server and client.
//!
//! Their expected output was written by Go etcdctl against Go etcd. To write it again after a script
//! was changed, run this test with `UPDATE_SCENARIOS=1`.

#[path = "scenarios/completion.rs"]
mod completion;
#[path = "scenarios/help.rs"]
mod help;
#[path = "scenarios/tools.rs"]
mod tools;

use std::path::{Path, PathBuf};
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
