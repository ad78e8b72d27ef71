//! Questions to other members that do not change anything: versions, hashes, and what only the leader
//! knows of leases.

use futures_util::future::join_all;
use proto::peerpb;
use tokio::time::timeout;
use types::{LeaseId, MemberId};

use crate::handle::Handle;
use crate::unavailable::Unavailable;

/// What another member answers to the question for its hash.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerHash {
    /// Its hash.
    Hash(peerpb::HashedKv),
    /// It has compacted the revision.
    Compacted,
    /// It has not come to the revision yet.
    FutureRevision,
    /// It could not be asked.
    NoAnswer(String),
}

impl Handle {
    /// Has the leader renew leases; one TTL per id, 0 for a lease that is gone.
    ///
    /// # Errors
    /// When no leader answered in time, or it was deposed meanwhile.
    pub async fn renew_at_leader(&self, ids: &[LeaseId]) -> Result<Vec<i64>, Unavailable> {
        use peerpb::lease_keep_alive_response::Result as Wire;
        let (envelope, peer) = self.shared.leader_peer()?;
        let request =
            peerpb::LeaseKeepAliveRequest { envelope, ids: ids.iter().map(|id| id.0).collect() };
        let leader = peer.id;
        let call = self.shared.sender.peers.lease_keep_alive(peer, request);
        match self.shared.ask(leader, call).await?.result {
            Some(Wire::Renewals(renewals)) => Ok(renewals.ttls),
            Some(Wire::NotLeader(_)) => Err(Unavailable::LeaderChanged),
            None => Err(Unavailable::Timeout),
        }
    }

    /// The etcd version that each other member reports; who does not answer is left out.
    pub async fn versions_of_others(&self) -> Vec<(MemberId, String)> {
        let questions = self
            .others()
            .into_iter()
            .map(|id| async move { Some((id, self.version_of(id).await?)) });
        join_all(questions).await.into_iter().flatten().collect()
    }

    /// Asks those again who did not answer the last time, whatever it was.
    pub async fn ask_unreached(&self) {
        let mut others = self.others();
        others.retain(|id| self.shared.sender.peers.connected_for(*id).is_zero());
        join_all(others.into_iter().map(|id| self.version_of(id))).await;
    }

    async fn version_of(&self, id: MemberId) -> Option<String> {
        let peer = self.shared.peer(id)?;
        let request = peerpb::VersionRequest { envelope: self.shared.sender.envelope(id) };
        let call = self.shared.sender.peers.version(peer, request);
        let answer = timeout(self.shared.sender.patience, call).await.ok()?;
        Some(answer.ok()?.etcd_version)
    }

    async fn is_there(&self, id: MemberId) -> bool {
        self.version_of(id).await.is_some()
    }

    /// The hash of every other member's data at a revision.
    pub async fn hash_of_others(&self, revision: i64) -> Vec<(MemberId, PeerHash)> {
        use peerpb::hash_kv_response::Result as Wire;
        let questions = self.others().into_iter().map(|id| async move {
            let no_answer = |error: &dyn std::fmt::Display| PeerHash::NoAnswer(error.to_string());
            let Some(peer) = self.shared.peer(id) else { return (id, no_answer(&"removed")) };
            // A hash takes as long as there is data. Whether there is anybody to wait for is asked first.
            if !self.is_there(id).await {
                return (id, no_answer(&"the member does not answer"));
            }
            let envelope = self.shared.sender.envelope(id);
            let request = peerpb::HashKvRequest { envelope, revision };
            let call = self.shared.sender.peers.hash_kv(peer, request);
            let answer = match timeout(self.shared.rules.request_timeout, call).await {
                Ok(Ok(response)) => match response.result {
                    Some(Wire::Hash(hash)) => PeerHash::Hash(hash),
                    Some(Wire::Compacted(_)) => PeerHash::Compacted,
                    Some(Wire::FutureRevision(_)) => PeerHash::FutureRevision,
                    None => no_answer(&"an answer without a result"),
                },
                Ok(Err(error)) => no_answer(&error),
                Err(error) => no_answer(&error),
            };
            (id, answer)
        });
        join_all(questions).await
    }

    /// Asks the leader how long leases have to live.
    ///
    /// # Errors
    /// When no leader answered in time, or it was deposed meanwhile.
    pub async fn leases_at_leader(
        &self,
        ids: &[LeaseId],
        keys: bool,
    ) -> Result<Vec<peerpb::LeaseState>, Unavailable> {
        use peerpb::lease_time_to_live_response::Result as Wire;
        let (envelope, peer) = self.shared.leader_peer()?;
        let ids = ids.iter().map(|id| id.0).collect();
        let request = peerpb::LeaseTimeToLiveRequest { envelope, ids, keys };
        let leader = peer.id;
        let call = self.shared.sender.peers.lease_time_to_live(peer, request);
        match self.shared.ask(leader, call).await?.result {
            Some(Wire::Leases(states)) => Ok(states.leases),
            Some(Wire::NotLeader(_)) => Err(Unavailable::LeaderChanged),
            None => Err(Unavailable::Timeout),
        }
    }

    /// Whether this member is the only one. A member that does not know any yet is not.
    pub fn is_alone(&self) -> bool {
        self.shared.status.borrow().nodes.keys().eq([&self.shared.me])
    }

    fn others(&self) -> Vec<MemberId> {
        let status = self.shared.status.borrow();
        status.nodes.keys().copied().filter(|id| *id != self.shared.me).collect()
    }
}
