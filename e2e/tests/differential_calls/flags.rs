//! Flags: what each of them changes, as it is seen from outside, on both servers.
//!
//! Every flag has a row: an effect that is observed here, the test that observes it, or the reason why
//! nothing can be seen. How values are read and refused is compared by `differential_flags.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use e2e::kubernetes::wait;
use e2e::peers;
use e2e::processes::http_get;
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

use super::refusals::sample;
use super::talk::{Call, Talk, with_both};

/// Every flag of etcd 3.7.3, as its own flag set lists them.
const FLAGS: &str = include_str!("../../../server/src/cli/flags/etcd_3_7_flags.txt");

/// How long something may take until it is seen.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a flag is seen to do something.
enum Seen {
    /// Both servers show `with` when they are started with `given`, and Go etcd shows `without` when it
    /// is not, where that takes no waiting for something that does not come. `DIR` is an empty
    /// directory.
    Here {
        given: &'static str,
        members: usize,
        observe: fn(&mut Talk) -> String,
        with: &'static str,
        without: Option<&'static str>,
    },
    /// By this test, which names the flag.
    By(&'static str),
    /// Ours takes this value and logs that it changes nothing; the README has it, too.
    NoEffect(&'static str),
    /// Nowhere, and why.
    Nowhere(&'static str),
}

use Seen::{By, Here, NoEffect, Nowhere};

const fn here(
    given: &'static str,
    observe: fn(&mut Talk) -> String,
    with: &'static str,
    without: &'static str,
) -> Seen {
    Here { given, members: 1, observe, with, without: Some(without) }
}

#[rustfmt::skip]
const SEEN: &[(&str, Seen)] = &[
    ("advertise-client-urls", By("discovery.rs")),
    ("auth-token", By("differential_auth.rs")),
    ("auth-token-ttl", By("differential_auth.rs")),
    ("auto-compaction-mode", Nowhere("etcd looks every five minutes in the mode `revision`; chores/compactor.rs tests when ours compacts")),
    ("auto-compaction-retention", Here { given: "--auto-compaction-mode=periodic --auto-compaction-retention=1s", members: 1, observe: history_goes, with: "etcdserver: mvcc: required revision has been compacted", without: None }),
    ("auto-tls", By("processes.rs")),
    ("backend-batch-interval", NoEffect("5ms")),
    ("backend-batch-limit", NoEffect("7")),
    ("backend-bbolt-freelist-type", NoEffect("array")),
    ("backend-engine", By("data_directory.rs")),
    ("bcrypt-cost", By("differential_auth.rs")),
    ("bootstrap-defrag-threshold-megabytes", NoEffect("1")),
    ("cert-file", By("processes.rs")),
    ("cipher-suites", By("tls.rs")),
    ("client-cert-allowed-hostname", By("tls.rs")),
    ("client-cert-auth", By("tls.rs")),
    ("client-cert-file", NoEffect("missing.pem")),
    ("client-crl-file", By("tls.rs")),
    ("client-key-file", NoEffect("missing.key")),
    ("compact-hash-check-time", By("corruption.rs")),
    ("compaction-batch-limit", NoEffect("3")),
    ("compaction-sleep-interval", NoEffect("1ms")),
    ("config-file", By("differential_flags.rs")),
    ("corrupt-check-time", By("corruption.rs")),
    ("cors", By("differential_gateway.rs")),
    ("data-dir", By("processes.rs")),
    ("discovery", Nowhere("it is refused, and says what became of it")),
    ("discovery-cacert", By("discovery.rs")),
    ("discovery-cert", By("discovery.rs")),
    ("discovery-dial-timeout", By("discovery.rs")),
    ("discovery-endpoints", By("discovery.rs")),
    ("discovery-fallback", Nowhere("it has one value left; differential_flags.rs compares how others are refused")),
    ("discovery-insecure-skip-tls-verify", By("discovery.rs")),
    ("discovery-insecure-transport", By("discovery.rs")),
    ("discovery-keepalive-time", By("discovery.rs")),
    ("discovery-keepalive-timeout", By("discovery.rs")),
    ("discovery-key", By("discovery.rs")),
    ("discovery-password", By("discovery.rs")),
    ("discovery-proxy", Nowhere("it is refused, and says what became of it")),
    ("discovery-request-timeout", By("discovery.rs")),
    ("discovery-srv", By("discovery_dns.rs")),
    ("discovery-srv-name", By("discovery_dns.rs")),
    ("discovery-token", By("discovery.rs")),
    ("discovery-user", By("discovery.rs")),
    ("distributed-tracing-address", By("distributed_tracing.rs")),
    ("distributed-tracing-instance-id", By("distributed_tracing.rs")),
    ("distributed-tracing-sampling-rate", By("distributed_tracing.rs")),
    ("distributed-tracing-service-name", By("distributed_tracing.rs")),
    ("downgrade-check-time", Nowhere("how soon the end of a downgrade is noticed")),
    ("election-timeout", here("--election-timeout=10000 --heartbeat-interval=500", shortest_lease, "15", "2")),
    ("enable-distributed-tracing", By("distributed_tracing.rs")),
    ("enable-grpc-gateway", By("differential_gateway.rs")),
    ("enable-log-rotation", By("log_and_memory.rs")),
    ("enable-pprof", By("tls.rs")),
    ("expect-cluster-id", By("data_directory.rs")),
    ("expect-member-id", By("data_directory.rs")),
    ("feature-gates", By("member_local_address.rs")),
    ("force-new-cluster", By("data_directory.rs")),
    ("grpc-keepalive-interval", By("keepalive.rs")),
    ("grpc-keepalive-min-time", By("keepalive.rs")),
    ("grpc-keepalive-timeout", By("keepalive.rs")),
    ("heartbeat-interval", By("differential_calls/refusals.rs")),
    ("host-whitelist", By("differential_gateway.rs")),
    ("initial-advertise-peer-urls", By("processes.rs")),
    ("initial-cluster", By("processes.rs")),
    ("initial-cluster-state", By("processes.rs")),
    ("initial-cluster-token", By("processes.rs")),
    ("initial-election-tick-advance", NoEffect("false")),
    ("key-file", By("processes.rs")),
    ("listen-client-http-urls", By("tls.rs")),
    ("listen-client-urls", By("processes.rs")),
    ("listen-metrics-urls", By("processes.rs")),
    ("listen-peer-urls", By("processes.rs")),
    ("log-format", here("--log-format=console", log_is_json, "no", "yes")),
    ("log-level", here("--log-level=error", log_levels, "", "info")),
    ("log-outputs", By("log_and_memory.rs")),
    ("log-rotation-config-json", By("log_and_memory.rs")),
    ("logger", Nowhere("it has one value; differential_flags.rs compares how others are refused")),
    ("max-concurrent-streams", here("--max-concurrent-streams=7", streams_at_a_time, "7", "4294967295")),
    ("max-learners", here("--max-learners=2", add_learners, "ok, ok, etcdserver: too many learner members in cluster", "ok, etcdserver: too many learner members in cluster, etcdserver: too many learner members in cluster")),
    ("max-read-memory-bytes", By("traps/memory.rs")),
    ("max-request-bytes", By("differential_calls/refusals.rs")),
    ("max-snapshots", NoEffect("2")),
    ("max-txn-ops", here("--max-txn-ops=2", three_operations, "etcdserver: too many operations in txn request", "ok")),
    ("max-wals", NoEffect("2")),
    ("memory-mlock", By("log_and_memory.rs")),
    ("metrics", here("--metrics=extensive", handling_times, "1", "0")),
    ("name", By("processes.rs")),
    ("peer-auto-tls", By("processes.rs")),
    ("peer-cert-allowed-cn", By("peer_tls.rs")),
    ("peer-cert-allowed-hostname", By("peer_tls.rs")),
    ("peer-cert-file", By("processes.rs")),
    ("peer-client-cert-auth", By("peer_tls.rs")),
    ("peer-client-cert-file", By("peer_tls.rs")),
    ("peer-client-key-file", By("peer_tls.rs")),
    ("peer-crl-file", By("peer_tls.rs")),
    ("peer-key-file", By("processes.rs")),
    ("peer-skip-client-san-verification", By("peer_tls.rs")),
    ("peer-trusted-ca-file", By("peer_tls.rs")),
    ("pre-vote", Nowhere("etcd tells the term of what it has applied, so the terms that a member begins without a leader are not seen")),
    ("quota-backend-bytes", here("--quota-backend-bytes=123456789", quota, "123456789", "2147483648")),
    ("raft-read-timeout", NoEffect("7s")),
    ("raft-write-timeout", NoEffect("7s")),
    ("self-signed-cert-validity", By("grpc_proxy.rs")),
    ("snapshot-catchup-entries", By("snapshot_install.rs")),
    ("snapshot-count", Here { given: "--snapshot-count=5", members: 1, observe: images_are_saved, with: "saved", without: None }),
    ("socket-reuse-address", Nowhere("Go's listeners have SO_REUSEADDR with and without it, and so have ours")),
    ("socket-reuse-port", here("--socket-reuse-port", bind_again, "ok", "Address already in use")),
    ("strict-reconfig-check", Here { given: "--strict-reconfig-check=false", members: 3, observe: add_voters, with: "ok, ok, ok", without: None }),
    ("tls-max-version", By("tls.rs")),
    ("tls-min-version", By("tls.rs")),
    ("trusted-ca-file", By("tls.rs")),
    ("unsafe-no-fsync", NoEffect("true")),
    ("v2-deprecation", NoEffect("gone")),
    ("version", By("tls.rs")),
    ("wal-dir", here("--wal-dir=DIR", log_is_elsewhere, "there: true, in the data directory: false", "there: false, in the data directory: true")),
    ("warning-apply-duration", Here { given: "--warning-apply-duration=1ns", members: 1, observe: slow_applies, with: "logged", without: None }),
    ("warning-unary-request-duration", Here { given: "--warning-unary-request-duration=1ns", members: 1, observe: slow_requests, with: "logged", without: None }),
    ("watch-progress-notify-interval", By("differential_calls/watches.rs")),
];

fn put(key: &'static str) -> Call {
    let request = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    Call::new(Rpc::KVPut, &request)
}

/// How a call ended: `ok` or the text of its refusal.
fn ended(talk: &mut Talk, call: Call) -> String {
    talk.quietly(call).status.map_or("ok".to_owned(), |status| status.message().to_owned())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let happened = || {
        ensure!(holds(), "it did not happen");
        Ok(())
    };
    wait::until(what, LIMIT, happened).unwrap_or_else(|error| panic!("{error:#}"));
}

fn status(talk: &mut Talk) -> pb::StatusResponse {
    talk.quietly(sample(Rpc::MaintenanceStatus)).read()
}

fn page(talk: &Talk) -> String {
    http_get(talk.cluster.members()[0].metrics_endpoint(), "/metrics").expect("metrics")
}

/// What a read of an old revision is answered with once it is gone.
fn history_goes(talk: &mut Talk) -> String {
    let old = pb::RangeRequest { key: "k".into(), revision: 2, ..Default::default() };
    let mut answer = String::new();
    until("old revisions are compacted", || {
        // Revisions are noted while there are new ones.
        assert_eq!(ended(talk, put("k")), "ok");
        answer = ended(talk, Call::new(Rpc::KVRange, &old));
        answer != "ok"
    });
    answer
}

/// The seconds that a lease of one second is given.
fn shortest_lease(talk: &mut Talk) -> String {
    let request = pb::LeaseGrantRequest { id: 5, ttl: 1 };
    let granted: pb::LeaseGrantResponse =
        talk.quietly(Call::new(Rpc::LeaseLeaseGrant, &request)).read();
    granted.ttl.to_string()
}

fn log_is_json(talk: &mut Talk) -> String {
    let log = talk.cluster.members()[0].log();
    let line = log.lines().next().expect("a log");
    let json = serde_json::from_str::<serde_json::Value>(line).is_ok();
    if json { "yes" } else { "no" }.to_owned()
}

fn log_levels(talk: &mut Talk) -> String {
    let log = talk.cluster.members()[0].log();
    let levels = ["debug", "info"];
    let logged = levels.iter().filter(|level| log.contains(&format!("\"level\":\"{level}\"")));
    logged.copied().collect::<Vec<_>>().join(" ")
}

/// How many streams the server allows, as it says itself at the beginning of a connection.
fn streams_at_a_time(talk: &mut Talk) -> String {
    const SETTINGS: u8 = 4;
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let address: SocketAddr = talk.cluster.members()[0].endpoint.parse().expect("an address");
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("begin");
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).expect("a frame");
        let [a, b, c, kind, ..] = head;
        let mut body = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut body).expect("the whole frame");
        if kind == SETTINGS {
            let settings = body.chunks_exact(6).map(|setting| {
                let (name, value) = setting.split_at(2);
                (
                    u16::from_be_bytes(name.try_into().expect("two bytes")),
                    u32::from_be_bytes(value.try_into().expect("four bytes")),
                )
            });
            let allowed =
                settings.filter(|(name, _)| *name == MAX_CONCURRENT_STREAMS).map(|(_, n)| n);
            // Without the setting there is no limit.
            return allowed.fold(None, |_, allowed| Some(allowed)).unwrap_or(u32::MAX).to_string();
        }
    }
}

fn add_members(talk: &mut Talk, is_learner: bool) -> String {
    let add = |port: u16| {
        let peer_ur_ls = vec![format!("http://127.0.0.1:{port}")];
        Call::new(Rpc::ClusterMemberAdd, &pb::MemberAddRequest { peer_ur_ls, is_learner })
    };
    let came: Vec<String> = (1..=3).map(|port| ended(talk, add(port))).collect();
    came.join(", ")
}

fn add_learners(talk: &mut Talk) -> String {
    add_members(talk, true)
}

fn add_voters(talk: &mut Talk) -> String {
    add_members(talk, false)
}

fn three_operations(talk: &mut Talk) -> String {
    let read = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let request = Some(pb::request_op::Request::RequestRange(read));
    let success = vec![pb::RequestOp { request }; 3];
    ended(talk, Call::new(Rpc::KVTxn, &pb::TxnRequest { success, ..Default::default() }))
}

/// How many families of times of calls there are.
fn handling_times(talk: &mut Talk) -> String {
    page(talk).matches("# TYPE grpc_server_handling_seconds histogram").count().to_string()
}

fn quota(talk: &mut Talk) -> String {
    status(talk).db_size_quota.to_string()
}

fn images_are_saved(talk: &mut Talk) -> String {
    let saved = "etcd_debugging_snap_save_total_duration_seconds_count";
    let count = |talk: &Talk| {
        let page = page(talk);
        let line = page.lines().find_map(|line| line.strip_prefix(saved));
        line.and_then(|value| value.trim().parse::<u64>().ok()).expect("a number")
    };
    let before = count(talk);
    until("the state is saved twice more", || {
        assert_eq!(ended(talk, put("k")), "ok");
        count(talk) > before + 1
    });
    "saved".to_owned()
}

/// Whether a socket that allows it can be bound to the server's address, too.
fn bind_again(talk: &mut Talk) -> String {
    use socket2::{Domain, Socket, Type};
    let address: SocketAddr = talk.cluster.members()[0].endpoint.parse().expect("an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("allow others");
    match socket.bind(&address.into()) {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.to_string().split(" (").next().unwrap_or_default().to_owned(),
    }
}

fn has_log(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| entries.count() > 0)
}

fn log_is_elsewhere(talk: &mut Talk) -> String {
    let given = talk.options.flags.iter().find_map(|flag| flag.strip_prefix("--wal-dir="));
    let there = given.is_some_and(|directory| has_log(Path::new(directory)));
    let member = &talk.cluster.members()[0];
    let inside = has_log(&member.data_directory.join("member/wal"));
    format!("there: {there}, in the data directory: {inside}")
}

fn logged(talk: &mut Talk, words: &str) -> String {
    until(words, || {
        assert_eq!(ended(talk, put("k")), "ok");
        talk.cluster.members()[0].log().contains(words)
    });
    "logged".to_owned()
}

fn slow_applies(talk: &mut Talk) -> String {
    logged(talk, "\"msg\":\"apply request took too long\"")
}

fn slow_requests(talk: &mut Talk) -> String {
    let told = logged(talk, "\"msg\":\"request stats\"");
    let log = talk.cluster.members()[0].log();
    let line = log.lines().find(|line| line.contains("\"request stats\"")).expect("it was found");
    let has = |key: &str| line.contains(&format!("\"{key}\":"));
    let keys = ["time spent", "remote", "response type", "response size"];
    assert!(keys.into_iter().all(has), "{line}");
    told
}

/// Every flag that ours shows, besides those of etcd.
fn shown_by_ours() -> Vec<String> {
    let output = Command::new(peers::our_binary("etcd").expect("build our etcd"))
        .arg("--help")
        .output()
        .expect("ask for help");
    let text = String::from_utf8(output.stdout).expect("text");
    let flags = text.lines().filter_map(|line| line.strip_prefix("  --"));
    flags.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// Whether a test, or what tests share, names a flag.
fn names(test: &str, flag: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |room: &&str| fs::read_to_string(root.join(room).join(test)).ok();
    let text = ["tests", "src"].iter().find_map(read).unwrap_or_default();
    ["--", "\""].iter().any(|before| {
        let after = |after: &&str| text.contains(&format!("{before}{flag}{after}"));
        ["=", "\"", " ", "`"].iter().any(after)
    })
}

/// What both servers show when they are started so.
fn observed(members: usize, given: &str, observe: fn(&mut Talk) -> String) -> [String; 2] {
    let programs = [
        peers::etcd_binaries().expect("build Go etcd").etcd,
        peers::our_binary("etcd").expect("build our etcd"),
    ];
    std::thread::scope(|scope| {
        let running = programs.map(|program| {
            scope.spawn(move || {
                let directory = tempfile::tempdir().expect("a directory");
                let directory = directory.path().join("given").display().to_string();
                let given = given.replace("DIR", &directory);
                let flags: Vec<&str> = given.split_whitespace().collect();
                observe(&mut Talk::with(&program, members, &flags))
            })
        });
        // What one of them panics with is on stderr, beside what the other one shows.
        running.map(|server| server.join().unwrap_or_else(|_| "(it panicked)".to_owned()))
    })
}

#[test]
fn every_flag_has_a_row_and_every_row_its_test() {
    let mut wrong = String::new();
    let shown = shown_by_ours();
    let of_etcd = FLAGS.lines().filter(|name| !name.is_empty());
    let all: BTreeSet<&str> = of_etcd.chain(shown.iter().map(String::as_str)).collect();
    let rows: BTreeMap<&str, &Seen> = SEEN.iter().map(|(flag, seen)| (*flag, seen)).collect();
    assert_eq!(rows.len(), SEEN.len(), "a flag has two rows");
    for flag in all.iter().filter(|flag| !rows.contains_key(*flag)) {
        wrong.push_str(&format!("--{flag} is seen nowhere\n"));
    }
    for (flag, seen) in &rows {
        if !all.contains(flag) {
            wrong.push_str(&format!("--{flag} does not exist\n"));
        }
        match seen {
            By(test) if !names(test, flag) => {
                wrong.push_str(&format!("{test} does not name --{flag}\n"));
            }
            Here { given, .. } if !given.contains(&format!("--{flag}")) => {
                wrong.push_str(&format!("--{flag} is not among {given}\n"));
            }
            Nowhere("") => wrong.push_str(&format!("--{flag}: why?\n")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn flags_change_the_same() {
    let mut wrong = String::new();
    let mut compared = 0;
    for (flag, row) in SEEN {
        let Here { given, members, observe, with, without } = row else { continue };
        // One flag can be tried alone.
        if std::env::var("FLAG").is_ok_and(|only| only != *flag) {
            continue;
        }
        let found = observed(*members, given, *observe);
        if found != [*with; 2] {
            wrong.push_str(&format!("{given}: Go and ours {found:?}, not {with:?}\n"));
        }
        compared += 1;
        let Some(without) = without else { continue };
        let [go, ours] = observed(*members, "", *observe);
        if go != *without || ours != go {
            wrong.push_str(&format!(
                "without --{flag}: Go {go:?}, ours {ours:?}, not {without:?}\n"
            ));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    println!("{compared} commands compared, {compared} equal");
}

/// Both take them; ours says what it makes of them.
#[test]
fn what_changes_nothing_is_told() {
    let rows = SEEN.iter().filter_map(|(flag, seen)| match seen {
        NoEffect(value) => Some((*flag, *value)),
        _ => None,
    });
    let rows: Vec<(&str, &str)> = rows.collect();
    let flags: Vec<String> = rows.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let [_, log] = with_both(1, &flags, |talk| {
        assert_eq!(ended(talk, put("k")), "ok");
        talk.cluster.members()[0].log()
    });
    for (flag, _) in rows {
        assert!(log.contains(&format!("--{flag} has no effect: ")), "--{flag}:\n{log}");
    }
}
