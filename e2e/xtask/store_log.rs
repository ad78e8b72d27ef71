//! What the store of the local Kubernetes must not have done while the tests ran, read from two logs:
//! what kube-apiserver says of its store, and what the store says of itself.
//!
//! The words are those that runs without a mistake do not print. Cancelled calls are not among them:
//! kube-apiserver gives up calls of its own when a watch or a request of its client ends.

use anyhow::{Result, bail};
use e2e::kubernetes::layout::STORE_CLIENT_URL;
use jiff::Timestamp;

use crate::pulse::Standstill;

/// What kube-apiserver writes when its store has failed it.
const STORAGE_ERRORS: [&str; 12] = [
    "etcdserver:",
    "etcd client:",
    "StorageError",
    "storage is (re)initializing",
    "watch chan error",
    "code = Internal",
    "code = Unavailable",
    DEADLINE_PASSED,
    "code = ResourceExhausted",
    "code = DataLoss",
    "code = Unknown",
    "inconsistency",
];

/// The kubelets of the local Kubernetes give a call one second.
const DEADLINE_PASSED: &str = "code = DeadlineExceeded";

/// What it writes about compaction and conflicts, which is their ordinary course.
const ORDINARY: [&str; 2] = ["required revision has been compacted", "leaderChanged"];

/// Before this line both are starting, and kube-apiserver may be the faster one.
const IS_SERVING: &str = "Serving securely on";

/// Levels of the store's log that are a failure.
const BAD_LEVELS: [&str; 4] = ["error", "dpanic", "panic", "fatal"];

/// Looks through what kube-apiserver has written. Deadlines that passed while the machine or its disk stood
/// still are not the store's.
pub(crate) fn of_api_server(log: &str, standstills: &[Standstill]) -> Result<()> {
    // Nobody listens at the store's address. Said of others it is about kubelets and webhooks.
    let address = STORE_CLIENT_URL.trim_start_matches("http://");
    let store_is_away = format!("{address}: connect: connection refused");
    let mut serving = false;
    let found = log.lines().filter(|line| {
        serving |= line.contains(IS_SERVING);
        let is_error = STORAGE_ERRORS.iter().any(|error| line.contains(error))
            || (serving && line.contains(&store_is_away));
        let is_explained = || {
            line.contains(DEADLINE_PASSED)
                && time(line).is_some_and(|time| standstills.iter().any(|it| it.explains(time)))
        };
        is_error && !ORDINARY.iter().any(|ordinary| line.contains(ordinary)) && !is_explained()
    });
    none("storage errors", found)
}

/// Looks through what the store has written: JSON lines, and whatever a panic leaves.
pub(crate) fn of_store(log: &str) -> Result<()> {
    let found = log.lines().filter(|line| {
        let level = level(line);
        let panics = line.contains("panicked at") || line.starts_with("panic:");
        panics || level.is_some_and(|level| BAD_LEVELS.contains(&level.as_str()))
    });
    none("errors in the store's own log", found)
}

/// When a line was written, if it is one of the client of etcd. Those of others do not tell the year.
fn time(line: &str) -> Option<Timestamp> {
    field(line, "ts").parse().ok()
}

/// When the machine and its disk stood still, in a sentence.
pub(crate) fn told(standstills: &[Standstill]) -> String {
    let each = standstills
        .iter()
        .map(|it| format!("{} stood still for {:.1?} until {:.1}", it.what, it.lasted, it.end));
    match standstills {
        [] => "neither the machine nor its disk stood still".to_owned(),
        _ => each.collect::<Vec<_>>().join(", "),
    }
}

/// How the store's disk was, in a sentence: what the store can have failed for without a fault of its own.
pub(crate) fn slow_flushes(log: &str) -> String {
    let slow: Vec<String> = log
        .lines()
        .filter(|line| line.contains("slow fdatasync"))
        .map(|line| format!("{} at {}", field(line, "took"), field(line, "ts")))
        .collect();
    match slow.is_empty() {
        true => "the store tells of no slow flush".to_owned(),
        false => format!("the store tells of slow flushes: {}", slow.join(", ")),
    }
}

fn level(line: &str) -> Option<String> {
    let level = field(line, "level");
    (!level.is_empty()).then(|| level.to_lowercase())
}

fn field(line: &str, name: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    line[name].as_str().unwrap_or_default().to_owned()
}

fn none<'a>(what: &str, found: impl Iterator<Item = &'a str>) -> Result<()> {
    let found: Vec<&str> = found.collect();
    match found.first() {
        None => Ok(()),
        Some(first) => bail!("{} {what}, the first: {first}", found.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CANCELED: &str = r#"{"level":"warn","ts":"2026-11-22T07:34:15Z","logger":"etcd-client","msg":"retrying of unary invoker failed","method":"/etcdserverpb.KV/Range","error":"rpc error: code = Canceled desc = context canceled"}"#;

    #[test]
    fn a_run_without_a_mistake_has_nothing_to_tell() {
        let log = format!(
            "W1122 07:33:38 logging.go:55] [core] grpc: addrConn.createTransport failed to connect to \
             {{Addr: \"127.0.0.1:23790\"}}. Err: connection error: desc = \"transport: Error while \
             dialing: dial tcp 127.0.0.1:23790: connect: connection refused\"\n\
             I1122 07:33:40 secure_serving.go:214] Serving securely on 10.77.0.1:6443\n{CANCELED}\n\
             W1122 07:34:00 watcher.go: watch chan error: etcdserver: mvcc: required revision has been \
             compacted\n\
             W1122 07:35:00 proxy.go: dial tcp 10.77.1.2:10250: connect: connection refused\n"
        );
        of_api_server(&log, &[]).unwrap();
        of_store("{\"level\":\"warn\",\"msg\":\"apply request took too long\"}\n").unwrap();
    }

    #[test]
    fn errors_of_the_store_are_found_among_what_the_apiserver_logs() {
        let serving = "I1122 07:33:40 secure_serving.go:214] Serving securely on 10.77.0.1:6443";
        for bad in [
            "E1121 status.go: rpc error: etcdserver: no leader",
            "E1121 status.go: rpc error: code = Internal desc = x",
            "E1121 status.go: rpc error: code = Unavailable desc = transport is closing",
            "E1121 status.go: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
            "E1121 status.go: rpc error: code = ResourceExhausted desc = trying to send message",
            "W1121 [core] dial tcp 127.0.0.1:23790: connect: connection refused",
        ] {
            let error = of_api_server(&format!("{serving}\n{CANCELED}\n{bad}\n"), &[]).unwrap_err();
            assert_eq!(error.to_string(), format!("1 storage errors, the first: {bad}"));
        }
    }

    /// The disk made everybody wait while a volume was unmounted, and two calls of kubelets were late.
    #[test]
    fn a_deadline_that_passed_while_the_machine_stood_still_is_not_the_stores() {
        let late = |second, code| {
            format!(
                r#"{{"ts":"2026-11-23T13:55:{second}Z","error":"rpc error: code = {code} desc"}}"#
            )
        };
        let end = "2026-11-23T13:55:27.1Z".parse().unwrap();
        let lasted = Duration::from_millis(3700);
        let standstills = [Standstill { what: "the disk", end, lasted }];
        of_api_server(&late("27.235134", "DeadlineExceeded"), &standstills).unwrap();
        of_api_server(&late("27.235134", "DeadlineExceeded"), &[]).unwrap_err();
        of_api_server(&late("27.235134", "Unavailable"), &standstills).unwrap_err();
        of_api_server(&late("35.000000", "DeadlineExceeded"), &standstills).unwrap_err();
        assert_eq!(
            told(&standstills),
            "the disk stood still for 3.7s until 2026-11-23T13:55:27.1Z"
        );
    }

    #[test]
    fn slow_flushes_are_told_with_their_times() {
        let log = "{\"level\":\"warn\",\"ts\":\"07:33\",\"msg\":\"slow fdatasync\",\"took\":\"2.1s\"}\n\
                   {\"level\":\"info\",\"ts\":\"07:34\",\"msg\":\"ready\"}\n";
        assert_eq!(slow_flushes(log), "the store tells of slow flushes: 2.1s at 07:33");
        assert_eq!(slow_flushes(""), "the store tells of no slow flush");
    }

    #[test]
    fn what_the_store_says_of_itself_counts_too() {
        for bad in [
            r#"{"level":"error","ts":"2026-11-22T07:33:38Z","msg":"x"}"#,
            r#"{"level":"fatal","msg":"x"}"#,
            r#"{"level":"PANIC","msg":"x"}"#,
            "thread 'rpc-1' panicked at src/api/kv.rs:1:1:",
            "panic: runtime error: index out of range",
        ] {
            let error = of_store(&format!("{{\"level\":\"info\"}}\n{bad}\n")).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
