//! Mistakes made on purpose are found, each within so many seeds. A simulator that finds none of them
//! would find none that are made by accident either.

use sim::{Plan, Report};
use types::Planted;

fn find(mistake: Planted, seeds: u64) -> Report {
    let plans = (1..=seeds).map(|seed| Plan { planted: Some(mistake), ..Plan::of(seed) });
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let found = sim::first_violation(plans, jobs);
    found.unwrap_or_else(|| panic!("{mistake:?} was not found in {seeds} seeds"))
}

#[test]
fn writes_that_are_acknowledged_before_they_are_durable_are_found() {
    find(Planted::AckBeforeFsync, 200);
}

#[test]
fn reads_from_a_deposed_leader_are_found() {
    find(Planted::StaleReadIndex, 200);
}

#[test]
fn a_permission_that_is_not_judged_again_at_apply_is_found() {
    let report = find(Planted::PermissionAtProposeOnly, 200);
    let violation = report.violation.unwrap_or_default();
    assert!(violation.contains("UNAUTHORIZED"), "{violation}");
}

#[test]
fn a_lock_that_is_given_to_one_whose_lease_has_ended_is_found() {
    let report = find(Planted::UnconfirmedLock, 300);
    let violation = report.violation.unwrap_or_default();
    assert!(violation.contains("HOLDER"), "{violation}");
}

#[test]
fn what_is_written_without_the_lock_is_found() {
    let report = find(Planted::UnfencedWrite, 300);
    let violation = report.violation.unwrap_or_default();
    assert!(
        ["HOLDER", "FENCING", "EXPIRED"].iter().any(|kind| violation.contains(kind)),
        "{violation}"
    );
}

/// L1, T18.
#[test]
fn deadlines_of_a_term_that_is_over_are_found() {
    let report = find(Planted::ExpiryOfOldTerm, 300);
    let violation = report.violation.unwrap_or_default();
    assert!(violation.contains("LEASE EARLY"), "{violation}");
}

#[test]
fn a_deletion_lost_by_compaction_is_found() {
    find(Planted::LostDeleteEvent, 300);
}

#[test]
fn a_part_of_a_snapshot_that_is_taken_for_the_whole_is_found() {
    find(Planted::PartialSnapshot, 300);
}
