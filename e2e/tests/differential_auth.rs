//! Authentication and authorization: ours beside Go etcd's.
//!
//! The matrix asks every method in the name of everybody; `proto::rpc::Rpc` has a value for every
//! method, so a new method without a row does not compile. Users and roles then travel between the
//! two servers in snapshots, and tokens in both directions.

#[path = "differential_auth/calls.rs"]
mod calls;
#[path = "differential_auth/certificates.rs"]
mod certificates;
#[path = "differential_auth/codec.rs"]
mod codec;
#[path = "differential_auth/matrix.rs"]
mod matrix;

use std::path::Path;
use std::process::Command;

use calls::{Answer, Server};
use e2e::peers;
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn our_etcd() -> std::path::PathBuf {
    peers::our_binary("etcd").expect("build our etcd")
}

fn start(program: &Path, flags: &[String]) -> Cluster {
    let options = ServerOptions { flags: flags.to_vec(), ..ServerOptions::one(program) };
    Cluster::start(&options).expect("start a server")
}

#[test]
fn cve_2026_33413_every_method_asks_who_is_calling() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let mut outcomes = Vec::new();
    for program in [our_etcd(), go.etcd] {
        let cluster = start(&program, &["--bcrypt-cost=4".to_owned()]);
        outcomes.push(runtime().block_on(matrix::run(&cluster)));
    }
    let [ours, go] = &outcomes[..] else { unreachable!("two servers ran") };
    let mut wrong = String::new();
    for (cell, go) in ours.iter().zip(go) {
        assert_eq!(cell.name, go.name);
        if !cell.is_as_wanted() {
            wrong.push_str(&format!("{}: {:?}\n", cell.name, cell.answer));
        }
        if !go.is_as_wanted() {
            wrong.push_str(&format!("{}: Go etcd: {:?}\n", go.name, go.answer));
        }
        if cell.answer.refusal() != go.answer.refusal() {
            wrong
                .push_str(&format!("{}: {:?}, Go etcd: {:?}\n", cell.name, cell.answer, go.answer));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    println!("{} cells, equal on both servers", ours.len());
}

/// Users, roles and a key, with auth on.
async fn fill(server: &Server) {
    matrix::add_users(server).await;
    server
        .done(
            Rpc::KVPut,
            &pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() },
        )
        .await;
    server.done(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {}).await;
}

/// What a restored server says of them.
async fn check_filled(server: &Server) {
    let root = server.log_in("root").await;
    let exact = server.log_in("exact").await;
    let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let answer: pb::RangeResponse = server.ask(Rpc::KVRange, &get, Some(&exact)).await;
    assert_eq!(answer.kvs[0].value, "v");
    let users: pb::AuthUserListResponse =
        server.ask(Rpc::AuthUserList, &pb::AuthUserListRequest {}, Some(&root)).await;
    assert_eq!(users.users, ["exact", "from", "none", "prefix", "root", "victim"]);
    let role = pb::AuthRoleGetRequest { role: "prefix".to_owned() };
    let role: pb::AuthRoleGetResponse = server.ask(Rpc::AuthRoleGet, &role, Some(&root)).await;
    assert_eq!((&role.perm[0].key[..], &role.perm[0].range_end[..]), (&b"k"[..], &b"l"[..]));
    let refused = server.call(Rpc::KVRange, &get, None).await;
    assert_eq!(
        refused.refusal().map(|(_, text)| text),
        Some("etcdserver: user name is empty".into())
    );
}

#[test]
fn users_travel_in_snapshots_between_our_etcd_and_gos() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let our_etcdutl = peers::our_binary("etcdutl").expect("build our etcdutl");
    let directions =
        [(our_etcd(), &go.etcdutl, go.etcd.clone()), (go.etcd.clone(), &our_etcdutl, our_etcd())];
    for (from, etcdutl, to) in directions {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("snapshot.db");
        let first = start(&from, &["--bcrypt-cost=4".to_owned()]);
        runtime().block_on(async {
            let server = Server::connect(&first).await;
            fill(&server).await;
            let root = server.log_in("root").await;
            server.save_snapshot(&root, &file).await;
        });
        drop(first);
        let options = ServerOptions::one(&to);
        let restore = |member: &Member| -> anyhow::Result<()> {
            let status = Command::new(etcdutl)
                .args(["snapshot", "restore", "--initial-cluster-token=e2e"])
                .arg(&file)
                .arg("--data-dir")
                .arg(&member.data_directory)
                .arg(format!("--name={}", member.name))
                .arg(format!("--initial-cluster={}={}", member.name, member.peer_url))
                .arg(format!("--initial-advertise-peer-urls={}", member.peer_url))
                .output()
                .expect("run etcdutl");
            anyhow::ensure!(status.status.success(), "{status:?}");
            Ok(())
        };
        let second = Cluster::start_prepared(&options, &restore).expect("start from the snapshot");
        runtime().block_on(async { check_filled(&Server::connect(&second).await).await });
    }
}

#[test]
fn json_web_tokens_of_either_server_are_believed_by_the_other() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/src/auth/jwt/testdata");
    for (method, private, public) in [
        ("RS256", "rsa", "rsa_public"),
        ("PS512", "rsa_pkcs1", "rsa_public"),
        ("ES256", "p256_sec1", "p256_public"),
        ("ES384", "p384", "p384_public"),
        ("ES512", "p521_sec1", "p521_public"),
        ("EdDSA", "ed25519", "ed25519_public"),
        ("HS384", "p256", "p256_public"),
    ] {
        let flags = [
            format!(
                "--auth-token=jwt,sign-method={method},priv-key={keys}/{private}.pem,\
                 pub-key={keys}/{public}.pem,ttl=10m"
            ),
            "--bcrypt-cost=4".to_owned(),
        ];
        let clusters = [start(&our_etcd(), &flags), start(&go.etcd, &flags)];
        runtime().block_on(async {
            let servers =
                [Server::connect(&clusters[0]).await, Server::connect(&clusters[1]).await];
            for server in &servers {
                fill(server).await;
            }
            for (giver, taker) in [(0, 1), (1, 0), (0, 0)] {
                let token = servers[giver].log_in("exact").await;
                let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
                let answer: pb::RangeResponse =
                    servers[taker].ask(Rpc::KVRange, &get, Some(&token)).await;
                assert_eq!(answer.kvs[0].value, "v", "{method}");
            }
            // A change of users makes the token old, on both.
            for server in &servers {
                let token = server.log_in("exact").await;
                let root = server.log_in("root").await;
                let add = pb::AuthRoleAddRequest { name: "more".to_owned() };
                let _: pb::AuthRoleAddResponse =
                    server.ask(Rpc::AuthRoleAdd, &add, Some(&root)).await;
                let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
                let old = server.call(Rpc::KVRange, &get, Some(&token)).await;
                let text = "etcdserver: revision of auth store is old".to_owned();
                assert_eq!(old.refusal().map(|(_, text)| text), Some(text), "{method}");
            }
        });
    }
}

/// What a program prints and how it ends.
type Printed = (Option<i32>, String, String);

/// Both `etcdctl`s show a token that is believed (`--auth-jwt-token`), and say the same when it is not, or not
/// for that, to both servers.
#[test]
fn etcdctl_shows_json_web_tokens_to_either_server() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let etcdctls = [go.etcdctl.clone(), peers::our_binary("etcdctl").expect("build our etcdctl")];
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/src/auth/jwt/testdata");
    let flags = [
        format!("--auth-token=jwt,sign-method=ES256,priv-key={keys}/p256_sec1.pem,ttl=10m"),
        "--bcrypt-cost=4".to_owned(),
    ];
    let ours = our_etcd();
    let clusters = [start(&go.etcd, &flags), start(&ours, &flags)];
    let tokens = clusters.each_ref().map(|cluster| {
        runtime().block_on(async {
            let server = Server::connect(cluster).await;
            fill(&server).await;
            (server.log_in("exact").await, server.log_in("root").await)
        })
    });
    let mut compared = 0;
    for (server, cluster) in clusters.iter().enumerate() {
        for (giver, (exact, root)) in tokens.iter().enumerate() {
            // Another signature: of its last letter not every bit counts.
            let (before, signature) = exact.split_at(exact.rfind('.').expect("a signature") + 1);
            let other = if signature.starts_with('A') { "B" } else { "A" };
            let forged = format!("{before}{other}{}", &signature[1..]);
            for (token, arguments, code, text) in [
                (exact, &["get", "k"][..], 0, "k\nv\n"),
                (exact, &["put", "k", "v"], 0, "OK\n"),
                (exact, &["get", "secret"], 1, "permission denied"),
                (exact, &["user", "list"], 1, "permission denied"),
                (root, &["user", "list"], 0, "root\n"),
                (root, &["get", "--prefix", "", "--count-only", "--write-out=fields"], 0, ""),
                (&forged, &["get", "k"], 1, "invalid auth token"),
            ] {
                let printed = etcdctls.each_ref().map(|program| -> Printed {
                    let output = Command::new(program)
                        .arg(format!("--endpoints={}", cluster.members()[0].endpoint))
                        .arg(format!("--auth-jwt-token={token}"))
                        .args(arguments)
                        .output()
                        .expect("run etcdctl");
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    // Go's log has times in it, and is no part of what is said.
                    let errors = text(&output.stderr);
                    let errors = errors.lines().filter(|line| !line.starts_with('{')).collect();
                    (output.status.code(), text(&output.stdout), errors)
                });
                let case = format!("server {server}, token of {giver}, {arguments:?}");
                assert_eq!(printed[0], printed[1], "{case}");
                let (ended, out, errors) = &printed[0];
                assert_eq!(*ended, Some(code), "{case}: {out}{errors}");
                assert!(out.contains(text) || errors.contains(text), "{case}: {out}{errors}");
                compared += 1;
            }
        }
    }
    println!("{compared} commands compared, {compared} equal");
}

/// The keys of a lease are shown only to who may read all of them.
#[test]
fn cve_2023_32082_a_lease_does_not_tell_the_keys_of_others() {
    let cluster = start(&our_etcd(), &["--bcrypt-cost=4".to_owned()]);
    runtime().block_on(async {
        let server = Server::connect(&cluster).await;
        server.done(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id: 7, ttl: 1000 }).await;
        for key in ["k", "secret"] {
            let put = pb::PutRequest { key: key.into(), lease: 7, ..Default::default() };
            server.done(Rpc::KVPut, &put).await;
        }
        fill(&server).await;
        // `fill` has put `k` without the lease; only `secret` hangs on it.
        let ask = |keys| pb::LeaseTimeToLiveRequest { id: 7, keys };
        let (exact, root) = (server.log_in("exact").await, server.log_in("root").await);
        let refused = server.call(Rpc::LeaseLeaseTimeToLive, &ask(true), Some(&exact)).await;
        let text = "etcdserver: permission denied".to_owned();
        assert_eq!(refused.refusal().map(|(_, text)| text), Some(text));
        let without: pb::LeaseTimeToLiveResponse =
            server.ask(Rpc::LeaseLeaseTimeToLive, &ask(false), Some(&exact)).await;
        assert!(without.keys.is_empty() && without.granted_ttl == 1000);
        let all: pb::LeaseTimeToLiveResponse =
            server.ask(Rpc::LeaseLeaseTimeToLive, &ask(true), Some(&root)).await;
        assert_eq!(all.keys, ["secret"]);
    });
}

/// Also PR#13946: a server that starts with auth on knows at once what its users may do.
#[test]
fn tokens_end_with_the_process_and_with_their_time() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    for program in [our_etcd(), go.etcd] {
        let flags = ["--bcrypt-cost=4".to_owned(), "--auth-token-ttl=2".to_owned()];
        let mut cluster = start(&program, &flags);
        let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let invalid = Some("etcdserver: invalid auth token".to_owned());
        let token = runtime().block_on(async {
            let server = Server::connect(&cluster).await;
            fill(&server).await;
            let token = server.log_in("exact").await;
            let _: pb::RangeResponse = server.ask(Rpc::KVRange, &get, Some(&token)).await;
            // Each use makes it live on, so it is let alone for longer than it lives.
            tokio::time::sleep(std::time::Duration::from_secs(4)).await;
            let over = server.call(Rpc::KVRange, &get, Some(&token)).await;
            assert_eq!(over.refusal().map(|(_, text)| text), invalid, "{}", program.display());
            server.log_in("exact").await
        });
        cluster.member_mut(0).restart().expect("start it again");
        runtime().block_on(async {
            let server = Server::connect(&cluster).await;
            let gone = server.call(Rpc::KVRange, &get, Some(&token)).await;
            assert_eq!(gone.refusal().map(|(_, text)| text), invalid, "{}", program.display());
            check_filled(&server).await;
        });
    }
}

/// Trail of Bits 2020 no. 12 and CVE-2021-28235: no password in any file, log or metric.
#[test]
fn cve_2021_28235_no_password_is_found_in_files_logs_or_metrics() {
    let secret = "correct-horse-battery";
    let cluster =
        start(&our_etcd(), &["--bcrypt-cost=4".to_owned(), "--log-level=debug".to_owned()]);
    let text = runtime().block_on(async {
        let server = Server::connect(&cluster).await;
        let add = pb::AuthUserAddRequest {
            name: "u".to_owned(),
            password: secret.to_owned(),
            ..Default::default()
        };
        server.done(Rpc::AuthUserAdd, &add).await;
        let change = pb::AuthUserChangePasswordRequest {
            name: "u".to_owned(),
            password: secret.to_owned(),
            ..Default::default()
        };
        server.done(Rpc::AuthUserChangePassword, &change).await;
        fill(&server).await;
        let right = pb::AuthenticateRequest { name: "u".to_owned(), password: secret.to_owned() };
        let _: pb::AuthenticateResponse = server.ask(Rpc::AuthAuthenticate, &right, None).await;
        let wrong = pb::AuthenticateRequest { name: "x".to_owned(), password: secret.to_owned() };
        let refused = server.call(Rpc::AuthAuthenticate, &wrong, None).await;
        assert!(matches!(refused, Answer::Error(..)), "{refused:?}");
        cluster.members()[0].metrics()
    });
    assert!(!text.expect("read the metrics").contains(secret));
    assert!(!cluster.members()[0].log().contains(secret));
    let mut files = vec![cluster.members()[0].data_directory.clone()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("list a directory");
            files.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        seen += 1;
        let bytes = std::fs::read(&path).expect("read a file");
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{}", path.display());
    }
    assert!(seen > 1, "the log and the image were looked at");
}
