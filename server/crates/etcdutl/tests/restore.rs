//! `etcdutl snapshot restore`, from the snapshot that Go etcd 3.7.3 made (see `go_snapshot.rs`) to a
//! member that serves it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod alone;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use disk::{Disk, OsDisk};
use etcdutl::import::GoDataDir;
use etcdutl::restore::{Restore, RestoreError, import, restore};
use machine::{CommandKind, Outcome, Proposal};
use prost::Message as _;
use proto::etcdserverpb::PutRequest;
use proto::mvccpb::KeyValue;
use types::{LeaseId, Revision};

/// What Go `etcdutl hashkv` printed for the file at its newest revision and at revision 30.
const GO_HASH: (i64, u32) = (48, 1_620_088_295);
const GO_HASH_OLDER: (i64, u32) = (30, 317_546_257);
const GO_COMPACT_REVISION: Revision = Revision(10);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/go-etcd-3.7.3.snapshot")
}

/// The files of all versions (`data/README.md`).
fn fixtures() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixture().parent().unwrap()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| path.extension().is_some_and(|it| it == "snapshot");
    let found: Vec<PathBuf> = paths.filter(is_one).collect();
    assert_eq!(found.len(), 7);
    found
}

fn order(data_dir: &Path) -> Restore {
    Restore {
        snapshot: fixture(),
        name: "default".to_owned(),
        data_dir: data_dir.to_owned(),
        wal_dir: None,
        initial_cluster: "default=http://localhost:2380".to_owned(),
        initial_cluster_token: "etcd-cluster".to_owned(),
        advertise_peer_urls: "http://localhost:2380".to_owned(),
        skip_hash_check: false,
        bump_revision: 0,
        drop_auth: true,
    }
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(OsDisk::new())
}

fn etcdutl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_etcdutl")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn put(key: &str) -> Proposal {
    let request = PutRequest { key: key.to_owned().into(), ..PutRequest::default() };
    Proposal::new(CommandKind::Put, &request)
}

async fn put_revision(replica: &replica::Replica, key: &str) -> i64 {
    let outcome = replica.handle().propose(put(key)).await.unwrap();
    let Outcome::Put(response) = outcome else { panic!("{outcome:?}") };
    response.header.unwrap().revision
}

#[tokio::test]
async fn a_member_over_a_go_snapshot_answers_as_go_did_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let data_dir = root.path().join("data");
    let restored = restore(&disk(), &order(&data_dir)).unwrap();
    assert_eq!(restored.founding.cluster_id.to_string(), "cdf818194e3a8c32");
    assert_eq!(restored.member.to_string(), "8e9e05c52164694d");
    assert_eq!(restored.revision, Revision(48));
    for start in 0..2 {
        let replica = alone::start(&data_dir, &restored).await;
        let views = replica.handle().views();
        assert_eq!(views.mvcc.compact_revision(), GO_COMPACT_REVISION);
        for (revision, hash) in [GO_HASH, GO_HASH_OLDER] {
            assert_eq!(views.mvcc.hash_kv(revision).unwrap().hash, hash, "at {revision}");
        }
        let lease = LeaseId(0x12c8_a1fe_3d2e_7109);
        let leases = views.leases();
        assert_eq!(leases.len(), 1);
        assert_eq!((leases[0].0, leases[0].1), (lease, 3_600));
        assert!(!views.lease_keys(lease).unwrap().is_empty(), "its keys hang on it again");
        let members = views.members();
        assert_eq!(members.len(), 1, "the members are those of the new cluster: {members:?}");
        assert_eq!((members[0].id, members[0].name.as_str()), (restored.member, "default"));
        assert_eq!(put_revision(&replica, "after").await, 49 + start);
        replica.shutdown().await;
    }
}

#[tokio::test]
async fn a_bumped_store_begins_above_and_has_forgotten_its_history() {
    let root = tempfile::tempdir().unwrap();
    let data_dir = root.path().join("data");
    let bumped = Restore { bump_revision: 1_000_000_000, ..order(&data_dir) };
    let restored = restore(&disk(), &bumped).unwrap();
    assert_eq!(restored.revision, Revision(1_000_000_048));
    let replica = alone::start(&data_dir, &restored).await;
    let view = replica.handle().views().mvcc;
    assert_eq!(view.compact_revision(), Revision(1_000_000_048));
    assert!(matches!(view.hash_kv(48), Err(mvcc::RangeError::Compacted)));
    assert!(view.get(b"k2", 0).unwrap().is_some() || view.get(b"t1", 0).unwrap().is_some());
    assert_eq!(put_revision(&replica, "after").await, 1_000_000_049);
    replica.shutdown().await;
}

/// Members of etcd 3.4 and 3.5 put their names into the log as requests of version 2.
#[tokio::test]
async fn the_log_of_an_old_version_is_imported() {
    for version in ["3.4.13", "3.5.35"] {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        for (part, place) in
            [("db", "member/snap/db"), ("wal", "member/wal/0000000000000000-0000000000000000.wal")]
        {
            let to = old.join(place);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(fixture().with_file_name(format!("behind-{version}.{part}")), to).unwrap();
        }
        let data_dir = root.path().join("data");
        let from = GoDataDir::open(&old, None).unwrap();
        let restored = import(&disk(), &order(&data_dir), &from).unwrap();
        assert_eq!(restored.revision, Revision(3), "{version}");
        let replica = alone::start(&data_dir, &restored).await;
        let views = replica.handle().views();
        for (key, revision) in [("before", 2), ("behind", 3)] {
            let found = views.mvcc.get(key.as_bytes(), 0).unwrap().unwrap();
            let found = KeyValue::decode(found).unwrap();
            assert_eq!(found.mod_revision, revision, "{version}");
        }
        assert_eq!(put_revision(&replica, "after").await, 4);
        replica.shutdown().await;
    }
}

/// All restored members stand at the same place and know each other.
#[test]
fn members_of_one_cluster_agree_on_its_identity() {
    let root = tempfile::tempdir().unwrap();
    let cluster = "a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380";
    let member = |name: &str, url: &str| {
        let order = Restore {
            name: name.to_owned(),
            initial_cluster: cluster.to_owned(),
            advertise_peer_urls: url.to_owned(),
            ..order(&root.path().join(name))
        };
        restore(&disk(), &order).unwrap()
    };
    let first = member("a", "http://10.0.0.1:2380");
    let second = member("b", "http://10.0.0.2:2380");
    assert_eq!(first.founding, second.founding);
    assert_ne!(first.member, second.member);
    let image = root.path().join("b/member/image/00000000000000000003.image");
    assert!(image.exists(), "the position is that of a log with one entry per member");
}

#[test]
fn mistakes_get_gos_words_and_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (full, fresh, wal) = (path("full"), path("fresh"), path("wal"));
    fs::create_dir(&full).unwrap();
    fs::write(root.path().join("full/file"), "x").unwrap();
    fs::create_dir(&wal).unwrap();
    let bytes = fs::read(fixture()).unwrap();
    let bare = path("bare");
    fs::write(&bare, &bytes[..bytes.len() - 32]).unwrap();
    let fixture = fixture().to_str().unwrap().to_owned();
    let cases: [(&[&str], i32, String); 9] = [
        (&[], 128, "snapshot restore requires exactly one argument".into()),
        (
            &[&fixture, "--bump-revision", "5"],
            128,
            "--mark-compacted required if --revision-bump > 0".into(),
        ),
        (
            &[&fixture, "--data-dir", &full],
            1,
            format!("data-dir {full:?} not empty or could not be read"),
        ),
        (
            &[&fixture, "--data-dir", &fresh, "--wal-dir", &wal],
            1,
            format!("wal-dir {wal:?} exists"),
        ),
        (&["nowhere", "--data-dir", &fresh], 1, "open nowhere: no such file or directory".into()),
        (
            &[&bare, "--data-dir", &fresh],
            1,
            "snapshot missing hash but --skip-hash-check=false".into(),
        ),
        (
            &[&fixture, "--data-dir", &fresh, "--name", "x"],
            1,
            "couldn't find local name \"x\" in the initial cluster configuration".into(),
        ),
        (
            &[&fixture, "--data-dir", &fresh, "--initial-advertise-peer-urls", "http://10.0.0.1:1"],
            1,
            "--initial-cluster has default=http://localhost:2380 but missing from \
             --initial-advertise-peer-urls=http://10.0.0.1:1 (resolved urls: \
             \"http://10.0.0.1:1\" != \"http://localhost:2380\")"
                .into(),
        ),
        (
            &[&fixture, "--data-dir", &fresh, "--initial-cluster", "default=foo"],
            1,
            "URL scheme must be http, https, unix, or unixs: foo".into(),
        ),
    ];
    for (arguments, code, words) in cases {
        let arguments = [&["snapshot", "restore"], arguments].concat();
        let output = etcdutl(&arguments);
        assert_eq!(stderr(&output), format!("Error: {words}\n"), "{arguments:?}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(!Path::new(&fresh).exists(), "{arguments:?}");
    }
    let arguments = ["snap", "rest", &bare, "--skip-hash-check", "--drop-auth", "--data-dir"];
    let output = etcdutl(&[&arguments[..], &[fresh.as_str()]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(stderr(&output).contains("users and roles of the snapshot were not restored"));
}

#[tokio::test]
async fn a_guarded_cluster_does_not_become_an_open_one_by_surprise() {
    let root = tempfile::tempdir().unwrap();
    let data_dir = root.path().join("data");
    let guarded = Restore { drop_auth: false, ..order(&data_dir) };
    let restored = restore(&disk(), &guarded).unwrap();
    assert!(!restored.dropped_auth);
    let replica = alone::start(&data_dir, &restored).await;
    let auth = replica.handle().views().auth();
    assert!(auth.is_enabled());
    let users: Vec<&str> = auth.users().map(|(name, _)| name).collect();
    assert_eq!(users, ["root", "u1"]);
    assert!(auth.user("u1").unwrap().password_hash.starts_with(b"$2a$"));
    assert_eq!(auth.user("u1").unwrap().roles, ["r1"]);
    assert!(!auth.role("r1").unwrap().is_empty());
    replica.shutdown().await;
}

/// Without a digest to find it at once, damage is found where it matters or, inside of a value, not
/// at all; but never is a part of a member left behind, and never is it a panic.
#[test]
fn a_damaged_file_gives_a_named_error_and_no_directory() {
    let root = tempfile::tempdir().unwrap();
    let damaged = root.path().join("damaged");
    for fixture in fixtures() {
        let bytes = fs::read(&fixture).unwrap();
        let (mut refused, mut restored) = (0, 0);
        // Anywhere, and in the head of every page: its kind and how many elements it has.
        let anywhere = (0..bytes.len()).step_by(3_907);
        let heads = (0..bytes.len() - 4_096).step_by(4_096).flat_map(|page| [page + 8, page + 10]);
        for at in anywhere.chain(heads) {
            let place = format!("byte {at} of {}", fixture.display());
            let mut flipped = bytes.clone();
            flipped[at] ^= 0xff;
            fs::write(&damaged, &flipped).unwrap();
            let data_dir = root.path().join("data");
            let with_digest = Restore { snapshot: damaged.clone(), ..order(&data_dir) };
            let error = restore(&disk(), &with_digest).unwrap_err();
            assert!(error.to_string().contains("sha256"), "{place}: {error}");
            assert!(!data_dir.exists(), "{place}");
            match restore(&disk(), &Restore { skip_hash_check: true, ..with_digest }) {
                Ok(_) => {
                    restored += 1;
                    assert!(data_dir.join("member/identity.json").exists());
                    fs::remove_dir_all(&data_dir).unwrap();
                }
                Err(error) => {
                    refused += 1;
                    let words = error.to_string();
                    let path = damaged.to_str().unwrap();
                    assert!(words.contains("damaged") && words.contains(path), "{place}: {words}");
                    assert!(!data_dir.exists(), "{place}: {error}");
                }
            }
        }
        let of = fixture.display();
        assert!(refused > 5 && restored > 5, "{of}: {refused} refused, {restored} restored");
    }
}

#[test]
fn a_truncated_file_gives_a_named_error_and_no_directory() {
    let root = tempfile::tempdir().unwrap();
    let cut = root.path().join("cut");
    let data_dir = root.path().join("data");
    for fixture in fixtures() {
        let bytes = fs::read(&fixture).unwrap();
        let last = bytes.len() - 33;
        let short = [1, 31, 32, 512, 544, 4_096, 8_192, 8_224, last];
        for length in (0..last).step_by(5_003).chain(short) {
            fs::write(&cut, &bytes[..length]).unwrap();
            for skip_hash_check in [false, true] {
                let order = Restore { snapshot: cut.clone(), skip_hash_check, ..order(&data_dir) };
                let error = restore(&disk(), &order).unwrap_err().to_string();
                let named =
                    ["sha256", "missing hash", "damaged"].iter().any(|it| error.contains(it));
                let place = format!("{length} bytes of {}", fixture.display());
                assert!(named, "{place}: {error}");
                assert!(!data_dir.exists(), "{place}: {error}");
            }
        }
    }
}

#[test]
fn the_remains_of_a_crash_and_an_empty_directory_are_no_obstacle() {
    let root = tempfile::tempdir().unwrap();
    let data_dir = root.path().join("data");
    fs::create_dir_all(data_dir.join("member.restoring/store/0")).unwrap();
    fs::write(data_dir.join("member.restoring/store/0/half"), "x").unwrap();
    let wal_dir = root.path().join("wal");
    let with_wal = Restore { wal_dir: Some(wal_dir.clone()), ..order(&data_dir) };
    // The power can fail between this directory and the end.
    fs::create_dir(&wal_dir).unwrap();
    fs::write(wal_dir.join("somebody's"), "x").unwrap();
    let error = restore(&disk(), &with_wal).unwrap_err();
    assert!(matches!(error, RestoreError::WalDir(_)), "{error}");
    fs::remove_file(wal_dir.join("somebody's")).unwrap();
    let foreign = Restore { data_dir: root.path().join("other"), ..with_wal.clone() };
    let error = restore(&disk(), &foreign).unwrap_err();
    assert!(matches!(error, RestoreError::WalDir(_)), "{error}");
    restore(&disk(), &with_wal).unwrap();
    let names = |path: &Path| -> Vec<String> {
        disk().list(path).unwrap().into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names(&data_dir), ["member"]);
    assert_eq!(names(&data_dir.join("member")), ["identity.json", "image", "store"]);
    assert!(names(&wal_dir).is_empty());
    let error = restore(&disk(), &order(&data_dir)).unwrap_err();
    assert!(matches!(error, RestoreError::DataDir(_)), "{error}");
}

/// The commands that work on a directory of ours, and what they say about one that is not.
#[test]
fn a_restored_directory_can_be_defragmented_and_needs_no_migration() {
    let root = tempfile::tempdir().unwrap();
    let data_dir = root.path().join("data");
    restore(&disk(), &order(&data_dir)).unwrap();
    let path = data_dir.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = etcdutl(arguments);
        (output.status.code().unwrap(), stderr(&output))
    };
    let (code, text) = run(&["defrag", "--data-dir", path]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("finished defragmenting"), "{text}");
    let (code, text) = run(&["migrate", "--data-dir", path, "--target-version", "3.7"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("storage version up-to-date"), "{text}");
    let (code, text) = run(&["migrate", "--data-dir", path, "--target-version", "3.6", "--force"]);
    assert_eq!(code, 1);
    assert!(text.contains("cannot migrate to 3.6"), "{text}");
    // Names of files need not be text.
    let moved = root.path().join(OsStr::from_bytes(b"data\xff"));
    fs::rename(&data_dir, &moved).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_etcdutl"))
        .args(["defrag", "--data-dir"])
        .arg(&moved)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    fs::rename(&moved, &data_dir).unwrap();
    let lock = disk().lock(&data_dir.join("member")).unwrap();
    let (code, text) = run(&["defrag", "--data-dir", path, "--timeout", "100ms"]);
    assert_eq!(code, 1);
    assert!(text.contains("is locked by another process"), "{text}");
    drop(lock);
    let gos = root.path().join("go");
    fs::create_dir_all(gos.join("member/snap")).unwrap();
    fs::write(gos.join("member/snap/db"), "").unwrap();
    let (code, text) = run(&["defrag", "--data-dir", gos.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(text.contains("is a data directory of Go etcd"), "{text}");
}
