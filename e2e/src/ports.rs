//! Ports for the servers of tests.
//!
//! They come from below those that the kernel gives to outgoing connections, which could otherwise take
//! the port of a server before it starts, or while it is stopped for a moment. So could another test
//! program: each takes whole blocks of ports, and is known by the names of its blocks for as long as it
//! runs. The names are abstract sockets: like ports they belong to a network namespace, and the kernel
//! forgets them with the program.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

const PORTS: Range<u16> = 11_000..23_000;
const BLOCK: u16 = 100;
const BLOCKS: u16 = (PORTS.end - PORTS.start) / BLOCK;

/// What this program has taken.
struct Taken {
    names: Vec<UnixListener>,
    /// What has not been given out of the newest block.
    left: Range<u16>,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken { names: Vec::new(), left: 0..0 });

/// Ports of the loopback that nobody listens on; none is given out twice, by this program or, while it
/// runs, by another.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = Vec::with_capacity(count);
    while free.len() < count {
        let Some(port) = taken.left.next() else {
            let (name, block) = take_block(u64::from(process::id()))?;
            taken.names.push(name);
            taken.left = block;
            continue;
        };
        // Whoever else is on this machine does not ask for blocks.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            free.push(port);
        }
    }
    Ok(free)
}

/// The first block that nobody has, looked for from a place on: the ports of a program that has just ended
/// are left alone where that can be.
fn take_block(place: u64) -> Result<(UnixListener, Range<u16>)> {
    for offset in 0..BLOCKS {
        let block = (place + u64::from(offset)) % u64::from(BLOCKS);
        let start = PORTS.start + u16::try_from(block).context("there are few blocks")? * BLOCK;
        let name = SocketAddr::from_abstract_name(format!("keelson-ports-{start}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(name) => return Ok((name, start..start + BLOCK)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("take a block of ports"),
        }
    }
    bail!("other programs have taken all ports from {} to {}", PORTS.start, PORTS.end - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Two test programs had pids whose ports began at almost the same place, and one's server found
    /// another's at its port when it started again.
    #[test]
    fn a_block_that_is_taken_is_given_to_nobody_until_it_is_let_go() {
        let (name, first) = take_block(7).unwrap();
        let (_other, second) = take_block(7).unwrap();
        assert!(first.end <= second.start || second.end <= first.start, "{first:?} {second:?}");
        drop(name);
        assert_eq!(take_block(7).unwrap().1, first);
    }

    #[test]
    fn no_port_is_given_out_twice() {
        let ports = free_ports(usize::from(BLOCK) + 20).unwrap();
        let more = free_ports(20).unwrap();
        let different: BTreeSet<u16> = ports.iter().chain(&more).copied().collect();
        assert_eq!(different.len(), usize::from(BLOCK) + 40);
        assert!(different.iter().all(|port| PORTS.contains(port)));
    }
}
