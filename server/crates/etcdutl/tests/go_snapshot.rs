//! A snapshot that Go etcd 3.7.3 made is read as Go's own tools read it.
//!
//! `data/go-etcd-3.7.3.snapshot` was saved by `etcdctl snapshot save` from a server with auth on, a
//! lease, a learner that never started, a compaction, deletions and one large value. The numbers
//! below are what Go `etcdutl snapshot status` printed for it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bytes::Bytes;
use disk::{Disk, OpenMode, OsDisk};
use etcdutl::schema::{Backend, KeyRow};
use etcdutl::snapshot_file::{SnapshotError, SnapshotFile};
use types::{MemberId, RecordRevision, Revision};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/go-etcd-3.7.3.snapshot")
}

fn etcdutl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_etcdutl")).args(arguments).output().unwrap()
}

#[test]
fn status_prints_what_go_etcdutl_printed() {
    let path = fixture();
    let path = path.to_str().unwrap();
    let cases = [
        (vec!["snapshot", "status", path], "d9b06397, 48, 44, 106 kB, 3.7.0\n"),
        (vec!["snap", "stat", path], "d9b06397, 48, 44, 106 kB, 3.7.0\n"),
        (
            vec!["snapshot", "status", path, "-w", "json"],
            "{\"hash\":3652215703,\"revision\":48,\"totalKey\":44,\"totalSize\":106496,\
             \"version\":\"3.7.0\"}\n",
        ),
        (
            vec!["--write-out=fields", "snapshot", "status", path],
            "\"Hash\" : 3652215703\n\"Revision\" : 48\n\"Keys\" : 44\n\"Size\" : 106496\n\
             \"Version\" : 3.7.0\n",
        ),
    ];
    for (arguments, expected) in cases {
        let output = etcdutl(&arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{arguments:?}");
    }
}

#[test]
fn mistakes_get_go_etcdutls_words_and_exit_codes() {
    let path = fixture();
    let path = path.to_str().unwrap();
    let cases = [
        (vec!["snapshot", "status"], 128, "Error: snapshot status requires exactly one argument\n"),
        (
            vec!["snapshot", "status", "a", "b"],
            128,
            "Error: snapshot status requires exactly one argument\n",
        ),
        (
            vec!["snapshot", "status", "nowhere"],
            1,
            "Error: stat nowhere: no such file or directory\n",
        ),
        (vec!["snapshot", "status", path, "-w", "x"], 4, "Error: unsupported output format\n"),
        (
            vec!["snapshot", "status", path, "-w", "protobuf"],
            4,
            "Error: protobuf not supported as output format\n",
        ),
    ];
    for (arguments, code, words) in cases {
        let output = etcdutl(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), words, "{arguments:?}");
    }
}

#[test]
fn every_bucket_has_its_meaning() {
    let file = SnapshotFile::open(&OsDisk::new(), &fixture()).unwrap().bbolt().unwrap();
    let backend = Backend::new(&file);
    let rows: Vec<KeyRow> = backend.keys().unwrap().map(Result::unwrap).collect();
    let newest = rows.last().unwrap().revision;
    assert_eq!(newest, RecordRevision { main: 48, sub: 2 });
    // `put t1, put t2, del k1` in one transaction.
    let last: Vec<(i64, bool)> =
        rows[rows.len() - 3..].iter().map(|row| (row.revision.sub, row.tombstone)).collect();
    assert_eq!(last, [(0, false), (1, false), (2, true)]);
    let meta = backend.meta().unwrap();
    assert_eq!(meta.finished_compaction, Some(Revision(10)));
    assert_eq!(meta.compact_revision(), Some(Revision(10)));
    assert_eq!(meta.store_revision(Some(newest)), Revision(48));
    assert_eq!(meta.storage_version.as_deref(), Some("3.7.0"));
    assert!(meta.consistent_index.unwrap() > 48 && meta.term.unwrap() > 1);
    let leases = backend.leases().unwrap();
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].id.0, leases[0].ttl_seconds), (0x12c8_a1fe_3d2e_7109, 3_600));
    assert!(backend.alarms().unwrap().is_empty());
    let auth = backend.auth().unwrap();
    assert!(auth.enabled && auth.revision > 1);
    let users: Vec<&Bytes> = auth.users.iter().map(|user| &user.name).collect();
    assert_eq!(users, ["root", "u1"]);
    let roles: Vec<&Bytes> = auth.roles.iter().map(|role| &role.name).collect();
    assert_eq!(roles, ["r1"]);
    let membership = backend.membership().unwrap();
    assert_eq!(membership.cluster_version.as_deref(), Some("3.7.0"));
    let [first, learner] = &membership.members[..] else { panic!("{membership:?}") };
    assert_eq!((first.id, &*first.name), (MemberId(0x6678_8015_7b88_12c8), "default"));
    assert_eq!(first.client_urls, ["http://127.0.0.1:42379"]);
    assert!(learner.is_learner && learner.name.is_empty());
    assert_eq!(learner.peer_urls, ["http://127.0.0.1:9999"]);
}

#[test]
fn the_digest_is_checked_and_every_damage_is_found_by_it() {
    let snapshot = SnapshotFile::open(&OsDisk::new(), &fixture()).unwrap();
    snapshot.verify_digest().unwrap();
    let bytes = disk::read_file(&OsDisk::new(), &fixture(), 1 << 20).unwrap();
    let root = tempfile::tempdir().unwrap();
    let written = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        OsDisk::new().open(&path, OpenMode::Create).unwrap().write_all_at(bytes, 0).unwrap();
        SnapshotFile::open(&OsDisk::new(), &path).unwrap()
    };
    let mut flipped = bytes.clone();
    flipped[50_000] ^= 1;
    let error = written("flipped", &flipped).verify_digest().unwrap_err();
    assert!(matches!(error, SnapshotError::Digest { .. }), "{error}");
    let cut = &bytes[..bytes.len() - 32];
    let without = written("without", cut);
    assert!(matches!(without.verify_digest().unwrap_err(), SnapshotError::NoDigest));
    without.bbolt().unwrap().check().unwrap();
}

#[test]
fn a_file_is_hashed_as_go_etcdutl_hashed_it() {
    let path = fixture();
    let path = path.to_str().unwrap();
    let cases = [
        (vec!["hashkv", path], 0, "1620088295, 48, 10\n", ""),
        (vec!["hashkv", path, "--rev", "30"], 0, "317546257, 30, 10\n", ""),
        (
            vec!["hashkv", path, "-w=json"],
            0,
            "{\"hash\":1620088295,\"hashRevision\":48,\"compactRevision\":10}\n",
            "",
        ),
        (
            vec!["hashkv", path, "--rev", "5"],
            1,
            "",
            "Error: mvcc: required revision has been compacted\n",
        ),
        (
            vec!["hashkv", path, "--rev", "49"],
            1,
            "",
            "Error: mvcc: required revision is a future revision\n",
        ),
    ];
    for (arguments, code, stdout, stderr) in cases {
        let output = etcdutl(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), stdout, "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), stderr, "{arguments:?}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_gets_cobras_words() {
    let cases = [
        (vec!["x"], 1, "Error: unknown command \"x\" for \"etcdutl\"\n"),
        (vec!["version", "--x"], 1, "Error: unknown flag: --x\n"),
        (vec!["defrag"], 1, "Error: required flag(s) \"data-dir\" not set\n"),
        (vec!["migrate"], 1, "Error: required flag(s) \"data-dir\", \"target-version\" not set\n"),
        (
            vec!["completion", "tcsh"],
            1,
            "Error: invalid argument \"tcsh\" for \"etcdutl completion\"\n",
        ),
    ];
    for (arguments, code, begin) in cases {
        let output = etcdutl(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(begin), "{arguments:?}: {stderr}");
    }
    for arguments in [&[][..], &["snapshot"], &["help"], &["snapshot", "status", "--help"]] {
        let output = etcdutl(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
}
