//! The types of the API as tables, read from the descriptors that the messages were generated from.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Packages of etcd; the protocol between our members is not among them.
const PACKAGES: [&str; 6] =
    ["authpb", "etcdserverpb", "membershippb", "mvccpb", "v3electionpb", "v3lockpb"];

/// All messages, enumerations and methods.
pub(super) struct Schema {
    pub(super) messages: Vec<MessageType>,
    pub(super) enums: Vec<EnumType>,
    pub(super) methods: BTreeMap<String, Method>,
}

pub(super) struct MessageType {
    /// In the order of their declaration, which is the order in JSON.
    pub(super) fields: Vec<Field>,
    /// Full names.
    pub(super) oneofs: Vec<String>,
}

pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) json_name: String,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    pub(super) oneof: Option<usize>,
}

/// What the API uses of protobuf's types; enumerations and messages by their place in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    String,
    Bytes,
    Enum(usize),
    Message(usize),
}

impl Kind {
    /// protobuf's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Uint32 => "uint32",
            Kind::Uint64 => "uint64",
            Kind::String => "string",
            Kind::Bytes => "bytes",
            Kind::Enum(_) => "enum",
            Kind::Message(_) => "message",
        }
    }
}

pub(super) struct EnumType {
    pub(super) values: Vec<(i32, String)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) request: usize,
    pub(super) response: usize,
    pub(super) client_streams: bool,
    pub(super) server_streams: bool,
}

/// The tables of this program.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)
        .expect("the descriptors are those that this program was generated from");
    Schema::of(&files)
});

/// Names of types while the tables are made.
#[derive(Default)]
struct Names<'f> {
    messages: Vec<(String, &'f DescriptorProto)>,
    enums: Vec<(String, &'f EnumDescriptorProto)>,
}

impl<'f> Names<'f> {
    fn take(
        &mut self,
        scope: &str,
        messages: &'f [DescriptorProto],
        enums: &'f [EnumDescriptorProto],
    ) {
        for kind in enums {
            self.enums.push((format!("{scope}.{}", kind.name()), kind));
        }
        for message in messages {
            let name = format!("{scope}.{}", message.name());
            self.take(&name, &message.nested_type, &message.enum_type);
            self.messages.push((name, message));
        }
    }

    fn message(&self, name: &str) -> usize {
        let place = self.messages.iter().position(|(known, _)| known == name);
        place.unwrap_or_else(|| panic!("{name} is a message of the API"))
    }

    fn kind(&self, field: &FieldDescriptorProto) -> Kind {
        match field.r#type() {
            Type::Bool => Kind::Bool,
            Type::Int32 => Kind::Int32,
            Type::Int64 => Kind::Int64,
            Type::Uint32 => Kind::Uint32,
            Type::Uint64 => Kind::Uint64,
            Type::String => Kind::String,
            Type::Bytes => Kind::Bytes,
            Type::Enum => {
                let place = self.enums.iter().position(|(name, _)| name == field.type_name());
                Kind::Enum(place.unwrap_or_else(|| panic!("{} is known", field.type_name())))
            }
            Type::Message => Kind::Message(self.message(field.type_name())),
            other => panic!("{}: the API has no fields of type {other:?}", field.name()),
        }
    }
}

impl Schema {
    /// Panics when the descriptors use something that the API of etcd does not: a test of this file
    /// reads them, so that such a build does not leave the workshop.
    fn of(files: &FileDescriptorSet) -> Self {
        let mut names = Names::default();
        let files: Vec<_> =
            files.file.iter().filter(|file| PACKAGES.contains(&file.package())).collect();
        for file in &files {
            let scope = format!(".{}", file.package());
            names.take(&scope, &file.message_type, &file.enum_type);
        }
        let mut methods = BTreeMap::new();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let method = Method {
                        request: names.message(method.input_type()),
                        response: names.message(method.output_type()),
                        client_streams: method.client_streaming(),
                        server_streams: method.server_streaming(),
                    };
                    methods.insert(path, method);
                }
            }
        }
        let enums = names.enums.iter().map(|(_, kind)| EnumType {
            values: kind.value.iter().map(|v| (v.number(), v.name().to_owned())).collect(),
        });
        let messages = names.messages.iter().map(|(name, message)| {
            let name = name.trim_start_matches('.');
            let field = |field: &FieldDescriptorProto| Field {
                number: u32::try_from(field.number()).expect("field numbers are positive"),
                name: field.name().to_owned(),
                json_name: field.json_name().to_owned(),
                kind: names.kind(field),
                repeated: field.label() == Label::Repeated,
                oneof: field.oneof_index.and_then(|index| usize::try_from(index).ok()),
            };
            MessageType {
                fields: message.field.iter().map(field).collect(),
                oneofs: message.oneof_decl.iter().map(|o| format!("{name}.{}", o.name())).collect(),
            }
        });
        Self { enums: enums.collect(), messages: messages.collect(), methods }
    }
}

impl MessageType {
    pub(super) fn field_called(&self, name: &str) -> Option<usize> {
        let by = |key: fn(&Field) -> &str| self.fields.iter().position(|f| key(f) == name);
        by(|field| &field.json_name).or_else(|| by(|field| &field.name))
    }

    pub(super) fn field_numbered(&self, number: u32) -> Option<usize> {
        self.fields.iter().position(|field| field.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_say_what_the_proto_files_say() {
        let put = &SCHEMA.methods["/etcdserverpb.KV/Put"];
        let request = &SCHEMA.messages[put.request];
        let names: Vec<_> = request.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["key", "value", "lease", "prev_kv", "ignore_value", "ignore_lease"]);
        assert_eq!(request.field_called("prevKv"), request.field_called("prev_kv"));
        let watch = &SCHEMA.methods["/etcdserverpb.Watch/Watch"];
        assert!(watch.client_streams && watch.server_streams);
        let union = &SCHEMA.messages[watch.request];
        assert_eq!(union.oneofs, ["etcdserverpb.WatchRequest.request_union"]);
        assert!(union.fields.iter().all(|field| field.oneof == Some(0)));
    }
}
