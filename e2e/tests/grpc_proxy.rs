//! `etcd grpc-proxy start` before a server: what clients get through it, and what it saves the members.
//! What etcd's proxy does too is done by both here, and compared.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;
mod proxy;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use client::{Client, Config, Credentials};
use e2e::processes::{Cluster, ServerOptions, http_get};
use proto::etcdserverpb::*;
use proxy::Proxy;

const LIMIT: Duration = Duration::from_secs(30);

async fn connect(endpoint: &str, credentials: Option<Credentials>) -> Client {
    let endpoints = vec![endpoint.to_owned()];
    let config = Config { endpoints, credentials, ..Config::default() };
    Client::connect(config).await.unwrap().until(tokio::time::Instant::now() + LIMIT)
}

fn put(key: &str, value: &str, lease: i64) -> PutRequest {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    PutRequest { key, value, lease, prev_kv: true, ..PutRequest::default() }
}

fn everything() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() }
}

async fn keys(client: &Client) -> Vec<String> {
    let found = client.range(everything()).await.unwrap();
    found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// What a client does, and what it sees; the same through every proxy and without one.
async fn seen_by_a_client(endpoint: &str) -> Vec<String> {
    let client = connect(endpoint, None).await;
    let mut seen = Vec::new();
    let mut watch = client.watch(WatchCreateRequest {
        key: "a".into(),
        range_end: "\0".into(),
        prev_kv: true,
        start_revision: client.range(everything()).await.unwrap().header.unwrap().revision + 1,
        ..WatchCreateRequest::default()
    });
    let lease = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id;
    client.put(put("a", "1", lease)).await.unwrap();
    let replaced = client.put(put("a", "2", lease)).await.unwrap();
    seen.push(format!("{:?}", replaced.prev_kv.map(|kv| (kv.key, kv.value))));
    client.put(put("b", "3", 0)).await.unwrap();
    let compare = Compare {
        key: "b".into(),
        target: compare::CompareTarget::Value as i32,
        target_union: Some(compare::TargetUnion::Value("3".into())),
        ..Compare::default()
    };
    let op = |request| RequestOp { request: Some(request) };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![
            op(request_op::Request::RequestPut(put("c", "4", 0))),
            op(request_op::Request::RequestRange(everything())),
        ],
        failure: Vec::new(),
    };
    let txn = client.txn(txn).await.unwrap();
    seen.push(format!("{} {}", txn.succeeded, txn.responses.len()));
    seen.push(format!("{:?}", keys(&client).await));
    let streamed = client.range_stream(everything()).await.unwrap();
    seen.push(format!("{:?}", streamed.kvs.iter().map(|kv| &kv.key).collect::<Vec<_>>()));
    let renewed = client.lease_keep_alive_once(lease).await.unwrap();
    seen.push(format!("ttl {}", renewed.ttl));
    let about = LeaseTimeToLiveRequest { id: lease, keys: true };
    seen.push(format!("{:?}", client.lease_time_to_live(about).await.unwrap().keys));
    let delete = DeleteRangeRequest { key: "b".into(), range_end: "\0".into(), prev_kv: true };
    let deleted = client.delete_range(delete).await.unwrap();
    seen.push(format!("{} {}", deleted.deleted, deleted.prev_kvs.len()));
    let refused = client.put(put("", "x", 0)).await.unwrap_err();
    seen.push(refused.to_string());
    while seen.iter().filter(|line| line.starts_with("event")).count() < 6 {
        let response = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap().unwrap();
        for event in response.events {
            let (kv, before) = (event.kv.unwrap(), event.prev_kv.map(|kv| kv.key));
            seen.push(format!("event {} {:?} {:?} {before:?}", event.r#type, kv.key, kv.value));
        }
    }
    client.lease_revoke(LeaseRevokeRequest { id: lease }).await.unwrap();
    seen.push(format!("{:?}", keys(&client).await));
    seen
}

async fn clients_see_the_same_through_a_proxy(server: &Path) {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let cluster = Cluster::start(&ServerOptions::one(server)).unwrap();
    let direct = cluster.members()[0].endpoint.clone();
    let expected = seen_by_a_client(&direct).await;

    let plain = Proxy::start(&ours, &cluster, &[]);
    assert_eq!(seen_by_a_client(&plain.address).await, expected);
    // Keys that tell who holds what would be seen by who reads everything.
    let leasing =
        Proxy::start(&ours, &cluster, &["--namespace=l/", "--experimental-leasing-prefix=!"]);
    assert_eq!(seen_by_a_client(&leasing.address).await, expected, "with leasing");

    let outside = connect(&direct, None).await;
    outside.put(put("of others", "x", 0)).await.unwrap();
    outside.put(put("zz", "x", 0)).await.unwrap();
    let spaced = Proxy::start(&ours, &cluster, &["--namespace=n/"]);
    assert_eq!(seen_by_a_client(&spaced.address).await, expected, "with a namespace");
    let inside = connect(&spaced.address, None).await;
    inside.put(put("mine", "x", 0)).await.unwrap();
    assert_eq!(keys(&inside).await, ["mine"]);
    assert_eq!(keys(&outside).await, ["n/mine", "of others", "zz"]);

    let members = inside.member_list(MemberListRequest::default()).await.unwrap().members;
    assert_eq!(members.len(), 1);
    assert_eq!(
        members[0].client_ur_ls,
        std::slice::from_ref(&spaced.address),
        "clients stay with the proxy"
    );
    let own = http_get(&spaced.address, "/proxy/metrics").unwrap();
    assert!(own.contains("grpc_server_started_total"), "{own}");
    let of_member = http_get(&spaced.address, "/metrics").unwrap();
    assert!(of_member.contains("etcd_server_has_leader 1"), "{of_member}");

    authenticate_through(&spaced, &outside).await;
}

/// The caller's token is passed on: the proxy lends nobody rights of its own.
async fn authenticate_through(proxy: &Proxy, outside: &Client) {
    let anonymous = connect(&proxy.address, None).await;
    let user = AuthUserAddRequest {
        name: "root".into(),
        password: "secret".into(),
        ..AuthUserAddRequest::default()
    };
    outside.user_add(user).await.unwrap();
    outside.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
    let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    outside.user_grant_role(grant).await.unwrap();
    outside.auth_enable(AuthEnableRequest {}).await.unwrap();
    let refused = anonymous.range(everything()).await.unwrap_err();
    assert_eq!(refused.to_string(), "etcdserver: user name is empty");
    let (username, password) = ("root".to_owned(), "secret".to_owned());
    let root = Some(Credentials::Password { username, password });
    let root = connect(&proxy.address, root).await;
    assert_eq!(keys(&root).await, ["mine"]);
}

#[tokio::test]
async fn a_proxy_before_our_server_changes_nothing() {
    clients_see_the_same_through_a_proxy(&e2e::peers::our_binary("etcd").unwrap()).await;
}

#[tokio::test]
async fn a_proxy_before_go_etcd_changes_nothing() {
    clients_see_the_same_through_a_proxy(&e2e::peers::etcd_binaries().unwrap().etcd).await;
}

#[test]
fn command_lines_get_the_answers_of_go_etcd() {
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let theirs = e2e::peers::etcd_binaries().unwrap().etcd;
    for line in [
        "",
        "--help",
        "start --help",
        "start --foo",
        "start --resolver-ttl=x",
        "start --self-signed-cert-validity=-1",
        "start --max-concurrent-streams=4294967296",
        "start --resolver-ttl=3",
        "start --resolver-prefix=p",
        "start --auto-tls --self-signed-cert-validity=0",
    ] {
        let run = |program: &Path| {
            let mut command = Command::new(program);
            command.arg("grpc-proxy").args(line.split_whitespace()).stdin(Stdio::null());
            let output = command.output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let told = errors.split('\n').filter(|line| !line.starts_with('{'));
            let told: Vec<String> = told.map(str::to_owned).collect();
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), told)
        };
        assert_eq!(run(&ours), run(&theirs), "etcd grpc-proxy {line}");
    }
}
