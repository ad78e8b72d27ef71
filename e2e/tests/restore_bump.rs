//! `etcdutl snapshot restore --bump-revision`: ours and Go's lead to the same revisions and hashes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::path::{Path, PathBuf};
use std::process::Command;

use calls::{call, compact, hash_kv, put, read_all, status};
use e2e::processes::{Cluster, ServerOptions};
use proto::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse};

/// What a cluster restored by one tool shows: its revision, and hash and compaction now, after
/// further writes, and after a compaction.
fn shown(server: &Path, etcdutl: &Path, snapshot: &Path) -> Vec<(i64, u32, i64)> {
    let mut cluster = Cluster::start(&ServerOptions::one(server)).unwrap();
    let member = cluster.member_mut(0);
    member.stop().unwrap();
    std::fs::remove_dir_all(&member.data_directory).unwrap();
    let output = Command::new(etcdutl)
        .args(["snapshot", "restore"])
        .arg(snapshot)
        .args(["--bump-revision=1000", "--mark-compacted", "--name=m1"])
        .arg(format!("--initial-cluster=m1={}", member.peer_url))
        .arg(format!("--initial-advertise-peer-urls={}", member.peer_url))
        .args(["--initial-cluster-token=e2e", "--data-dir"])
        .arg(&member.data_directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    member.restart().unwrap();

    let member = &cluster.members()[0];
    let look = || {
        let revision = status(member).unwrap().header.unwrap().revision;
        let answer = hash_kv(member, 0).unwrap();
        (revision, answer.hash, answer.compact_revision)
    };
    assert_eq!(read_all(member).unwrap().len(), 9, "the row of the bump cannot be read");
    let mut all = vec![look()];
    for number in 0..5 {
        put(member, &format!("key-{number}"), b"after").unwrap();
    }
    all.push(look());
    // Go answers for a compaction's own revision with a hash it took meanwhile, so one more follows.
    compact(member, all[1].0 - 1).unwrap();
    put(member, "key-9", b"last").unwrap();
    all.push(look());
    all
}

#[test]
fn a_bumped_store_hashes_as_gos() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let our_etcdutl = e2e::peers::our_binary("etcdutl").unwrap();
    let go = e2e::peers::etcd_binaries().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let snapshot: PathBuf = directory.path().join("snapshot.db");

    let source = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let member = &source.members()[0];
    for number in 0..30 {
        put(member, &format!("key-{}", number % 10), b"value").unwrap();
    }
    let request = DeleteRangeRequest { key: "key-3".into(), ..Default::default() };
    let _: DeleteRangeResponse = call(member, "/etcdserverpb.KV/DeleteRange", &request).unwrap();
    let saved = Command::new(&go.etcdctl)
        .arg(format!("--endpoints={}", member.endpoint))
        .args(["snapshot", "save"])
        .arg(&snapshot)
        .output()
        .unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));

    let theirs = shown(&go.etcd, &go.etcdutl, &snapshot);
    assert_eq!(theirs[0].0, 1032, "the newest revision and a thousand");
    assert_eq!(shown(&ours, &our_etcdutl, &snapshot), theirs, "revision, hash and compaction");
}
