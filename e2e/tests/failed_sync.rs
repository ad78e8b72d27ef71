//! A disk whose flush fails, as real processes meet it: after a failed `fsync` nobody knows what is on
//! the disk, so the process ends, has acknowledged nothing of it, and finds everything else again.
//!
//! The flushes of a server fail from the moment a file appears beside its data directory, by a small
//! library that takes the place of the C library's functions in its process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use calls::{hash_kv, put, read_all, status, until};
use e2e::processes::{Cluster, Member, ServerOptions};
use tempfile::TempDir;

/// How long a server may take to end by itself: less than connections have time to end by themselves
/// when it is told to.
const END_MAX: Duration = Duration::from_secs(4);
/// Writes that are acknowledged before the disk fails.
const WRITES: usize = 200;
const WRITERS: usize = 4;

const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int sync_or_fail(long call, int file) {
    const char *trigger = getenv("SYNC_FAILS_IF");
    if (trigger != NULL && access(trigger, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(call, file);
}

int fsync(int file) { return sync_or_fail(SYS_fsync, file); }
int fdatasync(int file) { return sync_or_fail(SYS_fdatasync, file); }
"#;

/// A program that runs our server on a disk that can be made to fail.
fn on_failing_disk(directory: &TempDir) -> PathBuf {
    let (source, library) = (directory.path().join("sync.c"), directory.path().join("sync.so"));
    fs::write(&source, FAILING_SYNC).unwrap();
    // The compiler driver that Rust links with.
    let arguments = ["-shared".as_ref(), "-fPIC".as_ref(), "-o".as_ref(), library.as_os_str()];
    let built = Command::new("cc").args(arguments).arg(&source).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    let server = e2e::peers::our_binary("etcd").unwrap();
    let script = format!(
        r#"#!/bin/sh
for argument in "$@"; do
    case "$argument" in --data-dir=*) export SYNC_FAILS_IF="${{argument#--data-dir=}}.fails" ;; esac
done
export LD_PRELOAD={library}
exec {server} "$@"
"#,
        library = library.display(),
        server = server.display()
    );
    let program = directory.path().join("etcd-on-a-failing-disk");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn trigger(member: &Member) -> PathBuf {
    let mut name = member.data_directory.clone().into_os_string();
    name.push(".fails");
    name.into()
}

fn start(directory: &TempDir, members: usize) -> Cluster {
    let program = on_failing_disk(directory);
    Cluster::start(&ServerOptions { members, ..ServerOptions::one(&program) }).unwrap()
}

/// Several clients write to a member until they are refused; its disk fails meanwhile. What was
/// acknowledged, and when it failed.
fn write_until_the_disk_fails(member: &Member) -> (BTreeMap<String, Vec<u8>>, Instant) {
    let acknowledged = AtomicUsize::new(0);
    let write = |writer: usize| {
        let mut written = BTreeMap::new();
        loop {
            let key = format!("{writer}-{:05}", written.len());
            let value = format!("value of {key}").into_bytes();
            if put(member, &key, &value).is_err() {
                return written;
            }
            written.insert(key, value);
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        until("enough is written", || acknowledged.load(Ordering::Relaxed) >= WRITES);
        fs::write(trigger(member), "").unwrap();
        let since = Instant::now();
        (writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect(), since)
    })
}

/// Of openraft's lessons: a replica that cannot go on does not stay there half alive.
fn assert_ended(member: &mut Member, since: Instant) {
    let ended = member.wait_until_ended(END_MAX).unwrap();
    assert!(since.elapsed() < END_MAX, "{:?} after its disk failed", since.elapsed());
    let log = member.log();
    assert_eq!(ended.code(), Some(1), "it ends by itself and says that it failed: {log}");
    let reason = log.lines().find(|line| line.contains("the write-ahead log cannot be written"));
    assert!(reason.is_some_and(|line| line.contains("Input/output error")), "{log}");
}

fn assert_has(member: &Member, acknowledged: &BTreeMap<String, Vec<u8>>) {
    let found: BTreeMap<String, Vec<u8>> = read_all(member).unwrap().into_iter().collect();
    for (key, value) in acknowledged {
        assert_eq!(found.get(key), Some(value), "{key} was acknowledged and is lost");
    }
}

#[test]
fn a_server_whose_disk_fails_to_sync_ends_and_has_lost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(&directory, 1);
    let (acknowledged, since) = write_until_the_disk_fails(&cluster.members()[0]);
    assert!(acknowledged.len() >= WRITES);
    let member = cluster.member_mut(0);
    assert_ended(member, since);

    // As long as the disk fails, it does not serve.
    let (ended, log) = member.launch_until_end().unwrap();
    assert!(!ended.success(), "{log}");
    assert!(log.contains("Input/output error"), "{log}");

    fs::remove_file(trigger(member)).unwrap();
    member.launch().unwrap();
    member.wait_until_healthy().unwrap();
    assert_has(member, &acknowledged);
    put(member, "after", b"value").unwrap();
}

/// The leader's disk fails: the others go on without it, and it comes back.
#[test]
fn a_cluster_goes_on_without_a_leader_whose_disk_fails() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = start(&directory, 3);
    let leader = status(&cluster.members()[0]).unwrap().leader;
    let id = |member: &Member| status(member).unwrap().header.unwrap().member_id;
    let leading = (0..3).find(|index| id(&cluster.members()[*index]) == leader).unwrap();
    let (acknowledged, since) = write_until_the_disk_fails(&cluster.members()[leading]);
    assert_ended(cluster.member_mut(leading), since);

    let others: Vec<usize> = (0..3).filter(|index| *index != leading).collect();
    for index in &others {
        let member = &cluster.members()[*index];
        until("the others serve", || put(member, &format!("on-{index}"), b"value").is_ok());
        assert_has(member, &acknowledged);
    }
    let member = cluster.member_mut(leading);
    fs::remove_file(trigger(member)).unwrap();
    member.launch().unwrap();
    member.wait_until_healthy().unwrap();
    assert_has(member, &acknowledged);
    let revision = status(member).unwrap().header.unwrap().revision;
    let hash = |index| hash_kv(&cluster.members()[index], revision).ok().map(|one| one.hash);
    until("all have the same", || hash(0).is_some() && [1, 2].map(hash) == [hash(0); 2]);
}
