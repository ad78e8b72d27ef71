//! Answers as text, without what differs from run to run.

use std::fmt::Debug;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

/// Numbers that follow these names depend on the run.
const VOLATILE: [&str; 10] = [
    "cluster_id: ",
    "member_id: ",
    "raft_term: ",
    "leader: ",
    "raft_index: ",
    "raft_applied_index: ",
    "db_size: ",
    "db_size_in_use: ",
    "remaining_bytes: ",
    "127.0.0.1:",
];

/// Numbers with so many digits are ids that a server has chosen.
const DIGITS_OF_IDS: usize = 15;

fn read<M: Message + Default + Debug>(message: &Bytes) -> M {
    M::decode(message.clone()).unwrap_or_else(|error| panic!("{error}: {message:?}"))
}

fn text<M: Message + Default + Debug>(message: &Bytes) -> String {
    format!("{:?} ", read::<M>(message))
}

/// Members come in the order of their ids, which are chosen by chance.
fn by_name(mut members: Vec<pb::Member>) -> Vec<pb::Member> {
    members.sort_by(|a, b| (&a.name, &a.peer_ur_ls).cmp(&(&b.name, &b.peer_ur_ls)));
    members
}

/// A message as text. A method without an arm does not compile.
#[expect(clippy::too_many_lines, reason = "one table, an arm per method")]
pub(crate) fn shown(rpc: Option<Rpc>, message: &Bytes) -> String {
    let Some(rpc) = rpc else { return format!("{message:?} ") };
    match rpc {
        Rpc::KVRange => text::<pb::RangeResponse>(message),
        Rpc::KVRangeStream => text::<pb::RangeStreamResponse>(message),
        Rpc::KVPut => text::<pb::PutResponse>(message),
        Rpc::KVDeleteRange => text::<pb::DeleteRangeResponse>(message),
        Rpc::KVTxn => text::<pb::TxnResponse>(message),
        Rpc::KVCompact => text::<pb::CompactionResponse>(message),
        Rpc::WatchWatch => text::<pb::WatchResponse>(message),
        Rpc::LeaseLeaseGrant => text::<pb::LeaseGrantResponse>(message),
        Rpc::LeaseLeaseRevoke => text::<pb::LeaseRevokeResponse>(message),
        Rpc::LeaseLeaseKeepAlive => text::<pb::LeaseKeepAliveResponse>(message),
        Rpc::LeaseLeaseTimeToLive => {
            let mut answer: pb::LeaseTimeToLiveResponse = read(message);
            // Go lists them in the order of its map, which is none.
            answer.keys.sort();
            // Time goes on.
            answer.ttl = answer.ttl.min(1);
            format!("{answer:?} ")
        }
        Rpc::LeaseLeaseLeases => {
            // They come in the order in which they expire, which a follower of Go etcd does not know.
            let mut answer: pb::LeaseLeasesResponse = read(message);
            answer.leases.sort_by_key(|lease| lease.id);
            format!("{answer:?} ")
        }
        Rpc::ClusterMemberAdd => {
            let answer: pb::MemberAddResponse = read(message);
            format!("{:?} ", pb::MemberAddResponse { members: by_name(answer.members), ..answer })
        }
        Rpc::ClusterMemberRemove => {
            let answer: pb::MemberRemoveResponse = read(message);
            format!(
                "{:?} ",
                pb::MemberRemoveResponse { members: by_name(answer.members), ..answer }
            )
        }
        Rpc::ClusterMemberUpdate => {
            let answer: pb::MemberUpdateResponse = read(message);
            format!(
                "{:?} ",
                pb::MemberUpdateResponse { members: by_name(answer.members), ..answer }
            )
        }
        Rpc::ClusterMemberPromote => {
            let answer: pb::MemberPromoteResponse = read(message);
            format!(
                "{:?} ",
                pb::MemberPromoteResponse { members: by_name(answer.members), ..answer }
            )
        }
        Rpc::ClusterMemberList => {
            let answer: pb::MemberListResponse = read(message);
            format!("{:?} ", pb::MemberListResponse { members: by_name(answer.members), ..answer })
        }
        Rpc::MaintenanceAlarm => text::<pb::AlarmResponse>(message),
        Rpc::MaintenanceStatus => {
            // An empty store takes no space here.
            let mut answer: pb::StatusResponse = read(message);
            // Go lists alarms in the order of its map, which is none.
            answer.errors.sort();
            format!("{:?} ", pb::StatusResponse { db_size_in_use: 1, ..answer })
        }
        Rpc::MaintenanceDefragment => text::<pb::DefragmentResponse>(message),
        Rpc::MaintenanceHash => {
            // It covers the whole file, which is Go's own.
            let answer: pb::HashResponse = read(message);
            format!("{:?} ", pb::HashResponse { hash: answer.hash.min(1), ..answer })
        }
        Rpc::MaintenanceHashKV => text::<pb::HashKvResponse>(message),
        Rpc::MaintenanceSnapshot => {
            let answer: pb::SnapshotResponse = read(message);
            // The file is Go's own; that there is something in every message is not.
            let blob = Bytes::from(format!("{} bytes", answer.blob.len().min(1)));
            format!("{:?} ", pb::SnapshotResponse { blob, ..answer })
        }
        Rpc::MaintenanceMoveLeader => text::<pb::MoveLeaderResponse>(message),
        Rpc::MaintenanceDowngrade => text::<pb::DowngradeResponse>(message),
        Rpc::AuthAuthEnable => text::<pb::AuthEnableResponse>(message),
        Rpc::AuthAuthDisable => text::<pb::AuthDisableResponse>(message),
        Rpc::AuthAuthStatus => text::<pb::AuthStatusResponse>(message),
        Rpc::AuthAuthenticate => {
            let answer: pb::AuthenticateResponse = read(message);
            let token = format!("{} dots", answer.token.matches('.').count());
            format!("{:?} ", pb::AuthenticateResponse { token, ..answer })
        }
        Rpc::AuthUserAdd => text::<pb::AuthUserAddResponse>(message),
        Rpc::AuthUserGet => text::<pb::AuthUserGetResponse>(message),
        Rpc::AuthUserList => text::<pb::AuthUserListResponse>(message),
        Rpc::AuthUserDelete => text::<pb::AuthUserDeleteResponse>(message),
        Rpc::AuthUserChangePassword => text::<pb::AuthUserChangePasswordResponse>(message),
        Rpc::AuthUserGrantRole => text::<pb::AuthUserGrantRoleResponse>(message),
        Rpc::AuthUserRevokeRole => text::<pb::AuthUserRevokeRoleResponse>(message),
        Rpc::AuthRoleAdd => text::<pb::AuthRoleAddResponse>(message),
        Rpc::AuthRoleGet => text::<pb::AuthRoleGetResponse>(message),
        Rpc::AuthRoleList => text::<pb::AuthRoleListResponse>(message),
        Rpc::AuthRoleDelete => text::<pb::AuthRoleDeleteResponse>(message),
        Rpc::AuthRoleGrantPermission => text::<pb::AuthRoleGrantPermissionResponse>(message),
        Rpc::AuthRoleRevokePermission => text::<pb::AuthRoleRevokePermissionResponse>(message),
    }
}

/// A text without the numbers that depend on the run. Whether a number is zero does not.
pub(crate) fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        // The rest of an address is part of its name.
        let volatile = VOLATILE.iter().any(|name| out.ends_with(name));
        let length = from.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(from.len());
        let (digits, after) = from.split_at(length);
        match digits {
            "0" => out.push('0'),
            _ if volatile || digits.len() >= DIGITS_OF_IDS => out.push('~'),
            _ => out.push_str(digits),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
