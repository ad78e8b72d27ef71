//! What the controllers share: the way to Kubernetes, the lease, metrics, and a small memory that
//! saves repeated reads and writes. The memory may be lost at any time.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};
use tokio::time::Instant;

use crate::{
    cluster::security::Certificates, kubernetes::Kubernetes, leader_election::Lease,
    metrics::Metrics,
};

/// How long certificates are used without looking at their Secrets again.
const CERTIFICATES_FOR: Duration = Duration::from_secs(300);
/// How long applied objects are trusted to be as they were applied.
const APPLIED_FOR: Duration = Duration::from_secs(300);

/// What is in the way of one thing is looked at again after this at the latest.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// What is remembered of each object that is looked after, by its uid.
#[derive(Default)]
pub struct Memory {
    // A plain mutex: it is held for a map operation and never across an await.
    objects: Mutex<BTreeMap<String, Remembered>>,
}

#[derive(Default)]
struct Remembered {
    certificates: Option<(Instant, Certificates)>,
    applied: Option<(Instant, String)>,
    standing: Option<Standing>,
}

/// What a pass came to, and all passes since.
struct Standing {
    what: String,
    since: Instant,
    last: Instant,
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

    /// When to try again what fails in this way: after as long again as it has done so, but `least`, and
    /// [`PATIENCE`] at most.
    pub fn back_off(&self, uid: &str, what: &str, least: Duration) -> Duration {
        self.standing(uid, what).clamp(least, PATIENCE)
    }

    /// For how long all passes over the object have come to the same.
    pub fn standing(&self, uid: &str, what: &str) -> Duration {
        let now = Instant::now();
        self.with(uid, |object| {
            let known = object.standing.take();
            // What has not been heard of for longer than it is waited for was another in between.
            let same = known.filter(|known| known.what == what && now - known.last <= 2 * PATIENCE);
            let since = same.map_or(now, |known| known.since);
            object.standing = Some(Standing { what: what.to_owned(), since, last: now });
            now - since
        })
    }

    /// The object is gone.
    pub fn forget(&self, uid: &str) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn with<T>(&self, uid: &str, act: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        act(objects.entry(uid.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stays_the_same_grows_old_until_something_else_comes() {
        let memory = Memory::default();
        let secs = |what: &str| memory.standing("uid", what).as_secs();
        assert_eq!(secs("waits"), 0);
        for age in [15, 30, 45] {
            tokio::time::advance(Duration::from_secs(15)).await;
            assert_eq!(secs("waits"), age);
        }
        assert_eq!((secs("does"), secs("waits")), (0, 0));
        tokio::time::advance(Duration::from_secs(121)).await;
        assert_eq!(secs("waits"), 0, "nobody has looked for so long");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(memory.back_off("uid", "waits", Duration::from_secs(2)), PATIENCE);
        assert_eq!(memory.back_off("other", "waits", Duration::from_secs(2)).as_secs(), 2);
    }
}
