use std::collections::BTreeMap;

use serde_json::json;
use types::{ClusterId, MemberId};

use super::*;
use crate::{
    backup::view::tests::backups,
    cluster::{
        model::{Claim, Entry, Membership, Observed, Reach, Serial, Serving, Silence},
        plan::Plan,
        report::{Outcome, certificates_unusable, cluster_status, turned, unobserved},
        validate::validate,
    },
    crd::{EtcdCluster, EtcdMember, InitialState},
    etcd::MemberReport,
};

const MIB: i64 = 1 << 20;

fn validated() -> Validated {
    let cluster: EtcdCluster = serde_json::from_value(json!({
        "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
        "metadata": {"name": "main", "namespace": "ns", "uid": "u", "generation": 7},
        "spec": {"storage": {"size": "4Gi"}},
    }))
    .unwrap();
    validate(&cluster).unwrap()
}

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn member(serial: i64) -> Member {
    Member {
        serial: Serial(serial),
        initial_state: InitialState::New,
        replacement: None,
        id: Some(MemberId(serial.unsigned_abs())),
        listed_since: Some(now()),
        voted: true,
        deletion_requested: false,
        join_refused: false,
        claim: Claim::Bound,
        pod: None,
        loss: None,
        loss_due: None,
        reach: Reach::Serving(Serving {
            since: now(),
            lag: 0,
            leader: serial == 1,
            version: "3.7.3".to_owned(),
        }),
    }
}

fn report(serial: i64) -> MemberReport {
    MemberReport {
        cluster_id: ClusterId(1),
        member_id: MemberId(serial.unsigned_abs()),
        leader: MemberId(1),
        term: 2,
        revision: 5,
        raft_index: 9,
        applied_index: 9,
        version: "3.7.3".to_owned(),
        db_size: MIB,
        db_quota: Some(100 * MIB),
        is_learner: false,
        corrupt: false,
        no_space: Vec::new(),
    }
}

/// Three members that are well, and what `change` makes of them.
fn observation(change: impl FnOnce(&mut Observation)) -> Observation {
    let names = validated().desired.names;
    let entry = |serial: i64| Entry {
        id: MemberId(serial.unsigned_abs()),
        name: names.member(Serial(serial)),
        peer_url: names.peer_url(Serial(serial)),
        learner: false,
        started: true,
    };
    let object = |serial: i64| -> EtcdMember {
        serde_json::from_value(json!({
            "metadata": {"name": names.member(Serial(serial))},
            "spec": {
                "clusterRef": {"name": "main"}, "serial": serial, "initialState": "New",
                "peerURL": names.peer_url(Serial(serial)), "claimName": "x",
            },
            "status": {"role": "Voter"},
        }))
        .unwrap()
    };
    let cluster_id = ClusterId(1);
    let entries = (1..=3).map(entry).collect();
    let mut observation = Observation {
        observed: Observed {
            cluster_id: Some(cluster_id),
            membership: Some(Membership { cluster_id, entries, corrupt: false }),
            members: (1..=3).map(|serial| (Serial(serial), member(serial))).collect(),
            ..Observed::default()
        },
        objects: (1..=3).map(|serial| (Serial(serial), object(serial))).collect(),
        pods: BTreeMap::new(),
        reports: (1..=3).map(|serial| (Serial(serial), report(serial))).collect(),
        addresses: BTreeMap::new(),
    };
    change(&mut observation);
    observation
}

fn certificate(secret: &str, days: i64) -> CertificateEnd {
    let not_after = now() + SignedDuration::from_hours(24 * days);
    CertificateEnd { secret: secret.to_owned(), key: "tls.crt", not_after }
}

/// The whole way to a status, as a pass goes it.
fn status_after(
    before: &EtcdClusterStatus,
    observation: &Observation,
    certificates: Option<&[CertificateEnd]>,
    backups: &Backups,
    at: Timestamp,
) -> EtcdClusterStatus {
    let plan = Plan::default();
    let outcome = Outcome { plan: &plan, error: None, backups, certificates };
    cluster_status(before, Some(7), &validated(), observation, &outcome, at)
}

fn found<'a>(status: &'a EtcdClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (&condition.status, &condition.reason, &condition.message)
}

fn no_backups() -> Backups {
    backups(json!([]), &[])
}

/// The condition, what is said, and that saying so is a turn with a time and, if bad, an event.
fn check(
    kind: &str,
    (seen, certificates, backups): (&Observation, Option<&[CertificateEnd]>, &Backups),
    expected: (&str, &str),
    said: &str,
) {
    let well = observation(|_| ());
    let good = [certificate("main-client-ca", 3000)];
    let succeeded = hourly(&[("Complete", "11:00", "a1")]);
    let before = status_after(
        &EtcdClusterStatus::default(),
        &well,
        Some(&good),
        &succeeded,
        now() - SignedDuration::from_hours(1),
    );
    assert_eq!(found(&before, kind).0, "True", "{kind} begins well");
    let after = status_after(&before, seen, certificates, backups, now());
    let (status, reason, message) = found(&after, kind);
    assert_eq!((status, reason), expected, "{kind}: {message}");
    assert!(message.contains(said), "{kind}: {said:?} is not in {message:?}");
    let condition = after.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    let since = if status == "True" { now() - SignedDuration::from_hours(1) } else { now() };
    assert_eq!(condition.last_transition_time.0, since, "{kind}");
    // It stays so: the time does too, and nothing is told a second time.
    let later = now() + SignedDuration::from_mins(1);
    let again = status_after(&after, seen, certificates, backups, later);
    let condition = again.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    assert_eq!(condition.last_transition_time.0, since, "{kind}");
    let told = |before, after| {
        let events = turned(before, after);
        events.iter().filter(|event| event.reason == reason).count()
    };
    assert_eq!(told(&before, &after), usize::from(status == "False"), "{kind}");
    assert_eq!(told(&after, &again), 0, "{kind}");
    // A pass that sees nothing does not leave the old word standing.
    let blind = unobserved(&again, Some(7), "no answer".to_owned(), later);
    assert_eq!(found(&blind, kind), ("Unknown", "NotObserved", "no answer"));
}

fn check_storage(change: impl FnOnce(&mut Observation), expected: (&str, &str), said: &str) {
    let seen = observation(change);
    check("StorageHealthy", (&seen, None, &no_backups()), expected, said);
}

#[test]
fn storage_is_healthy_while_there_is_space() {
    check_storage(|_| (), ("True", "SpaceLeft"), "");
    let uses = |db_size, db_quota| {
        move |seen: &mut Observation| {
            let report = seen.reports.get_mut(&Serial(2)).unwrap();
            (report.db_size, report.db_quota) = (db_size, db_quota);
        }
    };
    check_storage(uses(79 * MIB, Some(100 * MIB)), ("True", "SpaceLeft"), "");
    let nearly = ("False", "QuotaNearlyUsed");
    check_storage(uses(80 * MIB, Some(100 * MIB)), nearly, "main-2 uses 80 % of its quota");
    // A server that does not tell its quota has the one that it was given: 3 of 4 GiB.
    check_storage(uses(2 << 30, None), ("True", "SpaceLeft"), "");
    check_storage(
        uses(3 << 30, None),
        nearly,
        "main-2 uses 100 % of its quota of 3221225472 bytes",
    );
    check_storage(|seen| seen.reports.clear(), ("Unknown", "NotObserved"), "no member answers");
}

#[test]
fn a_member_without_space_is_named_by_whoever_answers() {
    let full = |seen: &mut Observation| {
        for report in seen.reports.values_mut() {
            report.no_space = vec![MemberId(3), MemberId(0xabc)];
        }
        // The one that is full answers nobody.
        seen.reports.remove(&Serial(3));
    };
    check_storage(full, ("False", "NoSpace"), "main-3, abc raised the NOSPACE alarm");
}

#[test]
fn certificates_are_valid_until_one_is_about_to_end() {
    let well = observation(|_| ());
    let check = |ends: &[CertificateEnd], expected, said: &str| {
        check("CertificatesValid", (&well, Some(ends), &no_backups()), expected, said);
    };
    let with = |days| [certificate("main-client-ca", 3000), certificate("main-2-tls", days)];
    check(&with(15), ("True", "Valid"), "tls.crt of main-2-tls, at 2026-05-16T12:00:00Z");
    check(&with(14), ("False", "CertificateExpiring"), "main-2-tls");
    check(&with(0), ("False", "CertificateExpired"), "main-2-tls");
    check(&[], ("Unknown", "NotObserved"), "");
}

#[test]
fn certificates_that_cannot_be_read_are_not_valid() {
    let mut status = EtcdClusterStatus::default();
    certificates_unusable(&mut status, Some(7), "Secret x has no usable tls.crt".into(), now());
    let expected = ("False", "CertificateUnusable", "Secret x has no usable tls.crt");
    assert_eq!(found(&status, "CertificatesValid"), expected);
}

#[test]
fn without_tls_there_is_no_certificate_to_end() {
    let well = observation(|_| ());
    check("CertificatesValid", (&well, None, &no_backups()), ("True", "TlsDisabled"), "Disabled");
}

fn hourly(ended: &[(&str, &str, &str)]) -> Backups {
    backups(json!([{"schedule": "0 * * * *"}]), ended)
}

#[test]
fn backups_are_healthy_while_scheduled_ones_come_about() {
    let well = observation(|_| ());
    let check = |backups: Backups, expected, said: &str| {
        check("BackupHealthy", (&well, None, &backups), expected, said);
    };
    let taken = ("Complete", "10:00", "a1");
    check(hourly(&[taken]), ("True", "LastRunSucceeded"), "");
    check(hourly(&[taken, ("Failed", "11:00", "")]), ("False", "LastRunFailed"), "no space in the");
    check(hourly(&[]), ("False", "BackupOverdue"), "the run of 2026-05-01T09:00:00Z");
    let invalid = backups(json!([{"schedule": "0 25 * * *"}]), &[]);
    check(invalid, ("False", "InvalidSchedule"), "hourly");
    check(no_backups(), ("Unknown", "NotScheduled"), "no EtcdBackupSchedule");
    let suspended = json!([{"schedule": "0 * * * *", "suspend": true}]);
    check(backups(suspended, &[]), ("Unknown", "Suspended"), "");
    let daily = backups(json!([{"schedule": "0 3 * * *"}]), &[]);
    check(daily, ("Unknown", "Pending"), "has not run yet");
}

/// These members have lost what they had, and nobody can list the members.
fn lost(losses: &[(i64, Loss)]) -> Observation {
    observation(|seen| {
        seen.observed.membership = None;
        for (serial, loss) in losses {
            let member = seen.observed.members.get_mut(&Serial(*serial)).unwrap();
            member.loss = Some(*loss);
            member.reach = Reach::Silent(Silence::Timeout);
            seen.reports.remove(&Serial(*serial));
        }
    })
}

#[test]
fn a_cluster_is_recoverable_by_its_members_or_by_a_backup() {
    let taken = || backups(json!([]), &[("Complete", "10:00", "a1")]);
    let possible = ("True", "QuorumPossible");
    let check = |losses: &[(i64, Loss)], backups: Backups, expected, said: &str| {
        check("Recoverable", (&lost(losses), None, &backups), expected, said);
    };
    check(&[(1, Loss::Claim)], no_backups(), possible, "2 of 3 voters have their data");
    // Silence is no loss.
    let silent = [(1, Loss::NodeSilent), (2, Loss::NodeSilent)];
    check(&silent, no_backups(), possible, "3 of 3 voters");
    let two = [(1, Loss::Claim), (2, Loss::NodeGone)];
    check(&two, taken(), ("True", "BackupExists"), "EtcdBackup hourly-10:00 is there");
    let nothing = ("False", "NothingToRecoverFrom");
    check(&two, no_backups(), nothing, "1 of 3 voters have their data, 2 are needed");
    check(&[(1, Loss::Data), (3, Loss::Data)], no_backups(), nothing, "1 of 3 voters");
    // What was taken of another cluster does not bring this one back.
    let other = backups(json!([]), &[("Complete", "10:00", "b2")]);
    check(&two, other, nothing, "there is no backup");
}

#[test]
fn members_whose_objects_are_gone_and_learners_do_not_count_for_recovery() {
    let nothing = ("False", "NothingToRecoverFrom");
    let mut seen = lost(&[]);
    for serial in [1, 2] {
        seen.objects.remove(&Serial(serial));
        seen.observed.members.remove(&Serial(serial));
    }
    check("Recoverable", (&seen, None, &no_backups()), nothing, "1 of 3 voters");
    let mut seen = lost(&[(1, Loss::Claim)]);
    let learner = seen.objects.get_mut(&Serial(2)).unwrap();
    learner.status.as_mut().unwrap().role = Some(MemberRole::Learner);
    check("Recoverable", (&seen, None, &no_backups()), nothing, "1 of 3 voters");
}

#[test]
fn a_cluster_that_was_never_formed_has_nothing_to_recover() {
    let seen = observation(|seen| {
        seen.observed.cluster_id = None;
        seen.observed.membership = None;
    });
    let status = status_after(&EtcdClusterStatus::default(), &seen, None, &no_backups(), now());
    assert_eq!(found(&status, "Recoverable").0, "Unknown");
    assert_eq!(found(&status, "Recoverable").1, "NotFormed");
}

/// It comes back with what it ran: from there the next minor version but one is too far.
#[test]
fn the_version_of_a_silent_member_counts_until_it_answers_or_goes() {
    let silent = observation(|observation| {
        observation.reports.remove(&Serial(3));
        let object = observation.objects.get_mut(&Serial(3)).unwrap();
        object.status.as_mut().unwrap().version = Some("3.6.4".to_owned());
    });
    let mut before = EtcdClusterStatus {
        current_version: Some("3.7.3".to_owned()),
        ..EtcdClusterStatus::default()
    };
    let next = |status: &EtcdClusterStatus| {
        let cluster: EtcdCluster = serde_json::from_value(json!({
            "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
            "metadata": {"name": "main", "namespace": "ns", "uid": "u", "generation": 8},
            "spec": {"version": "3.8.0"}, "status": status,
        }))
        .unwrap();
        validate(&cluster).unwrap().target.version
    };
    before = status_after(&before, &silent, None, &Backups::default(), now());
    assert_eq!(before.current_version.as_deref(), Some("3.6.4"));
    assert_ne!(next(&before), "3.8.0");
    let answering = observation(|_| {});
    before = status_after(&before, &answering, None, &Backups::default(), now());
    assert_eq!(before.current_version.as_deref(), Some("3.7.3"));
    assert_eq!(next(&before), "3.8.0");
    let released = observation(|observation| {
        observation.reports.remove(&Serial(3));
        observation.objects.remove(&Serial(3));
    });
    let after = status_after(&before, &released, None, &Backups::default(), now());
    assert_eq!(after.current_version.as_deref(), Some("3.7.3"));
}
