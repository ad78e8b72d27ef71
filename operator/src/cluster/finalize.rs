//! The end of a cluster: Pods stop, volumes go or stay by policy, objects are let go.
//!
//! No member is removed from etcd here: the cluster as a whole ends, and this works with a lost
//! quorum too. Nothing waits for anything that may already be gone, so a namespace that is being
//! deleted never hangs on it.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use super::{
    act::delete_member_object,
    build::{FINALIZER, member_selector, selector_text},
    model::{Names, claim_suffix},
};
use crate::{
    crd::{EtcdCluster, EtcdMember, TlsMode, VolumePolicy},
    kubernetes::{Kubernetes, KubernetesError, is_owned_by},
};

/// Takes the cluster apart; returns whether everything that had to go is gone.
///
/// # Errors
/// The API server did not answer; the next pass goes on.
pub async fn finalize(
    kubernetes: &Kubernetes,
    cluster: &EtcdCluster,
) -> Result<bool, KubernetesError> {
    if !cluster.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(true);
    }
    let (namespace, uid) =
        (cluster.namespace().unwrap_or_default(), cluster.uid().unwrap_or_default());
    let labels = selector_text(&member_selector(&cluster.name_any()));
    let members = kubernetes.list::<EtcdMember>(&namespace, &labels).await?;
    let members: Vec<EtcdMember> =
        members.into_iter().filter(|member| is_owned_by(member, &uid)).collect();
    let pods = kubernetes.list::<Pod>(&namespace, &labels).await?;
    let claims = kubernetes.list::<PersistentVolumeClaim>(&namespace, &labels).await?;
    if cluster.spec.deletion_policy == VolumePolicy::Delete {
        delete_claims(kubernetes, cluster, &members, &claims).await?;
    }
    for member in &members {
        let member_uid = member.uid().unwrap_or_default();
        for pod in pods.iter().filter(|pod| is_owned_by(*pod, &member_uid)) {
            let uid = pod.uid().unwrap_or_default();
            kubernetes.delete::<Pod>(&namespace, &pod.name_any(), &uid).await?;
        }
        delete_member_object(kubernetes, member).await?;
    }
    if !members.is_empty() {
        return Ok(false);
    }
    kubernetes.let_go(cluster, FINALIZER).await?;
    Ok(true)
}

/// Those of the members, and those that nobody has any more: of members that left while claims were kept,
/// and of first starts that were given up. A claim of an older cluster of this name is none of them.
async fn delete_claims(
    kubernetes: &Kubernetes,
    cluster: &EtcdCluster,
    members: &[EtcdMember],
    claims: &[PersistentVolumeClaim],
) -> Result<(), KubernetesError> {
    let namespace = cluster.namespace().unwrap_or_default();
    for member in members {
        let latched = member.status.as_ref().and_then(|status| status.claim_uid.as_deref());
        if let Some(uid) = latched {
            let name = &member.spec.claim_name;
            kubernetes.delete::<PersistentVolumeClaim>(&namespace, name, uid).await?;
        }
    }
    let names = Names {
        cluster: cluster.name_any(),
        namespace: namespace.clone(),
        tls: cluster.spec.tls.mode == TlsMode::SelfManaged,
        claim_suffix: claim_suffix(&cluster.uid().unwrap_or_default()).to_owned(),
    };
    let latched = |name: &str| {
        let mut members = members.iter().filter(|member| member.spec.claim_name == name);
        members.any(|member| member.status.as_ref().is_some_and(|s| s.claim_uid.is_some()))
    };
    // One that no Pod has used yet is not latched.
    let unlatched = claims.iter().filter(|claim| {
        let name = claim.name_any();
        names.serial_of_claim(&name).is_some() && !latched(&name)
    });
    for claim in unlatched.filter(|claim| claim.metadata.deletion_timestamp.is_none()) {
        let (name, uid) = (claim.name_any(), claim.uid().unwrap_or_default());
        kubernetes.delete::<PersistentVolumeClaim>(&namespace, &name, &uid).await?;
    }
    Ok(())
}
