//! Backups: the controller of `EtcdBackup`, its Jobs, and what runs inside them.
//!
//! A backup is a Job that dials one chosen member, streams its snapshot into the store while
//! checking the digest at its end, and writes a manifest last. It counts as taken when the agent
//! has said so with the manifest in its termination message. The operator reads no credentials and
//! no data. What a schedule does is in [`schedule`] (when) and [`retention`] (how many), both pure.

pub mod agent;
pub mod cron;
pub mod job;
pub mod manifest;
pub mod restore_step;
pub mod retention;
pub mod schedule;
pub mod schedule_controller;
pub mod store;
pub mod uploads;
pub mod view;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};

use crate::{
    cluster::{
        build::{BACKUP_LABEL, CLIENT_PORT, FINALIZER, member_selector, selector_text},
        model::{Names, Serial},
        report::condition,
    },
    context::Context,
    crd::{
        BackupDeletionPolicy, BackupSource, BackupStore, EtcdBackup, EtcdBackupStatus, EtcdCluster,
        EtcdMember, MemberRole, TlsMode,
    },
    kubernetes::{Kubernetes, KubernetesError, is_owned_by},
};
use agent::AgentReport;
use job::{JOB_LABEL, JobOrder, TLS_MOUNT, job};
use manifest::Manifest;

/// Until the next write of one pass.
const SOON: Duration = Duration::from_secs(3);
/// Of its Jobs a pass hears by their events; this is for what tells nothing.
const WAITING: Duration = Duration::from_secs(15);
/// Between two Jobs that delete what is stored, when the first has failed: a store may be out of order, or a
/// credential have run out.
const DELETION_PAUSE: SignedDuration = SignedDuration::from_mins(10);
/// Reason of a backup whose Job the API server will not have.
const REFUSED: &str = "JobRefused";

/// Why a backup does not start yet; each is retried.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("EtcdCluster {0} does not exist")]
    Cluster(String),
    #[error("neither spec.store nor the cluster's spec.backup.store is set")]
    Store,
    #[error("no voting member answers")]
    Member,
    #[error("Job {0} exists and is not of this backup")]
    Job(String),
}

/// The backup was taken.
pub fn is_complete(backup: &EtcdBackup) -> bool {
    has_condition(backup, "Complete", "True")
}

/// The backup failed for good.
pub fn is_failed(backup: &EtcdBackup) -> bool {
    has_condition(backup, "Failed", "True")
}

fn has_condition(backup: &EtcdBackup, kind: &str, wanted: &str) -> bool {
    let conditions = backup.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == kind)
        .any(|condition| condition.status == wanted)
}

/// One pass over one backup.
///
/// # Errors
/// The API server did not answer.
pub async fn reconcile(
    cached: Arc<EtcdBackup>,
    context: Arc<Context>,
) -> Result<Action, KubernetesError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let kubernetes = &context.kubernetes;
    let Some(backup) = kubernetes.get::<EtcdBackup>(&namespace, &name).await? else {
        return Ok(Action::await_change());
    };
    if !context.lease.is_held() {
        return Ok(Action::requeue(SOON));
    }
    if backup.metadata.deletion_timestamp.is_some() {
        return finalize(&context, &backup).await;
    }
    let deletes = backup.spec.deletion_policy == BackupDeletionPolicy::Delete;
    if deletes && !backup.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        kubernetes.hold(&backup, FINALIZER).await?;
        return Ok(Action::requeue(Duration::ZERO));
    }
    if is_complete(&backup) || is_failed(&backup) {
        return Ok(Action::await_change());
    }
    let Some(running) = kubernetes.get::<Job>(&namespace, &name).await? else {
        return start(&context, &backup).await;
    };
    if !is_owned_by(&running, &backup.uid().unwrap_or_default()) {
        // To that of an older backup of this name the garbage collector is on its way.
        return wait(&context, &backup, &NotYet::Job(name)).await;
    }
    follow(&context, &backup, &running).await
}

// === Start ===

async fn start(context: &Context, backup: &EtcdBackup) -> Result<Action, KubernetesError> {
    let now = Timestamp::now();
    let mut status = backup.status.clone().unwrap_or_default();
    let order = match prepare(context, backup, &mut status).await? {
        Ok(order) => order,
        Err(not_yet) => return wait(context, backup, &not_yet).await,
    };
    status.started_at.get_or_insert(Time(now));
    let generation = backup.metadata.generation;
    let runs = |conditions: &mut Vec<Condition>| {
        let message = String::new();
        condition(conditions, generation, "Complete", Some(false), "Running", message, now);
    };
    if !is_refused(&status) {
        runs(&mut status.conditions);
    }
    // Status first: it holds the path under which the Job writes.
    let written = write(context, backup, &status).await?;
    match context.kubernetes.create_owned(&backup.namespace().unwrap_or_default(), &order).await {
        Ok(()) => {
            let mut status = written.status.clone().unwrap_or_default();
            runs(&mut status.conditions);
            write(context, &written, &status).await?;
            Ok(Action::requeue(WAITING))
        }
        Err(error) if error.is_denied() => {
            let note = error.to_string();
            tell(context, &written, ("Complete", REFUSED), "Backup", note).await?;
            let uid = backup.uid().unwrap_or_default();
            Ok(Action::requeue(context.memory.back_off(&uid, REFUSED, WAITING)))
        }
        Err(error) => Err(error),
    }
}

/// The last that was heard of the backup is that its Job was refused.
fn is_refused(status: &EtcdBackupStatus) -> bool {
    let complete = status.conditions.iter().find(|condition| condition.type_ == "Complete");
    complete.is_some_and(|condition| condition.reason == REFUSED)
}

async fn wait(
    context: &Context,
    backup: &EtcdBackup,
    not_yet: &NotYet,
) -> Result<Action, KubernetesError> {
    let mut status = backup.status.clone().unwrap_or_default();
    let (generation, message) = (backup.metadata.generation, not_yet.to_string());
    let (conditions, now) = (&mut status.conditions, Timestamp::now());
    condition(conditions, generation, "Complete", Some(false), "Waiting", message, now);
    write(context, backup, &status).await?;
    Ok(Action::requeue(WAITING))
}

async fn prepare(
    context: &Context,
    backup: &EtcdBackup,
    status: &mut EtcdBackupStatus,
) -> Result<Result<Job, NotYet>, KubernetesError> {
    let kubernetes = &context.kubernetes;
    let namespace = backup.namespace().unwrap_or_default();
    let cluster_name = &backup.spec.cluster_ref.name;
    let Some(cluster) = kubernetes.get::<EtcdCluster>(&namespace, cluster_name).await? else {
        return Ok(Err(NotYet::Cluster(cluster_name.clone())));
    };
    let default = cluster.spec.backup.as_ref().map(|backup| backup.store.clone());
    // A Job that ran may have written: its successor finds that only in the same store.
    let before = status.store.clone().filter(|_| !is_refused(status));
    let store = before.or_else(|| backup.spec.store.clone()).or(default);
    let Some(store) = store else { return Ok(Err(NotYet::Store)) };
    let names = Names {
        cluster: cluster_name.clone(),
        namespace: namespace.clone(),
        tls: cluster.spec.tls.mode == TlsMode::SelfManaged,
        claim_suffix: String::new(),
    };
    let owner = cluster.uid().unwrap_or_default();
    let chosen = choose_member(kubernetes, &names, &owner, backup.spec.from).await?;
    let Some((member, address)) = chosen else { return Ok(Err(NotYet::Member)) };
    let uid = backup.uid().unwrap_or_default();
    let folder = manifest::folder(&namespace, cluster_name, &backup.name_any(), &uid);
    status.store = Some(store.clone());
    status.pull_secrets = cluster.spec.image.pull_secrets.clone();
    status.manifest = Some(manifest::manifest_path(&folder));
    status.member = Some(names.member(member));
    let mut arguments = vec![
        "agent".to_owned(),
        "backup".to_owned(),
        format!("--folder={folder}"),
        format!("--backup-uid={uid}"),
        format!("--cluster={cluster_name}"),
        format!("--member={}", names.member(member)),
        format!("--endpoint={address}"),
        format!("--server-name={}", names.host(member)),
    ];
    if names.tls {
        arguments.push(format!("--tls-dir={TLS_MOUNT}"));
    }
    Ok(Ok(job(
        backup,
        JobOrder {
            name: backup.name_any(),
            image: &context.agent_image,
            arguments,
            store: &store,
            pull_secrets: &status.pull_secrets,
            client_secret: names.tls.then(|| format!("{cluster_name}-client-tls")),
        },
    )))
}

/// A voter that serves: the follower that is least behind, unless the leader is wanted.
async fn choose_member(
    kubernetes: &Kubernetes,
    names: &Names,
    owner: &str,
    source: BackupSource,
) -> Result<Option<(Serial, String)>, KubernetesError> {
    let labels = selector_text(&member_selector(&names.cluster));
    let members = kubernetes.list::<EtcdMember>(&names.namespace, &labels).await?;
    let mut fit: Vec<(bool, i64, i64, String)> = members
        .iter()
        .filter(|member| is_owned_by(*member, owner))
        .filter_map(|member| {
            let status = member.status.as_ref()?;
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready")?;
            let votes = status.role == Some(MemberRole::Voter);
            let leads = status.leader == Some(true);
            let wanted = leads == (source == BackupSource::Leader);
            (votes && ready.status == "True").then_some((
                !wanted,
                status.lag_entries.unwrap_or(i64::MAX),
                member.spec.serial,
                member.uid().unwrap_or_default(),
            ))
        })
        .collect();
    fit.sort_unstable();
    for (_, _, serial, uid) in fit {
        let serial = Serial(serial);
        let pod = kubernetes.get::<Pod>(&names.namespace, &names.member(serial)).await?;
        let pod = pod.filter(|pod| is_owned_by(pod, &uid));
        if let Some(ip) = pod.and_then(|pod| pod.status?.pod_ip) {
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            return Ok(Some((serial, format!("{}://{ip}:{CLIENT_PORT}", names.scheme()))));
        }
    }
    Ok(None)
}

// === Follow ===

async fn follow(
    context: &Context,
    backup: &EtcdBackup,
    running: &Job,
) -> Result<Action, KubernetesError> {
    let conditions = running.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ended =
        |kind: &str| conditions.clone().find(|c| c.type_ == kind && c.status == "True").cloned();
    let (complete, failed) = (ended("Complete"), ended("Failed"));
    if complete.is_none() && failed.is_none() {
        return Ok(Action::requeue(WAITING));
    }
    let report = agent_report(&context.kubernetes, running).await?;
    let mut status = backup.status.clone().unwrap_or_default();
    let generation = backup.metadata.generation;
    let event = match (complete, report) {
        (Some(_), Some(AgentReport::Backup(manifest))) => match mismatch(backup, &manifest) {
            None => succeed(&mut status, generation, *manifest),
            Some(what) => fail(&mut status, generation, what),
        },
        (Some(_), _) => {
            // The Pod is gone before its message was read. The agent finds the manifest in the
            // store and says so again.
            let namespace = backup.namespace().unwrap_or_default();
            let (name, uid) = (running.name_any(), running.uid().unwrap_or_default());
            context.kubernetes.delete::<Job>(&namespace, &name, &uid).await?;
            return Ok(Action::requeue(SOON));
        }
        (None, Some(AgentReport::Failed { error })) => fail(&mut status, generation, error),
        (None, _) => {
            let message = failed.and_then(|failed| failed.message).unwrap_or_default();
            fail(&mut status, generation, message)
        }
    };
    write(context, backup, &status).await?;
    context.publish(&event, &backup.object_ref(&())).await;
    Ok(Action::await_change())
}

/// What in the manifest is not of this backup. The Pod's message is all that the operator hears of the
/// Job, and a recovery will trust what it says.
fn mismatch(backup: &EtcdBackup, manifest: &Manifest) -> Option<String> {
    let status = backup.status.as_ref();
    let path = status.and_then(|status| status.manifest.as_deref()).unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let uid = backup.uid().unwrap_or_default();
    let expected = [
        ("backup", manifest.backup_uid.clone(), uid),
        ("cluster", manifest.cluster.clone(), backup.spec.cluster_ref.name.clone()),
        ("snapshot", manifest.snapshot.clone(), manifest::snapshot_path(folder)),
        ("format", manifest.format.to_string(), manifest::FORMAT.to_string()),
    ];
    let wrong = expected.into_iter().find(|(_, found, wanted)| found != wanted);
    if let Some((what, found, wanted)) = wrong {
        return Some(format!("the Job reports a manifest of {what} {found:?}, not {wanted:?}"));
    }
    (manifest.size_bytes == 0 || manifest.revision < 1)
        .then(|| "the Job reports a snapshot of nothing".to_owned())
}

fn succeed(status: &mut EtcdBackupStatus, generation: Option<i64>, manifest: Manifest) -> Event {
    let note = format!("revision {} in {} bytes", manifest.revision, manifest.size_bytes);
    status.cluster_id = Some(manifest.cluster_id);
    status.revision = Some(manifest.revision);
    status.size_bytes = i64::try_from(manifest.size_bytes).ok();
    status.sha256 = Some(manifest.sha256);
    status.server_version = Some(manifest.server_version);
    let started_at = status.started_at.as_ref().map_or(manifest.started_at, |time| time.0);
    status.duration_seconds = Some(manifest.completed_at.duration_since(started_at).as_secs());
    status.completed_at = Some(Time(manifest.completed_at));
    let (now, message) = (Timestamp::now(), note.clone());
    let conditions = &mut status.conditions;
    condition(conditions, generation, "Complete", Some(true), "Succeeded", message, now);
    event("BackupSucceeded", EventType::Normal, "Backup", note)
}

fn fail(status: &mut EtcdBackupStatus, generation: Option<i64>, error: String) -> Event {
    let now = Timestamp::now();
    let conditions = &mut status.conditions;
    condition(conditions, generation, "Complete", Some(false), "Failed", error.clone(), now);
    condition(conditions, generation, "Failed", Some(true), "JobFailed", error.clone(), now);
    event("BackupFailed", EventType::Warning, "Backup", error)
}

fn event(reason: &str, type_: EventType, action: &str, note: String) -> Event {
    let note = Some(note.chars().take(1000).collect());
    Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None }
}

/// Labels of the Pods of a Job that the operator made.
fn pods_of_job(job: &str) -> String {
    format!("{JOB_LABEL}={job}")
}

/// The termination message of the Job's newest Pod.
async fn agent_report(
    kubernetes: &Kubernetes,
    job: &Job,
) -> Result<Option<AgentReport>, KubernetesError> {
    let namespace = job.namespace().unwrap_or_default();
    let mut pods = kubernetes.list::<Pod>(&namespace, &pods_of_job(&job.name_any())).await?;
    pods.retain(|pod| is_owned_by(pod, &job.uid().unwrap_or_default()));
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let messages = pods.iter().rev().filter_map(|pod| {
        let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
        let terminated = containers.first()?.state.as_ref()?.terminated.as_ref()?;
        serde_json::from_str(terminated.message.as_deref()?).ok()
    });
    Ok(messages.into_iter().next())
}

// === End ===

async fn finalize(context: &Context, backup: &EtcdBackup) -> Result<Action, KubernetesError> {
    if !backup.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let namespace = backup.namespace().unwrap_or_default();
    let stored = backup.status.clone().and_then(|status| status.store.zip(status.manifest));
    if let Some((store, manifest)) = stored {
        // Nothing may still be writing what is to be deleted.
        let (name, uid) = (backup.name_any(), backup.uid().unwrap_or_default());
        context.kubernetes.delete_owned::<Job>(&namespace, &name, &uid).await?;
        if let Some(pod) = writing_pod(&context.kubernetes, backup).await? {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let note = format!(
                "stored objects are not deleted yet: Pod {} on node {} may still write some",
                pod.name_any(),
                node.unwrap_or("none")
            );
            tell(context, backup, ("Deleted", "BackupRuns"), "Delete", note).await?;
            return Ok(Action::requeue(context.memory.back_off(&uid, "BackupRuns", SOON)));
        }
        match delete_stored(context, backup, &store, &manifest).await? {
            Deletion::Done => {}
            Deletion::Running => return Ok(Action::requeue(WAITING)),
            Deletion::HeldUp(why) => {
                let note = format!(
                    "stored objects are not deleted: {why}; or remove the finalizer {FINALIZER} to keep the objects"
                );
                tell(context, backup, ("Deleted", "DeletionFailed"), "Delete", note).await?;
                return Ok(Action::requeue(WAITING));
            }
        }
    }
    context.kubernetes.let_go(backup, FINALIZER).await?;
    Ok(Action::await_change())
}

/// A Pod of the backup's Job, which goes some time after the Job. As long as there is one, its agent may
/// upload: what it writes after the deletion nobody would delete any more.
async fn writing_pod(
    kubernetes: &Kubernetes,
    backup: &EtcdBackup,
) -> Result<Option<Pod>, KubernetesError> {
    let (namespace, name) = (backup.namespace().unwrap_or_default(), backup.name_any());
    let pods = kubernetes.list::<Pod>(&namespace, &pods_of_job(&name)).await?;
    // By labels of ours: the uid of a Job that is gone is not known any more.
    let ours = |pod: &Pod| pod.labels().get(BACKUP_LABEL) == Some(&name);
    let has_ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    Ok(pods.into_iter().find(|pod| ours(pod) && !has_ended(pod)))
}

/// How far the deletion of what is stored has come.
enum Deletion {
    Running,
    Done,
    /// It needs somebody; it is tried again all the same.
    HeldUp(String),
}

/// Runs the Job that deletes the objects; a namespace that is going away takes no more Jobs, and
/// then the objects stay rather than the namespace hanging.
async fn delete_stored(
    context: &Context,
    backup: &EtcdBackup,
    store: &BackupStore,
    manifest: &str,
) -> Result<Deletion, KubernetesError> {
    let (namespace, uid) =
        (backup.namespace().unwrap_or_default(), backup.uid().unwrap_or_default());
    // By the uid: `<name>-delete` may be the name of another backup, and so that of its Job.
    let name = format!("backup-delete-{uid}");
    let Some(running) = context.kubernetes.get::<Job>(&namespace, &name).await? else {
        let arguments = vec![
            "agent".to_owned(),
            "delete".to_owned(),
            format!("--manifest={manifest}"),
            format!("--backup-uid={uid}"),
        ];
        let image = &context.agent_image;
        let status = backup.status.as_ref();
        let pull_secrets = status.map_or(&[][..], |status| &status.pull_secrets);
        let order = JobOrder { name, image, arguments, store, pull_secrets, client_secret: None };
        return match context.kubernetes.create_owned(&namespace, &job(backup, order)).await {
            Ok(()) => Ok(Deletion::Running),
            Err(error) if error.is_namespace_ending() => Ok(Deletion::Done),
            // A quota is raised, a policy is changed: until then the objects are not forgotten.
            Err(error) if error.is_denied() => Ok(Deletion::HeldUp(error.to_string())),
            Err(error) => Err(error),
        };
    };
    if !is_owned_by(&running, &uid) {
        return Ok(Deletion::HeldUp(NotYet::Job(name).to_string()));
    }
    let conditions = running.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ended = |kind: &str| conditions.clone().find(|c| c.type_ == kind && c.status == "True");
    if let Some(failed) = ended("Failed") {
        let now = Timestamp::now();
        let since = failed.last_transition_time.as_ref().map_or(now, |time| time.0);
        if now.duration_since(since) >= DELETION_PAUSE {
            let job_uid = running.uid().unwrap_or_default();
            context.kubernetes.delete::<Job>(&namespace, &name, &job_uid).await?;
            return Ok(Deletion::Running);
        }
        let report = agent_report(&context.kubernetes, &running).await?;
        return Ok(Deletion::HeldUp(format!("{report:?}; the Job {name} runs again in a while")));
    }
    Ok(if ended("Complete").is_some() { Deletion::Done } else { Deletion::Running })
}

/// That a condition does not hold and why, with an event: once for each reason.
async fn tell(
    context: &Context,
    backup: &EtcdBackup,
    (kind, reason): (&'static str, &'static str),
    action: &str,
    note: String,
) -> Result<(), KubernetesError> {
    let mut status = backup.status.clone().unwrap_or_default();
    let (generation, now) = (backup.metadata.generation, Timestamp::now());
    let (conditions, message) = (&mut status.conditions, note.clone());
    condition(conditions, generation, kind, Some(false), reason, message, now);
    if backup.status.as_ref() == Some(&status) {
        return Ok(());
    }
    write(context, backup, &status).await?;
    let event = event(reason, EventType::Warning, action, note);
    context.publish(&event, &backup.object_ref(&())).await;
    Ok(())
}

/// Returns the backup with what is now its status.
async fn write(
    context: &Context,
    backup: &EtcdBackup,
    status: &EtcdBackupStatus,
) -> Result<EtcdBackup, KubernetesError> {
    let mut status = status.clone();
    status.observed_generation = backup.metadata.generation;
    if backup.status.as_ref() == Some(&status) {
        return Ok(backup.clone());
    }
    context.kubernetes.apply_status(backup, &status).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_believed_only_if_it_is_of_this_backup() {
        let folder = manifest::folder("ns", "main", "now", "uid");
        let backup: EtcdBackup = serde_json::from_value(json!({
            "metadata": {"name": "now", "namespace": "ns", "uid": "uid"},
            "spec": {"clusterRef": {"name": "main"}},
            "status": {"manifest": manifest::manifest_path(&folder)},
        }))
        .unwrap();
        let good = manifest::sample_manifest(&folder, 544, String::new());
        assert_eq!(mismatch(&backup, &good), None);
        for (bad, said) in [
            (Manifest { backup_uid: "other".to_owned(), ..good.clone() }, "of backup"),
            (Manifest { cluster: "other".to_owned(), ..good.clone() }, "of cluster"),
            (Manifest { snapshot: "ns/main/x/snapshot.db".to_owned(), ..good.clone() }, "snapshot"),
            (Manifest { format: 9, ..good.clone() }, "format \"9\""),
            (Manifest { size_bytes: 0, ..good.clone() }, "of nothing"),
            (Manifest { revision: 0, ..good.clone() }, "of nothing"),
        ] {
            let wrong = mismatch(&backup, &bad).expect(said);
            assert!(wrong.contains(said), "{wrong}");
        }
    }
}
