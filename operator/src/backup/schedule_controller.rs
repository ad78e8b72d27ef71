//! The controller of `EtcdBackupSchedule`: carries out what [`schedule`](super::schedule) and
//! [`retention`](super::retention) decide.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{ResourceExt, runtime::controller::Action};

use super::{
    cron::{Cron, CronError, time_zone},
    is_complete, is_failed,
    retention::{Completed, expired},
    schedule::{Decision, Situation, decide},
};
use crate::{
    cluster::{
        build::{CLUSTER_LABEL, SCHEDULE_LABEL},
        report::condition,
    },
    context::Context,
    crd::{EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleStatus, EtcdBackupSpec},
    kubernetes::{Kubernetes, KubernetesError},
};

/// Longest sleep: missed wake-ups and clock changes are found after at most this. A backup of the schedule
/// that ends is an event.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// One pass over one schedule.
///
/// # Errors
/// The API server did not answer.
pub async fn reconcile(
    cached: Arc<EtcdBackupSchedule>,
    context: Arc<Context>,
) -> Result<Action, KubernetesError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let kubernetes = &context.kubernetes;
    let Some(schedule) = kubernetes.get::<EtcdBackupSchedule>(&namespace, &name).await? else {
        return Ok(Action::await_change());
    };
    if !context.lease.is_held() || schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::requeue(SLEEP_MAX));
    }
    let now = Timestamp::now();
    let mut status = schedule.status.clone().unwrap_or_default();
    status.observed_generation = schedule.metadata.generation;
    let generation = schedule.metadata.generation;
    let (cron, zone) = match read(&schedule) {
        Ok(read) => read,
        Err(error) => {
            let message = error.to_string();
            condition(
                &mut status.conditions,
                generation,
                "Ready",
                Some(false),
                "InvalidSchedule",
                message,
                now,
            );
            write(kubernetes, &schedule, &status).await?;
            return Ok(Action::await_change());
        }
    };
    let backups =
        kubernetes.list::<EtcdBackup>(&namespace, &format!("{SCHEDULE_LABEL}={name}")).await?;
    let active = backups.iter().filter(|backup| is_active(backup));
    status.active = active.map(ResourceExt::name_any).collect();
    let completed = completed(&backups);
    status.last_successful_time = completed.iter().map(|backup| backup.at).max().map(Time);
    let decision = decide(&situation(&schedule, &status, &cron, &zone, now));
    carry_out(kubernetes, &schedule, &backups, &mut status, &decision).await?;
    status.next_scheduled_time = match schedule.spec.suspend {
        true => None,
        false => cron.next_after(now, &zone).map(Time),
    };
    let reason = if schedule.spec.suspend { "Suspended" } else { "Scheduled" };
    condition(&mut status.conditions, generation, "Ready", Some(true), reason, String::new(), now);
    // Which run was started is not to be forgotten for what cannot be deleted.
    write(kubernetes, &schedule, &status).await?;
    prune(kubernetes, &schedule, &backups, &completed, &zone, now).await?;
    Ok(Action::requeue(sleep(&status, now)))
}

fn read(schedule: &EtcdBackupSchedule) -> Result<(Cron, TimeZone), CronError> {
    Ok((Cron::parse(&schedule.spec.schedule)?, time_zone(&schedule.spec.time_zone)?))
}

fn is_active(backup: &EtcdBackup) -> bool {
    !is_complete(backup) && !is_failed(backup) && backup.metadata.deletion_timestamp.is_none()
}

/// The backups that there are to go back to. One that is being deleted is none, so it must not push out
/// another as the newest.
fn completed(backups: &[EtcdBackup]) -> Vec<Completed> {
    backups
        .iter()
        .filter(|backup| is_complete(backup) && backup.metadata.deletion_timestamp.is_none())
        .filter_map(|backup| {
            let status = backup.status.as_ref()?;
            let (at, cluster_id) = (status.completed_at.as_ref()?.0, status.cluster_id.clone());
            Some(Completed { name: backup.name_any(), at, cluster_id })
        })
        .collect()
}

fn situation<'a>(
    schedule: &EtcdBackupSchedule,
    status: &EtcdBackupScheduleStatus,
    cron: &'a Cron,
    zone: &'a TimeZone,
    now: Timestamp,
) -> Situation<'a> {
    let created = schedule.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    Situation {
        cron,
        zone,
        now,
        created,
        last: status.last_scheduled_time.as_ref().map(|time| time.0),
        suspend: schedule.spec.suspend,
        immediate: schedule.spec.immediate,
        starting_deadline: SignedDuration::from_secs(schedule.spec.starting_deadline_seconds),
        concurrency: schedule.spec.concurrency_policy,
        is_active: !status.active.is_empty(),
    }
}

async fn carry_out(
    kubernetes: &Kubernetes,
    schedule: &EtcdBackupSchedule,
    backups: &[EtcdBackup],
    status: &mut EtcdBackupScheduleStatus,
    decision: &Decision,
) -> Result<(), KubernetesError> {
    let Decision::Start { at, replacing } = decision else { return Ok(()) };
    let namespace = schedule.namespace().unwrap_or_default();
    // The name is that of the run: a second start of the same run finds the first.
    let backup = backup(schedule, *at);
    status.last_scheduled_time = Some(Time(*at));
    if backups.iter().any(|known| known.name_any() == backup.name_any()) {
        // It was started, and then its time could not be written: it is none that is in its own way.
        return Ok(());
    }
    if *replacing {
        for backup in backups.iter().filter(|backup| is_active(backup)) {
            let (name, uid) = (backup.name_any(), backup.uid().unwrap_or_default());
            kubernetes.delete::<EtcdBackup>(&namespace, &name, &uid).await?;
        }
        status.active.clear();
    }
    status.active.push(backup.name_any());
    kubernetes.create(&namespace, &backup).await.map(drop)
}

fn backup(schedule: &EtcdBackupSchedule, at: Timestamp) -> EtcdBackup {
    let (name, template) = (schedule.name_any(), &schedule.spec.template);
    let labels = [
        (SCHEDULE_LABEL.to_owned(), name.clone()),
        (CLUSTER_LABEL.to_owned(), schedule.spec.cluster_ref.name.clone()),
    ];
    // No owner reference: backups outlive the schedule that made them.
    let spec: EtcdBackupSpec = serde_json::from_value(serde_json::json!({
        "clusterRef": schedule.spec.cluster_ref,
        "store": template.store,
        "from": template.from,
        "deletionPolicy": template.deletion_policy,
    }))
    .expect("the template has the fields of a backup");
    EtcdBackup {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", at.as_second())),
            namespace: schedule.namespace(),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

async fn prune(
    kubernetes: &Kubernetes,
    schedule: &EtcdBackupSchedule,
    backups: &[EtcdBackup],
    completed: &[Completed],
    zone: &TimeZone,
    now: Timestamp,
) -> Result<(), KubernetesError> {
    let mut failed: Vec<&EtcdBackup> = backups.iter().filter(|backup| is_failed(backup)).collect();
    failed.sort_by_key(|backup| backup.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let keep = usize::try_from(schedule.spec.failed_history_limit).unwrap_or(0);
    let surplus = failed.len().saturating_sub(keep);
    let failed = failed.into_iter().take(surplus).map(ResourceExt::name_any);
    let expired = expired(completed, &schedule.spec.retention, zone, now);
    for name in failed.chain(expired) {
        let Some(backup) = backups.iter().find(|backup| backup.name_any() == name) else {
            continue;
        };
        if backup.metadata.deletion_timestamp.is_none() {
            let namespace = backup.namespace().unwrap_or_default();
            kubernetes
                .delete::<EtcdBackup>(&namespace, &name, &backup.uid().unwrap_or_default())
                .await?;
        }
    }
    Ok(())
}

fn sleep(status: &EtcdBackupScheduleStatus, now: Timestamp) -> Duration {
    let next = status.next_scheduled_time.as_ref().map(|next| next.0.duration_since(now));
    let next = next.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(SLEEP_MAX);
    next.saturating_add(Duration::from_millis(200)).min(SLEEP_MAX)
}

async fn write(
    kubernetes: &Kubernetes,
    schedule: &EtcdBackupSchedule,
    status: &EtcdBackupScheduleStatus,
) -> Result<(), KubernetesError> {
    if schedule.status.as_ref() == Some(status) {
        return Ok(());
    }
    kubernetes.apply_status(schedule, status).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::BackupDeletionPolicy;

    #[test]
    fn a_run_is_named_after_its_scheduled_time() {
        let schedule: EtcdBackupSchedule = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "nightly", "namespace": "ns"},
            "spec": {"clusterRef": {"name": "main"}, "schedule": "0 3 * * *"},
        }))
        .unwrap();
        let at = "2026-05-01T03:00:00Z".parse().unwrap();
        let backup = backup(&schedule, at);
        assert_eq!(backup.name_any(), "nightly-1777604400");
        assert_eq!(backup.spec.deletion_policy, BackupDeletionPolicy::Delete);
        assert_eq!(backup.labels()[SCHEDULE_LABEL], "nightly");
        backup.validate_cel().unwrap();
    }
}
