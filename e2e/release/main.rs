//! The server as it would call itself in another release, for tests of clusters of mixed versions: the
//! same code, so what differs is what a release says of itself. Which one is in the name by which the
//! program is started, `etcd-VERSION-OLDEST-NEWEST`: the etcd version and the versions of the peer
//! protocol that it understands. Never shipped.

use std::path::Path;
use std::process::ExitCode;

use server::version::{ProtocolVersions, Release, pose_as};

fn main() -> ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    let Some(release) = Path::new(&program).file_name().and_then(|name| named(name.to_str()?))
    else {
        eprintln!(
            "start this as etcd-VERSION-OLDEST-NEWEST, as in etcd-3.8.0-1-2, not as {program}"
        );
        return ExitCode::from(2);
    };
    pose_as(release);
    server::program::run(server::boot::serve)
}

fn named(name: &str) -> Option<Release> {
    let mut parts = name.strip_prefix("etcd-")?.split('-');
    let etcd = parts.next()?.to_owned();
    let (oldest, newest) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Release { etcd, protocol: ProtocolVersions { oldest, newest } })
}
