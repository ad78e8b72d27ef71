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
};
use crate::{
    crd::{EtcdCluster, EtcdMember, VolumePolicy},
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
    for member in &members {
        let member_uid = member.uid().unwrap_or_default();
        for pod in pods.iter().filter(|pod| is_owned_by(*pod, &member_uid)) {
            let uid = pod.uid().unwrap_or_default();
            kubernetes.delete::<Pod>(&namespace, &pod.name_any(), &uid).await?;
        }
        let name = &member.spec.claim_name;
        let latched = member.status.as_ref().and_then(|status| status.claim_uid.clone());
        // One that no Pod has used yet is not latched. Its name holds a part of the cluster's uid.
        let unused = || claims.iter().find(|claim| claim.name_any() == *name)?.uid();
        if let (VolumePolicy::Delete, Some(uid)) =
            (cluster.spec.deletion_policy, latched.or_else(unused))
        {
            kubernetes.delete::<PersistentVolumeClaim>(&namespace, name, &uid).await?;
        }
        delete_member_object(kubernetes, member).await?;
    }
    if !members.is_empty() {
        return Ok(false);
    }
    kubernetes.let_go(cluster, FINALIZER).await?;
    Ok(true)
}
