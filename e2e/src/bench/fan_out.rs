//! Watch fan-out: one key, many watchers of it, and as many puts as the watchers keep up with.
//!
//! The watchers share up to 100 gRPC streams on up to 10 connections, as those of etcd's own
//! benchmark do. The next put starts when all watchers have the events of an earlier one. At most
//! 100 events are outstanding per stream: Go etcd buffers 128 per stream and falls into a slower
//! path beyond, which is not what is to be compared here.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::{Events, Interest, Poll, Token};

use super::http2::{Answer, Connection};
use super::protobuf::{Field, fields, put_bytes};
use super::swarm::Measured;
use super::wire::Target;
use super::workloads::{Keyspace, PUT, Values};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const MAX_STREAMS: usize = 100;
const MAX_CONNECTIONS: usize = 10;
const OUTSTANDING_PER_STREAM: usize = 100;
const TICK: Duration = Duration::from_millis(10);
const STALL: Duration = Duration::from_secs(20);

/// The watchers and the one who puts.
pub struct FanOut {
    poll: Poll,
    events: Events,
    /// The first puts, the others watch.
    connections: Vec<Connection>,
    streams: Vec<WatchStream>,
    watchers: u64,
    outstanding: u64,
    key: Vec<u8>,
    values: Values,
    /// When each put that not all watchers have seen was sent; the first is the oldest.
    puts: std::collections::VecDeque<Instant>,
    seen_by_all: u64,
    created: u64,
    delivered: u64,
}

#[derive(Default)]
struct WatchStream {
    /// The beginning of a message whose end has not arrived.
    partial: Vec<u8>,
}

/// What has arrived in a piece of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    created: u64,
    events: u64,
    canceled: bool,
}

impl FanOut {
    /// Connects and waits until all watchers are created.
    pub fn connect(target: &Target, keyspace: Keyspace, watchers: usize) -> Result<FanOut> {
        let streams = watchers.min(MAX_STREAMS);
        let connections = streams.min(MAX_CONNECTIONS);
        let poll = Poll::new().context("make an event loop")?;
        let mut opened = Vec::new();
        for index in 0..=connections {
            let mut connection = Connection::open(target)
                .with_context(|| format!("connect to the server at {}", target.address))?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(connection.socket(), Token(index), interest)?;
            opened.push(connection);
        }
        let per_stream = watchers.div_ceil(streams);
        let mut fan_out = FanOut {
            poll,
            events: Events::with_capacity(64),
            connections: opened,
            streams: (0..streams).map(|_| WatchStream::default()).collect(),
            watchers: watchers as u64,
            outstanding: (OUTSTANDING_PER_STREAM / per_stream).max(1) as u64,
            key: keyspace.key(0).to_vec(),
            values: Values::new(),
            puts: std::collections::VecDeque::new(),
            seen_by_all: 0,
            created: 0,
            delivered: 0,
        };
        fan_out.create(watchers)?;
        Ok(fan_out)
    }

    /// Puts and receives for as long as given. A call is an event at a watcher; the latencies are
    /// those from a put to the last watcher that saw it.
    pub fn run(&mut self, duration: Duration) -> Result<(u64, Measured)> {
        let mut measured = Measured::default();
        let (start, before) = (Instant::now(), self.delivered);
        let mut last = (start, before);
        loop {
            let now = self.turn()?;
            // Watchers see puts in one order, so all have seen the first `n` once `n` events per
            // watcher have arrived and none is outstanding, and at the latest then.
            while self.delivered / self.watchers > self.seen_by_all {
                self.seen_by_all += 1;
                if let Some(sent) = self.puts.pop_front() {
                    measured.latencies.record(now - sent);
                }
            }
            measured.elapsed = now - start;
            if measured.elapsed >= duration {
                return Ok((self.delivered - before, measured));
            }
            if self.delivered > last.1 {
                last = (now, self.delivered);
            } else if now - last.0 > STALL {
                bail!("no watcher got an event for {STALL:?}");
            }
            while (self.puts.len() as u64) < self.outstanding {
                let mut message = Vec::with_capacity(512);
                put_bytes(&mut message, 1, &self.key);
                put_bytes(&mut message, 2, self.values.next());
                self.connections[0].call(PUT, &message, u32::MAX);
                self.puts.push_back(now);
            }
            self.connections[0].flush().context("send puts")?;
        }
    }

    fn create(&mut self, watchers: usize) -> Result<()> {
        let mut request = Vec::new();
        put_bytes(&mut request, 1, &self.key);
        let mut message = Vec::new();
        put_bytes(&mut message, 1, &request);
        let watching = self.connections.len() - 1;
        let ids: Vec<(usize, u32)> = (0..self.streams.len())
            .map(|stream| {
                let connection = 1 + stream % watching;
                (connection, self.connections[connection].open_stream(WATCH, stream as u32))
            })
            .collect();
        for watcher in 0..watchers {
            let (connection, stream) = ids[watcher % ids.len()];
            self.connections[connection].send_message(stream, &message);
        }
        for connection in &mut self.connections {
            connection.flush().context("create watchers")?;
        }
        let start = Instant::now();
        while self.created < self.watchers {
            if self.turn()? - start > STALL {
                bail!("{} of {} watchers were created in {STALL:?}", self.created, self.watchers);
            }
        }
        Ok(())
    }

    /// Waits for the sockets once and takes what they have.
    fn turn(&mut self) -> Result<Instant> {
        match self.poll.poll(&mut self.events, Some(TICK)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result.context("wait for events")?,
        }
        let now = Instant::now();
        let mut wrong = None;
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            let streams = &mut self.streams;
            let mut seen = Seen::default();
            let received = connection.receive(&mut |answer| match answer {
                Answer::Data { token, bytes } => {
                    // The token of a put is none of a stream's.
                    if let Some(stream) = streams.get_mut(token as usize) {
                        stream.take(bytes, &mut seen);
                    }
                }
                Answer::End { token: u32::MAX, status: Some(0) } => {}
                Answer::End { status, .. } => wrong = Some(status),
            });
            received.context("receive")?;
            connection.flush().context("send")?;
            self.created += seen.created;
            self.delivered += seen.events;
            if seen.canceled {
                bail!("the server has cancelled a watch");
            }
        }
        match wrong {
            Some(status) => bail!("a call ended with grpc-status {status:?}"),
            None => Ok(now),
        }
    }
}

impl WatchStream {
    fn take(&mut self, bytes: &[u8], seen: &mut Seen) {
        if self.partial.is_empty() {
            let rest = take_messages(bytes, seen);
            self.partial.extend_from_slice(rest);
            return;
        }
        self.partial.extend_from_slice(bytes);
        let rest = take_messages(&self.partial, seen).len();
        self.partial.drain(..self.partial.len() - rest);
    }
}

/// Counts what the whole messages say and answers what is left.
fn take_messages<'a>(mut bytes: &'a [u8], seen: &mut Seen) -> &'a [u8] {
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((message, after)) = rest.split_at_checked(length) else { break };
        for field in fields(message) {
            match field {
                (3, Field::Number(1)) => seen.created += 1,
                (4, Field::Number(1)) => seen.canceled = true,
                (11, Field::Bytes(_)) => seen.events += 1,
                _ => {}
            }
        }
        bytes = after;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcdserverpb::WatchResponse;
    use proto::mvccpb::Event;

    #[test]
    fn events_are_counted_however_the_stream_is_cut() {
        let mut stream = Vec::new();
        let created = WatchResponse { created: true, watch_id: 3, ..Default::default() };
        let events = WatchResponse {
            events: vec![Event::default(), Event::default()],
            ..Default::default()
        };
        for message in [&created, &events, &events] {
            let encoded = message.encode_to_vec();
            stream.push(0);
            stream.extend_from_slice(&(encoded.len() as u32).to_be_bytes());
            stream.extend_from_slice(&encoded);
        }
        for size in 1..=stream.len() {
            let mut seen = Seen::default();
            let mut reader = WatchStream::default();
            for piece in stream.chunks(size) {
                reader.take(piece, &mut seen);
            }
            assert_eq!(seen, Seen { created: 1, events: 4, canceled: false }, "cut at {size}");
        }
    }
}
