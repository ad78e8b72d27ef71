//! `--help` and the usage lines, generated from the table of flags.

use std::fmt::Write;

use super::flags::{self, Group, Status};
use super::value::Kind;

/// What is printed to stderr when a command line cannot be read.
pub fn usage() -> &'static str {
    "Usage:

  etcd [flags]
    Start an etcd server.

  etcd --version
    Show the version of etcd.

  etcd -h | --help
    Show the help information about etcd.

  etcd gateway start [flags]
    Start a gateway that passes TCP connections on to members (etcd gateway start --help).

  etcd grpc-proxy start [flags]
    Start a proxy that passes gRPC calls on to members (etcd grpc-proxy start --help).

  etcd --config-file
    Path to the server configuration file (YAML or JSON). If there is one, all other flags and
    environment variables are ignored. Durations in it are whole numbers of nanoseconds.
"
}

/// What `--help` prints to stdout after the usage: every flag under its heading.
pub fn full_help() -> String {
    let mut text = String::new();
    for (group, heading) in Group::SHOWN {
        let _ = write!(text, "\n{heading}:\n");
        for flag in flags::all().filter(|flag| flag.group == group) {
            let _ = writeln!(text, "  --{} '{}'\n    {}", flag.name, flag.default, flag.help);
            match flag.status {
                Status::RefusedUnlessDefault(why) => {
                    let _ = writeln!(text, "    Refused unless it is the default: {why}.");
                }
                Status::NoEffect(why) => {
                    let _ = writeln!(text, "    Accepted without effect: {why}.");
                }
                _ => {}
            }
            if flag.kind == Kind::Gates {
                for gate in crate::gates::known() {
                    let _ = writeln!(text, "    {gate}");
                }
            }
        }
    }
    text.push_str("\nCAUTIOUS with unsafe flag! It may break the guarantees given by the consensus protocol!\n");
    text
}
