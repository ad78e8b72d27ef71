//! Servers on unix sockets, with and without TLS: Go etcd's client and ours against Go etcd's server and
//! ours.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::Path;
use std::process::Command;

use e2e::processes::{Cluster, ServerOptions};

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
