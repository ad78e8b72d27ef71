//! Snapshots that do not come to their end.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

use std::path::Path;
use std::time::Duration;

use disk::{Disk, SimDisk};
use futures_util::stream;
use proto::peerpb;
use proto::peerpb::snapshot_chunk::Part;
use replica::{PeerError, PeerResult, Replica};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;

/// How long a sender may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(10);

fn incoming(disk: &SimDisk) -> usize {
    let entries = disk.list(Path::new("member")).unwrap();
    entries.iter().filter(|entry| entry.name.starts_with("incoming")).count()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.expect(what);
}

/// The leader loses its power while it sends a snapshot to a follower that the next one needs for its
/// quorum. That one once waited for the rest of the first, which nobody sends any more.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_its_leader_cannot_finish_does_not_hold_up_the_next_leader() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (lost, mut followers) = start_and_elect(&members, &disks, &wires).await;
    let (behind, next) = (followers.remove(0), followers.remove(0));
    let id = behind.handle().status().member_id;
    wires.members.lock().unwrap().remove(&id);
    behind.shutdown().await;
    for number in 0..300 {
        lost.handle().propose(put("k", &number.to_string())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    wires.snapshots_freeze.store(true, Ordering::SeqCst);
    let disk = &disks[id.0 as usize - 1];
    let behind = start(id.0, disk, &wires, Bootstrap::New(members.clone())).await;
    until("a snapshot is on its way", || incoming(disk) == 1).await;
    wires.snapshots_freeze.store(false, Ordering::SeqCst);
    wires.members.lock().unwrap().remove(&lost.handle().status().member_id);
    let since = Instant::now();
    lost.shutdown().await;

    until("the next leader", || next.handle().leads()).await;
    next.handle().propose(put("after", "all")).await.unwrap();
    assert!(since.elapsed() < SILENCE_MAX, "{:?}: the first was waited for", since.elapsed());
    behind.handle().read_index().await.unwrap();
    assert_eq!(get(&behind, "after").unwrap(), b"all");
    assert_eq!(incoming(disk), 0);
    next.shutdown().await;
    behind.shutdown().await;
}

/// A member, and what its leader sends.
struct Receiving {
    replica: Replica,
    disk: Arc<SimDisk>,
    term: u64,
}

impl Receiving {
    async fn start() -> Self {
        let disk = Arc::new(SimDisk::new(1));
        let members = Bootstrap::New([node(1)].into());
        let replica = start(1, &disk, &Wires::default(), members).await;
        leader(&[&replica]).await;
        let term = replica.handle().status().term.0;
        Self { replica, disk, term }
    }

    /// A snapshot of a leader of this term that stops after its first piece.
    fn begin(&self, term: u64) -> JoinHandle<PeerResult<peerpb::SnapshotResponse>> {
        let envelope = Some(peerpb::Envelope {
            cluster_id: CLUSTER.0,
            from: 2,
            to: 1,
            protocol_version: replica::ProtocolVersions::OWN.newest,
            protocol_oldest: replica::ProtocolVersions::OWN.oldest,
        });
        let last_log_id = Some(peerpb::LogId { term, node_id: 0, index: 99 });
        let header = peerpb::SnapshotHeader {
            envelope,
            vote: Some(peerpb::Vote { term, node_id: 2, committed: true }),
            last_log_id,
            membership: Some(peerpb::StoredMembership {
                log_id: last_log_id,
                membership: Some(peerpb::Membership::default()),
            }),
            format: 1,
            total_bytes: 0,
        };
        let parts = [Part::Header(header), Part::Data(vec![0; 1_000].into())];
        let chunks = parts.map(|part| peerpb::SnapshotChunk { part: Some(part) });
        let chunks = stream::iter(chunks).chain(stream::pending());
        let inbound = self.replica.inbound();
        tokio::spawn(async move { inbound.snapshot(chunks).await })
    }

    async fn begun(&self) {
        until("it is being received", || incoming(&self.disk) == 1).await;
    }
}

fn reason(result: PeerResult<peerpb::SnapshotResponse>) -> String {
    match result {
        Err(PeerError::NoAnswer(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_sender_goes_silent_is_given_up() {
    let member = Receiving::start().await;
    let began = Instant::now();
    let first = member.begin(member.term);
    member.begun().await;
    assert_eq!(reason(first.await.unwrap()), "the sender of the snapshot has gone silent");
    let took = began.elapsed();
    assert!(took >= SILENCE_MAX && took < SILENCE_MAX * 2, "{took:?}");
    assert_eq!(incoming(&member.disk), 0);
    member.replica.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_later_snapshot_ends_the_one_under_way_and_an_earlier_one_does_not() {
    let member = Receiving::start().await;
    let began = Instant::now();
    let first = member.begin(member.term);
    member.begun().await;
    // The same leader begins anew, then the next one; this member has not heard of its term.
    let second = member.begin(member.term);
    assert_eq!(reason(first.await.unwrap()), "a later snapshot has arrived");
    member.begun().await;
    let third = member.begin(member.term + 1);
    assert_eq!(reason(second.await.unwrap()), "a later snapshot has arrived");
    let late = member.begin(member.term);
    assert_eq!(reason(late.await.unwrap()), "the term of its leader is over");
    // One of a term that this member knows to be over is told of the one that is not.
    let answer = member.begin(member.term - 1).await.unwrap().unwrap();
    assert_eq!(answer.vote.unwrap().term, member.term);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(incoming(&member.disk), 1);
    assert!(!third.is_finished());
    third.abort();
    assert!(third.await.unwrap_err().is_cancelled());
    assert_eq!(incoming(&member.disk), 0, "a call that ends leaves nothing");
    member.replica.shutdown().await;
}
