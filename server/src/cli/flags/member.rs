//! What this member is, where it listens and how much it accepts.

use super::{Flag, Group::Member, Kind};

const NO_BBOLT: &str = "values are kept in a log of revisions, not in a bbolt file";

pub(super) const FLAGS: &[Flag] = &[
    Flag::new(Member, "name", Kind::Text, "default", "Human-readable name for this member."),
    Flag::new(Member, "data-dir", Kind::Text, "", "Path to the data directory. The default is '${name}.etcd'."),
    Flag::new(Member, "wal-dir", Kind::Text, "", "Path to the dedicated wal directory."),
    Flag::new(Member, "snapshot-count", Kind::Uint64, "10000", "Number of committed transactions to trigger a snapshot."),
    Flag::new(Member, "snapshot-catchup-entries", Kind::Uint64, "5000", "Number of entries for a slow follower to catch up after the log is cut."),
    Flag::new(Member, "heartbeat-interval", Kind::Uint64, "100", "Time (in milliseconds) of a heartbeat interval."),
    Flag::new(Member, "election-timeout", Kind::Uint64, "1000", "Time (in milliseconds) for an election to timeout; at least five heartbeat intervals, at most 50000."),
    Flag::new(Member, "initial-election-tick-advance", Kind::Bool, "true", "Whether to fast-forward initial election ticks on boot.")
        .no_effect("a starting member waits one election timeout, whatever this says"),
    Flag::new(Member, "listen-peer-urls", Kind::Urls, "http://localhost:2380", "List of URLs to listen on for peer traffic."),
    Flag::new(Member, "listen-client-urls", Kind::Urls, "http://localhost:2379", "List of URLs to listen on for client gRPC traffic, and for HTTP unless --listen-client-http-urls is set."),
    Flag::new(Member, "listen-client-http-urls", Kind::Urls, "", "List of URLs to listen on for HTTP-only client traffic. Setting it removes HTTP services from --listen-client-urls."),
    Flag::new(Member, "max-snapshots", Kind::Uint64, "5", "Maximum number of snapshot files to retain (0 is unlimited). Deprecated in v3.6 and will be decommissioned in v3.8.")
        .no_effect("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8. Images are kept as long as recovery may need them"),
    Flag::new(Member, "max-wals", Kind::Uint64, "5", "Maximum number of wal files to retain (0 is unlimited).")
        .no_effect("log segments are kept as long as recovery or a follower may need them"),
    Flag::new(Member, "memory-mlock", Kind::Bool, "false", "Enable to enforce etcd pages to stay in RAM."),
    Flag::new(Member, "quota-backend-bytes", Kind::Int64, "0", "Size (in bytes) beyond which the store raises an alarm and refuses to grow. 0 means the default of 2GiB, a negative number no limit."),
    Flag::new(Member, "backend-bbolt-freelist-type", Kind::Text, "map", "Type of the freelist of the bbolt backend (array or map).").no_effect(NO_BBOLT),
    Flag::new(Member, "backend-batch-interval", Kind::Duration, "", "Maximum time before the backend transaction is committed.").no_effect(NO_BBOLT),
    Flag::new(Member, "backend-batch-limit", Kind::Int64, "0", "Maximum operations before the backend transaction is committed.").no_effect(NO_BBOLT),
    Flag::new(Member, "max-txn-ops", Kind::Uint64, "128", "Maximum number of operations permitted in a transaction."),
    Flag::new(Member, "max-request-bytes", Kind::Uint64, "1572864", "Maximum client request size in bytes the server will accept."),
    Flag::new(Member, "max-concurrent-streams", Kind::Uint32, "4294967295", "Maximum concurrent streams that each client can open at a time."),
    Flag::new(Member, "grpc-keepalive-min-time", Kind::Duration, "5s", "Minimum interval that a client should wait before pinging the server."),
    Flag::new(Member, "grpc-keepalive-interval", Kind::Duration, "2h", "Frequency of server-to-client pings that check whether a connection is alive (0 to disable)."),
    Flag::new(Member, "grpc-keepalive-timeout", Kind::Duration, "20s", "Additional wait before a non-responsive connection is closed (0 to disable)."),
    Flag::new(Member, "socket-reuse-port", Kind::Bool, "false", "Set SO_REUSEPORT on listeners, which allows binding a port that is already in use."),
    Flag::new(Member, "socket-reuse-address", Kind::Bool, "false", "Set SO_REUSEADDR on listeners, which allows binding to an address in TIME_WAIT state."),
    Flag::new(Member, "enable-grpc-gateway", Kind::Bool, "true", "Enable GRPC gateway."),
    Flag::new(Member, "raft-read-timeout", Kind::Duration, "5s", "Read timeout set on each peer connection.")
        .no_effect("peer connections are watched by pings within an election timeout"),
    Flag::new(Member, "raft-write-timeout", Kind::Duration, "5s", "Write timeout set on each peer connection.")
        .no_effect("peer connections are watched by pings within an election timeout"),
    Flag::new(Member, "feature-gates", Kind::Gates, "", "A set of key=value pairs that turn features on or off."),
];
