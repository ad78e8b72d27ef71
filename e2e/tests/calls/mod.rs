//! Single gRPC calls to a member, for tests that look at what a server answers.

#![allow(dead_code, reason = "each test takes what it needs")]

mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::bench::swarm::call_once;
use e2e::processes::Member;
use prost::Message;
use proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, HashKvRequest, HashKvResponse, MemberAddRequest,
    MemberAddResponse, MemberListRequest, MemberListResponse, MemberRemoveRequest,
    MemberRemoveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
};

#[allow(unused_imports, reason = "each test takes what it needs")]
pub(crate) use watch::Watch;

const LIMIT: Duration = Duration::from_secs(20);

/// Waits for a condition of a cluster.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    const LIMIT: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same for what has to be asked by a client.
pub(crate) async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    const LIMIT: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not happen in {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a member's metrics show: name with labels, and value.
pub(crate) fn metrics(member: &Member) -> BTreeMap<String, f64> {
    let text = e2e::processes::http_get(member.metrics_endpoint(), "/metrics")
        .unwrap_or_else(|error| panic!("{}: {error:#}\n{}", member.name, member.log()));
    parsed(&text)
}

/// The metrics in a page.
pub(crate) fn parsed(page: &str) -> BTreeMap<String, f64> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

/// The sum of all values of a metric whose labels hold `labels`.
pub(crate) fn metric(metrics: &BTreeMap<String, f64>, name: &str, labels: &str) -> f64 {
    metrics
        .iter()
        .filter(|(shown, _)| {
            let (shown, rest) = shown.split_once('{').unwrap_or((shown, ""));
            shown == name && rest.contains(labels)
        })
        .map(|(_, value)| value)
        .sum()
}

/// Makes a call and reads its answer.
pub(crate) fn call<A: Message + Default>(
    member: &Member,
    path: &'static str,
    request: &impl Message,
) -> Result<A> {
    let address: SocketAddr = member.endpoint.parse().context("read the member's address")?;
    let answer = call_once(address, path, &request.encode_to_vec(), LIMIT)?;
    A::decode(answer.as_slice()).with_context(|| format!("decode the answer of {path}"))
}

pub(crate) fn put(member: &Member, key: &str, value: &[u8]) -> Result<i64> {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_vec().into(),
        ..PutRequest::default()
    };
    let answer: PutResponse = call(member, "/etcdserverpb.KV/Put", &request)?;
    Ok(answer.header.context("a header")?.revision)
}

/// Every key and value.
pub(crate) fn read_all(member: &Member) -> Result<Vec<(String, Vec<u8>)>> {
    let all = bytes::Bytes::from_static(b"\0");
    let request = RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() };
    let answer: RangeResponse = call(member, "/etcdserverpb.KV/Range", &request)?;
    let pair = |kv: &proto::mvccpb::KeyValue| {
        (String::from_utf8_lossy(&kv.key).into_owned(), kv.value.to_vec())
    };
    Ok(answer.kvs.iter().map(pair).collect())
}

pub(crate) fn status(member: &Member) -> Result<StatusResponse> {
    call(member, "/etcdserverpb.Maintenance/Status", &proto::etcdserverpb::StatusRequest {})
}

pub(crate) fn hash_kv(member: &Member, revision: i64) -> Result<HashKvResponse> {
    call(member, "/etcdserverpb.Maintenance/HashKV", &HashKvRequest { revision })
}

pub(crate) fn members(member: &Member) -> Result<MemberListResponse> {
    let request = MemberListRequest { linearizable: true };
    call(member, "/etcdserverpb.Cluster/MemberList", &request)
}

pub(crate) fn add_member(member: &Member, peer_url: &str) -> Result<MemberAddResponse> {
    add(member, peer_url, false)
}

pub(crate) fn add_learner(member: &Member, peer_url: &str) -> Result<MemberAddResponse> {
    add(member, peer_url, true)
}

fn add(member: &Member, peer_url: &str, is_learner: bool) -> Result<MemberAddResponse> {
    let request = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner };
    in_health(|| call(member, "/etcdserverpb.Cluster/MemberAdd", &request))
}

pub(crate) fn remove_member(member: &Member, id: u64) -> Result<MemberRemoveResponse> {
    let request = MemberRemoveRequest { id };
    in_health(|| call(member, "/etcdserverpb.Cluster/MemberRemove", &request))
}

/// Members that have not been connected for five seconds do not change who they are (`Unavailable`).
fn in_health<T>(mut change: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match change() {
            Err(refusal)
                if format!("{refusal:#}").contains("grpc-status Some(14)")
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

pub(crate) fn compact(member: &Member, revision: i64) -> Result<CompactionResponse> {
    let request = CompactionRequest { revision, physical: true };
    call(member, "/etcdserverpb.KV/Compact", &request)
}
