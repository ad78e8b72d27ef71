//! The versions this build reports.

use machine::ClusterVersion;

/// The etcd version this server is compatible with; clients parse it.
///
/// The feature `next-version` makes a build that calls itself the next patch release and is otherwise
/// the same: what a rolling upgrade is proven with before there are two releases.
pub const ETCD: &str = if cfg!(feature = "next-version") { "3.7.4" } else { "3.7.3" };

/// The version a cluster of such members agrees on.
pub const CLUSTER: &str = "3.7.0";

/// The etcd version whose storage format a snapshot file has: that of the cluster's version, as etcd
/// keeps the two together, and never one that this build does not know.
pub fn storage(cluster: Option<ClusterVersion>) -> String {
    let own: Option<ClusterVersion> = CLUSTER.parse().ok();
    cluster.min(own).or(own).map_or_else(|| CLUSTER.to_owned(), |version| version.to_string())
}

/// Our own version.
pub const KEELSON: &str = env!("CARGO_PKG_VERSION");

/// What `--version` prints: the four lines of etcd in its order, then our own.
pub fn report() -> String {
    let commit = option_env!("KEELSON_GIT_SHA").unwrap_or("Not provided");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {ETCD}\nGit SHA: {commit}\nGo Version: none (Rust)\nGo OS/Arch: {}/{architecture}\nKeelson Version: {KEELSON}\n",
        std::env::consts::OS
    )
}
