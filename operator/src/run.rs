//! The operator as a process: lease, metrics and one controller per kind, until one of them ends.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::{
    StreamExt,
    future::{BoxFuture, ready},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::NamespaceResourceScope,
    runtime::{
        Controller, controller,
        events::{Recorder, Reporter},
        reflector::ObjectRef,
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::{
    backup,
    cli::RunArguments,
    cluster::{
        self,
        build::{CLUSTER_LABEL, SCHEDULE_LABEL},
    },
    context::{Context, Memory},
    crd::{EtcdBackup, EtcdBackupSchedule, EtcdCluster, EtcdMember},
    kubernetes::Kubernetes,
    leader_election::{self, Election, Lease},
    metrics::{self, Metrics},
};

/// Name of the leader lease in the operator's own namespace, where nothing else is said.
pub const LEASE_NAME: &str = "etcd-operator";
/// Next try after a pass that failed, if it is the first that failed in this way.
const RETRY: Duration = Duration::from_secs(5);

/// Runs until the lease is lost or the process is told to end.
///
/// # Errors
/// The operator cannot start, or lost its lease: the process has to end, since another may act.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let client = Client::try_default().await.context("reach the Kubernetes API")?;
    let metrics = Metrics::new().context("register metrics")?;
    let serving = metrics::serve(arguments.metrics_address, metrics.clone());
    let mut tasks: Vec<BoxFuture<'static, Result<()>>> =
        vec![Box::pin(async { serving.await.context("serve metrics") })];
    let mut place = None;
    let lease = if arguments.no_leader_election {
        Lease::without_election()
    } else {
        let identity = leader_election::identity_of_process(&arguments.identity);
        let (namespace, name) = (&arguments.namespace, &arguments.lease_name);
        let mut election = Election::new(client.clone(), namespace, name, identity);
        place = Some(election.place());
        let lease = election.lease();
        tokio::select! {
            () = election.win() => {}
            ended = &mut tasks[0] => return ended,
            () = told_to_end() => return Ok(()),
        }
        tasks.push(Box::pin(async {
            election.keep().await;
            bail!("the leader lease was lost")
        }));
        lease
    };
    let reporter = Reporter {
        controller: "etcd-operator".to_owned(),
        instance: Some(arguments.identity.clone()),
    };
    let context = Arc::new(Context {
        kubernetes: Kubernetes::new(client.clone(), lease.clone()),
        recorder: Recorder::new(client.clone(), reporter),
        lease: lease.clone(),
        metrics,
        memory: Memory::default(),
        agent_image: arguments.agent_image.clone(),
    });
    let namespaces: Vec<Option<String>> = match arguments.watch_namespaces.as_slice() {
        [] => vec![None],
        [only] if only.is_empty() => vec![None],
        several => several.iter().cloned().map(Some).collect(),
    };
    for namespace in namespaces {
        tasks.extend(controllers(&client, namespace.as_deref(), &context, arguments.concurrency));
    }
    let ended = tokio::select! {
        (ended, ..) = futures_util::future::select_all(tasks) => ended,
        () = told_to_end() => Ok(()),
    };
    lease.give_up();
    if let Some((api, name, identity)) = place.filter(|_| ended.is_ok()) {
        Election::release(api, &name, &identity).await;
    }
    ended
}

pub(crate) fn controllers(
    client: &Client,
    namespace: Option<&str>,
    context: &Arc<Context>,
    concurrency: u16,
) -> Vec<BoxFuture<'static, Result<()>>> {
    let watch = || watcher::Config::default().any_semantic();
    let config = || {
        controller::Config::default().concurrency(concurrency).debounce(Duration::from_millis(200))
    };
    let clusters = Controller::new(api::<EtcdCluster>(client, namespace), watch())
        .owns(api::<EtcdMember>(client, namespace), watch())
        .watches(api::<Pod>(client, namespace), watch().labels(CLUSTER_LABEL), cluster_of)
        .watches(
            api::<PersistentVolumeClaim>(client, namespace),
            watch().labels(CLUSTER_LABEL),
            cluster_of,
        )
        .with_config(config())
        .run(cluster::reconcile, failed, context.clone())
        .for_each({
            let context = context.clone();
            move |result| {
                forget_the_gone(result.err(), &context);
                ready(())
            }
        });
    let backups = Controller::new(api::<EtcdBackup>(client, namespace), watch())
        .owns(api::<Job>(client, namespace), watch())
        .with_config(config())
        .run(backup::reconcile, failed, context.clone())
        .for_each(async |_| ());
    let schedules = Controller::new(api::<EtcdBackupSchedule>(client, namespace), watch())
        .watches(api::<EtcdBackup>(client, namespace), watch().labels(SCHEDULE_LABEL), schedule_of)
        .with_config(config())
        .run(backup::schedule_controller::reconcile, failed, context.clone())
        .for_each(async |_| ());
    let running = |controller: BoxFuture<'static, ()>| -> BoxFuture<'static, Result<()>> {
        Box::pin(async {
            controller.await;
            bail!("a controller ended")
        })
    };
    vec![running(Box::pin(clusters)), running(Box::pin(backups)), running(Box::pin(schedules))]
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn cluster_of<K: ResourceExt>(object: K) -> Option<ObjectRef<EtcdCluster>> {
    let cluster = object.labels().get(CLUSTER_LABEL)?;
    Some(ObjectRef::new(cluster).within(&object.namespace()?))
}

fn schedule_of(backup: EtcdBackup) -> Option<ObjectRef<EtcdBackupSchedule>> {
    let schedule = backup.labels().get(SCHEDULE_LABEL)?;
    Some(ObjectRef::new(schedule).within(&backup.namespace()?))
}

fn failed<K, E>(object: Arc<K>, error: &E, context: Arc<Context>) -> controller::Action
where
    K: Resource<DynamicType = ()>,
    E: std::fmt::Display,
{
    let kind = K::kind(&());
    context.metrics.failures.with_label_values(&[&*kind]).inc();
    tracing::warn!(%kind, name = object.meta().name, namespace = object.meta().namespace, %error, "pass failed");
    let uid = object.meta().uid.as_deref().unwrap_or_default();
    controller::Action::requeue(context.memory.back_off(uid, &error.to_string(), RETRY))
}

/// A cluster without our finalizer is gone before a pass over it could see that.
fn forget_the_gone<E: std::error::Error>(
    error: Option<controller::Error<E, watcher::Error>>,
    context: &Context,
) {
    if let Some(controller::Error::ObjectNotFound(gone)) = error {
        context.metrics.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
        context.memory.forget(gone.extra.uid.as_deref().unwrap_or_default());
    }
}

/// Ends when the process is told to end.
pub(crate) async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
