//! The decision of a schedule: start a backup, or wait. Pure.
//!
//! A run is identified by its scheduled time, and a backup is named after it, so starting the
//! same run twice is harmless. Of several missed runs only the newest is made up for, and only
//! while it is younger than the starting deadline.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::cron::Cron;
use crate::crd::ConcurrencyPolicy;

/// What the decision is made on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub cron: &'a Cron,
    pub zone: &'a TimeZone,
    pub now: Timestamp,
    pub created: Timestamp,
    /// Scheduled time of the newest run that was started.
    pub last: Option<Timestamp>,
    pub suspend: bool,
    pub immediate: bool,
    pub starting_deadline: SignedDuration,
    pub concurrency: ConcurrencyPolicy,
    pub is_active: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start the run of this time; `replacing` a running one first.
    Start { at: Timestamp, replacing: bool },
    /// The run of this time is due, and a running one is in its way.
    WaitForActive { at: Timestamp },
    /// Nothing is due before this time.
    Wait { until: Option<Timestamp> },
}

/// Decides what to do now.
pub fn decide(situation: &Situation<'_>) -> Decision {
    let next = situation.cron.next_after(situation.now, situation.zone);
    if situation.suspend {
        return Decision::Wait { until: None };
    }
    let at = match (situation.last, situation.immediate) {
        (None, true) => Some(situation.created),
        (last, _) => {
            let oldest = situation.now - situation.starting_deadline;
            let from = last.unwrap_or(situation.created).max(oldest);
            situation.cron.newest_between(from, situation.now, situation.zone)
        }
    };
    match (at, situation.is_active, situation.concurrency) {
        (None, ..) => Decision::Wait { until: next },
        (Some(at), true, ConcurrencyPolicy::Forbid) => Decision::WaitForActive { at },
        (Some(at), true, ConcurrencyPolicy::Replace) => Decision::Start { at, replacing: true },
        (Some(at), false, _) => Decision::Start { at, replacing: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        format!("2026-05-01T{text}:00Z").parse().unwrap()
    }

    fn check(change: impl FnOnce(&mut Situation<'_>), expected: Decision) {
        let cron = Cron::parse("0 * * * *").unwrap();
        let mut situation = Situation {
            cron: &cron,
            zone: &TimeZone::UTC,
            now: time("10:05"),
            created: time("08:30"),
            last: Some(time("09:00")),
            suspend: false,
            immediate: false,
            starting_deadline: SignedDuration::from_mins(10),
            concurrency: ConcurrencyPolicy::Forbid,
            is_active: false,
        };
        change(&mut situation);
        assert_eq!(decide(&situation), expected);
    }

    #[test]
    fn a_due_run_starts() {
        check(|_| {}, Decision::Start { at: time("10:00"), replacing: false });
    }

    #[test]
    fn a_run_that_was_started_does_not_start_again() {
        check(|s| s.last = Some(time("10:00")), Decision::Wait { until: Some(time("11:00")) });
    }

    #[test]
    fn a_missed_run_is_made_up_for_within_the_deadline_only() {
        check(|s| s.now = time("10:11"), Decision::Wait { until: Some(time("11:00")) });
        check(
            |s| s.starting_deadline = SignedDuration::from_hours(24),
            Decision::Start { at: time("10:00"), replacing: false },
        );
    }

    #[test]
    fn of_many_missed_runs_the_newest_starts() {
        check(
            |s| {
                s.last = Some(time("01:00"));
                s.starting_deadline = SignedDuration::from_hours(24);
            },
            Decision::Start { at: time("10:00"), replacing: false },
        );
    }

    #[test]
    fn a_suspended_schedule_starts_nothing_and_catches_up_afterwards() {
        check(|s| s.suspend = true, Decision::Wait { until: None });
        check(|s| s.suspend = false, Decision::Start { at: time("10:00"), replacing: false });
    }

    #[test]
    fn an_immediate_schedule_starts_once_when_it_is_created() {
        check(
            |s| {
                s.last = None;
                s.immediate = true;
            },
            Decision::Start { at: time("08:30"), replacing: false },
        );
        check(
            |s| {
                s.last = Some(time("08:30"));
                s.now = time("08:31");
                s.immediate = true;
            },
            Decision::Wait { until: Some(time("09:00")) },
        );
    }

    #[test]
    fn an_overlapping_run_waits_or_replaces() {
        check(|s| s.is_active = true, Decision::WaitForActive { at: time("10:00") });
        check(
            |s| {
                s.is_active = true;
                s.concurrency = ConcurrencyPolicy::Replace;
            },
            Decision::Start { at: time("10:00"), replacing: true },
        );
    }

    #[test]
    fn nothing_from_before_the_schedule_existed_is_made_up_for() {
        check(
            |s| {
                s.last = None;
                s.created = time("10:01");
                s.starting_deadline = SignedDuration::from_hours(24);
            },
            Decision::Wait { until: Some(time("11:00")) },
        );
    }
}
