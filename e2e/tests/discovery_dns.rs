//! Servers that DNS names (`--discovery-srv`), for members among themselves, `etcdctl`, `etcd gateway` and
//! `etcd grpc-proxy`: ours and those of Go etcd ask the same name server and give the same answers. And
//! members that are named here and have their addresses there ([`hosts`]).
//!
//! Both read `/etc/resolv.conf` and ask port 53. So that the tests have both for themselves, each runs in
//! namespaces of its own (`e2e::namespace`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

#[path = "discovery_dns/hosts.rs"]
mod hosts;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use e2e::authority::{Authority, Subject, flag};
use e2e::namespace::{self, Rerun};
use e2e::processes::{Cluster, ServerOptions, Tls, free_ports};
use e2e::serving::Serving;

/// Ours, then Go's.
const PROGRAMS: [&str; 4] = ["OUR_ETCD", "OUR_ETCDCTL", "GO_ETCD", "GO_ETCDCTL"];
/// The same.
const OFFLINE_PROGRAMS: [&str; 2] = ["OUR_ETCDUTL", "GO_ETCDUTL"];

const CODE_NO_SUCH_NAME: u16 = 3;
const HEADER_BYTES: usize = 12;

#[test]
fn servers_that_dns_names_are_found_as_by_go_etcd() {
    match namespace::is_inside() {
        true => servers_are_found(),
        false => with_a_name_server("servers_that_dns_names_are_found_as_by_go_etcd"),
    }
}

#[test]
fn members_that_dns_names_form_a_cluster_as_those_of_go_etcd() {
    match namespace::is_inside() {
        true => members_find_each_other(),
        false => with_a_name_server("members_that_dns_names_form_a_cluster_as_those_of_go_etcd"),
    }
}

#[test]
fn members_are_where_their_names_lead_as_for_go_etcd() {
    match namespace::is_inside() {
        true => hosts::members_are_where_their_names_lead(),
        false => with_a_name_server("members_are_where_their_names_lead_as_for_go_etcd"),
    }
}

/// Runs a test where names are asked for on the loopback.
fn with_a_name_server(test: &str) {
    let go = e2e::peers::etcd_binaries().unwrap();
    let ours = ["etcd", "etcdctl"].map(|name| e2e::peers::our_binary(name).unwrap());
    let offline = [e2e::peers::our_binary("etcdutl").unwrap(), go.etcdutl];
    let directory = tempfile::tempdir().unwrap();
    let resolver = directory.path().join("resolv.conf");
    // As in a Pod.
    let words = "nameserver 127.0.0.1\nsearch none.test domain.test\noptions ndots:5\n";
    std::fs::write(&resolver, words).unwrap();
    let rerun = Rerun {
        test,
        kinds: &["--net", "--mount"],
        prepare: "mount --bind \"$1\" /etc/resolv.conf".to_owned(),
        arguments: vec![resolver],
        programs: PROGRAMS
            .into_iter()
            .chain(OFFLINE_PROGRAMS)
            .zip(ours.into_iter().chain([go.etcd, go.etcdctl]).chain(offline))
            .collect(),
    };
    rerun.run().unwrap();
}

/// Names of services, and the ports on [`HOST`] that they lead to.
type Zone = BTreeMap<String, Vec<u16>>;

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
            let records = match (kind, zone.get(&name)) {
                // Priority, weight, port, host.
                (TYPE_SRV, Some(ports)) => ports
                    .iter()
                    .map(|port| {
                        let numbers = [0, 0, *port].map(u16::to_be_bytes).concat();
                        [&numbers[..], b"\x06server\x04test\0"].concat()
                    })
                    .collect(),
                (TYPE_A, _) if name == HOST => vec![vec![127, 0, 0, 1]],
                _ => Vec::new(),
            };
            // What follows the question is not for us.
            let mut answer = buffer[..end].to_vec();
            let is_known = !records.is_empty() || name == HOST;
            let code = if is_known { 0 } else { CODE_NO_SUCH_NAME };
            answer[2..4].copy_from_slice(&(0x8180 | code).to_be_bytes());
            answer[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
            answer[8..12].fill(0);
            for data in records {
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
            ("_etcd-client._tcp.plain.test".to_owned(), vec![port(&plain)]),
            ("_etcd-client-named._tcp.plain.test".to_owned(), vec![port(&plain)]),
            ("_etcd-client._tcp.short.domain.test".to_owned(), vec![port(&plain)]),
            ("_etcd-client._tcp.mixed.test".to_owned(), vec![port(&plain)]),
            ("_etcd-client-ssl._tcp.mixed.test".to_owned(), vec![port(&secure)]),
            ("_etcd-client-ssl._tcp.secure.test".to_owned(), vec![port(&secure)]),
            ("_etcd-client-ssl._tcp.foreign.test".to_owned(), vec![port(&secure)]),
        ]));
        World { plain, _secure: secure, certificate, directory }
    }

    fn trust(&self, flag: &str) -> String {
        format!("--{flag}={}", self.certificate.display())
    }
}

fn servers_are_found() {
    let [our_etcd, our_etcdctl, go_etcd, go_etcdctl] =
        PROGRAMS.map(|name| namespace::program(name).unwrap());
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
    let lines: [(&[&str], &[&str], bool); 13] = [
        (&insecure, &["put", "where", "plain"], true),
        (&insecure, &["get", "where"], true),
        (&["--discovery-srv=plain.test", checked, &elsewhere], &["get", "where"], true),
        (&[insecure[0], insecure[1], "--discovery-srv-name=named"], &["get", "where"], true),
        (&[insecure[0], insecure[1], "--discovery-srv-name=none"], &["get", "where"], false),
        (&["--discovery-srv=none.test"], &["get", "where"], false),
        (&["--discovery-srv=short"], &["get", "where"], true),
        (&["--discovery-srv=short."], &["get", "where"], false),
        (&["--discovery-srv=plain.test."], &["get", "where"], true),
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
            let _serving = Serving::start(Command::new(etcd).args(&line), ready).unwrap();
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

/// What members are told besides their own names, and where they look for each other.
struct Meeting {
    scheme: &'static str,
    /// Service and domain in the name server.
    service: &'static str,
    flags: Vec<String>,
}

/// Three members of each program, which know nothing but a domain.
fn members_find_each_other() {
    let [ours, _, theirs, etcdctl] = PROGRAMS.map(|name| namespace::program(name).unwrap());
    let authority = Authority::new().unwrap();
    // The member that calls is looked up by name; etcd does so where the address is not in the certificate.
    let hosts = [HOST, "127.0.0.1"];
    let pair = authority
        .issue(&Subject { name: "member", serial: 1, common_name: "member", hosts: &hosts })
        .unwrap();
    let secure = vec![
        "--discovery-srv=secure.test".to_owned(),
        flag("peer-cert-file", &pair.cert),
        flag("peer-key-file", &pair.key),
        flag("peer-trusted-ca-file", &authority.ca()),
        "--peer-client-cert-auth".to_owned(),
    ];
    let named = ["--discovery-srv=named.test", "--discovery-srv-name=x"].map(str::to_owned);
    let plain = vec!["--discovery-srv=plain.test".to_owned()];
    let secure_named = [
        &secure[1..],
        &["--discovery-srv=named.test", "--discovery-srv-name=y"].map(str::to_owned),
    ]
    .concat();
    let meetings = [
        Meeting { scheme: "http", service: "_etcd-server._tcp.plain.test", flags: plain },
        Meeting { scheme: "http", service: "_etcd-server-x._tcp.named.test", flags: named.into() },
        Meeting { scheme: "https", service: "_etcd-server-ssl._tcp.secure.test", flags: secure },
        Meeting {
            scheme: "https",
            service: "_etcd-server-ssl-y._tcp.named.test",
            flags: secure_named,
        },
    ];
    let ports: Vec<Vec<u16>> = meetings.iter().map(|_| free_ports(3).unwrap()).collect();
    let services = meetings.iter().map(|meeting| meeting.service.to_owned());
    serve(services.zip(ports.iter().cloned()).collect());
    for program in [&ours, &theirs] {
        for (meeting, ports) in meetings.iter().zip(&ports) {
            three_meet(program, meeting, ports, &etcdctl);
        }
        a_member_that_dns_does_not_name_is_refused(program, &ports[0]);
    }
}

fn three_meet(program: &Path, meeting: &Meeting, peer_ports: &[u16], etcdctl: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let clients: Vec<String> = free_ports(peer_ports.len())
        .unwrap()
        .iter()
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect();
    let members: Vec<Serving> = peer_ports
        .iter()
        .zip(&clients)
        .enumerate()
        .map(|(index, (port, client))| {
            let mut command = member(program, directory.path(), &format!("m{index}"), client);
            command
                .arg(format!("--listen-peer-urls={}://127.0.0.1:{port}", meeting.scheme))
                .arg(format!("--initial-advertise-peer-urls={}://{HOST}:{port}", meeting.scheme))
                .args(&meeting.flags);
            Serving::launch(&mut command).unwrap()
        })
        .collect();
    for member in &members {
        member.wait_for_log("ready to serve client requests").unwrap();
    }
    let run = |index: usize, arguments: &[&str]| {
        let endpoint = format!("--endpoints={}", clients[index]);
        let got = run(etcdctl, &[&[&endpoint[..]], arguments].concat(), &[]);
        assert!(got.status.success(), "{got:?}\n{}", members[index].log());
        String::from_utf8_lossy(&got.stdout).into_owned()
    };
    run(0, &["put", "a", meeting.service]);
    assert_eq!(run(2, &["get", "a"]), format!("a\n{}\n", meeting.service));
    let listed = run(1, &["member", "list"]);
    let mut names: Vec<&str> =
        listed.lines().map(|line| line.split(", ").nth(2).unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["m0", "m1", "m2"], "{listed}");
    for port in peer_ports {
        assert!(listed.contains(&format!("{}://{HOST}:{port}", meeting.scheme)), "{listed}");
    }
}

fn member(program: &Path, directory: &Path, name: &str, client: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--name={name}"))
        .arg(format!("--data-dir={}", directory.join(name).display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .env_clear();
    command
}

/// The ports are those of the domain; the member listens and advertises elsewhere.
fn a_member_that_dns_does_not_name_is_refused(program: &Path, named: &[u16]) {
    let directory = tempfile::tempdir().unwrap();
    let ports = free_ports(2).unwrap();
    assert!(!named.contains(&ports[0]));
    let client = format!("http://127.0.0.1:{}", ports[1]);
    let peer = format!("http://{HOST}:{}", ports[0]);
    for (flags, words) in [
        (&["--discovery-srv=plain.test"][..], "cannot find local etcd member \\\"m0\\\" in SRV"),
        (&["--discovery-srv=none.test"], "error querying DNS SRV records for _etcd-server"),
    ] {
        let mut command = member(program, directory.path(), "m0", &client);
        command
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", ports[0]))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .args(flags);
        let mut serving = Serving::launch(&mut command).unwrap();
        let status = serving.wait_until_ended().unwrap();
        assert_eq!(status.code(), Some(1), "{flags:?}:\n{}", serving.log());
        assert!(
            serving.log().contains(words),
            "{} {flags:?}:\n{}",
            program.display(),
            serving.log()
        );
    }
}
