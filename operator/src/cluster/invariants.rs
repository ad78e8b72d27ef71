//! The rules that no action may break, whatever the planner thinks: `operators.md` names them
//! I1 to I11, and each refusal carries that name to `status.blockedBy`.
//!
//! [`permit`] is asked twice: by the planner when it chooses an action, and by `act` with a fresh
//! observation just before the mutation. The simulator asks it a third time with the truth. The
//! rules that other places keep: I8 the `serving` label and the Services too; I9 the lease in
//! `kubernetes.rs`, and the preconditions in `act`; I13 and I14 `validate`; I15 `retention`; I16 `report`.

use jiff::Timestamp;
use types::{ClusterId, MemberId};

use super::{
    model::{
        Bootstrap, Cause, Claim, Desired, Entry, Kubelet, Loss, Member, Membership, Observed,
        Reach, Serial, Silence, quorum,
    },
    plan::{Action, Ensure},
};
use crate::crd::InitialState;

/// A rule that forbids an action at the moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Refusal {
    pub rule: &'static str,
    pub detail: String,
}

fn refuse<T>(rule: &'static str, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { rule, detail: detail.into() })
}

/// Whether the action may be taken now.
///
/// # Errors
/// The rule that forbids it; nothing may be changed then.
pub fn permit(
    action: &Action,
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), Refusal> {
    match action {
        Action::FreezeBootstrap { serials, attempt } => {
            permit_bootstrap(*attempt, serials, observed)
        }
        Action::LatchCluster { cluster_id } => permit_latch(*cluster_id, desired, observed),
        Action::CreateMember { serial, .. } => permit_creation(*serial, desired, observed),
        Action::AddLearner { serial } => permit_learner(*serial, desired, observed),
        Action::Promote { serial, id } => permit_promotion(*serial, *id, desired, observed, now),
        Action::Remove { id, .. } => permit_removal(*id, desired, observed),
        Action::MoveLeader { to, .. } => permit_leader_move(*to, desired, observed),
        Action::RestartPod { serial, uid, .. } => {
            permit_restart(*serial, uid, desired, observed, now)
        }
        Action::Release { serial, keep_claim } => {
            permit_release(*serial, *keep_claim, desired, observed)
        }
    }
}

/// I7: nothing is bootstrapped under a latched identity and no serial is used twice.
fn permit_bootstrap(attempt: i32, serials: &[Serial], observed: &Observed) -> Result<(), Refusal> {
    if observed.cluster_id.is_some() {
        return refuse("I7", "the cluster was formed; it is never bootstrapped again");
    }
    if serials.iter().any(|serial| *serial <= observed.latest_serial) {
        return refuse("I7", "a serial would be used twice");
    }
    if observed.bootstrap.as_ref().map_or(0, |bootstrap| bootstrap.attempt) + 1 != attempt {
        return refuse("I7", "the attempt does not follow the one before");
    }
    if observed.membership.is_some() {
        return refuse("I8", "a quorum answers, so this attempt succeeded");
    }
    Ok(())
}

/// I7: the identity is latched once, and only that of the attempt in force, while it answers.
fn permit_latch(
    cluster_id: ClusterId,
    desired: &Desired,
    observed: &Observed,
) -> Result<(), Refusal> {
    if observed.cluster_id.is_some() {
        return refuse("I7", "the cluster id is already latched");
    }
    match (&observed.bootstrap, &observed.membership) {
        (Some(bootstrap), Some(membership))
            if membership.cluster_id == cluster_id
                && is_planned(bootstrap, desired, membership) =>
        {
            Ok(())
        }
        _ => refuse("I7", format!("cluster {cluster_id} is not the one that was planned")),
    }
}

/// Whether the list is exactly that of the attempt in force.
pub fn is_planned(bootstrap: &Bootstrap, desired: &Desired, membership: &Membership) -> bool {
    let known = |entry: &Entry| {
        let serial = desired.names.serial_of(&entry.peer_url);
        serial.is_some_and(|serial| bootstrap.serials.contains(&serial)) && !entry.learner
    };
    membership.entries.len() == bootstrap.serials.len() && membership.entries.iter().all(known)
}

fn permit_creation(serial: Serial, desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    one_change_at_a_time(desired, observed)?;
    if serial <= observed.latest_serial || observed.members.contains_key(&serial) {
        return refuse("I7", format!("serial {serial} was used before"));
    }
    commits(observed)
}

/// I1 for a new member: no learner and no other joining member.
fn one_change_at_a_time(desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    not_corrupt(observed)?;
    if let Some(entry) = observed.learners().first() {
        return refuse("I1", format!("learner {} is pending", entry.id));
    }
    let joining = observed.members.values().find(|member| {
        member.initial_state == InitialState::Existing
            && member.id.is_none()
            && observed.entry_of(&desired.names, member).is_none()
    });
    match joining {
        Some(member) => refuse("I1", format!("member {} is joining", member.serial)),
        None => Ok(()),
    }
}

fn not_corrupt(observed: &Observed) -> Result<(), Refusal> {
    match &observed.membership {
        Some(membership) if membership.corrupt => {
            refuse("I1", "a CORRUPT alarm is raised; membership is left alone until it is disarmed")
        }
        _ => Ok(()),
    }
}

/// The membership entry has to commit: a quorum of the present voters answers.
fn commits(observed: &Observed) -> Result<(), Refusal> {
    if observed.membership.is_none() {
        return refuse("I2", "no linearizable member list: no quorum answered");
    }
    let (voters, healthy) = (observed.voters().len(), observed.healthy_voters(None));
    if healthy < quorum(voters) {
        return refuse(
            "I2",
            format!("{healthy} of {voters} voters answer, {} needed", quorum(voters)),
        );
    }
    Ok(())
}

fn permit_learner(serial: Serial, desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    not_corrupt(observed)?;
    if let Some(entry) = observed.learners().first() {
        return refuse("I1", format!("learner {} is pending", entry.id));
    }
    let Some(member) = observed.members.get(&serial) else {
        return refuse("I9", format!("member {serial} does not exist"));
    };
    if member.id.is_some() || observed.entry_of(&desired.names, member).is_some() {
        return refuse("I9", format!("member {serial} was added already"));
    }
    commits(observed)
}

/// I4: the entry commits, and the cluster that results from it lives.
fn permit_promotion(
    serial: Serial,
    id: MemberId,
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), Refusal> {
    not_corrupt(observed)?;
    commits(observed)?;
    if !observed.learners().iter().any(|entry| entry.id == id) {
        return refuse("I4", format!("{id} is not a learner"));
    }
    let Some(member) = observed.members.get(&serial).filter(|member| member.id == Some(id)) else {
        return refuse("I4", format!("member {serial} does not have the id {id}"));
    };
    if !member.is_stable(desired, now) {
        return refuse("I4", format!("learner {serial} has not caught up: {}", describe(member)));
    }
    let voters = observed.voters().len();
    if observed.healthy_voters(None) + 1 < quorum(voters + 1) {
        return refuse("I4", "too few healthy voters for one more");
    }
    Ok(())
}

/// I2: the entry commits, what remains has a quorum, and it tolerates no fewer failures than
/// before unless the user asked for fewer members.
fn permit_removal(id: MemberId, desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    not_corrupt(observed)?;
    commits(observed)?;
    let Some(membership) = &observed.membership else { return refuse("I2", "no member list") };
    let Some(entry) = membership.entries.iter().find(|entry| entry.id == id) else {
        return refuse("I2", format!("{id} is not a member"));
    };
    if entry.learner {
        return Ok(());
    }
    if observed.member_of(entry).is_none() && observed.entry_has_unlatched_member(desired, id) {
        return refuse("I9", format!("the id {id} is not latched in its EtcdMember yet"));
    }
    let (voters, rest) = (observed.voters().len(), observed.healthy_voters(Some(id)));
    if voters == 1 {
        return refuse("I2", "the last voter is never removed");
    }
    if rest < quorum(voters - 1) {
        return refuse("I2", format!("only {rest} of {} remaining voters answer", voters - 1));
    }
    let before = observed.healthy_voters(None) - quorum(voters);
    let after = rest - quorum(voters - 1);
    if after < before && voters <= desired.replicas {
        return refuse("I2", "the cluster would tolerate fewer failures");
    }
    let leader = observed.member_of(entry).is_some_and(Member::is_leader);
    if leader {
        return refuse("I2", "the leader is moved before it is removed");
    }
    Ok(())
}

fn permit_leader_move(to: MemberId, desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    commits(observed)?;
    let target = observed.voters().into_iter().find(|entry| entry.id == to);
    match target.and_then(|entry| observed.member_of(entry)) {
        Some(member) if member.is_serving() && member.lag() <= desired.lag_max => Ok(()),
        Some(member) => refuse("I3", format!("the next leader is not fit: {}", describe(member))),
        None => refuse("I3", format!("{to} is not a voter with an EtcdMember")),
    }
}

/// I3: a server that runs is stopped only if all others are well, and one that only seems not to run if
/// a quorum of them is; one that does not run can be restarted at any time, since nobody counts on it.
fn permit_restart(
    serial: Serial,
    uid: &str,
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(member) = observed.members.get(&serial) else {
        return refuse("I3", format!("member {serial} does not exist"));
    };
    if member.pod.as_ref().is_none_or(|pod| pod.uid != uid || pod.terminating) {
        return refuse("I9", "the Pod is not the one that was meant");
    }
    if member.claim != Claim::Bound {
        return refuse("I6", "the member's data is not there to come back with");
    }
    if member.does_not_run() {
        return Ok(());
    }
    if observed.cluster_id.is_some() && observed.membership.is_none() {
        return permit_restart_unconfirmed(member, desired, observed);
    }
    let Some(entry) = observed.entry_of(&desired.names, member) else {
        return if member.is_serving() {
            refuse("I3", "it serves, but is in no member list")
        } else {
            Ok(())
        };
    };
    let voters = observed.voters();
    // Others that answer confirm the list, in which it has not started.
    let unstarted = !entry.started
        && !member.is_serving()
        && observed.healthy_voters(Some(entry.id)) >= quorum(voters.len());
    if entry.learner || voters.len() == 1 || unstarted {
        return Ok(());
    }
    let others = || voters.iter().filter(|other| other.id != entry.id);
    let stable = |other: &&&Entry| {
        observed.member_of(other).is_some_and(|other| other.is_stable(desired, now))
    };
    let enough = others().filter(stable).count() >= quorum(voters.len());
    match others().find(|other| !stable(other)) {
        Some(other) if !enough || !member.is_down() => match observed.member_of(other) {
            Some(other) => {
                let name = desired.names.member(other.serial);
                refuse("I3", format!("{name} is not well: {}", describe(other)))
            }
            None => refuse("I3", format!("voter {} has no EtcdMember", other.id)),
        },
        None if !enough => {
            refuse("I3", format!("the other voters are no quorum of {}", voters.len()))
        }
        _ if member.is_leader() => refuse("I3", "the leader is moved before it is restarted"),
        _ => Ok(()),
    }
}

/// I3 where no quorum answers. There may be one that only the operator does not reach, so a member is
/// stopped only if it is known to be in none; and one after the other, since settings with which nobody
/// has come up yet may be worse than those that the quorum was lost with.
fn permit_restart_unconfirmed(
    member: &Member,
    desired: &Desired,
    observed: &Observed,
) -> Result<(), Refusal> {
    let name = |member: &Member| desired.names.member(member.serial);
    if !member.has_no_quorum() {
        return refuse(
            "I3",
            format!(
                "{} may be in a quorum that the operator does not reach: {}",
                name(member),
                describe(member)
            ),
        );
    }
    let under_way = observed.members.values().find(|other| {
        let answers = matches!(other.reach, Reach::Serving(_) | Reach::Silent(Silence::NoLeader));
        let changing = match &other.pod {
            None => other.claim == Claim::Bound,
            Some(pod) if pod.kubelet == Kubelet::Silent => false,
            Some(pod) => pod.terminating || !answers && pod.template == desired.template,
        };
        other.serial != member.serial && other.voted && other.loss.is_none() && changing
    });
    match under_way {
        Some(other) => refuse(
            "I3",
            format!(
                "{} has not come up with the new settings yet: {}",
                name(other),
                describe(other)
            ),
        ),
        None => Ok(()),
    }
}

/// I5: what belongs to a member goes only when a linearizable list no longer has it.
fn permit_release(
    serial: Serial,
    keep_claim: bool,
    desired: &Desired,
    observed: &Observed,
) -> Result<(), Refusal> {
    let Some(member) = observed.members.get(&serial) else {
        return refuse("I5", format!("member {serial} does not exist"));
    };
    if !keep_claim {
        permit_claim_deletion(member)?;
    }
    let Some(cluster_id) = observed.cluster_id else {
        let planned =
            observed.bootstrap.as_ref().is_some_and(|plan| plan.serials.contains(&serial));
        return if planned {
            refuse("I5", "the member is part of the bootstrap plan")
        } else {
            Ok(())
        };
    };
    match &observed.membership {
        None => refuse("I5", "no linearizable member list: no quorum answered"),
        Some(membership) if membership.cluster_id != cluster_id => {
            refuse("I5", "the member list is another cluster's")
        }
        Some(_) if observed.entry_of(&desired.names, member).is_some() => {
            refuse("I5", "the member is still in the member list")
        }
        Some(_) => Ok(()),
    }
}

/// I8: whether the claim of a member that is released may be deleted, where the policy says so.
///
/// A member of the cluster whose id is latched was replaced by others that have what it had, and
/// one that was to join has nothing of its own. A member of a first start that was given up is
/// neither: that start may have had a quorum for a moment, and a client that knew the member's own
/// address may have written. Nobody can tell afterwards, and no other copy exists.
///
/// # Errors
/// The claim has to stay.
pub fn permit_claim_deletion(member: &Member) -> Result<(), Refusal> {
    if member.id.is_some() || member.initial_state == InitialState::Existing {
        return Ok(());
    }
    let serial = member.serial;
    refuse("I8", format!("member {serial} is of a first start that was given up: its claim stays"))
}

/// Whether something idempotent may be created; the counterpart of [`permit`] for [`Ensure`].
///
/// # Errors
/// The rule that forbids it.
pub fn permit_ensure(ensure: &Ensure, observed: &Observed) -> Result<(), Refusal> {
    let Ensure::Pod { serial, new_cluster, .. } = ensure else { return Ok(()) };
    let Some(member) = observed.members.get(serial) else {
        return refuse("I6", format!("member {serial} does not exist"));
    };
    if member.claim != Claim::Bound {
        return refuse("I6", "a Pod starts only on the claim that is latched");
    }
    if *new_cluster && observed.cluster_id.is_some() {
        return refuse("I7", "state=new ends when the cluster id is latched");
    }
    if !*new_cluster && member.initial_state == InitialState::Existing && member.id.is_none() {
        return refuse("I6", "a joining member starts after etcd gave it an id");
    }
    Ok(())
}

/// I10 and I11: whether a lost member may be replaced without being asked to.
///
/// # Errors
/// The rule that holds the replacement back.
pub fn permit_replacement(
    member: Option<&Member>,
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), Refusal> {
    if member.is_some_and(|member| member.deletion_requested) {
        return Ok(());
    }
    if !desired.replace_automatically {
        return refuse(
            "I11",
            "recovery.memberReplacement is Manual: delete the EtcdMember to replace it",
        );
    }
    let silent =
        observed.members.values().filter(|member| member.loss == Some(Loss::NodeSilent)).count();
    if silent >= 2 && member.is_some_and(|member| member.loss == Some(Loss::NodeSilent)) {
        return refuse(
            "I11",
            format!("{silent} nodes fell silent together; that is rarely their own fault"),
        );
    }
    match observed.replaced_at() {
        Some(last) if now.duration_since(last) < desired.replacement_interval => {
            refuse("I11", format!("the last replacement was at {last}"))
        }
        _ => Ok(()),
    }
}

/// I10: a new member would fail in the same way, so none is made.
pub fn replacement_would_not_help(cause: &Cause) -> bool {
    match cause {
        Cause::Image(_) | Cause::Config(_) | Cause::OutOfMemory | Cause::Unschedulable(_) => true,
        Cause::Crash(_) | Cause::DataGone(_) | Cause::NotReady => false,
    }
}

/// One phrase on how a member is.
pub fn describe(member: &Member) -> String {
    let pod = match &member.pod {
        None => "no Pod".to_owned(),
        Some(pod) if pod.terminating => "its Pod is terminating".to_owned(),
        Some(pod) => {
            let old =
                if pod.kubelet == Kubelet::Silent { " (its node is not heard of)" } else { "" };
            pod.down.as_ref().map(|cause| format!("{cause}{old}")).unwrap_or_default()
        }
    };
    let reach = match &member.reach {
        Reach::Serving(serving) => {
            format!("serving since {}, {} entries behind", serving.since, serving.lag)
        }
        Reach::Silent(silence) => format!("{silence:?}"),
    };
    let loss = member.loss.map(|loss| format!("lost: {loss:?}")).unwrap_or_default();
    [reach, pod, loss].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

impl Observed {
    fn entry_has_unlatched_member(&self, desired: &Desired, id: MemberId) -> bool {
        self.members.values().any(|member| {
            member.id.is_none()
                && self.entry_of(&desired.names, member).is_some_and(|entry| entry.id == id)
        })
    }
}
