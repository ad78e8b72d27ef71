//! This member as health, metrics and version monitoring ask for it.

use std::collections::BTreeMap;

use machine::{AlarmKind, ClusterVersion};
use replica::{Handle, Unavailable};
use tonic::Status;
use types::MemberId;

use crate::api::ApiError;
use crate::events::HubCell;
use crate::ops::health::{Check, Vitals};
use crate::ops::http::Member;
use crate::ops::metrics::{Metrics, Sample};
use crate::read_budget::ReadBudget;

/// The member behind the HTTP endpoints.
pub(crate) struct LocalMember {
    handle: Handle,
    hub: HubCell,
    reads: ReadBudget,
    metrics: Metrics,
}

impl LocalMember {
    pub(crate) fn new(handle: Handle, hub: HubCell, reads: ReadBudget, metrics: Metrics) -> Self {
        Self { handle, hub, reads, metrics }
    }
}

impl Vitals for LocalMember {
    fn has_leader(&self) -> bool {
        self.handle.leader().is_some()
    }

    fn is_learner(&self) -> bool {
        self.handle.is_learner()
    }

    fn alarms(&self) -> Vec<AlarmKind> {
        let alarms = self.handle.views().alarms(AlarmKind::NONE);
        alarms.into_iter().map(|alarm| alarm.kind).collect()
    }

    fn read(&self, serializable: bool) -> Check<'_> {
        Box::pin(async move {
            if serializable {
                return Ok(());
            }
            let read = self.handle.read_index().await;
            read.map_err(|reason: Unavailable| {
                Status::from(ApiError::from(reason)).message().to_owned()
            })
        })
    }
}

impl Member for LocalMember {
    fn cluster_version(&self) -> Option<String> {
        self.handle.views().cluster_version().map(|version| version.to_string())
    }

    fn raft_status(&self) -> serde_json::Value {
        let status = self.handle.status();
        serde_json::json!({
            "id": status.member_id.to_string(),
            "term": status.term.0,
            "commit": status.committed.0,
            "applied": status.applied.0,
            "lead": status.answered_leader().map_or_else(String::new, |id| id.to_string()),
            "raftState": if status.is_leader() { "StateLeader" } else { "StateFollower" },
        })
    }

    fn refresh_metrics(&self) {
        let status = self.handle.status();
        let views = self.handle.views();
        self.metrics.refresh(&Sample {
            member: status.member_id,
            leader: status.answered_leader(),
            is_learner: status.is_learner,
            committed: status.committed,
            applied: status.applied,
            proposals_pending: self.handle.proposals_pending(),
            cluster_version: views
                .cluster_version()
                .map(|version| format!("{}.{}", version.major, version.minor)),
            revision: views.mvcc.revision(),
            compact_revision: views.mvcc.compact_revision(),
            auth_revision: views.auth().revision(),
            alarms: views.alarms(AlarmKind::NONE),
            members: views.members().iter().map(|member| member.id).collect(),
        });
        let size = views.mvcc.store_size();
        self.metrics.refresh_store(size.total, size.in_use, views.mvcc.key_count());
        self.metrics.refresh_watches(&self.hub.get().stats());
        self.metrics.refresh_reads(&self.reads.stats());
    }
}

/// The versions the other members run, as far as they can be reached.
pub(crate) async fn versions_of_others(
    handle: Handle,
    own: ClusterVersion,
) -> BTreeMap<MemberId, ClusterVersion> {
    let mut versions = BTreeMap::new();
    for (member, version) in handle.versions_of_others().await {
        // A member that speaks our protocol but reports nonsense counts as one of our kind.
        versions.insert(member, version.parse().unwrap_or(own));
    }
    versions
}
