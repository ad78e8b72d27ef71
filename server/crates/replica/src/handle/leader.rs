//! How proposals and reads come to whoever leads: this member, or another over the wire.

use std::time::Duration;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use proto::peerpb;
use tokio::time::{Instant, timeout};
use types::{LogIndex, MemberId, Term};

use super::Shared;
use crate::observation::Observation;
use crate::peers::PeerError;
use crate::proposals::{Appender, Forwarded, Leader};
use crate::raft_types::{Batch, OnComplete, TypeConfig, committed_leader};
use crate::reads::ReadIndexSource;
use crate::status::Status;
use crate::unavailable::Unavailable;

/// etcd asks the leader again after this time, and counts the read as slow.
const READ_INDEX_SLOW: Duration = Duration::from_millis(500);

impl Shared {
    /// The leader that this member follows, or itself.
    pub(super) fn leader(&self) -> Leader {
        let status = self.status.borrow();
        leader_at(&status, status.leader)
    }
}

fn leader_at(status: &Status, leader: Option<MemberId>) -> Leader {
    match leader {
        Some(leader) if leader == status.member_id => Leader::Here { term: status.term },
        Some(member) => Leader::There { member, term: status.term },
        None => Leader::Unknown,
    }
}

impl Appender for Shared {
    fn taker(&self) -> Leader {
        let status = self.status.borrow();
        leader_at(&status, status.answered_leader())
    }

    async fn taker_found(&self) {
        let mut status = self.status.clone();
        // The receiver here never marks a status as seen, so `changed` would answer at once, for
        // ever. Either way the caller looks again.
        let leader = status.wait_for(|status| status.answered_leader().is_some());
        let pause = self.sender.patience / 10;
        let ended = matches!(timeout(pause, leader).await, Ok(Err(_)));
        if ended {
            // Raft has ended; the queue is closed soon.
            tokio::time::sleep(pause).await;
        }
    }

    async fn append(
        &self,
        term: Term,
        batch: Bytes,
        not_appended: Box<dyn FnOnce() + Send>,
    ) -> Result<(), Unavailable> {
        let responder =
            OnComplete(Box::new(move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
                if let Err(ClientWriteError::ForwardToLeader(_)) = result {
                    not_appended();
                }
            }));
        let write = self.raft.write(Batch(batch)).responder(responder);
        write.with_leader(committed_leader(term)).await.map_err(|_| Unavailable::Stopped)
    }

    async fn forward(&self, to: MemberId, term: Term, batch: Bytes) -> Forwarded {
        use peerpb::forward_response::Result as Wire;
        let Some(peer) = self.peer(to) else { return Forwarded::NotAppended };
        let envelope = self.sender.envelope(to);
        let request = peerpb::ForwardRequest { envelope, term: term.0, batch };
        let call = self.sender.peers.forward(peer, request);
        match timeout(self.rules.request_timeout, call).await {
            Ok(Ok(response)) => match response.result {
                Some(Wire::Accepted(_)) | None => Forwarded::Handed,
                Some(Wire::Overloaded(_)) => Forwarded::Overloaded,
                Some(Wire::NotLeader(_)) => Forwarded::NotAppended,
            },
            Ok(Err(PeerError::Unreachable(_) | PeerError::Refused(_) | PeerError::Removed)) => {
                Forwarded::NotAppended
            }
            Ok(Err(PeerError::NoAnswer(_))) | Err(_) => Forwarded::Handed,
        }
    }
}

impl ReadIndexSource for Shared {
    async fn read_index(&self) -> Result<LogIndex, Unavailable> {
        let mut status = self.status.clone();
        let attempts = async {
            loop {
                let answer = match self.leader() {
                    Leader::Unknown => Err(Unavailable::NoLeader),
                    Leader::Here { .. } => self.local_read_index().await,
                    Leader::There { member, .. } => self.remote_read_index(member).await,
                };
                match answer {
                    Ok(index) => return Ok(index),
                    Err(Unavailable::Stopped) => return Err(Unavailable::Stopped),
                    // Asking again is safe: a read changes nothing. A new leader ends the pause.
                    Err(_) => {
                        let pause = self.sender.patience / 10;
                        if let Ok(Err(_)) = timeout(pause, status.changed()).await {
                            return Err(Unavailable::Stopped);
                        }
                    }
                }
            }
        };
        let began = Instant::now();
        let answer = timeout(self.rules.request_timeout, attempts).await;
        if began.elapsed() > READ_INDEX_SLOW {
            self.events.observe(Observation::ReadIndexSlow);
        }
        match answer {
            Ok(answer) => answer,
            Err(_) => {
                self.events.observe(Observation::ReadIndexFailed);
                Err(self.timeout_reason())
            }
        }
    }

    async fn applied(&self, index: LogIndex) -> Result<(), Unavailable> {
        timeout(self.rules.request_timeout, self.applied.reach(index))
            .await
            .map_err(|_| Unavailable::TimeoutWaitAppliedIndex)
    }
}
