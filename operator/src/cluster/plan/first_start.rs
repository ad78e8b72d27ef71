//! What is done until the cluster is formed.
//!
//! The members of one plan start together, and the plan never changes. What cannot come of it is begun again
//! under a new token with new members, so that nothing of the attempt before can become part of the next.

use jiff::Timestamp;

use super::{
    super::{
        invariants,
        model::{
            Bootstrap, Cause, Desired, Loss, Member, Membership, Observed, Serial, attempt_deadline,
        },
    },
    Action, Step, release_of, revive_broken, wait,
};

pub(super) fn form(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let Some(bootstrap) = &observed.bootstrap else {
        return Step::Act(freeze(desired, observed, 1));
    };
    let formed = observed.membership.as_ref();
    let ours = |membership: &&Membership| invariants::is_planned(bootstrap, desired, membership);
    if let Some(membership) = formed.filter(ours) {
        return Step::Act(Action::LatchCluster { cluster_id: membership.cluster_id });
    }
    // Members of an attempt that was given up go first: they may even have formed a cluster since.
    let abandoned =
        observed.members.values().find(|member| !bootstrap.serials.contains(&member.serial));
    if let Some(member) = abandoned {
        return Step::Act(release_of(member));
    }
    if formed.is_some() {
        return wait("LatchCluster", "I7", "the members that answer are not those of the plan");
    }
    let planned = || bootstrap.serials.iter().filter_map(|serial| observed.members.get(serial));
    let lost = planned().filter_map(|member| attempt_after_loss(bootstrap, member)).min();
    if lost.is_some_and(|due| now >= due) {
        return Step::Act(freeze(desired, observed, bootstrap.attempt + 1));
    }
    if let Step::Act(action) = revive_broken(desired, observed, now) {
        return Step::Act(action);
    }
    let crashed = || planned().any(is_crashing).then(|| attempt_after_crash(desired, bootstrap));
    let next = lost.map(Ok).or_else(crashed);
    if let Some(Ok(due)) = next
        && now >= due
    {
        return Step::Act(freeze(desired, observed, bootstrap.attempt + 1));
    }
    let silent: Vec<String> = planned()
        .filter(|member| !member.is_serving())
        .map(|member| {
            format!("{}: {}", desired.names.member(member.serial), invariants::describe(member))
        })
        .collect();
    let next = match next {
        None => String::new(),
        Some(Ok(due)) => format!("; the next attempt is made at {due}"),
        Some(Err(none)) => format!("; {none}"),
    };
    wait("LatchCluster", "Bootstrap", format!("waiting for a quorum; {}{next}", silent.join("; ")))
}

fn is_crashing(member: &Member) -> bool {
    let cause = member.pod.as_ref().and_then(|pod| pod.down.as_ref());
    matches!(cause, Some(Cause::Crash(_)))
}

/// When the attempt is given up for another because this member can take no part in it any more: the first
/// one at once, later ones more and more seldom, since what took several members away takes the next ones
/// too. Who asks for it gets another one at once.
fn attempt_after_loss(bootstrap: &Bootstrap, member: &Member) -> Option<Timestamp> {
    let is_lost = matches!(member.loss, Some(Loss::Claim | Loss::NodeGone));
    match bootstrap.attempt {
        _ if member.deletion_requested => Some(bootstrap.started_at),
        _ if !is_lost => None,
        ..=1 => Some(bootstrap.started_at),
        later => Some(bootstrap.started_at + attempt_deadline(later - 1)),
    }
}

/// When the attempt is given up for another because of members that crash, or why that would be no better.
fn attempt_after_crash(
    desired: &Desired,
    bootstrap: &Bootstrap,
) -> Result<Timestamp, &'static str> {
    if desired.restored {
        return Err(
            "another seed would be made of the same backup; delete its EtcdMember to have one made all the same",
        );
    }
    Ok(bootstrap.started_at + attempt_deadline(bootstrap.attempt))
}

fn freeze(desired: &Desired, observed: &Observed, attempt: i32) -> Action {
    let count = if desired.restored { 1 } else { desired.replicas };
    let first = observed.latest_serial.0 + 1;
    let serials = (first..).take(count).map(Serial).collect();
    Action::FreezeBootstrap { serials, attempt }
}
