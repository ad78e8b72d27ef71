//! The program as scripts and service managers meet it: exit codes and what is printed where. The
//! expectations are what etcd 3.7.3 does with the same command lines.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// No command line here may start a server: one that does is ended, and the test says which.
const END_LIMIT: Duration = Duration::from_secs(30);

fn etcd(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut child = Command::new(env!("CARGO_BIN_EXE_etcd"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let began = Instant::now();
    while child.try_wait().expect("the program can be waited for").is_none() {
        if began.elapsed() > END_LIMIT {
            child.kill().expect("the program can be ended");
            let output = child.wait_with_output().expect("its output can be read");
            panic!("{arguments:?} started a server: {}", text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output can be read")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the output is text")
}

#[test]
fn the_version_is_printed_in_the_lines_of_etcd() {
    let output = etcd(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    for (line, start) in lines.iter().zip([
        "etcd Version: 3.7.",
        "Git SHA: ",
        "Go Version: ",
        "Go OS/Arch: linux/",
        "Keelson Version: ",
    ]) {
        assert!(line.starts_with(start), "{stdout}");
    }
    assert_eq!(lines.len(), 5);
}

#[test]
fn help_is_printed_and_is_no_error() {
    for flag in ["--help", "-h"] {
        let output = etcd(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("--listen-client-urls"));
    }
}

#[test]
fn an_unreadable_command_line_ends_with_2_and_the_usage() {
    let cases = [
        (&["--foo"][..], "flag provided but not defined: -foo\nUsage:"),
        (&["-name"], "flag needs an argument: -name\nUsage:"),
        (
            &["--listen-peer-urls=foo"],
            "invalid value \"foo\" for flag -listen-peer-urls: URL scheme must be http, https, unix, or unixs: foo\nUsage:",
        ),
        (
            &["--enable-pprof=maybe"],
            "invalid boolean value \"maybe\" for -enable-pprof: parse error\nUsage:",
        ),
    ];
    for (arguments, start) in cases {
        let output = etcd(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with(start), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_contradiction_ends_with_1_and_a_line_of_the_log() {
    let cases = [
        (&["positional"][..], &[][..], "\\\"positional\\\" is not a valid flag"),
        (
            &["--listen-client-urls=http://1.2.3.4:1"],
            &[],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--election-timeout=100"],
            &[],
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "z")], "ETCD_HEARTBEAT_INTERVAL: parse error"),
        (&["--config-file=missing.yaml"], &[], "open missing.yaml: no such file or directory"),
        (
            &["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=1000001"],
            &[],
            "distributed tracing configurition is not valid: (tracing sampling rate must be less than 1000000)",
        ),
    ];
    for (arguments, environment, part) in cases {
        let output = etcd(arguments, environment);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let stderr = text(&output.stderr);
        let line = stderr
            .lines()
            .find(|line| line.contains("\"msg\":\"failed to verify flags\""))
            .unwrap_or_else(|| panic!("{arguments:?}: {stderr}"));
        assert!(line.starts_with("{\"level\":\"warn\",\"ts\":\""), "{line}");
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_variable_that_a_flag_shadows_is_named() {
    let output = etcd(&["--name=b"], &[("ETCD_NAME", "a")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("is shadowed by corresponding command-line flag"), "{stderr}");
    assert!(stderr.contains("\"environment-variable\":\"ETCD_NAME\""), "{stderr}");
}
