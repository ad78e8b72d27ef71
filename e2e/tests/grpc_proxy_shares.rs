//! What `etcd grpc-proxy` saves the members, and that no client pays for it: remembered ranges, shared
//! watches, shared renewals, proxies that know each other, members that come and go.
//!
//! What etcd's proxy does too is done by both, and compared.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;
mod proxy;

use std::collections::BTreeMap;
use std::time::Duration;

use calls::{metric, until, until_async};
use client::{Client, Config, Credentials, WatchStream};
use e2e::processes::{Cluster, Member, ServerOptions, http_get};
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::*;
use proto::mvccpb::Event;
use proto::mvccpb::event::EventType;
use proxy::{Proxy, both, connect, put};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);

fn serializable(key: &str, revision: i64) -> RangeRequest {
    let key = key.to_owned().into();
    RangeRequest { key, revision, serializable: true, ..RangeRequest::default() }
}

/// What a read gives: the values, or the error.
async fn read(client: &Client, range: RangeRequest) -> String {
    match client.range(range).await {
        Ok(found) => format!("{:?}", found.kvs.iter().map(|kv| &kv.value).collect::<Vec<_>>()),
        Err(error) => error.to_string(),
    }
}

/// Reads and writes through a proxy and past it, and what the proxy remembers meanwhile.
async fn reads_through(proxy: &Proxy, direct: &Client) -> Vec<String> {
    let through = connect(&proxy.address).await;
    let mut seen = Vec::new();
    let mut note = |what: &str, answer: String| {
        let [hits, misses, keys] =
            ["hits", "misses", "keys"].map(|it| proxy.metric(&format!("cache_{it}")));
        seen.push(format!("{what}: {answer}; {hits} hits, {misses} misses, {keys} keys"));
    };
    let first = direct.put(put("a", "1")).await.unwrap().header.unwrap().revision;
    note("first", read(&through, serializable("a", 0)).await);
    note("again", read(&through, serializable("a", 0)).await);
    direct.put(put("a", "2")).await.unwrap();
    note("written past the proxy", read(&through, serializable("a", 0)).await);
    let linearizable = RangeRequest { serializable: false, ..serializable("a", 0) };
    note("linearizable", read(&through, linearizable).await);
    note("remembered from that", read(&through, serializable("a", 0)).await);
    through.put(put("a", "3")).await.unwrap();
    note("written through the proxy", read(&through, serializable("a", 0)).await);
    let whole = RangeRequest { range_end: "b".into(), ..serializable("a", 0) };
    note("a range", read(&through, whole.clone()).await);
    let request = Some(request_op::Request::RequestPut(put("aa", "4")));
    let txn = TxnRequest { success: vec![RequestOp { request }], ..TxnRequest::default() };
    through.txn(txn).await.unwrap();
    note("a key of it in a transaction", read(&through, whole.clone()).await);
    let delete = DeleteRangeRequest { key: "aa".into(), ..DeleteRangeRequest::default() };
    through.delete_range(delete).await.unwrap();
    note("a key of it deleted", read(&through, whole).await);
    note("an old revision", read(&through, serializable("a", first)).await);
    direct
        .delete_range(DeleteRangeRequest { key: "a".into(), ..Default::default() })
        .await
        .unwrap();
    note("the old revision again", read(&through, serializable("a", first)).await);
    let compaction = CompactionRequest { revision: first + 1, physical: true };
    through.compact(compaction).await.unwrap();
    note("compacted", read(&through, serializable("a", first)).await);
    seen
}

#[tokio::test]
async fn ranges_are_remembered_and_forgotten_as_by_the_proxy_of_go_etcd() {
    let [ours, theirs] = both();
    let mut answers = Vec::new();
    for program in [&ours, &theirs] {
        let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
        let direct = connect(&cluster.members()[0].endpoint).await;
        let proxy = Proxy::start(program, &cluster, &["--advertise-client-url="]);
        answers.push(reads_through(&proxy, &direct).await);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0][1].contains("1 hits"), "{:?}", answers[0]);
}

/// What is remembered for one user is not shown to another.
#[tokio::test]
async fn what_somebody_may_not_read_or_watch_is_not_shown_by_the_proxy_either() {
    let [ours, _] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let endpoint = cluster.members()[0].endpoint.clone();
    let proxy = Proxy::start(&ours, &cluster, &[]);
    let direct = connect(&endpoint).await;
    direct.put(put("secret", "x")).await.unwrap();
    for name in ["root", "nobody"] {
        let (name, password) = (name.to_owned(), "p".to_owned());
        direct.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await.unwrap();
    }
    direct.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
    let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    direct.user_grant_role(grant).await.unwrap();
    direct.auth_enable(AuthEnableRequest {}).await.unwrap();
    let user = async |name: &str| {
        let (username, password) = (name.to_owned(), "p".to_owned());
        let credentials = Some(Credentials::Password { username, password });
        let endpoints = vec![proxy.address.clone()];
        Client::connect(Config { endpoints, credentials, ..Config::default() }).await.unwrap()
    };
    let (root, nobody) = (user("root").await, user("nobody").await);
    let anonymous = connect(&proxy.address).await;
    assert!(read(&root, serializable("secret", 0)).await.contains('x'));
    assert!(read(&root, serializable("secret", 0)).await.contains('x'));
    assert_eq!(read(&nobody, serializable("secret", 0)).await, "etcdserver: permission denied");
    assert_eq!(read(&anonymous, serializable("secret", 0)).await, "etcdserver: user name is empty");

    let create = WatchCreateRequest { key: "secret".into(), ..WatchCreateRequest::default() };
    let mut allowed = root.watch(WatchCreateRequest { start_revision: 1, ..create.clone() });
    let first = tokio::time::timeout(LIMIT, allowed.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.events.len(), 1);
    for (client, reason) in [(&nobody, "permission denied"), (&anonymous, "user name is empty")] {
        let mut refused = client.watch(create.clone());
        let refused = tokio::time::timeout(LIMIT, refused.next()).await.unwrap().unwrap().unwrap();
        assert!(refused.canceled && refused.cancel_reason.contains(reason), "{refused:?}");
    }
}

/// The watchers and the open streams of a kind that a member counts.
fn watchers(member: &Member) -> f64 {
    metric(&calls::metrics(member), "etcd_debugging_mvcc_watcher_total", "")
}

#[tokio::test]
async fn clients_that_watch_the_same_share_one_watch_of_the_members() {
    const CLIENTS: usize = 20;
    let [ours, _] = both();
    let mut cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let proxy = Proxy::start(&ours, &cluster, &[]);
    let client = connect(&proxy.address).await;
    until("the proxy's own watch ends", || watchers(&cluster.members()[0]) == 0.0);
    client.put(put("k", "old")).await.unwrap();
    let mut streams = Vec::new();
    for number in 0..CLIENTS {
        // Half of them begin with what was.
        let start_revision = if number % 2 == 0 { 1 } else { 0 };
        let mut stream = client.watch(WatchCreateRequest {
            key: "k".into(),
            start_revision,
            prev_kv: number % 3 == 0,
            ..WatchCreateRequest::default()
        });
        stream.progress_requester().await.unwrap();
        streams.push((number, stream));
    }
    let shared = (CLIENTS - 1) as f64;
    until("all share one watch", || proxy.metric("watchers_coalescing") == shared);
    until("members see one", || watchers(&cluster.members()[0]) == 1.0);
    client.put(put("k", "new")).await.unwrap();
    for (number, stream) in &mut streams {
        let events = next_events(stream, if *number % 2 == 0 { 2 } else { 1 }).await;
        let last = events.last().unwrap();
        assert_eq!(&last.kv.as_ref().unwrap().value[..], b"new");
        assert_eq!(last.prev_kv.is_some(), *number % 3 == 0);
    }
    assert!(proxy.metric("events_coalescing") >= shared);

    // A client that asks how far it is gets an answer, and nobody notices when the member is another one.
    let progress = streams[0].1.progress_requester().await.unwrap();
    progress.request();
    let answer = tokio::time::timeout(LIMIT, streams[0].1.next()).await.unwrap().unwrap().unwrap();
    assert!(answer.events.is_empty() && answer.header.unwrap().revision >= 3, "{answer:?}");
    cluster.member_mut(0).kill().unwrap();
    cluster.member_mut(0).restart().unwrap();
    client.range(serializable("k", 1 << 40)).await.unwrap_err();
    client.put(put("k", "after")).await.unwrap();
    for (_, stream) in &mut streams {
        let events = next_events(stream, 1).await;
        assert_eq!(&events[0].kv.as_ref().unwrap().value[..], b"after");
    }
    drop(streams);
    // The streams are ended by this thread.
    until_async("nobody watches any more", async || watchers(&cluster.members()[0]) == 0.0).await;
}

async fn next_events(stream: &mut WatchStream, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let next = tokio::time::timeout(LIMIT, stream.next()).await;
        events.extend(next.expect("an event is missing").unwrap().unwrap().events);
    }
    events
}

/// A watch that is under way, and what it asked for.
struct Watcher {
    create: WatchCreateRequest,
    task: JoinHandle<Vec<Event>>,
}

/// How many watchers come while the writers write; the slower these are, the more there would be.
const WATCHERS_MAX: usize = 40;

/// The last write of all has this key; every watch covers it.
const END: &str = "m/end";

fn watch(client: &Client, create: WatchCreateRequest) -> Watcher {
    let mut stream = client.watch(create.clone());
    let task = tokio::spawn(async move {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let next = tokio::time::timeout(2 * LIMIT, stream.next()).await;
            let response = next.expect("the watch hangs").expect("the watch goes on").unwrap();
            assert!(!response.canceled, "{response:?}");
            events.extend(response.events);
            let is_end = |event: &Event| event.kv.as_ref().is_some_and(|kv| kv.key == END);
            if events.last().is_some_and(is_end) {
                return events;
            }
        }
    });
    Watcher { create, task }
}

/// What a watch has to show of the whole history.
fn expected(history: &[Event], create: &WatchCreateRequest, first: i64) -> Vec<Event> {
    let is_filtered = |kind: EventType| match kind {
        EventType::Put => {
            create.filters.contains(&(watch_create_request::FilterType::Noput as i32))
        }
        EventType::Delete => {
            create.filters.contains(&(watch_create_request::FilterType::Nodelete as i32))
        }
    };
    let covers = |key: &[u8]| key >= &create.key[..] && key < &create.range_end[..];
    history
        .iter()
        .filter(|event| {
            event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= first && covers(&kv.key))
        })
        .filter(|event| !is_filtered(event.r#type()))
        .map(|event| Event {
            prev_kv: event.prev_kv.clone().filter(|_| create.prev_kv),
            ..event.clone()
        })
        .collect()
}

async fn write(client: Client, writer: usize) {
    for number in 0..120 {
        let key = format!("m/{}", (writer + number) % 5);
        let request = match number % 4 {
            0 => {
                let delete = DeleteRangeRequest { key: key.into(), ..Default::default() };
                request_op::Request::RequestDeleteRange(delete)
            }
            _ => request_op::Request::RequestPut(put(&key, &format!("{writer} {number}"))),
        };
        let other = put(&format!("m/x{writer}"), &number.to_string());
        let ops = [request, request_op::Request::RequestPut(other)];
        let success = ops.map(|request| RequestOp { request: Some(request) }).to_vec();
        client.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
}

/// Writers, and watchers that come at any time and begin anywhere, through a proxy whose member is killed
/// in between; each has to see exactly its part of the history.
async fn nothing_is_missed_or_doubled(server: &std::path::Path) {
    let [ours, _] = both();
    let mut cluster = Cluster::start(&ServerOptions::one(server)).unwrap();
    let endpoint = cluster.members()[0].endpoint.clone();
    let proxy = Proxy::start(&ours, &cluster, &[]);
    let (direct, through) = (connect(&endpoint).await, connect(&proxy.address).await);
    let range = |key: &str, end: &str| WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let whole = WatchCreateRequest { start_revision: 1, ..range("m/", "m0") };
    let (mut watchers, mut number) = (Vec::new(), 0);
    for round in 0..3_i32 {
        let clients = [through.clone(), through.clone(), direct.clone()];
        let writers = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| tokio::spawn(write(client, number)));
        let writers: Vec<_> = writers.collect();
        let most = watchers.len() + WATCHERS_MAX;
        while writers.iter().any(|writer| !writer.is_finished()) && watchers.len() < most {
            let revision = direct.put(put("m/mark", "")).await.unwrap().header.unwrap().revision;
            number += 1;
            let back = [0, 1, 7, 50, i64::from(u32::MAX)][number % 5];
            let base = if number % 3 == 0 { range("m/", "m0") } else { range("m/3", "m/y") };
            // The end has to be covered by all of them.
            let base = if number % 3 == 0 {
                base
            } else {
                WatchCreateRequest { key: "m/1".into(), ..base }
            };
            watchers.push(watch(
                &through,
                WatchCreateRequest {
                    start_revision: (revision + 1 - back).max(1),
                    prev_kv: number % 2 == 0,
                    filters: if number % 7 == 0 { vec![1] } else { Vec::new() },
                    ..base
                },
            ));
            if number % 4 == 0 {
                // One that does not stay.
                let gone: Watcher = watchers.pop().unwrap();
                gone.task.abort();
            }
            tokio::time::timeout(Duration::from_millis(5), std::future::pending::<()>())
                .await
                .unwrap_err();
        }
        for writer in writers {
            writer.await.unwrap();
        }
        if round == 1 {
            cluster.member_mut(0).kill().unwrap();
            cluster.member_mut(0).restart().unwrap();
            // Connections to the one that was killed are noticed by reads, which are made again.
            for client in [&direct, &through] {
                client.range(serializable("m/1", 1 << 40)).await.unwrap_err();
            }
        }
    }
    let history = watch(&direct, whole);
    direct.put(put(END, "")).await.unwrap();
    let history = history.task.await.unwrap();
    assert!(watchers.len() > 10, "{}", watchers.len());
    for watcher in watchers {
        shows_its_part(watcher, &history).await;
    }
}

async fn shows_its_part(watcher: Watcher, history: &[Event]) {
    let Watcher { create, task } = watcher;
    let events = task.await.unwrap();
    let revisions = |events: &[Event]| -> Vec<i64> {
        events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
    };
    let expected = expected(history, &create, create.start_revision);
    assert_eq!(revisions(&events), revisions(&expected), "{create:?}");
    assert_eq!(events, expected, "{create:?}");
}

#[tokio::test]
async fn watchers_miss_nothing_and_see_nothing_twice_before_our_server() {
    nothing_is_missed_or_doubled(&both()[0]).await;
}

#[tokio::test]
async fn watchers_miss_nothing_and_see_nothing_twice_before_go_etcd() {
    nothing_is_missed_or_doubled(&both()[1]).await;
}

#[tokio::test]
async fn renewals_of_all_clients_go_on_one_stream() {
    let [ours, theirs] = both();
    for program in [&ours, &theirs] {
        let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
        let proxy = Proxy::start(program, &cluster, &[]);
        let granting = connect(&proxy.address).await;
        let mut kept = Vec::new();
        for number in 0..6 {
            // etcd's proxy answers the second client of a lease only when it renews it the next time.
            let lease = match number {
                _ if number % 2 == 0 || *program == theirs => {
                    granting.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id
                }
                _ => kept.last().map(|(id, _)| *id).unwrap(),
            };
            let client = connect(&proxy.address).await;
            let mut renewals = client.lease_keep_alive(lease);
            let renewed = tokio::time::timeout(LIMIT, renewals.next()).await.unwrap().unwrap();
            assert_eq!((renewed.id, renewed.ttl), (lease, 60));
            kept.push((lease, renewals));
        }
        let metrics = calls::metrics(&cluster.members()[0]);
        let streams = metric(&metrics, "grpc_server_started_total", "LeaseKeepAlive\"");
        assert_eq!(streams, 1.0, "{}", program.display());
        let unknown = granting.lease_keep_alive_once(12345).await.unwrap_err();
        assert_eq!(unknown.to_string(), "etcdserver: requested lease not found");
        if *program == ours {
            // By etcd's proxy such a client is not answered.
            for endpoint in [&cluster.members()[0].endpoint, &proxy.address] {
                assert_eq!(renewed_at_once(endpoint, kept[0].0).await, [(kept[0].0, 60)]);
            }
        }
    }
}

/// The answers to a client that asks for one renewal and closes its side before it is answered. Nobody
/// else asks for a leader, so that the stream to the members is its own.
async fn renewed_at_once(endpoint: &str, id: i64) -> Vec<(i64, i64)> {
    let mut leases = LeaseClient::connect(format!("http://{endpoint}")).await.unwrap();
    let request = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let mut answers = leases.lease_keep_alive(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap()
    {
        seen.push((answer.id, answer.ttl));
    }
    seen
}

/// A stream of renewals that is open and has had one answered.
async fn renewing(endpoint: &str, id: i64, wants_leader: bool) -> Renewing {
    let mut leases = LeaseClient::connect(format!("http://{endpoint}")).await.unwrap();
    let (asks, asked) = tokio::sync::mpsc::channel(1);
    asks.send(LeaseKeepAliveRequest { id }).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(asked));
    if wants_leader {
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    }
    let mut answers = leases.lease_keep_alive(request).await.unwrap().into_inner();
    let first = tokio::time::timeout(LIMIT, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((first.id, first.ttl), (id, 60));
    Renewing { answers, _asks: asks }
}

struct Renewing {
    answers: tonic::Streaming<LeaseKeepAliveResponse>,
    /// The side of the client stays open.
    _asks: tokio::sync::mpsc::Sender<LeaseKeepAliveRequest>,
}

/// They share a stream to the members, and none of them waits for an answer.
#[tokio::test]
async fn renewals_that_require_a_leader_end_when_it_is_lost() {
    let [ours, _] = both();
    let options = ServerOptions { members: 2, ..ServerOptions::one(&ours) };
    let mut cluster = Cluster::start(&options).unwrap();
    let proxy = Proxy::start(&ours, &cluster, &[]);
    let granting = connect(&proxy.address).await;
    let id = granting.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id;
    let mut requiring = Vec::new();
    for _ in 0..2 {
        requiring.push(renewing(&proxy.address, id, true).await);
    }
    let mut other = renewing(&proxy.address, id, false).await;
    cluster.member_mut(1).kill().unwrap();
    for stream in &mut requiring {
        let end = tokio::time::timeout(LIMIT, stream.answers.message()).await.unwrap();
        let status = end.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        assert_eq!(status.message(), "etcdserver: no leader");
    }
    let open = tokio::time::timeout(Duration::ZERO, other.answers.message()).await;
    assert!(open.is_err(), "{open:?}");
    // Whoever wants a leader is served again when there is one.
    cluster.member_mut(1).restart().unwrap();
    renewing(&proxy.address, id, true).await;
}

#[tokio::test]
async fn proxies_that_register_know_each_other_and_those_of_go_etcd() {
    let [ours, theirs] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let flags = ["--resolver-prefix=proxies", "--resolver-ttl=2", "--namespace=n/"];
    let own = Proxy::start(&ours, &cluster, &flags);
    let gos = Proxy::start(&theirs, &cluster, &flags);
    let listed = async |proxy: &Proxy| -> Vec<(String, Vec<String>)> {
        let request = MemberListRequest::default();
        let members = connect(&proxy.address).await.member_list(request).await.unwrap().members;
        let mut members: Vec<_> =
            members.into_iter().map(|it| (it.name, it.client_ur_ls)).collect();
        members.sort();
        members
    };
    until_async("both know both", async || {
        let known = listed(&own).await;
        known.len() == 2 && known == listed(&gos).await
    })
    .await;
    let direct = connect(&cluster.members()[0].endpoint).await;
    let range = RangeRequest { range_end: "n/proxies0".into(), ..serializable("n/proxies/", 0) };
    let written: BTreeMap<_, _> =
        direct.range(range).await.unwrap().kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
    let value = |proxy: &Proxy| {
        let value = &written[format!("n/proxies/{}", proxy.address).as_bytes()];
        String::from_utf8(value.to_vec()).unwrap().replace(&proxy.address, "here")
    };
    assert_eq!(value(&own), value(&gos));
    let address = own.address.clone();
    drop(own);
    until_async("a proxy that is gone is forgotten", async || {
        let known = listed(&gos).await;
        known.len() == 1 && known[0].1 != [address.clone()]
    })
    .await;
}

#[tokio::test]
async fn members_that_were_not_named_are_found_and_used() {
    let programs = both();
    for program in &programs {
        let options = ServerOptions { members: 3, ..ServerOptions::one(&programs[0]) };
        let mut cluster = Cluster::start(&options).unwrap();
        let proxy = Proxy::start(program, &cluster, &["--endpoints-auto-sync-interval=100ms"]);
        let calls_of = |member: &Member| {
            metric(&calls::metrics(member), "grpc_server_started_total", "grpc_method=\"Range\"")
        };
        let through = connect(&proxy.address).await;
        let before = calls_of(&cluster.members()[1]);
        until_async("another member is asked", async || {
            through
                .range(RangeRequest { serializable: false, ..serializable("a", 0) })
                .await
                .unwrap();
            calls_of(&cluster.members()[1]) > before
        })
        .await;
        cluster.member_mut(0).kill().unwrap();
        until_async("calls are answered without the first member", async || {
            let client = through.until(tokio::time::Instant::now() + Duration::from_secs(1));
            client.put(put("a", "1")).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn limits_profiles_and_pages_are_those_of_go_etcd() {
    let [ours, theirs] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let flags = [
        "--max-send-bytes=1000",
        "--max-recv-bytes=2000",
        "--enable-pprof",
        "--permit-without-stream",
        "--dial-keepalive-time=10s",
        "--experimental-serializable-ordering",
    ];
    let direct = connect(&cluster.members()[0].endpoint).await;
    direct.put(put("long", &"x".repeat(3000))).await.unwrap();
    let mut answers = Vec::new();
    for program in [&ours, &theirs] {
        let proxy = Proxy::start(program, &cluster, &flags);
        let client = connect(&proxy.address).await;
        let sent = client.put(put("k", &"x".repeat(2000))).await.unwrap_err().to_string();
        let received = read(&client, serializable("long", 0)).await;
        let short = read(&client, serializable("none", 0)).await;
        let page = |path: &str| http_get(&proxy.address, path).map_err(|error| error.to_string());
        let own = page("/proxy/health").unwrap();
        assert!(page("/debug/pprof/cmdline").unwrap().contains("grpc-proxy"));
        answers.push((sent, received, short, own, page("/health").unwrap()));
    }
    assert_eq!(answers[0], answers[1]);
}
