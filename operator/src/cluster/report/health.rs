//! The conditions on what the members live on: space, certificates, backups, and whether there is a
//! way back if they fail. Each is a function of what was seen; what nobody could see is `Unknown`.

use jiff::{SignedDuration, Timestamp};

use super::{Fact, count, fact};
use crate::{
    backup::view::{Backups, Health},
    cluster::{
        model::{Loss, Member, quorum},
        observe::Observation,
        security::CertificateEnd,
        validate::Validated,
    },
    crd::{EtcdClusterStatus, MemberRole},
};

/// So much of its quota a database may use before somebody should look.
const QUOTA_PERCENT_MAX: i128 = 80;
/// A leaf is renewed 30 days before its end: one that is so near to it is not being renewed. A CA
/// is never renewed, so this is the time to do something about it.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(24 * 14);

/// All of them.
pub(super) fn facts(
    status: &EtcdClusterStatus,
    validated: &Validated,
    observation: &Observation,
    certificates: Option<&[CertificateEnd]>,
    backups: &Backups,
    now: Timestamp,
) -> [Fact; 4] {
    [
        storage(validated, observation),
        certificates_valid(certificates, now),
        backup(backups, now),
        recoverable(status, validated, observation),
    ]
}

fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Fact {
    Fact { kind, holds: None, reason, message: message.into() }
}

/// No member is out of space or about to be.
fn storage(validated: &Validated, observation: &Observation) -> Fact {
    const KIND: &str = "StorageHealthy";
    let (names, reports) = (&validated.desired.names, &observation.reports);
    if reports.is_empty() {
        return unknown(KIND, "NotObserved", "no member answers");
    }
    let mut full: Vec<_> = reports.values().flat_map(|report| &report.no_space).collect();
    full.sort_unstable();
    full.dedup();
    if !full.is_empty() {
        let name = |id| {
            let members = observation.observed.members.values();
            let member = members.into_iter().find(|member| member.id == Some(id));
            member.map_or_else(|| id.to_string(), |member| names.member(member.serial))
        };
        let full: Vec<String> = full.into_iter().map(|id| name(*id)).collect();
        let message = format!(
            "{} raised the NOSPACE alarm: delete or compact, defragment, and disarm it",
            full.join(", ")
        );
        return fact(KIND, false, ("", "NoSpace"), message);
    }
    let used = reports.iter().map(|(serial, report)| {
        let quota = report.db_quota.map_or(i128::from(validated.quota_bytes), i128::from).max(1);
        (i128::from(report.db_size) * 100 / quota, *serial, quota)
    });
    match used.max() {
        Some((percent, serial, quota)) if percent >= QUOTA_PERCENT_MAX => {
            let member = names.member(serial);
            let message = format!("{member} uses {percent} % of its quota of {quota} bytes");
            fact(KIND, false, ("", "QuotaNearlyUsed"), message)
        }
        _ => fact(KIND, true, ("SpaceLeft", ""), ""),
    }
}

/// Every certificate of the cluster has time left.
fn certificates_valid(certificates: Option<&[CertificateEnd]>, now: Timestamp) -> Fact {
    const KIND: &str = "CertificatesValid";
    let Some(certificates) = certificates else {
        return fact(KIND, true, ("TlsDisabled", ""), "spec.tls.mode is Disabled");
    };
    let Some(first) = certificates.iter().min_by_key(|certificate| certificate.not_after) else {
        return unknown(KIND, "NotObserved", "");
    };
    let message =
        format!("the first to end is {} of {}, at {}", first.key, first.secret, first.not_after);
    let left = first.not_after.duration_since(now);
    if left <= SignedDuration::ZERO {
        fact(KIND, false, ("", "CertificateExpired"), message)
    } else if left <= EXPIRES_SOON {
        fact(KIND, false, ("", "CertificateExpiring"), message)
    } else {
        fact(KIND, true, ("Valid", ""), message)
    }
}

/// The backups that a schedule asks for come about.
fn backup(backups: &Backups, now: Timestamp) -> Fact {
    const KIND: &str = "BackupHealthy";
    match backups.health(now) {
        Health::Succeeded => fact(KIND, true, ("LastRunSucceeded", ""), ""),
        Health::NotScheduled => {
            unknown(KIND, "NotScheduled", "no EtcdBackupSchedule names this cluster")
        }
        Health::Suspended => unknown(KIND, "Suspended", "every schedule is suspended"),
        Health::Pending(message) => unknown(KIND, "Pending", message),
        Health::Overdue(message) => fact(KIND, false, ("", "BackupOverdue"), message),
        Health::Failed(message) => fact(KIND, false, ("", "LastRunFailed"), message),
        Health::Invalid(message) => fact(KIND, false, ("", "InvalidSchedule"), message),
    }
}

/// What the cluster holds can be brought back into service: by enough members that have their data,
/// or else by a backup.
fn recoverable(
    status: &EtcdClusterStatus,
    validated: &Validated,
    observation: &Observation,
) -> Fact {
    const KIND: &str = "Recoverable";
    let observed = &observation.observed;
    if observed.cluster_id.is_none() {
        return unknown(KIND, "NotFormed", "");
    }
    let votes = |member: &Member| match &observed.membership {
        Some(_) => {
            let entry = observed.entry_of(&validated.desired.names, member);
            entry.is_some_and(|entry| !entry.learner)
        }
        // The last that was heard of it, as with the number of voters.
        None => {
            let object = observation.objects.get(&member.serial);
            let role = object.and_then(|object| object.status.as_ref()?.role);
            role == Some(MemberRole::Voter)
        }
    };
    let gone = |member: &Member| {
        let lost = matches!(member.loss, Some(Loss::Claim | Loss::Data | Loss::NodeGone));
        lost && !member.is_serving()
    };
    let intact = observed.members.values().filter(|member| votes(member) && !gone(member)).count();
    let (intact, voters) = (count(intact), status.voters);
    let needed = count(quorum(usize::try_from(voters).unwrap_or(0)));
    let members = format!("{intact} of {voters} voters have their data, {needed} are needed");
    if intact >= needed {
        return fact(KIND, true, ("QuorumPossible", ""), members);
    }
    match &status.backup {
        Some(backup) => {
            let message = format!("{members}; EtcdBackup {} is there", backup.last_successful);
            fact(KIND, true, ("BackupExists", ""), message)
        }
        None => {
            let message = format!("{members}, and there is no backup of this cluster");
            fact(KIND, false, ("", "NothingToRecoverFrom"), message)
        }
    }
}

#[cfg(test)]
mod tests;
