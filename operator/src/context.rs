//! What the controllers share: the way to Kubernetes, the lease, metrics, and a small memory that
//! saves repeated reads and writes. The memory may be lost at any time.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};

use crate::{
    cluster::security::Certificates, kubernetes::Kubernetes, leader_election::Lease,
    metrics::Metrics,
};

/// How long certificates are used without looking at their Secrets again.
const CERTIFICATES_FOR: Duration = Duration::from_secs(300);
/// How long applied objects are trusted to be as they were applied.
const APPLIED_FOR: Duration = Duration::from_secs(300);

/// What the controllers share.
pub struct Context {
    pub kubernetes: Kubernetes,
    pub recorder: Recorder,
    pub lease: Lease,
    pub metrics: Metrics,
    pub memory: Memory,
    /// Image that backup Jobs run: the operator's own.
    pub agent_image: String,
}

impl Context {
    /// Publishes an event; one that cannot be published is only logged. Without the lease nothing is
    /// told either: what happened is the next operator's to tell.
    pub async fn publish(&self, event: &Event, about: &ObjectReference) {
        if !self.lease.is_held() {
            return;
        }
        if let Err(error) = self.recorder.publish(event, about).await {
            tracing::warn!(%error, reason = event.reason, "event not published");
        }
    }
}

/// What is remembered of each cluster, by its uid.
#[derive(Default)]
pub struct Memory {
    // A plain mutex: it is held for a map operation and never across an await.
    clusters: Mutex<BTreeMap<String, Remembered>>,
}

#[derive(Default)]
struct Remembered {
    certificates: Option<(Instant, Certificates)>,
    applied: Option<(Instant, String)>,
}

impl Memory {
    pub fn certificates(&self, uid: &str) -> Option<Certificates> {
        self.with(uid, |cluster| match &cluster.certificates {
            Some((since, known)) if since.elapsed() < CERTIFICATES_FOR => Some(known.clone()),
            _ => None,
        })
    }

    pub fn remember_certificates(&self, uid: &str, certificates: Certificates) {
        self.with(uid, |cluster| cluster.certificates = Some((Instant::now(), certificates)));
    }

    pub fn is_applied(&self, uid: &str, digest: &str) -> bool {
        self.with(uid, |cluster| {
            cluster
                .applied
                .as_ref()
                .is_some_and(|(since, known)| known == digest && since.elapsed() < APPLIED_FOR)
        })
    }

    pub fn remember_applied(&self, uid: &str, digest: String) {
        self.with(uid, |cluster| cluster.applied = Some((Instant::now(), digest)));
    }

    fn with<T>(&self, uid: &str, act: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        act(clusters.entry(uid.to_owned()).or_default())
    }
}
