//! What the user sees: status, conditions and events, computed from what was seen and done.
//!
//! A status is made on every pass, also when something failed (I16). What could not be observed
//! becomes `Unknown` or keeps its last value with `observedAt` telling its age; it is never
//! presented as current.

mod health;
mod worth;

pub use worth::{are_numbers_due, is_member_worth_writing, is_worth_writing};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::events::{Event, EventType};

use super::{
    build::{member_selector, selector_text},
    invariants,
    model::{Cause, Desired, Member, Observed, Reach, quorum},
    observe::Observation,
    plan::{Action, Plan, RemoveReason},
    security::CertificateEnd,
    validate::{InvalidSpec, Validated},
};
use crate::{
    backup::view::Backups,
    crd::{
        BlockedBy, EtcdClusterStatus, EtcdMember, EtcdMemberStatus, LeaderStatus, MemberRole,
        RolloutStatus,
    },
};

/// Conditions that say how the members are, and what they live on; unknown where nobody looked.
const OBSERVED: [&str; 9] = [
    "Ready",
    "Available",
    "QuorumHealthy",
    "FaultTolerant",
    "MembersUpToDate",
    "StorageHealthy",
    "CertificatesValid",
    "BackupHealthy",
    "Recoverable",
];

/// What happened in the pass.
pub struct Outcome<'a> {
    pub plan: &'a Plan,
    /// What went wrong, if something did.
    pub error: Option<String>,
    pub backups: &'a Backups,
    /// When the certificates end; absent without TLS.
    pub certificates: Option<&'a [CertificateEnd]>,
}

/// The cluster's next status.
pub fn cluster_status(
    before: &EtcdClusterStatus,
    generation: Option<i64>,
    validated: &Validated,
    observation: &Observation,
    outcome: &Outcome<'_>,
    now: Timestamp,
) -> EtcdClusterStatus {
    let (desired, observed) = (&validated.desired, &observation.observed);
    let voters = observed.voters().len();
    let healthy = observed.healthy_voters(None);
    let known = observed.membership.is_some();
    let mut status = before.clone();
    status.observed_generation = generation;
    status.selector = selector_text(&member_selector(&desired.names.cluster));
    status.replicas = count(observed.members.len());
    status.ready_replicas = count(observed.members.values().filter(|m| m.is_serving()).count());
    status.fault_tolerance = count(healthy) - count(quorum(voters.max(1)));
    if known {
        status.voters = count(voters);
        status.learners = count(observed.learners().len());
        status.quorum = count(quorum(voters));
    } else {
        status.fault_tolerance = status.ready_replicas - status.quorum.max(1);
    }
    status.leader = leader(validated, observation);
    status.revision =
        observation.reports.values().map(|report| report.revision).max().or(before.revision);
    status.db_size_bytes =
        observation.reports.values().map(|report| report.db_size).max().or(before.db_size_bytes);
    status.current_version = lowest_version(observation).or(status.current_version);
    status.target = Some(validated.target.clone());
    status.rollout = rollout(before, desired, observed, outcome.plan, now);
    status.backup = outcome.backups.newest();
    status.blocked_by = blocked_by(outcome.plan);
    if outcome.plan.action.is_none() {
        status.operation = None;
    }
    note_replacement(&mut status, observed);
    conditions(&mut status, generation, validated, observed, outcome, now);
    let (certificates, backups) = (outcome.certificates, outcome.backups);
    let facts = health::facts(&status, validated, observation, certificates, backups, now);
    for fact in facts {
        set_condition(&mut status.conditions, generation, fact, now);
    }
    status.observed_at = Some(Time(now));
    status
}

/// The status after a pass that could not observe the cluster: what depends on the observation is
/// unknown, and `observedAt` stays at the last one that succeeded.
pub fn unobserved(
    before: &EtcdClusterStatus,
    generation: Option<i64>,
    error: String,
    now: Timestamp,
) -> EtcdClusterStatus {
    let mut status = before.clone();
    for kind in OBSERVED {
        let fact = Fact { kind, holds: None, reason: "NotObserved", message: error.clone() };
        set_condition(&mut status.conditions, generation, fact, now);
    }
    let degraded = fact("Degraded", true, ("OperatorError", ""), error);
    set_condition(&mut status.conditions, generation, degraded, now);
    status
}

/// A pass that ended at somebody else's object knows which it is.
pub fn in_the_way(status: &mut EtcdClusterStatus, detail: String) {
    let (action, invariant) = ("Any".to_owned(), "NotOurs".to_owned());
    status.blocked_by = vec![BlockedBy { action, invariant, detail }];
}

/// A pass that met certificates it cannot use knows what is wrong with them.
pub fn certificates_unusable(
    status: &mut EtcdClusterStatus,
    generation: Option<i64>,
    error: String,
    now: Timestamp,
) {
    let fact = fact("CertificatesValid", false, ("", "CertificateUnusable"), error);
    set_condition(&mut status.conditions, generation, fact, now);
}

/// The status of a cluster whose spec nothing can be made of: the user has to change it, and what
/// runs is neither looked at nor touched until then.
pub fn invalid(
    before: &EtcdClusterStatus,
    generation: Option<i64>,
    error: &InvalidSpec,
    now: Timestamp,
) -> EtcdClusterStatus {
    let message = error.to_string();
    let mut status = before.clone();
    status.observed_generation = generation;
    status.blocked_by = vec![BlockedBy {
        action: "Any".to_owned(),
        invariant: "InvalidSpec".to_owned(),
        detail: message.clone(),
    }];
    let mut facts: Vec<Fact> = OBSERVED
        .into_iter()
        .map(|kind| Fact { kind, holds: None, reason: "InvalidSpec", message: message.clone() })
        .collect();
    facts.push(fact("Degraded", true, ("InvalidSpec", ""), message.clone()));
    facts.push(fact("SpecApplied", false, ("", "InvalidSpec"), message));
    for fact in facts {
        set_condition(&mut status.conditions, generation, fact, now);
    }
    status
}

/// I11 counts members that were made, also after their objects are gone.
pub fn note_replacement(status: &mut EtcdClusterStatus, observed: &Observed) {
    let noted = status.last_replacement_time.as_ref().map(|time| time.0);
    status.last_replacement_time = noted.max(observed.replaced_at()).map(Time);
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// I13: a member that is silent comes back with what it ran last, and must not skip a minor version.
fn lowest_version(observation: &Observation) -> Option<String> {
    let versions = observation.objects.iter().filter_map(|(serial, object)| {
        let noted = || object.status.as_ref()?.version.clone();
        observation.reports.get(serial).map(|report| report.version.clone()).or_else(noted)
    });
    versions.min_by_key(|version| version_key(version))
}

fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

fn leader(validated: &Validated, observation: &Observation) -> Option<LeaderStatus> {
    let member = observation.observed.members.values().find(|member| member.is_leader())?;
    let report = observation.reports.get(&member.serial)?;
    Some(LeaderStatus {
        member: validated.desired.names.member(member.serial),
        member_id: report.member_id.to_string(),
        term: i64::try_from(report.term).unwrap_or(i64::MAX),
    })
}

fn blocked_by(plan: &Plan) -> Vec<BlockedBy> {
    let blocked = plan.blocked.iter().map(|blocked| BlockedBy {
        action: blocked.action.to_owned(),
        invariant: blocked.refusal.rule.to_owned(),
        detail: blocked.refusal.detail.clone(),
    });
    blocked.collect()
}

/// How far the present template has come, and what holds it up.
fn rollout(
    before: &EtcdClusterStatus,
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
    now: Timestamp,
) -> Option<RolloutStatus> {
    let up_to_date = |member: &&Member| {
        member.is_serving() && member.pod.is_some() && !member.is_outdated(desired)
    };
    let updated = count(observed.members.values().filter(up_to_date).count());
    let total = count(observed.members.len());
    let last = before.rollout.as_ref().filter(|rollout| rollout.hash == desired.template);
    let progressed =
        last.is_none_or(|rollout| rollout.updated != updated || rollout.total != total);
    let progressed_at = match last {
        Some(rollout) if !progressed => rollout.progressed_at.clone(),
        _ => Time(now),
    };
    let held_up = plan.blocked.first().filter(|_| updated < total);
    Some(RolloutStatus {
        hash: desired.template.clone(),
        updated,
        total,
        progressed_at,
        paused_reason: held_up.map(|blocked| format!("{}: {}", blocked.action, blocked.refusal)),
    })
}

// === Conditions ===

struct Fact {
    kind: &'static str,
    holds: Option<bool>,
    reason: &'static str,
    message: String,
}

fn fact(
    kind: &'static str,
    holds: bool,
    reasons: (&'static str, &'static str),
    message: impl Into<String>,
) -> Fact {
    let reason = if holds { reasons.0 } else { reasons.1 };
    Fact { kind, holds: Some(holds), reason, message: message.into() }
}

fn conditions(
    status: &mut EtcdClusterStatus,
    generation: Option<i64>,
    validated: &Validated,
    observed: &Observed,
    outcome: &Outcome<'_>,
    now: Timestamp,
) {
    let desired = &validated.desired;
    let formed = observed.cluster_id.is_some();
    let quorate = formed && observed.membership.is_some();
    let wanted = count(desired.replicas);
    let rollout = status.rollout.clone();
    let updated = rollout.as_ref().is_some_and(|rollout| rollout.updated == rollout.total);
    let complete = quorate
        && status.voters == wanted
        && status.learners == 0
        && observed.members.values().all(Member::is_serving);
    let blocked = outcome
        .plan
        .blocked
        .first()
        .map(|blocked| format!("{}: {}", blocked.action, blocked.refusal));
    let detail = outcome.error.clone().or(blocked).unwrap_or_default();
    let (stuck, sick) = trouble(validated, status, observed, now);

    let mut facts = vec![
        fact("Available", quorate, ("QuorumAnswers", "NoQuorum"), detail.clone()),
        fact(
            "QuorumHealthy",
            quorate,
            ("QuorumAnswers", if formed { "QuorumLost" } else { "NotFormed" }),
            "",
        ),
        fact(
            "FaultTolerant",
            quorate && status.fault_tolerance > 0,
            ("ToleratesFailure", "ToleranceZero"),
            format!("{} of {} voters may fail", status.fault_tolerance.max(0), status.voters),
        ),
        fact("MembersUpToDate", updated, ("AllUpdated", "Updating"), ""),
        fact(
            "Progressing",
            outcome.plan.action.is_some() || !(complete && updated),
            ("Working", "Settled"),
            detail.clone(),
        ),
        fact(
            "Degraded",
            stuck.is_some() || sick.is_some() || outcome.error.is_some(),
            (degraded_reason(stuck.is_some(), outcome.error.is_some()), "AsExpected"),
            stuck.or(sick).or_else(|| outcome.error.clone()).unwrap_or_default(),
        ),
        fact("Paused", desired.paused, ("SpecPaused", "Running"), ""),
        refused(validated, "VersionAccepted", &["version"]),
        refused(validated, "SpecApplied", &[]),
    ];
    // Also when all is well, so that an alarm that was disarmed does not stay here for ever.
    if let Some(membership) = &observed.membership {
        let said = if membership.corrupt { "a member raised the CORRUPT alarm" } else { "" };
        let reasons = ("NoCorruptAlarm", "CorruptAlarm");
        facts.push(fact("DataConsistent", !membership.corrupt, reasons, said));
    }
    let ready_reason = ready_reason(formed, quorate, complete, updated);
    facts.push(fact("Ready", quorate, (ready_reason, ready_reason), detail));
    for fact in facts {
        set_condition(&mut status.conditions, generation, fact, now);
    }
}

fn ready_reason(formed: bool, quorate: bool, complete: bool, updated: bool) -> &'static str {
    match (formed, quorate, complete, updated) {
        (false, ..) => "Bootstrapping",
        (true, false, ..) => "QuorumLost",
        (true, true, false, _) => "Changing",
        (true, true, true, false) => "Updating",
        (true, true, true, true) => "Healthy",
    }
}

fn degraded_reason(stuck: bool, error: bool) -> &'static str {
    match (stuck, error) {
        (true, _) => "RolloutStuck",
        (false, true) => "OperatorError",
        (false, false) => "MemberUnhealthy",
    }
}

/// A rollout without progress for too long, and members that do not answer.
fn trouble(
    validated: &Validated,
    status: &EtcdClusterStatus,
    observed: &Observed,
    now: Timestamp,
) -> (Option<String>, Option<String>) {
    let names = &validated.desired.names;
    let sick: Vec<String> = observed
        .members
        .values()
        .filter(|member| !member.is_serving() && observed.cluster_id.is_some())
        .map(|member| format!("{}: {}", names.member(member.serial), invariants::describe(member)))
        .collect();
    let sick = (!sick.is_empty()).then(|| sick.join("; "));
    let deadline =
        SignedDuration::from_secs(validated.spec.update_strategy.progress_deadline_seconds);
    let rollout = status.rollout.as_ref().filter(|rollout| rollout.updated < rollout.total);
    let stuck = rollout
        .filter(|rollout| now.duration_since(rollout.progressed_at.0) >= deadline)
        .map(|rollout| {
            let why = sick.clone().or_else(|| rollout.paused_reason.clone()).unwrap_or_default();
            format!(
                "{} of {} members run the desired settings; {why}",
                rollout.updated, rollout.total
            )
        });
    (stuck, sick)
}

fn refused(validated: &Validated, kind: &'static str, fields: &[&str]) -> Fact {
    let refused: Vec<String> = validated
        .refused
        .iter()
        .filter(|refused| fields.is_empty() || fields.contains(&refused.field))
        .map(|refused| format!("spec.{}: {}", refused.field, refused.reason))
        .collect();
    fact(kind, refused.is_empty(), ("Accepted", "FieldRefused"), refused.join("; "))
}

fn set_condition(
    conditions: &mut Vec<Condition>,
    generation: Option<i64>,
    fact: Fact,
    now: Timestamp,
) {
    let status = match fact.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let before = conditions.iter().find(|condition| condition.type_ == fact.kind);
    let since = match before {
        Some(condition) if condition.status == status => condition.last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        type_: fact.kind.to_owned(),
        status: status.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
        reason: fact.reason.to_owned(),
        message: fact.message.chars().take(1024).collect(),
    };
    match conditions.iter_mut().find(|known| known.type_ == fact.kind) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

/// Sets one condition; for the kinds that have few.
pub fn condition(
    conditions: &mut Vec<Condition>,
    generation: Option<i64>,
    kind: &'static str,
    holds: Option<bool>,
    reason: &'static str,
    message: String,
    now: Timestamp,
) {
    set_condition(conditions, generation, Fact { kind, holds, reason, message }, now);
}

// === Members ===

/// The next status of one member.
pub fn member_status(
    object: &EtcdMember,
    member: &Member,
    observation: &Observation,
    desired: &Desired,
    now: Timestamp,
) -> EtcdMemberStatus {
    let mut status = object.status.clone().unwrap_or_default();
    let entry = observation.observed.entry_of(&desired.names, member);
    if observation.observed.membership.is_some() {
        status.role = Some(match entry {
            Some(entry) if entry.learner => MemberRole::Learner,
            Some(_) => MemberRole::Voter,
            None => MemberRole::None,
        });
    }
    // Of one that left the last word stays.
    if let Some(entry) = entry {
        status.never_started = (entry.learner && !entry.started).then_some(true);
    }
    status.leader = Some(member.is_leader());
    let report = observation.reports.get(&member.serial);
    status.lag_entries = report.map(|_| i64::try_from(rounded(member.lag())).unwrap_or(i64::MAX));
    status.version = report.map(|report| report.version.clone()).or(status.version);
    status.db_size_bytes =
        report.map(|report| report.db_size / (1 << 20) * (1 << 20)).or(status.db_size_bytes);
    let pod = observation.pods.get(&member.serial);
    status.node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    status.restarts = pod
        .and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref())
        .map(|containers| containers.iter().map(|container| container.restart_count).sum());
    status.pod_uid = member.pod.as_ref().map(|pod| pod.uid.clone());
    status.serving_since = match &member.reach {
        Reach::Serving(serving) => Some(Time(serving.since)),
        Reach::Silent(_) => None,
    };
    match (&member.reach, member.pod.as_ref().and_then(|pod| pod.down.as_ref())) {
        (Reach::Serving(_), _) => status.data_gone = None,
        // The first words stay: each further try says them with another time.
        (Reach::Silent(_), Some(Cause::DataGone(said))) if member.id.is_some() => {
            status.data_gone.get_or_insert_with(|| said.chars().take(1000).collect());
        }
        _ => {}
    }
    let reason = match (member.is_serving(), member.loss) {
        (_, Some(_)) => "Lost",
        (true, None) => "Serving",
        (false, None) => "Silent",
    };
    let serving =
        fact("Ready", member.is_serving(), (reason, reason), invariants::describe(member));
    let message = if member.is_serving() { String::new() } else { serving.message };
    set_condition(
        &mut status.conditions,
        object.metadata.generation,
        Fact { message, ..serving },
        now,
    );
    status
}

/// A number that changes with every request would mean a write with every pass.
fn rounded(lag: u64) -> u64 {
    if lag < 16 { 0 } else { lag.next_power_of_two() }
}

// === Events ===

/// The event that tells of an action.
pub fn event(action: &Action, desired: &Desired, error: Option<&str>) -> Event {
    let unknown = || "an unknown member".to_owned();
    let name = action.serial().map_or_else(unknown, |serial| desired.names.member(serial));
    let (reason, note) = match action {
        Action::FreezeBootstrap { serials, attempt } => {
            ("BootstrapStarted", format!("attempt {attempt} with {} members", serials.len()))
        }
        Action::LatchCluster { cluster_id } => {
            ("ClusterFormed", format!("cluster id {cluster_id}"))
        }
        Action::CreateMember { reason, .. } => ("MemberCreated", format!("{name}: {reason:?}")),
        Action::AddLearner { .. } => ("MemberAdded", format!("{name} joins as a learner")),
        Action::Promote { id, .. } => ("LearnerPromoted", format!("{name} ({id}) votes now")),
        Action::Remove { id, reason, .. } => {
            let what = if *reason == RemoveReason::ScaleIn {
                "scale in"
            } else {
                "replaced or not needed"
            };
            ("MemberRemoved", format!("{name} ({id}): {what}"))
        }
        Action::MoveLeader { successor, .. } => {
            ("LeaderMoved", format!("from {name} to {}", desired.names.member(*successor)))
        }
        Action::RestartPod { reason, .. } => ("MemberRestarted", format!("{name}: {reason:?}")),
        Action::Release { keep_claim: false, .. } => {
            ("MemberReleased", format!("{name} left; its Pod and object go"))
        }
        Action::Release { serial, keep_claim: true } => {
            let claim = desired.names.claim(*serial);
            let why = "a client may have written to it before the first start was given up";
            ("MemberReleased", format!("{name} goes; its claim {claim} is kept: {why}"))
        }
    };
    let note = match error {
        Some(error) => format!("{note}; failed: {error}"),
        None => note,
    };
    Event {
        type_: if error.is_some() { EventType::Warning } else { EventType::Normal },
        reason: if error.is_some() { "ActionFailed".to_owned() } else { reason.to_owned() },
        note: Some(note.chars().take(1000).collect()),
        action: action.kind().to_owned(),
        secondary: None,
    }
}

/// Warnings for conditions that have just turned.
pub fn turned(before: &EtcdClusterStatus, after: &EtcdClusterStatus) -> Vec<Event> {
    let reason_of = |status: &EtcdClusterStatus, kind: &str, wanted: &str| {
        let known = status.conditions.iter().find(|condition| condition.type_ == kind);
        known
            .filter(|condition| condition.status == wanted)
            .map(|c| (c.reason.clone(), c.message.clone()))
    };
    const BAD: [(&str, &str); 7] = [
        ("QuorumHealthy", "False"),
        ("Degraded", "True"),
        ("SpecApplied", "False"),
        ("StorageHealthy", "False"),
        ("CertificatesValid", "False"),
        ("BackupHealthy", "False"),
        ("Recoverable", "False"),
    ];
    BAD.into_iter()
        .filter_map(|(kind, bad)| {
            let (reason, message) = reason_of(after, kind, bad)?;
            let known = reason_of(before, kind, bad).is_some_and(|(old, _)| old == reason);
            let starting = reason == "NotFormed";
            (!known && !starting).then(|| Event {
                type_: EventType::Warning,
                reason,
                note: Some(message.chars().take(1000).collect()),
                action: "Observe".to_owned(),
                secondary: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::{
            model::{JoinReason, Membership, Serial},
            plan::RestartReason,
            validate::validate,
        },
        crd::EtcdCluster,
    };

    fn cluster(spec: serde_json::Value) -> EtcdCluster {
        serde_json::from_value(json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
            "metadata": {"name": "main", "namespace": "ns", "uid": "u", "generation": 7},
            "spec": spec,
        }))
        .unwrap()
    }

    fn found<'a>(status: &'a EtcdClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
        let found = status.conditions.iter().find(|condition| condition.type_ == kind);
        let found = found.unwrap_or_else(|| panic!("no condition {kind}"));
        (&found.status, &found.reason, &found.message)
    }

    #[test]
    fn a_spec_that_nothing_can_be_made_of_is_told_and_ready_does_not_stay_true() {
        for (spec, said) in [
            (json!({"storage": {"size": "10gi"}}), "spec.storage.size: \"10gi\" is not a size"),
            (json!({"quota": {"backend": "lots"}}), "spec.quota.backend: \"lots\" is not a size"),
        ] {
            let cluster = cluster(spec);
            let error = validate(&cluster).unwrap_err();
            let mut before =
                EtcdClusterStatus { observed_generation: Some(6), ..EtcdClusterStatus::default() };
            let ready = fact("Ready", true, ("Healthy", ""), "");
            set_condition(&mut before.conditions, Some(6), ready, now());
            let after = invalid(&before, cluster.metadata.generation, &error, now());
            assert_eq!(after.observed_generation, Some(7));
            let (status, reason, message) = found(&after, "SpecApplied");
            assert_eq!((status, reason), ("False", "InvalidSpec"));
            assert!(message.contains(said), "{message}");
            assert_eq!(found(&after, "Ready").0, "Unknown");
            assert_eq!(found(&after, "Degraded").0, "True");
            assert_eq!(after.blocked_by[0].invariant, "InvalidSpec");
            let events = turned(&before, &after);
            let told = events.iter().filter(|event| event.reason == "InvalidSpec").count();
            assert!(told > 0, "only {} events", events.len());
            // Saying it again changes nothing, so it is written and told once.
            let again = invalid(&after, cluster.metadata.generation, &error, now());
            assert_eq!(again, after);
        }
    }

    #[test]
    fn every_action_is_told_with_its_member_and_a_failure_as_a_warning() {
        let desired = validate(&cluster(json!({}))).unwrap().desired;
        let (serial, id) = (Serial(2), types::MemberId(0xab));
        let removed = |serial, reason| Action::Remove { serial, id, reason };
        let restarted = |reason| Action::RestartPod { serial, uid: "u".to_owned(), reason };
        let created = |reason| Action::CreateMember { serial, reason };
        let released = |keep_claim| Action::Release { serial, keep_claim };
        let kept = format!(
            "main-2 goes; its claim {} is kept: a client may have written to it before the first start \
             was given up",
            desired.names.claim(serial)
        );
        let frozen = Action::FreezeBootstrap { serials: vec![Serial(1), serial], attempt: 3 };
        let latched = Action::LatchCluster { cluster_id: types::ClusterId(0xcd) };
        let moved = Action::MoveLeader { from: serial, to: id, successor: Serial(1) };
        for (action, kind, reason, note) in [
            (frozen, "FreezeBootstrap", "BootstrapStarted", "attempt 3 with 2 members"),
            (latched, "LatchCluster", "ClusterFormed", "cluster id cd"),
            (created(JoinReason::ScaleOut), "CreateMember", "MemberCreated", "main-2: ScaleOut"),
            (
                created(JoinReason::Replacement),
                "CreateMember",
                "MemberCreated",
                "main-2: Replacement",
            ),
            (
                Action::AddLearner { serial },
                "AddLearner",
                "MemberAdded",
                "main-2 joins as a learner",
            ),
            (Action::Promote { serial, id }, "Promote", "LearnerPromoted", "main-2 (ab) votes now"),
            (
                removed(Some(serial), RemoveReason::ScaleIn),
                "Remove",
                "MemberRemoved",
                "main-2 (ab): scale in",
            ),
            (
                removed(None, RemoveReason::Replaced),
                "Remove",
                "MemberRemoved",
                "an unknown member (ab): replaced or not needed",
            ),
            (moved, "MoveLeader", "LeaderMoved", "from main-2 to main-1"),
            (restarted(RestartReason::Rollout), "RestartPod", "MemberRestarted", "main-2: Rollout"),
            (released(false), "Release", "MemberReleased", "main-2 left; its Pod and object go"),
            (released(true), "Release", "MemberReleased", &kept),
        ] {
            let told = event(&action, &desired, None);
            assert_eq!(told.type_, EventType::Normal, "{action:?}");
            let (action_told, note_told) = (told.action.as_str(), told.note.as_deref());
            assert_eq!((action_told, told.reason.as_str(), note_told), (kind, reason, Some(note)));
            let failed = event(&action, &desired, Some("no answer"));
            assert_eq!(failed.type_, EventType::Warning, "{action:?}");
            assert_eq!((failed.action.as_str(), failed.reason.as_str()), (kind, "ActionFailed"));
            assert_eq!(failed.note.unwrap(), format!("{note}; failed: no answer"));
        }
    }

    #[test]
    fn an_alarm_that_was_disarmed_does_not_stay_in_the_conditions() {
        let validated = validate(&cluster(json!({}))).unwrap();
        let plan = Plan::default();
        let backups = Backups::default();
        let outcome = Outcome { plan: &plan, error: None, backups: &backups, certificates: None };
        let mut status = EtcdClusterStatus::default();
        let membership = |corrupt| {
            let cluster_id = types::ClusterId(1);
            Some(Membership { cluster_id, entries: Vec::new(), corrupt })
        };
        for (seen, expected) in [
            (membership(false), "True"),
            (membership(true), "False"),
            // Nobody could be asked: the last word stands.
            (None, "False"),
            (membership(false), "True"),
        ] {
            let observed = Observed { membership: seen, ..Observed::default() };
            conditions(&mut status, Some(1), &validated, &observed, &outcome, now());
            assert_eq!(found(&status, "DataConsistent").0, expected);
        }
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let mut conditions = Vec::new();
        let later = now() + SignedDuration::from_mins(1);
        let ready = |holds| fact("Ready", holds, ("Healthy", "Changing"), "");
        set_condition(&mut conditions, Some(1), ready(true), now());
        set_condition(&mut conditions, Some(2), ready(true), later);
        assert_eq!(conditions[0].last_transition_time.0, now());
        assert_eq!(conditions[0].observed_generation, Some(2));
        set_condition(&mut conditions, Some(2), ready(false), later);
        assert_eq!(conditions[0].last_transition_time.0, later);
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn what_was_not_observed_is_unknown_and_not_stale() {
        let mut before = EtcdClusterStatus::default();
        let ready = fact("Ready", true, ("Healthy", ""), "");
        set_condition(&mut before.conditions, Some(1), ready, now());
        before.observed_at = Some(Time(now()));
        let later = now() + SignedDuration::from_mins(5);
        let after = unobserved(&before, Some(1), "no answer".to_owned(), later);
        let ready = after.conditions.iter().find(|condition| condition.type_ == "Ready");
        assert_eq!(ready.map(|ready| ready.status.as_str()), Some("Unknown"));
        assert_eq!(after.observed_at, before.observed_at);
        // Saying it again changes nothing, so it is written once.
        assert_eq!(unobserved(&after, Some(1), "no answer".to_owned(), later), after);
    }
}
