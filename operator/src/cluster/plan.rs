//! The decision: desired and observed cluster in, at most one disruptive action out.
//!
//! `plan` is a function. It knows no clock, no Kubernetes and no etcd, so that the simulator can
//! put it through thousands of histories in a second. Its answer holds
//!
//! - [`Ensure`]s: things that may be missing and can be made any number of times without harm;
//! - at most one [`Action`]: something that disturbs, or that must not happen twice;
//! - the [`Blocked`] actions: what should happen next and the rule that holds it back.
//!
//! The order of importance is that of `operators.md` §5.3: what is in flight is finished first,
//! then lost members are replaced, then changes are rolled out, then the size is changed.
//! Replacement is learner-first: the dead voter stays in the list until its successor votes, since
//! it may come back, and a cluster of three with one down must not become a cluster of two. Only
//! where etcd refuses the learner (Go etcd does, while a voter is down) the dead voter goes first.
//!
//! Invariant: every action that leaves here passed [`invariants::permit`].

mod ensures;
mod first_start;
mod unstarted;

pub use ensures::initial_cluster;

use jiff::Timestamp;
use types::{ClusterId, MemberId};

use super::{
    invariants::{self, Refusal},
    model::{Claim, Desired, Entry, JoinReason, Loss, Member, Observed, Serial, attempt_deadline},
};
use crate::crd::InitialState;

/// What to do in this pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub ensures: Vec<Ensure>,
    pub action: Option<Action>,
    pub blocked: Vec<Blocked>,
}

/// Something that should exist; doing it again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensure {
    /// The object of a member of the frozen bootstrap plan.
    MemberObject {
        serial: Serial,
        initial_state: InitialState,
    },
    /// Record the id that etcd gave the member.
    LatchMemberId {
        serial: Serial,
        id: MemberId,
    },
    Claim {
        serial: Serial,
    },
    /// Record which claim holds the member's data.
    LatchClaim {
        serial: Serial,
        uid: String,
    },
    Pod {
        serial: Serial,
        new_cluster: bool,
        initial_cluster: String,
    },
    /// Whether Services may send clients to the Pod.
    Serving {
        serial: Serial,
        pod_uid: String,
        serving: bool,
    },
}

/// Something that disturbs or must not happen twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    FreezeBootstrap {
        serials: Vec<Serial>,
        attempt: i32,
    },
    LatchCluster {
        cluster_id: ClusterId,
    },
    CreateMember {
        serial: Serial,
        reason: JoinReason,
    },
    AddLearner {
        serial: Serial,
    },
    Promote {
        serial: Serial,
        id: MemberId,
    },
    Remove {
        serial: Option<Serial>,
        id: MemberId,
        reason: RemoveReason,
    },
    MoveLeader {
        from: Serial,
        to: MemberId,
        successor: Serial,
    },
    RestartPod {
        serial: Serial,
        uid: String,
        reason: RestartReason,
    },
    /// The member is in no list any more: its Pod, its claim (by policy) and its object go.
    Release {
        serial: Serial,
        /// Whatever the policy says: what is on it may be the only copy of what a client wrote.
        keep_claim: bool,
    },
}

/// Why a member leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveReason {
    ScaleIn,
    Replaced,
    NotNeeded,
    NeverStarted,
}

/// Why a Pod is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartReason {
    Rollout,
    /// It does not run, and was made from other settings than the desired ones.
    BrokenAndOutdated,
    /// It never started, and the member list has changed since it was made.
    StaleInitialCluster,
}

/// An action that a rule holds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub action: &'static str,
    pub refusal: Refusal,
}

/// What a step of the decision says: act, wait, or let the next step speak.
enum Step {
    Act(Action),
    Wait(Blocked),
    Next,
}

/// Decides what to do now.
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    if desired.paused {
        let refusal = Refusal { rule: "Paused", detail: "spec.paused is true".to_owned() };
        return Plan { blocked: vec![Blocked { action: "Any", refusal }], ..Plan::default() };
    }
    let mut plan = Plan { ensures: ensures::ensures(desired, observed), ..Plan::default() };
    let steps: &[fn(&Desired, &Observed, Timestamp) -> Step] = if observed.cluster_id.is_none() {
        &[first_start::form]
    } else {
        &[
            revive_broken,
            need_quorum,
            wait_for_latches,
            release,
            unstarted::renew,
            attend_learner,
            attend_joining,
            replace_lost,
            roll_out,
            scale_in,
            scale_out,
        ]
    };
    for step in steps {
        match step(desired, observed, now) {
            Step::Next => {}
            Step::Wait(blocked) => {
                plan.blocked.push(blocked);
                break;
            }
            Step::Act(action) => {
                match invariants::permit(&action, desired, observed, now) {
                    Ok(()) => plan.action = Some(action),
                    Err(refusal) => plan.blocked.push(Blocked { action: action.kind(), refusal }),
                }
                break;
            }
        }
    }
    plan
}

impl Action {
    /// Name of the action in status, events and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Action::FreezeBootstrap { .. } => "FreezeBootstrap",
            Action::LatchCluster { .. } => "LatchCluster",
            Action::CreateMember { .. } => "CreateMember",
            Action::AddLearner { .. } => "AddLearner",
            Action::Promote { .. } => "Promote",
            Action::Remove { .. } => "Remove",
            Action::MoveLeader { .. } => "MoveLeader",
            Action::RestartPod { .. } => "RestartPod",
            Action::Release { .. } => "Release",
        }
    }

    /// The member that the action is about.
    pub fn serial(&self) -> Option<Serial> {
        match self {
            Action::FreezeBootstrap { .. } | Action::LatchCluster { .. } => None,
            Action::Remove { serial, .. } => *serial,
            Action::CreateMember { serial, .. }
            | Action::AddLearner { serial }
            | Action::Promote { serial, .. }
            | Action::RestartPod { serial, .. }
            | Action::Release { serial, .. } => Some(*serial),
            Action::MoveLeader { from, .. } => Some(*from),
        }
    }
}

fn wait(action: &'static str, rule: &'static str, detail: impl Into<String>) -> Step {
    Step::Wait(Blocked { action, refusal: Refusal { rule, detail: detail.into() } })
}

fn release_of(member: &Member) -> Action {
    let keep_claim = invariants::permit_claim_deletion(member).is_err();
    Action::Release { serial: member.serial, keep_claim }
}

/// A Pod that does not run and was made from other settings gets the desired ones: that is how a
/// corrected image or flag reaches a member on which a rollout came to a stop.
fn revive_broken(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let broken = observed.members.values().filter(|member| {
        desired.rolling
            && member.is_outdated(desired)
            && member.is_down()
            && member.claim == Claim::Bound
            && member.loss.is_none()
    });
    let mut refused = None;
    for action in broken.filter_map(|member| restart(member, RestartReason::BrokenAndOutdated)) {
        match invariants::permit(&action, desired, observed, now) {
            Ok(()) => return Step::Act(action),
            Err(refusal) => refused = refused.or(Some(Blocked { action: action.kind(), refusal })),
        }
    }
    match refused {
        // Nothing else is done without a quorum either, and this says why not even that.
        Some(blocked) if observed.membership.is_none() => Step::Wait(blocked),
        _ => Step::Next,
    }
}

fn restart(member: &Member, reason: RestartReason) -> Option<Action> {
    let pod = member.pod.as_ref()?;
    Some(Action::RestartPod { serial: member.serial, uid: pod.uid.clone(), reason })
}

fn need_quorum(desired: &Desired, observed: &Observed, _: Timestamp) -> Step {
    let Some(membership) = &observed.membership else {
        let states: Vec<String> = observed
            .members
            .values()
            .map(|m| format!("{}: {}", desired.names.member(m.serial), invariants::describe(m)))
            .collect();
        return wait("Any", "I2", format!("no quorum answers; {}", states.join("; ")));
    };
    if Some(membership.cluster_id) != observed.cluster_id {
        return wait(
            "Any",
            "I6",
            format!("the members that answer are cluster {}", membership.cluster_id),
        );
    }
    Step::Next
}

/// Ids are latched by an `Ensure` in this pass; until they are, nothing else is decided on them.
fn wait_for_latches(desired: &Desired, observed: &Observed, _: Timestamp) -> Step {
    let unlatched = observed
        .members
        .values()
        .find(|member| member.id.is_none() && observed.entry_of(&desired.names, member).is_some());
    match unlatched {
        Some(member) => wait("Any", "I9", format!("latching the id of member {}", member.serial)),
        None => Step::Next,
    }
}

/// Objects of members that are in no list: removed ones, and bootstrap members of no attempt.
fn release(desired: &Desired, observed: &Observed, _: Timestamp) -> Step {
    let gone = observed.members.values().find(|member| {
        observed.entry_of(&desired.names, member).is_none()
            && (member.id.is_some() || member.initial_state != InitialState::Existing)
    });
    gone.map_or(Step::Next, |member| Step::Act(release_of(member)))
}

fn is_joiner_wanted(desired: &Desired, observed: &Observed) -> bool {
    let voters = observed.voters().len();
    voters < desired.replicas
        || (voters == desired.replicas && lost_voters(desired, observed).next().is_some())
}

fn attend_learner(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let learners = observed.learners();
    let Some(entry) = learners.first() else { return Step::Next };
    let remove = |serial, reason| Step::Act(Action::Remove { serial, id: entry.id, reason });
    let Some(member) = observed.member_of(entry) else {
        return if desired.names.serial_of(&entry.peer_url).is_some() {
            remove(None, RemoveReason::NotNeeded)
        } else {
            wait("Promote", "I1", format!("learner {} was not added by the operator", entry.id))
        };
    };
    let serial = Some(member.serial);
    if !is_joiner_wanted(desired, observed) {
        return remove(serial, RemoveReason::NotNeeded);
    }
    if member.deletion_requested || member.loss.is_some() {
        return remove(serial, RemoveReason::Replaced);
    }
    let listed = member.listed_since.map(|since| now.duration_since(since));
    let deadline = attempt_deadline(observed.join_attempts);
    if !entry.started && listed.is_some_and(|listed| listed >= deadline) {
        let cause = member.pod.as_ref().and_then(|pod| pod.down.as_ref());
        if !cause.is_some_and(invariants::replacement_would_not_help) {
            return remove(serial, RemoveReason::NeverStarted);
        }
    }
    if unstarted::has_stale_list(desired, observed, entry, member)
        && let Some(action) = restart(member, RestartReason::StaleInitialCluster)
    {
        return Step::Act(action);
    }
    Step::Act(Action::Promote { serial: member.serial, id: entry.id })
}

/// A member whose object exists and that etcd does not know yet.
fn attend_joining(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let joining = observed.members.values().find(|member| {
        member.initial_state == InitialState::Existing
            && member.id.is_none()
            && observed.entry_of(&desired.names, member).is_none()
    });
    let Some(member) = joining else { return Step::Next };
    if member.deletion_requested {
        return Step::Act(release_of(member));
    }
    let dead =
        lost_voters(desired, observed).find(|(_, lost)| !lost.is_some_and(Member::is_serving));
    if let (true, Some((entry, lost))) = (member.join_refused, dead) {
        // Below the wanted size the newcomer is none that replaces: nobody was asked about the lost one.
        if observed.voters().len() < desired.replicas
            && let Err(refusal) = invariants::permit_replacement(lost, desired, observed, now)
        {
            return Step::Wait(Blocked { action: "Remove", refusal });
        }
        return remove_voter(desired, observed, entry, RemoveReason::Replaced, now);
    }
    if !is_joiner_wanted(desired, observed) {
        return Step::Act(release_of(member));
    }
    Step::Act(Action::AddLearner { serial: member.serial })
}

/// Voters that will not come back, or that somebody wants replaced, the most certain first.
fn lost_voters<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a Entry, Option<&'a Member>)> {
    let mut lost: Vec<(&Entry, Option<&Member>)> = observed
        .voters()
        .into_iter()
        .map(|entry| (entry, observed.member_of(entry)))
        .filter(|(entry, member)| match member {
            Some(member) => member.deletion_requested || member.loss.is_some(),
            // Its object was deleted by force, and the Pod with it.
            None => desired.names.serial_of(&entry.peer_url).is_some(),
        })
        .collect();
    lost.sort_by_key(|(_, member)| {
        member.map_or(0, |member| match (member.is_serving(), member.loss) {
            (false, Some(Loss::Claim | Loss::Data | Loss::NodeGone)) => 0,
            (false, Some(Loss::NodeSilent)) => 1,
            (false, None) => 2,
            (true, _) => 3,
        })
    });
    lost.into_iter()
}

fn replace_lost(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let voters = observed.voters().len();
    let Some((entry, member)) = lost_voters(desired, observed).next() else { return Step::Next };
    if voters > desired.replicas {
        return remove_voter(desired, observed, entry, RemoveReason::Replaced, now);
    }
    // Below the wanted size the newcomer is due anyway.
    if voters == desired.replicas
        && let Err(refusal) = invariants::permit_replacement(member, desired, observed, now)
    {
        return Step::Wait(Blocked { action: "CreateMember", refusal });
    }
    let serial = Serial(observed.latest_serial.0 + 1);
    Step::Act(Action::CreateMember { serial, reason: JoinReason::Replacement })
}

/// Removes a voter, after the leader was moved off it.
fn remove_voter(
    desired: &Desired,
    observed: &Observed,
    entry: &Entry,
    reason: RemoveReason,
    _: Timestamp,
) -> Step {
    let member = observed.member_of(entry);
    if let Some(leader) = member.filter(|member| member.is_leader()) {
        return move_leader(desired, observed, leader);
    }
    Step::Act(Action::Remove { serial: member.map(|member| member.serial), id: entry.id, reason })
}

/// Moves the leader to the voter that is updated, closest to it, and not about to leave.
fn move_leader(desired: &Desired, observed: &Observed, leader: &Member) -> Step {
    let best = observed
        .voters()
        .into_iter()
        .filter_map(|entry| observed.member_of(entry))
        .filter(|member| member.serial != leader.serial && member.is_serving())
        .min_by_key(|member| {
            (member.deletion_requested, member.is_outdated(desired), member.lag(), member.serial)
        });
    match best.and_then(|member| member.id.map(|id| (member.serial, id))) {
        Some((successor, to)) => {
            Step::Act(Action::MoveLeader { from: leader.serial, to, successor })
        }
        None => wait("MoveLeader", "I3", "no other voter answers"),
    }
}

// === Rollout and size ===

fn roll_out(desired: &Desired, observed: &Observed, _: Timestamp) -> Step {
    let voters = observed.voters();
    // Two voters tolerate no restart; the change of size that is under way ends that.
    let passing_through_two = voters.len() == 2 && desired.replicas != 2;
    if !desired.rolling || passing_through_two {
        return Step::Next;
    }
    let mut outdated: Vec<&Member> = voters
        .iter()
        .filter_map(|entry| observed.member_of(entry))
        .filter(|member| member.is_outdated(desired))
        .collect();
    outdated
        .sort_by_key(|member| (member.is_leader(), std::cmp::Reverse(member.lag()), member.serial));
    let Some(next) = outdated.first() else { return Step::Next };
    if next.is_leader() && voters.len() > 1 {
        return move_leader_when_well(desired, observed, next);
    }
    match restart(next, RestartReason::Rollout) {
        Some(action) => Step::Act(action),
        None => Step::Next,
    }
}

/// The last step of a rollout: only if everybody else is up, so that the leader that was moved
/// can be restarted right away.
fn move_leader_when_well(desired: &Desired, observed: &Observed, leader: &Member) -> Step {
    let voters = observed.voters();
    let unwell = voters
        .iter()
        .filter(|entry| leader.id != Some(entry.id))
        .find(|entry| !observed.member_of(entry).is_some_and(Member::is_serving));
    match unwell {
        Some(entry) => {
            wait("MoveLeader", "I3", format!("voter {} ({}) does not answer", entry.name, entry.id))
        }
        None => move_leader(desired, observed, leader),
    }
}

fn scale_in(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let voters = observed.voters();
    if voters.len() <= desired.replicas {
        return Step::Next;
    }
    // The least valuable first: silent, then outdated, then the youngest.
    let victim = voters.into_iter().max_by_key(|entry| {
        let member = observed.member_of(entry);
        (
            member.is_none_or(|member| !member.is_serving()),
            member.is_none_or(|member| member.is_outdated(desired)),
            desired.names.serial_of(&entry.peer_url),
        )
    });
    match victim {
        Some(entry) => remove_voter(desired, observed, entry, RemoveReason::ScaleIn, now),
        None => Step::Next,
    }
}

fn scale_out(desired: &Desired, observed: &Observed, _: Timestamp) -> Step {
    if observed.voters().len() >= desired.replicas {
        return Step::Next;
    }
    let serial = Serial(observed.latest_serial.0 + 1);
    Step::Act(Action::CreateMember { serial, reason: JoinReason::ScaleOut })
}

#[cfg(test)]
mod tests;
