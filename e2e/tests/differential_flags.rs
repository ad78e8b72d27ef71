//! The command line, the environment and the configuration file of `etcd`: ours beside Go etcd's.
//! What a start comes to is compared: the exit code, the complaint, the reason in the log.
//!
//! The address for members is taken already, so that a start that gets past its flags ends there at
//! once. The two programs do not bind and check in the same order; where they differ and one of them
//! got as far as binding, both start again with an address that is free.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use e2e::peers;
use e2e::processes::free_ports;

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What both say when the address is taken.
const TAKEN: &str = "bind: address already in use";

/// Every flag of etcd 3.7.3, as its own flag set lists them.
const FLAGS: &str = include_str!("../../server/src/cli/flags/etcd_3_7_flags.txt");

/// Starts at a time.
const WORKERS: usize = 3;

/// What every configuration file begins with.
const USUAL_FILE: &str = "name: m1
listen-peer-urls: http://127.0.0.1:PEER
listen-client-urls: http://127.0.0.1:CLIENT
advertise-client-urls: http://127.0.0.1:CLIENT
initial-advertise-peer-urls: http://127.0.0.1:PEER
initial-cluster: m1=http://127.0.0.1:PEER
";

const OPTION: &str = "it says which option is wrong, and how";
const PANIC: &str = "etcd panics";
const TWICE: &str = "a key that stands twice is refused; etcd takes the last";
const OLDER: &str = "flags of etcd 3.4 to 3.6 are taken, or refused with what became of them";
const DIRECTORY: &str = "it says which file could not be opened";
const FALLBACK: &str = "a fallback that does not exist is refused wherever it is written";
const LEARNERS: &str = "it says which flag is wrong";

/// Starts that may come to something else, with the reason; the README of the server has them too.
const DEVIATIONS: &[(&str, &str)] = &[
    ("--auth-token=nonsense", OPTION),
    ("--auth-token=jwt", OPTION),
    ("--auth-token=jwt,nonsense", OPTION),
    ("--auth-token=simple,nonsense", OPTION),
    ("--auth-token=jwt,sign-method=HS256", OPTION),
    ("--auth-token=jwt,pub-key=missing,priv-key=missing,sign-method=RS256", OPTION),
    ("--auth-token=bogus!", OPTION),
    ("--auth-token=-1", OPTION),
    ("ETCD_AUTH_TOKEN=bogus!", OPTION),
    ("log-level: nonsense", PANIC),
    ("--log-level=nonsense", PANIC),
    ("--log-level=bogus!", PANIC),
    ("--log-level=-1", PANIC),
    ("ETCD_LOG_LEVEL=bogus!", PANIC),
    ("name: m2", TWICE),
    ("listen-client-urls: nonsense", TWICE),
    ("--enable-v2", OLDER),
    ("--discovery=http://127.0.0.1:1", OLDER),
    ("--discovery-proxy=http://127.0.0.1:1", OLDER),
    ("--proxy=on", OLDER),
    ("--experimental-compaction-batch-limit=5", OLDER),
    ("--data-dir=/dev/null/x", DIRECTORY),
    ("--data-dir=output", DIRECTORY),
    ("discovery-fallback: proxy", FALLBACK),
    ("--max-learners=-1", LEARNERS),
];

/// Values that do not go together, or are out of bounds.
const CONTRADICTIONS: &[&str] = &[
    "--initial-cluster-state=existing",
    "--initial-cluster=",
    "--initial-cluster=m1",
    "--initial-cluster=m1=",
    "--initial-cluster==http://127.0.0.1:1",
    "--initial-cluster=m2=http://127.0.0.1:PEER",
    "--initial-cluster=m1=http://127.0.0.1:1",
    "--initial-cluster=m1=http://127.0.0.1:PEER,m1=http://127.0.0.1:2",
    "--initial-cluster=m1=http://127.0.0.1:PEER,m2=http://127.0.0.1:PEER",
    "--initial-cluster=m1=http://127.0.0.1:PEER,m2=nonsense",
    "--initial-advertise-peer-urls=http://127.0.0.1:PEER,http://127.0.0.1:3",
    "--initial-advertise-peer-urls=http://:1",
    "--advertise-client-urls=http://:1",
    "--listen-peer-urls=http://example.com:1",
    "--listen-client-urls=http://example.com:1",
    "--listen-metrics-urls=http://example.com:1",
    "--listen-client-http-urls=http://127.0.0.1:CLIENT",
    "--listen-peer-urls=https://127.0.0.1:PEER",
    "--listen-client-urls=https://127.0.0.1:CLIENT",
    "--discovery-token=x",
    "--discovery-endpoints=http://127.0.0.1:1",
    "--discovery-endpoints=http://127.0.0.1:1 --discovery-token=x",
    "--initial-cluster= --discovery-token=x",
    "--discovery-srv=example.invalid",
    "--discovery-srv=example.invalid --discovery-endpoints=127.0.0.1:1 --discovery-token=x",
    "--heartbeat-interval=0",
    "--election-timeout=0",
    "--heartbeat-interval=1000",
    "--heartbeat-interval=201",
    "--heartbeat-interval=200",
    "--election-timeout=50001",
    "--election-timeout=50000",
    "--auto-compaction-mode=revision --auto-compaction-retention=1h",
    "--auto-compaction-mode=periodic --auto-compaction-retention=1x",
    "--auto-compaction-retention=-1",
    "--auto-compaction-retention=1.5",
    "--auto-compaction-mode=revision --auto-compaction-retention=-1",
    "--compact-hash-check-time=0",
    "--compact-hash-check-time=-1s",
    "--corrupt-check-time=-1s",
    "--feature-gates=LeaseCheckpointPersist=true",
    "--feature-gates=LeaseCheckpointPersist=true,LeaseCheckpoint=true",
    "--feature-gates=LeaseCheckpoint=true",
    "--feature-gates=AllAlpha=true",
    "--feature-gates=PriorityRequest=true,SetMemberLocalAddr=true",
    "--enable-distributed-tracing --distributed-tracing-sampling-rate=-1",
    "--enable-distributed-tracing --distributed-tracing-sampling-rate=1000001",
    "--enable-distributed-tracing --distributed-tracing-sampling-rate=1000000",
    "--distributed-tracing-sampling-rate=-1",
    "--feature-gates=AllBeta=false",
    "--feature-gates=TxnModeWriteWithSharedBuffer=false",
    "--feature-gates=Nothing=true",
    "--feature-gates=LeaseCheckpoint=maybe",
    "--feature-gates=LeaseCheckpoint",
    "--tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
    "--tls-min-version=TLS1.1",
    "--tls-min-version=TLS1.4",
    "--tls-max-version=TLS1.3",
    "--tls-min-version=TLS1.3 --cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "--cipher-suites=TLS_NOTHING",
    "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_NOTHING",
    "--cert-file=missing",
    "--key-file=missing",
    "--cert-file=missing --key-file=missing",
    "--peer-cert-file=missing",
    "--peer-cert-file=missing --peer-key-file=missing",
    "--client-cert-auth",
    "--peer-client-cert-auth",
    "--trusted-ca-file=missing",
    "--peer-trusted-ca-file=missing",
    "--client-cert-file=missing",
    "--peer-client-cert-file=missing",
    "--peer-cert-allowed-cn=a --peer-cert-allowed-hostname=b",
    "--self-signed-cert-validity=0",
    "--auth-token=nonsense",
    "--auth-token=jwt",
    "--auth-token=jwt,sign-method=HS256",
    "--auth-token=jwt,pub-key=missing,priv-key=missing,sign-method=RS256",
    "--auth-token=jwt,nonsense",
    "--auth-token=simple,nonsense",
    "--auth-token-ttl=0",
    "--bcrypt-cost=3",
    "--bcrypt-cost=32",
    "--bcrypt-cost=4",
    "--logger=capnslog",
    "--logger=nonsense",
    "--log-level=nonsense",
    "--log-format=nonsense",
    "--log-outputs=stderr,default",
    "--log-outputs=stderr,stdout",
    "--discovery-fallback=proxy",
    "--v2-deprecation=not-yet",
    "--v2-deprecation=write-only",
    "--v2-deprecation=gone",
    "--max-learners=0",
    "--max-learners=-1",
    "--snapshot-count=0",
    "--snapshot-catchup-entries=0",
    "--quota-backend-bytes=-1",
    "--quota-backend-bytes=9000000000",
    "--max-request-bytes=0",
    "--max-request-bytes=20000000",
    "--max-txn-ops=0",
    "--max-concurrent-streams=0",
    "--grpc-keepalive-interval=-1s",
    "--grpc-keepalive-timeout=0",
    "--raft-read-timeout=1s",
    "--raft-write-timeout=1s",
    "--socket-reuse-port --socket-reuse-address",
    "--experimental-nothing",
    "--experimental-compaction-batch-limit=5",
    "--enable-v2",
    "--discovery=http://127.0.0.1:1",
    "--discovery-proxy=http://127.0.0.1:1",
    "--proxy=on",
    "--cluster-active-size=1 --snapshot=2 --v=1 --vv=1 --force=x",
    "positional",
    "--name=x positional",
    "-- positional",
    "--",
    "-",
    "---name=x",
    "--=x",
    "--name",
    "--no-such-flag",
    "-no-such-flag=1",
    "-name=m1",
    "-pre-vote false",
    "--pre-vote=maybe",
    "--pre-vote=T",
    "--pre-vote=1",
    "--strict-reconfig-check=2",
    "--name= --initial-cluster==http://127.0.0.1:PEER",
    "--data-dir=",
    "--data-dir=/dev/null/x",
    "--wal-dir=/dev/null/x",
    "--data-dir=output",
    "--metrics=nonsense",
    "--metrics=extensive",
    "--cors=*",
    "--cors=nonsense",
    "--host-whitelist=a,b",
];

/// The same without the usual flags.
const BARE_CONTRADICTIONS: &[&str] = &[
    "--listen-client-urls=http://127.0.0.1:CLIENT",
    "--listen-peer-urls=http://127.0.0.1:PEER",
    "--name=x --listen-peer-urls=http://127.0.0.1:PEER",
    "--initial-cluster=default=http://localhost:2380,a=http://127.0.0.1:1 \
     --listen-peer-urls=http://127.0.0.1:PEER",
    "--config-file=missing.yaml",
    "--config-file=",
    "--initial-advertise-peer-urls=http://127.0.0.1:PEER \
     --listen-peer-urls=http://127.0.0.1:PEER",
];

/// What a start came to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    /// None if it served.
    code: Option<i32>,
    /// The first line that is no line of the log.
    complaint: String,
    /// The last error that was logged.
    reason: String,
}

/// A place where both programs are started.
struct Place {
    programs: [PathBuf; 2],
    /// Holds the address for members.
    taken: TcpListener,
    client: u16,
    free: u16,
}

/// What one start is given besides its flags.
#[derive(Clone, Debug, Default)]
struct Given {
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    /// The text of a configuration file.
    file: Option<String>,
    /// Leave the usual flags out.
    bare: bool,
}

impl Given {
    fn flags(line: &str) -> Given {
        Given { flags: line.split_whitespace().map(str::to_owned).collect(), ..Given::default() }
    }

    fn bare(line: &str) -> Given {
        Given { bare: true, ..Given::flags(line) }
    }

    fn environment(name: &str, value: &str) -> Given {
        Given { environment: vec![(name.to_owned(), value.to_owned())], ..Given::default() }
    }

    fn file(text: &str) -> Given {
        Given { file: Some(text.to_owned()), bare: true, ..Given::default() }
    }

    /// Why ours may come to something else.
    fn deviation(&self) -> Option<&'static str> {
        let name = self.to_string();
        DEVIATIONS.iter().find(|(given, _)| *given == name).map(|(_, reason)| *reason)
    }
}

impl fmt::Display for Given {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let file = self.file.iter().map(|text| text.trim_start_matches(USUAL_FILE).to_owned());
        let all: Vec<String> = environment.chain(self.flags.clone()).chain(file).collect();
        write!(formatter, "{}", all.join(" ").trim_end())
    }
}

impl Place {
    fn new() -> Place {
        let ports = free_ports(2).expect("ports");
        Place {
            programs: [
                peers::etcd_binaries().expect("build Go etcd").etcd,
                peers::our_binary("etcd").expect("build our etcd"),
            ],
            taken: TcpListener::bind("127.0.0.1:0").expect("a port"),
            client: ports[0],
            free: ports[1],
        }
    }

    /// `PEER` and `CLIENT` in a text are the ports of this place.
    fn fill(&self, text: &str, peer: u16) -> String {
        text.replace("PEER", &peer.to_string()).replace("CLIENT", &self.client.to_string())
    }

    fn start(&self, program: &Path, given: &Given, peer: u16) -> Start {
        let fill = |text: &str| self.fill(text, peer);
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("output");
        let output = fs::File::create(&log).expect("a file");
        let mut command = Command::new(program);
        let usual = "--name=m1 --listen-peer-urls=http://127.0.0.1:PEER \
             --listen-client-urls=http://127.0.0.1:CLIENT \
             --advertise-client-urls=http://127.0.0.1:CLIENT \
             --initial-advertise-peer-urls=http://127.0.0.1:PEER \
             --initial-cluster=m1=http://127.0.0.1:PEER";
        if !given.bare {
            // What is given comes last, and the last of two counts.
            command.args(fill(usual).split_whitespace());
        }
        if let Some(text) = &given.file {
            fs::write(directory.path().join("etcd.yaml"), fill(text)).expect("write a file");
            command.arg("--config-file=etcd.yaml");
        }
        let mut child = command
            .args(given.flags.iter().map(|flag| fill(flag)))
            .env_clear()
            .envs(given.environment.iter().map(|(name, value)| (name, fill(value))))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the same file"))
            .stderr(output)
            .spawn()
            .expect("start the program");
        let deadline = Instant::now() + LIMIT;
        let code = loop {
            if let Some(status) = child.try_wait().expect("look at the program") {
                break Some(status.code().unwrap_or(-1));
            }
            let so_far = fs::read_to_string(&log).expect("read the output");
            let last = so_far.lines().next_back().unwrap_or_default();
            assert!(Instant::now() < deadline, "{given:?}: neither ends nor serves: {last}");
            if so_far.contains("ready to serve client requests") {
                child.kill().expect("end it");
                child.wait().expect("it has ended");
                return Start { code: None, complaint: String::new(), reason: String::new() };
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = fs::read_to_string(&log)
            .expect("read the output")
            .replace(&format!("127.0.0.1:{peer}"), "127.0.0.1:PEER")
            .replace(&format!("127.0.0.1:{}", self.client), "127.0.0.1:CLIENT");
        let complaint = text.lines().find(|line| !line.starts_with('{')).unwrap_or_default();
        Start { code, complaint: complaint.to_owned(), reason: reason(&text) }
    }

    /// Starts both and says how they differ.
    fn compare(&self, given: &Given) -> Option<String> {
        let start_both = |peer| self.programs.each_ref().map(|path| self.start(path, given, peer));
        let taken = self.taken.local_addr().expect("it listens").port();
        let mut found = start_both(taken);
        if found[0] != found[1] && found.iter().any(|start| start.reason.ends_with(TAKEN)) {
            found = start_both(self.free);
        }
        let [go, ours] = found;
        match (go == ours, given.deviation().is_some()) {
            (true, false) | (false, true) => None,
            (true, true) => Some(format!("{given}: no longer deviates\n")),
            (false, false) => Some(format!("{given}\n  Go   {go:?}\n  ours {ours:?}\n")),
        }
    }
}

/// The last error in a log.
fn reason(text: &str) -> String {
    let mut reason = String::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let bad = ["warn", "error", "fatal"].iter().any(|level| line["level"] == **level);
        if let (true, Some(error)) = (bad, line["error"].as_str()) {
            error.clone_into(&mut reason);
        }
    }
    reason
}

fn compare_all(given: &[Given]) {
    let todo = Mutex::new(given.iter());
    let differences: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let place = Place::new();
            let mut differences = Vec::new();
            loop {
                let Some(given) = todo.lock().expect("nobody panics with it").next() else {
                    return differences;
                };
                differences.extend(place.compare(given));
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no start hangs")).collect()
    });
    assert!(
        differences.is_empty(),
        "{} of {} differ\n{}",
        differences.len(),
        given.len(),
        differences.concat()
    );
    let deviating = given.iter().filter(|given| given.deviation().is_some()).count();
    println!(
        "{} starts compared, {} equal, {deviating} deviating with reason",
        given.len(),
        given.len() - deviating
    );
}

fn names() -> impl Iterator<Item = &'static str> {
    FLAGS.lines().filter(|name| !name.is_empty())
}

#[test]
fn every_flag_with_a_value_that_is_none_is_answered_alike() {
    let given: Vec<Given> = names()
        .filter(|name| *name != "config-file")
        .flat_map(|name| {
            [Given::flags(&format!("--{name}=bogus!")), Given::flags(&format!("--{name}=-1"))]
        })
        .collect();
    compare_all(&given);
}

#[test]
fn every_flag_without_a_value_is_answered_alike() {
    let given: Vec<Given> = names()
        .flat_map(|name| [Given::flags(&format!("--{name}")), Given::flags(&format!("--{name}="))])
        .collect();
    compare_all(&given);
}

#[test]
fn every_variable_of_the_environment_is_answered_alike() {
    let given: Vec<Given> = names()
        .filter(|name| *name != "config-file")
        .flat_map(|name| {
            let variable = format!("ETCD_{}", name.replace('-', "_").to_uppercase());
            ["bogus!", ""].map(|value| Given::environment(&variable, value))
        })
        // What etcd has removed.
        .chain(["ETCD_ENABLE_V2", "ETCD_DEBUG"].map(|name| Given::environment(name, "true")))
        .collect();
    compare_all(&given);
}

#[test]
fn contradictions_are_answered_alike() {
    let mut given: Vec<Given> = CONTRADICTIONS.iter().map(|line| Given::flags(line)).collect();
    given.extend(BARE_CONTRADICTIONS.iter().map(|line| Given::bare(line)));
    compare_all(&given);
}

#[test]
fn configuration_files_are_answered_alike() {
    let lines = [
        "",
        "nonsense: 1\n",
        "name: m2\n",
        "listen-client-urls: nonsense\n",
        "heartbeat-interval: 1000\n",
        "election-timeout: 0\n",
        "auto-compaction-mode: nonsense\n",
        "auto-compaction-retention: 1x\n",
        "initial-cluster-state: nonsense\n",
        "feature-gates: Nothing=true\n",
        "feature-gates: LeaseCheckpoint=true\n",
        "tls-min-version: TLS1.4\n",
        "cipher-suites: [TLS_NOTHING]\n",
        "cors: '*'\n",
        "host-whitelist: a,b\n",
        "client-transport-security:\n  cert-file: missing\n",
        "client-transport-security:\n  client-cert-auth: true\n",
        "peer-transport-security:\n  cert-file: missing\n  key-file: missing\n",
        "watch-progress-notify-interval: 5000000000\n",
        "compact-hash-check-time: 0\n",
        "log-level: nonsense\n",
        "log-outputs: [stderr]\n",
        "discovery-config:\n  endpoints: ['127.0.0.1:1']\n",
        "discovery-config:\n  token: x\n",
        "discovery-srv: example.invalid\n",
        "discovery-fallback: proxy\n",
        "max-learners: 0\n",
        "snapshot-count: 0\n",
        "enable-v2: true\n",
    ];
    let given: Vec<Given> =
        lines.iter().map(|lines| Given::file(&format!("{USUAL_FILE}{lines}"))).collect();
    compare_all(&given);
}
