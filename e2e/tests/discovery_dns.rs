//! Servers that DNS names (`--discovery-srv`), for `etcdctl`, `etcd gateway` and `etcd grpc-proxy`: ours and
//! those of Go etcd ask the same name server and give the same answers.
//!
//! Both read `/etc/resolv.conf` and ask port 53. So that the test has both for itself, it runs in namespaces
//! of its own (`unshare`); where the system allows nobody to make them, it says so and is passed over.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use e2e::processes::{Cluster, ServerOptions, Tls, free_ports};

const LIMIT: Duration = Duration::from_secs(30);
/// Where the programs are, for the process inside the namespaces: ours, then Go's.
const PROGRAMS: [&str; 4] = ["OUR_ETCD", "OUR_ETCDCTL", "GO_ETCD", "GO_ETCDCTL"];
const TEST: &str = "servers_that_dns_names_are_found_as_by_go_etcd";

const CODE_NO_SUCH_NAME: u16 = 3;
const HEADER_BYTES: usize = 12;

#[test]
fn servers_that_dns_names_are_found_as_by_go_etcd() {
    if std::env::var_os(PROGRAMS[0]).is_some() {
        return inside();
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "--mount"]);
        command
    };
    let probe = unshare().args(["ip", "link", "set", "lo", "up"]).output();
    if !probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        eprintln!("passed over: no namespaces can be made here: {probe:?}");
        return;
    }
    let go = e2e::peers::etcd_binaries().unwrap();
    let ours = ["etcd", "etcdctl"].map(|name| e2e::peers::our_binary(name).unwrap());
    let programs = ours.into_iter().chain([go.etcd, go.etcdctl]);
    let directory = tempfile::tempdir().unwrap();
    let resolver = directory.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
    let prepare =
        "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let status = unshare()
        .args(["sh", "-ec", prepare, "sh"])
        .arg(&resolver)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .envs(PROGRAMS.into_iter().zip(programs))
        .status()
        .unwrap();
    assert!(status.success(), "inside the namespaces: {status}");
}

/// Names of services, and the ports on [`HOST`] that they lead to.
type Zone = BTreeMap<String, u16>;

/// The one host, which is this one. Go does not look for names in `/etc/hosts` that DNS has told.
const HOST: &str = "server.test";

const TYPE_A: u16 = 1;
const TYPE_SRV: u16 = 33;

/// Answers every question, for as long as the process lives.
fn serve(zone: Zone) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let (name, kind, end) = question(&buffer[..length]);
            let data = match (kind, zone.get(&name)) {
                // Priority, weight, port, host.
                (TYPE_SRV, Some(port)) => {
                    let numbers = [0, 0, *port].map(u16::to_be_bytes).concat();
                    Some([&numbers[..], b"\x06server\x04test\0"].concat())
                }
                (TYPE_A, _) if name == HOST => Some(vec![127, 0, 0, 1]),
                _ => None,
            };
            // What follows the question is not for us.
            let mut answer = buffer[..end].to_vec();
            let is_known = data.is_some() || name == HOST;
            let code = if is_known { 0 } else { CODE_NO_SUCH_NAME };
            answer[2..4].copy_from_slice(&(0x8180 | code).to_be_bytes());
            answer[6..8].copy_from_slice(&u16::from(data.is_some()).to_be_bytes());
            answer[8..12].fill(0);
            if let Some(data) = data {
                // The name of the question, what it asked for, IN, a minute.
                answer.extend([[0xc0, 12], kind.to_be_bytes(), [0, 1], [0, 0], [0, 60]].concat());
                answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
                answer.extend(data);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

/// The name that is asked for, what of it, and where the question ends.
fn question(message: &[u8]) -> (String, u16, usize) {
    let (mut at, mut labels) = (HEADER_BYTES, Vec::new());
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let kind = u16::from_be_bytes([message[at + 1], message[at + 2]]);
    (labels.join("."), kind, at + 5)
}

/// A sub-command that serves; ends when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `etcd gateway` or `etcd grpc-proxy` and waits until it has logged these words.
fn start(program: &Path, flags: &[String], words: &str) -> Serving {
    let mut child = Command::new(program)
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = Serving(child);
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in log.map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(LIMIT) {
            Ok(line) if line.contains(words) => break,
            Ok(line) => seen.push(line),
            Err(_) => panic!("{words:?} was not logged by {flags:?}:\n{}", seen.join("\n")),
        }
    }
    serving
}

/// What a program says and how it ends, without lines of logs. Of a host's name etcd shows the dot at its
/// end, too.
fn told(output: &Output) -> (Option<i32>, String, Vec<String>) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let told = errors.lines().filter(|line| !line.starts_with('{'));
    let told = told.map(|line| line.replace(&format!("{HOST}.:"), &format!("{HOST}:"))).collect();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), told)
}

fn run(program: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(program).args(flags).envs(variables.iter().copied()).output().unwrap()
}

/// The clusters, and what the name server says of them.
struct World {
    plain: Cluster,
    _secure: Cluster,
    certificate: PathBuf,
    directory: tempfile::TempDir,
}

impl World {
    fn new(etcd: &Path) -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // The domain's name is that of its servers for `etcdctl`; the proxy takes the name of the host.
        let names = ["127.0.0.1", HOST, "secure.test", "mixed.test"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (cert, key) = (path("cert.pem"), path("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let certificate = cert.clone();
        let plain = Cluster::start(&ServerOptions::one(etcd)).unwrap();
        let tls = Tls::Given { cert, key };
        let secure = Cluster::start(&ServerOptions { tls, ..ServerOptions::one(etcd) }).unwrap();
        let port = |cluster: &Cluster| -> u16 {
            cluster.members()[0].endpoint.rsplit_once(':').unwrap().1.parse().unwrap()
        };
        serve(Zone::from([
            ("_etcd-client._tcp.plain.test".to_owned(), port(&plain)),
            ("_etcd-client-named._tcp.plain.test".to_owned(), port(&plain)),
            ("_etcd-client._tcp.mixed.test".to_owned(), port(&plain)),
            ("_etcd-client-ssl._tcp.mixed.test".to_owned(), port(&secure)),
            ("_etcd-client-ssl._tcp.secure.test".to_owned(), port(&secure)),
            ("_etcd-client-ssl._tcp.foreign.test".to_owned(), port(&secure)),
        ]));
        World { plain, _secure: secure, certificate, directory }
    }

    fn trust(&self, flag: &str) -> String {
        format!("--{flag}={}", self.certificate.display())
    }
}

fn inside() {
    let [our_etcd, our_etcdctl, go_etcd, go_etcdctl] =
        PROGRAMS.map(|name| PathBuf::from(std::env::var_os(name).unwrap()));
    let world = World::new(&our_etcd);
    etcdctl_finds_servers(&world, [&our_etcdctl, &go_etcdctl]);
    for etcd in [&our_etcd, &go_etcd] {
        proxies_find_members(&world, etcd, etcd == &go_etcd, &go_etcdctl);
    }
    proxies_say_why_they_do_not_start(&world, [&our_etcd, &go_etcd]);
}

fn etcdctl_finds_servers(world: &World, programs: [&Path; 2]) {
    let elsewhere = format!("--endpoints={}", world.plain.members()[0].client_url());
    let trust = world.trust("cacert");
    // This is the default, unlike that of the proxies.
    let insecure = ["--discovery-srv=plain.test", "--insecure-discovery"];
    let checked = "--insecure-discovery=false";
    let secure = ["--discovery-srv=secure.test", checked, &trust];
    let lines: [(&[&str], &[&str], bool); 10] = [
        (&insecure, &["put", "where", "plain"], true),
        (&insecure, &["get", "where"], true),
        (&["--discovery-srv=plain.test", checked, &elsewhere], &["get", "where"], true),
        (&[insecure[0], insecure[1], "--discovery-srv-name=named"], &["get", "where"], true),
        (&[insecure[0], insecure[1], "--discovery-srv-name=none"], &["get", "where"], false),
        (&["--discovery-srv=none.test"], &["get", "where"], false),
        (&secure, &["put", "where", "secure"], true),
        (&secure, &["get", "where"], true),
        (&["--discovery-srv=mixed.test", checked, &trust], &["get", "where"], true),
        (&["--discovery-srv=foreign.test", &trust], &["get", "where"], true),
    ];
    for (flags, command, succeeds) in lines {
        let line = [flags, command].concat();
        let [ours, theirs] = programs.map(|program| told(&run(program, &line, &[])));
        assert_eq!(ours, theirs, "{line:?}");
        assert_eq!(ours.0 == Some(0), succeeds, "{line:?}: {ours:?}");
    }
    // The certificate has the name of the host and not that of this domain. etcd's means to ask for the
    // latter and, by its gRPC library, asks for the former.
    let foreign = ["--discovery-srv=foreign.test", checked, &trust, "--command-timeout=2s"];
    let line = [&foreign[..], &["get", "where"]].concat();
    let [ours, theirs] = programs.map(|program| told(&run(program, &line, &[])));
    assert_eq!((ours.0, theirs.0), (Some(1), Some(0)), "{ours:?} and {theirs:?}");
    let variables = [("ETCDCTL_DISCOVERY_SRV", "secure.test")];
    let [ours, theirs] =
        programs.map(|program| told(&run(program, &[&trust, "get", "where"], &variables)));
    assert_eq!(ours, theirs, "from the environment");
    assert_eq!(ours.1, "where\nsecure\n");
}

fn proxies_find_members(world: &World, etcd: &Path, is_of_go: bool, etcdctl: &Path) {
    let data = world.directory.path().join("proxy").display().to_string();
    for kind in ["gateway", "grpc-proxy"] {
        let (trust, ready) = match kind {
            "gateway" => ("trusted-ca-file", "ready to proxy client requests"),
            _ => ("cacert", "started gRPC proxy"),
        };
        let through = |flags: &[&str], client: &[&str]| {
            let address = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
            let mut line: Vec<String> = vec![kind.to_owned(), "start".to_owned()];
            line.push(format!("--listen-addr={address}"));
            if kind == "grpc-proxy" {
                line.push(format!("--data-dir={data}"));
            }
            line.extend(flags.iter().map(|&flag| flag.to_owned()));
            let _serving = start(etcd, &line, ready);
            let endpoint = format!("--endpoints={address}");
            let got = run(etcdctl, &[&[&endpoint[..], "get", "where"][..], client].concat(), &[]);
            told(&got)
        };
        let [plain, secure] = ["plain", "secure"]
            .map(|value| (Some(0), format!("where\n{value}\n"), Vec::<String>::new()));
        let insecure = ["--discovery-srv=plain.test", "--insecure-discovery"];
        assert_eq!(through(&insecure, &[]), plain, "{kind}");
        let named = [insecure[0], insecure[1], "--discovery-srv-name=named"];
        assert_eq!(through(&named, &[]), plain, "{kind}");
        // etcd's proxy takes no authority without a certificate of its own.
        if kind == "grpc-proxy" && is_of_go {
            continue;
        }
        // The gateway leaves TLS to those who speak through it, the proxy speaks it with the members.
        let cacert = world.trust("cacert");
        let client: &[&str] = if kind == "gateway" { &[&cacert] } else { &[] };
        for domain in ["--discovery-srv=secure.test", "--discovery-srv=mixed.test"] {
            assert_eq!(through(&[domain, &world.trust(trust)], client), secure, "{kind} {domain}");
        }
    }
}

fn proxies_say_why_they_do_not_start(world: &World, programs: [&Path; 2]) {
    let missing = world.directory.path().join("no such file").display().to_string();
    for line in [
        vec!["gateway", "start", "--discovery-srv=none.test"],
        vec!["grpc-proxy", "start", "--discovery-srv=none.test"],
        vec!["gateway", "start", "--discovery-srv=plain.test", "--endpoints="],
        vec![
            "gateway",
            "start",
            "--discovery-srv=secure.test",
            "--endpoints=",
            "--trusted-ca-file",
            &missing,
        ],
    ] {
        let [ours, theirs] = programs.map(|program| told(&run(program, &line, &[])));
        assert_ne!(ours.0, Some(0), "{line:?}: {ours:?}");
        assert_eq!(ours, theirs, "{line:?}");
    }
}
