//! The wire form of a protobuf message as JSON: protobuf's JSON mapping as etcd's gateway has it.
//! Fields have the names of the `.proto` files and their order; 64-bit integers are strings; bytes
//! are base64; what is zero is left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::schema::{Field, Kind, MessageType, SCHEMA};

/// The answer cannot be read: a bug of the service that made it.
#[derive(Debug, thiserror::Error)]
#[error("failed to marshal error message")]
pub(super) struct Unreadable;

/// How characters that mean something in HTML are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Html {
    /// As they are.
    Plain,
    /// As escapes: Go writes the messages of streams so.
    Escaped,
}

/// Appends the message at `message` of the tables, whose wire form is `bytes`, to `out`.
pub(super) fn decode_message(
    bytes: &[u8],
    message: usize,
    html: Html,
    out: &mut String,
) -> Result<(), Unreadable> {
    let message = &SCHEMA.messages[message];
    let values = Values::read(bytes, message)?;
    out.push('{');
    let mut is_first = true;
    for (field, found) in message.fields.iter().zip(&values.0) {
        let shown = match field.repeated {
            true => !found.is_empty(),
            false => found.last().is_some_and(|last| is_shown(field, last)),
        };
        if !shown {
            continue;
        }
        if !std::mem::replace(&mut is_first, false) {
            out.push(',');
        }
        push_string(&field.name, html, out);
        out.push(':');
        match field.repeated {
            true => push_list(field, found, html, out)?,
            false => match (field.kind, found.as_slice()) {
                // A message that comes in parts is the sum of them.
                (Kind::Message(inner), [_, _, ..]) => {
                    let parts = found.iter().map(Value::bytes).collect::<Result<Vec<_>, _>>()?;
                    decode_message(&parts.concat(), inner, html, out)?;
                }
                (_, [.., last]) => push_value(field.kind, *last, html, out)?,
                (_, []) => {}
            },
        }
    }
    out.push('}');
    Ok(())
}

/// What the wire has of each field of a message.
struct Values<'b>(Vec<Vec<Value<'b>>>);

#[derive(Clone, Copy)]
enum Value<'b> {
    Varint(u64),
    Bytes(&'b [u8]),
}

impl<'b> Value<'b> {
    fn bytes(&self) -> Result<&'b [u8], Unreadable> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Varint(_) => Err(Unreadable),
        }
    }

    fn varint(self) -> Result<u64, Unreadable> {
        match self {
            Value::Varint(value) => Ok(value),
            Value::Bytes(_) => Err(Unreadable),
        }
    }
}

impl<'b> Values<'b> {
    fn read(mut bytes: &'b [u8], message: &MessageType) -> Result<Self, Unreadable> {
        let mut values = vec![Vec::new(); message.fields.len()];
        while !bytes.is_empty() {
            let (number, wire) = decode_key(&mut bytes).map_err(|_| Unreadable)?;
            let value = match wire {
                WireType::Varint => Value::Varint(varint(&mut bytes)?),
                WireType::LengthDelimited => {
                    let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Unreadable)?;
                    let (value, rest) = bytes.split_at_checked(length).ok_or(Unreadable)?;
                    bytes = rest;
                    Value::Bytes(value)
                }
                // The API has no fields of these types.
                _ => return Err(Unreadable),
            };
            let Some(index) = message.field_numbered(number) else { continue };
            let field = &message.fields[index];
            let is_text = matches!(field.kind, Kind::String | Kind::Bytes | Kind::Message(_));
            match value {
                Value::Bytes(mut packed) if field.repeated && !is_text => {
                    while !packed.is_empty() {
                        values[index].push(Value::Varint(varint(&mut packed)?));
                    }
                }
                value => values[index].push(value),
            }
        }
        Ok(Self(values))
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Unreadable> {
    decode_varint(bytes).map_err(|_| Unreadable)
}

fn is_shown(field: &Field, value: &Value<'_>) -> bool {
    if field.oneof.is_some() || matches!(field.kind, Kind::Message(_)) {
        return true;
    }
    match value {
        Value::Varint(value) => *value != 0,
        Value::Bytes(bytes) => !bytes.is_empty(),
    }
}

fn push_list(
    field: &Field,
    values: &[Value<'_>],
    html: Html,
    out: &mut String,
) -> Result<(), Unreadable> {
    out.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_value(field.kind, *value, html, out)?;
    }
    out.push(']');
    Ok(())
}

fn push_value(
    kind: Kind,
    value: Value<'_>,
    html: Html,
    out: &mut String,
) -> Result<(), Unreadable> {
    match kind {
        Kind::Bool => out.push_str(if value.varint()? == 0 { "false" } else { "true" }),
        Kind::Int32 => out.push_str(&(value.varint()? as i32).to_string()),
        Kind::Uint32 => out.push_str(&(value.varint()? as u32).to_string()),
        Kind::Int64 => push_quoted(&(value.varint()? as i64).to_string(), out),
        Kind::Uint64 => push_quoted(&value.varint()?.to_string(), out),
        Kind::String => {
            let text = std::str::from_utf8(value.bytes()?).map_err(|_| Unreadable)?;
            push_string(text, html, out);
        }
        Kind::Bytes => {
            out.push('"');
            STANDARD.encode_string(value.bytes()?, out);
            out.push('"');
        }
        Kind::Enum(kind) => {
            let number = value.varint()? as i32;
            let values = &SCHEMA.enums[kind].values;
            match values.iter().find(|(known, _)| *known == number) {
                Some((_, name)) => push_quoted(name, out),
                None => out.push_str(&number.to_string()),
            }
        }
        Kind::Message(message) => decode_message(value.bytes()?, message, html, out)?,
    }
    Ok(())
}

fn push_quoted(text: &str, out: &mut String) {
    out.push('"');
    out.push_str(text);
    out.push('"');
}

/// Appends a text as a JSON string.
pub(super) fn push_string(text: &str, html: Html, out: &mut String) {
    use std::fmt::Write;
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if html == Html::Escaped => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::etcdserverpb::response_op::Response;
    use proto::etcdserverpb::{
        AlarmMember, AlarmResponse, HashResponse, LeaseTimeToLiveResponse, Member,
        MemberListResponse, RangeResponse, ResponseHeader, ResponseOp, StatusResponse, TxnResponse,
    };
    use proto::mvccpb::KeyValue;

    use super::*;

    fn json(path: &str, message: &impl Message) -> String {
        let mut out = String::new();
        let response = SCHEMA.methods[path].response;
        decode_message(&message.encode_to_vec(), response, Html::Plain, &mut out).unwrap();
        out
    }

    #[test]
    fn zero_is_left_out_and_long_integers_are_strings() {
        let range = RangeResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                revision: -1,
                ..Default::default()
            }),
            kvs: vec![KeyValue { key: "foo".into(), lease: 7, ..Default::default() }],
            more: true,
            count: 0,
        };
        assert_eq!(
            json("/etcdserverpb.KV/Range", &range),
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"-1"},"kvs":[{"key":"Zm9v","lease":"7"}],"more":true}"#
        );
        let empty = RangeResponse { header: Some(ResponseHeader::default()), ..Default::default() };
        assert_eq!(json("/etcdserverpb.KV/Range", &empty), r#"{"header":{}}"#);
        let hash = HashResponse { header: None, hash: u32::MAX };
        assert_eq!(json("/etcdserverpb.Maintenance/Hash", &hash), r#"{"hash":4294967295}"#);
    }

    #[test]
    fn names_are_those_of_the_proto_files() {
        let ttl = LeaseTimeToLiveResponse { id: 1, ttl: -1, granted_ttl: 2, ..Default::default() };
        assert_eq!(
            json("/etcdserverpb.Lease/LeaseTimeToLive", &ttl),
            r#"{"ID":"1","TTL":"-1","grantedTTL":"2"}"#
        );
        let status = StatusResponse { db_size: 3, is_learner: true, ..Default::default() };
        assert_eq!(
            json("/etcdserverpb.Maintenance/Status", &status),
            r#"{"dbSize":"3","isLearner":true}"#
        );
    }

    #[test]
    fn enumerations_lists_and_alternatives_are_written() {
        let alarm = |alarm| AlarmMember { member_id: 1, alarm };
        let alarms = AlarmResponse { header: None, alarms: vec![alarm(1), alarm(9), alarm(0)] };
        assert_eq!(
            json("/etcdserverpb.Maintenance/Alarm", &alarms),
            r#"{"alarms":[{"memberID":"1","alarm":"NOSPACE"},{"memberID":"1","alarm":9},{"memberID":"1"}]}"#
        );
        let response = Some(Response::ResponseRange(RangeResponse::default()));
        let txn = TxnResponse { responses: vec![ResponseOp { response }], ..Default::default() };
        assert_eq!(json("/etcdserverpb.KV/Txn", &txn), r#"{"responses":[{"response_range":{}}]}"#);
        let member = Member {
            name: "a\"<\u{1}\n".into(),
            peer_ur_ls: vec!["p".into()],
            ..Default::default()
        };
        let list = MemberListResponse { header: None, members: vec![member] };
        assert_eq!(
            json("/etcdserverpb.Cluster/MemberList", &list),
            "{\"members\":[{\"name\":\"a\\\"<\\u0001\\n\",\"peerURLs\":[\"p\"]}]}"
        );
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        let mut out = String::new();
        let response = SCHEMA.methods["/etcdserverpb.KV/Range"].response;
        for bytes in [&[0x0a, 0x05, 0x01][..], &[0xff], &[0x0d, 1, 2, 3, 4]] {
            assert!(decode_message(bytes, response, Html::Plain, &mut out).is_err());
        }
    }
}
