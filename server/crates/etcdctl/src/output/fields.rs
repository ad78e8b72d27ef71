//! One line per field, `"Name" : value`, nested messages flattened.

use std::fmt::Display;

use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::*;
use proto::mvccpb::KeyValue;

use super::simple::{alarm_type, event_type};
use super::{Answer, Health};
use crate::go;

/// The lines of an answer; nothing if this format does not have it.
pub(super) fn render(hex: bool, answer: Answer<'_>) -> Option<Vec<u8>> {
    let mut lines = Lines { hex, text: String::new() };
    match answer {
        Answer::Get(response) => lines.get(response),
        Answer::Put(response) => lines.put(response),
        Answer::Delete(response) => lines.delete(response),
        Answer::Txn(response) => lines.txn(response),
        Answer::Watch(response) => lines.watch(response),
        Answer::LeaseGrant(response) => {
            lines.header(&response.header);
            lines.lease(response.id);
            lines.field("TTL", response.ttl);
        }
        Answer::LeaseRevoke(_, response) => lines.header(&response.header),
        Answer::LeaseKeepAlive(response) => {
            lines.header(&response.header);
            lines.lease(response.id);
            lines.field("TTL", response.ttl);
        }
        Answer::LeaseTimeToLive(response, _) => {
            lines.header(&response.header);
            lines.lease(response.id);
            lines.field("TTL", response.ttl);
            lines.field("GrantedTTL", response.granted_ttl);
            for key in &response.keys {
                lines.quoted("Key", key);
            }
        }
        Answer::Leases(response) => {
            lines.header(&response.header);
            for lease in &response.leases {
                lines.lease(lease.id);
            }
        }
        Answer::MemberList(response) => lines.members(response),
        Answer::Health(list) => list.iter().for_each(|health| lines.health(health)),
        Answer::Status(list) => {
            for (endpoint, response) in list {
                lines.status(endpoint, response);
            }
        }
        Answer::HashKv(list) => {
            for (endpoint, response) in list {
                lines.header(&response.header);
                lines.quoted("Endpoint", endpoint.as_bytes());
                lines.field("Hash", response.hash);
                lines.field("HashRevision", response.hash_revision);
                lines.end();
            }
        }
        Answer::Alarm(response) => {
            lines.header(&response.header);
            for alarm in &response.alarms {
                lines.id("MemberID", alarm.member_id);
                lines.field("AlarmType", alarm_type(alarm.alarm));
                lines.end();
            }
        }
        Answer::MemberAdd(_)
        | Answer::MemberRemove(..)
        | Answer::MemberUpdate(..)
        | Answer::MemberPromote(..)
        | Answer::MoveLeader(..)
        | Answer::Auth(_) => return None,
    }
    Some(lines.text.into_bytes())
}

/// Lines that are being written.
pub(super) struct Lines {
    pub(super) hex: bool,
    pub(super) text: String,
}

impl Lines {
    pub(super) fn field(&mut self, name: &str, value: impl Display) {
        self.text.push_str(&format!("\"{name}\" : {value}\n"));
    }

    pub(super) fn quoted(&mut self, name: &str, value: &[u8]) {
        self.field(name, go::quote(value));
    }

    fn id(&mut self, name: &str, id: u64) {
        if self.hex {
            self.field(name, format_args!("{id:x}"));
        } else {
            self.field(name, id);
        }
    }

    fn lease(&mut self, id: i64) {
        if self.hex {
            self.field("ID", go::hex16(id));
        } else {
            self.field("ID", id);
        }
    }

    pub(super) fn end(&mut self) {
        self.text.push('\n');
    }

    pub(super) fn header(&mut self, header: &Option<ResponseHeader>) {
        let header = header.unwrap_or_default();
        self.id("ClusterID", header.cluster_id);
        self.id("MemberID", header.member_id);
        // Only answers of the store have a revision.
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }

    fn key_value(&mut self, prefix: &str, kv: &KeyValue) {
        self.quoted(&format!("{prefix}Key"), &kv.key);
        self.field(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.field(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.field(&format!("{prefix}Version"), kv.version);
        self.quoted(&format!("{prefix}Value"), &kv.value);
        let lease = format!("{prefix}Lease");
        if self.hex {
            self.field(&lease, go::hex16(kv.lease));
        } else {
            self.field(&lease, kv.lease);
        }
    }

    fn get(&mut self, response: &RangeResponse) {
        self.header(&response.header);
        for kv in &response.kvs {
            self.key_value("", kv);
        }
        self.field("More", response.more);
        self.field("Count", response.count);
    }

    fn put(&mut self, response: &PutResponse) {
        self.header(&response.header);
        if let Some(previous) = &response.prev_kv {
            self.key_value("Prev", previous);
        }
    }

    fn delete(&mut self, response: &DeleteRangeResponse) {
        self.header(&response.header);
        self.field("Deleted", response.deleted);
        for previous in &response.prev_kvs {
            self.key_value("Prev", previous);
        }
    }

    fn txn(&mut self, response: &TxnResponse) {
        self.header(&response.header);
        self.field("Succeeded", response.succeeded);
        for operation in &response.responses {
            match &operation.response {
                Some(Response::ResponseRange(response)) => self.get(response),
                Some(Response::ResponsePut(response)) => self.put(response),
                Some(Response::ResponseDeleteRange(response)) => self.delete(response),
                Some(Response::ResponseTxn(response)) => self.txn(response),
                None => self.quoted("Unknown", b"<nil>"),
            }
        }
    }

    fn watch(&mut self, response: &WatchResponse) {
        self.header(&response.header);
        for event in &response.events {
            self.field("Type", event_type(event.r#type));
            if let Some(previous) = &event.prev_kv {
                self.key_value("Prev", previous);
            }
            self.key_value("", &event.kv.clone().unwrap_or_default());
        }
    }

    fn members(&mut self, response: &MemberListResponse) {
        self.header(&response.header);
        for member in &response.members {
            self.id("ID", member.id);
            self.quoted("Name", member.name.as_bytes());
            for url in &member.peer_ur_ls {
                self.quoted("PeerURL", url.as_bytes());
            }
            for url in &member.client_ur_ls {
                self.quoted("ClientURL", url.as_bytes());
            }
            self.field("IsLearner", member.is_learner);
            self.end();
        }
    }

    fn health(&mut self, health: &Health) {
        self.quoted("Endpoint", health.endpoint.as_bytes());
        self.field("Health", health.healthy);
        self.field("Took", health.took.map(go::duration).unwrap_or_default());
        self.field("Error", &health.error);
        self.end();
    }

    fn status(&mut self, endpoint: &str, response: &StatusResponse) {
        let downgrade = response.downgrade_info.clone().unwrap_or_default();
        self.header(&response.header);
        self.quoted("Version", response.version.as_bytes());
        self.quoted("StorageVersion", response.storage_version.as_bytes());
        self.field("DBSize", response.db_size);
        self.field("DBSizeInUse", response.db_size_in_use);
        self.field("DBSizeQuota", response.db_size_quota);
        self.field("Leader", response.leader);
        self.field("IsLearner", response.is_learner);
        self.field("RaftIndex", response.raft_index);
        self.field("RaftAppliedIndex", response.raft_applied_index);
        self.field("Errors", format_args!("[{}]", response.errors.join(" ")));
        self.quoted("Endpoint", endpoint.as_bytes());
        self.quoted("DowngradeTargetVersion", downgrade.target_version.as_bytes());
        self.field("DowngradeEnabled", downgrade.enabled);
        self.end();
    }
}
