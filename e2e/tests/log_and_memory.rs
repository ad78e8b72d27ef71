//! Flags about the process itself: the rotation of its log, and memory that is not swapped out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use calls::until;
use e2e::processes::{Cluster, ServerOptions};

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
