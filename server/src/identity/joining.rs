//! Which member of a running cluster a process is that was told of all of them (etcd:
//! `ValidateClusterAndAssignIDs`): the two lists must have the same members, by the places that their
//! peer URLs lead to.

use proto::peerpb::{MemberDescription, MembersResponse};
use types::{ClusterId, MemberId};

use crate::config::InitialCluster;
use crate::ids::Founding;
use crate::urls::{Hosts, Url};

/// Finds this member, `name` in `listed`, among those of the cluster. It blocks while names are looked up.
/// They are compared in the order of the ids that they would have founding the cluster, as etcd's
/// are; a refusal names the last pair that differs.
///
/// # Errors
/// In etcd's words: how the lists differ.
pub(super) fn find<'c>(
    name: &str,
    listed: &InitialCluster,
    token: &str,
    cluster: &'c MembersResponse,
    hosts: &Hosts,
) -> Result<&'c MemberDescription, String> {
    let founding = Founding::compute(listed, token);
    let in_order: Vec<(&str, &[Url])> = founding
        .members
        .iter()
        .filter_map(|member| Some((&*member.name, listed.peer_urls(&member.name)?)))
        .collect();
    match_members(name, &in_order, &cluster.members, hosts)
        .map_err(|error| format!("error validating peerURLs {}: {error}", shown(cluster)))
}

fn match_members<'c>(
    name: &str,
    listed: &[(&str, &[Url])],
    existing: &'c [MemberDescription],
    hosts: &Hosts,
) -> Result<&'c MemberDescription, String> {
    if existing.len() != listed.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut own = None;
    for member in existing {
        if match_member(member, listed, hosts)? == name {
            own = Some(member);
        }
    }
    own.ok_or_else(|| format!("none of its members has the peer URLs of {name:?}"))
}

/// The name under which a member of the cluster is listed.
fn match_member<'l>(
    member: &MemberDescription,
    listed: &[(&'l str, &[Url])],
    hosts: &Hosts,
) -> Result<&'l str, String> {
    let urls: Result<Vec<Url>, String> = member
        .peer_urls
        .iter()
        .map(|text| text.parse().map_err(|_| format!("failed to parse string to URL: {text:?}")))
        .collect();
    let mut last_error = String::new();
    for (name, listed) in listed {
        match urls.clone().and_then(|urls| hosts.check_same(&urls, listed)) {
            Ok(()) => return Ok(name),
            Err(error) => last_error = error,
        }
    }
    Err(format!(
        "PeerURLs: no match found for existing member ({}, [{}]), last resolver error ({last_error})",
        MemberId(member.id),
        member.peer_urls.join(" ")
    ))
}

/// The members as etcd shows them.
fn shown(cluster: &MembersResponse) -> String {
    let members: Vec<String> = cluster
        .members
        .iter()
        .map(|member| {
            format!(
                "&{{ID:{} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} \
                 Attributes:{{Name:{} ClientURLs:[{}]}}}}",
                MemberId(member.id),
                member.peer_urls.join(" "),
                member.is_learner,
                member.name,
                member.client_urls.join(" ")
            )
        })
        .collect();
    let cluster = ClusterId(cluster.cluster_id);
    format!("{{ClusterID:{cluster} Members:[{}] RemovedMemberIDs:[]}}", members.join(" "))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    /// Who `b` is, to a cluster of `a` with the id 10 and `b` with the id 11; hosts `h1` and so on are
    /// at 10.0.0.1 and so on.
    fn find_b(listed: &str) -> Result<u64, String> {
        let member = |id, url: &str| MemberDescription {
            id,
            peer_urls: vec![url.to_owned()],
            ..MemberDescription::default()
        };
        let existing = [member(10, "http://h1:2380"), member(11, "http://10.0.0.2:2380")];
        let look_up = |host: &str| {
            let number = host.trim_start_matches('h').parse::<u8>();
            number.map(|number| IpAddr::from([10, 0, 0, number])).map_err(|error| error.to_string())
        };
        let hosts = Hosts::new(Box::new(look_up), Duration::ZERO);
        let cluster = MembersResponse { members: existing.into(), ..MembersResponse::default() };
        let listed = InitialCluster::parse(listed).unwrap();
        find("b", &listed, "cluster", &cluster, &hosts).map(|member| member.id)
    }

    #[test]
    fn a_member_finds_itself_where_both_know_the_same_members() {
        assert_eq!(find_b("a=http://h1:2380,b=http://10.0.0.2:2380"), Ok(11));
        assert_eq!(find_b("a=http://10.0.0.1:2380,b=http://h2:2380"), Ok(11));
        let refused = |listed: &str, why: &str| {
            let refusal = find_b(listed).unwrap_err();
            assert!(refusal.starts_with("error validating peerURLs {ClusterID:"), "{refusal}");
            assert!(refusal.ends_with(why), "{refusal}");
        };
        refused("b=http://h2:2380", "member count is unequal");
        // The last one is that of the greater id, which is not that of the greater name.
        refused(
            "a=http://h3:2380,b=http://h2:2380",
            "PeerURLs: no match found for existing member (a, [http://h1:2380]), last resolver error \
             (resolved urls: \"http://10.0.0.1:2380\" != \"http://10.0.0.3:2380\")",
        );
    }
}
