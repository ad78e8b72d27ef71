//! Members that have never started, and whose Pods name a member list that is not the cluster's any
//! more.
//!
//! A server without data that is to join compares the list in its flags with the one that the others
//! tell it, and ends if the two differ: for ever, since a Pod keeps its flags. One with data does not
//! look at it. So a Pod like that is made anew; there is nothing that could be lost by it.
//!
//! Deliberately left alone: Pods that start the cluster. They name the frozen plan, which is where the
//! log of the cluster begins, and come in with it however late.

use jiff::Timestamp;

use super::{
    super::{
        invariants,
        model::{Desired, Entry, Member, Observed},
    },
    RestartReason, Step, initial_cluster, restart,
};

/// Voters of the first start that missed it. A learner is attended to with its other troubles.
///
/// Nobody counts on such a voter, so that nothing else has to wait for it where a rule holds it back.
pub(super) fn renew(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let voters = observed.voters().into_iter();
    let voters = voters.filter_map(|entry| Some((entry, observed.member_of(entry)?)));
    voters
        .filter(|(entry, member)| has_stale_list(desired, observed, entry, member))
        .filter_map(|(_, member)| restart(member, RestartReason::StaleInitialCluster))
        .find(|action| invariants::permit(action, desired, observed, now).is_ok())
        .map_or(Step::Next, Step::Act)
}

/// Whether the member would find another list than the one it was given.
pub(super) fn has_stale_list(
    desired: &Desired,
    observed: &Observed,
    entry: &Entry,
    member: &Member,
) -> bool {
    let expected = || initial_cluster(desired, observed, member);
    !entry.started
        && !member.is_serving()
        && member.pod.as_ref().is_some_and(|pod| {
            !pod.terminating && !pod.new_cluster && pod.initial_cluster != expected()
        })
}
