//! Refusals: every method in every state in which a member refuses something.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::processes::{Cluster, ServerOptions, signal};
use proto::authpb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{self as pb, AlarmType};
use proto::rpc::Rpc;
use proto::v3electionpb::{CampaignRequest, LeaderRequest};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use super::random::lead;
use super::talk::{Call, Came, Talk, compare, compare_talks};

const LIMIT: Duration = Duration::from_secs(30);

/// A leader that stays one on a busy machine, and passwords that cost it little.
const STEADY: [&str; 3] =
    ["--election-timeout=10000", "--heartbeat-interval=500", "--bcrypt-cost=4"];

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn range(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), ..Default::default() }
}

fn alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> pb::AlarmRequest {
    pb::AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 }
}

fn watch(key: &'static str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// A harmless request of a method. A method without an arm does not compile.
#[expect(clippy::too_many_lines, reason = "one table, an arm per method")]
pub(super) fn sample(rpc: Rpc) -> Call {
    let text = |text: &str| text.to_owned();
    match rpc {
        Rpc::KVRange | Rpc::KVRangeStream => Call::new(rpc, &range("k")),
        Rpc::KVPut => Call::new(rpc, &put("k")),
        Rpc::KVDeleteRange => {
            Call::new(rpc, &pb::DeleteRangeRequest { key: "none".into(), ..Default::default() })
        }
        Rpc::KVTxn => {
            let success = vec![pb::RequestOp { request: Some(Op::RequestPut(put("t"))) }];
            Call::new(rpc, &pb::TxnRequest { success, ..Default::default() })
        }
        Rpc::KVCompact => Call::new(rpc, &pb::CompactionRequest { revision: 999, physical: true }),
        Rpc::WatchWatch => Call::many(rpc, &[watch("k")]).take(1),
        Rpc::LeaseLeaseGrant => Call::new(rpc, &pb::LeaseGrantRequest { id: 7, ttl: 100_000 }),
        Rpc::LeaseLeaseRevoke => Call::new(rpc, &pb::LeaseRevokeRequest { id: 8 }),
        Rpc::LeaseLeaseKeepAlive => Call::many(rpc, &[pb::LeaseKeepAliveRequest { id: 9 }]).take(1),
        Rpc::LeaseLeaseTimeToLive => {
            Call::new(rpc, &pb::LeaseTimeToLiveRequest { id: 9, keys: true })
        }
        Rpc::LeaseLeaseLeases => Call::new(rpc, &pb::LeaseLeasesRequest {}),
        Rpc::ClusterMemberAdd => {
            let peer_ur_ls = vec![text("nonsense")];
            Call::new(rpc, &pb::MemberAddRequest { peer_ur_ls, is_learner: true })
        }
        Rpc::ClusterMemberRemove => Call::new(rpc, &pb::MemberRemoveRequest { id: 1 }),
        Rpc::ClusterMemberUpdate => {
            let peer_ur_ls = vec![text("http://127.0.0.1:1")];
            Call::new(rpc, &pb::MemberUpdateRequest { id: 1, peer_ur_ls })
        }
        Rpc::ClusterMemberPromote => Call::new(rpc, &pb::MemberPromoteRequest { id: 1 }),
        Rpc::ClusterMemberList => Call::new(rpc, &pb::MemberListRequest { linearizable: true }),
        Rpc::MaintenanceAlarm => Call::new(rpc, &pb::AlarmRequest::default()),
        Rpc::MaintenanceStatus => Call::new(rpc, &pb::StatusRequest {}),
        Rpc::MaintenanceDefragment => Call::new(rpc, &pb::DefragmentRequest {}),
        Rpc::MaintenanceHash => Call::new(rpc, &pb::HashRequest {}),
        Rpc::MaintenanceHashKV => Call::new(rpc, &pb::HashKvRequest { revision: 1 }),
        Rpc::MaintenanceSnapshot => Call::new(rpc, &pb::SnapshotRequest {}).take(1),
        Rpc::MaintenanceMoveLeader => Call::new(rpc, &pb::MoveLeaderRequest { target_id: 1 }),
        Rpc::MaintenanceDowngrade => {
            Call::new(rpc, &pb::DowngradeRequest { action: 0, version: text("3.6.0") })
        }
        Rpc::AuthAuthEnable => Call::new(rpc, &pb::AuthEnableRequest {}),
        Rpc::AuthAuthDisable => Call::new(rpc, &pb::AuthDisableRequest {}),
        Rpc::AuthAuthStatus => Call::new(rpc, &pb::AuthStatusRequest {}),
        Rpc::AuthAuthenticate => {
            let (name, password) = (text("u"), text("p"));
            Call::new(rpc, &pb::AuthenticateRequest { name, password })
        }
        Rpc::AuthUserAdd => {
            let (name, password) = (text("u"), text("p"));
            Call::new(rpc, &pb::AuthUserAddRequest { name, password, ..Default::default() })
        }
        Rpc::AuthUserGet => Call::new(rpc, &pb::AuthUserGetRequest { name: text("u") }),
        Rpc::AuthUserList => Call::new(rpc, &pb::AuthUserListRequest {}),
        Rpc::AuthUserDelete => Call::new(rpc, &pb::AuthUserDeleteRequest { name: text("x") }),
        Rpc::AuthUserChangePassword => {
            let (name, password) = (text("u"), text("p"));
            let request =
                pb::AuthUserChangePasswordRequest { name, password, ..Default::default() };
            Call::new(rpc, &request)
        }
        Rpc::AuthUserGrantRole => {
            Call::new(rpc, &pb::AuthUserGrantRoleRequest { user: text("u"), role: text("r") })
        }
        Rpc::AuthUserRevokeRole => {
            Call::new(rpc, &pb::AuthUserRevokeRoleRequest { name: text("u"), role: text("r") })
        }
        Rpc::AuthRoleAdd => Call::new(rpc, &pb::AuthRoleAddRequest { name: text("r") }),
        Rpc::AuthRoleGet => Call::new(rpc, &pb::AuthRoleGetRequest { role: text("r") }),
        Rpc::AuthRoleList => Call::new(rpc, &pb::AuthRoleListRequest {}),
        Rpc::AuthRoleDelete => Call::new(rpc, &pb::AuthRoleDeleteRequest { role: text("x") }),
        Rpc::AuthRoleGrantPermission => {
            let perm = Some(authpb::Permission { key: "x".into(), ..Default::default() });
            Call::new(rpc, &pb::AuthRoleGrantPermissionRequest { name: text("r"), perm })
        }
        Rpc::AuthRoleRevokePermission => {
            let (role, key) = (text("r"), "x".into());
            let range_end = Bytes::new();
            Call::new(rpc, &pb::AuthRoleRevokePermissionRequest { role, key, range_end })
        }
        Rpc::LockLock
        | Rpc::LockUnlock
        | Rpc::ElectionCampaign
        | Rpc::ElectionProclaim
        | Rpc::ElectionLeader
        | Rpc::ElectionObserve
        | Rpc::ElectionResign => unreachable!("{rpc:?} is made of the other methods"),
    }
}

/// Locks and elections are recipes of the other methods, and some wait; `differential_gateway.rs` and
/// the matrix of `differential_auth` compare them.
pub(super) fn is_recipe(rpc: Rpc) -> bool {
    let path = rpc.path();
    path.starts_with("/v3lockpb.") || path.starts_with("/v3electionpb.")
}

/// Asks every method, one after the other.
fn ask_everything(talk: &mut Talk, what: &str) {
    talk.note(what, "");
    for rpc in Rpc::ALL.iter().filter(|rpc| !is_recipe(**rpc)) {
        talk.call(sample(*rpc));
    }
}

/// That this was refused with this text, which `errors.rs` leaves to a test here.
fn refused(came: &Came, text: &str) {
    let said = came.status.as_ref().map(|status| status.message().to_owned());
    assert_eq!(said, Some(format!("etcdserver: {text}")));
}

pub(super) fn own_id(talk: &mut Talk) -> u64 {
    let status: pb::StatusResponse = talk.quietly(sample(Rpc::MaintenanceStatus)).read();
    status.header.map_or(0, |header| header.member_id)
}

/// Waits for a member to say something of itself.
pub(super) fn until(talk: &mut Talk, what: &str, holds: impl Fn(&pb::StatusResponse) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let came: Came = talk.quietly(sample(Rpc::MaintenanceStatus));
        if came.status.is_none() && holds(&came.read()) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {came:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_method_answers_alike_under_every_alarm() {
    compare(1, &[], |talk| {
        ask_everything(talk, "no alarm");
        let own = own_id(talk);
        for (kind, other) in
            [(AlarmType::Nospace, AlarmType::Corrupt), (AlarmType::Corrupt, AlarmType::Nospace)]
        {
            talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Activate, own, kind));
            talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Activate, own, kind));
            talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Activate, 5, kind));
            for list in [AlarmType::None, kind, other] {
                talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Get, 0, list));
            }
            ask_everything(talk, "an alarm");
            let delete = pb::DeleteRangeRequest { key: "k".into(), ..Default::default() };
            talk.ask(Rpc::KVDeleteRange, &delete);
            talk.ask(Rpc::KVCompact, &pb::CompactionRequest { revision: 2, physical: true });
            talk.ask(Rpc::KVTxn, &pb::TxnRequest::default());
            let read = vec![pb::RequestOp { request: Some(Op::RequestRange(range("k"))) }];
            talk.ask(Rpc::KVTxn, &pb::TxnRequest { success: read, ..Default::default() });
            for (member, kind) in [(own, other), (9, kind), (5, kind), (own, kind), (own, kind)] {
                talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Deactivate, member, kind));
            }
            talk.ask(Rpc::MaintenanceAlarm, &pb::AlarmRequest::default());
            talk.ask(Rpc::KVPut, &put("k"));
        }
        talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Activate, own, AlarmType::None));
        talk.ask(Rpc::MaintenanceAlarm, &alarm(AlarmAction::Deactivate, own, AlarmType::None));
        // An action that is none ends Go etcd, so it cannot be compared.
        talk.ask(Rpc::MaintenanceAlarm, &pb::AlarmRequest::default());
    });
}

#[test]
fn a_full_store_refuses_alike() {
    compare(1, &["--quota-backend-bytes=1"], |talk| {
        let grant = pb::LeaseGrantRequest { id: 5, ttl: 1000 };
        talk.ask(Rpc::LeaseLeaseGrant, &grant);
        talk.ask(Rpc::KVPut, &put("k"));
        ask_everything(talk, "no space");
    });
}

#[test]
fn every_method_of_a_learner_answers_alike() {
    compare(1, &[], |talk| {
        talk.ask(Rpc::KVPut, &put("k"));
        let options = talk.options.clone();
        let joining = talk.cluster.prepare_to_join(&options, &[0]).expect("a member");
        let peer_ur_ls = vec![talk.cluster.members()[joining].peer_url.clone()];
        talk.ask(Rpc::ClusterMemberAdd, &pb::MemberAddRequest { peer_ur_ls, is_learner: true });
        talk.cluster.member_mut(joining).launch().expect("start the learner");
        talk.member = joining;
        until(talk, "the learner follows", |status| {
            status.is_learner && status.leader != 0 && status.storage_version == "3.7.0"
        });
        let serializable = pb::RangeRequest { serializable: true, ..range("k") };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let came = talk.quietly(Call::new(Rpc::KVRange, &serializable));
            if came.status.is_none() && came.read::<pb::RangeResponse>().count == 1 {
                break;
            }
            assert!(Instant::now() < deadline, "the learner has no data: {came:?}");
        }
        talk.ask(Rpc::KVRange, &serializable);
        talk.ask(Rpc::KVRangeStream, &serializable);
        let read = |serializable| pb::RangeRequest { serializable, ..range("k") };
        for serializable in [true, false] {
            let op = pb::RequestOp { request: Some(Op::RequestRange(read(serializable))) };
            talk.ask(Rpc::KVTxn, &pb::TxnRequest { success: vec![op], ..Default::default() });
        }
        talk.ask(Rpc::ClusterMemberList, &pb::MemberListRequest { linearizable: false });
        ask_everything(talk, "a learner");
        refused(&talk.call(sample(Rpc::KVPut)), "rpc not supported for learner");
        for method in ["Check", "List", "Watch"] {
            refused(&talk.call(health(method, "")), "rpc not supported for learner");
        }
        talk.member = 0;
        let own = own_id(talk);
        talk.ask(Rpc::ClusterMemberPromote, &pb::MemberPromoteRequest { id: own });
    });
}

#[test]
fn a_member_without_a_quorum_refuses_alike() {
    compare(2, &[], |talk| {
        lead(talk, 0);
        talk.member = 0;
        talk.ask(Rpc::KVPut, &put("k"));
        talk.cluster.member_mut(1).kill().expect("kill the other member");
        until(talk, "the leader gives up", |status| status.leader == 0);
        let serializable = pb::RangeRequest { serializable: true, ..range("k") };
        // A proposal ends after the same time on both, with other words: see the README.
        let reads = [
            Rpc::KVRange,
            Rpc::KVRangeStream,
            Rpc::WatchWatch,
            Rpc::LeaseLeaseLeases,
            Rpc::ClusterMemberList,
            Rpc::MaintenanceStatus,
            Rpc::MaintenanceDefragment,
            Rpc::MaintenanceHash,
            Rpc::MaintenanceHashKV,
            Rpc::MaintenanceSnapshot,
        ];
        let mut calls: Vec<Call> = reads.into_iter().map(sample).collect();
        calls.push(Call::new(Rpc::KVRange, &serializable));
        calls.push(Call::new(Rpc::ClusterMemberList, &pb::MemberListRequest::default()));
        for rpc in [Rpc::KVRange, Rpc::KVPut, Rpc::WatchWatch, Rpc::LeaseLeaseKeepAlive] {
            calls.push(sample(rpc).with("hasleader", b"true"));
        }
        talk.call_at_once(&calls);
    });
}

/// A call to the health service, whose messages are small enough to be compared as they are.
fn health(method: &str, service: &str) -> Call {
    let request = proto::health::HealthCheckRequest { service: service.to_owned() };
    Call {
        path: format!("/grpc.health.v1.Health/{method}"),
        rpc: None,
        ..Call::new(Rpc::KVRange, &request)
    }
}

/// Opens streams, kills a process once all have answered, and says how those ended that require a leader.
/// Of the others, that they are still open.
async fn without_a_leader(channel: Channel, calls: Vec<Call>, killed: u32) -> Vec<String> {
    let mut streams = Vec::new();
    for call in &calls {
        let (mut answers, sending) = call.open(channel.clone()).await.expect("a stream");
        let first = tokio::time::timeout(LIMIT, answers.next()).await.expect("an answer in time");
        first.expect("it stays open").expect("an answer");
        streams.push((call, answers, sending));
    }
    signal(killed, "KILL").expect("kill the other member");
    // Those that end come first.
    streams.sort_by_key(|(call, ..)| call.metadata.is_empty());
    let mut ends = Vec::new();
    for (call, answers, _sending) in &mut streams {
        let patience = if call.metadata.is_empty() { Duration::ZERO } else { LIMIT };
        let end = match tokio::time::timeout(patience, answers.next()).await {
            Err(_) if call.metadata.is_empty() => "is open".to_owned(),
            Ok(Some(Err(status))) => format!("{:?}: {}", status.code(), status.message()),
            other => format!("{other:?}"),
        };
        ends.push(format!("{} {end}", call.path));
    }
    ends
}

/// etcd#14641: whoever waits at a leader that has lost its followers has to be told, on every stream.
#[test]
fn t38_streams_that_require_a_leader_end_alike_when_there_is_none() {
    compare(2, &[], |talk| {
        lead(talk, 0);
        talk.member = 0;
        talk.quietly(sample(Rpc::LeaseLeaseGrant));
        let (name, value) = (Bytes::from("e"), Bytes::from("v"));
        let candidate = CampaignRequest { name: name.clone(), lease: 7, value };
        talk.quietly(Call::new(Rpc::ElectionCampaign, &candidate));
        let renewal = pb::LeaseKeepAliveRequest { id: 7 };
        let renewing = Call::many(Rpc::LeaseLeaseKeepAlive, &[renewal]).take(1);
        let observing = Call::new(Rpc::ElectionObserve, &LeaderRequest { name });
        let streams = [sample(Rpc::WatchWatch), renewing, observing, health("Watch", "")];
        let requiring = streams.clone().map(|call| call.with("hasleader", b"true"));
        let calls = streams.into_iter().chain(requiring).collect();
        let killed = talk.cluster.members()[1].pid().expect("it runs");
        for end in talk.run(|channel| without_a_leader(channel, calls, killed)) {
            talk.note("a stream without a leader", &end);
        }
        let refused = [("Check", "true"), ("Watch", "true"), ("Check", "false")];
        for (method, wanted) in refused {
            talk.call(health(method, "").with("hasleader", wanted.as_bytes()));
        }
    });
}

#[test]
fn reconfiguration_is_refused_alike() {
    compare(1, &[], |talk| {
        let add = |urls: &[&str], is_learner| pb::MemberAddRequest {
            peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
            is_learner,
        };
        let own = own_id(talk);
        let own_url = talk.cluster.members()[0].peer_url.clone();
        for urls in [
            &[][..],
            &[""],
            &["nonsense"],
            &["http://127.0.0.1"],
            &["http://127.0.0.1:1/path"],
            &["ftp://127.0.0.1:1"],
            &["http://127.0.0.1:1", "nonsense"],
            &[own_url.as_str()],
            &["http://127.0.0.1:1", own_url.as_str()],
        ] {
            talk.ask(Rpc::ClusterMemberAdd, &add(urls, false));
            talk.ask(Rpc::ClusterMemberAdd, &add(urls, true));
        }
        talk.ask(Rpc::ClusterMemberPromote, &pb::MemberPromoteRequest { id: own });
        // One may become two although the second has not started; the third is too many.
        talk.ask(Rpc::ClusterMemberAdd, &add(&["http://127.0.0.1:1"], false));
        talk.ask(Rpc::ClusterMemberAdd, &add(&["http://127.0.0.1:2"], false));
        talk.ask(Rpc::ClusterMemberList, &pb::MemberListRequest { linearizable: false });
    });
}

/// What etcd does not do with a member down, adding another, ours does: see the README.
#[test]
fn reconfiguration_with_a_member_down_is_answered_alike() {
    compare(3, &[], |talk| {
        lead(talk, 0);
        let list: pb::MemberListResponse = talk.quietly(sample(Rpc::ClusterMemberList)).read();
        let id_of = |name: &str| {
            list.members.iter().find(|member| member.name == name).map_or(0, |member| member.id)
        };
        let (down, up) = (id_of("m3"), id_of("m2"));
        talk.cluster.member_mut(2).kill().expect("kill a member");
        // Go etcd counts only members that it has been connected to for five seconds (HealthInterval).
        std::thread::sleep(Duration::from_secs(6));
        talk.member = 0;
        let came = talk.ask(Rpc::ClusterMemberRemove, &pb::MemberRemoveRequest { id: up });
        refused(&came, "unhealthy cluster");
        talk.ask(Rpc::ClusterMemberRemove, &pb::MemberRemoveRequest { id: down });
        talk.ask(Rpc::ClusterMemberRemove, &pb::MemberRemoveRequest { id: down });
        let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
        talk.ask(Rpc::ClusterMemberAdd, &pb::MemberAddRequest { peer_ur_ls, is_learner: true });
        talk.ask(Rpc::ClusterMemberList, &pb::MemberListRequest { linearizable: true });
    });
}

/// Who begins to lead has reached the others for long; it need not count the seconds anew.
#[test]
fn a_new_leader_takes_a_member_at_once() {
    compare(3, &[], |talk| {
        lead(talk, 0);
        talk.member = 1;
        let next = own_id(talk);
        talk.member = 0;
        // Go etcd counts only members that it has been connected to for five seconds (HealthInterval).
        std::thread::sleep(Duration::from_secs(6));
        talk.ask(Rpc::MaintenanceMoveLeader, &pb::MoveLeaderRequest { target_id: next });
        talk.member = 1;
        until(talk, "the other leads", |status| status.leader == next);
        let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
        let add = pb::MemberAddRequest { peer_ur_ls, is_learner: true };
        let came = talk.ask(Rpc::ClusterMemberAdd, &add);
        assert!(came.status.is_none(), "{:?}", came.status);
    });
}

/// etcd knows the names of founders from the initial cluster, and calls a member with a name started.
#[test]
fn a_founder_that_has_not_started_is_listed_alike() {
    let without_the_last = |program: &Path| {
        let options = ServerOptions { members: 3, ..ServerOptions::one(program) };
        let cluster = Cluster::start_without(&options, 1).expect("start two of three");
        Talk::at(cluster, options)
    };
    compare_talks(without_the_last, |talk| {
        lead(talk, 0);
        let came = talk.ask(Rpc::ClusterMemberList, &pb::MemberListRequest { linearizable: true });
        let list: pb::MemberListResponse = came.read();
        let absent = list.members.iter().find(|member| member.client_ur_ls.is_empty());
        assert_eq!(absent.map(|member| member.name.as_str()), Some("m3"));
    });
}

#[test]
fn a_follower_answers_alike() {
    compare(3, &STEADY, |talk| {
        lead(talk, 0);
        let leader = own_id(talk);
        talk.member = 1;
        let follower = own_id(talk);
        ask_everything(talk, "a follower");
        for target_id in [0, 1, leader, follower] {
            talk.ask(Rpc::MaintenanceMoveLeader, &pb::MoveLeaderRequest { target_id });
        }
        talk.ask(Rpc::ClusterMemberPromote, &pb::MemberPromoteRequest { id: follower });
        let grant = pb::LeaseGrantRequest { id: 5, ttl: 1000 };
        talk.ask(Rpc::LeaseLeaseGrant, &grant);
        talk.ask(Rpc::LeaseLeaseTimeToLive, &pb::LeaseTimeToLiveRequest { id: 5, keys: true });
        talk.call(
            Call::many(
                Rpc::LeaseLeaseKeepAlive,
                &[5, 6, 0, -1].map(|id| pb::LeaseKeepAliveRequest { id }),
            )
            .take(4),
        );
        talk.member = 0;
        for target_id in [0, 1, leader] {
            talk.ask(Rpc::MaintenanceMoveLeader, &pb::MoveLeaderRequest { target_id });
        }
    });
}

/// ADA-22: a version that is no text once made the server panic in its metrics.
#[test]
fn t39_metadata_is_read_alike() {
    compare(1, &[], |talk| {
        for (name, value) in [
            ("client-api-version", &b"3.7"[..]),
            ("client-api-version", "é".as_bytes()),
            ("client-api-version", b"\xff\xfe"),
            ("client-api-version", b""),
            ("hasleader", b"true"),
            ("hasleader", b"false"),
            ("hasleader", b"\xff"),
            ("token", b"nonsense"),
            ("token", b"\xff"),
            ("authorization", b"Bearer nonsense"),
            ("authorization", b"nonsense"),
        ] {
            for rpc in [Rpc::KVRange, Rpc::KVPut, Rpc::WatchWatch, Rpc::ClusterMemberList] {
                talk.call(sample(rpc).with(name, value));
            }
        }
    });
}

#[test]
fn what_is_too_big_or_unknown_is_refused_alike() {
    compare(1, &["--max-request-bytes=10000"], |talk| {
        for length in [9_900, 10_050, 500_000, 534_000, 540_000] {
            let mut call = Call::new(
                Rpc::KVPut,
                &pb::PutRequest { value: vec![b'v'; length].into(), ..put("k") },
            );
            call.text = format!("a value of {length} bytes");
            talk.call(call);
        }
        let op = || pb::RequestOp { request: Some(Op::RequestRange(range("k"))) };
        for count in [128, 129] {
            let request = pb::TxnRequest {
                success: (0..count).map(|_| op()).collect(),
                ..Default::default()
            };
            let mut call = Call::new(Rpc::KVTxn, &request);
            call.text = format!("{count} operations");
            talk.call(call);
        }
        for path in [
            "/etcdserverpb.KV/Nothing",
            "/etcdserverpb.Nothing/Range",
            "/etcdserverpb.KV",
            "/etcdserverpb.KV/",
            "/nothing",
            "/",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/v3lockpb.Lock/Nothing",
            "/v3electionpb.Election/Nothing",
            "/etcdserverpb.Watch/Nothing",
            "/etcdserverpb.Lease/Nothing",
            "/etcdserverpb.Cluster/Nothing",
            "/etcdserverpb.Maintenance/Nothing",
            "/etcdserverpb.Auth/Nothing",
            "/grpc.health.v1.Health/Nothing",
        ] {
            let mut call = sample(Rpc::KVRange);
            call.path = path.to_owned();
            talk.call(call);
        }
        // What cannot be read as a message is told by code; the text is the library's.
        for rpc in [Rpc::KVPut, Rpc::LeaseLeaseGrant, Rpc::MaintenanceStatus, Rpc::WatchWatch] {
            let mut call = sample(rpc);
            call.requests = vec![Bytes::from_static(b"\x0a\xff\xff")];
            let came = talk.quietly(call);
            let code = came.status.map(|status| status.code());
            talk.note(&format!("{rpc:?} that is no message"), &format!("{code:?}"));
        }
    });
}

#[test]
fn health_is_told_alike() {
    compare(1, &[], |talk| {
        for service in ["", "etcdserverpb.KV", "nothing"] {
            talk.call(health("Check", service));
            talk.call(health("Watch", service).take(1));
        }
    });
}

#[test]
fn leases_are_answered_alike() {
    compare(1, &[], |talk| {
        for (id, ttl) in [
            (1, 0),
            (2, -1),
            (3, 1),
            (4, 2),
            (5, 9_000_000_000),
            (6, 9_000_000_001),
            (7, i64::MAX),
            (8, i64::MIN),
            (5, 10),
            (-3, 1000),
            (0, 1000),
            (i64::MAX, 1000),
        ] {
            talk.ask(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id, ttl });
        }
        for id in [5, 99, 0, -3] {
            for keys in [true, false] {
                talk.ask(Rpc::LeaseLeaseTimeToLive, &pb::LeaseTimeToLiveRequest { id, keys });
            }
            let lease = id;
            talk.ask(Rpc::KVPut, &pb::PutRequest { lease, ..put("k") });
        }
        talk.call(Call::new(Rpc::LeaseLeaseKeepAlive, &pb::LeaseKeepAliveRequest { id: 5 }));
        for id in [5, 5, 99, 0] {
            talk.ask(Rpc::LeaseLeaseRevoke, &pb::LeaseRevokeRequest { id });
        }
    });
}

#[test]
fn maintenance_is_answered_alike() {
    compare(1, &[], |talk| {
        for version in [
            "",
            "x",
            "3",
            "3.6",
            "3.6.0",
            "3.6.9",
            "v3.6.0",
            "3.6.0-rc.1",
            "3.6.0+x",
            "03.6.0",
            "3.5.0",
            "3.7.0",
            "3.8.0",
            "4.0.0",
            "2.9.9",
            "3.6.0.0",
            " 3.6.0",
            "-3.6.0",
            "99999999999999999999.1.0",
        ] {
            for action in [0, 1] {
                let version = version.to_owned();
                talk.ask(Rpc::MaintenanceDowngrade, &pb::DowngradeRequest { action, version });
                let cancel = pb::DowngradeRequest { action: 2, ..Default::default() };
                talk.quietly(Call::new(Rpc::MaintenanceDowngrade, &cancel));
                // Servers look every few seconds whether there is a downgrade to follow: it may have
                // begun.
                talk.cluster.members()[0].wait_for_its_version().expect("the downgrade is over");
            }
        }
        for action in [2, 2, 3, -1] {
            let version = "3.6.0".to_owned();
            talk.ask(Rpc::MaintenanceDowngrade, &pb::DowngradeRequest { action, version });
        }
        for number in 0..5 {
            let value = Bytes::from(vec![b'v'; 100_000]);
            let key = Bytes::from(format!("k{number}"));
            talk.quietly(Call::new(
                Rpc::KVPut,
                &pb::PutRequest { key, value, ..Default::default() },
            ));
        }
        for revision in [i64::MIN, -1, 0, 1, 3, 6, 7, i64::MAX] {
            talk.ask(Rpc::MaintenanceHashKV, &pb::HashKvRequest { revision });
        }
        talk.ask(Rpc::KVCompact, &pb::CompactionRequest { revision: 3, physical: true });
        for revision in [1, 2, 4, 6] {
            talk.ask(Rpc::MaintenanceHashKV, &pb::HashKvRequest { revision });
        }
        for revision in [i64::MIN, -1, 0, 3, 100] {
            talk.ask(Rpc::KVCompact, &pb::CompactionRequest { revision, physical: false });
        }
        snapshot(talk);
    });
}

/// The file is each server's own; the way it comes is not.
fn snapshot(talk: &mut Talk) {
    use prost::Message;
    use sha2::Digest;
    let came = talk.quietly(Call::new(Rpc::MaintenanceSnapshot, &pb::SnapshotRequest {}));
    let read = |message: &Bytes| pb::SnapshotResponse::decode(message.clone()).expect("a piece");
    let pieces: Vec<pb::SnapshotResponse> = came.messages.iter().map(read).collect();
    let (last, file) = pieces.split_last().expect("there are pieces");
    let bytes: Vec<u8> = file.iter().flat_map(|piece| piece.blob.to_vec()).collect();
    let digest = sha2::Sha256::digest(&bytes);
    let mut left: Vec<u64> = pieces.iter().map(|piece| piece.remaining_bytes).collect();
    let total = left[0] + file[0].blob.len() as u64;
    let whole = total == bytes.len() as u64;
    let sorted = left.is_sorted_by(|a, b| a >= b);
    let zeros = left.iter().filter(|left| **left == 0).count();
    left.dedup();
    let sizes: Vec<usize> = file.iter().map(|piece| piece.blob.len()).collect();
    let even = sizes[..sizes.len() - 1].iter().all(|size| *size == 32 << 10);
    talk.note(
        "a snapshot",
        &format!(
            "whole {whole} sorted {sorted} zeros {zeros} pieces {even} digest {} versions {:?} \
             headers {} last {:?} left {}",
            last.blob[..] == digest[..],
            pieces
                .iter()
                .map(|piece| piece.version.clone())
                .collect::<std::collections::BTreeSet<_>>(),
            pieces.iter().all(|piece| piece.header.is_none()),
            last.header,
            last.remaining_bytes,
        ),
    );
}
