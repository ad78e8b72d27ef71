//! Put, delete and compact.

use bytes::Bytes;
use mvcc::{CompactError, KeyHead};
use prost::Message;
use proto::{etcdserverpb as pb, mvccpb};
use types::{KeyRange, LeaseId, Revision};

use crate::apply::Applier;
use crate::check::key_range;
use crate::outcome::{FollowUp, Refusal, Stop, header};

impl Applier<'_> {
    pub(crate) fn put(
        &mut self,
        request: &pb::PutRequest,
        answer: bool,
    ) -> Result<pb::PutResponse, Stop> {
        self.check_put(request)?;
        self.writer.begin();
        let response = self.write_put(request, answer)?;
        self.end();
        Ok(response)
    }

    pub(crate) fn delete_range(
        &mut self,
        request: &pb::DeleteRangeRequest,
        answer: bool,
    ) -> Result<pb::DeleteRangeResponse, Stop> {
        self.writer.begin();
        let response = self.write_delete_range(request, answer)?;
        self.end();
        Ok(response)
    }

    /// Whether a put can be done (etcd `txn/put.go`): the lease is asked about first.
    pub(crate) fn check_put(&self, request: &pb::PutRequest) -> Result<(), Refusal> {
        let lease = LeaseId(request.lease);
        if lease.is_some() && !self.leases.contains(lease) {
            return Err(Refusal::LeaseNotFound);
        }
        let keeps = request.ignore_value || request.ignore_lease;
        if keeps && self.writer.head(&request.key).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    /// The put itself, inside a transaction, after [`Applier::check_put`].
    pub(crate) fn write_put(
        &mut self,
        request: &pb::PutRequest,
        answer: bool,
    ) -> Result<pb::PutResponse, Stop> {
        let before = match request.ignore_value || request.ignore_lease || request.prev_kv {
            true => {
                self.under_way.ranges += 1;
                self.writer.head(&request.key)
            }
            false => None,
        };
        let reads_value = request.ignore_value || (request.prev_kv && answer);
        let prev_kv = match before.filter(|_| reads_value) {
            Some(before) => Some(self.key_value(&before)?),
            None => None,
        };
        let value = match (&prev_kv, request.ignore_value) {
            (Some(previous), true) => previous.value.clone(),
            _ => request.value.clone(),
        };
        let lease = match (before, request.ignore_lease) {
            (Some(before), true) => before.lease,
            _ => LeaseId(request.lease),
        };
        self.under_way.puts += 1;
        self.under_way.put_bytes += (request.key.len() + value.len()) as u64;
        self.put_key(&request.key, value, lease);
        Ok(pb::PutResponse {
            header: header(self.writer.revision()),
            prev_kv: prev_kv.filter(|_| request.prev_kv),
        })
    }

    /// Writes a key and moves it from its old lease to its new one.
    fn put_key(&mut self, key: &Bytes, value: Bytes, lease: LeaseId) {
        let put = self.writer.put(key.clone(), value, lease);
        let old = put.previous.map_or(LeaseId::NONE, |before| before.lease);
        if old == lease {
            return;
        }
        if old.is_some() {
            self.leases.detach(old, key);
        }
        if lease.is_some() {
            self.leases.attach(lease, key).expect("the lease was checked in this very transaction");
        }
    }

    /// The deletion itself, inside a transaction. It may find nothing, then nothing is written.
    pub(crate) fn write_delete_range(
        &mut self,
        request: &pb::DeleteRangeRequest,
        answer: bool,
    ) -> Result<pb::DeleteRangeResponse, Stop> {
        self.under_way.deletes += 1;
        self.under_way.ranges += u64::from(request.prev_kv);
        let deleted = self.delete_keys(&key_range(&request.key, &request.range_end));
        let mut prev_kvs = Vec::new();
        if request.prev_kv && answer {
            for (_, head) in &deleted {
                prev_kvs.push(self.key_value(head)?);
            }
        }
        Ok(pb::DeleteRangeResponse {
            header: header(self.writer.revision()),
            deleted: i64::try_from(deleted.len()).expect("keys in memory are fewer than 2^63"),
            prev_kvs,
        })
    }

    /// Deletes keys and detaches them from their leases.
    pub(crate) fn delete_keys(&mut self, range: &KeyRange) -> Vec<(Bytes, KeyHead)> {
        let deleted = self.writer.delete_range(range);
        for (key, head) in deleted.iter().filter(|(_, head)| head.lease.is_some()) {
            self.leases.detach(head.lease, key);
        }
        deleted
    }

    pub(crate) fn compact(
        &mut self,
        request: &pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Refusal> {
        let revision = Revision(request.revision);
        self.writer.compact(revision).map_err(|error| match error {
            CompactError::Compacted => Refusal::Compacted,
            CompactError::FutureRevision => Refusal::FutureRevision,
        })?;
        self.follow_ups.push(FollowUp::Compact { revision });
        Ok(pb::CompactionResponse { header: header(self.writer.revision()) })
    }

    /// The stored key-value of a version.
    pub(crate) fn key_value(&self, head: &KeyHead) -> Result<mvccpb::KeyValue, Stop> {
        let encoded = self.writer.key_value(head.mod_revision)?;
        Ok(mvccpb::KeyValue::decode(encoded)?)
    }
}
