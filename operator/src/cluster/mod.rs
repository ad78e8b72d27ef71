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
pub mod pace;
pub mod plan;
pub mod report;
pub mod security;
#[cfg(test)]
mod simulation;
pub mod validate;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::{Resource, ResourceExt, runtime::controller};

use crate::{
    backup::view::Backups,
    context::Context,
    crd::{EtcdCluster, EtcdClusterStatus},
    etcd::GrpcAdmin,
    kubernetes::KubernetesError,
};
use act::{ActError, Hands};
use invariants::Refusal;
use observe::Observation;
use pace::BUSY;
use plan::{Blocked, Plan};
use report::Outcome;
use security::{CertificateEnd, Certificates, SecurityError};
use validate::{InvalidSpec, Validated};

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
        context.metrics.forget(&namespace, &name);
        context.memory.forget(&cached.uid().unwrap_or_default());
        return Ok(controller::Action::await_change());
    };
    if !context.lease.is_held() {
        return Ok(controller::Action::requeue(BUSY));
    }
    let now = Timestamp::now();
    if cluster.metadata.deletion_timestamp.is_some() {
        return end(&context, &cluster, now).await;
    }
    // Of a cluster that has always been paused there is nothing to take apart.
    let held = cluster.finalizers().iter().any(|finalizer| finalizer == build::FINALIZER);
    if !held && !cluster.spec.paused {
        kubernetes.hold(&cluster, build::FINALIZER).await?;
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
    match result {
        Ok(next) => Ok(controller::Action::requeue(next)),
        Err(error) => {
            report_failure(&context, &cluster, &error, now).await?;
            Err(error)
        }
    }
}

/// A pass over a cluster that is being deleted; what holds it up is in its status while it lasts.
async fn end(
    context: &Context,
    cluster: &EtcdCluster,
    now: Timestamp,
) -> Result<controller::Action, PassError> {
    match finalize::finalize(&context.kubernetes, cluster).await {
        Ok(true) => {
            let namespace = cluster.namespace().unwrap_or_default();
            context.metrics.forget(&namespace, &cluster.name_any());
            context.memory.forget(&cluster.uid().unwrap_or_default());
            Ok(controller::Action::await_change())
        }
        // Objects that go tell it by going; this is for those that do not tell.
        Ok(false) => {
            let uid = cluster.uid().unwrap_or_default();
            let waited = context.memory.standing(&uid, "ending");
            Ok(controller::Action::requeue(waited.clamp(BUSY, pace::SETTLED)))
        }
        Err(error) => {
            let error = PassError::from(error);
            report_failure(context, cluster, &error, now).await?;
            Err(error)
        }
    }
}

/// Returns when to look again.
async fn pass(
    context: &Context,
    cluster: &mut EtcdCluster,
    validated: &Validated,
    now: Timestamp,
) -> Result<Duration, PassError> {
    let kubernetes = &context.kubernetes;
    let (certificates, taken) = secure(context, cluster, validated, now).await?;
    let etcd = GrpcAdmin::new(certificates.as_ref().map(|certificates| certificates.tls.clone()));
    let mut observation = observe::observe(kubernetes, &etcd, cluster, validated, now).await?;
    let mut plan = plan::plan(&validated.desired, &observation.observed, now);
    let hands = Hands {
        kubernetes,
        etcd: &etcd,
        lease: &context.lease,
        validated,
        authorities: certificates.as_ref().map(|certificates| &certificates.authorities),
        agent_image: &context.agent_image,
        now,
    };
    let before = cluster.status.clone().unwrap_or_default();
    let unusable: Vec<String> =
        taken.iter().filter(|error| !error.is_not_ours()).map(ToString::to_string).collect();
    let mut failures: Vec<ActError> = taken.into_iter().map(ActError::from).collect();
    if !validated.desired.paused {
        failures.extend(build_services(context, validated, &observation).await);
    }
    for ensure in &plan.ensures {
        if let Err(failure) = hands.ensure(cluster, &mut observation, ensure).await {
            tracing::warn!(cluster = validated.desired.names.cluster, ?ensure, %failure, "not made");
            failures.push(failure);
        }
    }
    for blocked in failures.iter().filter_map(not_ours) {
        if !plan.blocked.contains(&blocked) {
            plan.blocked.push(blocked);
        }
    }
    let mut in_the_way = failures.iter().all(is_in_the_way);
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let mut error = (!failures.is_empty()).then(|| failures.join("; "));
    if let Some(action) = plan.action.clone() {
        let result = hands.act(cluster, &action).await;
        in_the_way = result.as_ref().is_err_and(is_in_the_way);
        plan.blocked.extend(moved_on(&action, &result));
        error = tell(context, cluster, validated, &action, &result).await.or(error);
    }
    let known = certificates.as_ref().map_or(&[][..], |certificates| &certificates.ends);
    let certificates = (validated.desired.names.tls.then_some(known), unusable);
    report(
        context,
        cluster,
        validated,
        &before,
        &observation,
        &plan,
        error.clone(),
        certificates,
        now,
    )
    .await?;
    let (memory, uid) = (&context.memory, &validated.uid);
    if error.is_some() && in_the_way {
        // What is done again comes with another serial.
        let doing = plan.action.as_ref().map(plan::Action::kind);
        let what = format!("{doing:?} {failures:?} {:?}", plan.blocked);
        return Ok(memory.back_off(uid, &what, BUSY));
    }
    let (observed, failed) = (&observation.observed, error.is_some());
    let waited = memory.standing(uid, &pace::standing(&plan, observed));
    Ok(pace::pause(&validated.desired, &plan, observed, failed, waited, now))
}

/// The certificates of the cluster and of its members, if it has any, and what is wrong with those of some
/// members alone: their names are taken, or they cannot be read. While it is paused they are as they are.
async fn secure(
    context: &Context,
    cluster: &EtcdCluster,
    validated: &Validated,
    now: Timestamp,
) -> Result<(Option<Certificates>, Vec<SecurityError>), PassError> {
    if !validated.desired.names.tls {
        return Ok((None, Vec::new()));
    }
    if let Some(certificates) = context.memory.certificates(&validated.uid) {
        return Ok((Some(certificates), Vec::new()));
    }
    let (kubernetes, paused) = (&context.kubernetes, validated.desired.paused);
    let formed = cluster.status.as_ref().is_some_and(|status| status.cluster_id.is_some());
    let found = match paused {
        true => security::look_at_cluster(kubernetes, validated, formed).await?,
        false => Some(security::ensure_cluster(kubernetes, validated, formed, now).await?),
    };
    let Some(mut certificates) = found else { return Ok((None, Vec::new())) };
    let mut taken = Vec::new();
    for (serial, uid) in observe::serials(kubernetes, validated).await? {
        // Members that run get theirs renewed here; new ones get theirs with their Pod.
        let member = (serial, uid.as_str());
        let ends = match paused {
            true => security::look_at_member(kubernetes, validated, member).await,
            false => {
                let authorities = &certificates.authorities;
                security::ensure_member(kubernetes, validated, authorities, member, now).await
            }
        };
        match ends {
            Ok(ends) => certificates.ends.extend(ends),
            // The others have nothing to do with it.
            Err(error) if error.is_of_one_secret() => taken.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    if taken.is_empty() {
        context.memory.remember_certificates(&validated.uid, certificates.clone());
    }
    Ok((Some(certificates), taken))
}

/// The objects that belong to the cluster as a whole; written when they changed, and now and then
/// to mend what somebody else changed. Returns what could not be made.
async fn build_services(
    context: &Context,
    validated: &Validated,
    observation: &Observation,
) -> Vec<ActError> {
    let namespace = &validated.desired.names.namespace;
    let (client, peers) = (build::client_service(validated), build::peer_service(validated));
    let budget = build::pod_disruption_budget(validated, observation.observed.electorate());
    let digest = format!("{client:?}{peers:?}{budget:?}");
    if context.memory.is_applied(&validated.uid, &digest) {
        return Vec::new();
    }
    let kubernetes = &context.kubernetes;
    let budget = async {
        match &budget {
            Some(budget) => kubernetes.apply(namespace, budget).await,
            None => {
                let (name, owner) = (&validated.desired.names.cluster, &validated.uid);
                kubernetes.delete_owned::<PodDisruptionBudget>(namespace, name, owner).await
            }
        }
    };
    let results = [
        kubernetes.apply(namespace, &peers).await,
        kubernetes.apply(namespace, &client).await,
        budget.await,
    ];
    let failures: Vec<ActError> =
        results.into_iter().filter_map(Result::err).map(ActError::from).collect();
    if failures.is_empty() {
        context.memory.remember_applied(&validated.uid, digest);
    }
    failures
}

/// Somebody else's object is where one of the cluster's has to be.
fn not_ours(failure: &ActError) -> Option<Blocked> {
    let error = of_kubernetes(failure).filter(|error| error.is_not_ours())?;
    let refusal = Refusal { rule: "NotOurs", detail: error.to_string() };
    Some(Blocked { action: "Ensure", refusal })
}

/// Trying again changes nothing as long as nobody else does something.
fn is_in_the_way(failure: &ActError) -> bool {
    of_kubernetes(failure).is_some_and(|error| error.is_not_ours() || error.is_denied())
}

fn of_kubernetes(failure: &ActError) -> Option<&KubernetesError> {
    match failure {
        ActError::Kubernetes(error) | ActError::Security(SecurityError::Kubernetes(error)) => {
            Some(error)
        }
        _ => None,
    }
}

/// An action that a second look forbade: the world moved on in between, and nothing failed. The next pass
/// decides anew.
fn moved_on(action: &plan::Action, result: &Result<(), ActError>) -> Option<Blocked> {
    let Err(ActError::Forbidden(refusal)) = result else { return None };
    Some(Blocked { action: action.kind(), refusal: refusal.clone() })
}

/// Event and metric of an action; returns what went wrong with it.
async fn tell(
    context: &Context,
    cluster: &EtcdCluster,
    validated: &Validated,
    action: &plan::Action,
    result: &Result<(), ActError>,
) -> Option<String> {
    let forbidden = matches!(result, Err(ActError::Forbidden(_)));
    let error = result.as_ref().err().map(ToString::to_string);
    let label = match (&error, forbidden) {
        (_, true) => "forbidden",
        (Some(_), false) => "error",
        (None, false) => "ok",
    };
    context.metrics.actions.with_label_values(&[action.kind(), label]).inc();
    let cluster_name = &validated.desired.names.cluster;
    tracing::info!(cluster = cluster_name, ?action, error, "action");
    if forbidden {
        return None;
    }
    let event = report::event(action, &validated.desired, error.as_deref());
    context.publish(&event, &cluster.object_ref(&())).await;
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
    (certificates, unusable): (Option<&[CertificateEnd]>, Vec<String>),
    now: Timestamp,
) -> Result<(), PassError> {
    let kubernetes = &context.kubernetes;
    let current = cluster.status.clone().unwrap_or_default();
    let names = &validated.desired.names;
    let cluster_id = current.cluster_id.clone();
    let backups = Backups::of(kubernetes, &names.namespace, &names.cluster, cluster_id).await?;
    let outcome = Outcome { plan, error, backups: &backups, certificates };
    let generation = cluster.metadata.generation;
    let mut status =
        report::cluster_status(&current, generation, validated, observation, &outcome, now);
    if !unusable.is_empty() {
        report::certificates_unusable(&mut status, generation, unusable.join("; "), now);
    }
    context.metrics.cluster(&names.namespace, &names.cluster, &status);
    let (due, mut told) = (report::are_numbers_due(&current, now), false);
    for (serial, member) in &observation.observed.members {
        let Some(object) = observation.objects.get(serial) else { continue };
        let status = report::member_status(object, member, observation, &validated.desired, now);
        if report::is_member_worth_writing(object.status.as_ref(), &status, due) {
            ignore_conflict(kubernetes.apply_status(object, &status).await)?;
            told = true;
        }
    }
    // With the numbers of the members goes the time at which they were due.
    if due && told || report::is_worth_writing(&current, &status, now) {
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
    let (generation, message) = (cluster.metadata.generation, error.to_string());
    let mut after = report::unobserved(&before, generation, message.clone(), now);
    if matches!(error, PassError::Security(error) if error.is_not_ours()) {
        report::in_the_way(&mut after, message.clone());
    }
    if matches!(
        error,
        PassError::Security(
            SecurityError::Certificate { .. }
                | SecurityError::Incomplete { .. }
                | SecurityError::AuthorityLost { .. }
                | SecurityError::Paused { .. }
        )
    ) {
        report::certificates_unusable(&mut after, generation, message, now);
    }
    write_failure(context, cluster, &before, &after).await
}

/// Once, and not with every try: only what changed is written and told.
async fn write_failure(
    context: &Context,
    cluster: &EtcdCluster,
    before: &EtcdClusterStatus,
    after: &EtcdClusterStatus,
) -> Result<(), PassError> {
    let namespace = cluster.namespace().unwrap_or_default();
    context.metrics.cluster(&namespace, &cluster.name_any(), after);
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
