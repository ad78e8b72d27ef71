//! Identities of members and clusters, computed as etcd computes them
//! (`server/etcdserver/api/membership/member.go` and `cluster.go`), because restore tools and
//! deployments rely on them.
//!
//! A member's id is the first eight bytes of SHA-1 over its peer URLs, sorted, one after the other,
//! then the cluster token, then for a member added at run time the seconds since 1970 in decimal. A
//! cluster's id is the first eight bytes of SHA-1 over the sorted ids of its first members.

use sha1::{Digest, Sha1};
use types::{ClusterId, MemberId};

use crate::config::InitialCluster;
use crate::urls::Url;

/// A member of a cluster that is about to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundingMember {
    pub id: MemberId,
    pub name: String,
    pub peer_urls: Vec<String>,
}

/// The identity of a cluster that is about to begin, and its members, ordered by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    pub cluster_id: ClusterId,
    pub members: Vec<FoundingMember>,
}

impl Founding {
    /// The cluster that `--initial-cluster` and `--initial-cluster-token` describe.
    pub fn compute(initial: &InitialCluster, token: &str) -> Self {
        let mut members: Vec<FoundingMember> = initial
            .members()
            .map(|(name, urls)| FoundingMember {
                id: founding_member_id(urls, token),
                name: name.to_owned(),
                peer_urls: urls.iter().map(Url::to_string).collect(),
            })
            .collect();
        members.sort_by_key(|member| member.id);
        let ids: Vec<MemberId> = members.iter().map(|member| member.id).collect();
        Self { cluster_id: cluster_id(&ids), members }
    }

    /// The member of this name.
    pub fn member(&self, name: &str) -> Option<&FoundingMember> {
        self.members.iter().find(|member| member.name == name)
    }
}

/// The id of a member of a new cluster.
pub fn founding_member_id(peer_urls: &[Url], token: &str) -> MemberId {
    let texts: Vec<String> = peer_urls.iter().map(Url::to_string).collect();
    member_id(&texts, token.as_bytes())
}

/// The id of a member that is added at run time.
pub fn added_member_id(peer_urls: &[String], unix_seconds: u64) -> MemberId {
    member_id(peer_urls, unix_seconds.to_string().as_bytes())
}

/// The id of a cluster with these first members.
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut sorted = members.to_vec();
    sorted.sort();
    let mut hash = Sha1::new();
    for id in sorted {
        hash.update(id.0.to_be_bytes());
    }
    ClusterId(first_eight(hash))
}

fn member_id(peer_urls: &[String], suffix: &[u8]) -> MemberId {
    let mut sorted = peer_urls.to_vec();
    sorted.sort();
    let mut hash = Sha1::new();
    hash.update(sorted.concat());
    hash.update(suffix);
    MemberId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcd 3.7.3 logs as `local-member-id` and `cluster-id` for its default flags.
    #[test]
    fn the_default_cluster_has_the_ids_that_etcd_gives_it() {
        let initial = InitialCluster::parse("default=http://localhost:2380").unwrap();
        let founding = Founding::compute(&initial, "etcd-cluster");
        assert_eq!(founding.members[0].id.to_string(), "8e9e05c52164694d");
        assert_eq!(founding.cluster_id.to_string(), "cdf818194e3a8c32");
    }

    #[test]
    fn the_order_of_members_and_urls_does_not_matter() {
        let one = "a=http://1.1.1.1:1,b=http://1.1.1.2:1,b=http://1.1.1.3:1";
        let two = "b=http://1.1.1.3:1,a=http://1.1.1.1:1,b=http://1.1.1.2:1";
        let founding = |text| Founding::compute(&InitialCluster::parse(text).unwrap(), "t");
        assert_eq!(founding(one), founding(two));
        assert_ne!(
            founding(one).cluster_id,
            Founding::compute(&InitialCluster::parse(one).unwrap(), "u").cluster_id
        );
    }
}
