//! One operator acts at a time: a lock on a `coordination.k8s.io/v1` Lease.
//!
//! The rules are those of client-go's leader election: the holder renews at a third of the lease's
//! duration and stops acting before the duration is over; another takes the lease only after it
//! has itself watched it unchanged for a whole duration, so that clocks need not agree. Every write
//! to Kubernetes (`kubernetes.rs`) and every change of etcd's membership (`act.rs`) asks
//! [`Lease::is_held`] at the moment it is sent, and losing the lease ends the process (I9).

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};

const LEASE_DURATION: Duration = Duration::from_secs(15);
/// The holder stops this much earlier than others may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between renewals, and between attempts to become the leader.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Between an attempt to renew that failed and the next.
const RETRY_SOON: Duration = Duration::from_millis(500);
/// Longest time of an attempt: an API server that takes seconds for an answer must not cost the lease,
/// and one that does not answer at all must leave time for a second attempt.
const ATTEMPT: Duration = Duration::from_millis(3500);

/// Whether this process may act.
#[derive(Clone)]
pub struct Lease {
    started: Instant,
    /// Milliseconds after `started` until which the lease is held; 0 means not held.
    held_until: Arc<AtomicU64>,
}

impl Lease {
    /// A lease that is always held, for a single operator without election.
    pub fn without_election() -> Lease {
        Lease { started: Instant::now(), held_until: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn not_held() -> Lease {
        Lease { started: Instant::now(), held_until: Arc::default() }
    }

    /// From now on nothing may be sent: another operator is about to act.
    pub fn give_up(&self) {
        self.held_until.store(0, Ordering::Release);
    }

    /// Whether a mutation may be sent now.
    pub fn is_held(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        now < self.held_until.load(Ordering::Acquire)
    }

    fn hold_from(&self, renewal_sent: Instant) {
        let until = renewal_sent.duration_since(self.started) + RENEW_DEADLINE;
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.held_until.store(until, Ordering::Release);
    }
}

/// A name for this process that no other one has, also not the one before it in its container: there
/// each of them has the process id 1, and what one has sent when it is killed may still arrive.
pub fn identity_of_process(name: &str) -> String {
    format!("{name}_{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// The election that this process takes part in.
pub struct Election {
    api: Api<LeaseObject>,
    name: String,
    identity: String,
    lease: Lease,
    /// The lease as last seen, and when it was first seen like that.
    watched: Option<(Option<String>, Instant)>,
    /// The lease as this process wrote it last: the next renewal is made on it without a look.
    written: Option<LeaseObject>,
}

impl Election {
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Election {
        Election {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            lease: Lease::not_held(),
            watched: None,
            written: None,
        }
    }

    pub fn lease(&self) -> Lease {
        self.lease.clone()
    }

    /// Waits until this process holds the lease.
    pub async fn win(&mut self) {
        while !self.attempt().await {
            tokio::time::sleep(RETRY_PERIOD).await;
        }
        tracing::info!(identity = self.identity, "became the leader");
    }

    /// Renews until the lease is lost; then the process has to end.
    pub async fn keep(mut self) {
        let mut pause = RETRY_PERIOD;
        while self.lease.is_held() {
            tokio::time::sleep(pause).await;
            pause = if self.attempt().await { RETRY_PERIOD } else { RETRY_SOON };
        }
        tracing::error!(identity = self.identity, "lost the leader lease");
    }

    /// Gives the lease up so that the next operator need not wait.
    pub async fn release(api: Api<LeaseObject>, name: &str, identity: &str) {
        let Ok(Some(mut object)) = api.get_opt(name).await else { return };
        let held = object.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if held != Some(identity) {
            return;
        }
        object.spec = Some(LeaseSpec { holder_identity: None, ..object.spec.unwrap_or_default() });
        if let Err(error) = api.replace(name, &PostParams::default(), &object).await {
            tracing::warn!(%error, "leader lease was not released");
        }
    }

    /// Where the lease is, for [`Election::release`].
    pub fn place(&self) -> (Api<LeaseObject>, String, String) {
        (self.api.clone(), self.name.clone(), self.identity.clone())
    }

    /// Takes the lease or renews it, if it is free or held by this process.
    pub(crate) async fn attempt(&mut self) -> bool {
        let sent = Instant::now();
        match tokio::time::timeout(ATTEMPT, self.acquire_or_renew(sent)).await {
            Ok(Ok(true)) => {
                self.lease.hold_from(sent);
                true
            }
            Ok(Ok(false)) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "leader lease");
                false
            }
            Err(_) => {
                tracing::warn!(seconds = ATTEMPT.as_secs(), "leader lease: no answer in time");
                false
            }
        }
    }

    async fn acquire_or_renew(&mut self, now: Instant) -> Result<bool, kube::Error> {
        // Taken out: whatever goes wrong, the next attempt looks first.
        if let Some(mut object) = self.written.take() {
            object.spec = Some(claimed(object.spec, &self.identity, Timestamp::now()));
            let written = self.api.replace(&self.name, &PostParams::default(), &object).await;
            if self.done(written)? {
                return Ok(true);
            }
        }
        let Some(mut object) = self.api.get_opt(&self.name).await? else {
            let object = LeaseObject {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(claimed(None, &self.identity, Timestamp::now())),
            };
            let written = self.api.create(&PostParams::default(), &object).await;
            return self.done(written);
        };
        let spec = object.spec.clone().unwrap_or_default();
        if !self.may_take(&spec, object.metadata.resource_version.clone(), now) {
            return Ok(false);
        }
        object.spec = Some(claimed(Some(spec), &self.identity, Timestamp::now()));
        let written = self.api.replace(&self.name, &PostParams::default(), &object).await;
        self.done(written)
    }

    /// Whether a write was the one that counts; another was faster if not.
    fn done(&mut self, written: Result<LeaseObject, kube::Error>) -> Result<bool, kube::Error> {
        match written {
            Ok(object) => {
                self.written = Some(object);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_take(&mut self, spec: &LeaseSpec, version: Option<String>, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.identity || holder.is_empty() {
            return true;
        }
        match &self.watched {
            Some((seen, since)) if *seen == version => {
                let duration =
                    spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                now.duration_since(*since) > duration.map_or(LEASE_DURATION, Duration::from_secs)
            }
            _ => {
                self.watched = Some((version, now));
                false
            }
        }
    }
}

/// The lease as this process writes it. The resource version in the object makes the write fail
/// if somebody else was faster.
fn claimed(before: Option<LeaseSpec>, identity: &str, now: Timestamp) -> LeaseSpec {
    let before = before.unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(identity);
    let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!mine);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: if mine { before.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election() -> Election {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let _ = rustls::crypto::ring::default_provider().install_default();
        Election::new(Client::try_from(config).unwrap(), "ns", "lock", "me".to_owned())
    }

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test]
    async fn a_foreign_lease_is_taken_only_after_it_stood_still_for_its_duration() {
        let mut election = election();
        let start = Instant::now();
        let version = |text: &str| Some(text.to_owned());
        assert!(!election.may_take(&held_by("other"), version("1"), start));
        assert!(!election.may_take(
            &held_by("other"),
            version("1"),
            start + Duration::from_secs(14)
        ));
        // A renewal starts the wait again, whatever the clocks say.
        assert!(!election.may_take(
            &held_by("other"),
            version("2"),
            start + Duration::from_secs(16)
        ));
        assert!(!election.may_take(
            &held_by("other"),
            version("2"),
            start + Duration::from_secs(30)
        ));
        assert!(election.may_take(
            &held_by("other"),
            version("2"),
            start + Duration::from_secs(32)
        ));
    }

    #[tokio::test]
    async fn a_process_waits_also_for_the_lease_of_the_one_before_it_in_its_pod() {
        let (dead, mine) = (identity_of_process("pod"), identity_of_process("pod"));
        assert!(dead.starts_with("pod_"), "{dead}");
        let mut election = Election { identity: mine.clone(), ..election() };
        assert!(!election.may_take(&held_by(&dead), Some("1".to_owned()), Instant::now()));
        assert!(election.may_take(&held_by(&mine), Some("1".to_owned()), Instant::now()));
    }

    #[tokio::test]
    async fn a_released_lease_is_taken_at_once() {
        assert!(election().may_take(&held_by(""), Some("1".to_owned()), Instant::now()));
    }

    #[test]
    fn the_holder_stops_before_others_may_take_over() {
        const { assert!(RENEW_DEADLINE.as_secs() < LEASE_DURATION.as_secs()) };
        // From a renewal: the next one fails by its time-out, and the one after it is still in time.
        let tries = RETRY_PERIOD + ATTEMPT + RETRY_SOON + ATTEMPT;
        assert!(tries < RENEW_DEADLINE, "{tries:?}");
        let lease = Lease::not_held();
        assert!(!lease.is_held());
        lease.hold_from(Instant::now());
        assert!(lease.is_held());
        lease.clone().give_up();
        assert!(!lease.is_held());
        assert!(Lease::without_election().is_held());
    }

    #[test]
    fn taking_over_counts_a_transition_and_renewing_does_not() {
        let now = Timestamp::UNIX_EPOCH;
        let taken = claimed(Some(held_by("other")), "me", now);
        assert_eq!(taken.lease_transitions, Some(1));
        let renewed = claimed(Some(taken.clone()), "me", now);
        assert_eq!(renewed.lease_transitions, Some(1));
        assert_eq!(renewed.acquire_time, taken.acquire_time);
    }
}
