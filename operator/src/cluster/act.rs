//! Carries out exactly what the plan says.
//!
//! An action is done in four steps: look again, with fresh reads; ask the rules again; write the
//! intent; change the world, with a uid or resource version wherever Kubernetes takes one. Writes to
//! Kubernetes ask for the lease themselves; for etcd it is asked for here. Nothing waits here: what takes
//! time is seen by a later pass.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use types::MemberId;

use super::{
    build::{self, MemberPod, SERVING_LABEL, member_selector, selector_text},
    invariants::{self, Refusal},
    model::{Claim, Observed, Serial},
    mutation::{Mutation, ends_joining, mutations},
    observe::{Observation, observe},
    plan::{Action, Ensure},
    report::note_replacement,
    security::{self, Authorities, SecurityError},
    validate::Validated,
};
use crate::{
    backup::restore_step::{self, RestoreStepError},
    crd::{
        BootstrapMember, BootstrapStatus, EtcdCluster, EtcdClusterStatus, EtcdMember,
        EtcdMemberStatus, InitialState, OperationStatus, TargetStatus, VolumePolicy,
    },
    etcd::{EtcdAdmin, EtcdError, MemberAddress, Refusal as EtcdRefusal},
    kubernetes::{Kubernetes, KubernetesError},
    leader_election::Lease,
};

/// Everything that is needed to change something.
pub struct Hands<'a> {
    pub kubernetes: &'a Kubernetes,
    pub etcd: &'a dyn EtcdAdmin,
    pub lease: &'a Lease,
    pub validated: &'a Validated,
    pub authorities: Option<&'a Authorities>,
    /// Image of the init container that seeds a recovered cluster.
    pub agent_image: &'a str,
    pub now: Timestamp,
}

/// Something could not be done; the next pass tries again from what it then sees.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Restore(#[from] RestoreStepError),
    #[error("{0}")]
    Forbidden(Refusal),
    #[error("the leader lease is not held")]
    LeaseLost,
    #[error("member {0} has no address to be asked at")]
    NoAddress(Serial),
}

impl Hands<'_> {
    /// Makes one thing exist.
    ///
    /// # Errors
    /// It could not be made.
    pub async fn ensure(
        &self,
        cluster: &EtcdCluster,
        observation: &mut Observation,
        ensure: &Ensure,
    ) -> Result<(), ActError> {
        self.check_lease()?;
        let (names, validated) = (&self.validated.desired.names, self.validated);
        let namespace = &names.namespace;
        match ensure {
            Ensure::MemberObject { serial, initial_state } => {
                let member = build::member(validated, *serial, *initial_state, None);
                self.kubernetes.create_owned(namespace, &member).await?;
            }
            Ensure::LatchMemberId { serial, id } => {
                let latch = |status: &mut _| latch_id(status, *id, self.now);
                self.latch(observation, *serial, latch).await?;
            }
            Ensure::Claim { serial } => {
                let claim = build::claim(validated, *serial);
                if !self.kubernetes.create(namespace, &claim).await? {
                    self.check_claim(&claim).await?;
                }
            }
            Ensure::LatchClaim { serial, uid } => {
                let uid = uid.clone();
                self.latch(observation, *serial, |status| status.claim_uid = Some(uid)).await?;
            }
            Ensure::Pod { serial, new_cluster, initial_cluster } => {
                let pod = self
                    .member_pod(
                        cluster,
                        observation,
                        *serial,
                        *new_cluster,
                        initial_cluster.clone(),
                    )
                    .await?;
                if let Some(authorities) = self.authorities {
                    let member = (*serial, pod.owner_uid.as_str());
                    let (kubernetes, now) = (self.kubernetes, self.now);
                    security::ensure_member(kubernetes, validated, authorities, member, now)
                        .await?;
                }
                self.kubernetes.create_owned(namespace, &build::pod(validated, &pod)).await?;
            }
            Ensure::Serving { serial, serving, .. } => {
                if let Some(pod) = observation.pods.get(serial) {
                    let labels = json!({ "labels": { SERVING_LABEL: serving.to_string() } });
                    self.kubernetes.merge_metadata(pod, labels).await?;
                }
            }
        }
        Ok(())
    }

    /// Does the action; the cluster object is replaced by what was written of it.
    ///
    /// # Errors
    /// The action is not permitted any more, or one of its writes failed. What was written before
    /// stays, and the next pass goes on from there.
    pub async fn act(&self, cluster: &mut EtcdCluster, action: &Action) -> Result<(), ActError> {
        let fresh = observe(self.kubernetes, self.etcd, cluster, self.validated, self.now).await?;
        invariants::permit(action, &self.validated.desired, &fresh.observed, self.now)
            .map_err(ActError::Forbidden)?;
        for mutation in mutations(action) {
            self.check_lease()?;
            self.mutate(cluster, &fresh, action, &mutation).await?;
        }
        Ok(())
    }

    fn check_lease(&self) -> Result<(), ActError> {
        if self.lease.is_held() { Ok(()) } else { Err(ActError::LeaseLost) }
    }

    async fn mutate(
        &self,
        cluster: &mut EtcdCluster,
        fresh: &Observation,
        action: &Action,
        mutation: &Mutation,
    ) -> Result<(), ActError> {
        let names = &self.validated.desired.names;
        let namespace = &names.namespace;
        match mutation {
            Mutation::Intent
            | Mutation::FreezeBootstrap { .. }
            | Mutation::LatchCluster { .. }
            | Mutation::Allocate { .. } => {
                self.write_decision(cluster, &fresh.observed, action, mutation).await?;
            }
            Mutation::CreateMemberObject { serial, reason } => {
                let (state, reason) = (InitialState::Existing, Some(*reason));
                let member = build::member(self.validated, *serial, state, reason);
                self.kubernetes.create_owned(namespace, &member).await?;
            }
            Mutation::AddLearner { serial } => self.add_learner(fresh, *serial).await?,
            Mutation::Promote { id } => self.etcd.promote(voter(fresh)?, *id).await?,
            Mutation::RemoveMember { id } => self.etcd.remove(voter(fresh)?, *id).await?,
            Mutation::MoveLeader { from, to } => {
                let leader = fresh.addresses.get(from).ok_or(ActError::NoAddress(*from))?;
                self.etcd.move_leader(leader, *to).await?;
            }
            Mutation::DeletePod { serial, uid } => {
                self.kubernetes.delete::<Pod>(namespace, &names.member(*serial), uid).await?;
            }
            Mutation::DeletePodOf { serial } => {
                if let Some(pod) = fresh.pods.get(serial) {
                    let (name, uid) = (names.member(*serial), pod.uid().unwrap_or_default());
                    self.kubernetes.delete::<Pod>(namespace, &name, &uid).await?;
                }
            }
            Mutation::RetireClaim { serial } => self.retire_claim(fresh, *serial).await?,
            Mutation::DeleteMemberObject { serial } => {
                if let Some(object) = fresh.objects.get(serial) {
                    delete_member_object(self.kubernetes, object).await?;
                }
            }
        }
        Ok(())
    }

    async fn add_learner(&self, fresh: &Observation, serial: Serial) -> Result<(), ActError> {
        let peer_url = self.validated.desired.names.peer_url(serial);
        match self.etcd.add_learner(voter(fresh)?, &peer_url).await {
            Ok(_) | Err(EtcdError::Refused { reason: EtcdRefusal::PeerExists, .. }) => Ok(()),
            Err(EtcdError::Refused { reason: EtcdRefusal::Unhealthy, detail }) => {
                if let Some(object) = fresh.objects.get(&serial) {
                    let mut status = object.status.clone().unwrap_or_default();
                    status.join_refused = Some(detail);
                    self.kubernetes.apply_status(object, &status).await?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Of a claim the labels say whose it is: it has no owner.
    async fn check_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), ActError> {
        let names = &self.validated.desired.names;
        let labels = selector_text(&member_selector(&names.cluster));
        let ours = self.kubernetes.list::<PersistentVolumeClaim>(&names.namespace, &labels).await?;
        if ours.iter().any(|known| known.name_any() == claim.name_any()) {
            return Ok(());
        }
        let kind = PersistentVolumeClaim::kind(&()).into_owned();
        Err(KubernetesError::NotOurs { kind, name: claim.name_any() }.into())
    }

    /// I5 and I8: by the time this is reached, no member list has the member, and the cluster that
    /// goes on has what it had. A claim on which nothing was ever written is not kept.
    async fn retire_claim(&self, fresh: &Observation, serial: Serial) -> Result<(), ActError> {
        let Some(object) = fresh.objects.get(&serial) else { return Ok(()) };
        let policy = self.validated.spec.storage.retention.when_scaled;
        if policy == VolumePolicy::Retain && !never_started(object) {
            return Ok(());
        }
        let latched = object.status.as_ref().and_then(|status| status.claim_uid.as_deref());
        let uid = latched.or_else(|| match &fresh.observed.members.get(&serial)?.claim {
            Claim::Unlatched { uid } => Some(uid),
            _ => None,
        });
        let namespace = &self.validated.desired.names.namespace;
        if let Some(uid) = uid {
            self.kubernetes
                .delete::<PersistentVolumeClaim>(namespace, &object.spec.claim_name, uid)
                .await?;
        }
        Ok(())
    }

    async fn latch(
        &self,
        observation: &mut Observation,
        serial: Serial,
        change: impl FnOnce(&mut EtcdMemberStatus),
    ) -> Result<(), ActError> {
        let Some(object) = observation.objects.get(&serial) else { return Ok(()) };
        let mut status = object.status.clone().unwrap_or_default();
        change(&mut status);
        let written = self.kubernetes.apply_status(object, &status).await?;
        observation.objects.insert(serial, written);
        Ok(())
    }

    /// Writes a decision into the cluster's status. The resource version makes it fail if the
    /// status is not the one that the decision was made on.
    async fn write_decision(
        &self,
        cluster: &mut EtcdCluster,
        observed: &Observed,
        action: &Action,
        mutation: &Mutation,
    ) -> Result<(), ActError> {
        let mut status = cluster.status.clone().unwrap_or_default();
        decide(&mut status, self.validated, observed, action, mutation, self.now);
        *cluster = self.kubernetes.apply_status(cluster, &status).await?;
        Ok(())
    }

    async fn member_pod(
        &self,
        cluster: &EtcdCluster,
        observation: &Observation,
        serial: Serial,
        new_cluster: bool,
        initial_cluster: String,
    ) -> Result<MemberPod, ActError> {
        let status = cluster.status.clone().unwrap_or_default();
        let object = observation.objects.get(&serial);
        let id = observation.observed.members.get(&serial).and_then(|member| member.id);
        let token = status.bootstrap.map(|bootstrap| bootstrap.token).unwrap_or_default();
        let seeded =
            object.is_some_and(|object| object.spec.initial_state == InitialState::Restored);
        let restore = if seeded && new_cluster {
            let (validated, image) = (self.validated, self.agent_image);
            Some(
                restore_step::build(
                    self.kubernetes,
                    validated,
                    serial,
                    &initial_cluster,
                    &token,
                    image,
                )
                .await?,
            )
        } else {
            None
        };
        Ok(MemberPod {
            serial,
            owner_uid: object.and_then(ResourceExt::uid).unwrap_or_default(),
            new_cluster,
            initial_cluster,
            token,
            expected: observation.observed.cluster_id.zip(id),
            restore,
        })
    }
}

/// It was to join a cluster that runs, and never came so far as to write anything. Before etcd has
/// given it an id it has no Pod (I6).
fn never_started(object: &EtcdMember) -> bool {
    let status = object.status.as_ref();
    let unlisted = status.is_none_or(|status| status.member_id.is_none());
    object.spec.initial_state == InitialState::Existing
        && (unlisted || status.is_some_and(|status| status.never_started == Some(true)))
}

/// Lets the object go, and deletes it: our finalizer is what held it.
///
/// # Errors
/// The API server refused or did not answer.
pub async fn delete_member_object(
    kubernetes: &Kubernetes,
    object: &EtcdMember,
) -> Result<(), KubernetesError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    kubernetes.let_go(object, build::FINALIZER).await?;
    kubernetes.delete::<EtcdMember>(&namespace, &name, &object.uid().unwrap_or_default()).await
}

/// With the time: what a learner is given to start begins when it may, and not with its object.
pub(super) fn latch_id(status: &mut EtcdMemberStatus, id: MemberId, now: Timestamp) {
    status.member_id = Some(id.to_string());
    status.listed_since = Some(Time(now));
}

/// The next status after a decision.
fn decide(
    status: &mut EtcdClusterStatus,
    validated: &Validated,
    observed: &Observed,
    action: &Action,
    mutation: &Mutation,
    now: Timestamp,
) {
    let names = &validated.desired.names;
    // Before the action, which may be the end of the object that says so.
    note_replacement(status, observed);
    status.operation = Some(OperationStatus {
        kind: action.kind().to_owned(),
        member: action.serial().map(|serial| names.member(serial)),
        started_at: Time(now),
        reason: reason(action),
    });
    match mutation {
        Mutation::FreezeBootstrap { serials, attempt } => {
            let member = |serial: &Serial| BootstrapMember {
                name: names.member(*serial),
                serial: serial.0,
                peer_url: names.peer_url(*serial),
            };
            status.latest_member_serial = serials.iter().map(|serial| serial.0).max().unwrap_or(0);
            status.target = Some(TargetStatus::clone(&validated.target));
            status.bootstrap = Some(BootstrapStatus {
                token: token(validated, *attempt),
                attempt: *attempt,
                started_at: Time(now),
                members: serials.iter().map(member).collect(),
            });
        }
        Mutation::LatchCluster { cluster_id } => status.cluster_id = Some(cluster_id.to_string()),
        Mutation::Allocate { serial } => {
            status.latest_member_serial = serial.0;
            status.join_attempts = status.join_attempts.saturating_add(1);
        }
        Mutation::Intent if ends_joining(action) => status.join_attempts = 0,
        _ => {}
    }
}

/// A token that no other cluster and no other attempt has.
fn token(validated: &Validated, attempt: i32) -> String {
    let digest = Sha256::digest(validated.uid.as_bytes());
    format!("{}-{}-{attempt}", validated.desired.names.cluster, hex::encode(&digest[..8]))
}

fn reason(action: &Action) -> Option<String> {
    match action {
        Action::CreateMember { reason, .. } => Some(format!("{reason:?}")),
        Action::Remove { reason, .. } => Some(format!("{reason:?}")),
        Action::RestartPod { reason, .. } => Some(format!("{reason:?}")),
        Action::MoveLeader { successor, .. } => Some(format!("to member {successor}")),
        _ => None,
    }
}

/// A voter that answers: the leader if it is known, since it need not forward.
fn voter(fresh: &Observation) -> Result<&MemberAddress, ActError> {
    let members = fresh.observed.members.values().filter(|member| member.is_serving());
    let mut voters: Vec<_> = members
        .filter(|member| fresh.reports.get(&member.serial).is_some_and(|report| !report.is_learner))
        .collect();
    voters.sort_by_key(|member| !member.is_leader());
    let address = voters.first().and_then(|member| fresh.addresses.get(&member.serial));
    address.ok_or(ActError::NoAddress(Serial(0)))
}

#[cfg(test)]
mod tests;
