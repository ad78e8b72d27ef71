//! Leases as those who keep them alive see them from outside, by one clock.
//!
//! - A lease is not over by time before its time to live has passed since the beginning of the last
//!   call that renewed it, and nobody is told earlier that it is gone.
//! - What is over stays over: no renewal that begins after that succeeds.
//! - Its keys are gone soon after its time. A leader that is new counts from its own beginning, so the
//!   time begins once more with each term.

use std::collections::BTreeMap;

use thiserror::Error;

use super::linearizability::Judged;
use super::{Operation, Request, Writer};

/// A call that gives a lease its whole time: its grant, or one that keeps it alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    pub called: u64,
    /// When it was answered or given up.
    pub returned: u64,
    pub told: Told,
}

/// What a renewal was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Renewed,
    Gone,
    /// Nothing; it may have had its effect.
    Nothing,
}

/// A lease that was granted, with a key attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    pub ttl: u64,
    /// In their order; the first is the grant.
    pub renewals: Vec<Renewal>,
    /// When somebody began to ask for its end.
    pub revoked: Option<u64>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When anybody heard of it first.
    pub seen: u64,
    /// By its time, and not because somebody asked for it.
    pub by_time: bool,
}

/// When leases must be over.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// When each term was first heard of, in order.
    pub terms: Vec<u64>,
    /// How much later than its time a lease may be seen to end.
    pub grace: u64,
    /// Until when ends were looked for.
    pub until: u64,
}

/// A promise about a lease that was broken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    #[error("EARLY: {lease:?} was over at {over}, before {due}")]
    Early { lease: Lease, over: u64, due: u64 },
    #[error("RENEWED: {lease:?} was renewed by a call of {called}, after its end at {over}")]
    RenewedAfterEnd { lease: Lease, over: u64, called: u64 },
    #[error("LATE: {lease:?} should have been over at {due}, it was at {over:?}")]
    Late { lease: Lease, due: u64, over: Option<u64> },
}

/// How leases ended, by what the judge of keys has found; `seen` says when anybody heard of a revision.
pub fn ends(
    operations: &[Operation],
    judged: &Judged,
    seen: &BTreeMap<i64, u64>,
) -> BTreeMap<i64, End> {
    let end = |(revision, writer): (&i64, &Writer)| {
        let seen = *seen.get(revision)?;
        match writer {
            Writer::Expiry(lease) => Some((*lease, End { seen, by_time: true })),
            Writer::Operation(id) => match &operations[*id].request {
                Request::Revoke(revoke) => Some((revoke.id, End { seen, by_time: false })),
                _ => None,
            },
        }
    };
    judged.writers.iter().filter_map(end).collect()
}

/// Judges leases.
///
/// # Errors
/// The first promise that was broken.
pub fn check(
    leases: &[Lease],
    ends: &BTreeMap<i64, End>,
    limits: &Limits,
) -> Result<(), Violation> {
    leases.iter().try_for_each(|lease| check_one(lease, ends.get(&lease.id), limits))
}

fn check_one(lease: &Lease, end: Option<&End>, limits: &Limits) -> Result<(), Violation> {
    let gone = lease.renewals.iter().filter(|renewal| renewal.told == Told::Gone);
    let gone = gone.map(|renewal| renewal.returned).min();
    let over = end.map(|end| end.seen).into_iter().chain(gone).min();
    let by_time = match end {
        Some(end) => end.by_time,
        None => lease.revoked.is_none_or(|revoked| over.is_some_and(|over| over < revoked)),
    };
    for renewal in lease.renewals.iter().filter(|renewal| renewal.told == Told::Renewed) {
        let Some(over) = over else { continue };
        let (called, due) = (renewal.called, renewal.called + lease.ttl);
        if called > over {
            return Err(Violation::RenewedAfterEnd { lease: lease.clone(), over, called });
        }
        if by_time && over < due {
            return Err(Violation::Early { lease: lease.clone(), over, due });
        }
    }
    let renewed = lease.renewals.iter().filter(|renewal| renewal.told != Told::Gone);
    let last = renewed.map(|renewal| renewal.returned).max().unwrap_or(0);
    let due = limits.terms.iter().fold(last + lease.ttl + limits.grace, |due, term| {
        if *term <= due { due.max(term + lease.ttl + limits.grace) } else { due }
    });
    let over = end.map(|end| end.seen);
    match over.unwrap_or(limits.until) > due {
        true => Err(Violation::Late { lease: lease.clone(), due, over }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal(called: u64, told: Told) -> Renewal {
        Renewal { called, returned: called + 1, told }
    }

    /// Granted at 10 for 100, renewed at 50: it may end from 150 on and must until 171.
    fn lease() -> Lease {
        let renewals = vec![renewal(10, Told::Renewed), renewal(50, Told::Renewed)];
        Lease { id: 7, ttl: 100, renewals, revoked: None }
    }

    fn limits() -> Limits {
        Limits { terms: vec![5], grace: 20, until: 1000 }
    }

    fn judge(lease: &Lease, end: Option<(u64, bool)>, limits: &Limits) -> Result<(), Violation> {
        let end = end.map(|(seen, by_time)| (7, End { seen, by_time }));
        check(std::slice::from_ref(lease), &end.into_iter().collect(), limits)
    }

    #[test]
    fn a_lease_that_ends_in_time_is_right() {
        for seen in [150, 171] {
            assert_eq!(judge(&lease(), Some((seen, true)), &limits()), Ok(()));
        }
        assert_eq!(judge(&lease(), None, &Limits { until: 171, ..limits() }), Ok(()));
    }

    #[test]
    fn a_lease_that_ends_before_its_time_is_found() {
        let early = Violation::Early { lease: lease(), over: 149, due: 150 };
        assert_eq!(judge(&lease(), Some((149, true)), &limits()), Err(early));
        let mut gone = lease();
        gone.renewals.push(renewal(130, Told::Gone));
        let early = Violation::Early { lease: gone.clone(), over: 131, due: 150 };
        assert_eq!(judge(&gone, Some((160, true)), &limits()), Err(early));
    }

    #[test]
    fn a_lease_that_is_revoked_may_end_at_once() {
        let revoked = Lease { revoked: Some(60), ..lease() };
        assert_eq!(judge(&revoked, Some((61, false)), &limits()), Ok(()));
    }

    #[test]
    fn a_lease_that_is_renewed_after_its_end_is_found() {
        for by_time in [true, false] {
            let mut again = Lease { revoked: Some(152), ..lease() };
            again.renewals.push(renewal(161, Told::Renewed));
            let found = judge(&again, Some((160, by_time)), &limits());
            let wrong = found.unwrap_err();
            assert!(matches!(wrong, Violation::RenewedAfterEnd { over: 160, called: 161, .. }));
        }
    }

    #[test]
    fn a_lease_that_outlives_its_time_is_found() {
        let late = |over| Violation::Late { lease: lease(), due: 171, over };
        assert_eq!(judge(&lease(), Some((172, true)), &limits()), Err(late(Some(172))));
        assert_eq!(judge(&lease(), None, &limits()), Err(late(None)));
    }

    #[test]
    fn each_new_leader_counts_anew_and_a_call_without_an_answer_may_have_renewed() {
        let terms = Limits { terms: vec![5, 170, 290], ..limits() };
        assert_eq!(judge(&lease(), Some((410, true)), &terms), Ok(()));
        assert!(judge(&lease(), Some((411, true)), &terms).is_err());
        let mut unsure = lease();
        unsure.renewals.push(renewal(90, Told::Nothing));
        assert_eq!(judge(&unsure, Some((150, true)), &limits()), Ok(()));
        assert_eq!(judge(&unsure, Some((211, true)), &limits()), Ok(()));
        assert!(judge(&unsure, Some((212, true)), &limits()).is_err());
    }
}
