//! Answers as JSON: the field names and their order are those of the structures that Go etcdctl
//! encodes, some of which are protobuf's and some clientv3's own.

use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::*;
use proto::mvccpb::{Event, KeyValue};

use super::Answer;
use super::json::{self, Object};
use crate::go;

pub(super) fn render(hex: bool, answer: Answer<'_>) -> Vec<u8> {
    let text = match answer {
        Answer::Get(response) => range(response),
        Answer::Put(response) => put(response),
        Answer::Delete(response) => delete(response),
        Answer::Txn(response) => txn(response),
        Answer::Watch(response) => watch(response),
        Answer::LeaseGrant(_)
        | Answer::LeaseRevoke(..)
        | Answer::LeaseKeepAlive(_)
        | Answer::LeaseTimeToLive(..)
        | Answer::Leases(_) => lease(answer),
        Answer::MemberAdd(response) => {
            let mut object = members_header(hex, &response.header);
            object.message("member", response.member.as_ref(), |found| member(hex, found));
            members(hex, object, &response.members)
        }
        Answer::MemberRemove(_, response) => {
            members(hex, members_header(hex, &response.header), &response.members)
        }
        Answer::MemberUpdate(_, response) => {
            members(hex, members_header(hex, &response.header), &response.members)
        }
        Answer::MemberPromote(_, response) => {
            members(hex, members_header(hex, &response.header), &response.members)
        }
        Answer::MemberList(response) => {
            members(hex, members_header(hex, &response.header), &response.members)
        }
        Answer::MoveLeader(_, _, response) => with_header(&response.header).finish(),
        Answer::Alarm(response) => {
            let mut object = with_header(&response.header);
            object.list_unless_empty("alarms", &response.alarms, |alarm| {
                let mut object = Object::new();
                object.unless_zero("memberID", alarm.member_id);
                object.unless_zero("alarm", alarm.alarm);
                object.finish()
            });
            object.finish()
        }
        Answer::Health(_) | Answer::Status(_) | Answer::HashKv(_) => endpoints(answer),
        Answer::Auth(_) => String::new(),
    };
    format!("{text}\n").into_bytes()
}

fn header(header: &ResponseHeader) -> String {
    let mut object = Object::new();
    header_fields(&mut object, header);
    object.finish()
}

fn header_fields(object: &mut Object, header: &ResponseHeader) {
    object.unless_zero("cluster_id", header.cluster_id);
    object.unless_zero("member_id", header.member_id);
    object.unless_zero("revision", header.revision);
    object.unless_zero("raft_term", header.raft_term);
}

/// An object that begins with a header.
pub(super) fn with_header(found: &Option<ResponseHeader>) -> Object {
    let mut object = Object::new();
    object.message("header", found.as_ref(), header);
    object
}

fn key_value(kv: &KeyValue) -> String {
    let mut object = Object::new();
    object.bytes_unless_empty("key", &kv.key);
    object.unless_zero("create_revision", kv.create_revision);
    object.unless_zero("mod_revision", kv.mod_revision);
    object.unless_zero("version", kv.version);
    object.bytes_unless_empty("value", &kv.value);
    object.unless_zero("lease", kv.lease);
    object.finish()
}

fn range(response: &RangeResponse) -> String {
    let mut object = with_header(&response.header);
    object.list_unless_empty("kvs", &response.kvs, key_value);
    object.unless_zero("more", response.more);
    object.unless_zero("count", response.count);
    object.finish()
}

fn put(response: &PutResponse) -> String {
    let mut object = with_header(&response.header);
    object.message("prev_kv", response.prev_kv.as_ref(), key_value);
    object.finish()
}

fn delete(response: &DeleteRangeResponse) -> String {
    let mut object = with_header(&response.header);
    object.unless_zero("deleted", response.deleted);
    object.list_unless_empty("prev_kvs", &response.prev_kvs, key_value);
    object.finish()
}

fn txn(response: &TxnResponse) -> String {
    let mut object = with_header(&response.header);
    object.unless_zero("succeeded", response.succeeded);
    object.list_unless_empty("responses", &response.responses, |operation| {
        let mut inner = Object::new();
        match &operation.response {
            Some(Response::ResponseRange(found)) => inner.raw("response_range", range(found)),
            Some(Response::ResponsePut(found)) => inner.raw("response_put", put(found)),
            Some(Response::ResponseDeleteRange(found)) => {
                inner.raw("response_delete_range", delete(found));
            }
            Some(Response::ResponseTxn(found)) => inner.raw("response_txn", txn(found)),
            None => {}
        }
        let mut outer = Object::new();
        outer.raw("Response", inner.finish());
        outer.finish()
    });
    object.finish()
}

/// A structure of clientv3, which leaves nothing out; a cancellation has no list of events.
fn watch(response: &WatchResponse) -> String {
    let event = |event: &Event| {
        let mut object = Object::new();
        object.unless_zero("type", event.r#type);
        object.message("kv", event.kv.as_ref(), key_value);
        object.message("prev_kv", event.prev_kv.as_ref(), key_value);
        object.finish()
    };
    let mut object = Object::new();
    object.raw("Header", response.header.as_ref().map_or("null".to_owned(), header));
    // Go has no list where there is nothing in it.
    let events = || json::list(&response.events, event);
    object.raw("Events", if response.events.is_empty() { "null".to_owned() } else { events() });
    object.raw("CompactRevision", response.compact_revision);
    object.raw("Canceled", response.canceled);
    object.raw("Created", response.created);
    object.string("CancelReason", &response.cancel_reason);
    object.finish()
}

/// clientv3's structures of leases embed the header, so its fields stand beside the others.
fn lease(answer: Answer<'_>) -> String {
    let embedded = |header: &Option<ResponseHeader>| {
        let mut object = Object::new();
        if let Some(header) = header {
            header_fields(&mut object, header);
        }
        object
    };
    let mut object;
    match answer {
        Answer::LeaseGrant(response) => {
            object = embedded(&response.header);
            object.raw("ID", response.id);
            object.raw("TTL", response.ttl);
            object.string("Error", &response.error);
        }
        Answer::LeaseKeepAlive(response) => {
            object = embedded(&response.header);
            object.raw("ID", response.id);
            object.raw("TTL", response.ttl);
        }
        Answer::LeaseTimeToLive(response, _) => {
            object = embedded(&response.header);
            object.raw("id", response.id);
            object.raw("ttl", response.ttl);
            object.raw("granted-ttl", response.granted_ttl);
            let keys = &response.keys;
            let none = keys.is_empty();
            let list = || json::list(keys, |key| json::bytes(key));
            object.raw("keys", if none { "null".to_owned() } else { list() });
        }
        Answer::Leases(response) => {
            object = embedded(&response.header);
            let leases = json::list(&response.leases, |lease| format!("{{\"id\":{}}}", lease.id));
            object.raw("leases", leases);
        }
        Answer::LeaseRevoke(_, response) => object = with_header(&response.header),
        _ => object = Object::new(),
    }
    object.finish()
}

/// With `--hex` ids are hexadecimal strings and never left out.
fn members_header(hex: bool, found: &Option<ResponseHeader>) -> Object {
    if !hex {
        return with_header(found);
    }
    let mut object = Object::new();
    let mut inner = Object::new();
    if let Some(header) = found {
        inner.string("cluster_id", &format!("{:x}", header.cluster_id));
        inner.string("member_id", &format!("{:x}", header.member_id));
        inner.unless_zero("revision", header.revision);
        inner.unless_zero("raft_term", header.raft_term);
    }
    object.raw("header", if found.is_some() { inner.finish() } else { "null".to_owned() });
    object
}

fn members(hex: bool, mut object: Object, list: &[Member]) -> String {
    if hex || !list.is_empty() {
        object.raw("members", json::list(list, |found| member(hex, found)));
    }
    object.finish()
}

fn member(hex: bool, member: &Member) -> String {
    let mut object = Object::new();
    if hex {
        object.string("ID", &format!("{:x}", member.id));
    } else {
        object.unless_zero("ID", member.id);
    }
    object.string_unless_empty("name", &member.name);
    object.list_unless_empty("peerURLs", &member.peer_ur_ls, |url| json::string(url));
    object.list_unless_empty("clientURLs", &member.client_ur_ls, |url| json::string(url));
    object.unless_zero("isLearner", member.is_learner);
    object.finish()
}

fn endpoints(answer: Answer<'_>) -> String {
    let or_null = |empty: bool, list: String| if empty { "null".to_owned() } else { list };
    let entry = |endpoint: &str, name: &str, value: String| {
        let mut object = Object::new();
        object.string("Endpoint", endpoint);
        object.raw(name, value);
        object.finish()
    };
    match answer {
        Answer::Health(list) => {
            let health = json::list(list, |health| {
                let mut object = Object::new();
                object.string("endpoint", &health.endpoint);
                object.raw("health", health.healthy);
                object.string("took", &health.took.map(go::duration).unwrap_or_default());
                object.string_unless_empty("error", &health.error);
                object.finish()
            });
            or_null(list.is_empty(), health)
        }
        Answer::Status(list) => {
            let found =
                json::list(list, |(endpoint, found)| entry(endpoint, "Status", status(found)));
            or_null(list.is_empty(), found)
        }
        Answer::HashKv(list) => {
            let found = json::list(list, |(endpoint, found)| {
                let mut object = with_header(&found.header);
                object.unless_zero("hash", found.hash);
                object.unless_zero("compact_revision", found.compact_revision);
                object.unless_zero("hash_revision", found.hash_revision);
                entry(endpoint, "HashKV", object.finish())
            });
            or_null(list.is_empty(), found)
        }
        _ => String::new(),
    }
}

fn status(response: &StatusResponse) -> String {
    let mut object = with_header(&response.header);
    object.string_unless_empty("version", &response.version);
    object.unless_zero("dbSize", response.db_size);
    object.unless_zero("leader", response.leader);
    object.unless_zero("raftIndex", response.raft_index);
    object.unless_zero("raftTerm", response.raft_term);
    object.unless_zero("raftAppliedIndex", response.raft_applied_index);
    object.list_unless_empty("errors", &response.errors, |error| json::string(error));
    object.unless_zero("dbSizeInUse", response.db_size_in_use);
    object.unless_zero("isLearner", response.is_learner);
    object.string_unless_empty("storageVersion", &response.storage_version);
    object.unless_zero("dbSizeQuota", response.db_size_quota);
    object.message("downgradeInfo", response.downgrade_info.as_ref(), |downgrade| {
        let mut object = Object::new();
        object.unless_zero("enabled", downgrade.enabled);
        object.string_unless_empty("targetVersion", &downgrade.target_version);
        object.finish()
    });
    object.finish()
}
