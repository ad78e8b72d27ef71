//! The machine over the real record store on a disk that loses power at every single write.
//!
//! The Raft log is another room's business: here it is a list that survives, as the log of a member
//! does. What must hold at every crash point: the newest image plus the log after it give exactly
//! the state that a member without crashes has, and life goes on from there.

#![allow(clippy::unwrap_used, reason = "a test's helpers panic like the test itself")]

use std::path::Path;
use std::sync::Arc;

use disk::{AtomicFile, Disk, Fault, SimDisk};
use machine::{
    AppliedEntry, AppliedPayload, Batch, CommandKind, Digest, LeaseExpire, LogPosition, Machine,
    Proposal, SweepStep, Ticket,
};
use prost::Message;
use proto::etcdserverpb as pb;
use revlog::{RevLog, RevLogOptions, RevStore};
use types::{ClusterId, LeaseId, LogIndex, MemberId, Revision, Term};

const IMAGE_BYTES_MAX: u64 = 1 << 20;

enum Action {
    Apply(Vec<Proposal>),
    Sweep,
    Image,
    Defragment,
}

fn proposal(kind: CommandKind, request: &impl Message) -> Proposal {
    Proposal::new(kind, request)
}

fn put(key: u64, value: u64, lease: i64) -> Proposal {
    let request = pb::PutRequest {
        key: format!("key{key}").into(),
        value: format!("{value}-{}", "x".repeat(60)).into(),
        lease,
        ..Default::default()
    };
    proposal(CommandKind::Put, &request)
}

fn delete(key: u64) -> Proposal {
    let key = format!("key{key}").into();
    proposal(CommandKind::DeleteRange, &pb::DeleteRangeRequest { key, ..Default::default() })
}

/// Writes, leases, deletions, compactions, and between them all that background work can do.
fn life() -> Vec<Action> {
    let mut actions = Vec::new();
    let grant = pb::LeaseGrantRequest { id: 9, ttl: 60 };
    actions.push(Action::Apply(vec![proposal(CommandKind::LeaseGrant, &grant)]));
    for round in 0..6u64 {
        for step in 0..4 {
            let key = (round + step) % 5;
            let lease = if step == 1 && round < 4 { 9 } else { 0 };
            actions.push(Action::Apply(vec![put(key, round, lease), put(key + 1, step, 0)]));
        }
        actions.push(Action::Apply(vec![delete(round % 5)]));
        if round == 3 {
            let expire = LeaseExpire { term: Term(1), ids: vec![LeaseId(9)] };
            actions.push(Action::Apply(vec![expire.proposal()]));
        }
        if round % 2 == 1 {
            let revision = 6 * i64::try_from(round).unwrap();
            let compaction = pb::CompactionRequest { revision, physical: false };
            actions.push(Action::Apply(vec![proposal(CommandKind::Compaction, &compaction)]));
            actions.push(Action::Sweep);
        }
        actions.push(Action::Image);
        actions.push(Action::Defragment);
    }
    actions
}

fn entry(index: usize, proposals: &[Proposal]) -> AppliedEntry {
    let batch: Vec<_> = (0..)
        .map(|seq| Ticket { origin: MemberId(1), seq })
        .zip(proposals.iter().cloned())
        .collect();
    let position = LogPosition { term: Term(1), index: LogIndex(index as u64) };
    AppliedEntry { position, payload: AppliedPayload::Batch(Batch::encode(&batch)) }
}

/// A member on a disk; `None` once the power is off.
struct Member {
    disk: SimDisk,
    machine: Machine,
    records: Arc<dyn RevStore>,
}

/// Whatever fails here does so because the power went off; the caller checks.
struct PowerOff;

impl Member {
    fn start(disk: &SimDisk) -> Result<Self, PowerOff> {
        let options = RevLogOptions { segment_bytes: 2048, write_bytes: 200, recent_bytes: 300 };
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let records = RevLog::open(shared, "store", options).map_err(|error| off(disk, &error))?;
        let records: Arc<dyn RevStore> = Arc::new(records);
        let image = Path::new("image");
        let machine = if disk.exists(image).map_err(|error| off(disk, &error))? {
            let bytes =
                disk::read_file(disk, image, IMAGE_BYTES_MAX).map_err(|error| off(disk, &error))?;
            Machine::restore(&mut bytes.as_slice(), records.clone())
                .map_err(|error| off(disk, &error))?
        } else {
            records.truncate_above(Revision(0)).map_err(|error| off(disk, &error))?;
            Machine::new(records.clone(), ClusterId(1))
        };
        Ok(Self { disk: disk.clone(), machine, records })
    }

    fn image(&self) -> Result<(), PowerOff> {
        let job = self.machine.image();
        let mut file = AtomicFile::create(&self.disk, Path::new(""), "image")
            .map_err(|error| off(&self.disk, &error))?;
        job.write(&mut file).map_err(|error| off(&self.disk, &error))?;
        file.commit().map_err(|error| off(&self.disk, &error))?;
        job.remove_garbage().map_err(|error| off(&self.disk, &error))?;
        Ok(())
    }

    fn act(&mut self, action: &Action, log: &mut Vec<AppliedEntry>) -> Result<(), PowerOff> {
        match action {
            Action::Apply(proposals) => {
                log.push(entry(log.len() + 1, proposals));
                self.replay(log)
            }
            Action::Sweep => {
                while self.machine.compactor().step(3) == SweepStep::More {}
                Ok(())
            }
            Action::Image => self.image(),
            Action::Defragment => {
                self.records.defragment().map_err(|error| off(&self.disk, &error))
            }
        }
    }

    /// Applies what the log holds beyond the applied position.
    fn replay(&mut self, log: &[AppliedEntry]) -> Result<(), PowerOff> {
        let applied = self.machine.applied().map_or(0, |position| position.index.0);
        let rest = &log[usize::try_from(applied).unwrap()..];
        self.machine.apply(rest).map_err(|error| off(&self.disk, &error))?;
        Ok(())
    }
}

fn off(disk: &SimDisk, error: &dyn std::fmt::Display) -> PowerOff {
    assert!(disk.is_crashed(), "failed although the power is on: {error}");
    PowerOff
}

/// The digest after each entry, of a member that never crashes and never does background work.
fn digests(actions: &[Action]) -> Vec<Digest> {
    let mut member = Member::start(&SimDisk::new(0)).ok().unwrap();
    let mut log = Vec::new();
    let mut digests = vec![member.machine.digest().unwrap()];
    for action in actions.iter().filter(|action| matches!(action, Action::Apply(_))) {
        member.act(action, &mut log).ok().unwrap();
        digests.push(member.machine.digest().unwrap());
    }
    digests
}

/// Lives until the power goes off, comes back, and lives to the end.
fn live_through(disk: &SimDisk, actions: &[Action], digests: &[Digest]) {
    let mut log = Vec::new();
    let mut done = 0;
    if let Ok(mut member) = Member::start(disk) {
        for action in actions {
            if member.act(action, &mut log).is_err() {
                break;
            }
            done += 1;
        }
    }
    disk.clear_faults();
    disk.restart();
    let mut member = Member::start(disk).ok().unwrap();
    member.replay(&log).ok().unwrap();
    assert_eq!(member.machine.digest().unwrap(), digests[log.len()], "after the restart");
    let applies = |action: &&Action| matches!(action, Action::Apply(_));
    // The entry that was being applied when the power went off is in the log already.
    let logged = actions[..done].iter().filter(applies).count() < log.len();
    for action in &actions[done + usize::from(logged)..] {
        member.act(action, &mut log).ok().unwrap();
    }
    assert_eq!(member.machine.digest().unwrap(), *digests.last().unwrap(), "at the end");
}

#[test]
fn t01_t05_t06_a_crash_at_any_write_loses_and_changes_nothing() {
    let actions = life();
    let digests = digests(&actions);
    for seed in 0..3 {
        let calm = SimDisk::new(seed);
        live_through(&calm, &actions, &digests);
        let writes = calm.mutations();
        assert!(writes > 100, "the life is long enough to be worth it: {writes}");
        for at in 1..=writes {
            let disk = SimDisk::new(seed);
            disk.inject(Fault::CrashAt(at));
            live_through(&disk, &actions, &digests);
        }
    }
}
