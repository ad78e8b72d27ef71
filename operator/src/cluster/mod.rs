//! One pass over one cluster: validate → observe → plan → act → report.
//!
//! This controller is the only one that changes membership or deletes members' Pods, so there is
//! one order of events per cluster. A pass does not wait: it looks, does at most one disruptive
//! thing, says what it saw and did, and is called again. What a pass decided is in the cluster's
//! status before it is done; an operator that dies anywhere is continued by the next one from what
//! that one sees.
//!
//! Deliberately absent: StatefulSets. Their ordinals are not etcd identities, and their rollouts
//! know nothing of quorum.

pub mod act;
pub mod build;
pub mod finalize;
pub mod invariants;
pub mod model;
pub mod mutation;
pub mod observe;
pub mod plan;
pub mod report;
pub mod security;
#[cfg(test)]
mod simulation;
pub mod validate;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::controller};
use serde_json::json;

use crate::{
    backup,
    context::Context,
    crd::{EtcdCluster, EtcdClusterStatus},
    etcd::GrpcAdmin,
    kubernetes::KubernetesError,
};
use act::{ActError, Hands};
use observe::Observation;
use plan::Plan;
use report::Outcome;
use security::{Authorities, SecurityError};
use validate::{InvalidSpec, Validated};

/// Next pass when something is under way.
const BUSY: Duration = Duration::from_secs(2);
/// Next pass when nothing is.
const SETTLED: Duration = Duration::from_secs(15);

/// A pass that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Security(#[from] SecurityError),
}

/// One pass.
///
/// # Errors
/// The cluster could not be looked at. What could not be done is in its status instead.
pub async fn reconcile(
    cached: Arc<EtcdCluster>,
    context: Arc<Context>,
) -> Result<controller::Action, PassError> {
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let kubernetes = &context.kubernetes;
    let Some(mut cluster) = kubernetes.get::<EtcdCluster>(&namespace, &name).await? else {
        return Ok(controller::Action::await_change());
    };
    if !context.lease.is_held() {
        return Ok(controller::Action::requeue(BUSY));
    }
    let now = Timestamp::now();
    if cluster.metadata.deletion_timestamp.is_some() {
        return end(&context, &cluster, now).await;
    }
    if !cluster.finalizers().iter().any(|finalizer| finalizer == build::FINALIZER) {
        let mut finalizers = cluster.finalizers().to_vec();
        finalizers.push(build::FINALIZER.to_owned());
        kubernetes.merge_metadata(&cluster, json!({ "finalizers": finalizers })).await?;
        return Ok(controller::Action::requeue(Duration::ZERO));
    }
    let validated = match validate::validate(&cluster) {
        Ok(validated) => validated,
        Err(error) => {
            let before = cluster.status.clone().unwrap_or_default();
            let after = report::invalid(&before, cluster.metadata.generation, &error, now);
            write_failure(&context, &cluster, &before, &after).await?;
            return Err(error.into());
        }
    };
    let started = std::time::Instant::now();
    let result = pass(&context, &mut cluster, &validated, now).await;
    context.metrics.pass_seconds.observe(started.elapsed().as_secs_f64());
    let settled = match result {
        Ok(settled) => settled,
        Err(error) => {
            report_failure(&context, &cluster, &error, now).await?;
            return Err(error);
        }
    };
    Ok(controller::Action::requeue(if settled { SETTLED } else { BUSY }))
}

/// A pass over a cluster that is being deleted; what holds it up is in its status while it lasts.
async fn end(
    context: &Context,
    cluster: &EtcdCluster,
    now: Timestamp,
) -> Result<controller::Action, PassError> {
    match finalize::finalize(&context.kubernetes, cluster).await {
        Ok(true) => Ok(controller::Action::await_change()),
        Ok(false) => Ok(controller::Action::requeue(BUSY)),
        Err(error) => {
            let error = PassError::from(error);
            report_failure(context, cluster, &error, now).await?;
            Err(error)
        }
    }
}

/// Returns whether nothing is under way.
async fn pass(
    context: &Context,
    cluster: &mut EtcdCluster,
    validated: &Validated,
    now: Timestamp,
) -> Result<bool, PassError> {
    let kubernetes = &context.kubernetes;
    let (authorities, etcd) = secure(context, validated, now).await?;
    let mut observation = observe::observe(kubernetes, &etcd, cluster, validated, now).await?;
    let plan = plan::plan(&validated.desired, &observation.observed, now);
    let hands = Hands {
        kubernetes,
        etcd: &etcd,
        lease: &context.lease,
        validated,
        authorities: authorities.as_ref(),
        agent_image: &context.agent_image,
        now,
    };
    let before = cluster.status.clone().unwrap_or_default();
    let mut error = match validated.desired.paused {
        true => None,
        false => build_services(context, validated, &observation)
            .await
            .err()
            .map(|error| error.to_string()),
    };
    for ensure in &plan.ensures {
        if let Err(failure) = hands.ensure(cluster, &mut observation, ensure).await {
            tracing::warn!(cluster = validated.desired.names.cluster, ?ensure, %failure, "not made");
            error = Some(failure.to_string());
        }
    }
    if let Some(action) = &plan.action {
        let result = hands.act(cluster, action).await;
        error = tell(context, cluster, validated, action, &result).await.or(error);
    }
    report(context, cluster, validated, &before, &observation, &plan, error.clone(), now).await?;
    Ok(plan.action.is_none()
        && plan.ensures.is_empty()
        && plan.blocked.is_empty()
        && error.is_none())
}

/// Certificates, and a client that shows them.
async fn secure(
    context: &Context,
    validated: &Validated,
    now: Timestamp,
) -> Result<(Option<Authorities>, GrpcAdmin), PassError> {
    if !validated.desired.names.tls {
        return Ok((None, GrpcAdmin::new(None)));
    }
    if let Some((authorities, tls)) = context.memory.certificates(&validated.uid) {
        return Ok((Some(authorities), GrpcAdmin::new(Some(tls))));
    }
    let (authorities, tls) = security::ensure_cluster(&context.kubernetes, validated, now).await?;
    if !validated.desired.paused {
        // Members that run get theirs renewed here; new ones get theirs with their Pod.
        let members = observe::serials(&context.kubernetes, validated).await?;
        for serial in members {
            security::ensure_member(&context.kubernetes, validated, &authorities, serial, now)
                .await?;
        }
    }
    context.memory.remember_certificates(&validated.uid, authorities.clone(), tls.clone());
    Ok((Some(authorities), GrpcAdmin::new(Some(tls))))
}

/// The objects that belong to the cluster as a whole; written when they changed, and now and then
/// to mend what somebody else changed.
async fn build_services(
    context: &Context,
    validated: &Validated,
    observation: &Observation,
) -> Result<(), KubernetesError> {
    let namespace = &validated.desired.names.namespace;
    let (client, peers) = (build::client_service(validated), build::peer_service(validated));
    let budget = build::pod_disruption_budget(validated, observation.observed.voters().len());
    let digest = format!("{client:?}{peers:?}{budget:?}");
    if context.memory.is_applied(&validated.uid, &digest) {
        return Ok(());
    }
    let kubernetes = &context.kubernetes;
    kubernetes.apply(namespace, &peers).await?;
    kubernetes.apply(namespace, &client).await?;
    match &budget {
        Some(budget) => {
            kubernetes.apply(namespace, budget).await?;
        }
        None => {
            let name = &validated.desired.names.cluster;
            use k8s_openapi::api::policy::v1::PodDisruptionBudget;
            kubernetes.delete::<PodDisruptionBudget>(namespace, name, None).await?;
        }
    }
    context.memory.remember_applied(&validated.uid, digest);
    Ok(())
}

/// Event and metric of an action; returns what went wrong with it.
async fn tell(
    context: &Context,
    cluster: &EtcdCluster,
    validated: &Validated,
    action: &plan::Action,
    result: &Result<(), ActError>,
) -> Option<String> {
    let error = result.as_ref().err().map(ToString::to_string);
    let label = if error.is_some() { "error" } else { "ok" };
    context.metrics.actions.with_label_values(&[action.kind(), label]).inc();
    let cluster_name = &validated.desired.names.cluster;
    tracing::info!(cluster = cluster_name, ?action, error, "action");
    // Forbidden after a second look: the world moved on. The next pass decides anew.
    if !matches!(result, Err(ActError::Forbidden(_))) {
        let event = report::event(action, &validated.desired, error.as_deref());
        context.publish(&event, &cluster.object_ref(&())).await;
    }
    error
}

#[allow(clippy::too_many_arguments, reason = "each is another result of the pass that is reported")]
async fn report(
    context: &Context,
    cluster: &EtcdCluster,
    validated: &Validated,
    before: &EtcdClusterStatus,
    observation: &Observation,
    plan: &Plan,
    error: Option<String>,
    now: Timestamp,
) -> Result<(), PassError> {
    let kubernetes = &context.kubernetes;
    let last_backup = backup::newest(kubernetes, validated).await?;
    let outcome = Outcome { plan, error, last_backup };
    let current = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let status =
        report::cluster_status(&current, generation, validated, observation, &outcome, now);
    context.metrics.cluster(&validated.desired.names, &status);
    for (serial, member) in &observation.observed.members {
        let Some(object) = observation.objects.get(serial) else { continue };
        let status = report::member_status(object, member, observation, &validated.desired, now);
        if object.status.as_ref() != Some(&status) {
            ignore_conflict(kubernetes.apply_status(object, &status).await)?;
        }
    }
    if report::is_worth_writing(&current, &status, now) {
        ignore_conflict(kubernetes.apply_status(cluster, &status).await)?;
        for event in report::turned(before, &status) {
            context.publish(&event, &cluster.object_ref(&())).await;
        }
    }
    Ok(())
}

/// I16: a pass that saw nothing says so, instead of leaving the last status to look current.
async fn report_failure(
    context: &Context,
    cluster: &EtcdCluster,
    error: &PassError,
    now: Timestamp,
) -> Result<(), PassError> {
    let before = cluster.status.clone().unwrap_or_default();
    let after = report::unobserved(&before, cluster.metadata.generation, error.to_string(), now);
    write_failure(context, cluster, &before, &after).await
}

/// Once, and not with every try: only what changed is written and told.
async fn write_failure(
    context: &Context,
    cluster: &EtcdCluster,
    before: &EtcdClusterStatus,
    after: &EtcdClusterStatus,
) -> Result<(), PassError> {
    if after == before {
        return Ok(());
    }
    ignore_conflict(context.kubernetes.apply_status(cluster, after).await)?;
    for event in report::turned(before, after) {
        context.publish(&event, &cluster.object_ref(&())).await;
    }
    Ok(())
}

/// Somebody wrote in between: the next pass reports on what is then.
fn ignore_conflict<T>(written: Result<T, KubernetesError>) -> Result<(), KubernetesError> {
    match written {
        Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
