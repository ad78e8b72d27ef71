//! What other members ask of the leader's clock.

use proto::peerpb;
use replica::{Handle, Inbound, PeerResult};
use types::LeaseId;

use crate::clock::LeaseClock;

/// Answers for one member.
#[derive(Clone)]
pub struct LeasePeer {
    pub inbound: Inbound,
    pub handle: Handle,
    pub clock: LeaseClock,
}

impl LeasePeer {
    /// Renews leases.
    ///
    /// # Errors
    /// When the message is not for this member.
    pub async fn keep_alive(
        &self,
        request: peerpb::LeaseKeepAliveRequest,
    ) -> PeerResult<peerpb::LeaseKeepAliveResponse> {
        use peerpb::lease_keep_alive_response::Result as Wire;
        self.inbound.check(request.envelope.as_ref())?;
        let ids: Vec<LeaseId> = request.ids.into_iter().map(LeaseId).collect();
        let result = match self.clock.renew_here(&self.handle, &ids).await {
            Ok(ttls) => Wire::Renewals(peerpb::LeaseRenewals { ttls }),
            Err(_) => Wire::NotLeader(self.inbound.not_leader()),
        };
        Ok(peerpb::LeaseKeepAliveResponse { result: Some(result) })
    }

    /// Says how long leases have to live.
    ///
    /// # Errors
    /// When the message is not for this member.
    pub async fn time_to_live(
        &self,
        request: peerpb::LeaseTimeToLiveRequest,
    ) -> PeerResult<peerpb::LeaseTimeToLiveResponse> {
        use peerpb::lease_time_to_live_response::Result as Wire;
        self.inbound.check(request.envelope.as_ref())?;
        let ids: Vec<LeaseId> = request.ids.into_iter().map(LeaseId).collect();
        let result = match self.clock.states_here(&self.handle, &ids, request.keys).await {
            Ok(leases) => Wire::Leases(peerpb::LeaseStates { leases }),
            Err(_) => Wire::NotLeader(self.inbound.not_leader()),
        };
        Ok(peerpb::LeaseTimeToLiveResponse { result: Some(result) })
    }
}
