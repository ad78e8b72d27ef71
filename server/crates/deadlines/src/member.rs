//! What the clock needs of the member that it runs on.

use std::sync::Arc;

use lease::Lease;
use machine::{Outcome, Proposal};
use proto::peerpb::LeaseState;
use replica::{Handle, Status, Unavailable};
use tokio::sync::watch;
use types::{LeaseId, Term};

/// The member that a clock runs on.
pub trait Member: Send + Sync {
    /// Follows what it knows of itself and its cluster.
    fn watch_status(&self) -> watch::Receiver<Status>;
    /// The term in which it leads and has applied an entry of its own.
    fn office(&self) -> Option<Term>;
    /// All leases that it has applied: id, granted TTL, remaining TTL.
    fn leases(&self) -> Vec<(LeaseId, i64, i64)>;
    /// Those of these leases that it has applied.
    fn look_up(&self, ids: &[LeaseId]) -> Vec<Option<Arc<Lease>>>;
    /// Returns once a quorum has confirmed a leader and this member has applied all that was committed
    /// by then.
    fn confirm(&self) -> impl Future<Output = Result<(), Unavailable>> + Send;
    /// Proposes a request and waits until it is applied here.
    fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Outcome, Unavailable>> + Send;
    /// The same for what the leader of `term` decides: it is applied as of that term, or refused.
    fn propose_in(
        &self,
        term: Term,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Outcome, Unavailable>> + Send;
    /// Has the leader renew leases; one TTL per id, 0 for a lease that is gone.
    fn renew_at_leader(
        &self,
        ids: &[LeaseId],
    ) -> impl Future<Output = Result<Vec<i64>, Unavailable>> + Send;
    /// Asks the leader how long leases have to live.
    fn leases_at_leader(
        &self,
        ids: &[LeaseId],
        keys: bool,
    ) -> impl Future<Output = Result<Vec<LeaseState>, Unavailable>> + Send;
}

impl Member for Handle {
    fn watch_status(&self) -> watch::Receiver<Status> {
        self.watch_status()
    }

    fn office(&self) -> Option<Term> {
        self.leads_with_its_term_applied()
    }

    fn leases(&self) -> Vec<(LeaseId, i64, i64)> {
        self.views().leases()
    }

    fn look_up(&self, ids: &[LeaseId]) -> Vec<Option<Arc<Lease>>> {
        let views = self.views();
        ids.iter().map(|id| views.lease(*id)).collect()
    }

    async fn confirm(&self) -> Result<(), Unavailable> {
        self.read_index().await
    }

    async fn propose(&self, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.propose(proposal).await
    }

    async fn propose_in(&self, term: Term, proposal: Proposal) -> Result<Outcome, Unavailable> {
        self.propose_in(term, proposal).await
    }

    async fn renew_at_leader(&self, ids: &[LeaseId]) -> Result<Vec<i64>, Unavailable> {
        self.renew_at_leader(ids).await
    }

    async fn leases_at_leader(
        &self,
        ids: &[LeaseId],
        keys: bool,
    ) -> Result<Vec<LeaseState>, Unavailable> {
        self.leases_at_leader(ids, keys).await
    }
}
