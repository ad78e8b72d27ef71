//! When a schedule is due. Pure: the time is an argument.
//!
//! ```text
//! minute (0-59)  hour (0-23)  day of month (1-31)  month (1-12, JAN-DEC)  day of week (0-7, SUN-SAT)
//! ```
//!
//! Each field is `*`, `a`, `a-b`, any of these with `/step`, or a list of those. If both day fields
//! are restricted, a day that fits either is meant (crontab(5)).
//!
//! When clocks change, a schedule with fixed hours runs once for each of its times: a time that
//! the change skips runs by as much later as is skipped, and a time that comes twice runs the first
//! time. A schedule with `*` in the hour field follows elapsed time instead, so that "every 15
//! minutes" stays that through the night in which an hour comes twice.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_hour: bool,
    any_day: bool,
    any_weekday: bool,
}

/// An expression or time zone that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("a schedule has five fields (minute hour day month weekday), not {0}")]
    Fields(usize),
    #[error("{field} {text:?} is not a number, range, step or list within {low}-{high}")]
    Field { field: &'static str, text: String, low: u32, high: u32 },
    #[error("time zone {0:?} is not in the IANA database")]
    TimeZone(String),
    #[error("the schedule never comes: no month has such a day")]
    Never,
}

/// A schedule further ahead than this does not exist: 29 February recurs within eight years.
const DAYS_AHEAD_MAX: usize = 366 * 9;

impl Cron {
    /// # Errors
    /// The expression is not understood; the message says which part.
    pub fn parse(text: &str) -> Result<Cron, CronError> {
        let text = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(CronError::Fields(fields.len()));
        };
        const MONTHS: [&str; 12] =
            ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
        const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
        let mut weekdays =
            Field { name: "weekday", low: 0, high: 7, names: &WEEKDAYS }.parse(weekday)?;
        weekdays |= weekdays >> 7 & 1; // 7 is Sunday too.
        let cron = Cron {
            minutes: Field { name: "minute", low: 0, high: 59, names: &[] }.parse(minute)?,
            hours: Field { name: "hour", low: 0, high: 23, names: &[] }.parse(hour)?,
            days: Field { name: "day of month", low: 1, high: 31, names: &[] }.parse(day)?,
            months: Field { name: "month", low: 1, high: 12, names: &MONTHS }.parse(month)?,
            weekdays,
            any_hour: hour.starts_with('*'),
            any_day: day.starts_with('*'),
            any_weekday: fields[4].starts_with('*'),
        };
        cron.next_after(Timestamp::UNIX_EPOCH, &TimeZone::UTC).ok_or(CronError::Never)?;
        Ok(cron)
    }

    /// The first time after `after`.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_AHEAD_MAX {
            if self.matches_date(date) {
                let found = if self.any_hour {
                    self.next_elapsed(date, after, zone)
                } else {
                    self.next_fixed(date, after, zone)
                };
                if found.is_some() {
                    return found;
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The newest time after `after` and not later than `now`.
    pub fn newest_between(
        &self,
        after: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
    ) -> Option<Timestamp> {
        let mut newest = None;
        let mut from = after;
        while let Some(next) = self.next_after(from, zone).filter(|next| *next <= now) {
            newest = Some(next);
            from = next;
        }
        newest
    }

    fn matches_date(&self, date: Date) -> bool {
        let bit = |set: u64, value: i8| set >> value & 1 == 1;
        let day = bit(self.days, date.day());
        let weekday = bit(self.weekdays, date.weekday().to_sunday_zero_offset());
        let fits = match (self.any_day, self.any_weekday) {
            (false, false) => day || weekday,
            _ => day && weekday,
        };
        bit(self.months, date.month()) && fits
    }

    /// Fixed hours: the zone's rules place each wall-clock time once. A skipped one may be placed after a later
    /// one: where half an hour is skipped, 02:15 comes after 02:40.
    fn next_fixed(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        (0..24 * 60_i16)
            .filter(|minute| {
                self.hours >> (minute / 60) & 1 == 1 && self.minutes >> (minute % 60) & 1 == 1
            })
            .filter_map(|minute| {
                let (hour, minute) =
                    (i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?);
                let time = date.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
                Some(zone.to_ambiguous_zoned(time).compatible().ok()?.timestamp())
            })
            .filter(|time| *time > after)
            .min()
    }

    /// Any hour: minute by minute as time goes by.
    fn next_elapsed(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start =
            zone.to_ambiguous_zoned(date.to_datetime(Time::midnight())).compatible().ok()?;
        let end = zone
            .to_ambiguous_zoned(date.tomorrow().ok()?.to_datetime(Time::midnight()))
            .compatible()
            .ok()?
            .timestamp();
        let minute = SignedDuration::from_mins(1);
        let mut time = start.timestamp();
        if after >= time {
            let passed = after.duration_since(time).as_secs() / 60 + 1;
            time += SignedDuration::from_mins(passed);
        }
        while time < end {
            let civil = time.to_zoned(zone.clone());
            let fits =
                self.hours >> civil.hour() & 1 == 1 && self.minutes >> civil.minute() & 1 == 1;
            if fits {
                return Some(time);
            }
            time += minute;
        }
        None
    }
}

/// A time zone by its IANA name.
///
/// # Errors
/// There is none of that name.
pub fn time_zone(name: &str) -> Result<TimeZone, CronError> {
    TimeZone::get(name).map_err(|_| CronError::TimeZone(name.to_owned()))
}

struct Field {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

impl Field {
    fn parse(&self, text: &str) -> Result<u64, CronError> {
        let mut set = 0;
        for part in text.split(',') {
            set |= self.part(part).ok_or_else(|| CronError::Field {
                field: self.name,
                text: text.to_owned(),
                low: self.low,
                high: self.high,
            })?;
        }
        Ok(set)
    }

    fn part(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, step.parse::<u32>().ok().filter(|step| *step > 0)?),
            None => (text, 1),
        };
        let (low, high) = match range.split_once('-') {
            _ if range == "*" => (self.low, self.high),
            Some((low, high)) => (self.value(low)?, self.value(high)?),
            None if text.contains('/') => (self.value(range)?, self.high),
            None => (self.value(range)?, self.value(range)?),
        };
        if low > high || low < self.low || high > self.high {
            return None;
        }
        Some((low..=high).step_by(step as usize).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match named {
            Some(position) => u32::try_from(position).ok().map(|position| position + self.low),
            None => text.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let (cron, zone) = (Cron::parse(schedule).unwrap(), time_zone(zone).unwrap());
        let mut time: Timestamp = after.parse().unwrap();
        (0..count)
            .map(|_| {
                time = cron.next_after(time, &zone).unwrap();
                time.to_string()
            })
            .collect()
    }

    #[test]
    fn schedules_come_when_crontab_says() {
        let table: [(&str, &[&str]); 8] = [
            ("*/15 * * * *", &["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]),
            ("0 3 * * *", &["2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z"]),
            ("30 4 1,15 * *", &["2026-01-01T04:30:00Z", "2026-01-15T04:30:00Z"]),
            ("0 0 * * MON-FRI", &["2026-01-02T00:00:00Z", "2026-01-05T00:00:00Z"]),
            ("0 0 * * 7", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
            // Either day field, as in crontab(5).
            (
                "0 0 13 * FRI",
                &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z"],
            ),
            ("0 0 29 2 *", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
            ("@monthly", &["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]),
        ];
        for (schedule, expected) in table {
            let got = run(schedule, "Etc/UTC", "2026-01-01T00:00:00Z", expected.len());
            assert_eq!(got, expected, "{schedule}");
        }
    }

    #[test]
    fn a_time_that_the_change_to_summer_time_skips_runs_right_after_it() {
        // 2026-03-29 02:00-03:00 does not exist in Berlin.
        let got = run("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(got, ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]);
    }

    /// 2026-10-04 02:00-02:30 does not exist on Lord Howe, which skips half an hour and comes back to it.
    #[test]
    fn where_half_an_hour_is_skipped_no_time_is_lost() {
        let got = run("15,40 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", 3);
        let expected = ["2026-10-03T15:40:00Z", "2026-10-03T15:45:00Z", "2026-10-04T15:15:00Z"];
        assert_eq!(got, expected);
        // 2026-04-05 01:30-02:00 comes twice.
        let got = run("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00:00Z", 2);
        assert_eq!(got, ["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"]);
        let got = run("*/30 * * * *", "Australia/Lord_Howe", "2026-04-04T13:59:00Z", 5);
        let expected = ["14:00", "14:30", "15:00", "15:30", "16:00"];
        assert_eq!(got, expected.map(|time| format!("2026-04-04T{time}:00Z")));
    }

    #[test]
    fn a_time_that_comes_twice_runs_once() {
        // 2026-10-25 02:00-03:00 comes twice in Berlin.
        let got = run("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(got, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn every_half_hour_stays_that_when_an_hour_comes_twice() {
        let got = run("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:00Z", 6);
        let expected = ["00:00", "00:30", "01:00", "01:30", "02:00", "02:30"];
        assert_eq!(got, expected.map(|time| format!("2026-10-25T{time}:00Z")));
    }

    #[test]
    fn wrong_schedules_say_what_is_wrong() {
        for (text, expected) in [
            ("* * * *", "five fields"),
            ("60 * * * *", "minute \"60\""),
            ("0 24 * * *", "hour \"24\""),
            ("0 0 0 * *", "day of month \"0\""),
            ("0 0 * FOO *", "month \"FOO\""),
            ("*/0 * * * *", "minute \"*/0\""),
            ("5-1 * * * *", "minute \"5-1\""),
            ("0 0 30 2 *", "never comes"),
        ] {
            let error = Cron::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(time_zone("Mars/Olympus").is_err());
    }
}
