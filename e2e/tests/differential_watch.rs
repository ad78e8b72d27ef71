//! How a watch that allows fragments is answered: ours beside Go etcd's, response by response.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use calls::{Watch, call, put};
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest};

/// What a server may send in one message: `--max-request-bytes` and what gRPC may need beside it.
const LIMIT: usize = 1_572_864 + (512 << 10);

/// One response: how far the store was, which revisions it has, and whether more of it follows.
type Part = (i64, Vec<i64>, bool);

fn watched(member: &Member, prefix: &str, from: i64, events: usize, prev_kv: bool) -> Vec<Part> {
    let end = format!("{}0", prefix.strip_suffix('/').unwrap());
    let mut watch = Watch::create(
        member,
        WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: end.into(),
            start_revision: from,
            fragment: true,
            prev_kv,
            ..WatchCreateRequest::default()
        },
    );
    let count = |watch: &Watch| watch.responses.iter().map(|response| response.events.len()).sum();
    watch.until("all events are there", |watch| {
        let count: usize = count(watch);
        count >= events
    });
    let parts = watch.responses.iter().filter(|response| !response.events.is_empty());
    parts
        .map(|response| {
            let size = prost::Message::encoded_len(response);
            assert!(size < LIMIT, "a part has {size} bytes");
            let revision = |event: &proto::mvccpb::Event| event.kv.as_ref().unwrap().mod_revision;
            let revisions = response.events.iter().map(revision).collect();
            (response.header.as_ref().unwrap().revision, revisions, response.fragment)
        })
        .collect()
}

/// A transaction that puts a hundred values, which are large together.
fn put_many(member: &Member) -> i64 {
    let put = |number: u32| PutRequest {
        key: format!("txn/{number:03}").into(),
        value: vec![b'v'; 14_000].into(),
        ..PutRequest::default()
    };
    let put = |number| RequestOp { request: Some(Request::RequestPut(put(number))) };
    let request = TxnRequest { success: (0..100).map(put).collect(), ..TxnRequest::default() };
    let answer: TxnResponse = call(member, "/etcdserverpb.KV/Txn", &request).unwrap();
    answer.header.unwrap().revision
}

fn all_parts(program: &std::path::Path) -> Vec<(&'static str, Vec<Part>)> {
    let cluster = Cluster::start(&ServerOptions::one(program)).unwrap();
    let member = &cluster.members()[0];
    let large = vec![b'v'; 150 << 10];
    let revisions: Vec<i64> =
        (0..40).map(|number| put(member, &format!("large/{number}"), &large).unwrap()).collect();
    let one_by_one = revisions[0];
    put_many(member);
    let one_txn = put_many(member);
    let small: Vec<i64> =
        (0..1500).map(|number| put(member, &format!("small/{number}"), b"v").unwrap()).collect();
    vec![
        ("a backlog of large values", watched(member, "large/", one_by_one, 40, false)),
        ("one large transaction", watched(member, "txn/", one_txn, 100, true)),
        ("a long backlog of small values", watched(member, "small/", small[0], 1500, false)),
    ]
}

#[test]
fn a_backlog_comes_in_the_fragments_in_which_go_etcd_sends_it() {
    let ours = all_parts(&e2e::peers::our_binary("etcd").unwrap());
    let go = all_parts(&e2e::peers::etcd_binaries().unwrap().etcd);
    for ((name, ours), (_, go)) in ours.iter().zip(&go) {
        let shape = |parts: &[Part]| -> Vec<(usize, bool)> {
            parts.iter().map(|(_, revisions, fragment)| (revisions.len(), *fragment)).collect()
        };
        assert_eq!(shape(ours), shape(go), "{name}");
        assert_eq!(ours, go, "{name}");
        assert!(go.len() > 1, "{name} is in one part: {go:?}");
    }
    let fragments = |at: usize| go[at].1.iter().filter(|(_, _, fragment)| *fragment).count();
    assert!(fragments(0) > 0 && fragments(1) > 0, "{:?}", fragments(0));
}
