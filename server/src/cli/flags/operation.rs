//! Metrics, logs, checks, the unsafe flags, and those that only this server has.

use super::{
    Flag,
    Group::{Features, Hidden, Keelson, Logging, Monitoring, Tracing, Unsafe},
    Kind,
};

const NO_DEFRAGMENTATION: &str =
    "Skipping defragmentation: space is returned while the server runs";

pub(super) const FLAGS: &[Flag] = &[
    Flag::new(Hidden, "config-file", Kind::Text, "", "Path to the server configuration file."),
    Flag::new(Hidden, "version", Kind::Bool, "false", "Print the version and exit."),
    Flag::new(
        Monitoring,
        "enable-pprof",
        Kind::Bool,
        "false",
        "Enable runtime profiling data via HTTP server. Address is at client URL + \"/debug/pprof/\"",
    ),
    Flag::new(
        Monitoring,
        "metrics",
        Kind::Text,
        "basic",
        "Set level of detail for exported metrics, specify 'extensive' to include server side grpc histogram metrics.",
    ),
    Flag::new(
        Monitoring,
        "listen-metrics-urls",
        Kind::Urls,
        "",
        "List of URLs to listen on for the /metrics and /health endpoints. For https, the client URL TLS info is used.",
    ),
    Flag::new(
        Logging,
        "logger",
        Kind::Text,
        "zap",
        "Currently only supports 'zap' for structured logging.",
    ),
    Flag::new(
        Logging,
        "log-outputs",
        Kind::Texts,
        "default",
        "Specify 'stdout' or 'stderr', or a list of comma separated output targets; 'default' is stderr.",
    ),
    Flag::new(
        Logging,
        "log-level",
        Kind::Text,
        "info",
        "Configures log level. Only supports debug, info, warn, error, panic, or fatal.",
    ),
    Flag::new(
        Logging,
        "log-format",
        Kind::Text,
        "json",
        "Configures log format. Only supports json, console.",
    ),
    Flag::new(
        Logging,
        "enable-log-rotation",
        Kind::Bool,
        "false",
        "Enable log rotation of a single log-outputs file target.",
    ),
    Flag::new(
        Logging,
        "log-rotation-config-json",
        Kind::Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        "Configures log rotation if enabled: maxsize in MiB, maxage in days, maxbackups.",
    ),
    Flag::new(
        Logging,
        "warning-unary-request-duration",
        Kind::Duration,
        "300ms",
        "Set time duration after which a warning is logged if a unary request takes more than this duration.",
    ),
    Flag::new(
        Tracing,
        "enable-distributed-tracing",
        Kind::Bool,
        "false",
        "Enable distributed tracing.",
    ),
    Flag::new(
        Tracing,
        "distributed-tracing-address",
        Kind::Text,
        "localhost:4317",
        "Distributed tracing collector address.",
    ),
    Flag::new(
        Tracing,
        "distributed-tracing-service-name",
        Kind::Text,
        "etcd",
        "Distributed tracing service name, must be same across all etcd instances.",
    ),
    Flag::new(
        Tracing,
        "distributed-tracing-instance-id",
        Kind::Text,
        "",
        "Distributed tracing instance ID, must be unique per each etcd instance.",
    ),
    Flag::new(
        Tracing,
        "distributed-tracing-sampling-rate",
        Kind::Int64,
        "0",
        "Number of samples to collect per million spans for distributed tracing.",
    ),
    Flag::new(
        Features,
        "corrupt-check-time",
        Kind::Duration,
        "4h",
        "Duration of time between cluster corruption check passes.",
    ),
    Flag::new(
        Features,
        "compact-hash-check-time",
        Kind::Duration,
        "1m",
        "Duration of time between leader checks followers compaction hashes.",
    ),
    Flag::new(
        Features,
        "compaction-batch-limit",
        Kind::Int64,
        "0",
        "Sets the maximum revisions deleted in each compaction batch (0 means 1000).",
    )
    .no_effect(
        "compaction moves a watermark; what it frees is dropped in the background in small steps",
    ),
    Flag::new(
        Features,
        "compaction-sleep-interval",
        Kind::Duration,
        "0s",
        "Sets the sleep interval between each compaction batch (0 means 10ms).",
    )
    .no_effect(
        "compaction moves a watermark; what it frees is dropped in the background in small steps",
    ),
    Flag::new(
        Features,
        "watch-progress-notify-interval",
        Kind::Duration,
        "10m",
        "Duration of periodical watch progress notification.",
    ),
    Flag::new(
        Features,
        "warning-apply-duration",
        Kind::Duration,
        "100ms",
        "Warning is generated if requests take more than this duration to apply.",
    ),
    Flag::new(
        Features,
        "bootstrap-defrag-threshold-megabytes",
        Kind::Uint64,
        "0",
        "Enable the defrag during etcd server bootstrap if it frees at least this many megabytes.",
    )
    .no_effect(NO_DEFRAGMENTATION),
    Flag::new(
        Features,
        "downgrade-check-time",
        Kind::Duration,
        "5s",
        "Duration of time between two downgrade status checks.",
    ),
    Flag::new(
        Unsafe,
        "force-new-cluster",
        Kind::Bool,
        "false",
        "Force to create a new one-member cluster.",
    ),
    Flag::new(
        Unsafe,
        "unsafe-no-fsync",
        Kind::Bool,
        "false",
        "Disables fsync, unsafe, will cause data loss.",
    )
    .no_effect("everything is synced before it is acknowledged, whatever this says"),
    Flag::new(
        Keelson,
        "backend-engine",
        Kind::OneOf(&["revlog", "sled"]),
        "revlog",
        "The engine that keeps values by revision.",
    ),
    Flag::new(
        Keelson,
        "max-read-memory-bytes",
        Kind::Uint64,
        "0",
        "How much memory the answers of reads may take together; what finds no room waits, and is refused in the end (0 means a quarter of what the process may use).",
    ),
    Flag::new(
        Keelson,
        "expect-cluster-id",
        Kind::HexId,
        "",
        "Refuse to start if the data directory, or the cluster to join, has another cluster id (hexadecimal).",
    ),
    Flag::new(
        Keelson,
        "expect-member-id",
        Kind::HexId,
        "",
        "Refuse to start if this member's id is another one (hexadecimal).",
    ),
];
