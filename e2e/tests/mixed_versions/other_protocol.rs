//! The wire between members as if one side were another release: a proxy before a member's peer port
//! that rewrites every message on its way.
//!
//! As by a newer release each message, at every depth, gets a field that nobody here knows; as by the
//! first one all fields that were added since are left out; and now and then an
//! answer is a variant that is not known. `peer.proto` says what a member does with each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tokio_stream::{Stream, StreamExt};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, BoxStream, Context, Poll, Service, http};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::codec::BytesCodec;

const PACKAGE: &str = "keelson.peer.v1";
/// A number that no field has.
const UNKNOWN_FIELD: u32 = 15_000;
/// One of so many answers with variants is one that is not known.
const UNKNOWN_VARIANT: u64 = 40;
/// The highest field number of each message in the first release. It does not change: what is above is sent
/// by later ones only, and so are messages that do not stand here.
const FIRST_RELEASE: [(&str, u32); 51] = [
    ("Envelope", 4),
    ("Vote", 3),
    ("LogId", 3),
    ("Entry", 4),
    ("Blank", 0),
    ("Membership", 2),
    ("Config", 1),
    ("Node", 3),
    ("StoredMembership", 2),
    ("AppendRequest", 5),
    ("AppendResponse", 4),
    ("Success", 1),
    ("PartialSuccess", 1),
    ("VoteRequest", 5),
    ("VoteResponse", 3),
    ("SnapshotChunk", 4),
    ("SnapshotHeader", 5),
    ("SnapshotTrailer", 1),
    ("SnapshotResponse", 1),
    ("TransferLeaderRequest", 4),
    ("TransferLeaderResponse", 3),
    ("TransferAccepted", 0),
    ("TransferVoteChanged", 2),
    ("TransferLogNotFlushed", 2),
    ("ForwardRequest", 3),
    ("ForwardResponse", 3),
    ("ForwardAccepted", 1),
    ("NotLeader", 2),
    ("Overloaded", 0),
    ("ReadIndexRequest", 1),
    ("ReadIndexResponse", 3),
    ("Unconfirmed", 0),
    ("LeaseKeepAliveRequest", 2),
    ("LeaseKeepAliveResponse", 2),
    ("LeaseRenewals", 1),
    ("LeaseTimeToLiveRequest", 3),
    ("LeaseTimeToLiveResponse", 2),
    ("LeaseStates", 1),
    ("LeaseState", 4),
    ("MembersRequest", 1),
    ("MembersResponse", 8),
    ("MemberDescription", 5),
    ("ChangeMembershipRequest", 5),
    ("AddMember", 3),
    ("UpdateMember", 2),
    ("ChangeMembershipResponse", 3),
    ("HashKVRequest", 2),
    ("HashKVResponse", 3),
    ("HashedKV", 4),
    ("VersionRequest", 1),
    ("VersionResponse", 6),
];

/// The messages of the protocol.
struct Schema {
    /// The types of the fields that are messages, by message and field number.
    messages: BTreeMap<(String, u32), String>,
    /// The fields that are variants.
    variants: BTreeSet<(String, u32)>,
    /// The types of request and answer, by the path of the method.
    methods: BTreeMap<String, (String, String)>,
}

/// What a proxy has done to the messages.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    pub(crate) messages: AtomicUsize,
    pub(crate) fields_left_out: AtomicUsize,
    /// The answers that were made unknown, by their type.
    pub(crate) unknown: Mutex<BTreeMap<String, usize>>,
    answers: AtomicU64,
}

#[derive(Clone)]
struct Proxy {
    member: Channel,
    schema: Arc<Schema>,
    rewritten: Arc<Rewritten>,
}

/// Stands before a member until the runtime ends.
pub(crate) async fn stand_before(
    listen: SocketAddr,
    member: SocketAddr,
    rewritten: Arc<Rewritten>,
) {
    let member = Endpoint::from_shared(format!("http://{member}")).unwrap().connect_lazy();
    let proxy = Proxy { member, schema: Arc::new(Schema::read()), rewritten };
    Server::builder().serve(listen, proxy).await.unwrap();
}

fn short(name: &str) -> Option<String> {
    name.trim_start_matches('.').strip_prefix(PACKAGE)?.strip_prefix('.').map(str::to_owned)
}

impl Schema {
    fn read() -> Schema {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let file = set.file.iter().find(|file| file.package() == PACKAGE).unwrap();
        let mut schema = Schema {
            messages: BTreeMap::new(),
            variants: BTreeSet::new(),
            methods: BTreeMap::new(),
        };
        file.message_type.iter().for_each(|message| schema.add(message));
        // A message that is renamed would be taken for one of a later release.
        let is_there = |name: &str| file.message_type.iter().any(|message| message.name() == name);
        assert!(FIRST_RELEASE.iter().all(|(name, _)| is_there(name)), "a message has gone");
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{PACKAGE}.{}/{}", service.name(), method.name());
                let types = (method.input_type(), method.output_type());
                let types = (short(types.0).unwrap(), short(types.1).unwrap());
                schema.methods.insert(path, types);
            }
        }
        schema
    }

    fn add(&mut self, message: &DescriptorProto) {
        for field in &message.field {
            let place = (message.name().to_owned(), field.number() as u32);
            if field.oneof_index.is_some() {
                self.variants.insert(place.clone());
            }
            if let (Type::Message, Some(name)) = (field.r#type(), short(field.type_name())) {
                self.messages.insert(place, name);
            }
        }
    }

    /// A message of a type as another release would have sent it.
    fn rewrite(&self, name: &str, mut from: Bytes, rewritten: &Rewritten) -> Bytes {
        let mut to = BytesMut::with_capacity(from.len() + 32);
        while from.has_remaining() {
            let (number, wire) = decode_key(&mut from).unwrap();
            let place = (name.to_owned(), number);
            let mut field = BytesMut::new();
            encode_key(number, wire, &mut field);
            match wire {
                WireType::Varint => encode_varint(decode_varint(&mut from).unwrap(), &mut field),
                WireType::ThirtyTwoBit => field.put(from.split_to(4)),
                WireType::SixtyFourBit => field.put(from.split_to(8)),
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut from).unwrap() as usize;
                    let mut content = from.split_to(length);
                    if let Some(inner) = self.messages.get(&place) {
                        content = self.rewrite(inner, content, rewritten);
                    }
                    encode_varint(content.len() as u64, &mut field);
                    field.put(content);
                }
                WireType::StartGroup | WireType::EndGroup => panic!("nobody has groups"),
            }
            match number > highest_at_first(name) {
                true => _ = rewritten.fields_left_out.fetch_add(1, Ordering::Relaxed),
                false => to.put(field),
            }
        }
        add_unknown(&mut to);
        rewritten.messages.fetch_add(1, Ordering::Relaxed);
        to.freeze()
    }

    /// An answer, which may be of a variant that is not known.
    fn rewrite_answer(&self, name: &str, from: Bytes, rewritten: &Rewritten) -> Bytes {
        let has_variants = self.variants.iter().any(|(message, _)| message == name);
        let number = rewritten.answers.fetch_add(u64::from(has_variants), Ordering::Relaxed);
        if has_variants && number % UNKNOWN_VARIANT == UNKNOWN_VARIANT - 1 {
            *rewritten.unknown.lock().unwrap().entry(name.to_owned()).or_default() += 1;
            let mut to = BytesMut::new();
            add_unknown(&mut to);
            return to.freeze();
        }
        self.rewrite(name, from, rewritten)
    }
}

fn highest_at_first(name: &str) -> u32 {
    FIRST_RELEASE.iter().find(|(known, _)| *known == name).map_or(0, |(_, highest)| *highest)
}

fn add_unknown(to: &mut BytesMut) {
    let content = b"what a later release knows";
    encode_key(UNKNOWN_FIELD, WireType::LengthDelimited, to);
    encode_varint(content.len() as u64, to);
    to.put_slice(content);
}

impl Service<http::Request<tonic::body::Body>> for Proxy {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned().unwrap();
        let passage = Passage { proxy: self.clone(), path };
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(BytesCodec::default()).streaming(passage, request).await)
        })
    }
}

/// One call on its way to the member. Every call is treated as streams, which look no different.
struct Passage {
    proxy: Proxy,
    path: PathAndQuery,
}

impl Service<Request<Streaming<Bytes>>> for Passage {
    type Response = Response<BoxStream<Bytes>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (Proxy { member, schema, rewritten }, path) = (self.proxy.clone(), self.path.clone());
        Box::pin(async move {
            let unknown = || Status::unimplemented("no method of the peer protocol");
            let (asked, told) = schema.methods.get(path.path()).cloned().ok_or_else(unknown)?;
            let (to_member, counted) = (Arc::clone(&schema), Arc::clone(&rewritten));
            let request = request.map(|messages| {
                whole(messages).map(move |message| to_member.rewrite(&asked, message, &counted))
            });
            let mut client = tonic::client::Grpc::new(member);
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let response = client.streaming(request, path, BytesCodec::default()).await?;
            Ok(response.map(|answers| -> BoxStream<Bytes> {
                Box::pin(answers.map(move |answer| {
                    answer.map(|answer| schema.rewrite_answer(&told, answer, &rewritten))
                }))
            }))
        })
    }
}

/// The messages until the first error, which ends what is sent on.
fn whole(messages: Streaming<Bytes>) -> impl Stream<Item = Bytes> + Send {
    messages.take_while(Result::is_ok).filter_map(Result::ok)
}
