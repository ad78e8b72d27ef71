//! One HTTP/2 connection that makes gRPC calls, without threads, timers or allocation per call.
//!
//! The caller owns the event loop: it appends calls, flushes when it likes, and takes answers when
//! the socket is readable. Request headers are indexed in the server's HPACK table after their first
//! use, as real clients do, so a later call is about ten bytes of headers. Flow control is obeyed in
//! both directions; our own windows are large and topped up lazily.
//!
//! Invariants: a stream is in `streams` from its HEADERS until the peer has ended it; data that a
//! window holds back is in `held_back`, in order. RFC 9113 is the frame layer, RFC 7541 the headers,
//! gRPC over HTTP/2 the rest. Deliberately absent: priorities, push, padding on our side.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use loona_hpack::Decoder;
use mio::net::TcpStream;

use super::wire::{Target, Wire};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// The frame size that every peer must accept; we ask for no more either.
const MAX_FRAME: usize = 16_384;
const INPUT_SIZE: usize = 512 * 1024;
const DEFAULT_WINDOW: i64 = 65_535;
/// What we let the peer send per stream and per connection before we top it up at half.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;
const SETTING_MAX_CONCURRENT_STREAMS: u16 = 3;
const SETTING_ENABLE_PUSH: u16 = 2;

/// What has arrived for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// A part of the body: gRPC messages with their five byte heads, cut anywhere.
    Data {
        /// What the caller gave to `call` or `open_stream`.
        token: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The call is over. No status means that the stream was reset or had no `grpc-status`.
    End {
        /// What the caller gave to `call` or `open_stream`.
        token: u32,
        /// The value of `grpc-status`.
        status: Option<u32>,
    },
}

/// A connection.
pub struct Connection {
    wire: Wire,
    authority: String,
    token: Option<String>,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    filled: usize,
    decoder: Decoder<'static>,
    header_block: Vec<u8>,
    headers_end_stream: bool,
    /// Streams in the order of their ids; the first has the id `first_stream`.
    streams: VecDeque<Option<Stream>>,
    first_stream: u32,
    open_streams: usize,
    /// Paths that the peer's header table has, each with the number of its entry.
    paths: Vec<(&'static str, u32)>,
    /// The number of the first of the entries that all calls share.
    common: Option<u32>,
    /// Entries that we have added to the peer's header table.
    indexed: u32,
    send_window: i64,
    initial_send_window: i64,
    max_streams: u32,
    received: u32,
    held_back: VecDeque<HeldBack>,
}

struct Stream {
    token: u32,
    status: Option<u32>,
    received: u32,
    send_window: i64,
}

/// Data that waits for a window.
struct HeldBack {
    stream: u32,
    bytes: Vec<u8>,
    sent: usize,
    end: bool,
}

impl Connection {
    /// Connects (this waits) and sends the preface with the next flush.
    pub fn open(target: impl Into<Target>) -> io::Result<Connection> {
        let target = target.into();
        let mut connection = Connection {
            wire: Wire::open(&target)?,
            authority: target.address.to_string(),
            token: target.token,
            output: Vec::with_capacity(64 * 1024),
            written: 0,
            input: vec![0; INPUT_SIZE],
            filled: 0,
            decoder: Decoder::new(),
            header_block: Vec::new(),
            headers_end_stream: false,
            streams: VecDeque::new(),
            first_stream: 1,
            open_streams: 0,
            paths: Vec::new(),
            common: None,
            indexed: 0,
            send_window: DEFAULT_WINDOW,
            initial_send_window: DEFAULT_WINDOW,
            max_streams: u32::MAX,
            received: 0,
            held_back: VecDeque::new(),
        };
        connection.greet();
        Ok(connection)
    }

    /// The socket, to register it with an event loop.
    pub fn socket(&mut self) -> &mut TcpStream {
        self.wire.socket()
    }

    /// How many calls are under way.
    pub fn open_streams(&self) -> usize {
        self.open_streams
    }

    /// Whether the peer lets us open one more stream.
    pub fn has_room(&self) -> bool {
        self.open_streams < self.max_streams as usize
    }

    /// Whether bytes wait for the socket.
    pub fn has_output(&self) -> bool {
        self.written < self.output.len() || self.wire.has_output()
    }

    /// Starts a unary call. Nothing is sent until `flush`.
    pub fn call(&mut self, path: &'static str, message: &[u8], token: u32) {
        let stream = self.start(path, token);
        self.send(stream, message, true);
    }

    /// Starts a call that goes on sending; answers its stream id.
    pub fn open_stream(&mut self, path: &'static str, token: u32) -> u32 {
        self.start(path, token)
    }

    /// Sends a message on an open stream.
    pub fn send_message(&mut self, stream: u32, message: &[u8]) {
        self.send(stream, message, false);
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.wire.write(&self.output[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        self.wire.flush()
    }

    /// Reads what the socket has and hands over the answers.
    pub fn receive(&mut self, on_answer: &mut impl FnMut(Answer<'_>)) -> io::Result<()> {
        loop {
            let room = self.input.len() - self.filled;
            let count = match self.wire.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.filled += count;
            let input = std::mem::take(&mut self.input);
            let result = self.take_frames(&input[..self.filled], on_answer);
            self.input = input;
            let taken = result?;
            self.input.copy_within(taken..self.filled, 0);
            self.filled -= taken;
            // A short read has emptied the socket; what comes later wakes the event loop again.
            if count < room {
                return Ok(());
            }
        }
    }

    fn greet(&mut self) {
        self.output.extend_from_slice(PREFACE);
        let settings = [(SETTING_ENABLE_PUSH, 0), (SETTING_INITIAL_WINDOW_SIZE, STREAM_WINDOW)];
        frame_head(&mut self.output, settings.len() * 6, SETTINGS, 0, 0);
        for (setting, value) in settings {
            self.output.extend_from_slice(&setting.to_be_bytes());
            self.output.extend_from_slice(&value.to_be_bytes());
        }
        self.update_window(0, CONNECTION_WINDOW - DEFAULT_WINDOW as u32);
    }

    fn start(&mut self, path: &'static str, token: u32) -> u32 {
        let stream = self.first_stream + 2 * self.streams.len() as u32;
        self.streams.push_back(Some(Stream {
            token,
            status: None,
            received: 0,
            send_window: self.initial_send_window,
        }));
        self.open_streams += 1;
        let head = self.output.len();
        frame_head(&mut self.output, 0, HEADERS, END_HEADERS, stream);
        self.request_headers(path);
        let length = self.output.len() - head - FRAME_HEADER;
        self.output[head..head + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        stream
    }

    /// The static entries are POST (3) and http (6); the names are those of static entries 1, 4,
    /// 31 and 58. Our own entries follow at 62, the newest first (RFC 7541, section 2.3.3). Those
    /// that begin with a colon come before the others (RFC 9113, section 8.3).
    fn request_headers(&mut self, path: &'static str) {
        self.output.extend_from_slice(&[0x83, 0x86]);
        match self.paths.iter().find(|(known, _)| *known == path) {
            Some((_, entry)) => indexed(&mut self.output, self.indexed - entry),
            None => {
                literal(&mut self.output, 4, path.as_bytes());
                self.paths.push((path, self.indexed));
                self.indexed += 1;
            }
        }
        if let Some(first) = self.common {
            for entry in first..first + self.common_entries() {
                indexed(&mut self.output, self.indexed - entry);
            }
            return;
        }
        let out = &mut self.output;
        literal(out, 1, self.authority.as_bytes());
        literal(out, 31, b"application/grpc");
        literal(out, 58, b"keelson-bench");
        out.push(0x40);
        string(out, b"te");
        string(out, b"trailers");
        if let Some(token) = &self.token {
            out.push(0x40);
            string(out, b"token");
            string(out, token.as_bytes());
        }
        self.common = Some(self.indexed);
        self.indexed += self.common_entries();
    }

    /// How many entries all calls share: authority, content-type, user-agent, te, and the token.
    fn common_entries(&self) -> u32 {
        4 + u32::from(self.token.is_some())
    }

    fn send(&mut self, stream: u32, message: &[u8], end: bool) {
        let length = (message.len() + 5) as i64;
        let fits = self.held_back.is_empty()
            && length <= MAX_FRAME as i64
            && length <= self.send_window
            && self.stream(stream).is_some_and(|stream| length <= stream.send_window);
        let mut head = [0; 5];
        head[1..].copy_from_slice(&(message.len() as u32).to_be_bytes());
        if fits {
            self.spend(stream, length);
            let flags = if end { END_STREAM } else { 0 };
            frame_head(&mut self.output, length as usize, DATA, flags, stream);
            self.output.extend_from_slice(&head);
            self.output.extend_from_slice(message);
        } else {
            let bytes = [&head[..], message].concat();
            self.held_back.push_back(HeldBack { stream, bytes, sent: 0, end });
            self.send_held_back();
        }
    }

    fn spend(&mut self, stream: u32, length: i64) {
        self.send_window -= length;
        if let Some(stream) = self.stream(stream) {
            stream.send_window -= length;
        }
    }

    /// Sends what the windows allow. The first in the queue blocks the others: one connection serves
    /// one kind of load, so nothing waits behind a stranger.
    fn send_held_back(&mut self) {
        while let Some(mut next) = self.held_back.pop_front() {
            // The peer may have ended the stream without reading all of it.
            let Some(window) = self.stream(next.stream).map(|stream| stream.send_window) else {
                continue;
            };
            let rest = next.bytes.len() - next.sent;
            let room = self.send_window.min(window).clamp(0, MAX_FRAME as i64) as usize;
            let length = rest.min(room);
            if length > 0 {
                let last = length == rest;
                let flags = if last && next.end { END_STREAM } else { 0 };
                frame_head(&mut self.output, length, DATA, flags, next.stream);
                self.output.extend_from_slice(&next.bytes[next.sent..next.sent + length]);
                self.spend(next.stream, length as i64);
                next.sent += length;
            }
            if next.sent < next.bytes.len() {
                self.held_back.push_front(next);
                if length == 0 {
                    return;
                }
            }
        }
    }

    /// Handles the whole frames and answers how many bytes those are.
    fn take_frames(
        &mut self,
        input: &[u8],
        on_answer: &mut impl FnMut(Answer<'_>),
    ) -> io::Result<usize> {
        let mut at = 0;
        while let Some(head) = input.get(at..at + FRAME_HEADER) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if length > MAX_FRAME {
                return Err(protocol_error("a frame is larger than was agreed"));
            }
            let body = at + FRAME_HEADER;
            let Some(payload) = input.get(body..body + length) else { break };
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            self.take_frame(head[3], head[4], stream, payload, on_answer)?;
            at = body + length;
        }
        Ok(at)
    }

    fn take_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        on_answer: &mut impl FnMut(Answer<'_>),
    ) -> io::Result<()> {
        match kind {
            DATA => {
                self.count_received(stream, payload.len() as u32);
                let bytes = without_padding(flags, payload)?;
                if let Some(Stream { token, .. }) = self.stream(stream) {
                    on_answer(Answer::Data { token: *token, bytes });
                }
                if flags & END_STREAM != 0 {
                    self.end(stream, on_answer);
                }
            }
            HEADERS | CONTINUATION => self.take_headers(kind, flags, stream, payload, on_answer)?,
            RST_STREAM => {
                // After an answer that was complete this only says that our half may stop.
                if let Some(open) = self.stream(stream) {
                    open.status = None;
                    self.end(stream, on_answer);
                }
            }
            SETTINGS if flags & ACK == 0 => self.take_settings(payload)?,
            PING if flags & ACK == 0 => {
                frame_head(&mut self.output, payload.len(), PING, ACK, 0);
                self.output.extend_from_slice(payload);
            }
            WINDOW_UPDATE => {
                let more = i64::from(number_at(payload, 0)? & 0x7fff_ffff);
                if stream == 0 {
                    self.send_window += more;
                } else if let Some(open) = self.stream(stream) {
                    open.send_window += more;
                }
                self.send_held_back();
            }
            GOAWAY => return Err(protocol_error("the server said GOAWAY")),
            PUSH_PROMISE => return Err(protocol_error("the server pushes, which we forbid")),
            _ => {}
        }
        Ok(())
    }

    fn take_headers(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        on_answer: &mut impl FnMut(Answer<'_>),
    ) -> io::Result<()> {
        let mut fragment = payload;
        if kind == HEADERS {
            fragment = without_padding(flags, payload)?;
            if flags & PRIORITY != 0 {
                fragment = fragment.get(5..).ok_or_else(|| protocol_error("short HEADERS"))?;
            }
            self.headers_end_stream = flags & END_STREAM != 0;
            self.header_block.clear();
        }
        self.header_block.extend_from_slice(fragment);
        if flags & END_HEADERS == 0 {
            return Ok(());
        }
        let mut status = None;
        self.decoder
            .decode_with_cb(&self.header_block, |name, value| {
                if name.as_ref() == b"grpc-status" {
                    status = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                }
            })
            .map_err(|error| protocol_error(&format!("response headers: {error:?}")))?;
        if let Some(open) = self.stream(stream) {
            open.status = open.status.or(status);
        }
        if self.headers_end_stream {
            self.end(stream, on_answer);
        }
        Ok(())
    }

    fn take_settings(&mut self, payload: &[u8]) -> io::Result<()> {
        for entry in payload.chunks_exact(6) {
            let value = number_at(entry, 2)?;
            match u16::from_be_bytes([entry[0], entry[1]]) {
                SETTING_INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.initial_send_window;
                    self.initial_send_window = i64::from(value);
                    for stream in self.streams.iter_mut().flatten() {
                        stream.send_window += change;
                    }
                }
                SETTING_MAX_CONCURRENT_STREAMS => self.max_streams = value,
                _ => {}
            }
        }
        frame_head(&mut self.output, 0, SETTINGS, ACK, 0);
        self.send_held_back();
        Ok(())
    }

    /// Gives back to the peer what it has used of our windows once that is half of them.
    fn count_received(&mut self, stream: u32, count: u32) {
        self.received += count;
        if self.received > CONNECTION_WINDOW / 2 {
            self.update_window(0, self.received);
            self.received = 0;
        }
        let Some(open) = self.stream(stream) else { return };
        open.received += count;
        if open.received > STREAM_WINDOW / 2 {
            let used = std::mem::take(&mut open.received);
            self.update_window(stream, used);
        }
    }

    fn update_window(&mut self, stream: u32, more: u32) {
        frame_head(&mut self.output, 4, WINDOW_UPDATE, 0, stream);
        self.output.extend_from_slice(&more.to_be_bytes());
    }

    fn end(&mut self, stream: u32, on_answer: &mut impl FnMut(Answer<'_>)) {
        let Some(index) = self.index(stream) else { return };
        let Some(ended) = self.streams[index].take() else { return };
        self.open_streams -= 1;
        while matches!(self.streams.front(), Some(None)) {
            self.streams.pop_front();
            self.first_stream += 2;
        }
        on_answer(Answer::End { token: ended.token, status: ended.status });
    }

    fn stream(&mut self, stream: u32) -> Option<&mut Stream> {
        let index = self.index(stream)?;
        self.streams.get_mut(index)?.as_mut()
    }

    fn index(&self, stream: u32) -> Option<usize> {
        let index = (stream.checked_sub(self.first_stream)? / 2) as usize;
        (index < self.streams.len()).then_some(index)
    }
}

fn frame_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// A field whose name is a static entry and which the peer shall remember.
fn literal(out: &mut Vec<u8>, name: u8, value: &[u8]) {
    out.push(0x40 | name);
    string(out, value);
}

/// A field that the peer remembers; the one added last has the age 1.
fn indexed(out: &mut Vec<u8>, age: u32) {
    let entry = u8::try_from(61 + age).ok().filter(|entry| *entry < 0x7f);
    out.push(0x80 | entry.expect("a handful of paths fits into one byte"));
}

fn string(out: &mut Vec<u8>, value: &[u8]) {
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 0x7f);
    out.push(length.expect("header values of ours are short"));
    out.extend_from_slice(value);
}

fn without_padding(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    payload
        .split_first()
        .and_then(|(padding, rest)| rest.get(..rest.len().checked_sub(usize::from(*padding))?))
        .ok_or_else(|| protocol_error("padding is longer than its frame"))
}

fn number_at(payload: &[u8], at: usize) -> io::Result<u32> {
    let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(|| protocol_error("a frame is too short"))
}

fn protocol_error(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}
