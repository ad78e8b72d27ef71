//! `etcdctl check perf` and `etcdctl check datascale`, run for real by both `etcdctl`s against both servers.
//!
//! A check of performance takes a minute, so all of them run at once, each against a server of its own. What
//! they measure is another number each time, and on a machine that has other things to do a threshold may be
//! missed by anyone's server; so numbers are masked, and of each threshold it is compared that it was judged,
//! not how. The verdict and the exit code have to follow from what was judged.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use e2e::peers;
use e2e::processes::{Cluster, ServerOptions, signal};

/// What `check` has in common: who asks whom.
struct Pairing {
    server: PathBuf,
    etcdctl: PathBuf,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    code: Option<i32>,
    /// What it printed, with `#` for numbers.
    lines: Vec<String>,
    errors: Vec<String>,
}

fn pairings() -> Vec<Pairing> {
    let go = peers::etcd_binaries().unwrap();
    let ours = ["etcd", "etcdctl"].map(|name| peers::our_binary(name).unwrap());
    let mut pairings = Vec::new();
    for server in [&go.etcd, &ours[0]] {
        for etcdctl in [&go.etcdctl, &ours[1]] {
            pairings.push(Pairing { server: server.clone(), etcdctl: etcdctl.clone() });
        }
    }
    pairings
}

/// Every run of digits, with the point in it, is one number.
fn masked(line: &str) -> String {
    let mut masked = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        if !character.is_ascii_digit() {
            masked.push(character);
            continue;
        }
        while characters.next_if(|next| next.is_ascii_digit() || *next == '.').is_some() {}
        masked.push('#');
    }
    masked
}

/// The last state of a line that was drawn over, without what a bar draws.
fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let drawn = text.split(['\n', '\r']).map(str::trim_end);
    drawn.filter(|line| !line.is_empty() && !is_bar(line)).map(masked).collect()
}

/// The bar shows how much of how much, and a percentage.
fn is_bar(line: &str) -> bool {
    line.contains(" / ") && (line.contains('%') || line.contains('['))
}

fn command(etcdctl: &Path, cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(etcdctl);
    command.arg(format!("--endpoints={}", cluster.members()[0].endpoint)).args(arguments);
    command
}

fn run(etcdctl: &Path, cluster: &Cluster, arguments: &[&str]) -> Ended {
    ended(&command(etcdctl, cluster, arguments).output().unwrap())
}

fn ended(output: &Output) -> Ended {
    Ended {
        code: output.status.code(),
        lines: lines(&output.stdout),
        errors: lines(&output.stderr),
    }
}

/// What a check of performance said of its thresholds, and whether all were met.
fn judged(ended: &mut Ended) -> bool {
    let mut passed = true;
    for line in &mut ended.lines {
        for (met, missed, name) in [
            (
                "PASS: Throughput is # writes/s",
                "FAIL: Throughput too low: # writes/s",
                "throughput",
            ),
            ("PASS: Slowest request took #s", "Slowest request took too long: #s", "slowest"),
            ("PASS: Stddev is #s", "Stddev too high: #s", "deviation"),
        ] {
            passed &= line != missed;
            if line == met || line == missed {
                *line = format!("judged: {name}");
            }
        }
    }
    passed
}

fn check_perf(pairing: &Pairing, flags: &[&str]) -> Ended {
    let cluster = Cluster::start(&ServerOptions::one(&pairing.server)).unwrap();
    let ended = run(&pairing.etcdctl, &cluster, &[&["check", "perf"], flags].concat());
    judged_and_gone(pairing, &cluster, ended)
}

/// What a check of performance came to, whose verdict follows from its judgements.
fn judged_and_gone(pairing: &Pairing, cluster: &Cluster, mut ended: Ended) -> Ended {
    let (verdict, code) = if judged(&mut ended) { ("PASS", 0) } else { ("FAIL", 1) };
    println!("{} at {}: {verdict}", pairing.etcdctl.display(), pairing.server.display());
    assert_eq!(ended.lines.pop().as_deref(), Some(verdict), "{ended:?}");
    assert_eq!(ended.code.take(), Some(code), "{ended:?}");
    nothing_is_left(pairing, cluster);
    ended
}

/// A check that is interrupted with a thousand keys in the cluster.
fn check_perf_interrupted(pairing: &Pairing) -> Ended {
    let cluster = Cluster::start(&ServerOptions::one(&pairing.server)).unwrap();
    let mut check = command(&pairing.etcdctl, &cluster, &["check", "perf"]);
    let check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let name = pairing.etcdctl.display();
    let begin = Instant::now();
    while revision(pairing, &cluster) <= LEAST_WRITTEN {
        assert!(begin.elapsed() < A_CHECK, "{name}: too slow");
        thread::sleep(Duration::from_millis(100));
    }
    signal(check.id(), "INT").unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(begin.elapsed() < A_CHECK, "{name} was not interrupted");
    judged_and_gone(pairing, &cluster, ended(&output))
}

/// A check that nobody interrupts takes longer.
const A_CHECK: Duration = Duration::from_secs(57);

/// The revision up to which a check at least writes before it is looked at.
const LEAST_WRITTEN: i64 = 1000;

fn revision(pairing: &Pairing, cluster: &Cluster) -> i64 {
    first_key(pairing, cluster)["header"]["revision"].as_i64().unwrap()
}

fn first_key(pairing: &Pairing, cluster: &Cluster) -> serde_json::Value {
    let ask = ["get", "--prefix", "", "--limit=1", "--write-out=json"];
    let output = command(&pairing.etcdctl, cluster, &ask).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A check takes away what it has written, and it has written something.
fn nothing_is_left(pairing: &Pairing, cluster: &Cluster) {
    let answer = first_key(pairing, cluster);
    assert_eq!(answer["count"].as_i64().unwrap_or_default(), 0, "{answer}");
    assert!(answer["header"]["revision"].as_i64().unwrap() > LEAST_WRITTEN, "{answer}");
}

/// All pairings at once have to say the same.
fn all_say(check: impl Fn(&Pairing) -> Ended + Sync) -> Ended {
    let pairings = pairings();
    let ended: Vec<Ended> = thread::scope(|scope| {
        let running: Vec<_> =
            pairings.iter().map(|pairing| scope.spawn(|| check(pairing))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (pairing, other) in pairings.iter().zip(&ended) {
        let name = format!("{} at {}", pairing.etcdctl.display(), pairing.server.display());
        assert_eq!(&ended[0], other, "{name}");
    }
    ended[0].clone()
}

const EVERYTHING: [&str; 4] = ["--load=s", "--prefix=/mine/", "--auto-compact", "--auto-defrag"];
const JUDGED: [&str; 3] = ["judged: throughput", "judged: slowest", "judged: deviation"];

#[test]
fn check_perf_says_the_same_by_both_clients_at_both_servers() {
    thread::scope(|scope| {
        let plain = scope.spawn(|| all_say(|pairing| check_perf(pairing, &["--load=small"])));
        let everything = all_say(|pairing| check_perf(pairing, &EVERYTHING));
        assert_eq!(plain.join().unwrap().lines, JUDGED);
        let (before, judged) = everything.lines.split_at(everything.lines.len() - JUDGED.len());
        assert_eq!(before[..2], ["Compacting with revision #", "Compacted with revision #"]);
        assert!(before[2..].iter().all(|line| line.starts_with("Defragment")), "{before:?}");
        assert_eq!(judged, JUDGED);
    });
}

#[test]
fn an_interrupted_check_says_what_it_has_and_leaves_nothing() {
    assert_eq!(all_say(check_perf_interrupted).lines, JUDGED);
}

#[test]
fn check_datascale_says_the_same_by_both_clients_at_both_servers() {
    for flags in [&["--load=s"][..], &EVERYTHING] {
        let ended = all_say(|pairing| {
            let cluster = Cluster::start(&ServerOptions::one(&pairing.server)).unwrap();
            let arguments = [&["check", "datascale"], flags].concat();
            let ended = run(&pairing.etcdctl, &cluster, &arguments);
            nothing_is_left(pairing, &cluster);
            ended
        });
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let last = ended.lines.last().map(String::as_str);
        assert_eq!(last, Some("PASS: Approximate system memory used : # MB."), "{ended:?}");
        println!("{ended:?}");
    }
}

#[test]
fn numbers_are_masked_as_a_whole() {
    assert_eq!(masked("PASS: Slowest request took 0.012345s"), "PASS: Slowest request took #s");
    assert_eq!(lines(b" 0 / 60 [---]  0.00%\r 60 / 60 [===] 100.00% 1m0s\nPASS\n"), ["PASS"]);
}
