//! Members that find each other through another etcd cluster, Go's or ours (`--discovery-endpoints`), also
//! through one that wants to know who they are.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use client::{Client, Config};
use e2e::authority::{Authority, Subject, flag};
use e2e::processes::{Cluster, ServerOptions, Tls, free_ports};
use proto::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A server that finds the others by itself; ends when dropped.
struct Node {
    child: Child,
    endpoint: String,
    log: PathBuf,
    command: Vec<String>,
}

impl Node {
    fn start(program: &Path, directory: &Path, name: &str, registry: &str, token: &str) -> Node {
        Node::start_with(program, directory, name, &[at(registry), of(token)].concat())
    }

    fn start_with(program: &Path, directory: &Path, name: &str, flags: &[String]) -> Node {
        let ports = free_ports(2).unwrap();
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let mut command = vec![
            program.display().to_string(),
            format!("--name={name}"),
            format!("--data-dir={}", directory.join(name).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ];
        command.extend(flags.iter().cloned());
        let log = directory.join(format!("{name}.log"));
        Node { child: launch(&command, &log), endpoint: client, log, command }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = launch(&self.command, &self.log);
    }

    fn wait_for_log(&self, words: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.log().contains(words) {
            assert!(Instant::now() < deadline, "{words:?} was not logged:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    async fn client(&self) -> Client {
        connect(&self.endpoint).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn at(registry: &str) -> Vec<String> {
    vec![format!("--discovery-endpoints={registry}")]
}

fn of(token: &str) -> Vec<String> {
    vec![format!("--discovery-token={token}")]
}

fn launch(command: &[String], log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn connect(endpoint: &str) -> Client {
    let config = Config { endpoints: vec![endpoint.to_owned()], ..Config::default() };
    Client::connect(config).await.unwrap().until(tokio::time::Instant::now() + LIMIT)
}

/// Three servers of ours meet in a registry; a fourth is refused; the registry is not needed again.
async fn three_meet_through(registry_program: &Path) {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut registry = Cluster::start(&ServerOptions::one(registry_program)).unwrap();
    let at = registry.members()[0].client_url();
    let size = PutRequest {
        key: "/_etcd/registry/meeting/_config/size".into(),
        value: "3".into(),
        ..Default::default()
    };
    connect(&at).await.put(size).await.unwrap();

    let start = |name: &str| Node::start(&ours, directory.path(), name, &at, "meeting");
    let mut nodes = vec![start("a"), start("b")];
    nodes[1].wait_for_log("waiting for peers from discovery service");
    nodes.push(start("c"));
    for node in &nodes {
        node.wait_for_log("ready to serve client requests");
    }
    let list = MemberListRequest::default();
    let members = nodes[0].client().await.member_list(list).await.unwrap();
    let mut names: Vec<_> = members.members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c"]);
    let put = PutRequest { key: "key".into(), value: "value".into(), ..Default::default() };
    nodes[0].client().await.put(put).await.unwrap();
    let range = RangeRequest { key: "key".into(), ..Default::default() };
    let found = nodes[2].client().await.range(range.clone()).await.unwrap();
    assert_eq!(found.kvs[0].value, b"value"[..], "they are one cluster");

    let registered = RangeRequest {
        key: "/_etcd/registry/meeting/members/".into(),
        range_end: "/_etcd/registry/meeting/members0".into(),
        ..Default::default()
    };
    let registered = connect(&at).await.range(registered).await.unwrap();
    let mut keys: Vec<String> = registered
        .kvs
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).rsplit('/').next().unwrap().to_owned())
        .collect();
    keys.sort();
    let mut ids: Vec<String> =
        members.members.iter().map(|member| format!("{:x}", member.id)).collect();
    ids.sort();
    assert_eq!(keys, ids, "each is written under its id");

    let mut late = start("d");
    assert!(!late.wait_for_end().success());
    assert!(late.log().contains("discovery: cluster is full"), "{}", late.log());

    registry.member_mut(0).kill().unwrap();
    nodes[1].restart();
    let found = nodes[1].client().await.range(range).await.unwrap();
    assert_eq!(found.kvs[0].value, b"value"[..], "a member that is one asks nobody");
}

#[tokio::test]
async fn members_meet_through_a_server_of_ours() {
    three_meet_through(&e2e::peers::our_binary("etcd").unwrap()).await;
}

#[tokio::test]
async fn members_meet_through_go_etcd() {
    three_meet_through(&e2e::peers::etcd_binaries().unwrap().etcd).await;
}

/// Go's server and ours say the same about a registry that nobody has prepared.
#[tokio::test]
async fn a_registry_without_a_size_is_told_as_go_etcd_tells_it() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    let directory = tempfile::tempdir().unwrap();
    let registry = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let at = registry.members()[0].client_url();
    let bad = PutRequest {
        key: "/_etcd/registry/bad/_config/size".into(),
        value: "many".into(),
        ..Default::default()
    };
    connect(&at).await.put(bad).await.unwrap();
    for (token, words) in [
        ("nobody", "failed to join discovery cluster (discovery: size key not found)"),
        ("bad", "failed to join discovery cluster (discovery: size key is bad)"),
    ] {
        for (kind, program) in [("ours", &ours), ("theirs", &theirs)] {
            let name = format!("{kind}-{token}");
            let mut node = Node::start(program, directory.path(), &name, &at, token);
            assert_eq!(node.wait_for_end().code(), Some(1), "{kind}");
            assert!(node.log().contains(words), "{kind}:\n{}", node.log());
        }
    }
}

/// A registry behind certificates and passwords, prepared for some meetings.
struct GuardedRegistry {
    cluster: Cluster,
    authority: Authority,
    etcdctl: PathBuf,
}

/// What is said of a connection that does not come about.
const TOO_LATE: &str = "failed to join discovery cluster (context deadline exceeded)";
const USER: &str = "--discovery-user=finder";
const PASSWORD: &str = "--discovery-password=secret";

impl GuardedRegistry {
    fn new(program: &Path) -> GuardedRegistry {
        let authority = Authority::new().unwrap();
        let issue = |name, serial| {
            // With a common name it would be a user's certificate.
            let subject = Subject { name, serial, common_name: "", hosts: &["127.0.0.1"] };
            authority.issue(&subject).unwrap()
        };
        let (server, _) = (issue("server", 1), issue("member", 2));
        let options = ServerOptions {
            tls: Tls::Given { cert: server.cert, key: server.key },
            flags: vec!["--client-cert-auth".to_owned(), flag("trusted-ca-file", &authority.ca())],
            ..ServerOptions::one(program)
        };
        let cluster = Cluster::start(&options).unwrap();
        let etcdctl = e2e::peers::etcd_binaries().unwrap().etcdctl;
        let registry = GuardedRegistry { cluster, authority, etcdctl };
        for line in [
            "role add finders",
            "role grant-permission finders readwrite /_etcd/registry/ /_etcd/registry0",
            "user add finder:secret",
            "user grant-role finder finders",
            "user add root:root",
            "user grant-role root root",
            "auth enable",
        ] {
            registry.etcdctl(&line.split(' ').collect::<Vec<_>>());
        }
        registry
    }

    fn etcdctl(&self, arguments: &[&str]) {
        let output = Command::new(&self.etcdctl)
            .arg(format!("--endpoints={}", self.at()))
            .args(self.authority.client_flags("member"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn at(&self) -> String {
        self.cluster.members()[0].client_url()
    }

    fn prepare(&self, token: &str, size: usize) {
        let key = format!("/_etcd/registry/{token}/_config/size");
        self.etcdctl(&["--user=root:root", "put", &key, &size.to_string()]);
    }

    fn pair(&self) -> [String; 2] {
        let pair = self.authority.pair("member");
        [flag("discovery-cert", &pair.cert), flag("discovery-key", &pair.key)]
    }

    fn trust(&self) -> String {
        flag("discovery-cacert", &self.authority.ca())
    }

    /// What a member has to say besides for which meeting it comes.
    fn flags(&self, flags: &[String]) -> Vec<String> {
        [&at(&self.at()), flags].concat()
    }
}

fn words(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

/// Go's members and ours are let in with what the registry wants, and end without it.
async fn members_show_who_they_are(registry_program: &Path) {
    let registry = GuardedRegistry::new(registry_program);
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    let user = words(&[USER, PASSWORD]);
    let timeouts = words(&[
        "--discovery-dial-timeout=10s",
        "--discovery-request-timeout=9s",
        "--discovery-keepalive-time=3s",
        "--discovery-keepalive-timeout=8s",
    ]);
    let secure = words(&["--discovery-insecure-transport=false"]);
    let checked = [&registry.pair()[..], &[registry.trust()], &user].concat();
    let unchecked =
        [&registry.pair()[..], &words(&["--discovery-insecure-skip-tls-verify"]), &user].concat();
    for (kind, program) in [("ours", &ours), ("theirs", &theirs)] {
        for (how, flags) in [
            ("checked", checked.clone()),
            ("all", [&checked[..], &timeouts, &secure].concat()),
            ("unchecked", unchecked.clone()),
        ] {
            let token = format!("{kind}-{how}");
            registry.prepare(&token, 3);
            let directory = tempfile::tempdir().unwrap();
            let flags = [registry.flags(&flags), of(&token)].concat();
            let nodes = ["a", "b", "c"]
                .map(|name| Node::start_with(program, directory.path(), name, &flags));
            for node in &nodes {
                node.wait_for_log("ready to serve client requests");
            }
            let put = PutRequest { key: "key".into(), value: "1".into(), ..Default::default() };
            nodes[0].client().await.put(put).await.unwrap();
            let range = RangeRequest { key: "key".into(), ..Default::default() };
            let found = nodes[2].client().await.range(range).await.unwrap();
            assert_eq!(found.kvs[0].value, b"1"[..], "{token}");
        }
    }
    let impatient = words(&["--discovery-dial-timeout=1s", "--discovery-request-timeout=1s"]);
    let wrong = words(&[USER, "--discovery-password=wrong"]);
    for (how, flags, text) in [
        (
            "wrong-password",
            [&registry.pair()[..], &[registry.trust()], &wrong].concat(),
            "failed to join discovery cluster (etcdserver: authentication failed, invalid user ID or \
             password)",
        ),
        ("strange-authority", [&registry.pair()[..], &user].concat(), TOO_LATE),
        ("no-certificate", [&[registry.trust()], &user[..]].concat(), TOO_LATE),
        // etcd notices this when it has begun, ours before.
        ("half-a-pair", [&registry.pair()[..1], &[registry.trust()], &user].concat(), ""),
    ] {
        registry.prepare(how, 1);
        for (kind, program) in [("ours", &ours), ("theirs", &theirs)] {
            let directory = tempfile::tempdir().unwrap();
            let flags = [registry.flags(&flags), of(how), impatient.clone()].concat();
            let mut node = Node::start_with(program, directory.path(), kind, &flags);
            let status = node.wait_for_end();
            assert_eq!(status.code(), Some(1), "{how} {kind}:\n{}", node.log());
            assert!(node.log().contains(text), "{how} {kind}:\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn members_show_a_server_of_ours_who_they_are() {
    members_show_who_they_are(&e2e::peers::our_binary("etcd").unwrap()).await;
}

#[tokio::test]
async fn members_show_go_etcd_who_they_are() {
    members_show_who_they_are(&e2e::peers::etcd_binaries().unwrap().etcd).await;
}

/// A way to a registry whose connections can be made to swallow everything, as a host does that is gone.
struct Relay {
    address: String,
    accepted: Arc<AtomicUsize>,
    /// How many connections, from the first, carry nothing any more.
    silent: Arc<AtomicUsize>,
}

impl Relay {
    fn to(target: &str) -> Relay {
        let address = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
        let listener = TcpListener::bind(&address).unwrap();
        let relay = Relay { address, accepted: Arc::default(), silent: Arc::default() };
        let (accepted, silent) = (relay.accepted.clone(), relay.silent.clone());
        let target = target.to_owned();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let index = accepted.fetch_add(1, Ordering::SeqCst);
                let Ok(far) = TcpStream::connect(&target) else { return };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let silent = silent.clone();
                    std::thread::spawn(move || {
                        carry(from, to, || index < silent.load(Ordering::SeqCst));
                    });
                }
            }
        });
        relay
    }

    fn fall_silent(&self) -> usize {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.silent.store(accepted, Ordering::SeqCst);
        accepted
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_silent: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !is_silent() && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // A failure means that it is closed already.
    let _ = to.shutdown(Shutdown::Both);
}

/// A member that waits for others notices that its registry has gone silent, and dials again. (Go's gRPC library
/// probes every ten seconds at most.)
#[tokio::test]
async fn members_that_wait_notice_a_registry_that_is_silent() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    let registry = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let member = &registry.members()[0];
    for (token, program) in [("ours", &ours), ("theirs", &theirs)] {
        let size = PutRequest {
            key: format!("/_etcd/registry/{token}/_config/size").into(),
            value: "2".into(),
            ..Default::default()
        };
        connect(&member.client_url()).await.put(size).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let relay = Relay::to(&member.endpoint);
        let patience = words(&[
            "--discovery-keepalive-time=1s",
            "--discovery-keepalive-timeout=1s",
            "--discovery-request-timeout=2s",
        ]);
        let through = [at(&format!("http://{}", relay.address)), of(token), patience].concat();
        let first = Node::start_with(program, directory.path(), "a", &through);
        first.wait_for_log("waiting for peers from discovery service");
        let before = relay.fall_silent();
        let deadline = Instant::now() + LIMIT;
        while relay.accepted.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < deadline, "{token}: it does not notice:\n{}", first.log());
            std::thread::sleep(POLL);
        }
        let second = Node::start(program, directory.path(), "b", &member.client_url(), token);
        for node in [&first, &second] {
            node.wait_for_log("ready to serve client requests");
        }
    }
}
