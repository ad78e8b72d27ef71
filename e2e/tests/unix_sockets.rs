//! Servers on unix sockets: for clients, with and without TLS, and among members; and the one on which
//! a service manager waits for them. Go etcd's client and ours against Go etcd's server and ours.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use calls::{hash_kv, put, read_all, status, until};
use e2e::processes::{Cluster, ServerOptions};

/// How long the service manager may wait until it is told.
const NOTIFIED_MAX: Duration = Duration::from_secs(60);

fn run(program: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn clients_reach_a_server_through_sockets_with_and_without_tls() {
    let go = e2e::peers::etcd_binaries().unwrap();
    let our_etcd = e2e::peers::our_binary("etcd").unwrap();
    let our_etcdctl = e2e::peers::our_binary("etcdctl").unwrap();
    for server in [&go.etcd, &our_etcd] {
        let mut cluster = Cluster::start(&ServerOptions::one(server)).unwrap();
        let member = cluster.member_mut(0);
        let directory = member.data_directory.parent().unwrap().to_owned();
        let (plain, secure) = (directory.join("c.sock"), directory.join("cs.sock"));
        // What a process that was killed leaves behind is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(&plain).unwrap());
        let urls = [
            member.client_url(),
            format!("unix://{}", plain.display()),
            format!("unixs://{}", secure.display()),
        ];
        member.clear_flag("--listen-client-urls");
        member.set_flag(&format!("--listen-client-urls={}", urls.join(",")));
        member.set_flag("--auto-tls");
        member.restart().unwrap();
        for client in [&go.etcdctl, &our_etcdctl] {
            for url in &urls[1..] {
                let endpoint = format!("--endpoints={url}");
                let insecure = "--insecure-skip-tls-verify";
                let secure = url.starts_with("unixs");
                let flags: &[&str] = if secure { &[&endpoint, insecure] } else { &[&endpoint] };
                let ask = |words: &[&str]| {
                    let (done, text) = run(client, &[flags, words].concat());
                    assert!(done, "{} {words:?} at {url}: {text}", client.display());
                    text
                };
                assert_eq!(ask(&["put", "key", url]), "OK\n");
                assert_eq!(ask(&["get", "key", "--print-value-only"]), format!("{url}\n"));
                assert!(ask(&["endpoint", "health"]).contains("is healthy"));
            }
            // Without TLS a socket for TLS answers nobody.
            let wrong = format!("--endpoints=unix://{}", secure.display());
            let (done, _) = run(client, &[&wrong, "--command-timeout=1s", "get", "key"]);
            assert!(!done, "{}", client.display());
        }
    }
}

#[test]
fn members_reach_each_other_through_sockets() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let etcdctl = e2e::peers::etcd_binaries().unwrap().etcdctl;
    let mut cluster =
        Cluster::start(&ServerOptions { members: 3, ..ServerOptions::one(&program) }).unwrap();
    put(&cluster.members()[0], "before", b"value").unwrap();
    for index in 0..3 {
        let member = &cluster.members()[index];
        let id = format!("{:x}", status(member).unwrap().header.unwrap().member_id);
        let socket = member.data_directory.with_extension("sock");
        let url = format!("unix://{}", socket.display());
        let (endpoint, peer_urls) =
            (format!("--endpoints={}", member.endpoint), format!("--peer-urls={url}"));
        let (done, text) = run(&etcdctl, &[&endpoint, "member", "update", &id, &peer_urls]);
        assert!(done, "{text}");
        let member = cluster.member_mut(index);
        member.clear_flag("--listen-peer-urls");
        member.set_flag(&format!("--listen-peer-urls={url}"));
        member.restart().unwrap();
        let member = &cluster.members()[index];
        until("writes go on", || put(member, &format!("after-{index}"), b"value").is_ok());
    }
    let revision = status(&cluster.members()[0]).unwrap().header.unwrap().revision;
    for member in cluster.members() {
        assert_eq!(read_all(member).unwrap().len(), 4, "{}", member.name);
        let hash = hash_kv(&cluster.members()[0], revision).unwrap().hash;
        assert_eq!(hash_kv(member, revision).unwrap().hash, hash, "{}", member.name);
    }
}

/// `sd_notify(3)`: whoever starts the server is told once clients are served, and not before.
#[test]
fn the_service_manager_is_told_once_clients_are_served() {
    let go = e2e::peers::etcd_binaries().unwrap();
    for server in [e2e::peers::our_binary("etcd").unwrap(), go.etcd] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let program = directory.path().join("etcd-of-a-service");
        let script = format!(
            "#!/bin/sh\nexport NOTIFY_SOCKET={}\nexec {} \"$@\"\n",
            path.display(),
            server.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

        let options = ServerOptions { members: 2, ..ServerOptions::one(&server) };
        let mut cluster = Cluster::start(&options).unwrap();
        for index in 0..2 {
            cluster.member_mut(index).kill().unwrap();
        }
        let member = cluster.member_mut(0);
        member.set_program(&program);
        member.launch().unwrap();
        // Alone it listens to the other, has no quorum and serves nobody.
        let peers = member.peer_url.strip_prefix("http://").unwrap().to_owned();
        until("the process runs", || TcpStream::connect(&peers).is_ok());
        socket.set_nonblocking(true).unwrap();
        let mut message = [0; 64];
        let early = socket.recv(&mut message).map_err(|error| error.kind());
        assert_eq!(early, Err(std::io::ErrorKind::WouldBlock), "{}", server.display());

        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(NOTIFIED_MAX)).unwrap();
        cluster.member_mut(1).launch().unwrap();
        let length = socket.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1", "{}", server.display());
        put(&cluster.members()[0], "key", b"value").unwrap();
    }
}
