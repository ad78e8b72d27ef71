//! `etcdutl import` of directories in which the log of Go etcd holds changes of users and roles that its
//! backend lacks, and requests that they permitted and refused.
//!
//! Go etcd 3.7 commits its backend with each such change that it applies, so a mere crash leaves none. Two
//! ways lead there: a backend of an earlier moment beside the whole log, as if none of the log since had
//! been applied, which lets every request be answered when the log is written; and, with nothing put
//! in its place, a member that is killed while it waits for a commit. Both times [`Cold`] reads the
//! directory and says what only the log holds, and Go etcd itself is started on a copy of it: what it
//! shows is what ours must show.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
#[path = "differential_import/cold.rs"]
mod cold;
#[path = "differential_import/histories.rs"]
mod histories;
mod offline;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::Duration;

use calls::{call, put, until};
use cold::Cold;
use e2e::bench::swarm::call_once;
use e2e::processes::{Cluster, Member, ServerOptions};
use histories::{HISTORIES, History};
use offline::{Session, Tools, identity, seen};
use prost::Message;
use proto::authpb::{Permission, permission};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::Endpoint;

/// What this test does with them.
impl Tools {
    /// Makes the member's data directory from one that Go etcd has left.
    fn import(&self, from: &Path, member: &Member, more: &[&str]) -> Output {
        Command::new(&self.etcdutl)
            .arg("import")
            .arg(format!("--from={}", from.display()))
            .args(identity(member))
            .args(more)
            .output()
            .unwrap()
    }

    /// The member on what was imported; its data directory is made anew.
    fn serve_import(&self, from: &Path, member: &mut Member, more: &[&str]) {
        member.stop().unwrap();
        fs::remove_dir_all(&member.data_directory).unwrap();
        let output = self.import(from, member, more);
        assert!(output.status.success(), "{output:?}");
        member.set_program(&self.etcd);
        start(member);
    }

    /// Go etcd on a copy of the directory.
    fn serve_copy(&self, from: &Path, member: &mut Member) {
        copy(from, &member.data_directory);
        member.set_program(&self.go.etcd);
        start(member);
    }
}

fn start(member: &mut Member) {
    member.launch().unwrap();
    member.wait_until_healthy().unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Kills the member and puts what it leaves beside its data directory, which is then free.
fn kill(member: &mut Member) -> PathBuf {
    member.kill().unwrap();
    let old = member.data_directory.with_extension("go");
    fs::rename(&member.data_directory, &old).unwrap();
    old
}

/// Tokens that name the revision of users and roles under which they were given, so that a test can
/// come with an old one.
fn flags() -> Vec<String> {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/src/auth/jwt/testdata");
    let tokens = format!(
        "--auth-token=jwt,sign-method=RS256,priv-key={keys}/rsa.pem,pub-key={keys}/rsa_public.pem,ttl=1h"
    );
    vec![tokens, "--bcrypt-cost=4".to_owned()]
}

/// What users and roles do not belong to is the same without them; they themselves are gone.
fn check_dropped(member: &Member, session: &Session, history: &History, before: &str) {
    let data: Vec<String> =
        history.data.iter().map(|line| line.replace(history.root, "")).collect();
    let data: Vec<&str> = data.iter().map(String::as_str).collect();
    assert_eq!(seen(member, session, &data), before.replace(history.root, ""));
    let auth = seen(member, session, &["auth status", "user list", "role list"]);
    let none =
        "$ auth status\nAuthentication Status: false\nAuthRevision: 1\n$ user list\n$ role list\n";
    assert_eq!(auth, none);
}

fn replay(tools: &Tools, history: &History) {
    let options = ServerOptions { flags: flags(), ..ServerOptions::one(&tools.go.etcd) };
    let mut cluster = Cluster::start(&options).unwrap();
    let member = cluster.member_mut(0);
    let mut session = Session::new(&tools.go.etcdctl);
    session.run(member, history.backend);
    member.stop().unwrap();
    let backend = member.data_directory.with_extension("backend");
    fs::copy(member.data_directory.join("member/snap/db"), &backend).unwrap();
    start(member);
    session.run(member, history.log);
    let (all, data) = (seen(member, &session, history.seen), seen(member, &session, history.data));
    let old = kill(member);
    assert!(Cold::read(&old).unwrap().kinds().iter().all(|kind| !kind.starts_with("auth")));
    fs::copy(&backend, old.join("member/snap/db")).unwrap();
    let cold = Cold::read(&old).unwrap();
    (history.check)(&cold);

    tools.serve_copy(&old, member);
    assert_eq!(seen(member, &session, history.seen), all, "Go etcd, {}", history.name);
    assert_eq!(seen(member, &session, history.data), data, "Go etcd, {}", history.name);
    tools.serve_import(&old, member, &[]);
    assert_eq!(seen(member, &session, history.seen), all, "{}", history.name);
    assert_eq!(seen(member, &session, history.data), data, "{}", history.name);
    // Once more from its own log.
    member.restart().unwrap();
    assert_eq!(seen(member, &session, history.seen), all, "{} after a restart", history.name);
    tools.serve_import(&old, member, &["--drop-auth"]);
    check_dropped(member, &session, history, &data);

    member.stop().unwrap();
    fs::remove_dir_all(&member.data_directory).unwrap();
    cold::damage_last_change_of_auth(&old);
    for more in [&[][..], &["--drop-auth"]] {
        let refused = tools.import(&old, member, more);
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("is damaged at byte"), "{stderr}");
        assert!(!member.data_directory.exists());
    }
}

#[test]
fn users_and_roles_that_only_the_log_had_are_imported_with_what_they_permitted() {
    let tools = Tools::build();
    for history in &HISTORIES {
        replay(&tools, history);
    }
}

/// A copy of the backend that its client does not take: as long as it is open the backend cannot get a
/// larger memory map, and whoever needs one to commit waits.
struct UnreadSnapshot {
    _stream: tonic::Streaming<pb::SnapshotResponse>,
    _runtime: tokio::runtime::Runtime,
}

impl UnreadSnapshot {
    fn open(member: &Member) -> Self {
        // What HTTP/2 starts with; larger windows would let the server send all of it.
        const WINDOW: u32 = 65_535;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(member.client_url()).unwrap();
            let endpoint = endpoint.initial_stream_window_size(WINDOW);
            let channel = endpoint.initial_connection_window_size(WINDOW).connect().await.unwrap();
            let answer = MaintenanceClient::new(channel).snapshot(pb::SnapshotRequest {}).await;
            let mut stream = answer.unwrap().into_inner();
            let first = stream.message().await.unwrap().unwrap();
            assert!(first.remaining_bytes > 8 * u64::from(WINDOW), "{}", first.remaining_bytes);
            stream
        });
        Self { _stream: stream, _runtime: runtime }
    }
}

/// Requests that nobody answers, each sent when the log has the one before it.
struct Unanswered {
    address: SocketAddr,
    data_directory: PathBuf,
    sent: usize,
    callers: Vec<JoinHandle<()>>,
}

impl Unanswered {
    fn to(member: &Member) -> Self {
        Self {
            address: member.endpoint.parse().unwrap(),
            data_directory: member.data_directory.clone(),
            sent: Cold::read(&member.data_directory).unwrap().kinds().len(),
            callers: Vec::new(),
        }
    }

    fn send(&mut self, path: &'static str, request: &impl Message) {
        let (address, request) = (self.address, request.encode_to_vec());
        self.callers.push(std::thread::spawn(move || {
            let limit = Duration::from_secs(60);
            assert!(call_once(address, path, &request, limit).is_err(), "{path} was answered");
        }));
        self.sent += 1;
        // The log may be half written at the moment at which it is read.
        until("a request is in the log", || {
            Cold::read(&self.data_directory).is_ok_and(|cold| cold.kinds().len() >= self.sent)
        });
    }
}

const ROOT: &str = "--user=root:r";

/// The first request makes the backend wait for a larger memory map; the others queue behind it. Without
/// authentication nobody's name is needed to ask for all that.
fn send_to_waiting_member(waiting: &mut Unanswered) {
    let grant = |key: Vec<u8>, range_end: &'static str| pb::AuthRoleGrantPermissionRequest {
        name: "writer".into(),
        perm: Some(Permission {
            perm_type: permission::Type::Readwrite as i32,
            key: key.into(),
            range_end: range_end.into(),
        }),
    };
    let user = |name: &str, password: &str| pb::AuthUserAddRequest {
        name: name.into(),
        password: password.into(),
        ..<_>::default()
    };
    let role = |user: &str, role: &str| pb::AuthUserGrantRoleRequest {
        user: user.into(),
        role: role.into(),
    };
    let put = |key: &'static str| pb::PutRequest { key: key.into(), ..<_>::default() };
    waiting.send("/etcdserverpb.Auth/RoleGrantPermission", &grant(vec![b'z'; LARGE_KEY], ""));
    waiting.send("/etcdserverpb.Auth/UserAdd", &user("root", "r"));
    waiting.send("/etcdserverpb.Auth/UserGrantRole", &role("root", "root"));
    waiting.send("/etcdserverpb.Auth/UserAdd", &user("alice", "a"));
    waiting.send("/etcdserverpb.Auth/UserGrantRole", &role("alice", "writer"));
    waiting.send("/etcdserverpb.Auth/RoleGrantPermission", &grant(b"a".to_vec(), "b"));
    waiting.send("/etcdserverpb.KV/Put", &put("open"));
    waiting.send("/etcdserverpb.Auth/AuthEnable", &pb::AuthEnableRequest {});
    // From here on nobody may, which those who asked could not know.
    waiting.send("/etcdserverpb.KV/Put", &put("late"));
    waiting.send("/etcdserverpb.Auth/RoleAdd", &pb::AuthRoleAddRequest { name: "late".into() });
    let lease = pb::LeaseGrantRequest { id: 77, ttl: 3600 };
    waiting.send("/etcdserverpb.Lease/LeaseGrant", &lease);
}

/// Together with the keys more than [`MAPPED_BYTES`].
const LARGE_KEY: usize = 3_500_000;
const KEYS: usize = 10;
const KEY_BYTES: usize = 100_000;
/// Go etcd maps a tenth more than its quota at first, rounded up to a power of two.
const MAPPED_BYTES: usize = 4 << 20;
const QUOTA_BYTES: usize = 3_700_000;

#[test]
fn changes_that_go_etcd_was_killed_before_applying_are_imported() {
    let tools = Tools::build();
    const { assert!(KEYS * KEY_BYTES + LARGE_KEY > MAPPED_BYTES) };
    const { assert!(KEYS * KEY_BYTES * 2 < QUOTA_BYTES) };
    let flags = [
        format!("--quota-backend-bytes={QUOTA_BYTES}"),
        "--max-request-bytes=8000000".to_owned(),
        "--bcrypt-cost=4".to_owned(),
    ];
    let options = ServerOptions { flags: flags.to_vec(), ..ServerOptions::one(&tools.go.etcd) };
    let mut cluster = Cluster::start(&options).unwrap();
    let member = cluster.member_mut(0);
    let role = pb::AuthRoleAddRequest { name: "writer".into() };
    for number in 0..KEYS {
        put(member, &format!("base{number}"), &vec![b'x'; KEY_BYTES]).unwrap();
    }
    let _: pb::AuthRoleAddResponse = call(member, "/etcdserverpb.Auth/RoleAdd", &role).unwrap();
    let unread = UnreadSnapshot::open(member);
    let mut waiting = Unanswered::to(member);
    send_to_waiting_member(&mut waiting);
    let old = kill(member);
    drop(unread);
    waiting.callers.into_iter().for_each(|caller| caller.join().unwrap());
    let cold = Cold::read(&old).unwrap();
    assert!(!cold.auth.enabled && cold.auth.users.is_empty(), "{:?}", cold.auth.users);
    assert!(cold.auth.roles.iter().all(|role| role.key_permission.is_empty()));
    assert_eq!(cold.kinds().iter().filter(|kind| kind.starts_with("auth")).count(), 8);

    // The quota was there to make the map small; nothing may be refused for it now.
    member.clear_flag("--quota-backend-bytes");
    let session = Session::new(&tools.go.etcdctl);
    let data = ["get a --from-key -w fields", "endpoint hashkv -w json", "lease list"];
    let as_root: Vec<String> = data.iter().map(|line| format!("{ROOT} {line}")).collect();
    let as_root: Vec<&str> = as_root.iter().map(String::as_str).collect();
    let auth = [
        "--user=root:r auth status",
        "--user=root:r user list",
        "--user=root:r user get alice",
        "--user=root:r role list",
        "--user=root:r role get writer",
        "--user=alice:a get a --prefix",
        "--user=alice:a get late",
        "get open",
    ];
    tools.serve_copy(&old, member);
    let (go_auth, go_data) = (seen(member, &session, &auth), seen(member, &session, &as_root));
    assert!(go_data.contains("\"open\"") && !go_data.contains("\"late\""));
    tools.serve_import(&old, member, &[]);
    assert_eq!(seen(member, &session, &auth), go_auth);
    assert_eq!(seen(member, &session, &as_root), go_data);
    tools.serve_import(&old, member, &["--drop-auth"]);
    assert_eq!(seen(member, &session, &data), go_data.replace(&format!("{ROOT} "), ""));
    assert!(seen(member, &session, &["auth status", "user list"]).contains("Status: false"));
}
