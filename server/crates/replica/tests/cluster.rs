//! A few members in one process, over a simulated disk: the room's own smoke test. The simulator
//! does the same with faults.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

mod deserted;
mod growing;
mod openraft_traps;
mod receiving;
mod wires;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use disk::{Disk, Fault, SimDisk};
use futures_util::{StreamExt, stream};
use machine::{CommandKind, LeaseChange, Outcome, Proposal, Views};
use proto::etcdserverpb::{AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest};
use proto::peerpb;
use replica::{
    Bootstrap, EventSink, Handle, LogWriterPlacement, MembershipChange, Parts, PeerError,
    Unavailable,
};
use types::{LeaseId, LogIndex, MemberId};

use wires::{
    CLUSTER, Wires, all_follow_a_leader, first_leader, get, leader, node, parts, put, start,
    start_and_elect, start_parts, start_with,
};

/// openraft #1246: a leader that was alone and started again did not apply what its image lacks. Here the
/// newest image is of one of the first entries or of one in the middle.
#[tokio::test(start_paused = true)]
async fn openraft_1246_one_member_answers_and_remembers() {
    let disk = Arc::new(SimDisk::new(1));
    let wires = Wires::default();
    let replica = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    leader(&[&replica]).await;
    for n in 0..200 {
        let outcome = replica.handle().propose(put("k", &n.to_string())).await.unwrap();
        let Outcome::Put(response) = outcome else { panic!("{outcome:?}") };
        assert_eq!(response.header.unwrap().revision, n + 2);
    }
    replica.handle().read_index().await.unwrap();
    assert_eq!(get(&replica, "k").unwrap(), b"199");
    replica.shutdown().await;

    let replica = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    replica.handle().read_index().await.unwrap();
    assert_eq!(get(&replica, "k").unwrap(), b"199");
    replica.shutdown().await;
}

/// Remembers at which applied index it heard of changed leases, and at which state.
#[derive(Default)]
struct LeaseListener {
    handle: OnceLock<Handle>,
    heard: Mutex<Vec<(LogIndex, LogIndex)>>,
}

impl EventSink for LeaseListener {
    fn publish(&self, _: Vec<mvcc::RevisionEvents>) {}
    fn leases_changed(&self, changes: &[LeaseChange]) {
        assert_eq!(changes, [LeaseChange::Granted { id: LeaseId(5), ttl: 60 }]);
        let handle = self.handle.get().unwrap();
        let heard = (handle.status().applied, handle.views().applied_index());
        self.heard.lock().unwrap().push(heard);
    }
    fn reset(&self, _: &Views) {}
}

/// Who waits for an index and then asks for the deadline of a lease must find it.
#[tokio::test(start_paused = true)]
async fn leases_are_known_before_their_entry_counts_as_applied() {
    let (disk, wires) = (Arc::new(SimDisk::new(1)), Wires::default());
    let listener = Arc::new(LeaseListener::default());
    let writer = LogWriterPlacement::Task(Box::new(|| Duration::from_micros(30)));
    let bootstrap = Bootstrap::New([node(1)].into());
    let parts = Parts { events: listener.clone(), ..parts(writer, 1, &disk, &wires, bootstrap) };
    let replica = start_parts(parts, &wires).await;
    assert!(listener.handle.set(replica.handle().clone()).is_ok());
    leader(&[&replica]).await;
    let grant = LeaseGrantRequest { id: 5, ttl: 60 };
    replica.handle().propose(Proposal::new(CommandKind::LeaseGrant, &grant)).await.unwrap();
    let index = replica.handle().status().applied;
    assert_eq!(*listener.heard.lock().unwrap(), [(LogIndex(index.0 - 1), index)]);
    replica.shutdown().await;
}

/// T28 (etcd PR#14429): a list of the alarms is an entry of the log that changes nothing. The power fails
/// at one of the operations that write it, or after all of them.
#[tokio::test(start_paused = true)]
async fn t28_a_member_starts_again_after_a_list_of_the_alarms_and_a_power_loss() {
    for (at, answers) in [(1, false), (2, false), (1_000, true)] {
        let disk = Arc::new(SimDisk::new(at));
        let members = || Bootstrap::New([node(1)].into());
        let replica = start(1, &disk, &Wires::default(), members()).await;
        leader(&[&replica]).await;
        replica.handle().propose(put("k", "v")).await.unwrap();
        disk.inject(Fault::CrashAt(disk.mutations() + at));
        let list = Proposal::new(CommandKind::Alarm, &AlarmRequest::default());
        let listed = replica.handle().propose(list).await;
        assert_eq!(listed.is_ok(), answers, "operation {at}: {listed:?}");
        disk.crash();
        replica.shutdown().await;
        disk.clear_faults();
        disk.restart();
        let replica = start(1, &disk, &Wires::default(), members()).await;
        replica.handle().read_index().await.unwrap();
        assert_eq!(get(&replica, "k").unwrap(), b"v", "operation {at}");
        replica.shutdown().await;
    }
}

/// A member alone answers reads by itself. The moment it is not alone any more it must ask: the other
/// voter might have elected itself.
#[tokio::test(start_paused = true)]
async fn a_member_that_was_alone_does_not_read_without_its_new_voter() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=2).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let first = start(1, &disks[0], &wires, Bootstrap::New([node(1)].into())).await;
    leader(&[&first]).await;
    first.handle().propose(put("k", "alone")).await.unwrap();
    first.handle().read_index().await.unwrap();

    let (id, node) = node(2);
    let add = MembershipChange::Add { id, peer_urls: node.peer_urls, learner: false };
    first.handle().change_membership(add).await.unwrap();
    let second = start(2, &disks[1], &wires, Bootstrap::Join).await;
    let mut status = first.handle().watch_status();
    status.wait_for(|status| status.voters.len() == 2).await.unwrap();
    first.handle().read_index().await.unwrap();

    wires.members.lock().unwrap().remove(&id);
    second.shutdown().await;
    let refused = first.handle().read_index().await.unwrap_err();
    assert!(
        matches!(refused, Unavailable::Timeout | Unavailable::TimeoutLeaderFailure),
        "{refused:?}"
    );
    first.shutdown().await;
}

/// It began a new log, with its vote and all that it had acknowledged forgotten: a quorum with it could lose
/// what was committed, or elect two leaders of one term.
#[tokio::test(start_paused = true)]
async fn a_member_whose_log_is_gone_does_not_start() {
    for image in [false, true] {
        let disk = Arc::new(SimDisk::new(1));
        let wires = Wires::default();
        let first = || Bootstrap::New([node(1)].into());
        let replica = start(1, &disk, &wires, first()).await;
        leader(&[&replica]).await;
        replica.handle().propose(put("k", "v")).await.unwrap();
        if image {
            replica.handle().save_image().await.unwrap();
        }
        replica.shutdown().await;
        disk.remove_dir_all(Path::new("member/wal")).unwrap();
        let parts = || {
            let writer = LogWriterPlacement::Task(Box::new(|| Duration::from_micros(30)));
            parts(writer, 1, &disk, &wires, first())
        };
        let refused = replica::start(parts()).await.err().expect("it has forgotten its vote");
        let told = refused.to_string();
        assert!(told.contains("member/wal is empty") && told.contains("add it again"), "{told}");
        if image {
            // Who goes on alone may do so from the image.
            let alone = Parts { force_new_cluster: true, ..parts() };
            let replica = start_parts(alone, &wires).await;
            leader(&[&replica]).await;
            assert_eq!(get(&replica, "k").unwrap(), b"v");
            replica.shutdown().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_waits_for_the_end_of_the_process_that_still_has_its_directory() {
    let disk = Arc::new(SimDisk::new(1));
    let wires = Wires::default();
    let ending = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    leader(&[&ending]).await;
    ending.handle().propose(put("k", "v")).await.unwrap();
    let mut successor = std::pin::pin!(start(1, &disk, &wires, Bootstrap::Join));
    let early = tokio::time::timeout(Duration::from_secs(60), &mut successor).await;
    assert!(early.is_err(), "two members have one directory");
    ending.shutdown().await;
    let successor = successor.await;
    successor.handle().read_index().await.unwrap();
    assert_eq!(get(&successor, "k").unwrap(), b"v");
    successor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn three_members_agree_and_a_fourth_joins_by_snapshot() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=4).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let first: BTreeMap<_, _> = (1..=3).map(node).collect();
    let mut replicas = Vec::new();
    for id in 1..=3 {
        let disk = &disks[id as usize - 1];
        replicas.push(start(id, disk, &wires, Bootstrap::New(first.clone())).await);
    }
    leader(&[&replicas[0]]).await;
    for n in 0..300 {
        let replica = &replicas[n % 3];
        replica.handle().propose(put(&format!("k{}", n % 7), &n.to_string())).await.unwrap();
        assert_eq!(get(replica, &format!("k{}", n % 7)).unwrap(), n.to_string().as_bytes());
    }
    for replica in &replicas {
        replica.handle().read_index().await.unwrap();
        assert_eq!(get(replica, "k6").unwrap(), b"293");
    }

    let (id, node) = node(4);
    let add = MembershipChange::Add { id, peer_urls: node.peer_urls.clone(), learner: true };
    replicas[1].handle().change_membership(add).await.unwrap();
    let joined = start(4, &disks[3], &wires, Bootstrap::Join).await;
    let mut status = joined.handle().watch_status();
    status.wait_for(|status| status.leader.is_some()).await.unwrap();
    joined.handle().read_index().await.unwrap();
    assert_eq!(get(&joined, "k6").unwrap(), b"293");
    let promote = MembershipChange::Promote { id };
    joined.handle().change_membership(promote).await.unwrap();
    assert_eq!(joined.handle().status().voters.len(), 4);

    let target = replicas.iter().find(|r| !r.handle().leads()).unwrap().handle().status().member_id;
    let leading = replicas.iter().find(|r| r.handle().leads()).unwrap();
    leading.handle().move_leader(target).await.unwrap();
    let remove = MembershipChange::Remove { id: MemberId(4) };
    leading.handle().change_membership(remove).await.unwrap();
    assert_eq!(leading.handle().views().members().len(), 3);
    for replica in replicas {
        replica.shutdown().await;
    }
}

/// What a restore leaves: the same state on every member, an image and no log.
fn write_restored(id: u64, disk: &Arc<SimDisk>) {
    let disk: Arc<dyn Disk> = disk.clone();
    let directory = Path::new("member");
    let store = replica::initial_records_directory(directory);
    disk.create_dir_all(&store).unwrap();
    let log = revlog::RevLog::open(disk.clone(), &store, revlog::RevLogOptions::default());
    let records: Arc<dyn revlog::RevStore> = Arc::new(log.unwrap());
    let nodes = [1, 2, 3].map(|id| {
        let (id, node) = node(id);
        machine::MembershipNode {
            id,
            name: node.name,
            peer_urls: node.peer_urls,
            voter_intent: true,
        }
    });
    let position = machine::LogPosition { term: types::Term(1), index: types::LogIndex(3) };
    let mut tables = machine::Tables::new(CLUSTER);
    tables.applied = Some(position);
    let voters = vec![nodes.iter().map(|node| node.id).collect()];
    let entry = machine::MembershipEntry { nodes: nodes.to_vec(), voters };
    tables.membership.apply(position, &entry);
    let (revision, compact_revision) = (types::Revision(40), types::Revision(40));
    let meta = mvcc::StoreMeta { revision, compact_revision };
    let machine = machine::Machine::import(records, meta, [], tables).unwrap();
    replica::write_initial_state(disk, directory, CLUSTER, MemberId(id), &machine).unwrap();
}

#[tokio::test(start_paused = true)]
async fn restored_members_elect_a_leader_and_go_on_from_the_restored_state() {
    let wires = Wires::default();
    let disks = [1, 2, 3].map(|id| Arc::new(SimDisk::new(id)));
    for (id, disk) in (1..).zip(&disks) {
        write_restored(id, disk);
    }
    for round in 0..2 {
        let mut replicas = Vec::new();
        for (id, disk) in (1..).zip(&disks) {
            let members = [node(1), node(2), node(3)].into();
            replicas.push(start(id, disk, &wires, Bootstrap::New(members)).await);
        }
        all_follow_a_leader(&replicas).await;
        for (replica, revision) in replicas.iter().zip(41 + 3 * round..) {
            let outcome = replica.handle().propose(put("k", "v")).await.unwrap();
            let Outcome::Put(response) = outcome else { panic!("{outcome:?}") };
            assert_eq!(response.header.unwrap().revision, revision);
        }
        for replica in &replicas {
            replica.handle().read_index().await.unwrap();
            assert_eq!(get(replica, "k").unwrap(), b"v");
            assert_eq!(replica.handle().views().members().len(), 3);
        }
        for replica in replicas {
            replica.shutdown().await;
        }
    }
}

fn delete(key: &str) -> Proposal {
    let request =
        DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
    Proposal::new(CommandKind::DeleteRange, &request)
}

/// Leaves this much of the disk free.
fn leave_free(disk: &SimDisk, bytes: u64) {
    disk.set_capacity(Some(disk.used_bytes() + bytes));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_before_deletions_fail_and_then_waited_out() {
    let disk = Arc::new(SimDisk::new(1));
    let wires = Wires::default();
    let replica = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    leader(&[&replica]).await;
    let value = "x".repeat(64 << 10);
    let mut written = Vec::new();
    leave_free(&disk, replica::SPACE_RESERVE_BYTES + (6 << 20));
    for number in 0.. {
        if replica.handle().log_is_in_reserve() {
            break;
        }
        assert!(number < 200, "the reserve is not told");
        let key = format!("key-{number}");
        replica.handle().propose(put(&key, &value)).await.unwrap();
        written.push(key);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    // What frees space works, and images are written.
    let gone = written.pop().unwrap();
    let deleted = replica.handle().propose(delete(&gone)).await.unwrap();
    assert!(matches!(deleted, Outcome::DeleteRange(_)), "{deleted:?}");
    let revision = replica.handle().views().mvcc.revision().0;
    let request = CompactionRequest { revision, physical: false };
    let compacted =
        replica.handle().propose(Proposal::new(CommandKind::Compaction, &request)).await.unwrap();
    assert!(matches!(compacted, Outcome::Compaction(_)), "{compacted:?}");
    replica.handle().save_image().await.unwrap();

    // Whoever writes on nevertheless comes to a stop and not to an end.
    leave_free(&disk, 0);
    let mut stopped = false;
    for number in 0..200 {
        let key = format!("more-{number}");
        match replica.handle().propose(put(&key, &value)).await {
            Ok(_) => written.push(key),
            Err(Unavailable::Timeout) => {
                stopped = true;
                break;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(stopped, "a disk without space took everything");
    assert_eq!(replica.handle().status().fatal, None);
    disk.set_capacity(None);
    replica.handle().propose(put("after", "space")).await.unwrap();
    written.push("after".to_owned());
    for key in &written {
        assert!(get(&replica, key).is_some(), "{key} is lost");
    }
    replica.shutdown().await;
    let replica = start(1, &disk, &wires, Bootstrap::Join).await;
    leader(&[&replica]).await;
    replica.handle().read_index().await.unwrap();
    for key in &written {
        assert!(get(&replica, key).is_some(), "{key} is lost by the restart");
    }
    assert!(get(&replica, &gone).is_none());
}

/// A member with 80 keys of 1 MiB, which its image holds.
async fn with_long_keys(disk: &Arc<SimDisk>) -> replica::Replica {
    let replica = start(1, disk, &Wires::default(), Bootstrap::New([node(1)].into())).await;
    leader(&[&replica]).await;
    assert_eq!(replica.handle().space_reserve(), replica::SPACE_RESERVE_BYTES);
    for number in 0..80 {
        replica.handle().propose(put(&long_key(number), "")).await.unwrap();
    }
    replica.handle().save_image().await.unwrap();
    replica
}

fn long_key(number: u32) -> String {
    format!("{number}{}", "k".repeat(1 << 20))
}

/// The next image is written beside the one before. Where that was longer than the reserve, a compaction
/// on a full disk freed nothing.
#[tokio::test(start_paused = true)]
async fn the_reserve_has_room_for_the_image_that_frees_what_a_compaction_lets_go() {
    let disk = Arc::new(SimDisk::new(1));
    let replica = with_long_keys(&disk).await;
    let reserve = replica.handle().space_reserve();
    assert!(reserve > replica::SPACE_RESERVE_BYTES + (80 << 20), "{reserve}");

    let versions = 30;
    for _ in 0..versions {
        replica.handle().propose(put("again", &"v".repeat(1 << 20))).await.unwrap();
    }
    leave_free(&disk, reserve);
    let revision = replica.handle().views().mvcc.revision().0;
    let request = CompactionRequest { revision, physical: false };
    replica.handle().propose(Proposal::new(CommandKind::Compaction, &request)).await.unwrap();
    let before = replica.handle().views().mvcc.store_size().in_use;
    let saved = tokio::time::timeout(Duration::from_secs(10), replica.handle().save_image());
    saved.await.expect("there is room for it").unwrap();
    let after = replica.handle().views().mvcc.store_size().in_use;
    assert!(after < before - (versions - 2) * (1 << 20), "{before} bytes were in use, now {after}");
    replica.shutdown().await;
}

/// The disk was full in the middle of the index, and the member ended.
#[tokio::test(start_paused = true)]
async fn an_image_waits_for_space_wherever_the_disk_was_full() {
    let disk = Arc::new(SimDisk::new(1));
    let replica = with_long_keys(&disk).await;
    replica.handle().propose(put("another", "")).await.unwrap();
    leave_free(&disk, 20 << 20);
    let handle = replica.handle().clone();
    let saved = tokio::spawn(async move { handle.save_image().await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!saved.is_finished(), "it was written to a full disk");
    assert_eq!(replica.handle().status().fatal, None);
    disk.set_capacity(None);
    saved.await.unwrap().unwrap();
    replica.shutdown().await;
}

/// An image was under way when a compaction came, and the next one was begun before the index was swept.
/// Nothing else came after it, since the disk was full: what the compaction had let go of was not freed.
#[tokio::test(start_paused = true)]
async fn what_a_compaction_lets_go_while_images_are_written_is_freed_without_another_write() {
    let disk = Arc::new(SimDisk::new(1));
    let replica = with_long_keys(&disk).await;
    let versions = 30;
    for _ in 0..versions {
        replica.handle().propose(put("again", &"v".repeat(1 << 20))).await.unwrap();
    }
    leave_free(&disk, 20 << 20);
    let save = || {
        let handle = replica.handle().clone();
        tokio::spawn(async move { handle.save_image().await })
    };
    let first = save();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let revision = replica.handle().views().mvcc.revision().0;
    let request = CompactionRequest { revision, physical: false };
    replica.handle().propose(Proposal::new(CommandKind::Compaction, &request)).await.unwrap();
    let second = save();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!first.is_finished() && !second.is_finished(), "the disk is full");

    let before = replica.handle().views().mvcc.store_size().in_use;
    disk.set_capacity(None);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let after = replica.handle().views().mvcc.store_size().in_use;
    assert!(after < before - (versions - 2) * (1 << 20), "{before} bytes were in use, now {after}");
    replica.shutdown().await;
}

/// Every linearizable read needs a heartbeat, and opening a stream costs more than sending one.
#[tokio::test(start_paused = true)]
async fn heartbeats_of_many_reads_go_over_one_stream_until_it_breaks() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=2).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=2).map(node).collect();
    let (leading, mut replicas) = start_and_elect(&members, &disks, &wires).await;
    leading.handle().read_index().await.unwrap();
    let before = wires.opened.load(Ordering::SeqCst);
    for _ in 0..100 {
        leading.handle().read_index().await.unwrap();
    }
    assert_eq!(wires.opened.load(Ordering::SeqCst), before);

    let follower = replicas.remove(0);
    let id = follower.handle().status().member_id;
    follower.shutdown().await;
    let disk = &disks[id.0 as usize - 1];
    let follower = start(id.0, disk, &wires, Bootstrap::New(members)).await;
    leading.handle().read_index().await.unwrap();
    assert!(wires.opened.load(Ordering::SeqCst) > before);
    leading.shutdown().await;
    follower.shutdown().await;
}

/// T32 (etcd PR#17813): addresses are used again, so whoever answers may not be whom the sender means.
#[tokio::test(start_paused = true)]
async fn t32_what_is_for_another_member_or_cluster_is_refused_whatever_it_is() {
    let disk = Arc::new(SimDisk::new(1));
    let wires = Wires::default();
    let replica = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    let term = replica.handle().status().term;
    let wrong = [(CLUSTER.0, 2), (CLUSTER.0 + 1, 1), (0, 1), (CLUSTER.0, 0)];
    for (cluster_id, to) in wrong {
        let envelope = Some(peerpb::Envelope {
            cluster_id,
            from: 3,
            to,
            protocol_version: replica::ProtocolVersions::OWN.newest,
            protocol_oldest: replica::ProtocolVersions::OWN.oldest,
        });
        let vote = Some(peerpb::Vote { term: 99, node_id: 3, committed: true });
        let inbound = replica.inbound();
        let append = peerpb::AppendRequest { envelope, vote, ..peerpb::AppendRequest::default() };
        let appended = inbound.append(stream::iter([append])).next().await.unwrap().map(drop);
        let ask = peerpb::VoteRequest { envelope, vote, ..peerpb::VoteRequest::default() };
        let header = peerpb::SnapshotHeader { envelope, vote, ..peerpb::SnapshotHeader::default() };
        let part = Some(peerpb::snapshot_chunk::Part::Header(header));
        let chunks = stream::iter([peerpb::SnapshotChunk { part }]);
        let transfer = peerpb::TransferLeaderRequest {
            envelope,
            from_leader: vote,
            to_node: 1,
            last_log_id: None,
        };
        let forward =
            peerpb::ForwardRequest { envelope, term: term.0, ..peerpb::ForwardRequest::default() };
        let change = peerpb::ChangeMembershipRequest { envelope, change: None };
        let answers = [
            ("append", appended),
            ("vote", inbound.vote(ask).await.map(drop)),
            ("snapshot", inbound.snapshot(chunks).await.map(drop)),
            ("holding", inbound.holding(peerpb::HoldingRequest { envelope }).await.map(drop)),
            ("transfer", inbound.transfer_leader(transfer).await.map(drop)),
            ("forward", inbound.forward(forward).await.map(drop)),
            (
                "read index",
                inbound.read_index(peerpb::ReadIndexRequest { envelope }).await.map(drop),
            ),
            ("membership", inbound.change_membership(change).await.map(drop)),
        ];
        for (what, answer) in answers {
            assert!(matches!(answer, Err(PeerError::Refused(_))), "{what} to {to}: {answer:?}");
        }
    }
    assert_eq!(replica.handle().status().term, term, "none of it was looked at");
    replica.handle().propose(put("k", "v")).await.unwrap();
    replica.shutdown().await;
}

/// A leader that has nothing to replicate knows only from heartbeats that it leads, and a round trip may
/// take longer than the interval between two of them.
#[tokio::test(start_paused = true)]
async fn a_quiet_leader_goes_on_and_serves_reads_over_long_ways() {
    for way in [75, 200].map(Duration::from_millis) {
        let wires = Wires::default();
        *wires.way.lock().unwrap() = way;
        let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
        let members: BTreeMap<_, _> = (1..=3).map(node).collect();
        let (leading, mut replicas) = start_and_elect(&members, &disks, &wires).await;
        leading.handle().propose(put("k", "v")).await.unwrap();
        replicas.push(leading);
        // Over a long way another candidate may have been under way.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let leading = replicas.iter().find(|replica| replica.handle().leads()).unwrap();
        let elected = leading.handle().status();
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = leading.handle().status();
            assert_eq!(now.term, elected.term, "another election with {way:?} each way");
            assert!(now.is_leader() && !now.isolated, "{now:?} with {way:?} each way");
        }
        for replica in &replicas {
            let asked = tokio::time::Instant::now();
            replica.handle().read_index().await.unwrap();
            // To the leader and back, the heartbeat that is under way, and the one for this read.
            let took = asked.elapsed();
            assert!(took <= 6 * way + Duration::from_millis(10), "{took:?} with {way:?} each way");
            assert_eq!(replica.handle().status().leader, Some(elected.member_id), "{way:?}");
        }
        for replica in replicas {
            replica.shutdown().await;
        }
    }
}

/// With pre-votes a follower does not change its vote while no quorum is there to elect anybody. It once
/// named the leader that it had last followed for ever, so that `/health` said that there was one and
/// watches that want a leader went on.
#[tokio::test(start_paused = true)]
async fn a_follower_whose_leader_went_with_the_quorum_names_none_until_it_is_back() {
    let patience = Duration::from_secs(10);
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (leading, mut followers) = start_and_elect(&members, &disks, &wires).await;
    leading.handle().propose(put("k", "v")).await.unwrap();
    let leader = leading.handle().status().member_id;
    let named = async |replica: &replica::Replica, wanted: Option<MemberId>| {
        let mut status = replica.handle().watch_status();
        let named = status.wait_for(|status| status.answered_leader() == wanted);
        tokio::time::timeout(patience, named).await.is_ok()
    };
    let (survivor, other) = (followers.remove(0), followers.remove(0));
    assert!(named(&survivor, Some(leader)).await);

    let gone = [leading, other].map(|replica| (replica.handle().status().member_id, replica));
    for (id, replica) in gone {
        wires.members.lock().unwrap().remove(&id);
        replica.shutdown().await;
    }
    assert!(named(&survivor, None).await, "{:?}", survivor.handle().status());
    assert_eq!(survivor.handle().leader(), None);

    // Nor does one that starts again name the leader that its vote is for.
    let own = survivor.handle().status().member_id;
    wires.members.lock().unwrap().remove(&own);
    survivor.shutdown().await;
    let again = |id: MemberId| {
        start(id.0, &disks[id.0 as usize - 1], &wires, Bootstrap::New(members.clone()))
    };
    let survivor = again(own).await;
    assert_eq!(survivor.handle().leader(), None, "{:?}", survivor.handle().status());

    let mut replicas = vec![survivor];
    for id in members.keys().filter(|id| **id != own) {
        replicas.push(again(*id).await);
    }
    all_follow_a_leader(&replicas).await;
    for replica in &replicas {
        let mut status = replica.handle().watch_status();
        let back = status.wait_for(|status| status.answered_leader().is_some());
        tokio::time::timeout(patience, back).await.unwrap().unwrap();
    }
    for replica in replicas {
        replica.shutdown().await;
    }
}

/// etcd's followers campaign one to two election timeouts after the last heartbeat. Ours once took three
/// to four, because openraft adds the leader's lease to what it draws.
#[tokio::test(start_paused = true)]
async fn a_lost_leader_is_replaced_within_two_election_timeouts() {
    // That of the wires.
    let timeout = Duration::from_secs(1);
    let mut quickest = Duration::MAX;
    // All clocks tick at the same moment here, so that two may campaign at once and begin anew.
    for _ in 0..10 {
        let wires = Wires::default();
        let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
        let members: BTreeMap<_, _> = (1..=3).map(node).collect();
        let (lost, replicas) = start_and_elect(&members, &disks, &wires).await;
        lost.handle().propose(put("k", "v")).await.unwrap();
        wires.members.lock().unwrap().remove(&lost.handle().status().member_id);
        let since = tokio::time::Instant::now();
        lost.shutdown().await;
        while !replicas.iter().any(|replica| replica.handle().leads()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        quickest = quickest.min(since.elapsed());
        for replica in replicas {
            replica.shutdown().await;
        }
    }
    assert!(quickest >= timeout, "{quickest:?}: within the lease");
    assert!(quickest <= timeout * 22 / 10, "{quickest:?}");
}

/// A long transfer must not cost the cluster its reads: the follower that receives it is alive.
#[tokio::test(start_paused = true)]
async fn a_follower_that_needs_a_snapshot_still_hears_that_its_leader_leads() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (leading, mut replicas) = start_and_elect(&members, &disks, &wires).await;
    let (behind, other) = (replicas.remove(0), replicas.remove(0));
    *wires.cut_off.lock().unwrap() = Some(behind.handle().status().member_id);
    wires.snapshots_crawl.store(true, Ordering::SeqCst);
    // The stream that is open would go on.
    wires.members.lock().unwrap().remove(&behind.handle().status().member_id);
    behind.shutdown().await;
    for number in 0..300 {
        leading.handle().propose(put("k", &number.to_string())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = leading.handle().status().nodes.keys().copied().find(|id| {
        *id != leading.handle().status().member_id && *id != other.handle().status().member_id
    });
    let id = id.unwrap();
    let disk = &disks[id.0 as usize - 1];
    let behind = start(id.0, disk, &wires, Bootstrap::New(members.clone())).await;
    *wires.cut_off.lock().unwrap() = None;
    wires.members.lock().unwrap().remove(&other.handle().status().member_id);
    other.shutdown().await;

    leading.handle().read_index().await.unwrap();
    assert_eq!(get(&behind, "k"), None, "the snapshot is still on its way");
    wires.snapshots_crawl.store(false, Ordering::SeqCst);
    leading.shutdown().await;
    behind.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_member_ends_also_while_its_log_waits_for_space() {
    let disk = Arc::new(SimDisk::new(1));
    let wires = Wires::default();
    let replica = start(1, &disk, &wires, Bootstrap::New([node(1)].into())).await;
    leader(&[&replica]).await;
    let value = "x".repeat(64 << 10);
    leave_free(&disk, 0);
    let mut written = 0;
    let refused = loop {
        match replica.handle().propose(put(&format!("key-{written}"), &value)).await {
            Ok(_) => written += 1,
            Err(reason) => break reason,
        }
        assert!(written < 2000, "a disk without space took everything");
    };
    assert_eq!(refused, Unavailable::Timeout);

    let ended = tokio::time::timeout(Duration::from_secs(60), replica.shutdown()).await;
    assert!(ended.is_ok(), "the log still waits for space");
    disk.set_capacity(None);
    let replica = start(1, &disk, &wires, Bootstrap::Join).await;
    replica.handle().read_index().await.unwrap();
    for number in 0..written {
        assert!(get(&replica, &format!("key-{number}")).is_some(), "key-{number} is lost");
    }
    replica.shutdown().await;
}

/// Three members whose logs have threads, as in the server. The followers end and leave nobody who
/// would answer; then the leader, which is about to call them, is told to end.
async fn end_a_leader_that_calls_in_vain() {
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let mut replicas = Vec::new();
    for (id, disk) in (1..).zip(&disks) {
        let bootstrap = Bootstrap::New(members.clone());
        let own = LogWriterPlacement::OwnThread;
        replicas.push(start_with(own, id, disk, &wires, bootstrap).await);
    }
    all_follow_a_leader(&replicas).await;
    replicas[0].handle().propose(put("k", "v")).await.unwrap();
    wires.swallow.store(true, Ordering::SeqCst);
    let at = replicas.iter().position(|replica| replica.handle().leads()).unwrap();
    let leading = replicas.swap_remove(at);
    for follower in replicas {
        follower.shutdown().await;
    }
    let handle = leading.handle().clone();
    let proposing = tokio::spawn(async move { handle.propose(put("k", "unheard")).await });
    // openraft calls a follower again once the stream to it has ended.
    while wires.swallowed.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    leading.shutdown().await;
    proposing.abort();
}

#[test]
fn a_leader_that_waits_for_its_followers_ends_all_the_same() {
    // A thread of its own: when a runtime's thread waits for the log, nothing on it can give up.
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(end_a_leader_that_calls_in_vain());
        done.send(()).unwrap();
    });
    let ended = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(ended, Ok(()), "a member that was told to end did not");
}
