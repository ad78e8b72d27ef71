//! A user who may read and write all keys of the benchmark, and nothing else: `root` needs no look at
//! the permissions, so its calls would not show what they cost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::protobuf::{bytes, put_bytes, put_number};
use super::swarm::call_once;
use super::wire::Target;

/// What all keys begin with.
pub(super) const PREFIX: &[u8] = b"/registry/keelson/";
/// The first key after those.
const PREFIX_END: &[u8] = b"/registry/keelson0";

const USER: &[u8] = b"bench";
const PASSWORD: &[u8] = b"of the benchmark";
const READ_AND_WRITE: i64 = 2;

/// Makes the users and their roles, and asks everybody for a token from then on.
pub(super) fn turn_on(server: &Target, limit: Duration) -> Result<()> {
    let texts = |fields: &[&[u8]]| {
        let mut message = Vec::new();
        for (field, text) in (1..).zip(fields) {
            put_bytes(&mut message, field, text);
        }
        message
    };
    let mut permission = Vec::new();
    put_number(&mut permission, 1, READ_AND_WRITE);
    put_bytes(&mut permission, 2, PREFIX);
    put_bytes(&mut permission, 3, PREFIX_END);
    for (path, message) in [
        ("/etcdserverpb.Auth/RoleAdd", texts(&[USER])),
        ("/etcdserverpb.Auth/RoleGrantPermission", texts(&[USER, &permission])),
        ("/etcdserverpb.Auth/UserAdd", texts(&[USER, PASSWORD])),
        ("/etcdserverpb.Auth/UserGrantRole", texts(&[USER, USER])),
        ("/etcdserverpb.Auth/UserAdd", texts(&[b"root", PASSWORD])),
        ("/etcdserverpb.Auth/RoleAdd", texts(&[b"root"])),
        ("/etcdserverpb.Auth/UserGrantRole", texts(&[b"root", b"root"])),
        ("/etcdserverpb.Auth/AuthEnable", Vec::new()),
    ] {
        call_once(server, path, &message, limit)?;
    }
    Ok(())
}

/// A token of the user.
pub(super) fn authenticate(server: impl Into<Target>, limit: Duration) -> Result<String> {
    let mut message = Vec::new();
    put_bytes(&mut message, 1, USER);
    put_bytes(&mut message, 2, PASSWORD);
    let answer = call_once(server, "/etcdserverpb.Auth/Authenticate", &message, limit)?;
    let token = bytes(&answer, 2);
    ensure!(!token.is_empty(), "the answer has no token");
    String::from_utf8(token.to_vec()).context("read the token")
}
