//! Flags about the process itself: the rotation of its log, and memory that is not swapped out. And how much
//! the log says.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use calls::until;
use e2e::processes::{Cluster, Member, ServerOptions, http_get};

fn both() -> [PathBuf; 2] {
    [e2e::peers::our_binary("etcd").unwrap(), e2e::peers::etcd_binaries().unwrap().etcd]
}

/// The files beside `etcd.log` that it was renamed to, and how long they are.
fn backups(directory: &Path) -> Vec<u64> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    names
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("etcd-2"))
        .map(|entry| entry.metadata().unwrap().len())
        .collect()
}

#[test]
fn a_full_log_is_rotated_as_by_go_etcd() {
    const FULL: u64 = (1 << 20) - 10;
    for program in both() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("etcd.log");
        fs::write(&log, vec![b'\n'; FULL as usize]).unwrap();
        for number in 0..3 {
            let name = format!("etcd-202{number}-01-01T00-00-00.000.log");
            fs::write(directory.path().join(name), "old").unwrap();
        }
        let flags = vec![
            format!("--log-outputs={}", log.display()),
            "--enable-log-rotation".to_owned(),
            r#"--log-rotation-config-json={"maxsize": 1, "maxbackups": 2}"#.to_owned(),
        ];
        let options = ServerOptions { flags, ..ServerOptions::one(&program) };
        let cluster = Cluster::start(&options).unwrap();
        let shown = || fs::read_to_string(&log).unwrap();
        until("the new file is written", || shown().contains("ready to serve client requests"));
        assert!(shown().len() < FULL as usize, "{}", program.display());
        until("the oldest backups are gone", || backups(directory.path()).len() == 2);
        let mut sizes = backups(directory.path());
        sizes.sort_unstable();
        assert_eq!(sizes, [3, FULL], "{}", program.display());
        drop(cluster);
    }
}

/// Asks for a level of the log; the status of the answer.
fn set_level(member: &Member, level: &str) -> String {
    let answer = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "10", "--write-out", "%{http_code}"])
        .args(["--request", "PUT", "--data", &format!(r#"{{"Level":"{level}"}}"#)])
        .arg(format!("{}/config/local/log", member.client_url()))
        .output()
        .expect("run curl; install it");
    String::from_utf8_lossy(&answer.stdout).into_owned()
}

#[test]
fn the_level_of_the_log_changes_while_the_server_runs() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let flags = vec!["--enable-pprof".to_owned()];
    let cluster = Cluster::start(&ServerOptions { flags, ..ServerOptions::one(&ours) }).unwrap();
    let member = &cluster.members()[0];
    let level = || http_get(&member.endpoint, "/config/local/log").unwrap();
    let of_debug = || member.log().matches(r#"{"level":"debug","#).count();
    assert_eq!((level().trim(), of_debug()), (r#"{"Level":"INFO"}"#, 0));
    assert_eq!(set_level(member, "debug"), "204");
    assert_eq!(level().trim(), r#"{"Level":"DEBUG"}"#);
    until("there is a line for who looks closely", || {
        // Connections are spoken of.
        level();
        of_debug() > 0
    });
    assert_eq!(set_level(member, "error"), "204");
    assert_eq!(level().trim(), r#"{"Level":"ERROR"}"#);
    assert_eq!(set_level(member, "info"), "204");
    assert_eq!(set_level(member, "nonsense"), r#"{"message":"Invalid log level nonsense"}400"#);
    // Each change is told at the level that it made, so that one is not.
    let changes = || {
        let log = member.log();
        let changed = log.split(r#""msg":"changed the log level","new-level":""#).skip(1);
        let names = changed.filter_map(|rest| rest.split_once('"').map(|(name, _)| name));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    until("the last change is told", || changes().last().is_some_and(|name| name == "info"));
    assert_eq!(changes(), ["debug", "info"]);
}

#[test]
fn a_log_tells_in_few_lines_that_a_member_is_down_and_back() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions { members: 3, ..ServerOptions::one(&program) };
    let mut cluster = Cluster::start(&options).unwrap();
    let told = |cluster: &Cluster, text: &str| {
        // Whichever leads: only the leader sends anything when nobody writes.
        let logs = cluster.members()[..2].iter().map(Member::log);
        logs.map(|log| log.matches(&format!(r#""msg":"{text}""#)).count()).max().unwrap()
    };
    let lines = |cluster: &Cluster| {
        cluster.members()[..2].iter().map(|member| member.log().lines().count()).sum::<usize>()
    };
    until("all are told to be there", || told(&cluster, "peer became active") >= 2);
    let (before, began) = (lines(&cluster), Instant::now());
    cluster.member_mut(2).kill().unwrap();
    let down = "peer became inactive (message send to peer failed)";
    until("its end is told", || told(&cluster, down) == 1);
    let still_down = "prober detected unhealthy status";
    until("it is told that it stays away", || told(&cluster, still_down) >= 2);
    // There was an election, if it led. Messages that fail are many more than these.
    let most = 40 + began.elapsed().as_secs() as usize;
    let more = lines(&cluster) - before;
    assert!(more <= most, "{more} lines: {}", cluster.members()[0].log());
    let were_there = told(&cluster, "peer became active");
    cluster.member_mut(2).restart().unwrap();
    until("its return is told", || told(&cluster, "peer became active") > were_there);
}

#[test]
fn a_rotation_that_cannot_be_is_refused_in_etcds_words() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("1.log"), directory.path().join("2.log"));
    let file = format!("--log-outputs={}", one.display());
    let files = format!("--log-outputs={},{}", one.display(), two.display());
    let config = |json: &str| format!("--log-rotation-config-json={json}");
    let single =
        "--log-outputs requires a single file path when --log-rotate-config-json is defined";
    for (flags, text) in [
        (vec![], single),
        (vec!["--log-outputs=stdout".to_owned()], single),
        (vec![files], single),
        (
            vec![file.clone(), config("{\"maxsize\": }")],
            "improperly formatted log rotation config: ",
        ),
        (vec![file, config("{\"maxsize\": \"1\"}")], "invalid log rotation config: "),
    ] {
        for program in both() {
            let output = Command::new(&program)
                .arg(format!("--data-dir={}", directory.path().join("data").display()))
                .arg("--enable-log-rotation")
                .args(&flags)
                .output()
                .unwrap();
            let said =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(1), "{} {flags:?}", program.display());
            assert!(said.contains(text), "{} {flags:?}: {said}", program.display());
        }
    }
}

#[test]
fn locked_memory_is_locked_or_the_start_is_refused() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let mut cluster = Cluster::start(&ServerOptions::one(&program)).unwrap();
    let member = cluster.member_mut(0);
    let locked = |pid: u32| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    };
    assert_eq!(locked(member.pid().unwrap()), 0);
    member.set_flag("--memory-mlock");
    member.stop().unwrap();
    member.launch().unwrap();
    match member.wait_until_healthy() {
        Ok(()) => assert!(locked(member.pid().unwrap()) > 1024, "nothing is locked"),
        Err(_) => {
            // Who may not lock memory is told what allows it.
            assert!(member.log().contains("LimitMEMLOCK=infinity"), "{}", member.log());
        }
    }
}
