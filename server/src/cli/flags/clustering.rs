//! How the cluster is formed, and automatic compaction (which etcd lists here as well).

use super::{Flag, Group::Clustering, Kind};

const NO_DISCOVERY: &str = "v2 discovery was removed from etcd; use --discovery-endpoints and --discovery-token, or --discovery-srv";

pub(super) const FLAGS: &[Flag] = &[
    Flag::new(Clustering, "initial-advertise-peer-urls", Kind::Urls, "http://localhost:2380", "List of this member's peer URLs to advertise to the rest of the cluster."),
    Flag::new(Clustering, "initial-cluster", Kind::Text, "default=http://localhost:2380", "Initial cluster configuration for bootstrapping."),
    Flag::new(Clustering, "initial-cluster-state", Kind::OneOf(&["new", "existing"]), "new", "Initial cluster state ('new' when bootstrapping a new cluster or 'existing' when adding new members to an existing cluster). Ignored once the member has data."),
    Flag::new(Clustering, "initial-cluster-token", Kind::Text, "etcd-cluster", "Initial cluster token for the cluster during bootstrap; it keeps clusters apart that share addresses."),
    Flag::new(Clustering, "advertise-client-urls", Kind::Urls, "http://localhost:2379", "List of this member's client URLs to advertise to the public."),
    Flag::new(Clustering, "discovery", Kind::Text, "", "Discovery URL used to bootstrap the cluster for v2 discovery.").refused(NO_DISCOVERY),
    Flag::new(Clustering, "discovery-token", Kind::Text, "", "V3 discovery: token of the cluster to be bootstrapped."),
    Flag::new(Clustering, "discovery-endpoints", Kind::Texts, "", "V3 discovery: list of gRPC endpoints of the discovery service."),
    Flag::new(Clustering, "discovery-dial-timeout", Kind::Duration, "2s", "V3 discovery: dial timeout for client connections."),
    Flag::new(Clustering, "discovery-request-timeout", Kind::Duration, "5s", "V3 discovery: timeout for discovery requests (excluding dial timeout)."),
    Flag::new(Clustering, "discovery-keepalive-time", Kind::Duration, "2s", "V3 discovery: keepalive time for client connections."),
    Flag::new(Clustering, "discovery-keepalive-timeout", Kind::Duration, "6s", "V3 discovery: keepalive timeout for client connections."),
    Flag::new(Clustering, "discovery-insecure-transport", Kind::Bool, "true", "V3 discovery: disable transport security for client connections."),
    Flag::new(Clustering, "discovery-insecure-skip-tls-verify", Kind::Bool, "false", "V3 discovery: skip server certificate verification."),
    Flag::new(Clustering, "discovery-cert", Kind::Text, "", "V3 discovery: TLS certificate file that identifies the client."),
    Flag::new(Clustering, "discovery-key", Kind::Text, "", "V3 discovery: TLS key file that identifies the client."),
    Flag::new(Clustering, "discovery-cacert", Kind::Text, "", "V3 discovery: CA bundle that verifies the discovery service."),
    Flag::new(Clustering, "discovery-user", Kind::Text, "", "V3 discovery: username[:password] for authentication."),
    Flag::new(Clustering, "discovery-password", Kind::Text, "", "V3 discovery: password for authentication."),
    Flag::new(Clustering, "discovery-fallback", Kind::OneOf(&["exit", "proxy"]), "exit", "Expected behavior ('exit') when discovery services fail."),
    Flag::new(Clustering, "discovery-proxy", Kind::Text, "", "HTTP proxy to use for traffic to the discovery service.").refused(NO_DISCOVERY),
    Flag::new(Clustering, "discovery-srv", Kind::Text, "", "DNS srv domain used to bootstrap the cluster."),
    Flag::new(Clustering, "discovery-srv-name", Kind::Text, "", "Suffix to the dns srv name queried when bootstrapping."),
    Flag::new(Clustering, "strict-reconfig-check", Kind::Bool, "true", "Reject reconfiguration requests that would cause quorum loss."),
    Flag::new(Clustering, "pre-vote", Kind::Bool, "true", "Enable the raft Pre-Vote algorithm, which keeps a member that was partitioned away from disrupting the cluster."),
    Flag::new(Clustering, "max-learners", Kind::Int64, "1", "Set the max number of learner members allowed in the cluster membership."),
    Flag::new(Clustering, "auto-compaction-retention", Kind::Text, "0", "Auto compaction retention length. 0 means disable auto compaction."),
    Flag::new(Clustering, "auto-compaction-mode", Kind::Text, "periodic", "Interpret 'auto-compaction-retention' one of: periodic|revision. 'periodic' for duration based retention, defaulting to hours if no time unit is provided (e.g. '5m'). 'revision' for revision number based retention."),
    Flag::new(Clustering, "v2-deprecation", Kind::AllOf(&["write-only", "write-only-skip-check", "write-only-drop-data", "gone"]), "", "Phase of v2store deprecation. Deprecated and scheduled for removal in v3.8.")
        .no_effect("--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input."),
];
