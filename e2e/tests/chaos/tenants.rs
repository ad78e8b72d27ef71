//! A client that takes one lease after the other: it attaches a key, keeps the lease alive for a while,
//! and then revokes it or leaves it to its time.

use std::time::Duration;

use history::leases::{Lease, Renewal, Told};
use history::{Failure, Request, Response};
use proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest};

use super::clients::{Next, Outcome, Seen, Times};

/// In seconds; the shortest that a server grants with its usual election timeout.
const TTL: i64 = 2;
const RENEWALS_MAX: u64 = 8;

pub(crate) struct Tenant {
    index: usize,
    number: i64,
    lease: Lease,
    step: Step,
    /// Those that had a key.
    leases: Vec<Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Grant,
    Attach,
    /// So many renewals are left, the next of them at a time.
    Keep {
        renewals: u64,
        at: u64,
    },
    /// It is told that the lease is gone. What is gone stays gone: it asks once more.
    AskAgain,
    Revoke,
}

fn second() -> u64 {
    Duration::from_secs(1).as_nanos() as u64
}

impl Tenant {
    pub(crate) fn new(index: usize) -> Tenant {
        let lease = Lease { id: 0, ttl: 0, renewals: Vec::new(), revoked: None };
        Tenant { index, number: 0, lease, step: Step::Grant, leases: Vec::new() }
    }

    /// The leases that had a key.
    pub(crate) fn into_leases(mut self) -> Vec<Lease> {
        if matches!(self.step, Step::Keep { .. } | Step::AskAgain | Step::Revoke) {
            self.leases.push(self.lease);
        }
        self.leases
    }

    pub(crate) fn next(&mut self, now: u64, seen: &mut Seen) -> Next {
        match self.step {
            Step::Grant => {
                self.number += 1;
                let id = (self.index as i64 + 1) * 1_000_000 + self.number;
                self.lease = Lease { id, ttl: 0, renewals: Vec::new(), revoked: None };
                Next::Ask(Request::Grant(LeaseGrantRequest { id, ttl: TTL }))
            }
            Step::Attach => Next::Ask(Request::Put(PutRequest {
                key: format!("lease/{}", self.lease.id).into(),
                value: seen.value(),
                lease: self.lease.id,
                ..PutRequest::default()
            })),
            Step::Keep { renewals: 0, .. } => {
                if seen.hits(35) {
                    self.step = Step::Revoke;
                    return self.next(now, seen);
                }
                self.leases.push(self.lease.clone());
                self.step = Step::Grant;
                Next::Rest(Duration::from_millis(seen.random.below(500)))
            }
            Step::Keep { at, .. } if at > now => Next::Rest(Duration::from_nanos(at - now)),
            Step::Keep { renewals, .. } => {
                let pause = second() / 4 + seen.random.below(second());
                self.step = Step::Keep { renewals: renewals - 1, at: now + pause };
                Next::KeepAlive(self.lease.id)
            }
            Step::AskAgain => Next::KeepAlive(self.lease.id),
            Step::Revoke => {
                self.lease.revoked.get_or_insert(now);
                Next::Ask(Request::Revoke(LeaseRevokeRequest { id: self.lease.id }))
            }
        }
    }

    pub(crate) fn learn(&mut self, times: Times, outcome: &Outcome<'_>) {
        let Times { called, returned } = times;
        let mut renewed = |told| self.lease.renewals.push(Renewal { called, returned, told });
        match (self.step, outcome) {
            (Step::Grant, Outcome::Answered(Ok(Response::Grant(grant)))) => {
                assert!(grant.ttl >= TTL, "{grant:?}");
                renewed(Told::Renewed);
                self.lease.ttl = grant.ttl as u64 * second();
                self.step = Step::Attach;
            }
            (Step::Attach, Outcome::Answered(Ok(_))) => {
                // Different leases are renewed differently often, some never.
                let renewals = (self.number as u64 * 5 + self.index as u64) % (RENEWALS_MAX + 1);
                self.step = Step::Keep { renewals, at: returned + second() / 2 };
            }
            (Step::Attach, Outcome::Answered(Err(Failure::NotDone))) => {
                renewed(Told::Gone);
                self.step = Step::AskAgain;
            }
            (Step::Keep { .. }, Outcome::Alive(left)) if *left > 0 => renewed(Told::Renewed),
            (Step::Keep { .. }, Outcome::Alive(_)) => {
                renewed(Told::Gone);
                self.step = Step::AskAgain;
            }
            (Step::Keep { .. } | Step::AskAgain, Outcome::Nothing) => renewed(Told::Nothing),
            (Step::AskAgain, Outcome::Alive(left)) => {
                renewed(if *left > 0 { Told::Renewed } else { Told::Gone });
                self.over();
            }
            (Step::Revoke, Outcome::Answered(_)) => self.over(),
            // Asked again: a second revocation finds nothing, and does no harm.
            (Step::Revoke, _) => {}
            // It may have a lease or a key and will not know.
            _ => self.step = Step::Grant,
        }
    }

    fn over(&mut self) {
        self.leases.push(self.lease.clone());
        self.step = Step::Grant;
    }
}
