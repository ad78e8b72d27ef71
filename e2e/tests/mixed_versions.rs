//! Members of different releases in one cluster: the way up, the way down, and who is refused. The
//! releases differ in their etcd version and in the versions of the peer protocol that they understand;
//! `e2e/release` says how one program is all of them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;
#[path = "differential_auth/codec.rs"]
mod codec;
#[path = "mixed_versions/other_protocol.rs"]
mod other_protocol;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use calls::{add_member, hash_kv, put, read_all, status, until};
use e2e::processes::{Cluster, Member, ServerOptions, http_get};
use other_protocol::{Rewritten, stand_before};
use tempfile::TempDir;

/// The release before, which speaks the first peer protocol.
const OLD: &str = "etcd-3.7.9-1-1";
/// The one after it, which speaks the second and still understands the first.
const NEW: &str = "etcd-3.8.1-1-2";
/// One that has forgotten the first protocol.
const FORGETFUL: &str = "etcd-3.8.2-2-3";

/// Names under which one program is several releases.
struct Releases(TempDir);

impl Releases {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in [OLD, NEW, FORGETFUL] {
            let program = env!("CARGO_BIN_EXE_etcd-of-release");
            std::os::unix::fs::symlink(program, directory.path().join(name)).unwrap();
        }
        Self(directory)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn options(program: &Path, members: usize) -> ServerOptions {
    ServerOptions { members, ..ServerOptions::one(program) }
}

fn version(member: &Member, of: &str) -> String {
    let Ok(body) = http_get(&member.endpoint, "/version") else { return String::new() };
    let versions: serde_json::Value = serde_json::from_str(&body).unwrap();
    versions[of].as_str().unwrap().to_owned()
}

/// Writes through every member and sees that every member has the same afterwards.
fn write_everywhere(cluster: &Cluster, round: &str) {
    for member in cluster.members() {
        let key = format!("{round}-through-{}", member.name);
        until("a write is taken", || put(member, &key, b"value").is_ok());
    }
    let first = read_all(&cluster.members()[0]).unwrap();
    assert_eq!(first.iter().filter(|(key, _)| key.starts_with(round)).count(), 3);
    let revision = status(&cluster.members()[0]).unwrap().header.unwrap().revision;
    let hash = hash_kv(&cluster.members()[0], revision).unwrap().hash;
    for member in cluster.members() {
        assert_eq!(read_all(member).unwrap(), first, "{}", member.name);
        assert_eq!(hash_kv(member, revision).unwrap().hash, hash, "{}", member.name);
    }
}

/// Restarts a member as another release and waits until it serves.
fn become_release(cluster: &mut Cluster, index: usize, program: &Path) {
    let member = cluster.member_mut(index);
    member.stop().unwrap();
    member.set_program(program);
    member.launch().unwrap();
    let member = &cluster.members()[index];
    until("the member serves again", || put(member, "probe", b"").is_ok());
}

fn downgrade(member: &Member, to: &str) {
    let output = Command::new(e2e::peers::etcd_binaries().unwrap().etcdctl)
        .args([&format!("--endpoints={}", member.endpoint), "downgrade", "enable", to])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_cluster_goes_up_and_down_one_member_at_a_time() {
    let releases = Releases::new();
    let (old, new) = (releases.program(OLD), releases.program(NEW));
    let mut cluster = Cluster::start(&options(&old, 3)).unwrap();
    write_everywhere(&cluster, "old");

    for index in 0..3 {
        become_release(&mut cluster, index, &new);
        assert_eq!(version(&cluster.members()[index], "etcdserver"), "3.8.1");
        write_everywhere(&cluster, &format!("up{index}"));
        if index < 2 {
            assert_eq!(version(&cluster.members()[index], "etcdcluster"), "3.7.0");
        }
    }
    for member in cluster.members() {
        until("the cluster's version rises", || version(member, "etcdcluster") == "3.8.0");
        assert_eq!(version(member, "storage"), "3.8.0");
    }
    write_everywhere(&cluster, "new");

    downgrade(&cluster.members()[0], "3.7");
    for member in cluster.members() {
        until("the cluster's version goes down", || version(member, "etcdcluster") == "3.7.0");
    }
    for index in 0..3 {
        become_release(&mut cluster, index, &old);
        write_everywhere(&cluster, &format!("down{index}"));
        assert_eq!(version(&cluster.members()[index], "etcdcluster"), "3.7.0");
    }
}

#[test]
fn an_older_release_is_refused_by_a_cluster_that_has_risen() {
    let releases = Releases::new();
    let (old, new) = (releases.program(OLD), releases.program(NEW));
    let mut cluster = Cluster::start(&options(&new, 3)).unwrap();
    write_everywhere(&cluster, "new");

    // A member that was one of the cluster's already.
    let member = cluster.member_mut(2);
    member.stop().unwrap();
    member.set_program(&old);
    let (ended, log) = member.launch_until_end().unwrap();
    assert!(!ended.success());
    let etcds = "invalid downgrade; server version is lower than determined cluster version";
    assert!(log.contains(etcds), "{log}");
    assert!(log.contains("etcdctl downgrade enable"), "what to do is not told: {log}");
    become_release(&mut cluster, 2, &new);
    write_everywhere(&cluster, "back");

    // A process that would become one.
    let joining = cluster.prepare_to_join(&options(&old, 1), &[0, 1, 2]).unwrap();
    let peer_url = cluster.members()[joining].peer_url.clone();
    until("the cluster takes a member", || add_member(&cluster.members()[0], &peer_url).is_ok());
    let (ended, log) = cluster.member_mut(joining).launch_until_end().unwrap();
    assert!(!ended.success());
    for text in [
        "incompatible with current running cluster",
        "cluster version of remote member is not compatible; too high",
        "3.8.0, supported are 3.0.0 to 3.7.0",
    ] {
        assert!(log.contains(text), "no {text:?} in {log}");
    }
    // The refusal has stored nothing: the release of the cluster joins from the same directory.
    let member = cluster.member_mut(joining);
    member.set_program(&new);
    member.launch().unwrap();
    member.wait_until_healthy().unwrap();
    assert_eq!(read_all(member).unwrap(), read_all(&cluster.members()[0]).unwrap());
}

#[test]
fn releases_without_a_peer_protocol_in_common_refuse_each_other() {
    let releases = Releases::new();
    let (old, forgetful) = (releases.program(OLD), releases.program(FORGETFUL));
    let mut cluster = Cluster::start(&options(&old, 3)).unwrap();
    write_everywhere(&cluster, "old");

    // As a member it hears nothing that it understands, and harms nobody.
    let member = cluster.member_mut(2);
    member.stop().unwrap();
    member.set_program(&forgetful);
    member.launch().unwrap();
    let old_members = &cluster.members()[..2];
    until("both sides say why", || {
        cluster.members()[2].log().contains("the sender is too old: it speaks peer protocol 1")
            || old_members.iter().any(|member| member.log().contains("the sender is too old"))
    });
    for member in old_members {
        put(member, &format!("without-{}", member.name), b"value").unwrap();
        assert_eq!(version(member, "etcdcluster"), "3.7.0");
    }
    // With a release that speaks both it is back.
    become_release(&mut cluster, 2, &releases.program(NEW));
    write_everywhere(&cluster, "both");

    // It cannot join either.
    let joining = cluster.prepare_to_join(&options(&forgetful, 1), &[0, 1, 2]).unwrap();
    let peer_url = cluster.members()[joining].peer_url.clone();
    until("the cluster takes a member", || add_member(&cluster.members()[0], &peer_url).is_ok());
    // Asks old members first: they are the first of the list.
    let (ended, log) = cluster.member_mut(joining).launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(
        log.contains("its members speak the peer protocols 1 to 1, this release 2 to 3"),
        "{log}"
    );
}

/// What `peer.proto` promises of other releases: added fields are ignored at every depth, the absence
/// of later ones means what they say, and an answer of an unknown variant is never taken for another.
#[test]
fn members_whose_messages_differ_form_one_cluster() {
    const WRITES: usize = 300;
    let program = e2e::peers::our_binary("etcd").unwrap();
    let mut options = options(&program, 3);
    // Snapshots have to be sent too.
    options.flags =
        ["--snapshot-count=50", "--snapshot-catchup-entries=10"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(&options).unwrap();
    for index in 0..3 {
        cluster.member_mut(index).stop().unwrap();
    }
    let (rewritten, mut proxies) = (Arc::new(Rewritten::default()), Vec::new());
    for index in 0..3 {
        // Where the others expect the member a proxy stands.
        let expected: SocketAddr =
            cluster.members()[index].peer_url.strip_prefix("http://").unwrap().parse().unwrap();
        let real = e2e::processes::free_ports(1).unwrap()[0];
        let real = SocketAddr::from(([127, 0, 0, 1], real));
        proxies.push(stand_before(expected, real, Arc::clone(&rewritten)));
        let member = cluster.member_mut(index);
        member.clear_flag("--listen-peer-urls");
        member.set_flag(&format!("--listen-peer-urls=http://{real}"));
        member.launch().unwrap();
    }
    // They stand there until the test program ends.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            proxies.into_iter().for_each(|proxy| drop(tokio::spawn(proxy)));
            std::future::pending::<()>().await;
        });
    });
    for index in 0..3 {
        cluster.member_mut(index).wait_until_healthy().unwrap();
    }
    write_everywhere(&cluster, "differing");

    // One is away while the log goes on without it, so that it gets a snapshot.
    cluster.member_mut(2).kill().unwrap();
    let mut acknowledged = Vec::new();
    for number in 0..WRITES {
        let key = format!("write-{number:04}");
        // A forwarded write whose answer is not known may have been done and is not told to be.
        if put(&cluster.members()[number % 2], &key, b"value").is_ok() {
            acknowledged.push(key);
        }
    }
    assert!(acknowledged.len() > WRITES / 2, "{} writes", acknowledged.len());
    cluster.member_mut(2).launch().unwrap();
    cluster.member_mut(2).wait_until_healthy().unwrap();
    write_everywhere(&cluster, "again");
    let keys: Vec<String> =
        read_all(&cluster.members()[2]).unwrap().into_iter().map(|(key, _)| key).collect();
    assert!(acknowledged.iter().all(|key| keys.contains(key)), "acknowledged writes are lost");
    let unknown = rewritten.unknown.lock().unwrap();
    assert!(rewritten.messages.load(Ordering::Relaxed) > WRITES, "{rewritten:?}");
    assert!(rewritten.fields_left_out.load(Ordering::Relaxed) > WRITES, "{rewritten:?}");
    assert!(unknown.contains_key("AppendResponse"), "{unknown:?}");
}
