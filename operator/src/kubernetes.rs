//! The only file that writes to Kubernetes: server-side apply under our field manager, creates,
//! deletes with a uid, and status writes with a resource version.
//!
//! A name is no proof of whose an object is. What the operator makes names its owner, and it is
//! changed, used and deleted only where the object that is there has that owner too.
//!
//! Every call is bounded by [`CALL_TIMEOUT`]: the client retries throttled requests on its own for
//! a long time, and a worker that waits there serves nobody. Nothing is read from a cache here;
//! what the planner decides on and what an action re-verifies comes from the API server.
//!
//! Every write asks for the leader lease at the moment it is sent, and is given up when the lease is
//! lost while it is under way (I9): so a pass that outlives the lease changes nothing more, wherever
//! it is, and no controller has to think of it. The lease itself (`leader_election.rs`) is the one
//! object that is written elsewhere; events are in `context.rs`, behind the same question.

use std::{fmt::Debug, future::Future, pin::pin, time::Duration};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::ClusterResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::leader_election::Lease;

/// Field manager of everything but status.
pub const FIELD_MANAGER: &str = "etcd-operator";
/// Field manager of status.
const STATUS_MANAGER: &str = "etcd-operator-status";
/// Longest time a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a write that is under way looks whether the lease is still held. Others may act only
/// seconds after this process has stopped holding it.
const LEASE_CHECK: Duration = Duration::from_secs(1);

/// A call to the API server that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("{verb} {kind} {name}: {source}")]
    Refused { verb: &'static str, kind: String, name: String, source: Box<kube::Error> },
    #[error("{verb} {kind} {name}: no answer within {seconds} s", seconds = CALL_TIMEOUT.as_secs())]
    Timeout { verb: &'static str, kind: String, name: String },
    #[error("{verb} {kind} {name}: not done, because the leader lease is not held")]
    LeaseLost { verb: &'static str, kind: String, name: String },
    #[error(
        "{kind} {name} exists and is not ours; it stays as it is until it is removed or renamed"
    )]
    NotOurs { kind: String, name: String },
    #[error("{kind} cannot be written as JSON: {source}")]
    Encode { kind: String, source: serde_json::Error },
}

impl KubernetesError {
    /// Somebody else changed the object; the next pass sees the change.
    pub fn is_conflict(&self) -> bool {
        self.status_is(|status| status.code == 409)
    }

    /// The caller lacks a permission.
    pub fn is_forbidden(&self) -> bool {
        self.status_is(|status| status.code == 403)
    }

    /// Nothing is created any more in a namespace that is being deleted.
    pub fn is_namespace_ending(&self) -> bool {
        self.is_forbidden()
            && self.status_is(|status| {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
            })
    }

    /// Somebody else's object has the name.
    pub fn is_not_ours(&self) -> bool {
        matches!(self, KubernetesError::NotOurs { .. })
    }

    /// The API server will not have it: a right is missing, or a quota, a policy or a webhook is against
    /// it. It has looked at it, so the same again is answered the same until somebody changes something.
    pub fn is_denied(&self) -> bool {
        self.status_is(|status| matches!(status.code, 400 | 403 | 422))
    }

    /// The object is gone.
    pub fn is_not_found(&self) -> bool {
        self.status_is(|status| status.code == 404)
    }

    fn status_is(&self, test: impl Fn(&kube::core::Status) -> bool) -> bool {
        match self {
            KubernetesError::Refused { source, .. } => {
                matches!(&**source, kube::Error::Api(status) if test(status))
            }
            _ => false,
        }
    }
}

/// A kind that lives in a namespace.
pub trait Namespaced:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + DeserializeOwned
    + Serialize
    + Debug
{
}

impl<K> Namespaced for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Serialize
        + Debug
{
}

/// Access to the API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    lease: Lease,
}

impl Kubernetes {
    pub fn new(client: Client, lease: Lease) -> Kubernetes {
        Kubernetes { client, lease }
    }

    /// # Errors
    /// The call failed; absence is not an error.
    pub async fn get<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, KubernetesError> {
        bounded::<K, _>("get", name, self.api::<K>(namespace).get_opt(name)).await
    }

    /// All objects with the labels, read from the API server itself.
    ///
    /// # Errors
    /// The call failed.
    pub async fn list<K: Namespaced>(
        &self,
        namespace: &str,
        labels: &str,
    ) -> Result<Vec<K>, KubernetesError> {
        let parameters = ListParams::default().labels(labels);
        let list =
            bounded::<K, _>("list", labels, self.api::<K>(namespace).list(&parameters)).await?;
        Ok(list.items)
    }

    /// All objects of a kind without namespace, or `None` if the operator may not see them: a
    /// namespaced installation has no right to look at nodes.
    ///
    /// # Errors
    /// The call failed for another reason.
    pub async fn list_of_cluster<K>(&self) -> Result<Option<Vec<K>>, KubernetesError>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        match bounded::<K, _>("list", "all", api.list(&ListParams::default())).await {
            Ok(list) => Ok(Some(list.items)),
            Err(error) if error.is_forbidden() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Server-side apply of the whole object; fields that we no longer name are given up.
    ///
    /// # Errors
    /// The call failed, or the object that is there does not have this one's owner.
    pub async fn apply<K: Namespaced>(
        &self,
        namespace: &str,
        object: &K,
    ) -> Result<(), KubernetesError> {
        self.apply_over(namespace, object, |_| false).await
    }

    /// The same, where the object that is there may also be one that is known to have been ours under
    /// another owner.
    ///
    /// # Errors
    /// As [`Kubernetes::apply`].
    pub async fn apply_over<K: Namespaced>(
        &self,
        namespace: &str,
        object: &K,
        was_ours: impl Fn(&K) -> bool,
    ) -> Result<(), KubernetesError> {
        let name = object.name_any();
        let mut value = typed::<K>(object)?;
        // By force only what is known to be ours: of what somebody creates in this moment, nothing is
        // taken over.
        let mut parameters = PatchParams::apply(FIELD_MANAGER);
        if let Some(found) = self.get::<K>(namespace, &name).await? {
            if !was_ours(&found) {
                check_owner(&found, object)?;
            }
            value["metadata"]["uid"] = json!(found.uid());
            parameters = parameters.force();
        }
        let (api, patch) = (self.api::<K>(namespace), Patch::Apply(value));
        let call = api.patch(&name, &parameters, &patch);
        self.write::<K, _>("apply", &name, call).await.map(|_| ())
    }

    /// Creates the object unless it is there.
    ///
    /// # Errors
    /// The call failed, or the object that is there does not have this one's owner.
    pub async fn create_owned<K: Namespaced>(
        &self,
        namespace: &str,
        object: &K,
    ) -> Result<(), KubernetesError> {
        if self.create(namespace, object).await? {
            return Ok(());
        }
        match self.get::<K>(namespace, &object.name_any()).await? {
            Some(found) => check_owner(&found, object),
            None => Ok(()),
        }
    }

    /// Creates the object unless one of that name exists. Returns whether it was created.
    ///
    /// # Errors
    /// The call failed.
    pub async fn create<K: Namespaced>(
        &self,
        namespace: &str,
        object: &K,
    ) -> Result<bool, KubernetesError> {
        let name = object.name_any();
        let parameters =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let api = self.api::<K>(namespace);
        match self.write::<K, _>("create", &name, api.create(&parameters, object)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the status of an object that has not changed since `resource_version`.
    ///
    /// # Errors
    /// The call failed, or the object has changed ([`KubernetesError::is_conflict`]).
    pub async fn apply_status<K: Namespaced>(
        &self,
        object: &K,
        status: &impl Serialize,
    ) -> Result<K, KubernetesError> {
        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": name, "resourceVersion": object.resource_version() },
            "status": status,
        });
        let parameters = PatchParams::apply(STATUS_MANAGER).force();
        let api = self.api::<K>(&namespace);
        self.write::<K, _>(
            "apply status of",
            &name,
            api.patch_status(&name, &parameters, &Patch::Apply(patch)),
        )
        .await
    }

    /// Merges into the metadata of the object with this uid.
    ///
    /// # Errors
    /// The call failed, or the uid is another one.
    pub async fn merge_metadata<K: Namespaced>(
        &self,
        object: &K,
        mut metadata: Value,
    ) -> Result<(), KubernetesError> {
        let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
        metadata["uid"] = json!(object.uid());
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api::<K>(&namespace);
        self.write::<K, _>("patch", &name, api.patch(&name, &parameters, &patch)).await.map(|_| ())
    }

    /// Puts the finalizer on the object beside those of others.
    ///
    /// # Errors
    /// The call failed, or the object has changed since it was read.
    pub async fn hold<K: Namespaced>(
        &self,
        object: &K,
        finalizer: &str,
    ) -> Result<(), KubernetesError> {
        let mut finalizers = object.finalizers().to_vec();
        finalizers.push(finalizer.to_owned());
        self.write_finalizers(object, &finalizers).await
    }

    /// Takes the finalizer off the object, and leaves those of others. An object that is gone or does
    /// not have it is a success.
    ///
    /// # Errors
    /// The call failed, or the object has changed since it was read.
    pub async fn let_go<K: Namespaced>(
        &self,
        object: &K,
        finalizer: &str,
    ) -> Result<(), KubernetesError> {
        let mut finalizers = object.finalizers().to_vec();
        finalizers.retain(|known| known != finalizer);
        if finalizers.len() == object.finalizers().len() {
            return Ok(());
        }
        match self.write_finalizers(object, &finalizers).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The list is written whole: the resource version keeps what others write to it in between.
    async fn write_finalizers<K: Namespaced>(
        &self,
        object: &K,
        finalizers: &[String],
    ) -> Result<(), KubernetesError> {
        let version = object.resource_version();
        let metadata = json!({ "finalizers": finalizers, "resourceVersion": version });
        self.merge_metadata(object, metadata).await
    }

    /// Deletes the object with this uid. If it is gone, or another one has its name, that is a success.
    ///
    /// # Errors
    /// The call failed.
    pub async fn delete<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<(), KubernetesError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters =
            DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let api = self.api::<K>(namespace);
        match self.write::<K, _>("delete", name, api.delete(name, &parameters)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes the object of this name if the owner with this uid has it.
    ///
    /// # Errors
    /// The call failed.
    pub async fn delete_owned<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        owner: &str,
    ) -> Result<(), KubernetesError> {
        match self.get::<K>(namespace, name).await? {
            Some(found) if is_owned_by(&found, owner) => {
                self.delete::<K>(namespace, name, &found.uid().unwrap_or_default()).await
            }
            _ => Ok(()),
        }
    }

    /// A call that changes something.
    async fn write<K: Namespaced, T>(
        &self,
        verb: &'static str,
        name: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, KubernetesError> {
        let mut call = pin!(bounded::<K, T>(verb, name, call));
        while self.lease.is_held() {
            if let Ok(answer) = tokio::time::timeout(LEASE_CHECK, &mut call).await {
                return answer;
            }
        }
        Err(KubernetesError::LeaseLost {
            verb,
            kind: K::kind(&()).into_owned(),
            name: name.to_owned(),
        })
    }

    fn api<K: Namespaced>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Whether the object names the owner with this uid.
pub fn is_owned_by(object: &impl ResourceExt, owner: &str) -> bool {
    object.owner_references().iter().any(|reference| reference.uid == owner)
}

/// What is there belongs to whom the wanted object belongs to.
fn check_owner<K: Namespaced>(found: &K, wanted: &K) -> Result<(), KubernetesError> {
    match wanted.owner_references().iter().any(|owner| is_owned_by(found, &owner.uid)) {
        true => Ok(()),
        false => Err(not_ours(found)),
    }
}

/// That the object is somebody else's.
pub fn not_ours<K: Namespaced>(found: &K) -> KubernetesError {
    KubernetesError::NotOurs { kind: K::kind(&()).into_owned(), name: found.name_any() }
}

/// Apply patches must name version and kind, which typed objects leave out.
fn typed<K: Namespaced>(object: &K) -> Result<Value, KubernetesError> {
    let kind = K::kind(&()).into_owned();
    let mut value = serde_json::to_value(object)
        .map_err(|source| KubernetesError::Encode { kind: kind.clone(), source })?;
    value["apiVersion"] = json!(K::api_version(&()));
    value["kind"] = json!(kind);
    Ok(value)
}

async fn bounded<K: Resource<DynamicType = ()>, T>(
    verb: &'static str,
    name: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, KubernetesError> {
    let (kind, name) = (K::kind(&()).into_owned(), name.to_owned());
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => {
            Err(KubernetesError::Refused { verb, kind, name, source: Box::new(source) })
        }
        Err(_) => Err(KubernetesError::Timeout { verb, kind, name }),
    }
}

#[cfg(test)]
mod tests;
