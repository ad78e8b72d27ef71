//! Whom to ask for a name, and what names to ask for: `/etc/resolv.conf` as Go's resolver reads it
//! (`net/dnsconfig_unix.go`, `nameList` of `net/dnsclient_unix.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const FILE: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// More are not asked.
const SERVERS_MAX: usize = 3;
const NDOTS_MAX: usize = 15;
/// With its dot at the end.
const NAME_BYTES_MAX: usize = 254;

/// How names are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolver {
    pub(super) servers: Vec<SocketAddr>,
    /// Each ends with a dot.
    search: Vec<String>,
    /// A name with so many dots is first asked for as it is.
    ndots: usize,
    /// How long a server may take.
    pub(super) timeout: Duration,
    /// How often each server is asked.
    pub(super) attempts: usize,
}

impl Resolver {
    /// This system's.
    pub(super) fn of_system() -> Self {
        let host = rustix::system::uname();
        Self::parse(
            &std::fs::read_to_string(FILE).unwrap_or_default(),
            &host.nodename().to_string_lossy(),
        )
    }

    /// What a file says on a host of this name. What is not understood is passed over.
    pub(super) fn parse(text: &str, host: &str) -> Self {
        let mut read = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines().filter(|line| !line.starts_with([';', '#'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if read.servers.len() < SERVERS_MAX => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    read.servers.extend(address.map(|address| SocketAddr::new(address, PORT)));
                }
                Some("domain") => {
                    if let Some(domain) = words.next() {
                        read.search = vec![rooted(domain)];
                    }
                }
                Some("search") => {
                    read.search = words.map(rooted).filter(|domain| domain != ".").collect();
                }
                Some("options") => words.for_each(|word| read.option(word)),
                _ => {}
            }
        }
        if read.servers.is_empty() {
            let local = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
            read.servers = local.map(|address| SocketAddr::new(address, PORT)).to_vec();
        }
        if read.search.is_empty() {
            let domain = host.split_once('.').map_or("", |(_, domain)| domain);
            read.search =
                Some(domain).filter(|it| !it.is_empty()).map(rooted).into_iter().collect();
        }
        read
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let number = value.parse::<i64>().unwrap_or(0);
        let at_least = |least: i64| usize::try_from(number.max(least)).unwrap_or(usize::MAX);
        match name {
            "ndots" => self.ndots = at_least(0).min(NDOTS_MAX),
            "timeout" => self.timeout = Duration::from_secs(at_least(1) as u64),
            "attempts" => self.attempts = at_least(1),
            _ => {}
        }
    }

    /// The names to ask for, in order, until one is known; each ends with a dot.
    pub(super) fn names(&self, name: &str) -> Vec<String> {
        let is_rooted = name.ends_with('.');
        let absolute = rooted(name);
        let mut names = Vec::new();
        if absolute.len() > NAME_BYTES_MAX {
            return names;
        }
        if !is_rooted {
            names.extend(self.search.iter().map(|domain| format!("{absolute}{domain}")));
        }
        let has_dots = name.bytes().filter(|byte| *byte == b'.').count() >= self.ndots;
        names.insert(if has_dots { 0 } else { names.len() }, absolute);
        // The names of hidden services are nobody's business (RFC 7686).
        names.retain(|name| name.len() <= NAME_BYTES_MAX && !name.ends_with(".onion."));
        names
    }
}

fn rooted(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_go_completes_them() {
        let pod =
            "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local\noptions ndots:5";
        let long = "x".repeat(NAME_BYTES_MAX - 5);
        for (file, host, name, expected) in [
            (
                pod,
                "",
                "_etcd-server._tcp.etcd.ns.svc",
                &[
                    "_etcd-server._tcp.etcd.ns.svc.ns.svc.cluster.local.",
                    "_etcd-server._tcp.etcd.ns.svc.svc.cluster.local.",
                    "_etcd-server._tcp.etcd.ns.svc.",
                ][..],
            ),
            (
                pod,
                "",
                "a.b.c.d.e.f",
                &[
                    "a.b.c.d.e.f.",
                    "a.b.c.d.e.f.ns.svc.cluster.local.",
                    "a.b.c.d.e.f.svc.cluster.local.",
                ],
            ),
            (pod, "", "a.b.", &["a.b."]),
            ("", "", "a", &["a."]),
            ("", "host.example.com", "a", &["a.example.com.", "a."]),
            ("", "host.", "a.b", &["a.b."]),
            ("search one\nsearch two three.", "h.x", "a", &["a.two.", "a.three.", "a."]),
            ("search one\ndomain two", "", "a.b", &["a.b.", "a.b.two."]),
            ("search .\n", "", "a.b", &["a.b."]),
            ("#search one\n;search two", "", "a", &["a."]),
            ("search one\noptions ndots:0", "", "a", &["a.", "a.one."]),
            ("search one\noptions ndots:-3", "", "a", &["a.", "a.one."]),
            ("search one", "", "a.onion", &["a.onion.one."]),
            ("", "", "a.onion.", &[]),
            ("search one.two", "", &long, &[&format!("{long}.")]),
            ("", "", &"x".repeat(NAME_BYTES_MAX), &[]),
        ] {
            assert_eq!(Resolver::parse(file, host).names(name), expected, "{file:?} {host} {name}");
        }
    }

    #[test]
    fn servers_and_options_are_read_as_go_reads_them() {
        let of = |text: &str| {
            let read = Resolver::parse(text, "");
            let servers: Vec<String> = read.servers.iter().map(ToString::to_string).collect();
            (servers.join(" "), read.timeout.as_secs(), read.attempts)
        };
        let local = || "127.0.0.1:53 [::1]:53".to_owned();
        assert_eq!(of(""), (local(), 5, 2));
        assert_eq!(of("nameserver\nnameserver nonsense"), (local(), 5, 2));
        let four = "nameserver 1.1.1.1\nnameserver ::2\nnameserver 3.3.3.3 # x\nnameserver 4.4.4.4";
        assert_eq!(of(four).0, "1.1.1.1:53 [::2]:53 3.3.3.3:53");
        assert_eq!(of("options timeout:2 attempts:7 rotate").1, 2);
        assert_eq!(of("options timeout:0 attempts:0"), (local(), 1, 1));
        assert_eq!(Resolver::parse("options ndots:99", "").ndots, NDOTS_MAX);
    }
}
