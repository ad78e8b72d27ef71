//! Every method × everybody.
//!
//! | who | may |
//! |---|---|
//! | nobody, somebody with a bad token, `none` | nothing with keys |
//! | `exact` | read and write `k` |
//! | `prefix` | `[k, l)` |
//! | `from` | everything from `k` on |
//! | `root` | everything |
//!
//! A cell says whether auth lets the call pass, not what becomes of it then; the requests are chosen
//! so that a call that passes does little harm to those after it.

use bytes::Bytes;
use e2e::processes::Cluster;
use prost::Message;
use proto::authpb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{self as pb};
use proto::rpc::Rpc;
use proto::{v3electionpb, v3lockpb};
use tonic::Code;

use super::calls::{Answer, Server};

/// In the order of the columns of [`Want`].
const WHO: [&str; 7] = ["nobody", "bad token", "none", "exact", "prefix", "from", "root"];

/// Whom auth is to let pass.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// Administrators.
    Admin,
    /// Every user.
    AnyUser,
    /// Everybody but who shows a token that is none.
    Anybody,
    /// Literally everybody.
    Everybody,
    /// By the keys that are named: `exact`, `prefix`, `from`.
    Keys(bool, bool, bool),
    /// The same of a recipe, whose calls are made inside of the server: refusals lose their code.
    Recipe(bool, bool, bool),
}

const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const EMPTY: (Code, &str) = (Code::InvalidArgument, "etcdserver: user name is empty");
const TOKEN: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");

impl Want {
    /// How auth is to refuse this column, if it is.
    fn refusal(self, who: &str) -> Option<(Code, &'static str)> {
        let by_column = |passes: [bool; 3]| match who {
            "nobody" => Some(EMPTY),
            "bad token" => Some(TOKEN),
            "none" => Some(DENIED),
            "exact" => (!passes[0]).then_some(DENIED),
            "prefix" => (!passes[1]).then_some(DENIED),
            "from" => (!passes[2]).then_some(DENIED),
            _ => None,
        };
        match self {
            Want::Admin => by_column([false; 3]),
            Want::Keys(exact, prefix, from) => by_column([exact, prefix, from]),
            Want::Recipe(exact, prefix, from) => {
                by_column([exact, prefix, from]).map(|(_, text)| (Code::Unknown, text))
            }
            Want::AnyUser if who == "none" => None,
            Want::AnyUser => by_column([true; 3]),
            Want::Anybody => (who == "bad token").then_some(TOKEN),
            Want::Everybody => None,
        }
    }
}

/// One cell and what a server made of it.
pub(crate) struct Cell {
    pub(crate) name: String,
    pub(crate) answer: Answer,
    wanted: Option<(Code, &'static str)>,
}

impl Cell {
    pub(crate) fn is_as_wanted(&self) -> bool {
        let refusal = self.answer.refusal();
        refusal == self.wanted.map(|(code, text)| (code, text.to_owned()))
    }
}

/// One request of a method.
struct Probe {
    name: &'static str,
    request: Bytes,
    want: Want,
    /// The stream ends without a word instead.
    is_refused_in_silence: bool,
}

fn probe(name: &'static str, request: impl Message, want: Want) -> Probe {
    Probe { name, request: request.encode_to_vec().into(), want, is_refused_in_silence: false }
}

fn only(request: impl Message, want: Want) -> Vec<Probe> {
    vec![probe("", request, want)]
}

/// Users whose password is their name, each with a role of that name.
pub(crate) async fn add_users(server: &Server) {
    for user in ["none", "exact", "prefix", "from", "root", "victim"] {
        let (name, password) = (user.to_owned(), user.to_owned());
        let add = pb::AuthUserAddRequest { name, password, ..Default::default() };
        server.done(Rpc::AuthUserAdd, &add).await;
        server.done(Rpc::AuthRoleAdd, &pb::AuthRoleAddRequest { name: user.to_owned() }).await;
        let range_end: &'static [u8] = match user {
            "exact" => b"",
            "prefix" => b"l",
            "from" => b"\0",
            _ => continue,
        };
        let perm = authpb::Permission {
            perm_type: authpb::permission::Type::Readwrite as i32,
            key: "k".into(),
            range_end: Bytes::from_static(range_end),
        };
        let grant = pb::AuthRoleGrantPermissionRequest { name: user.to_owned(), perm: Some(perm) };
        server.done(Rpc::AuthRoleGrantPermission, &grant).await;
    }
    for user in ["exact", "prefix", "from", "root"] {
        let grant = pb::AuthUserGrantRoleRequest { user: user.to_owned(), role: user.to_owned() };
        server.done(Rpc::AuthUserGrantRole, &grant).await;
    }
}

/// Leases by what hangs on them.
const LEASE_ON_K: i64 = 11;
const LEASE_ON_J: i64 = 12;
const LEASE_ON_NOTHING: i64 = 13;

/// Makes the leases and hangs the keys on them, whatever the rows before have done to them.
async fn prepare(server: &Server, root: Option<&str>) {
    for (id, key) in [(LEASE_ON_K, "k"), (LEASE_ON_J, "j"), (LEASE_ON_NOTHING, "")] {
        // It may be there already.
        server.call(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id, ttl: 10_000 }, root).await;
        if !key.is_empty() {
            let put = pb::PutRequest { key: key.into(), lease: id, ..Default::default() };
            let _: pb::PutResponse = server.ask(Rpc::KVPut, &put, root).await;
        }
    }
}

/// Runs all cells on a new server.
pub(crate) async fn run(cluster: &Cluster) -> Vec<Cell> {
    let server = Server::connect(cluster).await;
    add_users(&server).await;
    prepare(&server, None).await;
    server.done(Rpc::AuthAuthEnable, &pb::AuthEnableRequest {}).await;
    let mut tokens = vec![None, Some("not.a.token".to_owned())];
    for user in &WHO[2..] {
        tokens.push(Some(server.log_in(user).await));
    }
    // What ends auth for everybody comes last.
    let mut rpcs = Rpc::ALL.to_vec();
    rpcs.sort_by_key(|rpc| match rpc {
        Rpc::AuthAuthDisable => 3,
        // They hang keys on the leases.
        Rpc::LockLock
        | Rpc::LockUnlock
        | Rpc::ElectionCampaign
        | Rpc::ElectionProclaim
        | Rpc::ElectionLeader
        | Rpc::ElectionObserve
        | Rpc::ElectionResign => 2,
        Rpc::LeaseLeaseRevoke => 1,
        _ => 0,
    });
    let mut cells = Vec::new();
    for rpc in rpcs {
        for probe in probes(rpc, &server.peer_url) {
            prepare(&server, tokens.last().and_then(Option::as_deref)).await;
            for (who, token) in WHO.iter().zip(&tokens) {
                let request = Raw(probe.request.clone());
                let answer = server.call(rpc, &request, token.as_deref()).await;
                let name = format!("{} {} as {who}", rpc.path(), probe.name);
                let refusal = probe.want.refusal(who);
                let wanted = match probe.is_refused_in_silence {
                    true => refusal.map(|_| (Code::Unknown, "")),
                    false => refusal,
                };
                cells.push(Cell { name, answer, wanted });
            }
        }
    }
    cells
}

/// A message that is encoded already.
#[derive(Debug, Default)]
struct Raw(Bytes);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        unreachable!("it is only sent")
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: true }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// The interval algebra on anything that reads or writes a range.
fn ranges<M: Message>(request: fn(&'static str, &'static str) -> M) -> Vec<Probe> {
    vec![
        probe("k", request("k", ""), Want::Keys(true, true, true)),
        probe("[k, k\\0)", request("k", "k\0"), Want::Keys(true, true, true)),
        probe("ka", request("ka", ""), Want::Keys(false, true, true)),
        probe("[k, l)", request("k", "l"), Want::Keys(false, true, true)),
        probe("[k, m)", request("k", "m"), Want::Keys(false, false, true)),
        probe("k..", request("k", "\0"), Want::Keys(false, false, true)),
        probe("zz..", request("zz", "\0"), Want::Keys(false, false, true)),
        probe("j", request("j", ""), Want::Keys(false, false, false)),
        probe("[j, l)", request("j", "l"), Want::Keys(false, false, false)),
        probe("all", request("\0", "\0"), Want::Keys(false, false, false)),
        probe("[k, a), which is empty", request("k", "a"), Want::Keys(true, true, true)),
        probe("[l, a), which is empty", request("l", "a"), Want::Keys(false, false, true)),
    ]
}

fn watches() -> Vec<Probe> {
    let create = |key: &'static str, range_end: &'static str| {
        let (key, range_end) = (key.into(), range_end.into());
        let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
        pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    };
    let mut probes = ranges(create);
    // An empty watch is refused for another reason by both, but only if it may be made.
    probes.push(probe("no key", create("", "\0"), Want::Keys(false, false, false)));
    probes
}

/// Transactions in which the interesting part is in every possible place.
fn txns() -> Vec<Probe> {
    let compare = |key: &'static str| pb::TxnRequest {
        compare: vec![pb::Compare {
            key: key.into(),
            target_union: Some(TargetUnion::Version(1)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let then = |request: Op| pb::TxnRequest { success: vec![op(request)], ..Default::default() };
    let or_else = |request: Op| pb::TxnRequest { failure: vec![op(request)], ..Default::default() };
    let nested = |inner: pb::TxnRequest| then(Op::RequestTxn(inner));
    let k = Want::Keys(true, true, true);
    let j = Want::Keys(false, false, false);
    let with_lease = |key, lease| pb::PutRequest { lease, ..put(key) };
    let reading = |key| pb::PutRequest { prev_kv: true, ..put(key) };
    vec![
        probe("compare k", compare("k"), k),
        probe("compare j", compare("j"), j),
        probe("range k", then(Op::RequestRange(range("k", ""))), k),
        probe("range j", then(Op::RequestRange(range("j", ""))), j),
        probe("untaken range j", or_else(Op::RequestRange(range("j", ""))), j),
        probe("put k", then(Op::RequestPut(reading("k"))), k),
        probe("put j", then(Op::RequestPut(put("j"))), j),
        probe("untaken put j", or_else(Op::RequestPut(put("j"))), j),
        probe("put ka", then(Op::RequestPut(put("ka"))), Want::Keys(false, true, true)),
        probe("lease of j", then(Op::RequestPut(with_lease("k", LEASE_ON_J))), j),
        probe(
            "delete [k, l)",
            then(Op::RequestDeleteRange(delete("ka", "l"))),
            Want::Keys(false, true, true),
        ),
        probe("untaken delete j", or_else(Op::RequestDeleteRange(delete("j", ""))), j),
        probe("nested put k", nested(then(Op::RequestPut(put("k")))), k),
        probe("nested put j", nested(then(Op::RequestPut(put("j")))), j),
        probe("nested untaken put j", nested(or_else(Op::RequestPut(put("j")))), j),
        probe("nested compare j", nested(compare("j")), j),
        probe("nested twice", nested(nested(or_else(Op::RequestRange(range("j", ""))))), j),
    ]
}

fn leases<M: Message>(request: fn(i64) -> M) -> Vec<Probe> {
    vec![
        probe("on k", request(LEASE_ON_K), Want::Keys(true, true, true)),
        probe("on j", request(LEASE_ON_J), Want::Keys(false, false, false)),
        probe("on nothing", request(LEASE_ON_NOTHING), Want::AnyUser),
        probe("not there", request(99), Want::AnyUser),
    ]
}

/// The rows. One for every method: what is missing here does not compile.
#[expect(clippy::too_many_lines, reason = "one table, an arm per method")]
fn probes(rpc: Rpc, peer_url: &str) -> Vec<Probe> {
    let text = |text: &str| text.to_owned();
    match rpc {
        Rpc::KVRange | Rpc::KVRangeStream => ranges(range),
        Rpc::KVPut => {
            let (with, mine) = (put("k"), Want::Keys(true, true, true));
            vec![
                probe("k", with.clone(), mine),
                probe("ka", put("ka"), Want::Keys(false, true, true)),
                probe("l", put("l"), Want::Keys(false, false, true)),
                probe("j", put("j"), Want::Keys(false, false, false)),
                probe("k reading", pb::PutRequest { prev_kv: true, ..with.clone() }, mine),
                probe(
                    "lease of j",
                    pb::PutRequest { lease: LEASE_ON_J, ..with.clone() },
                    Want::Keys(false, false, false),
                ),
                probe("lease of k", pb::PutRequest { lease: LEASE_ON_K, ..with }, mine),
            ]
        }
        Rpc::KVDeleteRange => ranges(delete)
            .into_iter()
            // `root` would delete what later rows need.
            .filter(|probe| {
                !["j", "k", "[j, l)", "all", "k..", "[k, l)", "[k, m)", "[k, k\\0)"]
                    .contains(&probe.name)
            })
            .chain([probe("j", delete("j\0", ""), Want::Keys(false, false, false))])
            .collect(),
        Rpc::KVTxn => txns(),
        Rpc::KVCompact => only(pb::CompactionRequest { revision: 1, physical: false }, Want::Admin),
        Rpc::WatchWatch => watches(),
        Rpc::LeaseLeaseGrant => only(pb::LeaseGrantRequest { id: 0, ttl: 100 }, Want::AnyUser),
        Rpc::LeaseLeaseRevoke => leases(|id| pb::LeaseRevokeRequest { id }),
        Rpc::LeaseLeaseKeepAlive => leases(|id| pb::LeaseKeepAliveRequest { id }),
        Rpc::LeaseLeaseTimeToLive => {
            let mut probes = leases(|id| pb::LeaseTimeToLiveRequest { id, keys: true });
            let without = pb::LeaseTimeToLiveRequest { id: LEASE_ON_J, keys: false };
            probes.push(probe("on j without keys", without, Want::AnyUser));
            probes
        }
        // One of the leases has a key that only `root` may read.
        Rpc::LeaseLeaseLeases => only(pb::LeaseLeasesRequest {}, Want::Keys(false, false, false)),
        Rpc::ClusterMemberAdd => {
            let peer_ur_ls = vec![peer_url.to_owned()];
            only(pb::MemberAddRequest { peer_ur_ls, is_learner: true }, Want::Admin)
        }
        Rpc::ClusterMemberRemove => only(pb::MemberRemoveRequest { id: 1 }, Want::Admin),
        Rpc::ClusterMemberUpdate => {
            let peer_ur_ls = vec![peer_url.to_owned()];
            only(pb::MemberUpdateRequest { id: 1, peer_ur_ls }, Want::Admin)
        }
        Rpc::ClusterMemberPromote => only(pb::MemberPromoteRequest { id: 1 }, Want::Admin),
        Rpc::ClusterMemberList => only(pb::MemberListRequest { linearizable: true }, Want::AnyUser),
        Rpc::MaintenanceAlarm => {
            let alarm = |action: AlarmAction| pb::AlarmRequest {
                action: action as i32,
                member_id: 1,
                alarm: pb::AlarmType::Nospace as i32,
            };
            vec![
                probe("get", alarm(AlarmAction::Get), Want::AnyUser),
                probe("deactivate", alarm(AlarmAction::Deactivate), Want::Admin),
                probe(
                    "activate",
                    pb::AlarmRequest { alarm: 0, ..alarm(AlarmAction::Activate) },
                    Want::Admin,
                ),
            ]
        }
        Rpc::MaintenanceStatus => only(pb::StatusRequest {}, Want::AnyUser),
        Rpc::MaintenanceDefragment => only(pb::DefragmentRequest {}, Want::Admin),
        Rpc::MaintenanceHash => only(pb::HashRequest {}, Want::Admin),
        Rpc::MaintenanceHashKV => only(pb::HashKvRequest { revision: 0 }, Want::Admin),
        Rpc::MaintenanceSnapshot => only(pb::SnapshotRequest {}, Want::Admin),
        Rpc::MaintenanceMoveLeader => only(pb::MoveLeaderRequest { target_id: 1 }, Want::Admin),
        Rpc::MaintenanceDowngrade => {
            let validate = pb::downgrade_request::DowngradeAction::Validate as i32;
            only(pb::DowngradeRequest { action: validate, version: text("3.6.0") }, Want::Admin)
        }
        Rpc::AuthAuthEnable => only(pb::AuthEnableRequest {}, Want::Admin),
        Rpc::AuthAuthDisable => only(pb::AuthDisableRequest {}, Want::Admin),
        Rpc::AuthAuthStatus => only(pb::AuthStatusRequest {}, Want::Anybody),
        Rpc::AuthAuthenticate => {
            let (name, password) = (text("victim"), text("victim"));
            only(pb::AuthenticateRequest { name, password }, Want::Everybody)
        }
        Rpc::AuthUserAdd => {
            let (name, password) = (text("new"), text("new"));
            only(pb::AuthUserAddRequest { name, password, ..Default::default() }, Want::Admin)
        }
        Rpc::AuthUserGet => vec![
            probe(
                "exact",
                pb::AuthUserGetRequest { name: text("exact") },
                Want::Keys(true, false, false),
            ),
            probe("nobody", pb::AuthUserGetRequest { name: text("nobody") }, Want::Admin),
        ],
        Rpc::AuthUserList => only(pb::AuthUserListRequest {}, Want::Admin),
        Rpc::AuthUserDelete => only(pb::AuthUserDeleteRequest { name: text("new") }, Want::Admin),
        Rpc::AuthUserChangePassword => {
            let (name, password) = (text("victim"), text("other"));
            let request =
                pb::AuthUserChangePasswordRequest { name, password, ..Default::default() };
            only(request, Want::Admin)
        }
        Rpc::AuthUserGrantRole => {
            let (user, role) = (text("victim"), text("root"));
            only(pb::AuthUserGrantRoleRequest { user, role }, Want::Admin)
        }
        Rpc::AuthUserRevokeRole => {
            let (name, role) = (text("victim"), text("root"));
            only(pb::AuthUserRevokeRoleRequest { name, role }, Want::Admin)
        }
        Rpc::AuthRoleAdd => only(pb::AuthRoleAddRequest { name: text("new") }, Want::Admin),
        Rpc::AuthRoleGet => vec![
            probe(
                "exact",
                pb::AuthRoleGetRequest { role: text("exact") },
                Want::Keys(true, false, false),
            ),
            probe("root", pb::AuthRoleGetRequest { role: text("root") }, Want::Admin),
        ],
        Rpc::AuthRoleList => only(pb::AuthRoleListRequest {}, Want::Admin),
        Rpc::AuthRoleDelete => only(pb::AuthRoleDeleteRequest { role: text("new") }, Want::Admin),
        Rpc::AuthRoleGrantPermission => {
            let perm = authpb::Permission { key: "x".into(), ..Default::default() };
            let request =
                pb::AuthRoleGrantPermissionRequest { name: text("victim"), perm: Some(perm) };
            only(request, Want::Admin)
        }
        Rpc::AuthRoleRevokePermission => {
            let (role, key) = (text("victim"), "x".into());
            let request =
                pb::AuthRoleRevokePermissionRequest { role, key, range_end: Bytes::new() };
            only(request, Want::Admin)
        }
        Rpc::LockLock => {
            recipes("", |name, lease| v3lockpb::LockRequest { name: name.to_owned().into(), lease })
        }
        Rpc::LockUnlock => recipes("", |name, lease| v3lockpb::UnlockRequest {
            key: candidate(name, lease).into(),
        }),
        Rpc::ElectionCampaign => recipes("-e", |name, lease| v3electionpb::CampaignRequest {
            name: name.to_owned().into(),
            lease,
            value: "somebody".into(),
        }),
        Rpc::ElectionProclaim => recipes("-e", |name, lease| v3electionpb::ProclaimRequest {
            leader: Some(leader(name, lease)),
            value: "somebody else".into(),
        }),
        Rpc::ElectionLeader => {
            recipes("-e", |name, _| v3electionpb::LeaderRequest { name: name.to_owned().into() })
        }
        Rpc::ElectionObserve => {
            recipes("-e", |name, _| v3electionpb::LeaderRequest { name: name.to_owned().into() })
                .into_iter()
                .map(|probe| Probe { is_refused_in_silence: true, ..probe })
                .collect()
        }
        Rpc::ElectionResign => recipes("-e", |name, lease| v3electionpb::ResignRequest {
            leader: Some(leader(name, lease)),
        }),
    }
}

/// Locks and elections: keys below a name, each name with a lease whose keys are as hard to come by.
fn recipes<M: Message>(ending: &str, request: fn(&str, i64) -> M) -> Vec<Probe> {
    let of = |name: &str, lease| request(&format!("{name}{ending}"), lease);
    vec![
        probe("k", of("k", LEASE_ON_K), Want::Recipe(false, true, true)),
        probe("zz", of("zz", LEASE_ON_NOTHING), Want::Recipe(false, false, true)),
        probe("j", of("j", LEASE_ON_J), Want::Recipe(false, false, false)),
    ]
}

/// The key by which the holder of a lease takes part.
fn candidate(name: &str, lease: i64) -> String {
    format!("{name}/{lease:x}")
}

fn leader(name: &str, lease: i64) -> v3electionpb::LeaderKey {
    let (key, name) = (candidate(name, lease).into(), name.to_owned().into());
    v3electionpb::LeaderKey { name, key, rev: 1, lease }
}
