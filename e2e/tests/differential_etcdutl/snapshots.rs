//! Snapshots of servers of Go etcd 3.4 to 3.7, which `e2e/peers/snapshots` has made, and of ours: what clients
//! are shown of one is the same whoever restored it, down to what they are refused.
//!
//! The files have two alarms. One refuses nearly everything and the other what needs space, so a
//! restored member is looked at three times.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::gateway::{self, Ask};
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse};
use serde_json::{Value, json};

use crate::calls::{call, until};
use crate::compare_all;
use crate::offline::{Session, Tools, restore, seen};

/// What is asked whatever alarms there are.
const ALWAYS: &[&str] = &[
    "--user=root:r alarm list",
    "--user=root:r auth status",
    "--user=root:r user list",
    "--user=root:r user get root",
    "--user=root:r user get alice",
    "--user=root:r user get bob",
    "--user=root:r user get certificate",
    "--user=root:r role list",
    "--user=root:r role get root",
    "--user=root:r role get reader",
    "--user=root:r role get writer",
    "--user=root:r role get nothing",
    "--user=root:r lease list",
];

/// What one alarm or the other refuses, or both.
const REFUSED: &[&str] = &[
    "--user=root:r get key/00",
    "--user=root:r put put x",
    "--user=root:r lease grant 77",
    "--user=root:r lease revoke 5",
    "--user=root:r compaction 5",
];

/// What can be read.
const DATA: &[&str] = &[
    "--user=root:r get a --from-key -w fields",
    "--user=root:r get a --from-key -w fields --rev=199",
    "--user=root:r get a --from-key -w fields --rev=200",
    "--user=root:r get a --from-key -w fields --rev=240",
    "--user=root:r get a --from-key -w fields --rev=270",
    "--user=root:r get a --from-key -w fields --rev=1281",
    "--user=root:r get a --from-key -w fields --rev=1284",
    "--user=root:r get a --from-key -w fields --rev=2000",
    "--user=root:r endpoint hashkv -w json",
    "--user=root:r lease list",
    "--user=root:r lease timetolive 3e8 --keys",
    "--user=root:r lease timetolive 7fffffffffffffff --keys",
    "--user=root:r lease timetolive bb8 --keys",
    "--user=root:r lease timetolive 5 --keys",
    "--user=root:r member list",
    "--user=alice:a get again",
    "--user=alice:wrong get again",
    "--user=bob:b get key/ --prefix",
    "--user=bob:b get again",
    "--user=bob:b put key/00 x",
    "get again",
];

/// What changes the data, so that what hangs together shows: keys leave with their leases.
const CHANGES: [&str; 6] = [
    "--user=alice:a put only/written x",
    "--user=root:r put key/00 x",
    "--user=root:r del leased/b",
    "--user=root:r lease revoke 3e8",
    "--user=root:r get a --from-key -w fields",
    "--user=root:r endpoint hashkv -w json",
];

/// A call of the gateway in the name of `root`, who is there.
fn ask(member: &Member, path: &str, body: &Value) -> Value {
    let ask = |path: &str, body: &Value, headers| {
        let ask = Ask { headers, ..Ask::post(path, &body.to_string()) };
        let answer = gateway::ask(&member.endpoint, &ask).unwrap();
        assert_eq!(answer.status, "200", "{path}: {}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    let root = json!({ "name": "root", "password": "r" });
    let token = ask("auth/authenticate", &root, vec![]);
    let token = token["token"].as_str().unwrap().to_owned();
    ask(path, body, vec![("authorization".to_owned(), token)])
}

/// The alarms of one kind, by the member that they name.
fn alarms(member: &Member, kind: &str) -> Vec<Value> {
    let mut found = ask(member, "maintenance/alarm", &json!({ "action": "GET" }));
    let alarms = found["alarms"].take();
    let alarms = alarms.as_array().cloned().unwrap_or_default();
    alarms.into_iter().filter(|alarm| alarm["alarm"] == *kind).collect()
}

/// What clients are shown by a member that has just begun, with its alarms, without one after the other,
/// and after changes.
fn shown(member: &Member, session: &Session) -> String {
    until("the member answers", || {
        seen(member, session, &["endpoint status"]).contains(&member.endpoint)
    });
    let mut all = seen(member, session, ALWAYS);
    for kind in ["CORRUPT", "NOSPACE"] {
        for mut alarm in alarms(member, kind) {
            all.push_str(&seen(member, session, REFUSED));
            alarm["action"] = "DEACTIVATE".into();
            ask(member, "maintenance/alarm", &alarm);
        }
    }
    for lines in [DATA, &CHANGES] {
        all.push_str(&seen(member, session, lines));
    }
    with_alarms_in_order(&all)
}

/// Go etcd lists the alarms of a member in another order each time.
fn with_alarms_in_order(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    for alarms in lines.chunk_by_mut(|one, next| [one, next].iter().all(|l| l.contains(" alarm:")))
    {
        alarms.sort_unstable();
    }
    lines.join("\n")
}

/// The lines that differ.
fn difference(found: &str, expected: &str) -> String {
    let mut different = String::new();
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        if found != expected {
            different.push_str(&format!("{number}: {found}\n  instead of {expected}\n"));
        }
    }
    different
}

fn assert_same(found: &str, expected: &str, of: &str) {
    assert!(found == expected, "{of}\n{}", difference(found, expected));
}

fn fixtures() -> Vec<PathBuf> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/crates/etcdutl/tests/data");
    let entries = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "snapshot"))
        .collect();
    files.sort();
    files
}

#[test]
fn snapshots_of_every_version_of_go_etcd_give_what_go_etcd_gives() {
    let tools = Tools::build();
    let session = Session::new(&tools.go.etcdctl);
    let mut cluster = Cluster::start(&ServerOptions::one(&tools.go.etcd)).unwrap();
    let member = cluster.member_mut(0);
    let fixtures = fixtures();
    let versions =
        ["full-3.4.", "full-3.5.", "full-3.6.", "full-3.7.", "bumped-3.6.", "bumped-3.7."];
    for version in versions {
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(version))
        };
        let file = fixtures.iter().find(|path| is_it(path)).unwrap();
        compare_all(&tools, file);
        let mut shown_by = |programs: (&Path, &Path)| {
            restore(member, programs, file, &[]).unwrap();
            shown(member, &session)
        };
        let expected = shown_by(tools.gos());
        let own = if version.starts_with("full") { &FULL[..] } else { &BUMPED };
        check(&expected, own);
        assert_same(&shown_by(tools.ours()), &expected, version);
    }
}

/// What every one of them shows.
const COMMON: [&str; 5] = [
    "Authentication Status: true",
    "lease 7fffffffffffffff granted with TTL(7200s), remaining(), attached keys([])",
    "attached keys([leased/a leased/b])",
    "permission denied",
    "\"key/00\"",
];
const ALARMS: [&str; 4] =
    ["alarm:CORRUPT", "corrupt cluster", "alarm:NOSPACE", "database space exceeded"];
const FULL: [&str; 6] = [
    ALARMS[0],
    ALARMS[1],
    ALARMS[2],
    ALARMS[3],
    "required revision has been compacted",
    "\"Revision\" : 282",
];
const BUMPED: [&str; 2] = ["after the bump", "\"Revision\" : 1286"];

/// Two that show nothing are not to be taken for equal.
fn check(shown: &str, own: &[&str]) {
    for what in COMMON.iter().chain(own) {
        assert!(shown.contains(what), "no {what:?} in\n{shown}");
    }
}

/// The same content as in the files of Go etcd, in short.
const OURS: &[&str] = &[
    "put key/00 1",
    "put key/00 2",
    "put key/01 1",
    "put again before",
    "del again",
    "put again after",
    "compaction 6",
    "txn <<<\nput txn/a 1\nput txn/b 2\ndel key/01\n\n\n\n",
    "put leased/a x --lease=3e8",
    "put leased/b x --lease=bb8",
    "put leased/b x --lease=3e8",
    "put leased/c x --lease=bb8",
    "put leased/c x",
    "role add root",
    "role add reader",
    "role add writer",
    "role add nothing",
    "role grant-permission reader read key/ --prefix",
    "role grant-permission writer readwrite a --from-key",
    "user add root:r",
    "user add alice:a",
    "user add bob:b",
    "user add certificate --no-password",
    "user grant-role root root",
    "user grant-role alice writer",
    "user grant-role bob reader",
    "user grant-role certificate nothing",
    "auth enable",
];

#[test]
fn a_snapshot_of_ours_gives_go_etcd_what_the_member_had() {
    let tools = Tools::build();
    let mut session = Session::new(&tools.go.etcdctl);
    let options =
        ServerOptions { flags: vec!["--bcrypt-cost=4".into()], ..ServerOptions::one(&tools.etcd) };
    let mut cluster = Cluster::start(&options).unwrap();
    let member = cluster.member_mut(0);
    for (id, ttl) in [(0x3e8, 3600), (i64::MAX, 7200), (0xbb8, 9_000_000_000)] {
        let request = LeaseGrantRequest { id, ttl };
        let _: LeaseGrantResponse =
            call(member, "/etcdserverpb.Lease/LeaseGrant", &request).unwrap();
    }
    session.run(member, OURS);
    for kind in ["NOSPACE", "CORRUPT"] {
        let raise = json!({ "action": "ACTIVATE", "memberID": "7", "alarm": kind });
        ask(member, "maintenance/alarm", &raise);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ours.db");
    let line = ["--user=root:r", "snapshot", "save", file.to_str().unwrap()];
    tools.etcdctl(member, &line, "").unwrap();
    compare_all(&tools, &file);
    let expected = shown(member, &session);
    check(&expected, &ALARMS);
    for programs in [tools.gos(), tools.ours()] {
        restore(member, programs, &file, &[]).unwrap();
        assert_same(&shown(member, &session), &expected, &programs.1.display().to_string());
    }
}
