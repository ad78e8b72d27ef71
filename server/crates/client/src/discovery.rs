//! Finding servers by DNS: the SRV records of a domain, as etcd's clients and members ask for them.
//!
//! `_etcd-client-ssl._tcp.<domain>` names servers with TLS, `_etcd-client._tcp.<domain>` those without;
//! a service name is appended to the first label. Members find each other by `etcd-server` in the same
//! way. The question goes to the name servers of `/etc/resolv.conf`, over UDP, and over TCP when the answer
//! does not fit (RFC 1035, RFC 2782), for each name that its search list makes of the one that was given. It
//! is asked once, when a program starts, and blocks: there is nothing to do without the answer.

mod resolver;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use resolver::Resolver;

use crate::error::Error;

const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const CODE_MASK: u16 = 0x000f;
const CODE_NO_SUCH_NAME: u16 = 3;
const UDP_BYTES_MAX: usize = 4096;
const HEADER_BYTES: usize = 12;
/// No name is so long that it needs more jumps.
const JUMPS_MAX: usize = 128;

/// A server that a record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    /// Lower ones are to be asked first.
    pub priority: u16,
    /// The share among those of equal priority.
    pub weight: u16,
    /// The port of the service.
    pub port: u16,
    /// The name of the host, without the dot at its end.
    pub host: String,
}

/// A server for clients that a record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTarget {
    /// Whether it was found under the name for servers with TLS.
    pub is_secure: bool,
    /// Where it is.
    pub target: SrvTarget,
}

impl ClientTarget {
    /// The URL of the server.
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.target.host, self.target.port)
    }
}

/// The endpoints of a domain, those with TLS first.
///
/// # Errors
/// Neither kind of record could be looked up.
pub fn discover_endpoints(domain: &str, service_name: &str) -> Result<Vec<String>, Error> {
    let found = discover_client_targets(domain, service_name)?;
    Ok(found.iter().map(ClientTarget::endpoint).collect())
}

/// The same with the priorities and weights of the records.
///
/// # Errors
/// Neither kind of record could be looked up.
pub fn discover_client_targets(
    domain: &str,
    service_name: &str,
) -> Result<Vec<ClientTarget>, Error> {
    let suffix = if service_name.is_empty() { String::new() } else { format!("-{service_name}") };
    let look_up = |service: &str| look_up_srv(&format!("{service}{suffix}"), domain);
    match (look_up("etcd-client-ssl"), look_up("etcd-client")) {
        (Err(secure), Err(plain)) => {
            Err(Error::Discovery(format!("dns lookup errors: {secure} and {plain}")))
        }
        (secure, plain) => {
            let found = [(true, secure), (false, plain)].into_iter();
            Ok(found
                .flat_map(|(is_secure, targets)| {
                    let targets = targets.unwrap_or_default().into_iter();
                    targets.map(move |target| ClientTarget { is_secure, target })
                })
                .collect())
        }
    }
}

/// The records of `_<service>._tcp.<domain>`, in the order in which they are to be used.
///
/// # Errors
/// There are none, or no name server says so.
pub fn look_up_srv(service: &str, domain: &str) -> Result<Vec<SrvTarget>, Error> {
    let name = format!("_{service}._tcp.{domain}");
    look_up(&Resolver::of_system(), &name).map_err(Error::Discovery)
}

/// Asks for each name that the resolver makes of one, until there is an answer. The error is worded as Go's
/// resolver words it: whatever was asked for, it names what was looked up.
fn look_up(resolver: &Resolver, name: &str) -> Result<Vec<SrvTarget>, String> {
    let mut last = format!("lookup {name}: no such host");
    for full_name in resolver.names(name) {
        let Some(query) = Query::new(&full_name) else { continue };
        match ask_in_turn(resolver, &query) {
            Ok(targets) => return Ok(in_order(targets)),
            Err((server, reason)) => last = format!("lookup {name} on {server}: {reason}"),
        }
    }
    Err(last)
}

/// Asks the servers in turn. The error is the last one's; where a server says that there is no such name, the
/// others are not asked.
fn ask_in_turn(resolver: &Resolver, query: &Query) -> Result<Vec<SrvTarget>, (SocketAddr, String)> {
    let mut last = None;
    for server in (0..resolver.attempts).flat_map(|_| &resolver.servers) {
        let reason = match query.ask(server, resolver.timeout) {
            Ok(Answer::Targets(targets)) if !targets.is_empty() => return Ok(targets),
            Ok(Answer::Targets(_) | Answer::NoSuchName) => {
                return Err((*server, "no such host".to_owned()));
            }
            Ok(Answer::Refused) => "server misbehaving".to_owned(),
            Err(error) => error.to_string(),
        };
        last = Some((*server, reason));
    }
    Err(last.expect("a resolver has a server and asks it"))
}

/// By priority; among equals by chance, in proportion to their weights.
fn in_order(mut targets: Vec<SrvTarget>) -> Vec<SrvTarget> {
    let chance = |weight: u16| -rand::random::<f64>().ln() / (f64::from(weight) + 0.01);
    let mut keyed: Vec<(u16, f64, SrvTarget)> =
        targets.drain(..).map(|it| (it.priority, chance(it.weight), it)).collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    keyed.into_iter().map(|(_, _, target)| target).collect()
}

enum Answer {
    Targets(Vec<SrvTarget>),
    NoSuchName,
    Refused,
}

struct Query {
    id: u16,
    bytes: Vec<u8>,
}

impl Query {
    /// Nothing if it is no name.
    fn new(name: &str) -> Option<Query> {
        let id = rand::random();
        let mut bytes = Vec::new();
        for number in [id, FLAG_RECURSION_DESIRED, 1, 0, 0, 0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for label in name.trim_end_matches('.').split('.') {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            bytes.push(length);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&TYPE_SRV.to_be_bytes());
        bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        Some(Query { id, bytes })
    }

    fn ask(&self, server: &SocketAddr, patience: Duration) -> io::Result<Answer> {
        let local: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(local, 0))?;
        socket.connect(server)?;
        socket.send(&self.bytes)?;
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"));
            }
            socket.set_read_timeout(Some(left))?;
            let length = socket.recv(&mut buffer).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"),
                _ => error,
            })?;
            let message = &buffer[..length];
            // Somebody else's answer is passed over.
            if number(message, 0) != Some(self.id) {
                continue;
            }
            return match number(message, 2).unwrap_or(0) & FLAG_TRUNCATED {
                0 => parse(message),
                _ => self.ask_tcp(server, patience),
            };
        }
    }

    fn ask_tcp(&self, server: &SocketAddr, patience: Duration) -> io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let length = u16::try_from(self.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &self.bytes].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message)?;
        parse(&message)
    }
}

/// A two-byte number of a message.
fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn parse(message: &[u8]) -> io::Result<Answer> {
    match number(message, 2).unwrap_or(CODE_MASK) & CODE_MASK {
        0 => {}
        CODE_NO_SUCH_NAME => return Ok(Answer::NoSuchName),
        _ => return Ok(Answer::Refused),
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "cannot unmarshal DNS message");
    targets(message).map(Answer::Targets).ok_or_else(malformed)
}

/// The SRV records of an answer; nothing if it is malformed.
fn targets(message: &[u8]) -> Option<Vec<SrvTarget>> {
    let (questions, answers) = (number(message, 4)?, number(message, 6)?);
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        at = name(message, at)?.1 + 4;
    }
    let mut targets = Vec::new();
    for _ in 0..answers {
        let fields = name(message, at)?.1;
        let (kind, length) = (number(message, fields)?, number(message, fields + 8)?);
        let data = fields + 10;
        if kind == TYPE_SRV {
            targets.push(SrvTarget {
                priority: number(message, data)?,
                weight: number(message, data + 2)?,
                port: number(message, data + 4)?,
                host: name(message, data + 6)?.0,
            });
        }
        at = data + usize::from(length);
    }
    Some(targets)
}

/// A name, which may go on elsewhere in the message, and where what follows it begins.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels: Vec<String> = Vec::new();
    let mut after = None;
    for _ in 0..JUMPS_MAX {
        let length = *message.get(at)?;
        match length {
            0 => return Some((labels.join("."), after.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + usize::from(length))?;
                labels.push(String::from_utf8_lossy(label).into_owned());
                at += 1 + usize::from(length);
            }
            192.. => {
                after = after.or(Some(at + 2));
                at = usize::from(number(message, at)? & 0x3fff);
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that answers one question with these targets or, without any, "no such name".
    /// The records' names and the ends of the targets are pointers to the question.
    fn serve(targets: Vec<(u16, u16, &'static str)>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            let mut answer = buffer[..length].to_vec();
            let code = if targets.is_empty() { CODE_NO_SUCH_NAME } else { 0 };
            answer[2..4].copy_from_slice(&(0x8180 | code).to_be_bytes());
            answer[6..8].copy_from_slice(&(targets.len() as u16).to_be_bytes());
            // Behind the labels `_etcd-client` and `_tcp` the domain begins.
            let domain = HEADER_BYTES as u16 + 13 + 5;
            for (priority, port, host) in targets {
                answer.extend_from_slice(&(0xc000 | HEADER_BYTES as u16).to_be_bytes());
                answer.extend_from_slice(&[0, 33, 0, 1, 0, 0, 0, 60]);
                answer.extend_from_slice(&(6 + 1 + host.len() as u16 + 2).to_be_bytes());
                for number in [priority, 0, port] {
                    answer.extend_from_slice(&number.to_be_bytes());
                }
                answer.push(host.len() as u8);
                answer.extend_from_slice(host.as_bytes());
                answer.extend_from_slice(&(0xc000 | domain).to_be_bytes());
            }
            socket.send_to(&answer, from).unwrap();
        });
        address
    }

    fn at(server: SocketAddr) -> Resolver {
        let mut resolver = Resolver::parse("", "");
        resolver.servers = vec![server];
        resolver
    }

    #[test]
    fn records_are_read_in_the_order_of_their_priorities() {
        let server = serve(vec![(2, 2379, "two"), (1, 2380, "one")]);
        let found = look_up(&at(server), "_etcd-client._tcp.example.com").unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.host.as_str(), it.port)).collect();
        assert_eq!(found, [("one.example.com", 2380), ("two.example.com", 2379)]);
    }

    #[test]
    fn a_name_that_does_not_exist_is_told_in_gos_words() {
        let server = serve(Vec::new());
        let error = look_up(&at(server), "_etcd-client._tcp.example.com").unwrap_err();
        let name = "_etcd-client._tcp.example.com";
        assert_eq!(error, format!("lookup {name} on {server}: no such host"));
        assert!(look_up(&at(server), "a..b").is_err());
    }

    #[test]
    fn no_message_makes_it_panic_or_run_for_ever() {
        let mut message = Query::new("a.b").unwrap().bytes;
        message[6..8].copy_from_slice(&[0, 1]);
        // A name that points at itself.
        let here = message.len() as u16;
        message.extend_from_slice(&(0xc000 | here).to_be_bytes());
        assert!(targets(&message).is_none());
        for length in 0..message.len() {
            let _ = parse(&message[..length]);
        }
    }
}
