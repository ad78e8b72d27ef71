//! Which backups a schedule may delete. Pure.
//!
//! A backup stays if any rule keeps it: the newest so many, or the newest of each of the last so
//! many hours, days, weeks, months, years that have one (grandfather, father, son). With no rule
//! everything stays. The newest successful backup of each cluster always stays (I15), and nothing younger
//! than the minimum age goes.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

use crate::crd::RetentionPolicy;

/// A completed backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    pub name: String,
    pub at: Timestamp,
    /// The cluster that it was taken of. One that was made anew under the old one's name is another.
    pub cluster_id: Option<String>,
}

/// How many periods of a kind are kept, and what tells two periods within a year apart.
type PeriodRule = (Option<u32>, fn(&Zoned) -> (i16, i16));

/// Names of the backups that may go, oldest first.
pub fn expired(
    backups: &[Completed],
    policy: &RetentionPolicy,
    zone: &TimeZone,
    now: Timestamp,
) -> Vec<String> {
    let mut newest_first: Vec<&Completed> = backups.iter().collect();
    newest_first.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| b.name.cmp(&a.name)));
    let rules: [PeriodRule; 5] = [
        // With the offset: when clocks are set back, an hour comes twice.
        (policy.hourly, |time| {
            let hour = time.date().day_of_year() * 24 + i16::from(time.hour());
            (hour, i16::try_from(time.offset().seconds() / 60).unwrap_or(0))
        }),
        (policy.daily, |time| (time.date().day_of_year(), 0)),
        (policy.weekly, |time| {
            let week = time.date().iso_week_date();
            (week.year(), i16::from(week.week()))
        }),
        (policy.monthly, |time| (i16::from(time.month()), 0)),
        (policy.yearly, |_| (0, 0)),
    ];
    if policy.keep_last.is_none() && rules.iter().all(|(count, _)| count.is_none()) {
        return Vec::new();
    }
    let mut clusters = BTreeSet::new();
    let newest_of_each = newest_first.iter().filter(|backup| clusters.insert(&backup.cluster_id));
    let mut kept: BTreeSet<&str> = newest_of_each.map(|backup| backup.name.as_str()).collect();
    let last = policy.keep_last.map_or(0, |count| count as usize);
    kept.extend(newest_first.iter().take(last).map(|backup| backup.name.as_str()));
    for (index, (count, period)) in rules.into_iter().enumerate() {
        let Some(count) = count else { continue };
        let mut periods = BTreeSet::new();
        for backup in &newest_first {
            let time = backup.at.to_zoned(zone.clone());
            // An ISO week may lie in two years, and names its own.
            let year = if index == 2 { 0 } else { time.year() };
            let is_first = periods.insert((year, period(&time)));
            if periods.len() > count as usize {
                break;
            }
            if is_first {
                kept.insert(&backup.name);
            }
        }
    }
    let min_age = SignedDuration::from_secs(policy.min_age_seconds);
    newest_first
        .iter()
        .rev()
        .filter(|backup| {
            !kept.contains(backup.name.as_str()) && now.duration_since(backup.at) >= min_age
        })
        .map(|backup| backup.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backups(times: &[&str]) -> Vec<Completed> {
        times.iter().map(|time| completed(time, time, "a1")).collect()
    }

    fn completed(name: &str, at: &str, cluster_id: &str) -> Completed {
        let cluster_id = Some(cluster_id.to_owned());
        Completed { name: name.to_owned(), at: at.parse().unwrap(), cluster_id }
    }

    fn left(times: &[&str], policy: RetentionPolicy) -> Vec<String> {
        let all = backups(times);
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let gone = expired(&all, &policy, &TimeZone::UTC, now);
        all.into_iter().map(|backup| backup.name).filter(|name| !gone.contains(name)).collect()
    }

    const TIMES: [&str; 7] = [
        "2024-12-30T00:00:00Z",
        "2025-01-01T00:00:00Z",
        "2026-05-01T00:00:00Z",
        "2026-05-02T00:00:00Z",
        "2026-05-02T12:00:00Z",
        "2026-05-02T12:30:00Z",
        "2026-05-31T00:00:00Z",
    ];

    #[test]
    fn without_a_rule_everything_stays() {
        assert_eq!(left(&TIMES, RetentionPolicy::default()), TIMES);
    }

    #[test]
    fn the_newest_so_many_stay() {
        let policy = RetentionPolicy { keep_last: Some(2), ..RetentionPolicy::default() };
        assert_eq!(left(&TIMES, policy), TIMES[5..]);
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let daily = RetentionPolicy { daily: Some(2), ..RetentionPolicy::default() };
        assert_eq!(left(&TIMES, daily), [TIMES[5], TIMES[6]]);
        let hourly = RetentionPolicy { hourly: Some(3), ..RetentionPolicy::default() };
        assert_eq!(left(&TIMES, hourly), [TIMES[3], TIMES[5], TIMES[6]]);
        let yearly = RetentionPolicy { yearly: Some(5), ..RetentionPolicy::default() };
        assert_eq!(left(&TIMES, yearly), [TIMES[0], TIMES[1], TIMES[6]]);
    }

    #[test]
    fn a_week_that_spans_two_years_is_one_week() {
        let weekly = RetentionPolicy { weekly: Some(10), ..RetentionPolicy::default() };
        let left = left(&TIMES, weekly);
        assert!(
            !left.contains(&TIMES[0].to_owned()) && left.contains(&TIMES[1].to_owned()),
            "{left:?}"
        );
    }

    #[test]
    fn nothing_young_and_never_the_newest_goes() {
        let policy = RetentionPolicy {
            keep_last: Some(1),
            min_age_seconds: 40 * 24 * 3600,
            ..RetentionPolicy::default()
        };
        assert_eq!(left(&TIMES, policy), TIMES[2..]);
        let hourly = RetentionPolicy { hourly: Some(1), ..RetentionPolicy::default() };
        assert_eq!(left(&TIMES[..1], hourly), TIMES[..1]);
    }

    #[test]
    fn names_do_not_decide_the_order() {
        // The order of names is not that of times: coreos' operator deleted the wrong ones so.
        let all = vec![
            completed("b-9", "2026-01-01T00:00:00Z", "a1"),
            completed("b-10", "2026-01-02T00:00:00Z", "a1"),
        ];
        let policy = RetentionPolicy { keep_last: Some(1), ..RetentionPolicy::default() };
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        assert_eq!(expired(&all, &policy, &TimeZone::UTC, now), ["b-9"]);
    }

    /// A cluster was deleted by mistake and made anew under its name, and its schedule went on: a day
    /// later there were 24 backups of nothing, and none of what was lost.
    #[test]
    fn backups_of_another_cluster_of_the_name_do_not_push_out_the_last_of_this_one() {
        let all = [
            completed("old-1", "2026-05-01T00:00:00Z", "a1"),
            completed("old-2", "2026-05-02T00:00:00Z", "a1"),
            completed("new-1", "2026-05-03T00:00:00Z", "b2"),
            completed("new-2", "2026-05-04T00:00:00Z", "b2"),
        ];
        let policy = RetentionPolicy { keep_last: Some(1), ..RetentionPolicy::default() };
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        assert_eq!(expired(&all, &policy, &TimeZone::UTC, now), ["old-1", "new-1"]);
    }

    #[test]
    fn an_hour_that_comes_twice_is_two_hours() {
        // 2026-10-25 02:00-03:00 comes twice in Berlin.
        let twice = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"];
        let policy = RetentionPolicy { hourly: Some(3), ..RetentionPolicy::default() };
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let now = "2026-11-01T00:00:00Z".parse().unwrap();
        assert_eq!(expired(&backups(&twice), &policy, &zone, now), Vec::<String>::new());
    }
}
