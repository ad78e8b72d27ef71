//! One member with its log, driven request by request.

use std::sync::Arc;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::mvccpb;
use tables::{LogPosition, MembershipEntry};
use types::{ClusterId, LogIndex, MemberId, Term};

use super::memory::Memory;
use crate::{
    Applied, AppliedEntry, AppliedPayload, Batch, CommandKind, Digest, Machine, Outcome, Proposal,
    Refusal, SweepStep, Ticket,
};

pub(super) const CLUSTER: ClusterId = ClusterId(0xc);

pub(super) struct Member {
    pub(super) machine: Machine,
    pub(super) records: Arc<Memory>,
    pub(super) log: Vec<AppliedEntry>,
    pub(super) term: u64,
}

pub(super) fn ticket(seq: u64) -> Ticket {
    Ticket { origin: MemberId(1), seq }
}

impl Member {
    pub(super) fn new() -> Self {
        let records = Arc::new(Memory::default());
        let machine = Machine::new(records.clone(), CLUSTER);
        Self { machine, records, log: Vec::new(), term: 1 }
    }

    /// Appends an entry to the log and applies it.
    pub(super) fn append(&mut self, payload: AppliedPayload) -> Applied {
        let index = LogIndex(self.log.last().map_or(0, |entry| entry.position.index.0) + 1);
        let position = LogPosition { term: Term(self.term), index };
        self.log.push(AppliedEntry { position, payload });
        let entry = self.log.last().unwrap().clone();
        self.machine.apply(&[entry]).unwrap().pop().unwrap()
    }

    pub(super) fn batch(&mut self, proposals: &[Proposal]) -> Applied {
        let seqs = 0..;
        let batch: Vec<_> = seqs.map(ticket).zip(proposals.iter().cloned()).collect();
        self.append(AppliedPayload::Batch(Batch::encode(&batch)))
    }

    pub(super) fn membership(&mut self, entry: MembershipEntry) -> Applied {
        self.append(AppliedPayload::Membership(entry))
    }

    pub(super) fn propose(&mut self, proposal: Proposal) -> (Outcome, Applied) {
        let mut applied = self.batch(&[proposal]);
        let (_, outcome) = applied.outcomes.pop().unwrap();
        (outcome, applied)
    }

    pub(super) fn request(&mut self, kind: CommandKind, request: &impl prost::Message) -> Outcome {
        self.propose(Proposal::new(kind, request)).0
    }

    pub(super) fn put_request(
        &mut self,
        request: &pb::PutRequest,
    ) -> Result<pb::PutResponse, Refusal> {
        match self.request(CommandKind::Put, request) {
            Outcome::Put(response) => Ok(response),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn put(&mut self, key: &str, value: &str) -> i64 {
        self.put_request(&put(key, value)).unwrap().header.unwrap().revision
    }

    pub(super) fn delete(
        &mut self,
        key: &str,
        range_end: &str,
    ) -> Result<pb::DeleteRangeResponse, Refusal> {
        match self.request(CommandKind::DeleteRange, &delete(key, range_end)) {
            Outcome::DeleteRange(response) => Ok(response),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Refusal> {
        match self.request(CommandKind::Txn, request) {
            Outcome::Txn(response) => Ok(response),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<i64, Refusal> {
        let request = pb::CompactionRequest { revision, physical: false };
        match self.request(CommandKind::Compaction, &request) {
            Outcome::Compaction(response) => Ok(response.header.unwrap().revision),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, Refusal> {
        match self.request(CommandKind::LeaseGrant, &pb::LeaseGrantRequest { id, ttl }) {
            Outcome::LeaseGrant(response) => Ok(response),
            Outcome::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<mvccpb::KeyValue> {
        let encoded = self.machine.views().mvcc.get(key.as_bytes(), 0).unwrap()?;
        Some(prost::Message::decode(encoded).unwrap())
    }

    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.get(key).map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
    }

    pub(super) fn revision(&self) -> i64 {
        self.machine.positions().revision.0
    }

    pub(super) fn digest(&self) -> Digest {
        self.machine.digest().unwrap()
    }

    pub(super) fn sweep(&self) {
        while self.machine.compactor().step(2) == SweepStep::More {}
    }

    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = Vec::new();
        self.machine.image().write(&mut image).unwrap();
        image
    }

    /// Starts again from an image, over what a crash left of the records, and replays the log.
    pub(super) fn restart(&mut self, image: &[u8], kept: usize) {
        self.records.crash(kept);
        let records = self.records.clone();
        self.machine = Machine::restore(&mut { image }, records).unwrap();
        self.replay();
    }

    pub(super) fn replay(&mut self) {
        let applied = self.machine.applied().map_or(0, |position| position.index.0);
        let rest: Vec<_> =
            self.log.iter().filter(|entry| entry.position.index.0 > applied).cloned().collect();
        self.machine.apply(&rest).unwrap();
    }
}

pub(super) fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub(super) fn delete(key: &str, range_end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: true }
}

pub(super) fn range(key: &str, range_end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), range_end: bytes(range_end), ..Default::default() }
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
