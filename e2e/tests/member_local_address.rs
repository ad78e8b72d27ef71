//! Feature gate SetMemberLocalAddr: connections between members leave from the address that a member
//! advertises, by Go etcd's server and ours alike.
//!
//! Loopback addresses are not eligible, so the members have others, in a network namespace of their own
//! (`unshare`); where the system allows nobody to make one, it says so and is passed over. Without the gate
//! the kernel takes the address of the member that is called, since both are this host's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Where the programs are, for the process inside the namespace: ours, then Go's.
const PROGRAMS: [&str; 2] = ["OUR_ETCD", "GO_ETCD"];
const TEST: &str = "members_are_called_from_the_address_that_the_caller_advertises";

const PEER_PORT: u16 = 2380;
const MEMBERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

#[test]
fn members_are_called_from_the_address_that_the_caller_advertises() {
    if let Some(ours) = std::env::var_os(PROGRAMS[0]) {
        let go = std::env::var_os(PROGRAMS[1]).unwrap();
        return inside(&[PathBuf::from(ours), PathBuf::from(go)]);
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net"]);
        command
    };
    let probe = unshare().args(["ip", "link", "set", "lo", "up"]).output();
    if !probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        eprintln!("passed over: no namespaces can be made here: {probe:?}");
        return;
    }
    let ours = e2e::peers::our_binary("etcd").unwrap();
    let go = e2e::peers::etcd_binaries().unwrap().etcd;
    let addresses = MEMBERS.map(|address| format!("ip address add {address}/32 dev lo && "));
    let status = unshare()
        .args(["sh", "-ec"])
        .arg(format!("ip link set lo up && {} exec \"$@\"", addresses.concat()))
        .arg("sh")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .envs(PROGRAMS.into_iter().zip([ours, go]))
        .status()
        .unwrap();
    assert!(status.success(), "inside the namespace: {status}");
}

fn inside(programs: &[PathBuf]) {
    let [first, second] = MEMBERS;
    let gate: &[&str] = &["--feature-gates=SetMemberLocalAddr=true"];
    for program in programs {
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
    let mut members: Vec<Member> = (0..MEMBERS.len())
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
                .args(flags);
            Member::start(command)
        })
        .collect();
    for member in &mut members {
        member.wait_until_it_serves();
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

/// A member that runs; ends when dropped.
struct Member {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Member {
    fn start(mut command: Command) -> Member {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).env_clear().spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.map_while(Result::ok) {
                // The test may not listen any more; the log is read to its end all the same.
                let _ = sender.send(line);
            }
        });
        Member { child, lines }
    }

    fn wait_until_it_serves(&mut self) {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) if line.contains("ready to serve client requests") => return,
                Ok(line) => seen.push(line),
                Err(_) => panic!("the member does not serve:\n{}", seen.join("\n")),
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A failure means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
