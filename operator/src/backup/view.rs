//! What a cluster's backups and schedules say about it, for its status. Pure but for the reading.
//!
//! A backup counts for the cluster that it was taken of: one of an older cluster of the same name
//! holds other data.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::{
    cron::{Cron, time_zone},
    is_complete, is_failed,
};
use crate::{
    cluster::build::SCHEDULE_LABEL,
    crd::{ClusterBackupStatus, DEFAULT_DEADLINE_SECONDS, EtcdBackup, EtcdBackupSchedule},
    kubernetes::{Kubernetes, KubernetesError},
};

/// The backups and schedules of one cluster.
#[derive(Clone, Debug, Default)]
pub struct Backups {
    backups: Vec<EtcdBackup>,
    schedules: Vec<EtcdBackupSchedule>,
    cluster_id: Option<String>,
}

/// Whether scheduled backups come about; unknown where none are due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    // From good to bad: of several schedules the worst counts.
    Succeeded,
    NotScheduled,
    Suspended,
    Pending(String),
    Overdue(String),
    Failed(String),
    Invalid(String),
}

impl Backups {
    /// Reads those of a cluster.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn of(
        kubernetes: &Kubernetes,
        namespace: &str,
        cluster: &str,
        cluster_id: Option<String>,
    ) -> Result<Backups, KubernetesError> {
        let mut backups = kubernetes.list::<EtcdBackup>(namespace, "").await?;
        let mut schedules = kubernetes.list::<EtcdBackupSchedule>(namespace, "").await?;
        backups.retain(|backup| backup.spec.cluster_ref.name == cluster);
        schedules.retain(|schedule| schedule.spec.cluster_ref.name == cluster);
        Ok(Backups { backups, schedules, cluster_id })
    }

    /// The newest complete backup of the cluster; one that is being deleted is nothing to go back to.
    pub fn newest(&self) -> Option<ClusterBackupStatus> {
        let stays = |backup: &&EtcdBackup| backup.metadata.deletion_timestamp.is_none();
        let complete = self.backups.iter().filter(stays).filter_map(|backup| {
            let completed_at = self.completed_at(backup)?;
            Some((completed_at, backup.name_any(), backup.status.as_ref()?.revision))
        });
        complete.max_by(|a, b| a.0.cmp(&b.0)).map(|(time, last_successful, last_revision)| {
            let last_successful_time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time);
            ClusterBackupStatus { last_successful, last_successful_time, last_revision }
        })
    }

    /// How the schedules fare: the worst of those that are not suspended.
    pub fn health(&self, now: Timestamp) -> Health {
        let active = self.schedules.iter().filter(|schedule| !schedule.spec.suspend);
        let worst = active.map(|schedule| self.health_of(schedule, now)).max();
        worst.unwrap_or(match self.schedules.is_empty() {
            true => Health::NotScheduled,
            false => Health::Suspended,
        })
    }

    fn health_of(&self, schedule: &EtcdBackupSchedule, now: Timestamp) -> Health {
        let (name, spec) = (schedule.name_any(), &schedule.spec);
        let (cron, zone) = match (Cron::parse(&spec.schedule), time_zone(&spec.time_zone)) {
            (Ok(cron), Ok(zone)) => (cron, zone),
            (Err(error), _) | (_, Err(error)) => {
                return Health::Invalid(format!("{name}: {error}"));
            }
        };
        let ended = self.runs_of(&name).filter(|backup| is_complete(backup) || is_failed(backup));
        let last = ended.max_by_key(|backup| backup.creation_timestamp().map(|time| time.0));
        if let Some(failed) = last.filter(|backup| is_failed(backup)) {
            return Health::Failed(format!("{}: {}", failed.name_any(), failure(failed)));
        }
        let success = self.runs_of(&name).filter_map(|backup| self.completed_at(backup)).max();
        let created = schedule.creation_timestamp().map_or(now, |time| time.0);
        // A run may begin late by the one, and take the other.
        let patience = spec.starting_deadline_seconds.saturating_add(DEFAULT_DEADLINE_SECONDS);
        let due = cron.next_after(success.unwrap_or(created), &zone);
        match due.filter(|due| now.duration_since(*due) > SignedDuration::from_secs(patience)) {
            Some(due) => Health::Overdue(format!("{name}: nothing has come of the run of {due}")),
            None if success.is_none() => Health::Pending(format!("{name} has not run yet")),
            None => Health::Succeeded,
        }
    }

    fn runs_of(&self, schedule: &str) -> impl Iterator<Item = &EtcdBackup> {
        let is_its = move |backup: &&EtcdBackup| {
            backup.labels().get(SCHEDULE_LABEL).is_some_and(|label| label == schedule)
        };
        self.backups.iter().filter(is_its)
    }

    fn completed_at(&self, backup: &EtcdBackup) -> Option<Timestamp> {
        let status = backup.status.as_ref().filter(|_| is_complete(backup))?;
        let is_of_this = self.cluster_id.is_none() || status.cluster_id == self.cluster_id;
        is_of_this.then_some(status.completed_at.as_ref()?.0)
    }
}

fn failure(backup: &EtcdBackup) -> &str {
    let conditions = backup.status.iter().flat_map(|status| &status.conditions);
    let failed = conditions.into_iter().find(|condition| condition.type_ == "Failed");
    failed.map_or("it failed", |condition| &condition.message)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-05-01T12:00:00Z".parse().unwrap()
    }

    /// Backups of `hourly`: how each ended, when, and of which cluster.
    pub(crate) fn backups(schedules: Value, ended: &[(&str, &str, &str)]) -> Backups {
        let schedules: Vec<Value> = serde_json::from_value(schedules).unwrap();
        let schedule = |(name, spec): (usize, &Value)| {
            let mut spec = spec.clone();
            spec["clusterRef"] = json!({"name": "main"});
            let name = if name == 0 { "hourly".to_owned() } else { format!("other-{name}") };
            let created = "2026-05-01T08:30:00Z";
            let metadata = json!({"name": name, "creationTimestamp": created});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        let backup = |(kind, time, cluster_id): &(&str, &str, &str)| {
            let at = format!("2026-05-01T{time}:00Z");
            let condition = json!({
                "type": kind, "status": "True", "reason": "X", "message": "no space in the bucket",
                "lastTransitionTime": at,
            });
            serde_json::from_value(json!({
                "metadata": {
                    "name": format!("hourly-{time}"), "creationTimestamp": at,
                    "labels": {SCHEDULE_LABEL: "hourly"},
                },
                "spec": {"clusterRef": {"name": "main"}},
                "status": {
                    "clusterId": cluster_id, "completedAt": at, "revision": 7,
                    "conditions": [condition],
                },
            }))
            .unwrap()
        };
        Backups {
            backups: ended.iter().map(backup).collect(),
            schedules: schedules.iter().enumerate().map(schedule).collect(),
            cluster_id: Some("a1".to_owned()),
        }
    }

    fn check(schedules: Value, ended: &[(&str, &str, &str)], expected: Health) {
        assert_eq!(backups(schedules, ended).health(now()), expected);
    }

    fn hourly() -> Value {
        json!({"schedule": "0 * * * *"})
    }

    #[test]
    fn without_a_schedule_nothing_is_expected() {
        check(json!([]), &[], Health::NotScheduled);
        check(json!([]), &[("Failed", "09:00", "")], Health::NotScheduled);
        let suspended = json!({"schedule": "0 * * * *", "suspend": true});
        check(json!([suspended]), &[("Failed", "09:00", "")], Health::Suspended);
    }

    #[test]
    fn the_run_that_ended_last_decides() {
        let failed = || Health::Failed("hourly-11:00: no space in the bucket".to_owned());
        let (early, late) = (("Complete", "10:00", "a1"), ("Complete", "11:00", "a1"));
        check(json!([hourly()]), &[early, late], Health::Succeeded);
        check(json!([hourly()]), &[early, ("Failed", "11:00", "")], failed());
        check(json!([hourly()]), &[("Failed", "10:00", ""), late], Health::Succeeded);
    }

    #[test]
    fn a_run_of_which_nothing_came_is_overdue() {
        // 10 minutes to start and an hour to run: of 10:00 something would be known at 11:10.
        let overdue = "hourly: nothing has come of the run of 2026-05-01T10:00:00Z";
        check(json!([hourly()]), &[("Complete", "09:05", "a1")], Health::Overdue(overdue.into()));
        check(json!([hourly()]), &[("Complete", "10:05", "a1")], Health::Succeeded);
        let never = "hourly: nothing has come of the run of 2026-05-01T09:00:00Z";
        check(json!([hourly()]), &[], Health::Overdue(never.into()));
        // What was taken of an older cluster of this name is no backup of this one.
        check(json!([hourly()]), &[("Complete", "11:05", "b2")], Health::Overdue(never.into()));
        let daily = json!({"schedule": "0 3 * * *"});
        check(json!([daily]), &[], Health::Pending("hourly has not run yet".into()));
    }

    #[test]
    fn of_several_schedules_the_worst_counts() {
        let invalid = json!({"schedule": "0 25 * * *"});
        let health = backups(json!([hourly(), invalid]), &[("Complete", "11:00", "a1")]);
        assert!(matches!(health.health(now()), Health::Invalid(_)), "{health:?}");
        let daily = json!({"schedule": "0 3 * * *"});
        let pending = Health::Pending("other-1 has not run yet".into());
        check(json!([hourly(), daily]), &[("Complete", "11:00", "a1")], pending);
    }

    #[test]
    fn the_newest_backup_is_one_of_this_cluster() {
        let found = backups(
            json!([]),
            &[
                ("Complete", "09:00", "a1"),
                ("Complete", "10:00", "a1"),
                ("Failed", "11:00", "a1"),
                ("Complete", "11:30", "b2"),
            ],
        );
        let newest = found.newest().unwrap();
        assert_eq!(
            (newest.last_successful.as_str(), newest.last_revision),
            ("hourly-10:00", Some(7))
        );
    }
}
