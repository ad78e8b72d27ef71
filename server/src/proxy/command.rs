//! The command lines of the sub-commands: tables of flags, from which parsing, help and errors follow.
//!
//! Go etcd reads these with cobra and pflag: two dashes for every flag, a list may be given in several
//! pieces, an error is followed by the usage and told again at the end. The texts are theirs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use types::go::{self, NumberError, Reason};

use crate::cli::value::parse_duration;

use super::{Refusal, grpc, tcp};

/// What kind of value a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Separated by commas; a second flag of the name adds to the list.
    Texts,
    Bool,
    Duration,
    Int,
    Uint,
    Uint32,
}

impl Kind {
    /// What stands behind the name of the flag in the help.
    fn name(self) -> &'static str {
        match self {
            Kind::Text => " string",
            Kind::Texts => " strings",
            Kind::Bool => "",
            Kind::Duration => " duration",
            Kind::Int => " int",
            Kind::Uint => " uint",
            Kind::Uint32 => " uint32",
        }
    }

    fn check(self, value: &str) -> Result<(), String> {
        let told = |error: NumberError| error.to_string();
        match self {
            Kind::Text | Kind::Texts => Ok(()),
            Kind::Bool => go::parse_bool(value).map(drop).map_err(told),
            Kind::Duration => parse_duration(value).map(drop).map_err(|_| wrong_duration(value)),
            Kind::Int => go::parse_int(value, 0).map(drop).map_err(told),
            Kind::Uint => go::parse_unsigned(value, 0).map(drop).map_err(told),
            Kind::Uint32 => go::parse_uint32(value).map(drop).map_err(told),
        }
    }
}

/// One flag of a sub-command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
}

impl Flag {
    const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, kind, default, help }
    }

    /// The default as the help shows it; nothing for a value that says nothing.
    fn shown_default(&self) -> String {
        match self.kind {
            _ if self.default.is_empty() => String::new(),
            Kind::Text => format!(" (default {:?})", self.default),
            Kind::Texts => format!(" (default [{}])", self.default),
            Kind::Bool if self.default == "false" => String::new(),
            Kind::Duration if self.default == "0s" => String::new(),
            _ if self.default == "0" => String::new(),
            _ => format!(" (default {})", self.default),
        }
    }
}

/// A sub-command and its only command, `start`.
pub(super) struct Group {
    name: &'static str,
    flags: &'static [Flag],
    /// What `start` does; it comes back when the proxy has ended.
    pub(super) start: fn(&Values) -> Result<(), Refusal>,
}

/// All sub-commands.
pub(super) const GROUPS: &[Group] = &[
    Group { name: "gateway", flags: GATEWAY, start: tcp::start },
    Group { name: "grpc-proxy", flags: GRPC_PROXY, start: grpc::start },
];

const GATEWAY: &[Flag] = &[
    Flag::new("discovery-srv", Kind::Text, "", "DNS domain used to bootstrap initial cluster"),
    Flag::new(
        "discovery-srv-name",
        Kind::Text,
        "",
        "service name to query when using DNS discovery",
    ),
    Flag::new("endpoints", Kind::Texts, "127.0.0.1:2379", "comma separated etcd cluster endpoints"),
    Flag::new("insecure-discovery", Kind::Bool, "false", "accept insecure SRV records"),
    Flag::new("listen-addr", Kind::Text, "127.0.0.1:23790", "listen address"),
    Flag::new(
        "retry-delay",
        Kind::Duration,
        "1m0s",
        "duration of delay before retrying failed endpoints",
    ),
    Flag::new(
        "trusted-ca-file",
        Kind::Text,
        "",
        "path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided.",
    ),
];

/// In the order of their names, as the help has them.
const GRPC_PROXY: &[Flag] = &[
    Flag::new(
        "advertise-client-url",
        Kind::Text,
        "127.0.0.1:23790",
        "advertise address to register (must be reachable by client)",
    ),
    Flag::new("auto-tls", Kind::Bool, "false", "proxy TLS using generated certificates"),
    Flag::new(
        "cacert",
        Kind::Text,
        "",
        "verify certificates of TLS-enabled secure etcd servers using this CA bundle",
    ),
    Flag::new(
        "cert",
        Kind::Text,
        "",
        "identify secure connections with etcd servers using this TLS certificate file",
    ),
    Flag::new(
        "cert-file",
        Kind::Text,
        "",
        "identify secure connections to the proxy using this TLS certificate file",
    ),
    Flag::new("client-crl-file", Kind::Text, "", "proxy client certificate revocation list file."),
    Flag::new("data-dir", Kind::Text, "default.proxy", "Data directory for persistent data"),
    Flag::new("debug", Kind::Bool, "false", "Enable debug-level logging for grpc-proxy."),
    Flag::new(
        "dial-keepalive-time",
        Kind::Duration,
        "0s",
        "keepalive time for client(grpc-proxy) connections (default 0, disable).",
    ),
    Flag::new(
        "dial-keepalive-timeout",
        Kind::Duration,
        "20s",
        "keepalive timeout for client(grpc-proxy) connections (default 20s).",
    ),
    Flag::new(
        "discovery-srv",
        Kind::Text,
        "",
        "domain name to query for SRV records describing cluster endpoints",
    ),
    Flag::new(
        "discovery-srv-name",
        Kind::Text,
        "",
        "service name to query when using DNS discovery",
    ),
    Flag::new(
        "enable-pprof",
        Kind::Bool,
        "false",
        "Enable runtime profiling data via HTTP server. Address is at client URL + \"/debug/pprof/\"",
    ),
    Flag::new("endpoints", Kind::Texts, "127.0.0.1:2379", "comma separated etcd cluster endpoints"),
    Flag::new(
        "endpoints-auto-sync-interval",
        Kind::Duration,
        "0s",
        "etcd endpoints auto sync interval (disabled by default)",
    ),
    Flag::new(
        "experimental-enable-grpc-logging",
        Kind::Bool,
        "false",
        "logging all grpc requests and responses",
    ),
    Flag::new(
        "experimental-leasing-prefix",
        Kind::Text,
        "",
        "leasing metadata prefix for disconnected linearized reads.",
    ),
    Flag::new(
        "experimental-serializable-ordering",
        Kind::Bool,
        "false",
        "Ensure serializable reads have monotonically increasing store revisions across endpoints.",
    ),
    Flag::new(
        "grpc-keepalive-interval",
        Kind::Duration,
        "2h0m0s",
        "Frequency duration of server-to-client ping to check if a connection is alive (0 to disable).",
    ),
    Flag::new(
        "grpc-keepalive-min-time",
        Kind::Duration,
        "5s",
        "Minimum interval duration that a client should wait before pinging proxy.",
    ),
    Flag::new(
        "grpc-keepalive-timeout",
        Kind::Duration,
        "20s",
        "Additional duration of wait before closing a non-responsive connection (0 to disable).",
    ),
    Flag::new("insecure-discovery", Kind::Bool, "false", "accept insecure SRV records"),
    Flag::new(
        "insecure-skip-tls-verify",
        Kind::Bool,
        "false",
        "skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)",
    ),
    Flag::new(
        "key",
        Kind::Text,
        "",
        "identify secure connections with etcd servers using this TLS key file",
    ),
    Flag::new(
        "key-file",
        Kind::Text,
        "",
        "identify secure connections to the proxy using this TLS key file",
    ),
    Flag::new("listen-addr", Kind::Text, "127.0.0.1:23790", "listen address"),
    Flag::new(
        "listen-cipher-suites",
        Kind::Texts,
        "",
        "Comma-separated list of supported TLS cipher suites between client/proxy (empty will be auto-populated by Go).",
    ),
    Flag::new(
        "max-concurrent-streams",
        Kind::Uint32,
        "4294967295",
        "Maximum concurrent streams that each client can open at a time.",
    ),
    Flag::new(
        "max-recv-bytes",
        Kind::Int,
        "2147483647",
        "message receive limits in bytes (default value is math.MaxInt32)",
    ),
    Flag::new(
        "max-send-bytes",
        Kind::Int,
        "1572864",
        "message send limits in bytes (default value is 1.5 MiB)",
    ),
    Flag::new(
        "metrics-addr",
        Kind::Text,
        "",
        "listen for endpoint /metrics requests on an additional interface",
    ),
    Flag::new("namespace", Kind::Text, "", "string to prefix to all keys for namespacing requests"),
    Flag::new(
        "permit-without-stream",
        Kind::Bool,
        "false",
        "Enable client(grpc-proxy) to send keepalive pings even with no active RPCs.",
    ),
    Flag::new(
        "resolver-prefix",
        Kind::Text,
        "",
        "prefix to use for registering proxy (must be shared with other grpc-proxy members)",
    ),
    Flag::new(
        "resolver-ttl",
        Kind::Int,
        "0",
        "specify TTL, in seconds, when registering proxy endpoints",
    ),
    Flag::new(
        "self-signed-cert-validity",
        Kind::Uint,
        "1",
        "The validity period of the proxy certificates, unit is year",
    ),
    Flag::new(
        "tls-max-version",
        Kind::Text,
        "",
        "Maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty defers to Go).",
    ),
    Flag::new(
        "tls-min-version",
        Kind::Text,
        "TLS1.2",
        "Minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3.",
    ),
    Flag::new(
        "trusted-ca-file",
        Kind::Text,
        "",
        "verify certificates of TLS-enabled secure proxy using this CA bundle",
    ),
];

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To be printed.
    Help(String),
    /// The error, the usage and the error again, as cobra and then etcd write them.
    Refused(String),
    Start(Values),
}

/// The values of `start`, of the right form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        match self.text(name) {
            "" => Vec::new(),
            text => text.split(',').map(str::to_owned).collect(),
        }
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        go::parse_bool(self.text(name)) == Ok(true)
    }

    /// A number that is larger than any that counts is the largest.
    pub(super) fn number(&self, name: &str) -> i64 {
        match go::parse_int(self.text(name), 0) {
            Ok(number) => number,
            Err(error) if error.reason == Reason::Range => i64::MAX,
            Err(_) => 0,
        }
    }

    /// A negative length of time is none.
    pub(super) fn duration(&self, name: &str) -> Duration {
        let nanos = parse_duration(self.text(name)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

impl Group {
    pub(super) fn name(&self) -> String {
        self.name.to_owned()
    }

    fn short(&self) -> String {
        format!("{} related command", self.name)
    }

    fn usage(&self) -> String {
        let name = self.name;
        format!(
            "Usage:\n  etcd {name} [command]\n\nAvailable Commands:\n  start       {}\n\nFlags:\n  \
             -h, --help   help for {name}\n\nUse \"etcd {name} [command] --help\" for more \
             information about a command.\n",
            self.start_short()
        )
    }

    fn start_short(&self) -> String {
        format!("start the {}", self.name.replace('-', " "))
    }

    fn start_usage(&self) -> String {
        let mut rows: Vec<(&str, String, String)> = self
            .flags
            .iter()
            .map(|flag| {
                let left = format!("      --{}{}", flag.name, flag.kind.name());
                (flag.name, left, format!("{}{}", flag.help, flag.shown_default()))
            })
            .collect();
        rows.push(("help", "  -h, --help".to_owned(), "help for start".to_owned()));
        rows.sort();
        let width = rows.iter().map(|(_, left, _)| left.len()).max().unwrap_or(0);
        let mut text = format!("Usage:\n  etcd {} start [flags]\n\nFlags:\n", self.name);
        for (_, left, right) in rows {
            let _ = writeln!(text, "{left:width$}   {right}");
        }
        text
    }
}

/// Reads what follows the name of the sub-command.
pub(super) fn parse(group: &Group, arguments: &[String]) -> Asked {
    let command = arguments.iter().position(|argument| !argument.starts_with('-'));
    let Some(at) = command.filter(|at| arguments[*at] == "start") else {
        let help = format!("{}\n\n{}", group.short(), group.usage());
        return match read(&[], arguments) {
            Ok(_) => Asked::Help(help),
            Err(error) => refused(&error, &group.usage()),
        };
    };
    let rest = [&arguments[..at], &arguments[at + 1..]].concat();
    match read(group.flags, &rest) {
        Ok(Some(values)) => Asked::Start(values),
        Ok(None) => Asked::Help(format!("{}\n\n{}", group.start_short(), group.start_usage())),
        Err(error) => refused(&error, &group.start_usage()),
    }
}

fn refused(error: &str, usage: &str) -> Asked {
    Asked::Refused(format!("Error: {error}\n{usage}\n{error}"))
}

/// The values; nothing if help is asked for. What is no flag is passed over, as etcd does.
fn read(flags: &'static [Flag], arguments: &[String]) -> Result<Option<Values>, String> {
    let defaults = flags.iter().map(|flag| (flag.name, flag.default.to_owned()));
    let mut values: BTreeMap<&'static str, String> = defaults.collect();
    let mut given: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(body) = argument.strip_prefix("--") else {
            match argument.strip_prefix('-').and_then(|letters| letters.chars().next()) {
                None => continue,
                Some('h') => return Ok(None),
                Some(letter) => {
                    return Err(format!("unknown shorthand flag: '{letter}' in {argument}"));
                }
            }
        };
        if body.is_empty() {
            break;
        }
        if body.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {argument}"));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            if name == "help" {
                return Ok(None);
            }
            return Err(format!("unknown flag: --{name}"));
        };
        let value = match value {
            Some(value) => value,
            None if flag.kind == Kind::Bool => "true",
            None => rest.next().ok_or_else(|| format!("flag needs an argument: --{name}"))?,
        };
        flag.kind
            .check(value)
            .map_err(|why| format!("invalid argument {value:?} for \"--{name}\" flag: {why}"))?;
        given.entry(flag.name).or_default().push(value.to_owned());
        if flag.kind == Kind::Texts {
            let pieces = given[flag.name].iter().filter(|piece| !piece.is_empty());
            values.insert(flag.name, pieces.cloned().collect::<Vec<_>>().join(","));
        } else {
            values.insert(flag.name, value.to_owned());
        }
    }
    Ok(Some(Values(values)))
}

/// Go's `time.ParseDuration` says which part it did not understand.
fn wrong_duration(value: &str) -> String {
    let unsigned = value.trim_start_matches(['-', '+']);
    let number = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.');
    let unit = number.map_or("", |at| &unsigned[at..]);
    let unit = &unit[..unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len())];
    let known = matches!(unit, "ns" | "us" | "\u{b5}s" | "\u{3bc}s" | "ms" | "s" | "m" | "h");
    let digits = unsigned.bytes().any(|byte| byte.is_ascii_digit());
    match number {
        None if digits => format!("time: missing unit in duration {value:?}"),
        Some(1..) if digits && !known => {
            format!("time: unknown unit {unit:?} in duration {value:?}")
        }
        _ => format!("time: invalid duration {value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &[&str]) -> Asked {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        parse(&GROUPS[0], &arguments)
    }

    fn values(arguments: &[&str]) -> Values {
        match asked(&[&["start"], arguments].concat()) {
            Asked::Start(values) => values,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn values_read_as_pflag_reads_them() {
        let defaults = values(&[]);
        assert_eq!(defaults.text("listen-addr"), "127.0.0.1:23790");
        assert_eq!(defaults.list("endpoints"), ["127.0.0.1:2379"]);
        assert_eq!(defaults.duration("retry-delay"), Duration::from_secs(60));
        assert!(!defaults.is_true("insecure-discovery"));
        let given = values(&[
            "--endpoints=a:1,b:2",
            "--endpoints",
            "c:3",
            "--insecure-discovery",
            "--retry-delay=5s",
            "ignored",
        ]);
        assert_eq!(given.list("endpoints"), ["a:1", "b:2", "c:3"]);
        assert_eq!(given.duration("retry-delay"), Duration::from_secs(5));
        assert!(given.is_true("insecure-discovery"));
        assert!(values(&["--endpoints="]).list("endpoints").is_empty());
    }

    /// The texts are those that etcd 3.7.3 writes for the same command lines.
    #[test]
    fn what_cannot_be_read_is_told_with_the_usage_around_it() {
        let cases = [
            ("--foo", "unknown flag: --foo"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("--listen-addr", "flag needs an argument: --listen-addr"),
            ("---x", "bad flag syntax: ---x"),
            ("--=x", "bad flag syntax: --=x"),
            (
                "--retry-delay=x",
                "invalid argument \"x\" for \"--retry-delay\" flag: time: invalid duration \"x\"",
            ),
            (
                "--retry-delay=5",
                "invalid argument \"5\" for \"--retry-delay\" flag: time: missing unit in duration \"5\"",
            ),
            (
                "--retry-delay=5x",
                "invalid argument \"5x\" for \"--retry-delay\" flag: time: unknown unit \"x\" in duration \"5x\"",
            ),
            (
                "--insecure-discovery=maybe",
                "invalid argument \"maybe\" for \"--insecure-discovery\" flag: strconv.ParseBool: \
                 parsing \"maybe\": invalid syntax",
            ),
        ];
        for (argument, error) in cases {
            let usage = GROUPS[0].start_usage();
            assert_eq!(asked(&["start", argument]), refused(error, &usage), "{argument}");
        }
        assert_eq!(asked(&["--foo"]), refused("unknown flag: --foo", &GROUPS[0].usage()));
    }

    #[test]
    fn numbers_read_as_pflag_reads_them() {
        let numbers = |text: &str| {
            let arguments = ["start".to_owned(), format!("--resolver-ttl={text}")];
            match parse(&GROUPS[1], &arguments) {
                Asked::Start(values) => Ok(values.number("resolver-ttl")),
                Asked::Refused(told) => Err(told),
                Asked::Help(help) => panic!("{help}"),
            }
        };
        for (text, number) in [("0x10", 16), ("010", 8), ("1_000", 1000), ("+5", 5), ("-0b11", -3)]
        {
            assert_eq!(numbers(text), Ok(number), "{text}");
        }
        let told = "Error: invalid argument \"1_\" for \"--resolver-ttl\" flag: strconv.ParseInt: \
                    parsing \"1_\": invalid syntax\n";
        assert!(numbers("1_").unwrap_err().starts_with(told));
    }

    #[test]
    fn help_is_shown_for_the_group_and_for_start() {
        for arguments in [&[][..], &["foo"], &["-h"], &["--help"]] {
            let Asked::Help(text) = asked(arguments) else { panic!("{arguments:?}") };
            assert!(
                text.starts_with("gateway related command\n\nUsage:\n  etcd gateway [command]")
            );
        }
        let Asked::Help(text) = asked(&["start", "-h"]) else { panic!("no help") };
        assert!(text.starts_with("start the gateway\n\nUsage:\n  etcd gateway start [flags]\n"));
        assert!(text.contains("\n  -h, --help                        help for start\n"), "{text}");
        assert!(text.contains("retrying failed endpoints (default 1m0s)\n"), "{text}");
    }
}
