//! The versions this build reports.

/// The etcd version this server is compatible with; clients parse it.
pub(crate) const ETCD: &str = "3.7.3";

/// The version a cluster of such members agrees on.
pub(crate) const CLUSTER: &str = "3.7.0";

/// The oldest etcd version whose storage format holds everything we write to a snapshot file.
pub(crate) const STORAGE: &str = "3.7.0";

/// Our own version.
pub(crate) const KEELSON: &str = env!("CARGO_PKG_VERSION");
