//! Members and versions through the log.

use proto::membershippb;
use types::{LogIndex, MemberId};

use super::member::*;
use crate::*;

fn members(ids: &[u64]) -> MembershipEntry {
    let node = |id: &u64| MembershipNode {
        id: MemberId(*id),
        peer_urls: vec![format!("http://{id}:2380")],
        voter_intent: true,
        ..MembershipNode::default()
    };
    let voters = vec![ids.iter().map(|id| MemberId(*id)).collect()];
    MembershipEntry { nodes: ids.iter().map(node).collect(), voters }
}

fn publish(member: &mut Member, id: u64, name: &str) -> Outcome {
    let attributes = membershippb::Attributes {
        name: name.to_owned(),
        client_urls: vec![format!("http://{name}:2379")],
    };
    let request = membershippb::ClusterMemberAttrSetRequest {
        member_id: id,
        member_attributes: Some(attributes),
    };
    member.request(CommandKind::MemberAttributes, &request)
}

fn set_version(member: &mut Member, version: &str) -> (Outcome, Applied) {
    let request = membershippb::ClusterVersionSetRequest { ver: version.to_owned() };
    member.propose(Proposal::new(CommandKind::ClusterVersionSet, &request))
}

#[test]
fn t29_a_membership_entry_writes_tombstones_in_its_own_step() {
    let mut member = Member::new();
    let applied = member.membership(members(&[1, 2, 3]));
    assert_eq!(applied.membership.unwrap().added.len(), 3);
    assert_eq!(publish(&mut member, 3, "c"), Outcome::MemberAttributes);
    let applied = member.membership(members(&[1, 2]));
    assert_eq!(applied.membership.unwrap().removed, [MemberId(3)]);
    let views = member.machine.views();
    assert!(views.is_removed(MemberId(3)) && views.member(MemberId(3)).is_none());
    assert_eq!(views.applied_index(), LogIndex(3));
    assert_eq!(views.tables().membership.position().unwrap().index, LogIndex(3));
    let late = publish(&mut member, 3, "c");
    assert_eq!(late, Outcome::Refused(Refusal::MemberRemoved));
    let nobody = publish(&mut member, 4, "d");
    assert_eq!(nobody, Outcome::Refused(Refusal::MemberNotFound));
}

#[test]
fn t30_members_survive_a_restart_after_each_change() {
    let mut member = Member::new();
    let image = member.image();
    let changes: [fn(&mut Member); 4] = [
        |member| drop(member.membership(members(&[1, 2]))),
        |member| drop(publish(member, 2, "b")),
        |member| {
            let mut learner = members(&[1, 2, 3]);
            learner.voters[0].remove(&MemberId(3));
            member.membership(learner);
        },
        |member| drop(member.membership(members(&[1, 2, 3]))),
    ];
    for change in changes {
        change(&mut member);
        let before = (member.machine.views().tables(), member.digest());
        member.restart(&image, 0);
        assert_eq!((member.machine.views().tables(), member.digest()), before, "by replay");
        let image = member.image();
        member.restart(&image, 0);
        assert_eq!((member.machine.views().tables(), member.digest()), before, "from an image");
    }
    let third = member.machine.views().member(MemberId(3)).unwrap();
    assert!(!third.is_learner, "the promotion is in the state");
}

#[test]
fn versions_are_set_whole_or_refused() {
    let mut member = Member::new();
    let (outcome, applied) = set_version(&mut member, "3.7.0");
    assert_eq!((outcome, applied.follow_ups), (Outcome::ClusterVersionSet, vec![]));
    let (outcome, _) = set_version(&mut member, "3.x");
    assert_eq!(outcome, Outcome::Refused(Refusal::InvalidVersion));
    let version = member.machine.views().tables().cluster_version.unwrap();
    assert_eq!(version.to_string(), "3.7.0");
}

#[test]
fn a_lower_cluster_version_asks_for_an_image() {
    let mut member = Member::new();
    set_version(&mut member, "3.7.0");
    let (_, applied) = set_version(&mut member, "3.6.0");
    assert_eq!(applied.follow_ups, [FollowUp::WriteImage]);
}

#[test]
fn a_downgrade_is_remembered_until_it_is_taken_back() {
    let mut member = Member::new();
    for (enabled, expected) in [(true, Some("3.6.0".to_owned())), (false, None)] {
        let request = membershippb::DowngradeInfoSetRequest { enabled, ver: "3.6.0".to_owned() };
        let outcome = member.request(CommandKind::DowngradeInfoSet, &request);
        assert_eq!(outcome, Outcome::DowngradeInfoSet);
        assert_eq!(member.machine.views().tables().downgrade.target_version, expected);
    }
}
