//! A real disk that fills up: the server refuses what needs space, goes on serving everything else,
//! and comes back when deletions and a compaction have made room. And a quota that one member alone has.
//!
//! The disk is a small file system in memory that only the server's own mount namespace has.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use calls::{call, compact, put, read_all, status, until};
use e2e::namespace;
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DeleteRangeRequest, DeleteRangeResponse,
};

const DISK_MEGABYTES: u32 = 160;

/// What a server on a disk of its own needs for itself.
const NAMESPACES: [&str; 3] = ["--mount", "--propagation", "private"];

/// A program that runs the server with its data directory on a disk of its own.
fn on_small_disk(server: &Path, directory: &Path) -> PathBuf {
    let script = format!(
        r#"#!/bin/sh
for argument in "$@"; do
    case "$argument" in --data-dir=*) DIRECTORY="${{argument#--data-dir=}}" ;; esac
done
mkdir -p "$DIRECTORY"
export DIRECTORY
exec unshare {flags} sh -c '
    mount -t tmpfs -o size={DISK_MEGABYTES}m tmpfs "$DIRECTORY" && exec "$0" "$@"
' {server} "$@"
"#,
        flags = namespace::flags(&NAMESPACES).join(" "),
        server = server.display()
    );
    let program = directory.join("etcd-on-a-small-disk");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn alarm(member: &Member, action: AlarmAction, id: u64) -> AlarmResponse {
    let request =
        AlarmRequest { action: action as i32, member_id: id, alarm: AlarmType::Nospace as i32 };
    call(member, "/etcdserverpb.Maintenance/Alarm", &request).unwrap()
}

#[test]
fn a_full_disk_refuses_puts_and_nothing_else_until_there_is_room_again() {
    let name = "a_full_disk_refuses_puts_and_nothing_else_until_there_is_room_again";
    if !namespace::can_be_made(name, &NAMESPACES, "mount -t tmpfs tmpfs /tmp").unwrap() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = e2e::peers::our_binary("etcd").unwrap();
    let flags = ["--snapshot-count=10", "--snapshot-catchup-entries=10"];
    let options = ServerOptions {
        flags: flags.map(str::to_owned).to_vec(),
        ..ServerOptions::one(&on_small_disk(&server, directory.path()))
    };
    let cluster = Cluster::start(&options).unwrap();
    let member = &cluster.members()[0];
    let value = vec![b'x'; 512 << 10];
    let mut written = Vec::new();
    let refusal = loop {
        let key = format!("key-{:04}", written.len());
        match put(member, &key, &value) {
            Ok(_) => written.push(key),
            Err(error) => break format!("{error:#}"),
        }
        assert!(written.len() < 2 * DISK_MEGABYTES as usize, "the disk never fills");
    };
    assert!(refusal.contains("grpc-status Some(8)"), "not ResourceExhausted: {refusal}");
    let id = status(member).unwrap().header.unwrap().member_id;
    until("the alarm is raised", || {
        alarm(member, AlarmAction::Get, 0).alarms.iter().any(|alarm| alarm.member_id == id)
    });
    assert!(put(member, "another", &value).is_err());
    let keys = |member| -> Vec<String> {
        read_all(member).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(member), written, "reads go on");

    let request = DeleteRangeRequest {
        key: "key-".into(),
        range_end: "key.".into(),
        ..DeleteRangeRequest::default()
    };
    let gone: DeleteRangeResponse = call(member, "/etcdserverpb.KV/DeleteRange", &request).unwrap();
    assert_eq!(gone.deleted as usize, written.len());
    let revision = status(member).unwrap().header.unwrap().revision;
    compact(member, revision).unwrap();
    // etcd's way back: what is dead in the newest file of the store is returned only by this.
    let path = "/etcdserverpb.Maintenance/Defragment";
    let _: DefragmentResponse = call(member, path, &DefragmentRequest {}).unwrap();
    until("there is room again", || {
        alarm(member, AlarmAction::Deactivate, id);
        put(member, "after", b"value").is_ok()
    });
    assert_eq!(keys(member), ["after"]);
    assert_eq!(
        member.log().matches("starting an etcd server").count(),
        1,
        "it was never restarted"
    );
    assert!(
        !member.log().contains("the disk is full"),
        "the reserve was used up: {}",
        member.log()
    );
}

const QUOTA_BYTES: u32 = 4 << 20;

#[test]
fn the_quota_of_one_member_counts_for_writes_through_the_others_as_with_go_etcd() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    for program in [ours, theirs] {
        writes_through_others_reach_the_quota(&program);
    }
}

fn writes_through_others_reach_the_quota(program: &Path) {
    let options = ServerOptions { members: 3, ..ServerOptions::one(program) };
    let mut cluster = Cluster::start(&options).unwrap();
    cluster.member_mut(0).set_flag(&format!("--quota-backend-bytes={QUOTA_BYTES}"));
    cluster.member_mut(0).restart().unwrap();
    let [small, through, third] = cluster.members() else { panic!("three members") };
    let raised = |member| alarm(member, AlarmAction::Get, 0).alarms;
    let id = status(small).unwrap().header.unwrap().member_id;

    let value = vec![b'x'; 1 << 20];
    put(through, "small", b"value").unwrap();
    assert!(raised(through).is_empty(), "{}", program.display());
    // They are taken until the alarm is there: the quota of the member that proposes them is far away.
    let mut written = 0;
    until("the small member raises the alarm", || {
        written += u64::from(put(through, &format!("big-{written:04}"), &value).is_ok());
        !raised(through).is_empty()
    });
    assert!(written > 1, "{}: {written}", program.display());
    for member in [small, through, third] {
        let refusal = format!("{:#}", put(member, "another", b"value").unwrap_err());
        // ResourceExhausted, which nothing but the alarm is answered with.
        assert!(refusal.contains("grpc-status Some(8)"), "{}: {refusal}", program.display());
        assert_eq!(read_all(member).unwrap().len() as u64, 1 + written, "reads go on");
        let alarms: Vec<_> =
            raised(member).iter().map(|alarm| (alarm.member_id, alarm.alarm())).collect();
        assert_eq!(alarms, [(id, AlarmType::Nospace)], "{}", program.display());
    }

    // etcd's way back.
    let request = DeleteRangeRequest {
        key: "big-".into(),
        range_end: "big.".into(),
        ..DeleteRangeRequest::default()
    };
    let gone: DeleteRangeResponse =
        call(through, "/etcdserverpb.KV/DeleteRange", &request).unwrap();
    assert_eq!(gone.deleted as u64, written);
    compact(through, gone.header.unwrap().revision).unwrap();
    let compacted = status(through).unwrap().raft_applied_index;
    for member in [small, through, third] {
        // What a member has not compacted yet is not freed.
        until("it has applied the compaction", || {
            status(member).unwrap().raft_applied_index >= compacted
        });
        let path = "/etcdserverpb.Maintenance/Defragment";
        let _: DefragmentResponse = call(member, path, &DefragmentRequest {}).unwrap();
    }
    alarm(through, AlarmAction::Deactivate, id);
    for member in [small, through, third] {
        // Each knows of it when it has applied it.
        until("it takes writes again", || put(member, "after", b"value").is_ok());
    }
    assert!(raised(small).is_empty(), "{}", program.display());
}
