//! Deciding which version the cluster speaks (etcd: `monitorVersions`): the leader takes the lowest
//! version of all members and raises the cluster to it, never beyond what a member that does not
//! answer is known to understand.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use machine::{ClusterVersion, CommandKind, Proposal};
use proto::membershippb::ClusterVersionSetRequest;
use replica::Handle;
use tokio_util::sync::CancellationToken;
use types::MemberId;

/// etcd's `monitorVersionInterval`.
const INTERVAL: Duration = Duration::from_secs(4);

/// The etcd version that each other member says it is compatible with; a member that did not answer
/// is left out.
pub type MemberVersions = Arc<
    dyn Fn() -> Pin<Box<dyn Future<Output = BTreeMap<MemberId, ClusterVersion>> + Send>>
        + Send
        + Sync,
>;

/// What the cluster's version is to become, if it is to change. A cluster that has none yet gets one
/// as soon as every member has answered; one that has only goes up here (etcd lowers it during a
/// downgrade, which does not exist yet).
pub fn next(
    current: Option<ClusterVersion>,
    members: &[MemberId],
    versions: &BTreeMap<MemberId, ClusterVersion>,
) -> Option<ClusterVersion> {
    let known: Option<Vec<ClusterVersion>> =
        members.iter().map(|member| versions.get(member).copied()).collect();
    let lowest = known?.into_iter().min()?;
    let lowest = ClusterVersion { patch: 0, ..lowest };
    (current.is_none_or(|current| current < lowest)).then_some(lowest)
}

/// Watches over the version for as long as the server runs.
pub async fn run(
    handle: Handle,
    own: ClusterVersion,
    others: MemberVersions,
    stop: CancellationToken,
) {
    let mut status = handle.watch_status();
    loop {
        let now = handle.status();
        if now.is_leader() {
            let mut versions = others().await;
            versions.insert(now.member_id, own);
            let views = handle.views();
            let members: Vec<MemberId> = views.members().iter().map(|member| member.id).collect();
            if let Some(version) = next(views.tables().cluster_version, &members, &versions) {
                set(&handle, version).await;
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = status.changed(), if !now.is_leader() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn set(handle: &Handle, version: ClusterVersion) {
    let request = ClusterVersionSetRequest { ver: version.to_string() };
    match handle.propose(Proposal::new(CommandKind::ClusterVersionSet, &request)).await {
        Ok(_) => tracing::info!(to = %version, "cluster version is updated"),
        Err(error) => tracing::warn!(%error, "failed to update cluster version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_version_counts_and_only_when_all_are_known() {
        let version = |text: &str| text.parse::<ClusterVersion>().unwrap();
        let members = [MemberId(1), MemberId(2)];
        let both =
            BTreeMap::from([(MemberId(1), version("3.7.3")), (MemberId(2), version("3.6.1"))]);
        assert_eq!(next(None, &members, &both), Some(version("3.6.0")));
        assert_eq!(next(Some(version("3.6.0")), &members, &both), None);
        assert_eq!(next(Some(version("3.7.0")), &members, &both), None, "it never goes down");
        assert_eq!(next(Some(version("3.5.0")), &members, &both), Some(version("3.6.0")));
        let one = BTreeMap::from([(MemberId(1), version("3.7.3"))]);
        assert_eq!(next(None, &members, &one), None);
        assert_eq!(next(None, &[], &one), None);
    }
}
