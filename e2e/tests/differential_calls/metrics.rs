//! Metrics: the same work, and what `/metrics` shows of it afterwards.
//!
//! Every family of Go etcd has to be there, of the same type and with the same labels and buckets, and
//! what was counted during the work has to be as much, unless a row below says why it cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::exposition::{self, Family, Page};
use e2e::processes::http_get;
use prost::Message;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{self as pb, AlarmType};
use proto::rpc::Rpc;
use proto::{v3electionpb, v3lockpb};
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::codec::BytesCodec;
use super::random::lead;
use super::refusals::{is_recipe, own_id, sample};
use super::talk::{Call, Talk, with_both};

/// How long it may take until everything that was asked for is counted.
const LIMIT: Duration = Duration::from_secs(30);
/// A leader that stays one, and leases that end soon nevertheless.
const STEADY: [&str; 3] =
    ["--election-timeout=10000", "--heartbeat-interval=500", "--bcrypt-cost=4"];

/// What begins the name of a family that is compared: etcd's, and those of the libraries that count its
/// calls and its process; the Go runtime has its own.
const COMPARED: [&str; 5] = ["etcd_", "grpc_", "os_", "process_", "promhttp_"];

/// How the names of families begin whose numbers are not compared, and why; that they are there, their
/// types, labels and buckets are compared all the same.
const DEPEND_ON_THE_RUN: &[(&str, &str)] = &[
    ("etcd_debugging_disk_backend_", "each server has its own way of writing"),
    ("etcd_debugging_mvcc_db_compaction_last", "a time"),
    ("etcd_debugging_snap_", "ours writes an image when it starts"),
    ("etcd_snap_", "the same"),
    ("etcd_disk_", "each server has its own way of writing"),
    ("etcd_mvcc_db_", "how large the same data is on disk"),
    ("etcd_network_client_grpc_", "sizes of messages, in which ids are numbers of other lengths"),
    ("etcd_server_proposals_", "ours refuses some requests before it proposes them"),
    ("etcd_server_slow_", "what a busy machine does"),
    ("os_fd_", "of the process"),
    ("process_", "of the process"),
];

/// What differs of a family, and why.
const DEVIATIONS: &[(&str, &str)] = &[
    (
        "etcd_mvcc_range_total",
        "etcd also counts what it reads for itself: of leases, users and versions",
    ),
    ("etcd_server_range_duration_seconds", "etcd also counts ranges inside of transactions"),
    (
        "etcd_server_apply_duration_seconds",
        "AuthStatus has a name, and what ours refuses before it is proposed is not applied",
    ),
    (
        "etcd_server_request_duration_seconds",
        "etcd also counts what it asks of itself: for locks and elections, and when leases end",
    ),
    ("etcd_server_feature_enabled", "checks of the members' data are on by default"),
    ("etcd_server_go_version", "there is no Go"),
    ("etcd_server_learner_promote_failures", "the reason is in the words that clients are told"),
    ("grpc_server_msg_sent_total", "etcd's library also counts answers that are errors"),
    ("grpc_server_msg_received_total", "etcd's library also counts the end of a stream"),
    ("process_threads", "ours tells more than Go's library"),
];

/// A family as it is compared.
#[derive(Debug, Default)]
struct Shown {
    kind: String,
    has_help: bool,
    labels: BTreeSet<String>,
    buckets: BTreeSet<String>,
    /// By labels: the value of a gauge, how much a counter was raised, how often a histogram has
    /// observed.
    numbers: BTreeMap<String, f64>,
}

/// A member's page before and after the work.
struct Pages {
    before: Page,
    after: Page,
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn page(talk: &Talk) -> Page {
    let member = &talk.cluster.members()[0];
    let text = http_get(member.metrics_endpoint(), "/metrics").expect("metrics");
    exposition::parse(&text).unwrap_or_else(|error| panic!("{}: {error:#}", member.name))
}

/// The sum of a family's samples of this name.
fn total(page: &Page, family: &str, name: &str) -> f64 {
    let samples = page.get(family).map_or(&[][..], |family| &family.samples);
    samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
}

/// Writes and reads of every kind, also such that are refused.
fn write_and_read(talk: &mut Talk) {
    for number in 0..20 {
        let request = put(&format!("key-{}", number % 8), "some value");
        talk.quietly(Call::new(Rpc::KVPut, &request).with("client-api-version", b"3.7"));
    }
    for request in [
        put("", "no key"),
        pb::PutRequest { lease: 99, ..put("key-1", "no lease") },
        pb::PutRequest { ignore_value: true, ..put("none", "") },
        pb::PutRequest { prev_kv: true, ..put("key-1", "longer than before, as puts are counted") },
    ] {
        talk.quietly(Call::new(Rpc::KVPut, &request));
    }
    for request in [
        range("key-1", ""),
        range("key-", "key."),
        range("", ""),
        pb::RangeRequest { serializable: true, ..range("key-2", "") },
        pb::RangeRequest { serializable: true, revision: 99_999, ..range("key-2", "") },
        pb::RangeRequest { count_only: true, ..range("\0", "\0") },
    ] {
        talk.quietly(Call::new(Rpc::KVRange, &request));
        talk.quietly(Call::new(Rpc::KVRangeStream, &request));
    }
    let delete = |key: &str, range_end: &str| pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    };
    for request in
        [delete("key-7", ""), delete("none", ""), delete("key-5", "key-7"), delete("", "")]
    {
        talk.quietly(Call::new(Rpc::KVDeleteRange, &request));
    }
    let puts = || vec![op(Op::RequestPut(put("t1", "1"))), op(Op::RequestPut(put("t2", "2")))];
    let reads = || vec![op(Op::RequestRange(range("t1", "")))];
    let deletes = vec![op(Op::RequestDeleteRange(delete("t1", "t3")))];
    let nested = pb::TxnRequest { success: puts(), ..Default::default() };
    let missing = pb::Compare { key: "t1".into(), ..Default::default() };
    let many = (0..200).map(|_| reads().remove(0)).collect();
    for (compare, success) in [
        (vec![], puts()),
        (vec![], [puts(), reads()].concat()),
        (vec![], vec![op(Op::RequestPut(put("t3", "3")))]),
        (vec![missing], puts()),
        (vec![], vec![op(Op::RequestTxn(nested))]),
        (vec![], reads()),
        (vec![], vec![]),
        (vec![], many),
        (vec![], deletes),
    ] {
        let request = pb::TxnRequest { compare, success, failure: reads() };
        talk.quietly(Call::new(Rpc::KVTxn, &request));
    }
}

/// Leases that are renewed, revoked, and one that ends by itself.
fn lease(talk: &mut Talk) {
    for (id, ttl) in [(11, 100), (12, 1), (13, 5000), (11, 100), (14, i64::MAX), (15, 0)] {
        talk.quietly(Call::new(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id, ttl }));
    }
    let leased = |key: &str, lease| pb::PutRequest { lease, ..put(key, "leased") };
    talk.quietly(Call::new(Rpc::KVPut, &leased("leased", 13)));
    let came = talk.quietly(Call::new(Rpc::KVPut, &leased("ends", 12)));
    let revision = came.read::<pb::PutResponse>().header.map_or(0, |header| header.revision);
    let renewals = [11, 13, 13, 99].map(|id| pb::LeaseKeepAliveRequest { id });
    talk.quietly(Call::many(Rpc::LeaseLeaseKeepAlive, &renewals).take(4));
    for id in [13, 99] {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        talk.quietly(Call::new(Rpc::LeaseLeaseTimeToLive, &request));
    }
    for id in [13, 99] {
        talk.quietly(Call::new(Rpc::LeaseLeaseRevoke, &pb::LeaseRevokeRequest { id }));
    }
    // The end of the lease is its key's.
    let create = pb::WatchCreateRequest {
        key: "ends".into(),
        start_revision: revision + 1,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let came = talk.quietly(Call::many(Rpc::WatchWatch, &[request]).take(2));
    assert!(came.status.is_none(), "the lease ends: {came:?}");
}

/// Locks and elections, which are made of the other calls.
fn lock_and_elect(talk: &mut Talk) {
    let lock = v3lockpb::LockRequest { name: "lock".into(), lease: 11 };
    let key = talk.quietly(Call::new(Rpc::LockLock, &lock)).read::<v3lockpb::LockResponse>().key;
    talk.quietly(Call::new(Rpc::LockUnlock, &v3lockpb::UnlockRequest { key }));
    let campaign =
        v3electionpb::CampaignRequest { name: "election".into(), lease: 11, value: "a".into() };
    let came = talk.quietly(Call::new(Rpc::ElectionCampaign, &campaign));
    let leader = came.read::<v3electionpb::CampaignResponse>().leader;
    let proclaim = v3electionpb::ProclaimRequest { leader: leader.clone(), value: "b".into() };
    talk.quietly(Call::new(Rpc::ElectionProclaim, &proclaim));
    let asked = v3electionpb::LeaderRequest { name: "election".into() };
    talk.quietly(Call::new(Rpc::ElectionLeader, &asked));
    talk.quietly(Call::new(Rpc::ElectionObserve, &asked).take(1));
    talk.quietly(Call::new(Rpc::ElectionResign, &v3electionpb::ResignRequest { leader }));
}

fn administer(talk: &mut Talk, revision: i64) {
    for rpc in Rpc::ALL.iter().filter(|rpc| !is_recipe(**rpc) && **rpc != Rpc::MaintenanceSnapshot)
    {
        talk.quietly(sample(*rpc));
    }
    talk.quietly(Call::new(Rpc::MaintenanceSnapshot, &pb::SnapshotRequest {}));
    for revision in [revision, revision, 99_999] {
        let request = pb::CompactionRequest { revision, physical: true };
        talk.quietly(Call::new(Rpc::KVCompact, &request));
    }
    talk.quietly(Call::new(Rpc::MaintenanceHashKV, &pb::HashKvRequest::default()));
    let member = &talk.cluster.members()[talk.member];
    for path in [
        "/health",
        "/health?serializable=true",
        "/livez",
        "/livez/serializable_read",
        "/readyz?verbose",
        "/readyz/non_learner",
        "/readyz/nothing",
        "/version",
    ] {
        let _ = http_get(&member.endpoint, path);
    }
}

/// Opens a watch that stays open, and reads what there is for it.
fn watch(talk: &mut Talk, start_revision: i64) -> Streaming<Bytes> {
    let create = pb::WatchCreateRequest { key: "t3".into(), start_revision, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    talk.run(|channel: Channel| async move {
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.expect("a connection");
        let requests = tokio_stream::iter([Bytes::from(request.encode_to_vec())]);
        let request = Request::new(requests.chain(tokio_stream::pending()));
        let path = Rpc::WatchWatch.path().parse().expect("a path");
        let answer = grpc.streaming(request, path, BytesCodec::default()).await.expect("a watch");
        let mut answers = answer.into_inner();
        // That it is there, and the one event.
        for _ in 0..2 {
            answers.next().await.expect("it stays open").expect("an answer");
        }
        answers
    })
}

fn work(talk: &mut Talk) -> Pages {
    lead(talk, 0);
    settle(talk, 0);
    let before = page(talk);
    write_and_read(talk);
    lease(talk);
    lock_and_elect(talk);
    let status: pb::StatusResponse = talk.quietly(sample(Rpc::MaintenanceStatus)).read();
    let revision = status.header.map_or(0, |header| header.revision);
    administer(talk, revision - 3);
    let last = talk.quietly(Call::new(Rpc::KVPut, &put("t3", "watched")));
    let revision = last.read::<pb::PutResponse>().header.map_or(0, |header| header.revision);
    let open = watch(talk, revision);
    let alarm = pb::AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: own_id(talk),
        alarm: AlarmType::Nospace as i32,
    };
    talk.quietly(Call::new(Rpc::MaintenanceAlarm, &alarm));
    talk.quietly(Call::new(Rpc::KVPut, &put("key", "no space")));
    settle(talk, 1);
    let after = page(talk);
    drop(open);
    Pages { before, after }
}

/// How many calls of each method have begun and not ended.
fn under_way_by_method(page: &Page) -> BTreeMap<String, f64> {
    let mut under_way = BTreeMap::new();
    for (family, sign) in [("grpc_server_started_total", 1.0), ("grpc_server_handled_total", -1.0)]
    {
        let samples = page.get(family).map_or(&[][..], |family| &family.samples);
        for sample in samples {
            let method = sample.labels.get("grpc_method").cloned().unwrap_or_default();
            *under_way.entry(method).or_default() += sign * sample.value;
        }
    }
    under_way.retain(|_, calls| *calls != 0.0);
    under_way
}

/// Waits until every call but this many is counted as ended, and everything that is committed is applied.
fn settle(talk: &mut Talk, open: u32) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let page = page(talk);
        let sum = |family: &str| total(&page, family, family);
        let under_way = sum("grpc_server_started_total") - sum("grpc_server_handled_total");
        let [committed, applied] = ["committed", "applied"]
            .map(|what| sum(&format!("etcd_server_proposals_{what}_total")));
        if under_way == f64::from(open) && committed == applied {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "committed {committed}, applied {applied}, under way {:?}",
            under_way_by_method(&page)
        );
        // Hanging up is work of the connections, which rest while nobody waits for a call.
        talk.run(|_| async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
}

/// Names of members by their ids as the metrics show them.
pub(super) fn names(talk: &mut Talk) -> BTreeMap<String, String> {
    let list: pb::MemberListResponse = talk.quietly(sample(Rpc::ClusterMemberList)).read();
    list.members.into_iter().map(|member| (format!("{:x}", member.id), member.name)).collect()
}

fn shown(family: &Family, before: Option<&Family>, names: &BTreeMap<String, String>) -> Shown {
    let mut shown =
        Shown { kind: family.kind.clone(), has_help: !family.help.is_empty(), ..Shown::default() };
    for sample in &family.samples {
        shown.labels.extend(sample.labels.keys().cloned());
        if let Some(bound) = sample.labels.get("le") {
            let bound: f64 = bound.parse().expect("a bound");
            shown.buckets.insert(bound.to_string());
        }
        if sample.name.ends_with("_bucket") || sample.name.ends_with("_sum") {
            continue;
        }
        let was = before.and_then(|before| {
            let same =
                |was: &&exposition::Sample| was.name == sample.name && was.labels == sample.labels;
            before.samples.iter().find(same).map(|was| was.value)
        });
        let number = match family.kind.as_str() {
            "gauge" => sample.value,
            _ => sample.value - was.unwrap_or(0.0),
        };
        let labels = sample
            .labels
            .iter()
            .map(|(label, value)| format!("{label}={}", names.get(value).unwrap_or(value)));
        shown.numbers.insert(labels.collect::<Vec<_>>().join(","), number);
    }
    shown
}

fn is_compared(name: &str) -> bool {
    COMPARED.iter().any(|beginning| name.starts_with(beginning))
}

/// How much was compared, and how ours differs from Go etcd, a line each.
fn differences(
    go: &BTreeMap<String, Shown>,
    ours: &BTreeMap<String, Shown>,
) -> (usize, BTreeSet<String>) {
    let (mut compared, mut found) = (0, BTreeSet::new());
    for name in ours.keys().filter(|name| !go.contains_key(*name)) {
        found.insert(format!("{name}: etcd has none"));
    }
    for (name, go) in go {
        let Some(ours) = ours.get(name) else {
            found.insert(format!("{name}: missing"));
            continue;
        };
        let mut differ = |what: &str, go: String, ours: String| {
            compared += 1;
            if go != ours {
                found.insert(format!("{name}: {what}: Go {go}, ours {ours}"));
            }
        };
        differ("type", go.kind.clone(), ours.kind.clone());
        differ("help", go.has_help.to_string(), ours.has_help.to_string());
        differ("buckets", format!("{:?}", go.buckets), format!("{:?}", ours.buckets));
        let depends = DEPEND_ON_THE_RUN.iter().any(|(beginning, _)| name.starts_with(beginning));
        // Without samples nobody knows the labels.
        if !depends || (!go.numbers.is_empty() && !ours.numbers.is_empty()) {
            differ("labels", format!("{:?}", go.labels), format!("{:?}", ours.labels));
        }
        if !depends {
            let all: BTreeSet<&String> = go.numbers.keys().chain(ours.numbers.keys()).collect();
            for labels in all {
                // Some series are there before they are used, in the one server or in the other.
                let number = |shown: &Shown| shown.numbers.get(labels).unwrap_or(&0.0).to_string();
                differ(&format!("{{{labels}}}"), number(go), number(ours));
            }
        }
    }
    (compared, found)
}

#[test]
fn the_same_work_is_shown_alike() {
    let [go, ours] = with_both(1, &STEADY, |talk| {
        let pages = work(talk);
        let names = names(talk);
        let compared = pages.after.iter().filter(|(name, _)| is_compared(name));
        compared
            .map(|(name, family)| (name.clone(), shown(family, pages.before.get(name), &names)))
            .collect::<BTreeMap<String, Shown>>()
    });
    let (compared, found) = differences(&go, &ours);
    let mut wrong = String::new();
    let mut used = BTreeSet::new();
    for difference in &found {
        let row = DEVIATIONS.iter().position(|(beginning, _)| difference.contains(beginning));
        match row {
            Some(row) => {
                used.insert(row);
            }
            None => wrong.push_str(&format!("{difference}\n")),
        }
    }
    for (row, (beginning, _)) in DEVIATIONS.iter().enumerate() {
        if !used.contains(&row) {
            wrong.push_str(&format!("{beginning}: no longer differs\n"));
        }
    }
    for (beginning, _) in DEPEND_ON_THE_RUN {
        if !go.keys().any(|family| family.starts_with(beginning)) {
            wrong.push_str(&format!("{beginning}: etcd has none\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    println!(
        "{compared} facts of {} families compared, {} equal, {} deviating with reason",
        go.len(),
        compared - found.len(),
        found.len()
    );
}
