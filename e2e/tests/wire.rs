//! Our `.proto` files say on the wire what Go etcd's say: every package of etcd is compared with the
//! descriptors that Go etcd 3.7.3 is built with, field by field.
//!
//! Both sides are flattened into one line per fact (a field, an enum value, a method and so on), so
//! that a failure names exactly the facts that only one side has. Of the options only `packed` changes
//! the wire and is compared; the others are left out, the gateway's annotations on purpose.

use std::collections::BTreeSet;
use std::process::Command;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FieldOptions, FileDescriptorProto,
    FileDescriptorSet,
};

const PACKAGES: [&str; 8] = [
    "authpb",
    "etcdserverpb",
    "grpc.health.v1",
    "membershippb",
    "mvccpb",
    "v3electionpb",
    "v3lockpb",
    "versionpb",
];

#[test]
fn every_message_enum_and_service_equals_go_etcds() {
    let binaries = e2e::peers::etcd_binaries().expect("build Go etcd's descriptors");
    let output = Command::new(binaries.descriptors).output().expect("run the descriptors program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let theirs = facts(&output.stdout);
    let ours = facts(proto::FILE_DESCRIPTOR_SET);
    assert!(theirs.len() > 500, "Go etcd has only {} facts: the dump is broken", theirs.len());
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let surplus: Vec<_> = ours.difference(&theirs).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "only in Go etcd: {missing:#?}\nonly in ours: {surplus:#?}"
    );
}

#[test]
fn the_peer_protocol_is_in_the_descriptors() {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("decode descriptors");
    let peer = set.file.iter().find(|file| file.package() == "keelson.peer.v1");
    let services: Vec<_> =
        peer.expect("the package exists").service.iter().map(|service| service.name()).collect();
    assert_eq!(services, ["Raft", "Member"]);
}

#[test]
fn a_field_that_is_packed_is_another_one() {
    let fields = [None, Some(false), Some(true)].map(|packed| {
        let options = FieldOptions { packed, ..FieldOptions::default() };
        field_fact(&FieldDescriptorProto { options: Some(options), ..Default::default() })
    });
    assert_eq!(BTreeSet::from(fields.clone()).len(), 3, "{fields:?}");
    assert_eq!(field_fact(&FieldDescriptorProto::default()), fields[0], "options that say nothing");
}

fn facts(descriptors: &[u8]) -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(descriptors).expect("decode a descriptor set");
    let mut facts = BTreeSet::new();
    for file in &set.file {
        if PACKAGES.contains(&file.package()) {
            file_facts(file, &mut facts);
        }
    }
    facts
}

fn file_facts(file: &FileDescriptorProto, facts: &mut BTreeSet<String>) {
    let package = file.package();
    for message in &file.message_type {
        message_facts(package, file.syntax(), message, facts);
    }
    for enumeration in &file.enum_type {
        enum_facts(package, enumeration, facts);
    }
    for extension in &file.extension {
        let extended = extension.extendee();
        facts.insert(format!("extend {extended}: {package} {}", field_fact(extension)));
    }
    for service in &file.service {
        for method in &service.method {
            facts.insert(format!(
                "rpc {package}.{}/{}: {}{} -> {}{}",
                service.name(),
                method.name(),
                if method.client_streaming() { "stream " } else { "" },
                method.input_type(),
                if method.server_streaming() { "stream " } else { "" },
                method.output_type(),
            ));
        }
    }
}

fn message_facts(
    scope: &str,
    syntax: &str,
    message: &DescriptorProto,
    facts: &mut BTreeSet<String>,
) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(format!("message {name} ({syntax})"));
    for field in &message.field {
        // A synthetic oneof (`optional` in proto3) is in the list of oneofs too, and means presence.
        let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
        facts.insert(format!("field {name}: {} oneof {oneof:?}", field_fact(field)));
    }
    for range in &message.reserved_range {
        facts.insert(format!("reserved {name}: {}..{}", range.start(), range.end()));
    }
    for reserved in &message.reserved_name {
        facts.insert(format!("reserved {name}: {reserved}"));
    }
    for nested in &message.nested_type {
        message_facts(&name, syntax, nested, facts);
    }
    for enumeration in &message.enum_type {
        enum_facts(&name, enumeration, facts);
    }
}

fn field_fact(field: &FieldDescriptorProto) -> String {
    // Said or not said; what it is where nothing is said follows from the syntax, which is compared.
    let packed = field.options.as_ref().and_then(|options| options.packed);
    format!(
        "{} = {} {:?} {:?} {} json {} packed {packed:?}",
        field.name(),
        field.number(),
        field.label(),
        field.r#type(),
        field.type_name(),
        json_name(field),
    )
}

/// The JSON name, derived from the name by protobuf's rule if the compiler left it out.
fn json_name(field: &FieldDescriptorProto) -> String {
    if let Some(name) = &field.json_name {
        return name.clone();
    }
    let mut json = String::new();
    let mut upper = false;
    for letter in field.name().chars() {
        match letter {
            '_' => upper = true,
            letter if upper => {
                json.extend(letter.to_uppercase());
                upper = false;
            }
            letter => json.push(letter),
        }
    }
    json
}

fn enum_facts(scope: &str, enumeration: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", enumeration.name());
    facts.insert(format!("enum {name}"));
    for value in &enumeration.value {
        facts.insert(format!("enum {name}: {} = {}", value.name(), value.number()));
    }
}
