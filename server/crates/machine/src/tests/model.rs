//! The machine against a model that is too simple to be wrong, with restarts at random points.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request;
use types::{LeaseId, Revision, Term};

use super::member::*;
use super::txns;
use crate::*;

#[derive(Clone, Debug)]
enum Write {
    Put { key: u8, value: u8, lease: i64, ignore_value: bool, ignore_lease: bool },
    Delete { key: u8, end: u8 },
}

#[derive(Clone, Debug)]
enum Step {
    One(Write),
    /// Compare the version of a key, then one of two lists of writes.
    Txn {
        key: u8,
        version: i64,
        success: Vec<Write>,
        failure: Vec<Write>,
    },
    Grant(i64),
    Revoke(i64),
    Expire {
        ids: Vec<i64>,
        stale: bool,
    },
    Compact(i64),
    Alarm(bool),
    NewLeader,
    // What is no part of the log:
    Sweep,
    Image,
    Restart {
        kept: usize,
    },
    /// From the member that never sweeps or its own, with its own records up to a revision.
    Install {
        from_calm: bool,
        held: i64,
    },
}

fn writes() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (0u8..6, 0u8..4, 0i64..4, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(key, value, lease, ignore_value, ignore_lease)| Write::Put {
                key, value, lease, ignore_value, ignore_lease
            }),
        2 => (0u8..6, 0u8..7).prop_map(|(key, end)| Write::Delete { key, end }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let list = || prop::collection::vec(writes(), 0..4);
    prop_oneof![
        8 => writes().prop_map(Step::One),
        4 => (0u8..6, 0i64..3, list(), list())
            .prop_map(|(key, version, success, failure)| {
                Step::Txn { key, version, success, failure }
            }),
        2 => (1i64..4).prop_map(Step::Grant),
        1 => (1i64..4).prop_map(Step::Revoke),
        1 => (prop::collection::vec(1i64..5, 0..3), any::<bool>())
            .prop_map(|(ids, stale)| Step::Expire { ids, stale }),
        2 => (-1i64..40).prop_map(Step::Compact),
        1 => prop::bool::weighted(0.3).prop_map(Step::Alarm),
        1 => Just(Step::NewLeader),
        2 => Just(Step::Sweep),
        1 => Just(Step::Image),
        1 => (0usize..20).prop_map(|kept| Step::Restart { kept }),
        1 => (any::<bool>(), 0i64..60)
            .prop_map(|(from_calm, held)| Step::Install { from_calm, held }),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    value: String,
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
}

/// What the state is, told as simply as possible: the keys at every revision, and the leases.
#[derive(Clone, Debug)]
struct Model {
    history: Vec<BTreeMap<String, Key>>,
    compacted: i64,
    leases: BTreeSet<i64>,
    full: bool,
}

impl Model {
    fn new() -> Self {
        let history = vec![BTreeMap::new(), BTreeMap::new()];
        Self { history, compacted: -1, leases: BTreeSet::new(), full: false }
    }

    fn revision(&self) -> i64 {
        self.history.len() as i64 - 1
    }

    fn keys(&self) -> &BTreeMap<String, Key> {
        self.history.last().unwrap()
    }

    /// What the writes of one request come to, or why it is refused.
    fn write(&mut self, writes: &[Write]) -> Result<i64, Refusal> {
        if self.full && writes.iter().any(|write| matches!(write, Write::Put { .. })) {
            return Err(Refusal::NoSpace);
        }
        for write in writes {
            if let Write::Put { key, lease, ignore_value, ignore_lease, .. } = write {
                let lease = if *ignore_lease { 0 } else { *lease };
                if lease != 0 && !self.leases.contains(&lease) {
                    return Err(Refusal::LeaseNotFound);
                }
                let keeps = *ignore_value || *ignore_lease;
                if keeps && !self.keys().contains_key(&name(*key)) {
                    return Err(Refusal::KeyNotFound);
                }
            }
        }
        let (before, revision) = (self.keys().clone(), self.revision() + 1);
        let (mut after, mut wrote) = (before.clone(), false);
        for write in writes {
            wrote |= apply(&mut after, write, revision);
        }
        if wrote {
            self.history.push(after);
        }
        Ok(self.revision())
    }

    fn revoke(&mut self, id: i64) -> bool {
        if !self.leases.remove(&id) {
            return false;
        }
        let mut after = self.keys().clone();
        after.retain(|_, key| key.lease != id);
        if after.len() < self.keys().len() {
            self.history.push(after);
        }
        true
    }

    fn compact(&mut self, revision: i64) -> Result<i64, Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision() {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = revision;
        Ok(self.revision())
    }
}

fn apply(keys: &mut BTreeMap<String, Key>, write: &Write, revision: i64) -> bool {
    match write {
        Write::Put { key, value, lease, ignore_value, ignore_lease } => {
            let old = keys.get(&name(*key)).cloned();
            let fresh =
                Key { value: String::new(), create: revision, modified: 0, version: 0, lease: 0 };
            let mut new = old.unwrap_or(fresh);
            new.modified = revision;
            new.version += 1;
            if !ignore_value {
                new.value = value.to_string();
            }
            if !ignore_lease {
                new.lease = *lease;
            }
            keys.insert(name(*key), new);
            true
        }
        Write::Delete { key, end } => {
            let before = keys.len();
            keys.retain(|found, _| match end {
                0 => *found != name(*key),
                _ => *found < name(*key) || *found >= name(*end),
            });
            keys.len() < before
        }
    }
}

fn name(key: u8) -> String {
    format!("key{key}")
}

fn operation(write: &Write) -> pb::RequestOp {
    let request = match write {
        Write::Put { .. } => Request::RequestPut(put_of(write)),
        Write::Delete { .. } => Request::RequestDeleteRange(delete_of(write)),
    };
    pb::RequestOp { request: Some(request) }
}

fn put_of(write: &Write) -> pb::PutRequest {
    let Write::Put { key, value, lease, ignore_value, ignore_lease } = write else {
        unreachable!("only called for puts")
    };
    let value = if *ignore_value { String::new() } else { value.to_string() };
    pb::PutRequest {
        lease: if *ignore_lease { 0 } else { *lease },
        ignore_value: *ignore_value,
        ignore_lease: *ignore_lease,
        prev_kv: true,
        ..put(&name(*key), &value)
    }
}

fn delete_of(write: &Write) -> pb::DeleteRangeRequest {
    let Write::Delete { key, end } = write else { unreachable!("only called for deletions") };
    let end = if *end == 0 { String::new() } else { name(*end) };
    delete(&name(*key), &end)
}

/// The machine that goes through restarts, one that does not, and the model.
struct World {
    tried: Member,
    calm: Member,
    model: Model,
    image: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let tried = Member::new();
        let image = tried.image();
        Self { tried, calm: Member::new(), model: Model::new(), image }
    }

    /// Both machines answer the same.
    fn propose(&mut self, proposal: Proposal) -> Outcome {
        self.calm.term = self.tried.term;
        let (outcome, applied) = self.tried.propose(proposal.clone());
        let (calm, also) = self.calm.propose(proposal);
        assert_eq!(outcome, calm);
        assert_eq!(applied.events, also.events);
        assert_eq!(applied.lease_changes, also.lease_changes);
        outcome
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::One(write) => self.one(write),
            Step::Txn { key, version, success, failure } => {
                self.txn(*key, *version, success, failure);
            }
            Step::Grant(id) => self.grant(*id),
            Step::Revoke(id) => {
                let request = pb::LeaseRevokeRequest { id: *id };
                let outcome = self.propose(Proposal::new(CommandKind::LeaseRevoke, &request));
                let expected = self.model.revoke(*id).then(|| self.model.revision());
                assert_eq!(revision_of(&outcome), expected.ok_or(Refusal::LeaseNotFound));
            }
            Step::Expire { ids, stale } => self.expire(ids, *stale),
            Step::Compact(revision) => {
                let request = pb::CompactionRequest { revision: *revision, physical: false };
                let outcome = self.propose(Proposal::new(CommandKind::Compaction, &request));
                assert_eq!(revision_of(&outcome), self.model.compact(*revision));
            }
            Step::Alarm(on) => {
                let action = if *on { 1 } else { 2 };
                let request = pb::AlarmRequest { action, member_id: 1, alarm: 1 };
                self.propose(Proposal::new(CommandKind::Alarm, &request));
                self.model.full = *on;
            }
            Step::NewLeader => self.tried.term += 1,
            Step::Sweep => {
                let _ = self.tried.machine.compactor().step(2);
            }
            Step::Image => {
                let job = self.tried.machine.image();
                self.image.clear();
                job.write(&mut self.image).unwrap();
                job.remove_garbage().unwrap();
            }
            Step::Restart { kept } => self.tried.restart(&self.image, *kept),
            Step::Install { from_calm, held } => self.install(*from_calm, *held),
        }
    }

    fn one(&mut self, write: &Write) {
        let proposal = match write {
            Write::Put { .. } => Proposal::new(CommandKind::Put, &put_of(write)),
            Write::Delete { .. } => Proposal::new(CommandKind::DeleteRange, &delete_of(write)),
        };
        let outcome = self.propose(proposal);
        assert_eq!(revision_of(&outcome), self.model.write(std::slice::from_ref(write)));
    }

    fn txn(&mut self, key: u8, version: i64, success: &[Write], failure: &[Write]) {
        let compare = pb::Compare {
            key: bytes(&name(key)),
            target_union: Some(TargetUnion::Version(version)),
            ..Default::default()
        };
        let operations = |writes: &[Write]| writes.iter().map(operation).collect::<Vec<_>>();
        let request = txns::request(&[compare], &operations(success), &operations(failure));
        if check::txn(&request, 128).is_err() {
            return;
        }
        let outcome = self.propose(Proposal::new(CommandKind::Txn, &request));
        let holds = self.model.keys().get(&name(key)).map_or(0, |key| key.version) == version;
        let full = self.model.full && check::txn_cost(&request) > 0;
        let taken = if holds { success } else { failure };
        let expected = if full { Err(Refusal::NoSpace) } else { self.model.write(taken) };
        assert_eq!(revision_of(&outcome), expected);
    }

    fn grant(&mut self, id: i64) {
        let request = pb::LeaseGrantRequest { id, ttl: 60 };
        let outcome = self.propose(Proposal::new(CommandKind::LeaseGrant, &request));
        let expected = if self.model.full {
            Err(Refusal::NoSpace)
        } else if self.model.leases.insert(id) {
            Ok(self.model.revision())
        } else {
            Err(Refusal::LeaseExists)
        };
        assert_eq!(revision_of(&outcome), expected);
    }

    fn expire(&mut self, ids: &[i64], stale: bool) {
        let term = Term(self.tried.term - u64::from(stale));
        let expire = LeaseExpire { term, ids: ids.iter().map(|id| LeaseId(*id)).collect() };
        let outcome = self.propose(expire.proposal());
        if stale {
            assert!(matches!(outcome, Outcome::Refused(Refusal::StaleTerm { .. })));
            return;
        }
        let revoked: Vec<_> =
            ids.iter().filter(|id| self.model.revoke(**id)).map(|id| LeaseId(*id)).collect();
        assert_eq!(outcome, Outcome::LeaseExpire { revoked });
    }

    /// The tried member is replaced by one that got a snapshot and had records up to `held`.
    fn install(&mut self, from_calm: bool, held: i64) {
        let upto = Revision(held.min(self.model.revision()));
        let sender = if from_calm { &self.calm } else { &self.tried };
        let mut bytes = Vec::new();
        sender.machine.snapshot().write(&mut bytes, upto).unwrap();
        let records = std::sync::Arc::new(super::memory::Memory::default());
        let held = Held { records: &*self.tried.records, upto };
        self.tried.machine =
            Machine::install(&mut bytes.as_slice(), records.clone(), Some(held)).unwrap();
        self.tried.records = records;
        self.image = self.tried.image();
    }

    fn compare(&self) {
        assert_eq!(self.tried.digest(), self.calm.digest());
        let positions = self.tried.machine.positions();
        assert_eq!(positions.revision.0, self.model.revision());
        assert_eq!(positions.compact_revision.0, self.model.compacted);
        let view = self.tried.machine.views().mvcc;
        for revision in self.model.compacted.max(1)..=self.model.revision() {
            let range = types::KeyRange::from_wire(bytes("\0"), bytes("\0"));
            let query = mvcc::RangeQuery { revision, ..mvcc::RangeQuery::all(range) };
            let found: BTreeMap<_, _> =
                view.range(&query).unwrap().kvs.iter().map(decode).collect();
            assert_eq!(found, self.model.history[revision as usize], "at revision {revision}");
        }
        let leases: BTreeMap<_, _> =
            self.model.leases.iter().map(|id| (*id, keys_of(&self.model, *id))).collect();
        let views = self.tried.machine.views();
        let found: BTreeMap<_, _> = views
            .leases()
            .into_iter()
            .map(|(id, ..)| (id.0, views.lease_keys(id).unwrap()))
            .collect();
        assert_eq!(found, leases);
    }
}

fn keys_of(model: &Model, lease: i64) -> Vec<bytes::Bytes> {
    let attached = model.keys().iter().filter(|(_, key)| key.lease == lease);
    attached.map(|(name, _)| bytes(name)).collect()
}

fn decode(encoded: &bytes::Bytes) -> (String, Key) {
    let kv = mvcc::KeyValue::decode(encoded).unwrap();
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let key = Key {
        value: text(kv.value),
        create: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    };
    (text(kv.key), key)
}

fn revision_of(outcome: &Outcome) -> Result<i64, Refusal> {
    let header = match outcome {
        Outcome::Put(response) => &response.header,
        Outcome::DeleteRange(response) => &response.header,
        Outcome::Txn(response) => &response.header,
        Outcome::Compaction(response) => &response.header,
        Outcome::LeaseGrant(response) => &response.header,
        Outcome::LeaseRevoke(response) => &response.header,
        Outcome::Refused(refusal) => return Err(*refusal),
        other => panic!("{other:?} has no header"),
    };
    Ok(header.unwrap().revision)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Same log, same state, same answers: on a member that sweeps, writes images, loses power and
    /// is replaced by snapshots, on one that does nothing of it, and in the model.
    #[test]
    fn members_agree_with_each_other_and_with_the_model(
        steps in prop::collection::vec(steps(), 1..80),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            if matches!(step, Step::Restart { .. } | Step::Install { .. } | Step::Sweep) {
                world.compare();
            }
        }
        world.compare();
    }

    /// Cutting the log into entries differently changes nothing but the applied position.
    #[test]
    fn batching_does_not_matter(
        puts in prop::collection::vec(writes(), 1..30),
        cut in 1usize..10,
    ) {
        let proposals: Vec<_> = puts.iter().map(|write| match write {
            Write::Put { .. } => Proposal::new(CommandKind::Put, &put_of(write)),
            Write::Delete { .. } => Proposal::new(CommandKind::DeleteRange, &delete_of(write)),
        }).collect();
        let (mut one, mut many) = (Member::new(), Member::new());
        let mut whole = Vec::new();
        for chunk in proposals.chunks(cut) {
            whole.extend(many.batch(chunk).outcomes.into_iter().map(|(_, outcome)| outcome));
        }
        let single: Vec<_> = proposals.iter().map(|p| one.propose(p.clone()).0).collect();
        prop_assert_eq!(whole, single);
        let hash = |member: &Member| member.machine.views().mvcc.hash_kv(0).unwrap();
        prop_assert_eq!(hash(&one), hash(&many));
    }
}
