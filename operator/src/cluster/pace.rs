//! When the next pass over a cluster comes by itself. Pure.
//!
//! What Kubernetes knows starts a pass at once: a Pod, a claim, a member's object, the cluster. Only what
//! the members alone know - whether they answer, how far behind they are, who leads - has to be asked for,
//! and time has to pass. That is done often while something has just changed, since then more is about
//! to, and the more seldom the longer nothing does; but never more seldom than where nothing is waited
//! for, so that what happens unannounced is seen as soon as ever.
//!
//! In: what the pass saw and decided, and for how long that has been the same. Out: a pause.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    model::{Desired, Member, Observed, Reach, Silence},
    plan::{Action, Plan},
};

/// Where something is about to happen.
pub const BUSY: Duration = Duration::from_secs(2);
/// Where nothing is, and at most.
pub const SETTLED: Duration = Duration::from_secs(15);
/// For so long something that just changed is looked at as often as can be.
const FRESH: Duration = Duration::from_secs(60);

/// What has to stay the same for a cluster to stand still: what is done and what is waited for, and how far
/// each Pod has come. How far behind a member is, and the words of a rule, are not in it.
pub fn standing(plan: &Plan, observed: &Observed) -> String {
    let doing = plan.action.as_ref().map(Action::kind);
    let blocked: Vec<_> = plan.blocked.iter().map(|b| (b.action, b.refusal.rule)).collect();
    let members = observed.members.values();
    let members: Vec<_> = members
        .map(|member| {
            let pod = member.pod.as_ref().map(|pod| (&pod.uid, pod.terminating));
            (member.serial, pod, stage(member))
        })
        .collect();
    format!("{doing:?} {:?} {blocked:?} {members:?}", plan.ensures)
}

/// How far a member has come. One that crashes again and again does not change by that.
fn stage(member: &Member) -> u8 {
    match member.reach {
        Reach::Silent(Silence::NoAddress) => 0,
        Reach::Silent(Silence::NoLeader) => 2,
        Reach::Silent(_) => 1,
        Reach::Serving(_) => 3,
    }
}

/// The pause until the next pass. `failed` means that something of the plan was not done, and `waited`
/// for how long the cluster has stood still like that.
pub fn pause(
    desired: &Desired,
    plan: &Plan,
    observed: &Observed,
    failed: bool,
    waited: Duration,
    now: Timestamp,
) -> Duration {
    let nothing = plan.action.is_none() && plan.ensures.is_empty() && plan.blocked.is_empty();
    if desired.paused {
        return SETTLED;
    }
    if nothing && !failed {
        // A node that fell silent is waited for, and that is all.
        return until_lost(observed, now).map_or(SETTLED, |due| SETTLED.min(due));
    }
    let pause = if waited < FRESH {
        BUSY
    } else {
        Duration::from_secs(waited.as_secs() / 10).clamp(BUSY, SETTLED)
    };
    until_due(desired, observed, now).map_or(pause, |due| pause.min(due))
}

/// Until the first of the members on silent nodes counts as lost.
fn until_lost(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let due = observed.members.values().filter_map(|member| member.loss_due).min()?;
    Duration::try_from(due.duration_since(now)).ok().filter(|due| !due.is_zero())
}

/// Until time alone decides something: a member has served for as long as is asked for, counts as lost, or
/// another may be replaced.
fn until_due(desired: &Desired, observed: &Observed, now: Timestamp) -> Option<Duration> {
    let ripe = observed.members.values().filter_map(|member| match &member.reach {
        Reach::Serving(serving) => Some((serving.since, desired.min_ready)),
        Reach::Silent(_) => None,
    });
    let replaced = observed.replaced_at().map(|at| (at, desired.replacement_interval));
    let left = |(since, wanted)| Duration::try_from(wanted - now.duration_since(since)).ok();
    let left = ripe.chain(replaced).filter_map(left).filter(|left| !left.is_zero());
    left.chain(until_lost(observed, now)).min()
}

#[cfg(test)]
mod tests;
