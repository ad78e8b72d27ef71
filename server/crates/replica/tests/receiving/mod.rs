//! Snapshots that do not come to their end.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

mod slow_disk;

use std::io;
use std::path::Path;
use std::time::Duration;

use disk::{Disk, SimDisk};
use futures_util::{Stream, stream};
use proto::peerpb;
use proto::peerpb::snapshot_chunk::Part;
use replica::{Blocking, PeerError, PeerResult, Replica};
use sha2::{Digest, Sha256};
use slow_disk::SlowDisk;
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
        Self::start_on(disk.clone(), disk, Blocking::Inline).await
    }

    /// A member alone whose `disk` keeps everything in `kept`.
    async fn start_on(disk: Arc<dyn Disk>, kept: Arc<SimDisk>, blocking: Blocking) -> Self {
        let wires = Wires::default();
        let log_writer = LogWriterPlacement::Task(Box::new(|| Duration::from_micros(30)));
        let parts = parts(log_writer, 1, &kept, &wires, Bootstrap::New([node(1)].into()));
        let replica = start_parts(Parts { disk, blocking, ..parts }, &wires).await;
        leader(&[&replica]).await;
        let term = replica.handle().status().term.0;
        Self { replica, disk: kept, term }
    }

    /// A snapshot of a leader of this term that stops after its first piece.
    fn begin(&self, term: u64) -> JoinHandle<PeerResult<peerpb::SnapshotResponse>> {
        let begun = [Some(header(term)), Some(data(0))];
        self.offer(stream::iter(begun).chain(stream::pending()))
    }

    /// A snapshot in these parts, of which none is one that this member does not know.
    fn offer(
        &self,
        parts: impl Stream<Item = Option<Part>> + Unpin + Send + 'static,
    ) -> JoinHandle<PeerResult<peerpb::SnapshotResponse>> {
        let inbound = self.replica.inbound();
        let chunks = parts.map(|part| peerpb::SnapshotChunk { part });
        tokio::spawn(async move { inbound.snapshot(chunks).await })
    }

    async fn begun(&self) {
        until("it is being received", || incoming(&self.disk) == 1).await;
    }

    /// Asserts that this member votes, writes and reads, and has installed nothing.
    async fn serves(&self, value: &str) {
        let request = peerpb::VoteRequest {
            envelope: envelope(),
            vote: Some(peerpb::Vote { term: self.term, node_id: 2, committed: false }),
            pre_vote: true,
            ..peerpb::VoteRequest::default()
        };
        let answer = self.replica.inbound().vote(request).await.unwrap();
        assert!(!answer.granted, "it leads itself");
        self.replica.handle().propose(put("k", value)).await.unwrap();
        self.replica.handle().read_index().await.unwrap();
        assert_eq!(get(&self.replica, "k").unwrap(), value.as_bytes());
        let status = self.replica.handle().status();
        assert!(status.fatal.is_none() && status.applied < SNAPSHOT_AT, "{status:?}");
    }
}

/// Which entry is the last in a snapshot.
const SNAPSHOT_AT: LogIndex = LogIndex(1_000);

fn envelope() -> Option<peerpb::Envelope> {
    Some(peerpb::Envelope {
        cluster_id: CLUSTER.0,
        from: 2,
        to: 1,
        protocol_version: replica::ProtocolVersions::OWN.newest,
        protocol_oldest: replica::ProtocolVersions::OWN.oldest,
    })
}

fn header(term: u64) -> Part {
    let last_log_id = Some(peerpb::LogId { term, node_id: 0, index: SNAPSHOT_AT.0 });
    Part::Header(peerpb::SnapshotHeader {
        envelope: envelope(),
        vote: Some(peerpb::Vote { term, node_id: 2, committed: true }),
        last_log_id,
        membership: Some(peerpb::StoredMembership {
            log_id: last_log_id,
            membership: Some(peerpb::Membership::default()),
        }),
        format: 1,
        total_bytes: 0,
        records_above: 0,
    })
}

/// A header that leaves records out.
fn header_above(term: u64, records_above: i64, format: u32) -> Part {
    let Part::Header(header) = header(term) else { unreachable!("it is one") };
    Part::Header(peerpb::SnapshotHeader { records_above, format, ..header })
}

/// One of several pieces, each of other bytes.
fn data(number: u8) -> Part {
    Part::Data(vec![number; 1_000].into())
}

/// The trailer of a snapshot of so many pieces.
fn trailer(pieces: u8) -> Part {
    let mut digest = Sha256::new();
    (0..pieces).for_each(|number| digest.update([number; 1_000]));
    Part::Trailer(peerpb::SnapshotTrailer { digest: digest.finalize().to_vec().into() })
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

/// Whoever leads next may have nothing to send but its log.
#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_term_is_over_is_given_up_without_another_one() {
    let member = Receiving::start().await;
    let first = member.begin(member.term);
    member.begun().await;
    let vote = Some(peerpb::Vote { term: member.term + 1, node_id: 2, committed: true });
    let append =
        peerpb::AppendRequest { envelope: envelope(), vote, ..peerpb::AppendRequest::default() };
    let appends = stream::iter([append]).chain(stream::pending());
    member.replica.inbound().append(appends).next().await.unwrap().unwrap();
    assert_eq!(reason(first.await.unwrap()), "the term of its leader is over");
    assert_eq!(incoming(&member.disk), 0);
    member.replica.shutdown().await;
}

/// One thread does everything that must not wait, and a flush may take as long as the device likes.
#[tokio::test]
async fn votes_and_writes_are_answered_while_a_snapshot_is_being_written() {
    let (begun, mut operations) = tokio::sync::mpsc::unbounded_channel();
    let (end, ends) = mpsc::channel();
    let kept = Arc::new(SimDisk::new(1));
    let slow = Arc::new(SlowDisk::new((*kept).clone(), begun, ends));
    let member = Receiving::start_on(slow, kept, Blocking::Threads).await;
    let parts = [header(member.term), data(0), data(1), trailer(2)];
    let receiving = member.offer(stream::iter(parts.map(Some)));
    for (number, expected) in ["write", "write", "flush"].into_iter().enumerate() {
        let operation = timeout(Duration::from_secs(60), operations.recv()).await;
        assert_eq!(operation, Ok(Some(expected)));
        member.serves(&number.to_string()).await;
        assert!(!receiving.is_finished() && incoming(&member.disk) == 1);
        let outcome = match expected {
            "flush" => Err(io::Error::other("the device is gone")),
            _ => Ok(()),
        };
        end.send(outcome).unwrap();
    }
    assert_eq!(reason(receiving.await.unwrap()), "the device is gone");
    assert_eq!(incoming(&member.disk), 0);
    member.serves("after").await;
    member.replica.shutdown().await;
}

/// Ten values of 100 KiB are on every member when one goes away; then there are a few hundred small ones,
/// and the log is cut off behind it.
#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_is_sent_what_it_missed() {
    const LARGE_BYTES: usize = 100 << 10;
    let wires = Wires::default();
    let disks: Vec<_> = (1..=3).map(|seed| Arc::new(SimDisk::new(seed))).collect();
    let members: BTreeMap<_, _> = (1..=3).map(node).collect();
    let (leading, mut followers) = start_and_elect(&members, &disks, &wires).await;
    let away = followers.remove(0);
    for number in 0..10 {
        let large = number.to_string().repeat(LARGE_BYTES);
        leading.handle().propose(put(&format!("large{number}"), &large)).await.unwrap();
    }
    away.handle().read_index().await.unwrap();
    let id = away.handle().status().member_id;
    wires.members.lock().unwrap().remove(&id);
    away.shutdown().await;
    for number in 0..300 {
        leading.handle().propose(put("k", &number.to_string())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let disk = &disks[id.0 as usize - 1];
    let back = start(id.0, disk, &wires, Bootstrap::New(members.clone())).await;
    until("it has caught up", || get(&back, "k").as_deref() == Some(b"299")).await;
    let sent = wires.snapshot_bytes.load(Ordering::SeqCst);
    assert!(sent > 0, "the log was enough");
    assert!(sent < LARGE_BYTES, "{sent} bytes were sent");
    let hash = |member: &Replica| member.handle().views().mvcc.hash_kv(0).unwrap();
    assert_eq!(hash(&back), hash(&leading));
    assert_eq!(get(&back, "large7").unwrap().len(), LARGE_BYTES);

    // It is durable as a whole, too.
    wires.members.lock().unwrap().remove(&id);
    back.shutdown().await;
    let again = start(id.0, disk, &wires, Bootstrap::New(members.clone())).await;
    again.handle().read_index().await.unwrap();
    assert_eq!(hash(&again), hash(&leading));
    for member in [leading, again].into_iter().chain(followers) {
        member.shutdown().await;
    }
}

/// A member says what it has, loses its power, and has to read its log again first.
#[tokio::test(start_paused = true)]
async fn a_snapshot_without_records_that_the_member_has_not_is_not_received() {
    let member = Receiving::start().await;
    let asked = peerpb::HoldingRequest { envelope: envelope() };
    let revision = member.replica.inbound().holding(asked).await.unwrap().revision;
    assert_eq!(revision, member.replica.handle().views().mvcc.revision().0);
    let parts = |header| [Some(header), Some(data(0)), Some(trailer(1))];
    let offered = header_above(member.term, revision + 1, 2);
    let answer = member.offer(stream::iter(parts(offered))).await.unwrap();
    let expected = "the snapshot leaves out records that this member does not have";
    assert_eq!(reason(answer), expected);
    let unknown = header_above(member.term, revision, 3);
    let answer = member.offer(stream::iter(parts(unknown))).await.unwrap();
    let refused = PeerError::Refused("snapshot format 3 is not understood".to_owned());
    assert_eq!(answer, Err(refused));
    member.serves("after").await;
    member.replica.shutdown().await;
}

/// Nothing is installed but what came whole and unharmed.
#[tokio::test(start_paused = true)]
async fn a_malformed_snapshot_is_refused_and_leaves_nothing() {
    let damaged = "the snapshot does not match its digest";
    let unexpected = "an unexpected part in the snapshot stream";
    let unended = "the snapshot stream ended before its trailer";
    let overlong = "the snapshot stream goes on after its trailer";
    let undigested = || Part::Trailer(peerpb::SnapshotTrailer::default());
    for blocking in [Blocking::Inline, Blocking::Threads] {
        let disk = Arc::new(SimDisk::new(1));
        let member = Receiving::start_on(disk.clone(), disk, blocking).await;
        let header = || header(member.term);
        let malformed = [
            (vec![Some(header()), Some(data(0)), Some(trailer(2))], damaged),
            (vec![Some(header()), Some(data(1)), Some(data(0)), Some(trailer(2))], damaged),
            (vec![Some(header()), Some(data(0)), Some(undigested())], damaged),
            (vec![Some(header()), Some(trailer(1))], damaged),
            (vec![Some(header()), Some(data(0)), Some(header()), Some(trailer(1))], unexpected),
            (vec![Some(header()), Some(data(0)), None, Some(trailer(1))], unexpected),
            (vec![Some(header())], unended),
            (vec![Some(header()), Some(data(0))], unended),
            (vec![Some(header()), Some(data(0)), Some(trailer(1)), Some(data(1))], overlong),
            (vec![Some(header()), Some(data(0)), Some(trailer(1)), Some(trailer(1))], overlong),
            (vec![Some(header()), Some(data(0)), Some(trailer(1)), None], overlong),
        ];
        for (number, (parts, expected)) in malformed.into_iter().enumerate() {
            let shape = format!("{number}, {blocking:?}");
            let answer = member.offer(stream::iter(parts)).await.unwrap();
            assert_eq!(reason(answer), expected, "{shape}");
            assert_eq!(incoming(&member.disk), 0, "{shape}");
            member.serves(&shape).await;
        }
        for parts in [vec![], vec![None], vec![Some(data(0)), Some(trailer(1))]] {
            let answer = member.offer(stream::iter(parts)).await.unwrap().unwrap_err();
            assert!(matches!(&answer, PeerError::Refused(_)), "{answer:?}");
        }
        member.serves("after").await;
        member.replica.shutdown().await;
    }
}
