//! The format for people, and for scripts that do not parse JSON.

use std::io::Write;

use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::*;
use proto::mvccpb::KeyValue;
use proto::mvccpb::event::EventType;

use super::{Answer, Health, Printer, table};
use crate::go;

/// Writing to a buffer does not fail.
const BUFFER: &str = "a buffer takes every write";

pub(super) fn render(printer: &Printer, answer: Answer<'_>, errors: &mut Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Answer::Get(response) => key_values(printer, &response.kvs, &mut out),
        Answer::Put(response) => put(printer, response, &mut out),
        Answer::Delete(response) => delete(printer, response, &mut out),
        Answer::Txn(response) => txn(printer, response, &mut out),
        Answer::Watch(response) => watch(printer, response, &mut out),
        Answer::LeaseTimeToLive(response, keys) => time_to_live(response, keys, &mut out),
        Answer::Health(list) => health(list, &mut out, errors),
        Answer::MemberList(_) | Answer::Status(_) | Answer::HashKv(_) => {
            for row in table::rows(answer).map(|(_, rows)| rows).unwrap_or_default() {
                line(&mut out, &row.join(", "));
            }
        }
        Answer::Leases(response) => {
            line(&mut out, &format!("found {} leases", response.leases.len()));
            for lease in &response.leases {
                line(&mut out, &go::hex16(lease.id));
            }
        }
        Answer::Alarm(response) => {
            for alarm in &response.alarms {
                line(&mut out, &alarm_text(alarm));
            }
        }
        answer => line(&mut out, &one_line(answer)),
    }
    out
}

/// The answers that are one sentence.
fn one_line(answer: Answer<'_>) -> String {
    let cluster = |header: &Option<ResponseHeader>| header.as_ref().map_or(0, |h| h.cluster_id);
    match answer {
        Answer::LeaseGrant(response) => {
            format!("lease {} granted with TTL({}s)", go::hex16(response.id), response.ttl)
        }
        Answer::LeaseRevoke(id, _) => format!("lease {} revoked", go::hex16(id)),
        Answer::LeaseKeepAlive(response) => {
            format!("lease {} keepalived with TTL({})", go::hex16(response.id), response.ttl)
        }
        Answer::MemberAdd(response) => {
            let member = response.member.clone().unwrap_or_default();
            let learner = if member.is_learner { "as learner " } else { "" };
            let cluster = cluster(&response.header);
            format!("Member {:16x} added {learner}to cluster {cluster:16x}", member.id)
        }
        Answer::MemberRemove(id, response) => {
            format!("Member {id:16x} removed from cluster {:16x}", cluster(&response.header))
        }
        Answer::MemberUpdate(id, response) => {
            format!("Member {id:16x} updated in cluster {:16x}", cluster(&response.header))
        }
        Answer::MemberPromote(id, response) => {
            format!("Member {id:16x} promoted in cluster {:16x}", cluster(&response.header))
        }
        Answer::MoveLeader(leader, target, _) => {
            format!("Leadership transferred from {leader:x} to {target:x}")
        }
        _ => String::new(),
    }
}

fn line(out: &mut Vec<u8>, text: &str) {
    writeln!(out, "{text}").expect(BUFFER);
}

fn put(printer: &Printer, response: &PutResponse, out: &mut Vec<u8>) {
    line(out, "OK");
    if let Some(previous) = &response.prev_kv {
        key_value(printer, previous, out);
    }
}

fn delete(printer: &Printer, response: &DeleteRangeResponse, out: &mut Vec<u8>) {
    line(out, &response.deleted.to_string());
    key_values(printer, &response.prev_kvs, out);
}

fn txn(printer: &Printer, response: &TxnResponse, out: &mut Vec<u8>) {
    line(out, if response.succeeded { "SUCCESS" } else { "FAILURE" });
    for operation in &response.responses {
        line(out, "");
        match &operation.response {
            Some(Response::ResponseRange(range)) => key_values(printer, &range.kvs, out),
            Some(Response::ResponsePut(response)) => put(printer, response, out),
            Some(Response::ResponseDeleteRange(response)) => delete(printer, response, out),
            Some(Response::ResponseTxn(response)) => txn(printer, response, out),
            None => line(out, "unexpected response"),
        }
    }
}

fn watch(printer: &Printer, response: &WatchResponse, out: &mut Vec<u8>) {
    for event in &response.events {
        line(out, event_type(event.r#type));
        if let Some(previous) = &event.prev_kv {
            key_value(printer, previous, out);
        }
        key_value(printer, &event.kv.clone().unwrap_or_default(), out);
    }
}

/// The name of an event's type; its number if it is not known.
pub(super) fn event_type(number: i32) -> &'static str {
    EventType::try_from(number).map_or("UNKNOWN", |kind| kind.as_str_name())
}

/// An alarm as Go prints the message: fields that are zero are left out.
fn alarm_text(alarm: &AlarmMember) -> String {
    let mut fields = Vec::new();
    if alarm.member_id != 0 {
        fields.push(format!("memberID:{}", alarm.member_id));
    }
    if alarm.alarm != 0 {
        fields.push(format!("alarm:{}", alarm_type(alarm.alarm)));
    }
    fields.join(" ")
}

/// The name of an alarm.
pub(super) fn alarm_type(number: i32) -> &'static str {
    AlarmType::try_from(number).map_or("UNKNOWN", |kind| kind.as_str_name())
}

fn time_to_live(response: &LeaseTimeToLiveResponse, keys: bool, out: &mut Vec<u8>) {
    let id = go::hex16(response.id);
    if response.granted_ttl == 0 && response.ttl == -1 {
        return line(out, &format!("lease {id} already expired"));
    }
    let (granted, left) = (response.granted_ttl, response.ttl);
    write!(out, "lease {id} granted with TTL({granted}s), remaining({left}s)").expect(BUFFER);
    if keys {
        out.extend_from_slice(b", attached keys([");
        out.extend_from_slice(&response.keys.join(&b' '));
        out.extend_from_slice(b"])");
    }
    line(out, "");
}

fn health(list: &[Health], out: &mut Vec<u8>, errors: &mut Vec<u8>) {
    for health in list {
        let endpoint = &health.endpoint;
        if health.error.is_empty() {
            let took = health.took.map(go::duration).unwrap_or_default();
            line(
                out,
                &format!("{endpoint} is healthy: successfully committed proposal: took = {took}"),
            );
        } else {
            let error = &health.error;
            line(errors, &format!("{endpoint} is unhealthy: failed to commit proposal: {error}"));
        }
    }
}

fn key_values(printer: &Printer, list: &[KeyValue], out: &mut Vec<u8>) {
    for kv in list {
        key_value(printer, kv, out);
    }
}

fn key_value(printer: &Printer, kv: &KeyValue, out: &mut Vec<u8>) {
    if !printer.value_only {
        bytes(printer, &kv.key, out);
    }
    bytes(printer, &kv.value, out);
}

fn bytes(printer: &Printer, bytes: &[u8], out: &mut Vec<u8>) {
    if printer.hex {
        for byte in bytes {
            write!(out, "\\x{byte:02x}").expect(BUFFER);
        }
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'\n');
}
