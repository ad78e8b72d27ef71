//! Peer URLs that name a host in one place and have its address in another, for a member that founds its
//! cluster, for one that joins it, and for `etcdutl snapshot restore`.

use std::path::Path;
use std::process::Command;

use e2e::namespace;
use e2e::processes::free_ports;
use e2e::serving::Serving;

use super::{HOST, OFFLINE_PROGRAMS, PROGRAMS, Zone, member, run, serve};

/// Where the host is not.
const ELSEWHERE: &str = "127.0.0.2";
const SERVES: &str = "ready to serve client requests";

/// What one implementation's programs are.
struct Programs<'p> {
    etcd: &'p Path,
    etcdutl: &'p Path,
    /// Go's, for both.
    etcdctl: &'p Path,
}

pub(super) fn members_are_where_their_names_lead() {
    let [our_etcd, _, go_etcd, etcdctl] = PROGRAMS.map(|name| namespace::program(name).unwrap());
    let [our_etcdutl, go_etcdutl] = OFFLINE_PROGRAMS.map(|name| namespace::program(name).unwrap());
    serve(Zone::new());
    let ports = free_ports(5).unwrap();
    let [ours, theirs] = [(&our_etcd, &our_etcdutl), (&go_etcd, &go_etcdutl)].map(|program| {
        let (etcd, etcdutl) = program;
        refusals(&Programs { etcd, etcdutl, etcdctl: &etcdctl }, &ports)
    });
    assert_eq!(ours, theirs);
    assert!(ours.iter().all(|refusal| refusal.contains("resolved urls: ")), "{ours:?}");
}

/// Founds a cluster, joins it and restores it elsewhere, and answers how what cannot be was refused.
fn refusals(programs: &Programs<'_>, ports: &[u16]) -> [String; 3] {
    let directory = tempfile::tempdir().unwrap();
    let [first, second, first_client, second_client, other] = *ports else { panic!("five ports") };
    let client = |port: u16| format!("http://127.0.0.1:{port}");
    let start = |name: &str, port: u16, client_port: u16, advertised: &str, initial: &str| {
        let mut command = member(programs.etcd, directory.path(), name, &client(client_port));
        command
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{port}"))
            .arg(format!("--initial-advertise-peer-urls=http://{advertised}:{port}"))
            .arg(format!("--initial-cluster={initial}"));
        if name == "b" {
            command.arg("--initial-cluster-state=existing");
        }
        Serving::launch(&mut command).unwrap()
    };
    let named = format!("a=http://{HOST}:{first}");
    let refused = refusal(start("a", first, first_client, ELSEWHERE, &named));

    let founder = start("a", first, first_client, "127.0.0.1", &named);
    founder.wait_for_log(SERVES).unwrap();
    let etcdctl = |port: u16, arguments: &[&str]| {
        let endpoint = format!("--endpoints={}", client(port));
        let done = run(programs.etcdctl, &[&[&endpoint[..]], arguments].concat(), &[]);
        assert!(done.status.success(), "{done:?}");
    };
    let snapshot = directory.path().join("snapshot.db").display().to_string();
    etcdctl(first_client, &["snapshot", "save", &snapshot]);
    etcdctl(
        first_client,
        &["member", "add", "b", &format!("--peer-urls=http://127.0.0.1:{second}")],
    );
    let addressed = format!("a=http://127.0.0.1:{first}");
    let listed = |more: &str| format!("{addressed},b=http://{HOST}:{second}{more}");
    let short =
        start("b", second, second_client, HOST, &listed(&format!(",c=http://{HOST}:{other}")));
    short.wait_for_log("error validating peerURLs {ClusterID:").unwrap();
    short.wait_for_log("member count is unequal").unwrap();
    drop(short);
    let wrong =
        start("b", other, second_client, HOST, &format!("{addressed},b=http://{HOST}:{other}"));
    wrong.wait_for_log("PeerURLs: no match found for existing member (").unwrap();
    let unmatched = up_to_parenthesis(&wrong.log(), "last resolver error (");
    drop(wrong);
    let joined = start("b", second, second_client, HOST, &listed(""));
    joined.wait_for_log(SERVES).unwrap();
    etcdctl(second_client, &["put", "a", "b"]);

    let restored = |advertised: &str| {
        let data = directory.path().join(format!("restored at {advertised}"));
        Command::new(programs.etcdutl)
            .args(["snapshot", "restore", &snapshot, "--name=a"])
            .arg(format!("--initial-cluster={named}"))
            .arg(format!("--initial-advertise-peer-urls=http://{advertised}:{first}"))
            .arg(format!("--data-dir={}", data.display()))
            .output()
            .unwrap()
    };
    let done = restored("127.0.0.1");
    assert!(done.status.success(), "{done:?}");
    let not_done = restored(ELSEWHERE);
    assert_eq!(not_done.status.code(), Some(1), "{not_done:?}");
    let errors = String::from_utf8_lossy(&not_done.stderr).into_owned();
    let error = errors.lines().find(|line| line.starts_with("Error: "));
    [refused, unmatched, error.unwrap_or_else(|| panic!("{errors}")).to_owned()]
}

/// Why a member ended that the list does not have as it advertises itself.
fn refusal(mut serving: Serving) -> String {
    let status = serving.wait_until_ended().unwrap();
    let log = serving.log();
    assert_eq!(status.code(), Some(1), "{log}");
    up_to_parenthesis(&log, "--initial-cluster has ")
}

/// What a log says from these words on, up to the end of what is in parentheses.
fn up_to_parenthesis(log: &str, words: &str) -> String {
    let begin = log.find(words).unwrap_or_else(|| panic!("{log}"));
    let end = log[begin..].find(')').unwrap_or_else(|| panic!("{log}"));
    log[begin..begin + end].to_owned()
}
