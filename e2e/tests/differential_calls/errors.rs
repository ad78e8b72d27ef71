//! Errors: the code and the text of each, as it comes over the wire from both servers.
//!
//! Every error that ours has (`server/src/api/status.rs`) has a row: how it is provoked, or why it cannot
//! be from outside.

use std::collections::BTreeSet;

use proto::authpb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::{self as pb, AlarmType};
use proto::rpc::Rpc;
use tonic::Code;
use tonic::Code::{
    DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted,
    Unauthenticated, Unavailable, Unknown,
};

use super::random::lead;
use super::refusals::{own_id, sample};
use super::talk::{Call, Talk, with_both};

/// Where the errors of ours stand.
const OURS: &str = include_str!("../../../server/src/api/status.rs");

/// How an error is met.
enum Met {
    /// By this call to the only member of a cluster; the rows follow each other on one.
    Alone(Provoke),
    /// By this call to a cluster of so many.
    Among(usize, Provoke),
    /// By another test, which expects its text.
    By(&'static str),
    /// It cannot be provoked from outside, and why.
    Never(&'static str),
}

use Met::{Alone, Among, By, Never};

#[rustfmt::skip]
const ERRORS: &[(Code, &str, Met)] = &[
    (InvalidArgument, "key is not provided", Alone(|_| put("", |_| {}))),
    (InvalidArgument, "key not found", Alone(|_| put("none", |put| { put.value.clear(); put.ignore_value = true; }))),
    (InvalidArgument, "value is provided", Alone(|_| put("k", |put| put.ignore_value = true))),
    (InvalidArgument, "lease is provided", Alone(|_| put("k", |put| { put.ignore_lease = true; put.lease = 1; }))),
    (InvalidArgument, "too many operations in txn request", Alone(|_| txn(200))),
    (InvalidArgument, "duplicate key given in txn request", Alone(|_| txn(2))),
    (InvalidArgument, "invalid client api version", Alone(|_| put("k", |_| {}).with("client-api-version", b"\xff"))),
    (InvalidArgument, "invalid sort option", Alone(|_| range(|range| range.sort_order = 9))),
    (InvalidArgument, "request is too large", Alone(|_| put("k", |put| put.value = vec![b'v'; 1_600_000].into()))),
    (OutOfRange, "mvcc: required revision has been compacted", Alone(compacted)),
    (OutOfRange, "mvcc: required revision is a future revision", Alone(|_| range(|range| range.revision = 99_999))),
    (NotFound, "requested lease not found", Alone(|_| put("k", |put| put.lease = 99))),
    (FailedPrecondition, "lease already exists", Alone(|talk| { talk.quietly(grant(5)); grant(5) })),
    (OutOfRange, "too large lease TTL", Alone(|_| grant(9_000_000_001))),
    (NotFound, "member not found", Alone(|_| Call::new(Rpc::ClusterMemberRemove, &pb::MemberRemoveRequest { id: 1 }))),
    (InvalidArgument, "given member URLs are invalid", Alone(|_| add("nonsense", false))),
    (FailedPrecondition, "Peer URLs already exists", Alone(|talk| { let own = talk.cluster.members()[0].peer_url.clone(); add(&own, false) })),
    (FailedPrecondition, "can only promote a learner member", Alone(|talk| promote(own_id(talk)))),
    (FailedPrecondition, "can only promote a learner member which is in sync with leader", Alone(|talk| { let came = talk.quietly(add("http://127.0.0.1:1", true)); promote(came.read::<pb::MemberAddResponse>().member.map_or(0, |member| member.id)) })),
    (FailedPrecondition, "too many learner members in cluster", Alone(|_| add("http://127.0.0.1:2", true))),
    (FailedPrecondition, "bad leader transferee", Alone(|_| Call::new(Rpc::MaintenanceMoveLeader, &pb::MoveLeaderRequest { target_id: 1 }))),
    (InvalidArgument, "wrong downgrade target version format", Alone(|_| downgrade(0, "x"))),
    (InvalidArgument, "invalid downgrade target version", Alone(|_| downgrade(0, "3.4.0"))),
    (FailedPrecondition, "no inflight downgrade job", Never("whoever cancels a downgrade is not told that there is none")),
    (FailedPrecondition, "cluster has a downgrade job in progress", Alone(|talk| { talk.quietly(downgrade(1, "3.6.0")); downgrade(1, "3.6.0") })),
    (FailedPrecondition, "authentication is not enabled", Alone(|talk| { talk.quietly(downgrade(2, "")); log_in("root", "pw") })),
    (FailedPrecondition, "root user does not exist", Alone(|_| Call::new(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {}))),
    (FailedPrecondition, "root user does not have root role", Alone(|talk| { talk.quietly(user("root")); Call::new(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {}) })),
    (FailedPrecondition, "user name already exists", Alone(|_| user("root"))),
    (InvalidArgument, "user name is empty", Alone(|_| user(""))),
    (FailedPrecondition, "user name not found", Alone(|_| Call::new(Rpc::AuthUserGet, &pb::AuthUserGetRequest { name: "none".to_owned() }))),
    (FailedPrecondition, "role name already exists", Alone(|talk| { talk.quietly(role("root")); role("root") })),
    (InvalidArgument, "role name is empty", Alone(|_| role(""))),
    (FailedPrecondition, "role name not found", Alone(|_| Call::new(Rpc::AuthRoleGet, &pb::AuthRoleGetRequest { role: "none".to_owned() }))),
    (FailedPrecondition, "role is not granted to the user", Alone(|_| Call::new(Rpc::AuthUserRevokeRole, &pb::AuthUserRevokeRoleRequest { name: "root".to_owned(), role: "none".to_owned() }))),
    (FailedPrecondition, "permission is not granted to the role", Alone(|_| Call::new(Rpc::AuthRoleRevokePermission, &pb::AuthRoleRevokePermissionRequest { role: "root".to_owned(), key: "none".into(), range_end: "".into() }))),
    (InvalidArgument, "permission not given", Alone(|_| Call::new(Rpc::AuthRoleGrantPermission, &pb::AuthRoleGrantPermissionRequest { name: "root".to_owned(), perm: None }))),
    (Code::PermissionDenied, "permission denied", Alone(refused_by_auth)),
    (InvalidArgument, "authentication failed, invalid user ID or password", Alone(|_| log_in("root", "wrong"))),
    (Unauthenticated, "invalid auth token", Alone(|_| put("k", |_| {}).with("token", b"nonsense"))),
    (InvalidArgument, "invalid auth management", Alone(|talk| { let token = token(talk, "root"); Call::new(Rpc::AuthUserDelete, &pb::AuthUserDeleteRequest { name: "root".to_owned() }).with("token", &token) })),
    (InvalidArgument, "revision of auth store is old", By("differential_auth.rs")),
    (ResourceExhausted, "mvcc: database space exceeded", Among(1, |talk| { raise(talk, AlarmType::Nospace); put("k", |_| {}) })),
    (DataLoss, "corrupt cluster", Among(1, |talk| { raise(talk, AlarmType::Corrupt); put("k", |_| {}) })),
    (Unknown, "re-configuration failed due to not enough started members", Among(1, |talk| { talk.quietly(add("http://127.0.0.1:1", false)); add("http://127.0.0.1:2", false) })),
    (FailedPrecondition, "not leader", Among(2, follower)),
    (Unavailable, "no leader", Among(2, |talk| { lonely(talk); sample(Rpc::WatchWatch).with("hasleader", b"true") })),
    (Unavailable, "request timed out", Among(2, |talk| { lonely(talk); sample(Rpc::ClusterMemberList) })),
    (Unavailable, "unhealthy cluster", By("differential_calls/refusals.rs")),
    (FailedPrecondition, "rpc not supported for learner", By("differential_calls/refusals.rs")),
    (Unknown, "too many requests", By("differential_calls/troubled.rs")),
    (Unavailable, "leader changed", By("differential_calls/troubled.rs")),
    (Unavailable, "server stopped", Never("calls end before Raft does: whoever is told to stop drains or cuts them first (etcd: embed, `Close`); only etcd's removed member says so, if the answer leaves before its process does")),
    (Unavailable, "request timed out, possibly due to previous leader failure", Never("a proposal has to end while the leader is lost; ours says so where etcd says `context deadline exceeded`, see the README")),
    (Unavailable, "request timed out, possibly due to connection lost", Never("the connection to the leader has to break while it is one")),
    (Unavailable, "request timed out, waiting for the applied index took too long", Never("a member has to know of entries that it cannot apply for seven seconds")),
    (FailedPrecondition, "member ID already exist", Never("ids are made of the URLs, and those are refused before")),
    (FailedPrecondition, "cluster version not found during downgrade", Never("a member serves only once there is one")),
];

fn put(key: &str, change: impl Fn(&mut pb::PutRequest)) -> Call {
    let mut request =
        pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    change(&mut request);
    Call::new(Rpc::KVPut, &request)
}

fn range(change: impl Fn(&mut pb::RangeRequest)) -> Call {
    let mut request = pb::RangeRequest { key: "k".into(), ..Default::default() };
    change(&mut request);
    Call::new(Rpc::KVRange, &request)
}

/// Puts one key so many times.
fn txn(puts: usize) -> Call {
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    let success = vec![pb::RequestOp { request: Some(Op::RequestPut(put)) }; puts];
    Call::new(Rpc::KVTxn, &pb::TxnRequest { success, ..Default::default() })
}

fn compacted(talk: &mut Talk) -> Call {
    for _ in 0..3 {
        talk.quietly(put("k", |_| {}));
    }
    talk.quietly(Call::new(Rpc::KVCompact, &pb::CompactionRequest { revision: 3, physical: true }));
    range(|range| range.revision = 2)
}

fn grant(ttl: i64) -> Call {
    Call::new(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id: 5, ttl })
}

fn add(url: &str, is_learner: bool) -> Call {
    let peer_ur_ls = vec![url.to_owned()];
    Call::new(Rpc::ClusterMemberAdd, &pb::MemberAddRequest { peer_ur_ls, is_learner })
}

fn promote(id: u64) -> Call {
    Call::new(Rpc::ClusterMemberPromote, &pb::MemberPromoteRequest { id })
}

fn downgrade(action: i32, version: &str) -> Call {
    let version = version.to_owned();
    Call::new(Rpc::MaintenanceDowngrade, &pb::DowngradeRequest { action, version })
}

fn user(name: &str) -> Call {
    let (name, password) = (name.to_owned(), "pw".to_owned());
    Call::new(Rpc::AuthUserAdd, &pb::AuthUserAddRequest { name, password, ..Default::default() })
}

fn role(name: &str) -> Call {
    Call::new(Rpc::AuthRoleAdd, &pb::AuthRoleAddRequest { name: name.to_owned() })
}

fn log_in(name: &str, password: &str) -> Call {
    let (name, password) = (name.to_owned(), password.to_owned());
    Call::new(Rpc::AuthAuthenticate, &pb::AuthenticateRequest { name, password })
}

fn token(talk: &mut Talk, name: &str) -> Vec<u8> {
    let came = talk.quietly(log_in(name, "pw"));
    came.read::<pb::AuthenticateResponse>().token.into_bytes()
}

/// Turns authentication on; what a user then may not do.
fn refused_by_auth(talk: &mut Talk) -> Call {
    let user_and_role = |user: &str, role: &str| {
        let (user, role) = (user.to_owned(), role.to_owned());
        Call::new(Rpc::AuthUserGrantRole, &pb::AuthUserGrantRoleRequest { user, role })
    };
    let perm = Some(authpb::Permission { key: "mine".into(), ..Default::default() });
    let grant = pb::AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm };
    for call in [
        user_and_role("root", "root"),
        user("u"),
        role("r"),
        Call::new(Rpc::AuthRoleGrantPermission, &grant),
        user_and_role("u", "r"),
        Call::new(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {}),
    ] {
        let came = talk.quietly(call.clone());
        assert!(came.status.is_none(), "{call:?}: {came:?}");
    }
    let token = token(talk, "u");
    put("other", |_| {}).with("token", &token)
}

fn raise(talk: &mut Talk, kind: AlarmType) {
    let request = pb::AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: own_id(talk),
        alarm: kind as i32,
    };
    talk.quietly(Call::new(Rpc::MaintenanceAlarm, &request));
}

/// What only a leader does, asked of another.
fn follower(talk: &mut Talk) -> Call {
    lead(talk, 0);
    talk.member = 0;
    let target_id = own_id(talk);
    talk.member = 1;
    Call::new(Rpc::MaintenanceMoveLeader, &pb::MoveLeaderRequest { target_id })
}

/// Leaves a member without the other one, and waits until it has no leader.
fn lonely(talk: &mut Talk) {
    lead(talk, 0);
    talk.member = 0;
    talk.cluster.member_mut(1).kill().expect("kill the other member");
    super::refusals::until(talk, "the leader gives up", |status| status.leader == 0);
}

/// Makes a cluster such that a call of it is answered with the error.
type Provoke = fn(&mut Talk) -> Call;

/// What was met on both servers for each row.
fn met(members: usize, rows: &[(usize, Provoke)]) -> [Vec<String>; 2] {
    with_both(members, &["--bcrypt-cost=4"], |talk| {
        let one = |(row, provoke): &(usize, Provoke)| {
            let call = provoke(talk);
            let came = talk.quietly(call);
            match came.status {
                Some(status) => format!("{:?}: {}", status.code(), status.message()),
                None => format!("row {row}: no error"),
            }
        };
        rows.iter().map(one).collect()
    })
}

#[test]
fn errors_have_etcds_codes_and_texts() {
    let mut alone = Vec::new();
    let mut wrong = String::new();
    let mut compared = 0;
    let mut compare = |members: usize, rows: &[(usize, Provoke)]| {
        let [go, ours] = met(members, rows);
        for (((row, _), go), ours) in rows.iter().zip(go).zip(ours) {
            let (code, text, _) = &ERRORS[*row];
            let expected = format!("{code:?}: etcdserver: {text}");
            compared += 1;
            if go != expected || ours != expected {
                wrong.push_str(&format!("{expected}\n  Go   {go}\n  ours {ours}\n"));
            }
        }
    };
    for (row, (_, _, met)) in ERRORS.iter().enumerate() {
        match met {
            Alone(provoke) => alone.push((row, *provoke)),
            Among(members, provoke) => compare(*members, &[(row, *provoke)]),
            By(_) | Never(_) => {}
        }
    }
    compare(1, &alone);
    assert!(wrong.is_empty(), "{wrong}");
    println!("{compared} commands compared, {compared} equal");
}

#[test]
fn every_error_has_a_row() {
    let texts = OURS.split('"').filter_map(|text| text.strip_prefix("etcdserver: "));
    let ours: BTreeSet<&str> = texts.collect();
    let rows: BTreeSet<&str> = ERRORS.iter().map(|(_, text, _)| *text).collect();
    assert_eq!(rows, ours);
    assert_eq!(rows.len(), ERRORS.len(), "an error has two rows");
    for (_, text, met) in ERRORS {
        match met {
            By(test) => {
                let path = format!("{}/tests/{test}", env!("CARGO_MANIFEST_DIR"));
                let source = std::fs::read_to_string(&path).expect(&path);
                assert!(source.contains(&format!("{text}\"")), "{test} does not expect {text:?}");
            }
            Never(why) => assert!(!why.is_empty(), "{text}: why?"),
            Alone(_) | Among(..) => {}
        }
    }
}
