//! The versions this build reports, and which clusters it may be a member of.
//!
//! A cluster speaks the lowest version of its members (`chores::cluster_version`). A build joins, and
//! stays in, clusters whose version is not above its own, because a newer one may keep what it does not
//! know; between members it is also the peer protocol that counts (`replica::ProtocolVersions`).

use std::sync::OnceLock;

use machine::ClusterVersion;
pub use replica::ProtocolVersions;

/// The etcd version this server is compatible with; clients parse it.
///
/// The feature `next-version` makes a build that calls itself the next patch release and is otherwise
/// the same: what a rolling upgrade is proven with before there are two releases.
const ETCD: &str = if cfg!(feature = "next-version") { "3.7.4" } else { "3.7.3" };

/// Our own version.
pub const KEELSON: &str = env!("CARGO_PKG_VERSION");

/// The oldest cluster that etcd's members join, and what a new one begins with as long as not every
/// member has told its version.
pub const CLUSTER_MIN: ClusterVersion = ClusterVersion { major: 3, minor: 0, patch: 0 };

/// The newest storage version whose files do not name it.
const STORAGE_UNNAMED: &str = "3.5.0";

/// Why a server ends whose cluster has a newer version; etcd's text and what to do.
pub const OUTGROWN: &str = "invalid downgrade; server version is lower than determined cluster version: \
     run a release of the cluster's version, or let the cluster go down first with \
     `etcdctl downgrade enable`";

/// What a build calls itself, and whom it understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The etcd version.
    pub etcd: String,
    /// The versions of the peer protocol.
    pub protocol: ProtocolVersions,
}

static POSED: OnceLock<Release> = OnceLock::new();

/// What this process calls itself.
pub fn release() -> Release {
    let own = || Release { etcd: ETCD.to_owned(), protocol: ProtocolVersions::OWN };
    POSED.get().cloned().unwrap_or_else(own)
}

/// Makes this process call itself another release, before it has said anything: for the program that
/// tests of mixed versions run. The server itself never does.
pub fn pose_as(release: Release) {
    // Called once, at the start of a program.
    let _ = POSED.set(release);
}

/// Why a process may not join a cluster. etcd's texts, which it logs, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Incompatible {
    #[error(
        "incompatible with current running cluster: cluster version of remote member is not \
         compatible; too low ({cluster}, supported are {min} to {max}); upgrade its members first"
    )]
    ClusterTooLow { cluster: ClusterVersion, min: ClusterVersion, max: ClusterVersion },
    #[error(
        "incompatible with current running cluster: cluster version of remote member is not \
         compatible; too high ({cluster}, supported are {min} to {max}); run a release of its version"
    )]
    ClusterTooHigh { cluster: ClusterVersion, min: ClusterVersion, max: ClusterVersion },
    #[error(
        "incompatible with current running cluster: its members speak the peer protocols {} to {}, \
         this release {} to {}; run a release between the two",
        theirs.oldest, theirs.newest, own.oldest, own.newest
    )]
    Protocol { theirs: ProtocolVersions, own: ProtocolVersions },
}

impl Release {
    /// Its etcd version as numbers.
    ///
    /// # Panics
    /// If it is none, which a test catches.
    pub fn parsed(&self) -> ClusterVersion {
        self.etcd.parse().expect("a release has a version")
    }

    /// The version a cluster of such members agrees on.
    pub fn cluster(&self) -> ClusterVersion {
        ClusterVersion { patch: 0, ..self.parsed() }
    }

    /// Whether the cluster has a version that this release does not know.
    pub(crate) fn is_outgrown_by(&self, cluster: Option<ClusterVersion>) -> bool {
        cluster.is_some_and(|cluster| cluster > self.cluster())
    }

    /// Whether a process of this release may join a cluster: `cluster` is its version, if it has one
    /// already, and `members` what its members understand, as far as they say.
    pub(crate) fn check_join(
        &self,
        cluster: Option<ClusterVersion>,
        members: ProtocolVersions,
    ) -> Result<(), Incompatible> {
        let (min, max) = (CLUSTER_MIN, self.cluster());
        match cluster {
            Some(cluster) if cluster < min => {
                return Err(Incompatible::ClusterTooLow { cluster, min, max });
            }
            Some(cluster) if cluster > max => {
                return Err(Incompatible::ClusterTooHigh { cluster, min, max });
            }
            Some(_) | None => {}
        }
        let says = members.newest > 0;
        if says && self.protocol.check(members).is_err() {
            return Err(Incompatible::Protocol { theirs: members, own: self.protocol });
        }
        Ok(())
    }
}

/// The etcd version whose storage format a snapshot file has: that of the cluster's version, as etcd
/// keeps the two together, and never one that this build does not know. That of a cluster which only
/// begins says nothing yet.
pub fn storage(cluster: Option<ClusterVersion>) -> String {
    let own = release().cluster();
    let decided = cluster.filter(|cluster| *cluster != CLUSTER_MIN);
    decided.map_or(own, |cluster| cluster.min(own)).to_string()
}

/// What a member tells of that. Before etcd has decided its file names no version, as those of 3.5.
pub fn told_storage(cluster: Option<ClusterVersion>) -> String {
    match cluster {
        Some(CLUSTER_MIN) => STORAGE_UNNAMED.to_owned(),
        _ => storage(cluster),
    }
}

/// What `--version` prints: the four lines of etcd in its order, then our own.
pub fn report() -> String {
    let commit = option_env!("KEELSON_GIT_SHA").unwrap_or("Not provided");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {}\nGit SHA: {commit}\nGo Version: none (Rust)\nGo OS/Arch: {}/{architecture}\nKeelson Version: {KEELSON}\n",
        release().etcd,
        std::env::consts::OS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_joins_clusters_that_are_not_newer_and_that_understand_it() {
        let own = Release {
            etcd: "3.7.3".to_owned(),
            protocol: ProtocolVersions { oldest: 2, newest: 3 },
        };
        let joins = |cluster: &str, oldest, newest| {
            own.check_join(cluster.parse().ok(), ProtocolVersions { oldest, newest })
        };
        let text = |result: Result<(), Incompatible>| result.unwrap_err().to_string();
        assert_eq!(joins("3.7.0", 1, 2), Ok(()));
        assert_eq!(joins("3.5.0", 3, 4), Ok(()));
        assert_eq!(joins("", 0, 0), Ok(()), "a cluster that says nothing is not refused");
        assert!(
            text(joins("3.8.0", 2, 3)).contains("too high (3.8.0, supported are 3.0.0 to 3.7.0)")
        );
        assert!(text(joins("2.3.0", 2, 3)).contains("too low (2.3.0, supported"));
        assert!(text(joins("3.7.0", 1, 1)).contains("protocols 1 to 1, this release 2 to 3"));
        assert!(text(joins("3.7.0", 4, 5)).contains("protocols 4 to 5, this release 2 to 3"));
    }

    #[test]
    fn this_build_has_a_version_and_belongs_to_clusters_of_its_own() {
        let own = release();
        assert_eq!(own.check_join(Some(own.cluster()), own.protocol), Ok(()));
        assert_eq!(storage(None), own.cluster().to_string());
        assert_eq!(storage("4.0.0".parse().ok()), own.cluster().to_string());
        assert_eq!(storage("3.6.0".parse().ok()), "3.6.0");
        assert_eq!(told_storage("3.6.0".parse().ok()), "3.6.0");
        assert_eq!(storage(Some(CLUSTER_MIN)), own.cluster().to_string());
        assert_eq!(told_storage(Some(CLUSTER_MIN)), "3.5.0");
    }
}
