//! Chains of requests that a seed has chosen, nearly every option of every one of them, over few
//! keys and few leases, so that they get in each other's way.

use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::{self as pb};
use proto::rpc::Rpc;

use super::talk::{Call, Talk, compare};

/// Numbers that look random and are the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or(0)]
    }

    /// Happens this often in a hundred times.
    fn in_hundred(&mut self, times: u64) -> bool {
        self.below(100) < times
    }

    fn key(&mut self) -> &'static str {
        if self.in_hundred(2) { "" } else { self.one_of(&["a", "b", "c", "d", "dd", "e"]) }
    }

    fn range_end(&mut self) -> &'static str {
        self.one_of(&["", "", "", "\0", "a", "c", "e", "z"])
    }

    fn lease(&mut self) -> i64 {
        self.one_of(&[0, 0, 0, 0, 1, 2, 3, 99])
    }

    fn revision(&mut self, now: i64) -> i64 {
        match self.below(10) {
            0..=5 => 0,
            6 => self.one_of(&[-7, -1, 1, now + 1]),
            _ => now - i64::try_from(self.below(12)).unwrap_or(0),
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        let ignore_value = self.in_hundred(8);
        pb::PutRequest {
            key: self.key().into(),
            value: match ignore_value && !self.in_hundred(20) {
                true => "".into(),
                false => self.one_of(&["", "1", "2", "a longer value"]).into(),
            },
            lease: self.lease(),
            prev_kv: self.in_hundred(30),
            ignore_value,
            ignore_lease: self.in_hundred(8),
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest {
            key: self.key().into(),
            range_end: self.range_end().into(),
            prev_kv: self.in_hundred(50),
        }
    }

    fn range(&mut self, now: i64) -> pb::RangeRequest {
        let bound = |chance: &mut Chance| match chance.below(6) {
            0 => now - i64::try_from(chance.below(20)).unwrap_or(0),
            _ => 0,
        };
        pb::RangeRequest {
            key: self.key().into(),
            range_end: self.range_end().into(),
            limit: self.one_of(&[0, 0, 0, 1, 2, 3]),
            revision: self.revision(now),
            sort_order: self.one_of(&[0, 0, 0, 1, 2, 3]) % 3,
            sort_target: self.one_of(&[0, 0, 0, 1, 2, 3, 4]),
            serializable: self.in_hundred(30),
            keys_only: self.in_hundred(20),
            count_only: self.in_hundred(15),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
        }
    }

    fn compare(&mut self, now: i64) -> pb::Compare {
        let number = match self.below(3) {
            0 => 0,
            1 => i64::try_from(self.below(4)).unwrap_or(0),
            _ => now - i64::try_from(self.below(8)).unwrap_or(0),
        };
        let kind = self.below(5);
        let target_union = match kind {
            _ if self.in_hundred(3) => None,
            0 => Some(TargetUnion::Version(number)),
            1 => Some(TargetUnion::CreateRevision(number)),
            2 => Some(TargetUnion::ModRevision(number)),
            3 => Some(TargetUnion::Value(self.one_of(&["", "1", "2", "zz"]).into())),
            _ => Some(TargetUnion::Lease(self.lease())),
        };
        // Now and then the value is not of the kind that the target says.
        let target = if self.in_hundred(5) { self.below(7) } else { kind };
        pb::Compare {
            result: self.one_of(&[0, 0, 1, 2, 3, 3, 0, 1, 2, 9]),
            target: i32::try_from(target).unwrap_or(0),
            key: self.key().into(),
            range_end: self.range_end().into(),
            target_union,
        }
    }

    fn operation(&mut self, now: i64, depth: u32) -> pb::RequestOp {
        let request = match self.below(20) {
            // Go etcd ends when a put keeps the value of a key that its transaction deletes.
            0..=7 => {
                let put = self.put();
                Some(Op::RequestPut(pb::PutRequest {
                    ignore_value: false,
                    ignore_lease: false,
                    ..put
                }))
            }
            8..=10 => Some(Op::RequestDeleteRange(self.delete())),
            11..=16 => Some(Op::RequestRange(self.range(now))),
            17 | 18 if depth > 0 => Some(Op::RequestTxn(self.txn(now, depth - 1))),
            19 if self.in_hundred(20) => None,
            _ => Some(Op::RequestRange(self.range(now))),
        };
        pb::RequestOp { request }
    }

    fn operations(&mut self, now: i64, depth: u32) -> Vec<pb::RequestOp> {
        (0..self.below(4)).map(|_| self.operation(now, depth)).collect()
    }

    fn txn(&mut self, now: i64, depth: u32) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: (0..self.below(3)).map(|_| self.compare(now)).collect(),
            success: self.operations(now, depth),
            failure: self.operations(now, depth),
        }
    }

    fn call(&mut self, now: i64) -> Call {
        let id = self.one_of(&[1, 2, 3, 4]);
        match self.below(100) {
            0..=29 => Call::new(Rpc::KVPut, &self.put()),
            30..=38 => Call::new(Rpc::KVDeleteRange, &self.delete()),
            39..=58 => Call::new(Rpc::KVRange, &self.range(now)),
            59..=83 => Call::new(Rpc::KVTxn, &self.txn(now, 2)),
            84..=86 => {
                let revision = now - i64::try_from(self.below(30)).unwrap_or(0) + 1;
                let physical = self.in_hundred(70);
                Call::new(Rpc::KVCompact, &pb::CompactionRequest { revision, physical })
            }
            87..=90 => {
                let ttl = 100_000 + 1000 * id;
                Call::new(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id, ttl })
            }
            91..=92 => Call::new(Rpc::LeaseLeaseRevoke, &pb::LeaseRevokeRequest { id }),
            93..=95 => {
                let request = pb::LeaseTimeToLiveRequest { id, keys: self.in_hundred(70) };
                Call::new(Rpc::LeaseLeaseTimeToLive, &request)
            }
            96 => Call::new(Rpc::LeaseLeaseLeases, &pb::LeaseLeasesRequest {}),
            97 => Call::new(Rpc::LeaseLeaseKeepAlive, &pb::LeaseKeepAliveRequest { id }),
            98 => Call::new(Rpc::MaintenanceDefragment, &pb::DefragmentRequest {}),
            _ => Call::new(Rpc::MaintenanceAlarm, &pb::AlarmRequest::default()),
        }
    }
}

/// The revision that the store is at.
fn now(talk: &mut Talk) -> i64 {
    let request = pb::RangeRequest { key: "a".into(), count_only: true, ..Default::default() };
    let came = talk.quietly(Call::new(Rpc::KVRange, &request));
    came.read::<pb::RangeResponse>().header.map_or(0, |header| header.revision)
}

fn chain(talk: &mut Talk, seed: u64, length: usize) {
    let mut chance = Chance(seed);
    for number in 0..length {
        let revision = now(talk);
        let call = chance.call(revision);
        talk.call(call);
        if number % 100 == 99 {
            // A hash at the very revision of a compaction comes from a cache in Go etcd, which
            // holds another; a put takes the store past it.
            let put = pb::PutRequest { key: "a".into(), ..Default::default() };
            talk.ask(Rpc::KVPut, &put);
            talk.ask(Rpc::MaintenanceHashKV, &pb::HashKvRequest::default());
        }
    }
    let everything =
        pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    talk.ask(Rpc::KVRange, &everything);
}

#[test]
fn chains_of_requests_are_answered_alike() {
    compare(1, &[], |talk| {
        for seed in 1..=4 {
            chain(talk, 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), 1500);
        }
    });
}

/// The same on a member that has few operations for a transaction, through a follower.
#[test]
fn chains_of_requests_to_a_follower_are_answered_alike() {
    let flags = ["--max-txn-ops=3", "--election-timeout=10000", "--heartbeat-interval=500"];
    compare(3, &flags, |talk| {
        lead(talk, 0);
        talk.member = 1;
        chain(talk, 0x5851_f42d_4c95_7f2d, 600);
    });
}

/// Lets a member lead.
pub(super) fn lead(talk: &mut Talk, member: usize) {
    let call = Call::new(Rpc::MaintenanceStatus, &pb::StatusRequest {});
    loop {
        talk.member = member;
        let status: pb::StatusResponse = talk.quietly(call.clone()).read();
        let own = status.header.map_or(0, |header| header.member_id);
        if status.leader == own {
            return;
        }
        for other in 0..talk.cluster.members().len() {
            talk.member = other;
            let request = pb::MoveLeaderRequest { target_id: own };
            talk.quietly(Call::new(Rpc::MaintenanceMoveLeader, &request));
        }
    }
}
