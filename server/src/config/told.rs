//! What the log says of the configuration when a server starts, under etcd's names (`embed/etcd.go`).

use std::path::Path;

use types::go::duration;
use types::{ClusterId, MemberId};

use super::{ClusterState, Config, QUOTA_BYTES_DEFAULT};
use crate::urls::Url;

impl Config {
    /// Logs who starts, where its data is, and with which settings.
    pub(crate) fn log_start(&self, cluster: ClusterId, member: MemberId, directory: &Path) {
        let (raft, limits, listen) = (&self.raft, &self.limits, &self.listen);
        let founding = &self.cluster;
        tracing::info!(
            "etcd-version" = crate::version::release().etcd,
            "local-member-id" = %member,
            "cluster-id" = %cluster,
            name = self.name,
            "data-dir" = self.data_dir,
            "wal-dir" = self.wal_dir.as_deref().unwrap_or_default(),
            "member-dir" = %directory.display(),
            "force-new-cluster" = founding.force_new_cluster,
            "heartbeat-interval" = duration(raft.heartbeat),
            "election-timeout" = duration(raft.election_timeout),
            "snapshot-count" = raft.snapshot_count,
            "snapshot-catchup-entries" = raft.catch_up_entries,
            "initial-advertise-peer-urls" = list(&founding.advertise_peer_urls),
            "listen-peer-urls" = list(&listen.peer_urls),
            "advertise-client-urls" = list(&founding.advertise_client_urls),
            "listen-client-urls" = list(&listen.client_urls),
            "listen-metrics-urls" = list(&listen.metrics_urls),
            "initial-cluster" = initial_cluster(self),
            "initial-cluster-state" = match founding.state {
                ClusterState::New => "new",
                ClusterState::Existing => "existing",
            },
            "initial-cluster-token" = founding.token,
            "quota-backend-bytes" = limits.quota_bytes.unwrap_or(QUOTA_BYTES_DEFAULT),
            "max-request-bytes" = limits.request_bytes_max,
            "max-concurrent-streams" = listen.streams_max,
            "pre-vote" = raft.pre_vote,
            "corrupt-check-time-interval" = duration(self.corruption.periodic),
            "compact-check-time-interval" = duration(self.corruption.compactions),
            "downgrade-check-interval" = duration(self.downgrade_check),
            "max-learners" = founding.learners_max,
            "v2-deprecation" = "write-only",
            "starting an etcd server"
        );
    }
}

fn list(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

fn initial_cluster(config: &Config) -> String {
    let members = config.cluster.initial.members();
    let pairs =
        members.flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
    pairs.collect::<Vec<_>>().join(",")
}
