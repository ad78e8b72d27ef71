//! The replicated facts about leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use types::LeaseId;

/// The longest TTL a lease may have, in seconds (etcd `lease/lessor.go`, `MaxLeaseTTL`).
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// One lease as every member knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The TTL it was granted, in seconds.
    pub granted_ttl: i64,
    /// The TTL that was left at the last checkpoint, in seconds; 0 means "all of it".
    pub remaining_ttl: i64,
    pub(crate) keys: BTreeSet<Bytes>,
}

impl Lease {
    /// The keys that go when the lease goes, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.keys.iter()
    }

    /// Whether a key is attached.
    pub fn has(&self, key: &[u8]) -> bool {
        self.keys.contains(key)
    }
}

/// Why a lease was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The id is 0, which means "no lease".
    #[error("lease id 0 names no lease")]
    NoId,
    /// A lease of this id exists already.
    #[error("lease {0} exists already")]
    Exists(LeaseId),
    /// The TTL is above [`TTL_SECONDS_MAX`].
    #[error("TTL of {0} seconds is above the maximum of {TTL_SECONDS_MAX}")]
    TtlTooLarge(i64),
}

/// The lease does not exist: it never did, or it was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {0} does not exist")]
pub struct LeaseNotFound(pub LeaseId);

/// All leases. A clone is cheap (one reference per lease) and independent, which is how an image
/// gets a consistent view while apply goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lessor {
    pub(crate) leases: BTreeMap<LeaseId, Arc<Lease>>,
}

impl Lessor {
    /// No leases.
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants a lease. A TTL below one second is taken as one second; the proposer has already
    /// raised it to the cluster's minimum.
    pub fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<&Lease, GrantError> {
        if !id.is_some() {
            return Err(GrantError::NoId);
        }
        if ttl > TTL_SECONDS_MAX {
            return Err(GrantError::TtlTooLarge(ttl));
        }
        if self.leases.contains_key(&id) {
            return Err(GrantError::Exists(id));
        }
        let lease = Lease { granted_ttl: ttl.max(1), ..Lease::default() };
        Ok(self.leases.entry(id).or_insert(Arc::new(lease)))
    }

    /// Forgets a lease and returns the keys that were attached to it, in order; the caller deletes
    /// them.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Vec<Bytes>, LeaseNotFound> {
        let lease = self.leases.remove(&id).ok_or(LeaseNotFound(id))?;
        let keys = match Arc::try_unwrap(lease) {
            Ok(lease) => lease.keys,
            Err(shared) => shared.keys.clone(),
        };
        Ok(keys.into_iter().collect())
    }

    /// Records how much of the TTL is left; 0 takes an earlier checkpoint back. Returns false for a
    /// lease that does not exist, which etcd ignores as well.
    pub fn checkpoint(&mut self, id: LeaseId, remaining_ttl: i64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        if lease.remaining_ttl != remaining_ttl {
            Arc::make_mut(lease).remaining_ttl = remaining_ttl;
        }
        true
    }

    /// Attaches a key. The key is copied: a request's key is a slice of a whole log entry, which
    /// must not stay in memory for as long as the lease lives.
    pub fn attach(&mut self, id: LeaseId, key: &[u8]) -> Result<(), LeaseNotFound> {
        let lease = self.leases.get_mut(&id).ok_or(LeaseNotFound(id))?;
        if !lease.keys.contains(key) {
            Arc::make_mut(lease).keys.insert(Bytes::copy_from_slice(key));
        }
        Ok(())
    }

    /// Detaches a key; nothing happens if the lease is gone or never had it.
    pub fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id)
            && lease.keys.contains(key)
        {
            Arc::make_mut(lease).keys.remove(key);
        }
    }

    /// The lease of this id.
    pub fn get(&self, id: LeaseId) -> Option<&Arc<Lease>> {
        self.leases.get(&id)
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Every lease, in order of id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.as_ref()))
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LeaseId = LeaseId(7);

    #[test]
    fn a_grant_is_refused_for_the_reasons_etcd_gives() {
        let mut lessor = Lessor::new();
        assert_eq!(lessor.grant(LeaseId(0), 5).unwrap_err(), GrantError::NoId);
        assert_eq!(
            lessor.grant(ID, TTL_SECONDS_MAX + 1).unwrap_err(),
            GrantError::TtlTooLarge(TTL_SECONDS_MAX + 1)
        );
        assert_eq!(lessor.grant(ID, TTL_SECONDS_MAX).unwrap().granted_ttl, TTL_SECONDS_MAX);
        assert_eq!(lessor.grant(ID, 5).unwrap_err(), GrantError::Exists(ID));
        assert_eq!(lessor.grant(LeaseId(-3), -1).unwrap().granted_ttl, 1);
    }

    #[test]
    fn revoke_returns_the_attached_keys_in_order_and_only_once() {
        let mut lessor = Lessor::new();
        lessor.grant(ID, 5).unwrap();
        for key in ["b", "a", "c", "b"] {
            lessor.attach(ID, key.as_bytes()).unwrap();
        }
        lessor.detach(ID, b"c");
        lessor.detach(LeaseId(99), b"a");
        assert_eq!(lessor.revoke(ID).unwrap(), [Bytes::from("a"), Bytes::from("b")]);
        assert_eq!(lessor.revoke(ID).unwrap_err(), LeaseNotFound(ID));
        assert_eq!(lessor.attach(ID, b"a").unwrap_err(), LeaseNotFound(ID));
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut lessor = Lessor::new();
        lessor.grant(ID, 5).unwrap();
        lessor.attach(ID, b"a").unwrap();
        let before = lessor.clone();
        lessor.attach(ID, b"b").unwrap();
        lessor.checkpoint(ID, 3);
        lessor.grant(LeaseId(8), 5).unwrap();
        assert_eq!(before.len(), 1);
        let lease = before.get(ID).unwrap();
        assert_eq!((lease.remaining_ttl, lease.keys().len()), (0, 1));
        assert_eq!(lessor.revoke(ID).unwrap().len(), 2);
        assert!(before.contains(ID));
    }

    #[test]
    fn a_checkpoint_of_an_unknown_lease_is_ignored() {
        let mut lessor = Lessor::new();
        assert!(!lessor.checkpoint(ID, 3));
        assert!(lessor.is_empty());
    }
}
