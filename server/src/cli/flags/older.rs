//! Names that only older versions of etcd knew, 3.4 to 3.6: deployments still pass them.

use super::{Flag, Group::Hidden, Kind, Status};

const NO_V2: &str = "the v2 API was removed in etcd 3.6; use the v3 API";
const NO_PROXY: &str = "the v2 proxy was removed in etcd 3.6";

const fn alias(name: &'static str, kind: Kind, target: &'static str) -> Flag {
    Flag { name, group: Hidden, kind, default: "", help: "", status: Status::Alias(target) }
}

const fn gate(name: &'static str, gate: &'static str) -> Flag {
    Flag {
        name,
        group: Hidden,
        kind: Kind::Bool,
        default: "",
        help: "",
        status: Status::Gate(gate),
    }
}

const fn legacy(name: &'static str) -> Flag {
    Flag {
        name,
        group: Hidden,
        kind: Kind::Anything,
        default: "",
        help: "",
        status: Status::Legacy,
    }
}

pub(super) const FLAGS: &[Flag] = &[
    alias("experimental-corrupt-check-time", Kind::Duration, "corrupt-check-time"),
    alias("experimental-compact-hash-check-time", Kind::Duration, "compact-hash-check-time"),
    alias("experimental-compaction-batch-limit", Kind::Int64, "compaction-batch-limit"),
    alias("experimental-compaction-sleep-interval", Kind::Duration, "compaction-sleep-interval"),
    alias(
        "experimental-watch-progress-notify-interval",
        Kind::Duration,
        "watch-progress-notify-interval",
    ),
    alias("experimental-warning-apply-duration", Kind::Duration, "warning-apply-duration"),
    alias(
        "experimental-warning-unary-request-duration",
        Kind::Duration,
        "warning-unary-request-duration",
    ),
    alias(
        "experimental-bootstrap-defrag-threshold-megabytes",
        Kind::Uint64,
        "bootstrap-defrag-threshold-megabytes",
    ),
    alias("experimental-memory-mlock", Kind::Bool, "memory-mlock"),
    alias("experimental-snapshot-catchup-entries", Kind::Uint64, "snapshot-catchup-entries"),
    alias("experimental-snapshot-catch-up-entries", Kind::Uint64, "snapshot-catchup-entries"),
    alias("experimental-downgrade-check-time", Kind::Duration, "downgrade-check-time"),
    alias("experimental-max-learners", Kind::Int64, "max-learners"),
    alias(
        "experimental-peer-skip-client-san-verification",
        Kind::Bool,
        "peer-skip-client-san-verification",
    ),
    alias("experimental-enable-distributed-tracing", Kind::Bool, "enable-distributed-tracing"),
    alias("experimental-distributed-tracing-address", Kind::Text, "distributed-tracing-address"),
    alias(
        "experimental-distributed-tracing-service-name",
        Kind::Text,
        "distributed-tracing-service-name",
    ),
    alias(
        "experimental-distributed-tracing-instance-id",
        Kind::Text,
        "distributed-tracing-instance-id",
    ),
    alias(
        "experimental-distributed-tracing-sampling-rate",
        Kind::Int64,
        "distributed-tracing-sampling-rate",
    ),
    gate("experimental-initial-corrupt-check", "InitialCorruptCheck"),
    gate("experimental-compact-hash-check-enabled", "CompactHashCheck"),
    gate("experimental-enable-lease-checkpoint", "LeaseCheckpoint"),
    gate("experimental-enable-lease-checkpoint-persist", "LeaseCheckpointPersist"),
    gate("experimental-txn-mode-write-with-shared-buffer", "TxnModeWriteWithSharedBuffer"),
    gate("experimental-stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"),
    gate("experimental-set-member-localaddr", "SetMemberLocalAddr"),
    Flag::new(Hidden, "enable-v2", Kind::Bool, "false", "Accept etcd V2 client requests.")
        .removed(NO_V2),
    Flag::new(
        Hidden,
        "experimental-enable-v2v3",
        Kind::Text,
        "",
        "Serve the v2 API on top of v3 data.",
    )
    .removed(NO_V2),
    Flag::new(Hidden, "proxy", Kind::OneOf(&["off", "readonly", "on"]), "off", "Proxy mode.")
        .refused(NO_PROXY),
    Flag::new(Hidden, "proxy-failure-wait", Kind::Uint64, "5000", "Proxy mode.").refused(NO_PROXY),
    Flag::new(Hidden, "proxy-refresh-interval", Kind::Uint64, "30000", "Proxy mode.")
        .refused(NO_PROXY),
    Flag::new(Hidden, "proxy-dial-timeout", Kind::Uint64, "1000", "Proxy mode.").refused(NO_PROXY),
    Flag::new(Hidden, "proxy-write-timeout", Kind::Uint64, "5000", "Proxy mode.").refused(NO_PROXY),
    Flag::new(Hidden, "proxy-read-timeout", Kind::Uint64, "0", "Proxy mode.").refused(NO_PROXY),
    Flag::new(Hidden, "debug", Kind::Bool, "false", "Debug logs, before --log-level existed.")
        .removed("use --log-level=debug"),
    Flag::new(Hidden, "log-package-levels", Kind::Text, "", "Log levels per package.")
        .removed("log levels per package do not exist any more; use --log-level"),
    Flag::new(Hidden, "ca-file", Kind::Text, "", "Deprecated CA file.")
        .refused("use --trusted-ca-file and --client-cert-auth"),
    Flag::new(Hidden, "peer-ca-file", Kind::Text, "", "Deprecated CA file.")
        .refused("use --peer-trusted-ca-file and --peer-client-cert-auth"),
    legacy("cluster-active-size"),
    legacy("cluster-remove-delay"),
    legacy("cluster-sync-interval"),
    legacy("config"),
    legacy("force"),
    legacy("max-result-buffer"),
    legacy("max-retry-attempts"),
    legacy("peer-heartbeat-interval"),
    legacy("peer-election-timeout"),
    legacy("retry-interval"),
    legacy("snapshot"),
    legacy("v"),
    legacy("vv"),
    legacy("test.coverprofile"),
    legacy("test.outputdir"),
];
