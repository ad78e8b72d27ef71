//! A watch on one stream of its own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::bench::http2::{Answer, Connection};
use e2e::processes::Member;
use mio::{Events, Interest, Poll, Token};
use prost::Message;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};

const PATH: &str = "/etcdserverpb.Watch/Watch";
const TICK: Duration = Duration::from_millis(5);

/// A stream with one watch of all keys.
pub(crate) struct Watch {
    poll: Poll,
    ready: Events,
    connection: Connection,
    input: Vec<u8>,
    /// The gRPC status that ended the stream, if it has ended.
    pub(crate) ended: Option<Option<u32>>,
    /// Everything that came.
    pub(crate) responses: Vec<WatchResponse>,
}

impl Watch {
    /// Watches every key from a revision on; 0 for what comes next.
    pub(crate) fn open(member: &Member, start_revision: i64) -> Watch {
        let create = WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision,
            ..WatchCreateRequest::default()
        };
        Watch::create(member, create)
    }

    /// Watches what a request asks for.
    pub(crate) fn create(member: &Member, create: WatchCreateRequest) -> Watch {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let poll = Poll::new().unwrap();
        let mut connection =
            Connection::open(member.endpoint.parse::<std::net::SocketAddr>().unwrap()).unwrap();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(connection.socket(), Token(0), interest).unwrap();
        let stream = connection.open_stream(PATH, 0);
        connection.send_message(stream, &request.encode_to_vec());
        let mut watch = Watch {
            poll,
            ready: Events::with_capacity(4),
            connection,
            input: Vec::new(),
            ended: None,
            responses: Vec::new(),
        };
        watch.until("the watch is created", |watch| !watch.responses.is_empty());
        assert!(watch.responses[0].created, "{:?}", watch.responses);
        watch
    }

    /// Takes what comes until a condition holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Watch) -> bool) {
        const LIMIT: Duration = Duration::from_secs(30);
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < LIMIT, "{what}: not after {:?}", self.responses.last());
            self.connection.flush().unwrap();
            self.poll.poll(&mut self.ready, Some(TICK)).unwrap();
            let (input, ended) = (&mut self.input, &mut self.ended);
            let received = self.connection.receive(&mut |piece| match piece {
                Answer::Data { bytes, .. } => input.extend_from_slice(bytes),
                Answer::End { status, .. } => *ended = Some(status),
            });
            received.unwrap();
            self.read();
        }
    }

    fn read(&mut self) {
        let mut rest = self.input.as_slice();
        while let Some(head) = rest.get(1..5) {
            let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
            let Some(message) = rest.get(5..5 + length) else { break };
            self.responses.push(WatchResponse::decode(message).unwrap());
            rest = &rest[5 + length..];
        }
        let taken = self.input.len() - rest.len();
        self.input.drain(..taken);
    }

    /// The revisions of all events, in the order in which they came.
    pub(crate) fn revisions(&self) -> Vec<i64> {
        let events = self.responses.iter().flat_map(|response| &response.events);
        events.map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
    }
}
