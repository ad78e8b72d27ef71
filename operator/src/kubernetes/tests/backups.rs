//! Backups beside the Jobs and the backups of others, and in namespaces that take no more Jobs.

use kube::runtime::controller;

use super::*;

/// A backup that was taken and is being deleted, whose objects lie in a bucket.
fn seed_deleted_backup(server: &ApiServer) {
    let store = json!({"type": "S3", "s3": {"bucket": "backups"}});
    let backup = json!({
        "kind": "EtcdBackup",
        "spec": {"clusterRef": {"name": "live"}, "deletionPolicy": "Delete"},
        "status": {
            "store": store, "manifest": "f/manifest.json", "pullSecrets": [{"name": "registry"}],
        },
    });
    seed(server, "etcdbackups", "now", backup);
    let mut object = server.object(BACKUPS, "now").unwrap();
    object["metadata"]["finalizers"] = json!([crate::cluster::build::FINALIZER]);
    server.put(BACKUPS, "now", object);
    server.mark_deleted(BACKUPS, "now");
}

fn complete_job(name: &str, owner_uid: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("job-{name}"),
            "resourceVersion": "1", "ownerReferences": [owner(owner_uid)],
        },
        "status": {"conditions": [{"type": "Complete", "status": "True"}]},
    })
}

fn condition_of(server: &ApiServer, kind: &str) -> Value {
    let object = server.object(BACKUPS, "now").expect("the backup is there");
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == kind).unwrap_or_default()
}

/// The Job is deleted at once, its Pod when its agent has ended. What that still writes is to be deleted as well.
#[tokio::test(start_paused = true)]
async fn what_is_stored_is_deleted_after_the_last_pod_that_could_write_it() {
    let server = ApiServer::default();
    let context = context(&server, &Lease::without_election());
    seed_deleted_backup(&server);
    server.put(JOBS, "now", complete_job("now", "uid-of-now"));
    let pod = |backup: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{backup}-x"), "namespace": NAMESPACE, "uid": "pod",
                "labels": {"etcd.keelson.dev/job": "now", "etcd.keelson.dev/backup": backup},
                "ownerReferences": [owner("job-now")],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "agent", "image": "i"}]},
        })
    };
    server.put(PODS, "now-x", pod("now"));
    server.put(PODS, "other-x", pod("other"));
    let mut first = pod("now");
    first["metadata"]["name"] = json!("now-a");
    first["status"] = json!({"phase": "Failed"});
    server.put(PODS, "now-a", first);
    for seconds in [3, 3, 6, 12] {
        let backup = serde_json::from_value(server.object(BACKUPS, "now").unwrap()).unwrap();
        let next = backup::reconcile(Arc::new(backup), context.clone()).await.unwrap();
        let expected = Duration::from_secs(seconds);
        assert_eq!(next, controller::Action::requeue(expected));
        tokio::time::advance(expected).await;
    }
    assert_eq!(server.object(JOBS, "now"), None);
    assert_eq!(server.object(JOBS, "backup-delete-uid-of-now"), None);
    let deleted = condition_of(&server, "Deleted");
    assert_eq!(deleted["reason"], "BackupRuns");
    assert!(deleted["message"].to_string().contains("Pod now-x on node n1"), "{deleted}");

    server.remove(PODS, "now-x");
    reconcile_backup(&server, &context).await;
    assert!(server.object(JOBS, "backup-delete-uid-of-now").is_some());
}

/// `now-delete` is the Job of a backup of that name, or of an older `now`.
#[tokio::test]
async fn a_backup_goes_only_after_its_own_job_has_deleted_what_is_stored() {
    let server = ApiServer::default();
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    seed_deleted_backup(&server);
    let others = [complete_job("now", "cron"), complete_job("now-delete", "uid-of-now-delete")];
    for job in &others {
        server.put(JOBS, job["metadata"]["name"].as_str().unwrap(), job.clone());
    }
    for _ in 0..3 {
        reconcile_backup(&server, &context).await;
    }
    assert!(server.object(BACKUPS, "now").is_some(), "nothing has deleted what is stored");
    for job in &others {
        assert_eq!(
            server.object(JOBS, job["metadata"]["name"].as_str().unwrap()).as_ref(),
            Some(job)
        );
    }
    let own = "backup-delete-uid-of-now";
    let mut job = server.object(JOBS, own).expect("a Job of its own");
    assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], "uid-of-now");
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(
        pod["containers"][0]["args"],
        json!(["agent", "delete", "--manifest=f/manifest.json", "--backup-uid=uid-of-now"])
    );
    // The cluster may be gone by now, and what its image was pulled with.
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    server.put(JOBS, own, job);
    reconcile_backup(&server, &context).await;
    assert_eq!(server.object(BACKUPS, "now"), None);
}

/// A store that was out of order, or a credential that had run out, must not hold a backup for ever.
#[tokio::test]
async fn what_could_not_be_deleted_is_tried_again_after_a_while() {
    let server = ApiServer::default();
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    seed_deleted_backup(&server);
    reconcile_backup(&server, &context).await;
    let own = "backup-delete-uid-of-now";
    let fail = |minutes_ago: i64| {
        let mut job = server.object(JOBS, own).expect("a Job that deletes");
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes_ago);
        job["status"] = json!({"conditions": [
            {"type": "Failed", "status": "True", "lastTransitionTime": at.to_string()},
        ]});
        server.put(JOBS, own, job);
    };
    fail(9);
    reconcile_backup(&server, &context).await;
    assert_eq!(condition_of(&server, "Deleted")["reason"], "DeletionFailed");
    assert!(server.object(JOBS, own).is_some_and(|job| !job["status"].is_null()), "too early");
    fail(11);
    for _ in 0..2 {
        reconcile_backup(&server, &context).await;
    }
    let again = server.object(JOBS, own).expect("another Job");
    assert!(again["status"].is_null(), "{again}");
}

#[tokio::test]
async fn the_job_of_somebody_else_is_not_believed_and_is_named() {
    let server = ApiServer::default();
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    seed_deleted_backup(&server);
    let own = "backup-delete-uid-of-now";
    server.put(JOBS, own, complete_job(own, "other"));
    reconcile_backup(&server, &context).await;
    let held_up = condition_of(&server, "Deleted");
    assert_eq!(held_up["status"], "False");
    let said = held_up["message"].as_str().unwrap();
    assert!(said.contains(&format!("Job {own} exists and is not of this backup")), "{said}");

    // The same for the Job that takes one.
    let server = ApiServer::default();
    let context = self::context(&server, &lease);
    seed_world(&server);
    let job = complete_job("now", "cron");
    server.put(JOBS, "now", job.clone());
    for _ in 0..3 {
        reconcile_backup(&server, &context).await;
    }
    assert_eq!(server.object(JOBS, "now"), Some(job));
    let waits = condition_of(&server, "Complete");
    assert_eq!((&waits["status"], &waits["reason"]), (&json!("False"), &json!("Waiting")));
    assert_eq!(waits["message"], "Job now exists and is not of this backup");
}

#[tokio::test]
async fn only_a_namespace_that_ends_makes_a_backup_forget_what_is_stored() {
    let (lease, ending) = (
        Lease::without_election(),
        json!([{
            "reason": "NamespaceTerminating", "message": "namespace ns is being terminated",
            "field": "metadata.namespace",
        }]),
    );
    for (causes, stays) in [(json!([]), true), (ending, false)] {
        let server = ApiServer::default();
        let context = context(&server, &lease);
        seed_deleted_backup(&server);
        server.forbid_creation(JOBS, "exceeded quota: jobs", &causes);
        for _ in 0..3 {
            reconcile_backup(&server, &context).await;
        }
        assert_eq!(server.object(BACKUPS, "now").is_some(), stays, "{causes}");
        let told = server.writes().iter().filter(|write| write.contains("/events")).count();
        assert_eq!(told, usize::from(stays), "{causes}");
        if stays {
            let held_up = condition_of(&server, "Deleted");
            assert!(held_up["message"].to_string().contains("exceeded quota"), "{held_up}");
        }
    }
}

/// The newest is being deleted, by a user or with all of them: then the one before it is the newest.
#[tokio::test]
async fn a_backup_that_is_being_deleted_pushes_no_other_out() {
    let server = ApiServer::default();
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    let spec = json!({
        "clusterRef": {"name": "live"}, "schedule": "@yearly", "retention": {"keepLast": 1},
    });
    seed(
        &server,
        "etcdbackupschedules",
        "strict",
        json!({"kind": "EtcdBackupSchedule", "spec": spec}),
    );
    for (name, at) in [("oldest", 1), ("older", 2), ("newest", 3)] {
        let completed = json!({"type": "Complete", "status": "True", "reason": "Succeeded",
            "message": "", "lastTransitionTime": "2026-11-22T00:00:00Z"});
        let backup = json!({"kind": "EtcdBackup", "spec": {"clusterRef": {"name": "live"}}, "status": {
            "completedAt": format!("2026-11-2{at}T00:00:00Z"), "conditions": [completed],
        }});
        seed(&server, "etcdbackups", name, backup);
        let mut object = server.object(BACKUPS, name).unwrap();
        object["metadata"]["labels"] = json!({"etcd.keelson.dev/schedule": "strict"});
        object["metadata"]["finalizers"] = json!(["example.com/audit"]);
        server.put(BACKUPS, name, object);
    }
    server.mark_deleted(BACKUPS, "newest");
    let schedule = server.object(&format!("{ETCD}/etcdbackupschedules"), "strict").unwrap();
    let schedule: EtcdBackupSchedule = serde_json::from_value(schedule).unwrap();
    backup::schedule_controller::reconcile(Arc::new(schedule), context).await.unwrap();
    let going = |name: &str| {
        !server.object(BACKUPS, name).unwrap()["metadata"]["deletionTimestamp"].is_null()
    };
    assert!(going("oldest"), "the rule keeps one");
    assert!(!going("older"), "it is the only one that stays");
    let schedule = server.object(&format!("{ETCD}/etcdbackupschedules"), "strict").unwrap();
    assert_eq!(schedule["status"]["lastSuccessfulTime"], "2026-11-22T00:00:00Z");
}

/// The operator died, or somebody else wrote, between the two writes of a start. The run is not to be replaced by
/// itself: it would be gone, under a name that is taken.
#[tokio::test]
async fn a_run_whose_start_was_not_noted_is_not_replaced_by_itself() {
    let server = ApiServer::default();
    let context = context(&server, &Lease::without_election());
    let schedules = format!("{ETCD}/etcdbackupschedules");
    seed(
        &server,
        "etcdbackupschedules",
        "often",
        json!({"kind": "EtcdBackupSchedule", "spec": {
            "clusterRef": {"name": "live"}, "schedule": "0 0 1 1 *", "immediate": true,
            "concurrencyPolicy": "Replace",
        }}),
    );
    // One of an earlier run is what gives way.
    let earlier = json!({"kind": "EtcdBackup", "spec": {"clusterRef": {"name": "live"}}});
    seed(&server, "etcdbackups", "often-1", earlier);
    let mut object = server.object(BACKUPS, "often-1").unwrap();
    object["metadata"]["labels"] = json!({"etcd.keelson.dev/schedule": "often"});
    server.put(BACKUPS, "often-1", object);
    let reconcile = async || {
        let schedule = serde_json::from_value(server.object(&schedules, "often").unwrap()).unwrap();
        backup::schedule_controller::reconcile(Arc::new(schedule), context.clone()).await
    };
    let run = || server.object(BACKUPS, "often-1795305600").expect("the run of the creation");
    server.refuse_next_status_in(&schedules);
    assert!(reconcile().await.unwrap_err().is_conflict());
    assert_eq!(server.object(BACKUPS, "often-1"), None);
    let started = run();
    for _ in 0..2 {
        reconcile().await.unwrap();
        assert_eq!(run(), started);
        let status = &server.object(&schedules, "often").unwrap()["status"];
        assert_eq!(status["lastScheduledTime"], "2026-11-22T00:00:00Z");
        assert_eq!(status["active"], json!(["often-1795305600"]));
    }
}

#[tokio::test]
async fn only_the_pod_of_a_member_of_the_cluster_is_asked_for_a_snapshot() {
    let lease = Lease::without_election();
    for of_another in [None, Some(MEMBERS), Some(PODS)] {
        let server = ApiServer::default();
        let context = context(&server, &lease);
        seed_world(&server);
        let mut cluster = server.object(CLUSTERS, "live").unwrap();
        cluster["spec"]["image"]["pullSecrets"] = json!([{"name": "registry"}]);
        server.put(CLUSTERS, "live", cluster);
        if let Some(place) = of_another {
            let mut object = server.object(place, "live-1").unwrap();
            object["metadata"]["ownerReferences"] = json!([owner("other")]);
            server.put(place, "live-1", object);
        }
        for _ in 0..3 {
            reconcile_backup(&server, &context).await;
        }
        let complete = condition_of(&server, "Complete");
        let job = server.object(JOBS, "now");
        let started = job.is_some();
        if let Some(job) = job {
            let secrets = &job["spec"]["template"]["spec"]["imagePullSecrets"];
            assert_eq!(*secrets, json!([{"name": "registry"}]));
        }
        assert_eq!(started, of_another.is_none(), "{of_another:?}: {complete}");
        let waits = complete["message"] == "no voting member answers";
        assert_eq!(waits, of_another.is_some(), "{of_another:?}: {complete}");
    }
}

/// As with a quota that is used up: the backup says so once, and is taken when there is room.
#[tokio::test(start_paused = true)]
async fn a_backup_whose_job_is_refused_says_so_and_tries_again_at_longer_and_longer_intervals() {
    let server = ApiServer::default();
    let lease = Lease::without_election();
    let context = context(&server, &lease);
    seed_world(&server);
    server.forbid_creation(JOBS, "exceeded quota: jobs", &json!([]));
    reconcile_backup(&server, &context).await; // The finalizer.
    for seconds in [15, 15, 30, 60, 60] {
        let backup = serde_json::from_value(server.object(BACKUPS, "now").unwrap()).unwrap();
        let next = backup::reconcile(Arc::new(backup), context.clone()).await.unwrap();
        let expected = Duration::from_secs(seconds);
        assert_eq!(next, controller::Action::requeue(expected));
        let refused = condition_of(&server, "Complete");
        assert_eq!(
            (&refused["status"], &refused["reason"]),
            (&json!("False"), &json!("JobRefused"))
        );
        assert!(refused["message"].to_string().contains("exceeded quota: jobs"), "{refused}");
        tokio::time::advance(expected).await;
    }
    let told = |part: &str| server.writes().iter().filter(|write| write.contains(part)).count();
    assert_eq!(told("/events"), 1);
    assert_eq!(told("/jobs"), 5);
    assert_eq!(told("/etcdbackups/now/status"), 2, "the path, and then why nothing is there");

    server.allow_creation();
    reconcile_backup(&server, &context).await;
    assert!(server.object(JOBS, "now").is_some());
    let running = condition_of(&server, "Complete");
    assert_eq!((&running["status"], &running["reason"]), (&json!("False"), &json!("Running")));
}
