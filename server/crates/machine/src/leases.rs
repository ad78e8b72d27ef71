//! Grant, revoke, expire and checkpoint leases.

use lease::GrantError;
use proto::etcdserverpb as pb;
use types::{KeyRange, LeaseId};

use crate::apply::Applier;
use crate::command::LeaseExpire;
use crate::outcome::{LeaseChange, Refusal, Stop, header};

impl Applier<'_> {
    pub(crate) fn lease_grant(
        &mut self,
        request: &pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Refusal> {
        let id = LeaseId(request.id);
        let granted = self.leases.grant(id, request.ttl).map_err(|error| match error {
            GrantError::NoId => Refusal::LeaseNotFound,
            GrantError::Exists(_) => Refusal::LeaseExists,
            GrantError::TtlTooLarge(_) => Refusal::LeaseTtlTooLarge,
        })?;
        let ttl = granted.granted_ttl;
        self.lease_changes.push(LeaseChange::Granted { id, ttl });
        Ok(pb::LeaseGrantResponse {
            header: header(self.writer.revision()),
            id: id.0,
            ttl,
            error: String::new(),
        })
    }

    pub(crate) fn lease_revoke(
        &mut self,
        request: &pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Stop> {
        if !self.revoke(LeaseId(request.id)) {
            return Err(Refusal::LeaseNotFound.into());
        }
        Ok(pb::LeaseRevokeResponse { header: header(self.writer.revision()) })
    }

    /// Revokes the leases that are over. One that is gone already is passed over: a client may have
    /// revoked it while the leader's proposal was under way.
    pub(crate) fn lease_expire(&mut self, expire: &LeaseExpire) -> Result<Vec<LeaseId>, Stop> {
        if expire.term < self.term {
            let (proposed, applied) = (expire.term, self.term);
            return Err(Refusal::StaleTerm { proposed, applied }.into());
        }
        Ok(expire.ids.iter().copied().filter(|id| self.revoke(*id)).collect())
    }

    /// A checkpoint of a lease that is gone says nothing, as in etcd.
    pub(crate) fn lease_checkpoint(
        &mut self,
        request: &pb::LeaseCheckpointRequest,
    ) -> pb::LeaseCheckpointResponse {
        for checkpoint in &request.checkpoints {
            let id = LeaseId(checkpoint.id);
            let remaining_ttl = checkpoint.remaining_ttl;
            if self.leases.checkpoint(id, remaining_ttl) {
                self.lease_changes.push(LeaseChange::Checkpointed { id, remaining_ttl });
            }
        }
        pb::LeaseCheckpointResponse { header: header(self.writer.revision()) }
    }

    /// Takes a lease and its keys away, the keys in order and in one revision; without keys the
    /// revision stays. False if there is no such lease.
    fn revoke(&mut self, id: LeaseId) -> bool {
        let Ok(keys) = self.leases.revoke(id) else { return false };
        self.writer.begin();
        for key in keys {
            self.under_way.deletes += 1;
            self.writer.delete_range(&KeyRange::single(key));
        }
        self.end();
        self.lease_changes.push(LeaseChange::Revoked { id });
        true
    }
}
