//! Members that find each other through another etcd cluster, Go's or ours (`--discovery-endpoints`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use client::{Client, Config};
use e2e::processes::{Cluster, ServerOptions, free_ports};
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
        let ports = free_ports(2).unwrap();
        let (client, peer) =
            (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let command = vec![
            program.display().to_string(),
            format!("--name={name}"),
            format!("--data-dir={}", directory.join(name).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--discovery-endpoints={registry}"),
            format!("--discovery-token={token}"),
        ];
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
