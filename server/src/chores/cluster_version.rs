//! Deciding which version the cluster speaks (etcd: `monitorVersions`): the leader takes the lowest
//! version of all members and raises the cluster to it, never beyond what a member that does not
//! answer is known to understand. A new cluster that misses a member begins with the lowest version there
//! is, and rises once that has come. During a downgrade the leader lowers the cluster to the target instead.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{ClusterVersion, CommandKind, Proposal};
use proto::membershippb::{ClusterVersionSetRequest, DowngradeInfoSetRequest};
use replica::Handle;
use tokio_util::sync::CancellationToken;
use types::MemberId;

use crate::version::CLUSTER_MIN;

/// etcd's `monitorVersionInterval`.
const INTERVAL: Duration = Duration::from_secs(4);

/// How soon a leader asks again while there is no version yet: clients want it right after the start.
const INTERVAL_UNDECIDED: Duration = Duration::from_millis(100);

/// How long it does so before the cluster gets [`CLUSTER_MIN`]: members that start together are not there all
/// at once. etcd asks once.
const UNDECIDED_MAX: Duration = Duration::from_secs(1);

/// The etcd version that each other member says it is compatible with; a member that did not answer
/// is left out.
pub type MemberVersions = Arc<
    dyn Fn() -> Pin<Box<dyn Future<Output = BTreeMap<MemberId, ClusterVersion>> + Send>>
        + Send
        + Sync,
>;

/// Whether a cluster may go from one version to another, older one: by one minor version.
pub fn is_valid_downgrade(from: ClusterVersion, to: ClusterVersion) -> bool {
    from.major == to.major && from.minor.checked_sub(1) == Some(to.minor)
}

/// The lowest version of all members, if every one of them has answered.
pub fn lowest(
    members: &[MemberId],
    versions: &BTreeMap<MemberId, ClusterVersion>,
) -> Option<ClusterVersion> {
    let known: Option<Vec<ClusterVersion>> =
        members.iter().map(|member| versions.get(member).copied()).collect();
    known?.into_iter().min().map(|lowest| ClusterVersion { patch: 0, ..lowest })
}

/// What the cluster's version is to become, if it is to change. A cluster goes up to what all members
/// speak, or down to the target of a downgrade, which must be one version below what they speak; as long
/// as that is not known, one that has no version begins with [`CLUSTER_MIN`].
pub fn next(
    current: Option<ClusterVersion>,
    lowest: Option<ClusterVersion>,
    downgrade: Option<ClusterVersion>,
) -> Option<ClusterVersion> {
    let Some(lowest) = lowest else {
        return current.is_none().then_some(CLUSTER_MIN);
    };
    let (Some(current), Some(target)) = (current, downgrade) else {
        return current.is_none_or(|current| current < lowest).then_some(lowest);
    };
    if target == current {
        return None;
    }
    if !is_valid_downgrade(current, target) || !is_valid_downgrade(lowest, target) {
        tracing::error!(
            "downgrade-target" = %target, "cluster-version" = %current,
            "minimal-server-version" = %lowest, "Cannot downgrade to downgrade-target"
        );
        return None;
    }
    Some(target)
}

/// Whether every member runs the version that a downgrade was to lead to.
pub fn is_downgraded(
    target: ClusterVersion,
    members: &[MemberId],
    versions: &BTreeMap<MemberId, ClusterVersion>,
) -> bool {
    let runs =
        |version: &ClusterVersion| (version.major, version.minor) == (target.major, target.minor);
    members.iter().all(|member| versions.get(member).is_some_and(runs))
}

/// The target of the downgrade that is under way.
fn downgrade_target(handle: &Handle) -> Option<ClusterVersion> {
    handle.views().tables().downgrade.target_version?.parse().ok()
}

fn members(handle: &Handle) -> Vec<MemberId> {
    handle.views().members().iter().map(|member| member.id).collect()
}

/// Ends a downgrade once every member runs its target, for as long as the server runs (etcd:
/// `monitorDowngrade`). An interval of zero never does.
pub async fn end_downgrades(
    handle: Handle,
    own: ClusterVersion,
    others: MemberVersions,
    interval: Duration,
    stop: CancellationToken,
) {
    if interval.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let Some(target) = downgrade_target(&handle).filter(|_| handle.leads()) else { continue };
        let mut versions = others().await;
        versions.insert(handle.status().member_id, own);
        if !is_downgraded(target, &members(&handle), &versions) {
            continue;
        }
        tracing::info!("cluster-version" = %target, "the cluster has been downgraded");
        let request = DowngradeInfoSetRequest { enabled: false, ver: String::new() };
        let proposal = Proposal::new(CommandKind::DowngradeInfoSet, &request);
        if let Err(error) = handle.propose(proposal).await {
            tracing::warn!(%error, "failed to cancel downgrade");
        }
    }
}

/// Watches over the version for as long as the server runs.
pub async fn run(
    handle: Handle,
    own: ClusterVersion,
    others: MemberVersions,
    stop: CancellationToken,
) {
    let mut status = handle.watch_status();
    let mut asks_since = None;
    loop {
        let now = handle.status();
        if now.is_leader() {
            let asks_since = *asks_since.get_or_insert_with(Instant::now);
            let mut versions = others().await;
            versions.insert(now.member_id, own);
            let lowest = lowest(&members(&handle), &versions);
            let current = handle.views().cluster_version();
            let target = downgrade_target(&handle);
            let others_may_come = current.is_none() && asks_since.elapsed() < UNDECIDED_MAX;
            if lowest.is_none() && others_may_come {
                tracing::debug!("not every member has told its version yet");
            } else if let Some(version) = next(current, lowest, target) {
                set(&handle, version).await;
            }
        } else {
            asks_since = None;
        }
        let undecided = handle.views().cluster_version().is_none();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = status.changed(), if !now.is_leader() => if changed.is_err() { return },
            () = tokio::time::sleep(if undecided { INTERVAL_UNDECIDED } else { INTERVAL }) => {}
        }
    }
}

/// Waits until the cluster has a version, as long as it may take to decide: it is what many clients ask for
/// first.
pub async fn decided(handle: &Handle) {
    const LOOK_AGAIN: Duration = Duration::from_millis(10);
    let decision = async {
        while handle.views().cluster_version().is_none() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    // Without one the member serves all the same.
    let _ = tokio::time::timeout(UNDECIDED_MAX, decision).await;
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
        let both = lowest(&members, &both);
        assert_eq!(both, Some(version("3.6.0")));
        assert_eq!(next(None, both, None), Some(version("3.6.0")));
        assert_eq!(next(Some(version("3.6.0")), both, None), None);
        assert_eq!(next(Some(version("3.7.0")), both, None), None, "it never goes down");
        assert_eq!(next(Some(version("3.5.0")), both, None), Some(version("3.6.0")));
        assert_eq!(next(Some(CLUSTER_MIN), both, None), Some(version("3.6.0")));
        let one = BTreeMap::from([(MemberId(1), version("3.7.3"))]);
        assert_eq!(lowest(&members, &one), None);
        assert_eq!(lowest(&[], &one), None);
        assert_eq!(next(None, None, None), Some(CLUSTER_MIN));
        assert_eq!(next(Some(CLUSTER_MIN), None, None), None);
        assert_eq!(next(Some(version("3.7.0")), None, Some(version("3.6.0"))), None);
    }

    #[test]
    fn a_downgrade_goes_down_one_version_and_ends_when_all_members_run_it() {
        let version = |text: &str| text.parse::<ClusterVersion>().unwrap();
        let target = version("3.6.0");
        let members = [MemberId(1), MemberId(2)];
        let of = |one: &str, two: &str| {
            BTreeMap::from([(MemberId(1), version(one)), (MemberId(2), version(two))])
        };
        let newer = of("3.7.3", "3.7.1");
        let next = |current: &str, versions| {
            next(Some(version(current)), lowest(&members, versions), Some(target))
        };
        assert_eq!(next("3.7.0", &newer), Some(target));
        assert_eq!(next("3.6.0", &newer), None, "it is there already, and stays");
        assert_eq!(next("3.8.0", &newer), None, "two versions are too many");
        assert_eq!(next("3.7.0", &of("3.7.3", "3.6.1")), None);
        assert!(!is_downgraded(target, &members, &of("3.6.9", "3.7.3")));
        assert!(is_downgraded(target, &members, &of("3.6.9", "3.6.0")));
        assert!(!is_downgraded(target, &members, &BTreeMap::from([(MemberId(1), target)])));
        assert!(!is_valid_downgrade(version("4.0.0"), version("3.9.0")));
    }
}
