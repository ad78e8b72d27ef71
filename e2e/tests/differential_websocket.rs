//! The gateway through a WebSocket: ours beside Go etcd's, frame by frame.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use e2e::gateway::{self, Ask};
use e2e::processes::{Cluster, ServerOptions};
use serde_json::Value;

/// How long nobody says anything until that counts as an answer.
const SILENCE: Duration = Duration::from_secs(3);

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// What a test is about: its name, and what came back.
type Seen = Vec<(String, Vec<String>)>;

/// The client's end of a WebSocket.
struct Socket(TcpStream);

impl Socket {
    /// Shakes hands; the status line and what of the head does not depend on the time.
    fn open(endpoint: &str, request: &str, path: &str, headers: &[&str]) -> (Socket, Vec<String>) {
        let mut stream = TcpStream::connect(endpoint).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let mut head = format!("{request} {path} HTTP/1.1\r\nHost: {endpoint}\r\n");
        for header in headers {
            head.push_str(&format!("{header}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        let mut lines: Vec<String> = answer.lines().map(str::to_owned).collect();
        // The reason in the status line is free text, and names of headers have no order.
        lines[0] = lines[0].split(' ').nth(1).unwrap().to_owned();
        lines.retain(|line| !line.is_empty() && !line.starts_with("date:"));
        lines.sort();
        (Socket(stream), lines)
    }

    fn websocket(endpoint: &str, path: &str, more: &[&str]) -> (Socket, Vec<String>) {
        let headers = [
            "Connection: keep-alive, Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        Socket::open(endpoint, "GET", path, &[&headers, more].concat())
    }

    fn send(&mut self, first: u8, payload: &[u8]) {
        const MASK: [u8; 4] = [7, 1, 200, 13];
        let mut frame = vec![first, 0x80 | 126];
        frame.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        if payload.len() < 126 {
            frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
        }
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).unwrap();
    }

    fn say(&mut self, json: &str) {
        self.send(TEXT, json.as_bytes());
    }

    /// The next frame, or how the connection ended.
    fn hear(&mut self) -> String {
        match self.frame() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => "nothing".to_owned(),
            Err(_) => "the end".to_owned(),
            Ok((TEXT, payload)) => format!("text {}", steady(&payload)),
            Ok((CLOSE, payload)) => format!("close {payload:?}"),
            Ok((kind, payload)) => format!("{kind:x} {}", String::from_utf8_lossy(&payload)),
        }
    }

    fn frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head)?;
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length)?;
                usize::from(u16::from_be_bytes(length))
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        Ok((head[0], payload))
    }
}

/// A message without what depends on the run.
fn steady(payload: &[u8]) -> String {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for name in ["cluster_id", "member_id", "raft_term", "token"] {
                    fields.remove(name);
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_slice(payload)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(payload).into_owned()));
    strip(&mut value);
    value.to_string()
}

/// The same gateway without a WebSocket.
fn post(endpoint: &str, path: &str, json: &str) {
    let answer = gateway::ask(endpoint, &Ask::post(path, json)).unwrap();
    assert!(answer.status.contains("200"), "{path}: {answer:?}");
}

/// One call with one answer. etcd's gateway gives it only once the client has closed its half, which a
/// WebSocket cannot, so this is asked of ours alone.
fn call(endpoint: &str, path: &str, json: &str, more: &[&str]) -> Vec<String> {
    let (mut socket, head) = Socket::websocket(endpoint, path, more);
    socket.say(json);
    [head, vec![socket.hear(), socket.hear()]].concat()
}

fn token(endpoint: &str) -> String {
    let (mut socket, _) = Socket::websocket(endpoint, "/v3/auth/authenticate", &[]);
    socket.say(r#"{"name":"root","password":"r"}"#);
    let (_, payload) = socket.frame().unwrap();
    let answer: Value = serde_json::from_slice(&payload).unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

fn watch(endpoint: &str, seen: &mut Seen) {
    let (mut socket, _) = Socket::websocket(endpoint, "/v3/watch", &[]);
    socket.say(r#"{"create_request":{"key":"dw=="}}"#);
    let mut heard = vec![socket.hear()];
    post(endpoint, "kv/put", r#"{"key":"dw==","value":"MQ=="}"#);
    heard.push(socket.hear());
    // In two frames, with a ping between them.
    socket.send(0x01, br#"{"create_request":{"key":"#);
    socket.send(PING, b"are you there");
    heard.push(socket.hear());
    socket.send(0x80, br#""eA=="}}"#);
    heard.push(socket.hear());
    socket.say(r#"{"cancel_request":{"watch_id":"1"}}"#);
    heard.push(socket.hear());
    socket.send(CLOSE, &1000u16.to_be_bytes());
    heard.extend([socket.hear(), socket.hear()]);
    seen.push(("a watch".to_owned(), heard));
}

fn keep_alive(endpoint: &str, seen: &mut Seen) {
    post(endpoint, "lease/grant", r#"{"ID":"77","TTL":"100"}"#);
    let (mut socket, _) = Socket::websocket(endpoint, "/v3/lease/keepalive", &[]);
    let mut heard = Vec::new();
    for id in ["77", "77", "78"] {
        socket.say(&format!("{{\"ID\":\"{id}\"}}"));
        heard.push(socket.hear());
    }
    drop(socket);
    seen.push(("keep-alives".to_owned(), heard));
}

fn handshakes(endpoint: &str, seen: &mut Seen) {
    let (connection, upgrade) = ("Connection: Upgrade", "Upgrade: websocket");
    let (version, key) =
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
    for (name, method, headers) in [
        ("another method", "POST", vec![connection, upgrade, version, key, "Content-Length: 0"]),
        ("another version", "GET", vec![connection, upgrade, "Sec-WebSocket-Version: 12", key]),
        ("no version", "GET", vec![connection, upgrade, key]),
        ("no key", "GET", vec![connection, upgrade, version]),
    ] {
        let (_, head) = Socket::open(endpoint, method, "/v3/kv/range", &headers);
        seen.push((name.to_owned(), head));
    }
    let (mut socket, _) = Socket::websocket(endpoint, "/v3/watch", &[]);
    socket.0.write_all(&[TEXT, 2, b'{', b'}']).unwrap();
    seen.push(("a frame without a mask".to_owned(), vec![socket.hear(), socket.hear()]));
}

fn start(program: &Path) -> Cluster {
    let flags = vec!["--bcrypt-cost=4".to_owned()];
    Cluster::start(&ServerOptions { flags, ..ServerOptions::one(program) }).unwrap()
}

fn talk(program: &Path) -> Seen {
    let cluster = start(program);
    let endpoint = cluster.members()[0].endpoint.as_str();
    let mut seen = Seen::new();
    watch(endpoint, &mut seen);
    keep_alive(endpoint, &mut seen);
    handshakes(endpoint, &mut seen);
    seen
}

#[test]
fn streams_over_a_websocket_are_those_of_go_etcd() {
    let ours = talk(&e2e::peers::our_binary("etcd").unwrap());
    let go = talk(&e2e::peers::etcd_binaries().unwrap().etcd);
    let mut wrong = String::new();
    for ((name, ours), (_, go)) in ours.iter().zip(&go) {
        if ours != go {
            wrong.push_str(&format!("{name}:\n  ours {ours:#?}\n  Go   {go:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert_eq!(ours.len(), go.len());
    assert!(go.iter().any(|(_, heard)| heard.iter().any(|text| text.contains("\"events\""))));
}

#[test]
fn one_call_over_a_websocket_has_one_answer_and_the_rights_of_its_token() {
    let cluster = start(&e2e::peers::our_binary("etcd").unwrap());
    let endpoint = cluster.members()[0].endpoint.as_str();
    let answered = |path: &str, json: &str, header: &str, expected: &str| {
        let heard = call(endpoint, path, json, &[header]);
        assert!(heard.iter().any(|text| text.contains(expected)), "{path} {json}: {heard:?}");
    };
    let (any, key) = ("Accept: */*", r#"{"key":"aw=="}"#);
    answered("/v3/kv/put", r#"{"key":"aw==","value":"MQ=="}"#, any, r#""revision":"2""#);
    answered("/v3/kv/range", key, any, r#""value":"MQ==""#);
    answered("/v3/kv/range", "{\"key\":]", any, "invalid character");
    answered("/v3/kv/range", r#"{"key":"aw==","revision":"99"}"#, any, "future revision");
    for (path, json) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        answered(path, json, any, "header");
    }
    let token = token(endpoint);
    let found = r#""value":"MQ==""#;
    answered("/v3/kv/range", key, any, "user name is empty");
    answered("/v3/kv/range", key, "Sec-WebSocket-Protocol: Bearer, none", "invalid auth token");
    for header in [
        format!("Sec-WebSocket-Protocol: Bearer, {token}"),
        format!("Sec-WebSocket-Protocol: Bearer,{token}"),
        format!("Cookie: a=b; token={token}"),
    ] {
        answered("/v3/kv/range", key, &header, found);
    }
}
