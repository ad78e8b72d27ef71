//! Images and snapshots: what they bring back, and what they refuse.

use std::sync::Arc;

use proto::etcdserverpb as pb;
use revlog::RevStore;
use types::{LogIndex, MemberId, RecordRevision, Revision};

use super::member::*;
use super::memory::Memory;
use crate::*;

/// A member with keys, a lease, an alarm, a compaction behind it and members.
fn lived() -> Member {
    let mut member = Member::new();
    let node = MembershipNode { id: MemberId(1), voter_intent: true, ..MembershipNode::default() };
    let voters = vec![[MemberId(1)].into()];
    member.membership(MembershipEntry { nodes: vec![node], voters });
    member.grant(5, 60).unwrap();
    for key in ["a", "b", "c"] {
        for value in ["1", "2", "3"] {
            member.put_request(&pb::PutRequest { lease: 5, ..put(key, value) }).unwrap();
        }
    }
    member.delete("b", "").unwrap();
    member.compact(8).unwrap();
    let alarm = pb::AlarmRequest { action: 1, member_id: 1, alarm: 2 };
    member.request(CommandKind::Alarm, &alarm);
    let off = pb::AlarmRequest { action: 2, ..alarm };
    member.request(CommandKind::Alarm, &off);
    member
}

fn snapshot(member: &Member) -> Vec<u8> {
    let mut bytes = Vec::new();
    member.machine.snapshot().write(&mut bytes, Revision(0)).unwrap();
    bytes
}

fn snapshot_above(member: &Member, held: Revision) -> Vec<u8> {
    let mut bytes = Vec::new();
    member.machine.snapshot().write(&mut bytes, held).unwrap();
    bytes
}

fn install(bytes: &[u8]) -> Result<Machine, RestoreError> {
    Machine::install(&mut { bytes }, Arc::new(Memory::default()), None)
}

#[test]
fn an_image_and_the_log_after_it_bring_back_the_same_state() {
    let mut member = lived();
    let image = member.image();
    member.put("d", "1");
    member.delete("a", "").unwrap();
    let digest = member.digest();
    for kept in [0, 1, 100] {
        member.restart(&image, kept);
        assert_eq!(member.digest(), digest, "with {kept} records that were not flushed");
    }
}

#[test]
fn t01_an_image_holds_the_applied_position_that_its_effects_belong_to() {
    let mut member = lived();
    let job = member.machine.image();
    let (applied, digest) = (member.machine.applied(), member.digest());
    for number in 0..50 {
        member.put(&format!("late{number}"), "1");
    }
    member.delete("a", "").unwrap();
    member.compact(member.revision()).unwrap();
    let mut bytes = Vec::new();
    job.write(&mut bytes).unwrap();
    assert_eq!(job.applied(), applied);
    let old = Machine::restore(&mut bytes.as_slice(), member.records.clone()).unwrap();
    assert_eq!((old.applied(), old.digest().unwrap()), (applied, digest));
}

#[test]
fn t06_the_revision_survives_a_sweep_of_the_last_record_and_a_crash() {
    let mut member = Member::new();
    member.put("a", "1");
    member.delete("a", "").unwrap();
    member.compact(3).unwrap();
    member.sweep();
    let image = member.image();
    member.machine.image().remove_garbage().unwrap();
    let digest = member.digest();
    member.restart(&image, 0);
    assert_eq!((member.revision(), member.digest()), (3, digest));
    assert_eq!(member.put("a", "2"), 4);
}

#[test]
fn a_sweep_waits_while_an_image_is_under_way() {
    let mut member = lived();
    let job = member.machine.image();
    assert_eq!(member.machine.compactor().step(100), SweepStep::Held);
    member.compact(member.revision()).unwrap();
    assert_eq!(member.machine.compactor().step(100), SweepStep::Held);
    drop(job);
    assert_eq!(member.machine.compactor().step(100), SweepStep::Done);
}

#[test]
fn garbage_goes_only_as_far_as_the_durable_image_reaches() {
    let mut member = lived();
    let first = member.machine.image();
    drop(first.write(&mut Vec::new()));
    drop(first);
    member.sweep();
    let image = member.machine.image();
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    let before = member.records.len();
    assert!(image.remove_garbage().unwrap() > 0);
    drop(image);
    assert!(member.records.len() < before);
    member.put("a", "4");
    member.compact(member.revision()).unwrap();
    member.sweep();
    let digest = member.digest();
    member.restart(&bytes, 0);
    assert_eq!(member.digest(), digest, "replay found everything it needed");
}

#[test]
fn t04_t13_an_installed_follower_equals_its_leader() {
    let mut leader = lived();
    for swept in [false, true] {
        if swept {
            leader.sweep();
        }
        let bytes = snapshot(&leader);
        let mut follower = Member::new();
        follower.records = Arc::new(Memory::default());
        follower.machine =
            Machine::install(&mut bytes.as_slice(), follower.records.clone(), None).unwrap();
        assert_eq!(follower.digest(), leader.digest());
        let hash = |member: &Member| member.machine.views().mvcc.hash_kv(0).unwrap();
        assert_eq!(hash(&follower), hash(&leader));
        assert_eq!(follower.machine.views().tables(), leader.machine.views().tables());
        assert_eq!(follower.machine.views().leases(), leader.machine.views().leases());
        // Life goes on the same on both.
        follower.log.clone_from(&leader.log);
        for member in [&mut leader, &mut follower] {
            member.put("after", "1");
            member.delete("a", "").unwrap();
            member.compact(member.revision()).unwrap();
            member.sweep();
        }
        assert_eq!(follower.digest(), leader.digest());
    }
}

/// Both have come to revision 6; then the follower is away, and what it has freed is not what the leader
/// has freed.
#[test]
fn a_snapshot_leaves_out_what_its_receiver_has() {
    for (leader_swept, follower_swept) in [(false, true), (true, false), (true, true)] {
        let mut leader = Member::new();
        let mut follower = Member::new();
        for value in ["1", "2", "3", "4"] {
            for member in [&mut leader, &mut follower] {
                member.put("k", value);
                member.put(&format!("other{value}"), &"x".repeat(1000));
            }
        }
        let held = Revision(follower.revision());
        for member in [&mut leader, &mut follower] {
            member.compact(4).unwrap();
        }
        leader.put("late", "1");
        leader.delete("other2", "").unwrap();
        if leader_swept {
            leader.compact(leader.revision()).unwrap();
            leader.sweep();
            leader.machine.image().remove_garbage().unwrap();
        }
        if follower_swept {
            follower.sweep();
            follower.machine.image().remove_garbage().unwrap();
        }
        let part = snapshot_above(&leader, held);
        assert!(part.len() < 1000, "no value of {} bytes is in it", part.len());
        let records = Arc::new(Memory::default());
        let has = Held { records: &*follower.records, upto: held };
        let installed = Machine::install(&mut part.as_slice(), records.clone(), Some(has)).unwrap();
        assert_eq!(installed.digest().unwrap(), leader.digest());
        assert_eq!(installed.views().tables(), leader.machine.views().tables());

        let alone = Machine::install(&mut part.as_slice(), Arc::new(Memory::default()), None);
        assert!(matches!(alone, Err(RestoreError::Missing { .. })), "it is no whole state");
        let lost = RecordRevision::first_of(held);
        follower.records.remove(&[lost]).unwrap();
        let with_hole = Arc::new(Memory::default());
        let has = Held { records: &*follower.records, upto: held };
        let torn = Machine::install(&mut part.as_slice(), with_hole, Some(has));
        assert!(matches!(torn, Err(RestoreError::Missing { record }) if record == lost));
    }
}

#[test]
fn a_snapshot_is_of_its_moment_although_the_leader_goes_on() {
    let mut leader = lived();
    let (job, digest) = (leader.machine.snapshot(), leader.digest());
    leader.put("late", "1");
    leader.delete("a", "").unwrap();
    leader.compact(leader.revision()).unwrap();
    leader.sweep();
    let mut bytes = Vec::new();
    job.write(&mut bytes, Revision(0)).unwrap();
    assert_eq!(install(&bytes).unwrap().digest().unwrap(), digest);
}

#[test]
fn removed_records_that_a_crash_brought_back_do_not_come_to_life_on_a_follower() {
    let mut leader = Member::new();
    for value in ["1", "2"] {
        leader.put("a", value);
    }
    leader.delete("a", "").unwrap();
    leader.put("b", "1");
    leader.compact(5).unwrap();
    leader.sweep();
    leader.machine.image().remove_garbage().unwrap();
    let image = leader.image();
    leader.restart(&image, 0);
    assert_eq!(leader.records.len(), 4, "the removals did not survive");
    let follower = install(&snapshot(&leader)).unwrap();
    assert_eq!(follower.digest().unwrap(), leader.digest());
    assert_eq!(follower.views().mvcc.get(b"a", 0).unwrap(), None);
}

#[test]
fn an_empty_state_survives_too() {
    let member = Member::new();
    let installed = install(&snapshot(&member)).unwrap();
    assert_eq!(installed.digest().unwrap(), member.digest());
    assert_eq!(installed.applied(), None);
    let image = member.image();
    let restored = Machine::restore(&mut image.as_slice(), Arc::new(Memory::default())).unwrap();
    assert_eq!(restored.digest().unwrap(), member.digest());
    assert_eq!(restored.views().tables().cluster_id, CLUSTER);
}

#[test]
fn damage_anywhere_is_refused_and_the_records_stay() {
    let member = lived();
    let (image, snapshot) = (member.image(), snapshot(&member));
    let records = member.records.len();
    for at in 0..image.len() {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        let result = Machine::restore(&mut damaged.as_slice(), member.records.clone());
        assert!(result.is_err(), "byte {at}");
        let cut = Machine::restore(&mut &image[..at], member.records.clone());
        assert!(cut.is_err(), "cut at {at}");
    }
    assert_eq!(member.records.len(), records);
    for at in (0..snapshot.len()).step_by(7) {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 0x10;
        assert!(install(&damaged).is_err(), "byte {at}");
        assert!(install(&snapshot[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn an_image_is_no_snapshot_and_a_used_store_takes_none() {
    let member = lived();
    assert!(matches!(install(&member.image()), Err(RestoreError::Frames(FrameError::Kind { .. }))));
    let used = Machine::install(&mut snapshot(&member).as_slice(), member.records.clone(), None);
    assert!(matches!(used, Err(RestoreError::NotEmpty)));
}

#[test]
fn an_image_is_not_written_over_a_disk_that_does_not_flush() {
    let member = lived();
    member.records.break_disk();
    let written = member.machine.image().write(&mut Vec::new());
    assert!(matches!(written, Err(WriteError::Store(_))));
    assert_eq!(member.machine.applied().unwrap().index, LogIndex(15));
}
