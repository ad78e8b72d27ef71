//! `etcd gateway start`: connections are spread over the members, a member that is gone is left out and
//! comes back, and command lines get the answers of Go etcd's gateway.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use client::{Client, Config};
use e2e::processes::{Cluster, ServerOptions, free_ports};
use proto::etcdserverpb::{PutRequest, RangeRequest, StatusRequest};

const LIMIT: Duration = Duration::from_secs(30);

/// A running gateway; ends when dropped.
struct Gateway {
    child: Child,
    log: Receiver<String>,
}

impl Gateway {
    fn start(program: &Path, arguments: &[String]) -> Gateway {
        let mut child = Command::new(program)
            .args(["gateway", "start"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let gateway = Gateway { child, log };
        gateway.wait_for("ready to proxy client requests");
        gateway
    }

    /// Waits until a line with these words is logged.
    fn wait_for(&self, words: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(LIMIT) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{words:?} was not logged:\n{}", seen.join("\n")),
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The member at the end of a new connection.
async fn member_behind(address: &str) -> u64 {
    let config = Config { endpoints: vec![address.to_owned()], ..Config::default() };
    let client = Client::connect(config).await.unwrap();
    let client = client.until(tokio::time::Instant::now() + LIMIT);
    client.status(StatusRequest {}).await.unwrap().header.unwrap().member_id
}

#[tokio::test]
async fn connections_take_turns_and_a_member_that_is_gone_comes_back() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions { members: 3, ..ServerOptions::one(&ours) };
    let mut cluster = Cluster::start(&options).unwrap();
    let address = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
    let endpoints: Vec<String> =
        cluster.members().iter().map(|member| format!("http://{}", member.endpoint)).collect();
    let gateway = Gateway::start(
        &ours,
        &[
            format!("--listen-addr={address}"),
            format!("--endpoints={}", endpoints.join(",")),
            "--retry-delay=100ms".to_owned(),
        ],
    );

    let mut members = BTreeSet::new();
    for _ in 0..3 {
        members.insert(member_behind(&address).await);
    }
    assert_eq!(members.len(), 3, "three connections go to three members");

    let config = Config { endpoints: vec![address.clone()], ..Config::default() };
    let client = Client::connect(config).await.unwrap();
    let value = vec![7; 1 << 20];
    let put = PutRequest { key: "key".into(), value: value.clone().into(), ..Default::default() };
    client.put(put).await.unwrap();
    let range = RangeRequest { key: "key".into(), ..Default::default() };
    let found = client.range(range).await.unwrap();
    assert_eq!(found.kvs[0].value, value, "a megabyte goes through unharmed");

    cluster.member_mut(0).kill().unwrap();
    let mut left = BTreeSet::new();
    for _ in 0..6 {
        left.insert(member_behind(&address).await);
    }
    assert_eq!(left.len(), 2, "the others serve");
    let line = gateway.wait_for("deactivated endpoint");
    assert!(line.contains(&cluster.members()[0].endpoint), "{line}");
    gateway.wait_for("failed to activate endpoint (stay inactive for another interval)");

    cluster.member_mut(0).restart().unwrap();
    gateway.wait_for("\"activated\"");
    let mut again = BTreeSet::new();
    for _ in 0..3 {
        again.insert(member_behind(&address).await);
    }
    assert_eq!(again, members, "and the lost one serves again");
}

#[test]
fn a_client_is_hung_up_on_when_no_member_works_and_a_signal_ends_the_gateway() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let ports = free_ports(2).unwrap();
    let address = format!("0.0.0.0:{}", ports[0]);
    let mut gateway = Gateway::start(
        &ours,
        &[format!("--listen-addr={address}"), format!("--endpoints=127.0.0.1:{}", ports[1])],
    );
    // As in Go: 0.0.0.0 is every address of both families.
    let mut ways = vec![format!("127.0.0.1:{}", ports[0])];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        ways.push(format!("[::1]:{}", ports[0]));
    }
    for way in ways {
        let mut stream = std::net::TcpStream::connect(way).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    }
    gateway.wait_for("deactivated endpoint");
    let pid = gateway.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(gateway.child.wait().unwrap().success());
}

/// What a process wrote and how it ended, without its log.
fn shown(output: &Output) -> (Option<i32>, String, String) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.split('\n').filter(|line| !line.starts_with('{')).collect();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text, errors.join("\n"))
}

#[test]
fn command_lines_get_the_answers_of_go_etcd() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("start --listen-addr={}", listener.local_addr().unwrap());
    let lines = [
        "",
        "-h",
        "foo",
        "--foo",
        "start -h",
        "start --help",
        "start --foo",
        "start -x",
        "start --listen-addr",
        "start ---x",
        "start --=x",
        "start --retry-delay=x",
        "start --retry-delay=5",
        "start --retry-delay=5x",
        "start --insecure-discovery=maybe",
        "start --endpoints=foo",
        "start --endpoints=",
        "start --listen-addr=foo",
        "start --listen-addr=:2",
        "start --endpoints=127.0.0.1:23790",
        "start --endpoints=a.invalid:1",
        &taken,
    ];
    for line in lines {
        let run = |program: &Path| {
            let output = Command::new(program)
                .arg("gateway")
                .args(line.split_whitespace())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            shown(&output)
        };
        assert_eq!(run(&ours), run(&theirs), "etcd gateway {line}");
    }
}
