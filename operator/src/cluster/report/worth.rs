//! Which changes of a status are worth a write.
//!
//! Each write of a status is an event that starts the next pass. What the clients of etcd do moves some
//! number with every pass: if that were written at once, the operator would never come to rest under load.

use jiff::{SignedDuration, Timestamp};

use crate::crd::{EtcdClusterStatus, EtcdMemberStatus};

/// How often an unchanged status is confirmed.
const CONFIRM_EVERY: SignedDuration = SignedDuration::from_secs(60);
/// How often a status is written of which only numbers have changed.
const NUMBERS_EVERY: SignedDuration = SignedDuration::from_secs(15);

/// Whether the new status says something that the old one did not, or has to be confirmed.
pub fn is_worth_writing(
    before: &EtcdClusterStatus,
    after: &EtcdClusterStatus,
    now: Timestamp,
) -> bool {
    if is_older(before, CONFIRM_EVERY, now) {
        return true;
    }
    let same = EtcdClusterStatus {
        observed_at: before.observed_at.clone(),
        // These move with every write to etcd; the confirmation is often enough.
        revision: before.revision,
        db_size_bytes: before.db_size_bytes,
        ..after.clone()
    };
    match are_numbers_due(before, now) {
        true => same != *before,
        false => words(&same) != words(before),
    }
}

/// Whether numbers alone are worth a write of the cluster and of its members.
pub fn are_numbers_due(before: &EtcdClusterStatus, now: Timestamp) -> bool {
    is_older(before, NUMBERS_EVERY, now)
}

/// The same for a member.
pub fn is_member_worth_writing(
    before: Option<&EtcdMemberStatus>,
    after: &EtcdMemberStatus,
    are_numbers_due: bool,
) -> bool {
    let Some(before) = before else { return true };
    if are_numbers_due {
        return before != after;
    }
    let same = EtcdMemberStatus {
        lag_entries: before.lag_entries,
        db_size_bytes: before.db_size_bytes,
        ..after.clone()
    };
    same != *before
}

fn is_older(status: &EtcdClusterStatus, age: SignedDuration, now: Timestamp) -> bool {
    status.observed_at.as_ref().is_none_or(|at| now.duration_since(at.0) >= age)
}

/// The status without the numbers in its texts.
fn words(status: &EtcdClusterStatus) -> EtcdClusterStatus {
    let mut status = status.clone();
    let blocked = status.blocked_by.iter_mut().map(|blocked| &mut blocked.detail);
    let reasons = status.rollout.iter_mut().filter_map(|rollout| rollout.paused_reason.as_mut());
    let messages = status.conditions.iter_mut().map(|condition| &mut condition.message);
    for text in blocked.chain(reasons).chain(messages) {
        text.retain(|letter| !letter.is_ascii_digit());
    }
    status
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::crd::{BlockedBy, MemberRole};

    fn after(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn blocked(invariant: &str, detail: &str) -> EtcdClusterStatus {
        EtcdClusterStatus {
            observed_at: Some(Time(after(0))),
            revision: Some(1),
            blocked_by: vec![BlockedBy {
                action: "Promote".to_owned(),
                invariant: invariant.to_owned(),
                detail: detail.to_owned(),
            }],
            ..EtcdClusterStatus::default()
        }
    }

    #[test]
    fn an_unchanged_status_is_written_once_a_minute() {
        let never = EtcdClusterStatus::default();
        assert!(is_worth_writing(&never, &never, after(0)));
        let before = blocked("I4", "");
        let busy = EtcdClusterStatus { revision: Some(9), ..before.clone() };
        assert!(!is_worth_writing(&before, &busy, after(59)));
        assert!(is_worth_writing(&before, &busy, after(60)));
        let changed = EtcdClusterStatus { ready_replicas: 2, ..before.clone() };
        assert!(is_worth_writing(&before, &changed, after(1)));
    }

    /// A learner that caught up under load made the operator busy with itself: each pass wrote how far
    /// behind it was, and each write started the next pass.
    #[test]
    fn numbers_alone_are_written_now_and_then_and_words_at_once() {
        let before = blocked("I4", "learner 4 is 5312 entries behind");
        let closer = blocked("I4", "learner 4 is 97 entries behind");
        assert!(!is_worth_writing(&before, &closer, after(14)));
        assert!(is_worth_writing(&before, &closer, after(15)));
        assert!(!is_worth_writing(&before, &before, after(15)));
        for other in [blocked("I1", &before.blocked_by[0].detail), blocked("I4", "it is silent")] {
            assert!(is_worth_writing(&before, &other, after(1)));
        }
    }

    #[test]
    fn a_member_is_written_for_what_it_is_and_now_and_then_for_its_numbers() {
        let before = EtcdMemberStatus { lag_entries: Some(0), ..EtcdMemberStatus::default() };
        let lags = EtcdMemberStatus { lag_entries: Some(32), ..before.clone() };
        assert!(!is_member_worth_writing(Some(&before), &lags, false));
        assert!(is_member_worth_writing(Some(&before), &lags, true));
        assert!(!is_member_worth_writing(Some(&before), &before, true));
        let votes = EtcdMemberStatus { role: Some(MemberRole::Voter), ..lags };
        assert!(is_member_worth_writing(Some(&before), &votes, false));
        assert!(is_member_worth_writing(None, &before, false));
    }
}
