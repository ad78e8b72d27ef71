//! Single gRPC calls to a member, for tests that look at what a server answers.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::bench::swarm::call_once;
use e2e::processes::Member;
use prost::Message;
use proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, MemberAddRequest, MemberAddResponse, MemberListRequest,
    MemberListResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Makes a call and reads its answer.
pub(crate) fn call<A: Message + Default>(
    member: &Member,
    path: &'static str,
    request: &impl Message,
) -> Result<A> {
    let address = member.endpoint.parse().context("read the member's address")?;
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
    let request = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner: false };
    call(member, "/etcdserverpb.Cluster/MemberAdd", &request)
}
