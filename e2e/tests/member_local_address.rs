//! Feature gate SetMemberLocalAddr: connections between members leave from the address that a member
//! advertises, by Go etcd's server and ours alike.
//!
//! Loopback addresses are not eligible, so the members have others, in a network namespace of their own
//! (`e2e::namespace`). Without the gate the kernel takes the address of the member that is called, since both
//! are this host's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::namespace::{self, Rerun};
use e2e::serving::Serving;

const LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const READY: &str = "ready to serve client requests";
/// Ours, then Go's.
const PROGRAMS: [&str; 2] = ["OUR_ETCD", "GO_ETCD"];

const PEER_PORT: u16 = 2380;
const MEMBERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

#[test]
fn members_are_called_from_the_address_that_the_caller_advertises() {
    if namespace::is_inside() {
        return inside();
    }
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let go = e2e::peers::etcd_binaries().unwrap().etcd;
    let rerun = Rerun {
        test: "members_are_called_from_the_address_that_the_caller_advertises",
        kinds: &["--net"],
        prepare: MEMBERS.map(|address| format!("ip address add {address}/32 dev lo\n")).concat(),
        arguments: Vec::new(),
        programs: PROGRAMS.into_iter().zip([ours, go]).collect(),
    };
    rerun.run().unwrap();
}

fn inside() {
    let programs = PROGRAMS.map(|name| namespace::program(name).unwrap());
    let [first, second] = MEMBERS;
    let gate: &[&str] = &["--feature-gates=SetMemberLocalAddr=true"];
    for program in &programs {
        // Callers of the second member, while both are up.
        let callers = |flags: &[&str]| callers_of_the_second(program, flags);
        assert_eq!(callers(&[]), BTreeSet::from([second]), "{}", program.display());
        assert_eq!(callers(gate), BTreeSet::from([first]), "{}", program.display());
    }
    // The flag of etcd 3.5 stands for the gate; etcd 3.7 does not know it any more.
    let alias = callers_of_the_second(&programs[0], &["--experimental-set-member-localaddr"]);
    assert_eq!(alias, BTreeSet::from([first]));
}

/// Starts two members and answers from which addresses the second is called.
fn callers_of_the_second(program: &Path, flags: &[&str]) -> BTreeSet<Ipv4Addr> {
    let directory = tempfile::tempdir().unwrap();
    let peer_url = |index: usize| format!("http://{}:{PEER_PORT}", MEMBERS[index]);
    let initial = format!("m0={},m1={}", peer_url(0), peer_url(1));
    let members: Vec<Serving> = (0..MEMBERS.len())
        .map(|index| {
            let client_url = format!("http://{}:2379", MEMBERS[index]);
            let mut command = Command::new(program);
            command
                .arg(format!("--name=m{index}"))
                .arg(format!("--data-dir={}", directory.path().join(index.to_string()).display()))
                .arg(format!("--listen-client-urls={client_url}"))
                .arg(format!("--advertise-client-urls={client_url}"))
                .arg(format!("--listen-peer-urls={}", peer_url(index)))
                .arg(format!("--initial-advertise-peer-urls={}", peer_url(index)))
                .arg(format!("--initial-cluster={initial}"))
                .args(flags)
                .env_clear();
            Serving::launch(&mut command).unwrap()
        })
        .collect();
    for member in &members {
        member.wait_for_log(READY).unwrap();
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let callers = callers_of(SocketAddrV4::new(MEMBERS[1], PEER_PORT));
        if !callers.is_empty() {
            return callers;
        }
        assert!(Instant::now() < deadline, "nobody calls the second member");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The other ends of the established connections that were made to this address, as the kernel lists them.
fn callers_of(listener: SocketAddrV4) -> BTreeSet<Ipv4Addr> {
    const ESTABLISHED: &str = "01";
    let address = |text: &str| {
        let (ip, port) = text.split_once(':').unwrap();
        // The kernel prints the four bytes as a number of this machine.
        let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
        SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_str_radix(port, 16).unwrap())
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let accepted = fields.filter(|fields| fields[3] == ESTABLISHED);
    let accepted = accepted.filter(|fields| address(fields[1]) == listener);
    accepted.map(|fields| *address(fields[2]).ip()).collect()
}
