//! `--grpc-keepalive-min-time`, `-interval` and `-timeout` on raw HTTP/2 connections, and what a member has
//! instead of them for the others.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::processes::{Cluster, ServerOptions};

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 0xb;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

struct Raw(TcpStream);

impl Raw {
    fn connect(cluster: &Cluster) -> Raw {
        Raw::connect_to(&cluster.members()[0].endpoint)
    }

    fn connect_to(address: &str) -> Raw {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Raw(stream);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(SETTINGS, 0, 0, &[]);
        while raw.receive().unwrap().kind != SETTINGS {}
        raw.send(SETTINGS, ACK, 0, &[]);
        raw
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        // The server may have ended the connection; what it said before is still there to read.
        let _ = self.0.write_all(&frame);
    }

    /// The next frame; none at the end of the connection.
    fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame { kind: head[3], flags: head[4], payload })
    }

    /// Begins a watch, which stays under way and sends nothing.
    fn begin_call(&mut self) {
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/etcdserverpb.Watch/Watch"),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            // A literal without indexing and with a new name (RFC 7541, 6.2.2).
            block.push(0);
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.send(HEADERS, END_HEADERS, 1, &block);
        // What the server sends for the call forgives earlier pings, so it must be over.
        while self.receive().unwrap().kind != HEADERS {}
    }

    /// Pings and waits for the answer; the frame that came instead, if another did.
    fn ping(&mut self) -> Option<Frame> {
        self.send(PING, 0, 0, &[7; 8]);
        loop {
            let frame = self.receive()?;
            match frame.kind {
                PING if frame.flags & ACK != 0 => return None,
                GOAWAY => return Some(frame),
                _ => {}
            }
        }
    }

    /// Pings until the server has enough; how many pings were answered.
    fn ping_until_refused(&mut self, interval: Duration, max: u32) -> Option<u32> {
        for answered in 0..max {
            if let Some(frame) = self.ping() {
                assert_eq!(frame.payload[4..8], ENHANCE_YOUR_CALM.to_be_bytes());
                assert_eq!(&frame.payload[8..], b"too_many_pings");
                assert!(self.receive().is_none(), "the connection goes on after GOAWAY");
                return Some(answered);
            }
            std::thread::sleep(interval);
        }
        None
    }
}

fn start(flags: &[&str]) -> Cluster {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    Cluster::start(&ServerOptions { flags, ..ServerOptions::one(&program) }).unwrap()
}

#[test]
fn a_client_that_pings_too_often_is_told_to_calm_down() {
    let min_time = Duration::from_millis(400);
    let cluster = start(&["--grpc-keepalive-min-time=400ms"]);
    let mut busy = Raw::connect(&cluster);
    busy.begin_call();
    assert_eq!(busy.ping_until_refused(Duration::ZERO, 10), Some(3));

    let mut patient = Raw::connect(&cluster);
    patient.begin_call();
    assert_eq!(patient.ping_until_refused(min_time + min_time / 4, 8), None);

    // Without a call the least time is two hours, whatever the flag says.
    let mut idle = Raw::connect(&cluster);
    assert_eq!(idle.ping_until_refused(min_time + min_time / 4, 10), Some(3));
}

/// Says nothing until the connection ends, which has to be within `max`.
fn be_dropped(mut silent: Raw, max: Duration) {
    silent.0.set_read_timeout(Some(max)).unwrap();
    let began = Instant::now();
    let mut pinged = false;
    while let Some(frame) = silent.receive() {
        pinged |= frame.kind == PING && frame.flags & ACK == 0;
    }
    assert!(pinged, "the server never asked");
    assert!(began.elapsed() < max, "dropped after {:?}", began.elapsed());
}

#[test]
fn a_client_that_does_not_answer_pings_is_dropped() {
    let cluster = start(&["--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=500ms"]);
    be_dropped(Raw::connect(&cluster), Duration::from_secs(8));
}

/// A leader that is frozen keeps its connections: what it was sending would be waited for until then.
#[test]
fn a_member_that_does_not_answer_pings_is_dropped_whatever_clients_are_given() {
    let cluster = start(&["--grpc-keepalive-interval=0s", "--grpc-keepalive-timeout=0s"]);
    let peer = cluster.members()[0].peer_url.strip_prefix("http://").unwrap();
    be_dropped(Raw::connect_to(peer), Duration::from_secs(20));
}
