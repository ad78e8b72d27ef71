//! Leaders whose quorum has gone.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

use std::time::Duration;

use disk::SimDisk;
use replica::Replica;
use tokio::time::timeout;

use super::*;

/// How long anything of this may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a member tells clients of this leader.
async fn named(replica: &Replica, leader: Option<MemberId>) {
    let mut status = replica.handle().watch_status();
    let named = status.wait_for(|status| status.answered_leader() == leader);
    let named = timeout(PATIENCE, named).await.map(drop);
    assert!(named.is_ok(), "{:?}", replica.handle().status());
}

async fn leave(wires: &Wires, replica: Replica) {
    wires.members.lock().unwrap().remove(&replica.handle().status().member_id);
    replica.shutdown().await;
}

/// It is elected, and those who voted for it go before they hear of it. A leader once counted its silence
/// from the last acknowledgement of a quorum only, and without any it was "the leader" for ever.
#[tokio::test(start_paused = true)]
async fn a_leader_that_no_quorum_has_ever_acknowledged_is_not_told_for_long() {
    for count in [2, 3] {
        let wires = Wires::default();
        // Votes are heard and entries are not.
        wires.swallow.store(true, Ordering::SeqCst);
        let disks: Vec<_> = (1..=count).map(|seed| Arc::new(SimDisk::new(seed))).collect();
        let members: BTreeMap<_, _> = (1..=count).map(node).collect();
        let mut replicas = Vec::new();
        for (id, disk) in (1..).zip(&disks) {
            replicas.push(start(id, disk, &wires, Bootstrap::New(members.clone())).await);
        }
        let own = first_leader(&replicas).await;
        let at = replicas.iter().position(|r| r.handle().status().member_id == own).unwrap();
        let leading = replicas.swap_remove(at);
        let elected = leading.handle().status();
        assert_eq!(elected.answered_leader(), Some(own), "{elected:?}");
        for replica in replicas {
            leave(&wires, replica).await;
        }
        named(&leading, None).await;
        assert_eq!(leading.handle().status().term, elected.term, "it was not deposed");

        wires.swallow.store(false, Ordering::SeqCst);
        let mut replicas = vec![leading];
        for (id, disk) in (1..).zip(&disks).filter(|(id, _)| *id != own.0) {
            replicas.push(start(id, disk, &wires, Bootstrap::New(members.clone())).await);
        }
        for replica in &replicas {
            let mut status = replica.handle().watch_status();
            let back = status.wait_for(|status| status.answered_leader().is_some());
            timeout(PATIENCE, back).await.unwrap().unwrap();
        }
        for replica in replicas {
            replica.shutdown().await;
        }
    }
}

/// etcd's leader steps down then, and takes nothing any more. Ours leads on, but what its clients ask for
/// must not gather in its log, nor happen when the others come back and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_leader_without_a_quorum_waits_outside_its_log() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (leading, others) = start_and_elect(&members, &disks, &wires).await;
    leading.handle().propose(put("before", "v")).await.unwrap();
    for replica in others {
        leave(&wires, replica).await;
    }
    named(&leading, None).await;
    let refused = leading.handle().propose(put("without", "v")).await.unwrap_err();
    assert_eq!(refused, Unavailable::TimeoutLeaderFailure);

    let handle = leading.handle().clone();
    let waiting = tokio::spawn(async move { handle.propose(put("waiting", "v")).await });
    let own = leading.handle().status().member_id;
    let mut replicas = vec![leading];
    for (id, disk) in (1..).zip(&disks).filter(|(id, _)| *id != own.0) {
        replicas.push(start(id, disk, &wires, Bootstrap::New(members.clone())).await);
    }
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    for replica in &replicas {
        replica.handle().read_index().await.unwrap();
        for (key, is_there) in [("before", true), ("without", false), ("waiting", true)] {
            assert_eq!(get(replica, key).is_some(), is_there, "{key}");
        }
    }
    for replica in replicas {
        replica.shutdown().await;
    }
}
