//! `--auto-compaction-mode` and `--auto-compaction-retention`.

use std::time::Duration;

use crate::cli::value::parse_duration;

use super::{ConfigError, refuse};

/// What automatic compaction keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// The history of this much time.
    Period(Duration),
    /// This many revisions.
    Revisions(i64),
}

/// Automatic compaction; none when it is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AutoCompaction {
    pub retention: Option<Retention>,
}

impl AutoCompaction {
    /// A bare number means hours in the mode `periodic` and revisions in the mode `revision`
    /// (`server/embed/etcd.go`, `parseCompactionRetention`).
    pub(super) fn parse(mode: &str, retention: &str) -> Result<Self, ConfigError> {
        let number = retention.parse::<i64>().ok().filter(|number| *number >= 0);
        let nanos = match number {
            Some(_) => 0,
            None if retention.is_empty() => 0,
            None => parse_duration(retention).map_err(|error| {
                ConfigError(format!("error parsing CompactionRetention: {error}"))
            })?,
        };
        let retention = match (mode, number) {
            ("periodic", Some(hours)) => {
                let hours = u64::try_from(hours).unwrap_or(0);
                Some(Retention::Period(Duration::from_secs(hours.saturating_mul(3600))))
            }
            ("periodic", None) => {
                Some(Retention::Period(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))))
            }
            // etcd takes a duration here as its number of nanoseconds.
            ("revision", number) => Some(Retention::Revisions(number.unwrap_or(nanos))),
            ("", _) => return refuse("undefined auto-compaction-mode"),
            (mode, _) => return refuse(format!("unknown auto-compaction-mode {mode:?}")),
        };
        let is_off = matches!(
            retention,
            Some(Retention::Period(Duration::ZERO) | Retention::Revisions(..=0))
        );
        Ok(Self { retention: retention.filter(|_| !is_off) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_reads_as_etcd_reads_it() {
        let hour = Duration::from_secs(3600);
        let cases = [
            ("periodic", "0", None),
            ("periodic", "1", Some(Retention::Period(hour))),
            ("periodic", "5m", Some(Retention::Period(hour / 12))),
            ("revision", "1000", Some(Retention::Revisions(1000))),
            ("revision", "0", None),
        ];
        for (mode, retention, expected) in cases {
            let parsed = AutoCompaction::parse(mode, retention).unwrap();
            assert_eq!(parsed.retention, expected, "{mode} {retention}");
        }
        assert_eq!(
            AutoCompaction::parse("foo", "1").unwrap_err().0,
            "unknown auto-compaction-mode \"foo\""
        );
        assert!(AutoCompaction::parse("periodic", "x").is_err());
    }
}
