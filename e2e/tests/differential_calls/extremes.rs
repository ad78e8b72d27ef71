//! Every field of every request at the ends of its type. What a client may send, a member has to answer:
//! a number that is one too large for some sum ends a process whose sums are checked.
//!
//! The fields come from the descriptors, so that a new one is asked for without a word here. A request
//! is the harmless one of its method with the field appended: in protobuf the last value counts, and
//! messages inside are merged.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;
use proto::{v3electionpb, v3lockpb};

use tonic::Code;

use super::refusals::{is_recipe, sample};
use super::talk::{Call, Talk, compare};

/// What is not compared, as it is appended to the harmless request.
const LEFT_OUT: [(Rpc, &str); 5] = [
    // These end Go etcd.
    (Rpc::MaintenanceAlarm, "action = -2147483648"),
    (Rpc::MaintenanceAlarm, "action = -1"),
    (Rpc::MaintenanceAlarm, "action = 99"),
    (Rpc::MaintenanceAlarm, "action = 2147483647"),
    // At the revision of a compaction Go etcd answers what it has kept from before.
    (Rpc::MaintenanceHashKV, "revision = 1"),
];

/// How deep messages in messages are looked into: up to the fields of what a transaction does.
const DEPTH: usize = 3;
const NUMBERS: [i64; 6] = [i64::MIN, i64::MIN + 1, -1, 1, i64::MAX - 1, i64::MAX];
const SMALL_NUMBERS: [i64; 5] = [i32::MIN as i64, -1, 1, 99, i32::MAX as i64];

struct Schema {
    messages: BTreeMap<String, DescriptorProto>,
    /// The type of each method's requests.
    requests: BTreeMap<String, String>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("our own descriptors");
    let mut schema = Schema { messages: BTreeMap::new(), requests: BTreeMap::new() };
    for file in files.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                schema.requests.insert(path, method.input_type().to_owned());
            }
        }
        let package = file.package().to_owned();
        for message in file.message_type {
            schema.messages.insert(format!(".{package}.{}", message.name()), message);
        }
    }
    schema
});

/// The ends of a type on the wire, each with its name.
fn ends(kind: Type) -> Vec<(String, WireType, Vec<u8>)> {
    let varints = |numbers: &[i64]| {
        let number = |number: &i64| {
            let mut bytes = Vec::new();
            encode_varint(number.cast_unsigned(), &mut bytes);
            (number.to_string(), WireType::Varint, bytes)
        };
        numbers.iter().map(number).collect()
    };
    let texts = |texts: &[&[u8]]| {
        let text = |text: &&[u8]| {
            let mut bytes = Vec::new();
            encode_varint(text.len() as u64, &mut bytes);
            bytes.extend_from_slice(text);
            let name = format!("{} bytes of {:?}", text.len(), text.first());
            (name, WireType::LengthDelimited, bytes)
        };
        texts.iter().map(text).collect()
    };
    let long = [b'x'; 3000];
    match kind {
        Type::Int64 | Type::Uint64 => varints(&NUMBERS),
        Type::Int32 | Type::Enum => varints(&SMALL_NUMBERS),
        Type::Uint32 => varints(&[1, i64::from(u32::MAX)]),
        Type::Bool => varints(&[0, 1]),
        Type::String => texts(&[b"", b"\0", &long]),
        Type::Bytes => texts(&[b"", b"\0", b"\xff\xff", &long]),
        other => panic!("no request has a field of type {other:?}"),
    }
}

/// Every field of a message and of those in it at every end of its type, as bytes to append.
fn appendices(message: &str, depth: usize) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for field in &SCHEMA.messages[message].field {
        let number = u32::try_from(field.number()).expect("a field's number");
        let inner = match field.r#type() {
            Type::Message if depth == 0 => Vec::new(),
            Type::Message => {
                let inside = |(name, bytes): (String, Vec<u8>)| {
                    let mut framed = Vec::new();
                    encode_varint(bytes.len() as u64, &mut framed);
                    framed.extend_from_slice(&bytes);
                    (format!(".{name}"), WireType::LengthDelimited, framed)
                };
                let inner = appendices(field.type_name(), depth - 1);
                let empty = (" = {}".to_owned(), WireType::LengthDelimited, vec![0]);
                inner.into_iter().map(inside).chain([empty]).collect()
            }
            scalar => {
                let named = |(name, wire, bytes)| (format!(" = {name}"), wire, bytes);
                ends(scalar).into_iter().map(named).collect()
            }
        };
        for (name, wire, value) in inner {
            let mut bytes = Vec::new();
            encode_key(number, wire, &mut bytes);
            bytes.extend_from_slice(&value);
            all.push((format!("{}{name}", field.name()), bytes));
        }
    }
    all
}

fn extremes(rpc: Rpc) -> Vec<Call> {
    let with = |(name, appendix): (String, Vec<u8>)| {
        let mut call = sample(rpc);
        let harmless = call.requests[0].clone();
        call.requests[0] = [&harmless[..], &appendix[..]].concat().into();
        if call.answers.is_some() {
            // What is not answered, as the end of a watch that is not there, is followed by what is.
            call.requests.push(harmless);
        }
        call.text = format!("{} and {name}", call.text);
        call
    };
    let all = appendices(&SCHEMA.requests[rpc.path()], DEPTH).into_iter();
    all.filter(|(name, _)| !LEFT_OUT.contains(&(rpc, name))).map(with).collect()
}

#[test]
fn every_field_at_the_ends_of_its_type_is_answered_alike() {
    compare(1, &["--bcrypt-cost=4"], |talk| {
        for rpc in Rpc::ALL.iter().filter(|rpc| !is_recipe(**rpc)) {
            for call in extremes(*rpc) {
                let came = talk.call(call.clone());
                let is_gone = came.status.is_some_and(|status| status.code() == Code::Unavailable);
                assert!(!is_gone, "{} {} ends the server", call.path, call.text);
            }
            alive(talk);
        }
        for number in NUMBERS {
            recipes(talk, number);
        }
        alive(talk);
    });
}

/// Locks and elections with a lease and revisions that cannot be.
fn recipes(talk: &mut Talk, number: i64) {
    let (name, lease, value) = (bytes::Bytes::from("n"), number, bytes::Bytes::from("v"));
    talk.ask(Rpc::LockLock, &v3lockpb::LockRequest { name: name.clone(), lease });
    let request = v3electionpb::CampaignRequest { name: name.clone(), lease, value: value.clone() };
    talk.ask(Rpc::ElectionCampaign, &request);
    let leader = Some(v3electionpb::LeaderKey { key: name.clone(), name, rev: number, lease });
    let request = v3electionpb::ProclaimRequest { leader: leader.clone(), value };
    talk.ask(Rpc::ElectionProclaim, &request);
    talk.ask(Rpc::ElectionResign, &v3electionpb::ResignRequest { leader });
}

fn alive(talk: &mut Talk) {
    let request = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let came = talk.call(Call::new(Rpc::KVRange, &request));
    assert!(came.status.is_none(), "{came:?}");
}
