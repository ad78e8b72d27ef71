//! Members that are added to a cluster with the check of `--strict-reconfig-check`.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

use std::time::Duration;

use disk::SimDisk;
use proto::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use replica::{MembershipRefusal, Replica};
use tokio::time::timeout;

use super::*;

/// How long anything of this may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the server does once it has started: from then on the member counts as one that has.
async fn publish(replica: &Replica, id: MemberId) {
    let name = format!("m{}", id.0);
    let client_urls = vec![format!("http://{name}:2379")];
    let request = ClusterMemberAttrSetRequest {
        member_id: id.0,
        member_attributes: Some(Attributes { name, client_urls }),
    };
    let proposal = Proposal::new(CommandKind::MemberAttributes, &request);
    replica.handle().propose(proposal).await.unwrap();
}

async fn add(replica: &Replica, id: u64, learner: bool) -> Result<(), MembershipRefusal> {
    let (id, node) = node(id);
    let add = MembershipChange::Add { id, peer_urls: node.peer_urls, learner };
    replica.handle().change_membership(add).await.map(drop)
}

/// T31 (etcd PR#21669): one of three is down. A learner and a voter are added all the same, and at no
/// moment do writes wait for who is not there.
#[tokio::test(start_paused = true)]
async fn t31_with_one_of_three_down_a_learner_and_a_voter_join_and_writes_go_on() {
    let wires = Wires::default();
    wires.strict.store(true, Ordering::SeqCst);
    let disks: Vec<_> = (1..=5).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (leading, mut others) = start_and_elect(&members, &disks, &wires).await;
    for id in members.keys() {
        publish(&leading, *id).await;
    }
    for number in 0..300 {
        leading.handle().propose(put("k", &number.to_string())).await.unwrap();
    }
    let down = others.remove(0);
    wires.members.lock().unwrap().remove(&down.handle().status().member_id);
    down.shutdown().await;
    // It counts as active for an election timeout.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut joined = Vec::new();
    for (id, learner) in [(4, true), (5, false)] {
        add(&leading, id, learner).await.unwrap();
        leading.handle().propose(put("added", &id.to_string())).await.unwrap();
        let disk = &disks[id as usize - 1];
        let member = start(id, disk, &wires, Bootstrap::Join).await;
        publish(&leading, MemberId(id)).await;
        let mut status = member.handle().watch_status();
        let follows = status.wait_for(|status| status.leader.is_some());
        timeout(PATIENCE, follows).await.unwrap().unwrap();
        joined.push(member);
    }
    let mut status = leading.handle().watch_status();
    let votes = status.wait_for(|status| status.voters.contains(&MemberId(5)));
    timeout(PATIENCE, votes).await.unwrap().unwrap();
    assert_eq!(leading.handle().status().voters.len(), 4, "the learner does not vote");
    leading.handle().propose(put("after", "all")).await.unwrap();
    for member in joined.iter().chain(&others) {
        member.handle().read_index().await.unwrap();
        assert_eq!(get(member, "after").unwrap(), b"all");
    }

    for member in joined.into_iter().chain(others).chain([leading]) {
        member.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_voter_is_not_added_where_it_would_leave_too_few_that_have_started() {
    let wires = Wires::default();
    wires.strict.store(true, Ordering::SeqCst);
    let disks: Vec<_> = (1..=2).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=2).map(node).collect();
    let (leading, mut others) = start_and_elect(&members, &disks, &wires).await;
    let own = leading.handle().status().member_id;
    publish(&leading, own).await;
    let refused = add(&leading, 3, false).await;
    assert_eq!(refused, Err(MembershipRefusal::NotEnoughStarted));
    let other = others.remove(0);
    publish(&leading, other.handle().status().member_id).await;
    add(&leading, 3, false).await.unwrap();
    other.shutdown().await;
    leading.shutdown().await;
}
