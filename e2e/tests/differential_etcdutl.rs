//! Our `etcdutl` and Go's on the same files: the same status and hashes, and servers that begin with
//! the same state, whoever restored it and whichever version of etcd the file comes from.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod offline;
#[path = "differential_etcdutl/snapshots.rs"]
mod snapshots;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use bbolt::Writer;
use e2e::processes::{Cluster, Member, ServerOptions};
use offline::{Tools, identity, restore};
use prost::Message;
use proto::mvccpb::KeyValue;
use serde_json::Value;

impl Tools {
    /// What clients see of a member's state.
    fn state(&self, member: &Member) -> Result<State> {
        let mut hash: Value = serde_json::from_str(&self.etcdctl(
            member,
            &["endpoint", "hashkv", "-w", "json"],
            "",
        )?)?;
        let mut hash = hash[0]["HashKV"].take();
        let all: Value = serde_json::from_str(&self.etcdctl(
            member,
            &["get", "", "--prefix", "-w", "json"],
            "",
        )?)?;
        hash["header"] = Value::Null;
        Ok(State {
            hash: hash.to_string(),
            revision: all["header"]["revision"].as_i64().context("a revision")?,
            keys: all["kvs"].to_string(),
            leases: self.etcdctl(member, &["lease", "list"], "")?,
            alarms: self.etcdctl(member, &["alarm", "list"], "")?,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct State {
    hash: String,
    revision: i64,
    keys: String,
    leases: String,
    alarms: String,
}

/// Both programs say the same on the same file, each on a copy: Go's ends a compaction in the file that it
/// reads.
fn compare(tools: &Tools, arguments: &[&str], file: &Path) {
    let run = |program: &Path| {
        let directory = tempfile::tempdir().unwrap();
        if file.is_file() {
            fs::copy(file, directory.path().join("file")).unwrap();
        }
        let mut command = Command::new(program);
        let output = command.args(arguments).arg("file").current_dir(&directory).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let go = run(&tools.go.etcdutl);
    assert_eq!(run(&tools.etcdutl), go, "{arguments:?} {}", file.display());
}

fn compare_all(tools: &Tools, file: &Path) {
    for format in ["simple", "json", "fields", "table", "protobuf", "other"] {
        compare(tools, &["snapshot", "status", "-w", format], file);
        for revision in ["0", "1", "9", "12", "1000"] {
            compare(tools, &["hashkv", "--rev", revision, "-w", format], file);
        }
    }
}

fn write_history(tools: &Tools, member: &Member) -> Result<()> {
    let ctl = |arguments: &[&str]| tools.etcdctl(member, arguments, "");
    for number in 0..8 {
        ctl(&["put", &format!("k{}", number % 3), &number.to_string()])?;
    }
    let lease = ctl(&["lease", "grant", "3600"])?;
    let lease = lease.split(' ').nth(1).context("a lease id")?;
    ctl(&["put", "leased", "x", "--lease", lease])?;
    ctl(&["compaction", "8"])?;
    ctl(&["del", "k0"])?;
    tools.etcdctl(member, &["txn"], "\nput t1 1\nput t2 2\ndel k1\n\n\n\n")?;
    ctl(&["lease", "grant", "1800"])?;
    ctl(&["put", "last", "z"])?;
    Ok(())
}

#[test]
fn status_and_hashes_of_a_file_are_those_of_go_etcdutl() {
    let tools = Tools::build();
    let mut cluster = Cluster::start(&ServerOptions::one(&tools.go.etcd)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot.db");
    let member = cluster.member_mut(0);
    write_history(&tools, member).unwrap();
    tools.etcdctl(member, &["snapshot", "save", snapshot.to_str().unwrap()], "").unwrap();
    compare_all(&tools, &snapshot);
    member.stop().unwrap();
    let cold = directory.path().join("cold.db");
    fs::copy(member.data_directory.join("member/snap/db"), &cold).unwrap();
    compare_all(&tools, &cold);
    // Missing files and bad arguments; cobra's usage, which follows its errors, is not ours.
    compare(&tools, &["snapshot", "status"], &directory.path().join("none"));
    compare(&tools, &["hashkv"], &directory.path().join("none"));
    let missing = directory.path().join("none");
    compare(&tools, &["migrate", "--target-version", "3.4", "--data-dir"], &missing);
    compare(&tools, &["migrate", "--target-version", "3", "--data-dir"], &missing);
}

/// All that a member has answered is there after a crash, also what was in its log alone.
#[test]
fn an_import_holds_what_a_killed_member_of_go_etcd_had_answered() {
    let tools = Tools::build();
    let mut cluster = Cluster::start(&ServerOptions::one(&tools.go.etcd)).unwrap();
    let member = cluster.member_mut(0);
    write_history(&tools, member).unwrap();
    let before = tools.state(member).unwrap();
    let old = member.data_directory.with_extension("go");
    let from = format!("--from={}", member.data_directory.display());
    let busy = Command::new(&tools.etcdutl).args(["import", &from]).output().unwrap();
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("in use by a running server"));
    member.kill().unwrap();
    fs::rename(&member.data_directory, &old).unwrap();
    let from = format!("--from={}", old.display());
    let import = |arguments: &[String]| {
        let output =
            Command::new(&tools.etcdutl).args(["import", &from]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, stderr) = import(&identity(member));
    assert_eq!(code, Some(0), "{stderr}");
    member.set_program(&tools.etcd);
    member.launch().unwrap();
    member.wait_until_healthy().unwrap();
    assert_eq!(tools.state(member).unwrap(), before);
    // A second time there is a directory in the way; and a damaged log leaves none.
    member.stop().unwrap();
    let (code, stderr) = import(&identity(member));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("not empty"), "{stderr}");
    fs::remove_dir_all(&member.data_directory).unwrap();
    let wal = old.join("member/wal/0000000000000000-0000000000000000.wal");
    let mut bytes = fs::read(&wal).unwrap();
    bytes[200] ^= 0xff;
    fs::write(&wal, bytes).unwrap();
    let (code, stderr) = import(&identity(member));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("is damaged at byte"), "{stderr}");
    assert!(!member.data_directory.exists());
}

/// How far a backend says that it is compacted; what no server that is asked for a snapshot leaves, but one
/// that is killed.
struct Shape {
    name: &'static str,
    scheduled: u64,
    finished: u64,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "never compacted", scheduled: 0, finished: 0 },
    Shape { name: "in its first compaction", scheduled: 13, finished: 0 },
    Shape { name: "in another compaction", scheduled: 9, finished: 4 },
];

fn revision_key(main: u64, tombstone: bool) -> Vec<u8> {
    let mut key = main.to_be_bytes().to_vec();
    key.push(b'_');
    key.extend_from_slice(&0u64.to_be_bytes());
    key.extend(tombstone.then_some(b't'));
    key
}

/// Twenty changes of three keys, some deletions; every key's versions and revisions as etcd counts.
fn write_backend(path: &Path, shape: &Shape) -> Result<()> {
    let mut writer = Writer::new(File::create(path)?)?;
    for bucket in ["alarm", "auth", "authRoles", "authUsers", "cluster"] {
        writer.bucket(bucket.as_bytes())?;
    }
    writer.put(b"clusterVersion", b"3.4.0")?;
    writer.bucket(b"key")?;
    let mut keys = [(0, 0); 3];
    for revision in 2..22u64 {
        let number = (revision % 3) as usize;
        let key = format!("k{number}").into_bytes();
        let (created, version) = &mut keys[number];
        if revision % 7 == 0 {
            *version = 0;
            let gone = KeyValue { key: key.into(), ..KeyValue::default() };
            writer.put(&revision_key(revision, true), &gone.encode_to_vec())?;
            continue;
        }
        if *version == 0 {
            *created = revision as i64;
        }
        *version += 1;
        let kv = KeyValue {
            key: key.into(),
            create_revision: *created,
            mod_revision: revision as i64,
            version: *version,
            value: revision.to_string().into(),
            lease: 0,
        };
        writer.put(&revision_key(revision, false), &kv.encode_to_vec())?;
    }
    for bucket in ["lease", "members", "members_removed", "meta"] {
        writer.bucket(bucket.as_bytes())?;
    }
    writer.put(b"consistent_index", &30u64.to_be_bytes())?;
    if shape.finished > 0 {
        writer.put(b"finishedCompactRev", &revision_key(shape.finished, false))?;
    }
    if shape.scheduled > 0 {
        writer.put(b"scheduledCompactRev", &revision_key(shape.scheduled, false))?;
    }
    writer.put(b"storageVersion", b"3.7.0")?;
    writer.put(b"term", &2u64.to_be_bytes())?;
    writer.finish()?.flush()?;
    Ok(())
}

/// What clients see of a member that was restored with one tool and is served by its server.
fn restored(
    tools: &Tools,
    member: &mut Member,
    programs: (&Path, &Path),
    file: &Path,
) -> Result<State> {
    restore(member, programs, file, &["--skip-hash-check"])?;
    member.wait_until_healthy()?;
    tools.state(member)
}

#[test]
fn a_file_of_a_killed_server_gives_the_state_that_go_etcd_gives() {
    let tools = Tools::build();
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(&ServerOptions::one(&tools.go.etcd)).unwrap();
    let member = cluster.member_mut(0);
    for shape in &SHAPES {
        let file = directory.path().join(shape.name);
        write_backend(&file, shape).unwrap();
        compare_all(&tools, &file);
        let expected = restored(&tools, member, tools.gos(), &file).unwrap();
        let found = restored(&tools, member, tools.ours(), &file).unwrap();
        assert_eq!(found, expected, "{}", shape.name);
    }
}

/// What a command came to: the exit code, what it printed, and its complaint without the log.
fn came_of(program: &Path, directory: &Path, line: &str) -> (Option<i32>, String, Vec<String>) {
    let output = Command::new(program)
        .args(line.split_whitespace())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaint = errors.lines().filter(|line| line.starts_with("Error: "));
    let mut complaint: Vec<String> = complaint.map(str::to_owned).collect();
    // Go's is printed by the library and once more by the program.
    complaint.dedup();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), complaint)
}

/// Lines whose answers differ, and why.
const DEVIATIONS: [(&str, &str); 8] = [
    ("snapshot status blank", "Go tells what its database library ran into"),
    ("snapshot status empty.db", "Go tells what its database library ran into"),
    ("snapshot status short.db", "Go tells what its database library ran into"),
    ("snapshot status text.db", "Go tells what its database library ran into"),
    ("snapshot restore short.db --data-dir=new15 --skip-hash-check", "Go panics"),
    ("hashkv text.db", "Go panics"),
    ("defrag --data-dir=nowhere", "the directory has other files"),
    ("migrate --data-dir=nowhere --target-version=3.6", "the directory has other files"),
];

/// Command lines for both, in this order in one directory.
const LINES: &[&str] = &[
    "snapshot status",
    "snapshot status a b",
    "snapshot status nowhere",
    "snapshot status good.db",
    "snapshot status good.db -w json",
    "snapshot status good.db -w fields",
    "snapshot status good.db -w table",
    "snapshot status good.db -w protobuf",
    "snapshot status good.db -w x",
    "snapshot status good.db --write-out=json",
    "snapshot status bare.db",
    "snapshot status blank",
    "snapshot status empty.db",
    "snapshot status short.db",
    "snapshot status text.db",
    "snapshot status --nonsense good.db",
    "snapshot restore",
    "snapshot restore a b",
    "snapshot restore nowhere",
    "snapshot restore nowhere --data-dir=new1",
    "snapshot restore bare.db --data-dir=new2",
    "snapshot restore flipped.db --data-dir=new3",
    "snapshot restore short.db --data-dir=new16",
    "snapshot restore text.db --data-dir=new17",
    "snapshot restore short.db --data-dir=new15 --skip-hash-check",
    "snapshot restore good.db --data-dir=full",
    "snapshot restore good.db --data-dir=new4 --wal-dir=wal",
    "snapshot restore good.db --data-dir=new5 --name=x",
    "snapshot restore good.db --data-dir=new5 --initial-cluster=x",
    "snapshot restore good.db --data-dir=new5 --initial-cluster=default=x",
    "snapshot restore good.db --data-dir=new5 --initial-advertise-peer-urls=x",
    "snapshot restore good.db --data-dir=new5 --initial-cluster=default=http://127.0.0.1:1,default=http://127.0.0.1:1",
    "snapshot restore good.db --data-dir=new5 --initial-cluster=",
    "snapshot restore good.db --data-dir=new6 --bump-revision=5",
    "snapshot restore good.db --data-dir=new7 --mark-compacted",
    "snapshot restore good.db --data-dir=new8 --bump-revision=-5 --mark-compacted",
    "snapshot restore good.db --data-dir=new8 --bump-revision=x",
    "snapshot restore good.db --data-dir=new8 --initial-memory-map-size=x",
    "snapshot restore good.db --data-dir=new9 --initial-memory-map-size=1000000",
    "snapshot restore good.db --data-dir=new10 --bump-revision=5 --mark-compacted",
    "snapshot restore good.db --data-dir=new11 --wal-dir=new-wal",
    "snapshot restore bare.db --data-dir=new12 --skip-hash-check",
    "snapshot restore good.db --data-dir=blank",
    "snapshot restore good.db --data-dir=new9",
    "snapshot restore good.db -w json --data-dir=new13",
    "snapshot restore good.db --data-dir=full --data-dir=new18",
    "snapshot restore bare.db --data-dir=new19 --skip-hash-check=1",
    "snapshot restore bare.db --data-dir=new20 --skip-hash-check=TRUE --skip-hash-check=F",
    "snapshot restore good.db --data-dir=new21 --skip-hash-check=yes",
    "snapshot restore good.db --data-dir=new22 --bump-revision=0x5 --mark-compacted=t",
    "snapshot restore good.db --data-dir=new23 --bump-revision=0o1_0 --mark-compacted=T",
    "snapshot restore good.db --data-dir=new24 --bump-revision=1_ --mark-compacted",
    "snapshot restore good.db --data-dir=new24 --bump-revision=08 --mark-compacted",
    "snapshot restore good.db --data-dir=new24 --bump-revision=+5 --mark-compacted",
    "snapshot restore good.db --data-dir=new24 --bump-revision=18446744073709551616",
    "snapshot restore good.db --data-dir=new25 --initial-memory-map-size=010",
    "snap rest good.db --data-dir=new14",
    "snapshot",
    "snapshot nonsense",
    "snapshot save x",
    "hashkv",
    "hashkv a b",
    "hashkv nowhere",
    "hashkv text.db",
    "hashkv good.db",
    "hashkv good.db --rev=3",
    "hashkv good.db --rev=9",
    "hashkv good.db --rev=x",
    "hashkv good.db --rev=-1",
    "hashkv good.db --rev=100000",
    "hashkv good.db --rev=0x9",
    "hashkv good.db --rev=011",
    "hashkv good.db --rev=0b1_001",
    "hashkv good.db --rev=3 --rev=+9",
    "hashkv good.db --rev=9223372036854775808",
    "hashkv good.db -w simple -w json",
    "hashkv good.db -w json",
    "hashkv good.db -w protobuf",
    "defrag",
    "defrag --data-dir",
    "defrag --data-dir=nowhere",
    "defrag x",
    "migrate",
    "migrate --data-dir=new9",
    "migrate --target-version=3.6",
    "migrate --data-dir=nowhere --target-version=3.6",
    "migrate --data-dir=new9 --target-version=x",
    "migrate --data-dir=new9 --target-version=3.4",
    "migrate --data-dir=new9 --target-version=3",
    "version",
    "version -w json",
    "version x",
    "completion",
    "completion x",
    "completion bash zsh",
    "--timeout=x version",
    "--timeout=1s version",
    "--timeout=1s --timeout=2s version",
    "--timeout=1.5h2m version",
    "--timeout=5 version",
    "--timeout=5y version",
    "nonsense",
    "backup",
    "ver",
    "s",
    "-x",
    "--nonsense",
];

/// A snapshot, what can be wrong with one, and directories that are in the way.
fn lay_out(directory: &Path, good: &[u8]) {
    let write = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).unwrap();
    write("good.db", good);
    write("bare.db", &good[..good.len() - 32]);
    let mut flipped = good.to_vec();
    flipped[good.len() / 2] ^= 1;
    write("flipped.db", &flipped);
    write("short.db", &good[..5000]);
    write("empty.db", b"");
    write(
        "text.db",
        b"this is no snapshot at all, but a text that is a little longer than a digest",
    );
    for name in ["full", "wal", "blank"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    write("full/file", b"x");
}

#[test]
fn command_lines_get_the_answers_of_go_etcdutl() {
    let tools = Tools::build();
    let cluster = Cluster::start(&ServerOptions::one(&tools.go.etcd)).unwrap();
    let member = &cluster.members()[0];
    write_history(&tools, member).unwrap();
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let snapshot = directories[0].path().join("good.db");
    tools.etcdctl(member, &["snapshot", "save", snapshot.to_str().unwrap()], "").unwrap();
    for directory in &directories {
        lay_out(directory.path(), &fs::read(&snapshot).unwrap());
    }
    let mut different = String::new();
    let mut deviating = 0;
    for line in LINES {
        let go = came_of(&tools.go.etcdutl, directories[0].path(), line);
        let ours = came_of(&tools.etcdutl, directories[1].path(), line);
        // Help is worded by each.
        let is_help = |text: &str| text.contains("Usage:");
        let alike = go.0 == ours.0
            && go.2 == ours.2
            && (go.1 == ours.1 || is_help(&go.1) && is_help(&ours.1));
        let deviates = DEVIATIONS.iter().any(|(deviating, _)| deviating == line);
        assert!(!(deviates && alike), "no deviation any more: {line}");
        deviating += usize::from(deviates);
        if !alike && !deviates {
            different.push_str(&format!("etcdutl {line}\n  Go   {go:?}\n  ours {ours:?}\n"));
        }
    }
    assert!(different.is_empty(), "\n{different}");
    let (all, equal) = (LINES.len(), LINES.len() - deviating);
    println!("{all} commands compared, {equal} equal, {deviating} deviating with reason");
    let name = "`differential_etcdutl` (`command_lines`)";
    let row = format!("| {name} | {all} | {equal} | {deviating}, in the test |");
    let readme = include_str!("../../server/README.md");
    assert!(readme.lines().any(|line| line == row), "server/README.md has no row {row}");
}
