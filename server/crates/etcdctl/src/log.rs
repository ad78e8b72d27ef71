//! Log lines on standard error, one JSON object each, with the fields of etcd's logs.
//!
//! The client reports failed attempts through `tracing`; [`Lines`] is the subscriber that writes
//! them. Only warnings and errors are written, as in Go etcdctl.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::output::json;

/// Writes one line.
pub(crate) fn line(level: &str, message: &str, fields: &[(&str, &str)]) {
    let mut line = begin(level, message);
    for (name, value) in fields {
        line.string(name, value);
    }
    write(&line.finish());
}

/// Writes a warning about a number.
pub(crate) fn warn_about(message: &str, name: &str, number: i64) {
    let mut line = begin("warn", message);
    line.number(name, number);
    write(&line.finish());
}

fn begin(level: &str, message: &str) -> json::Object {
    let mut line = json::Object::new();
    line.string("level", level);
    line.string("ts", &timestamp());
    line.string("msg", message);
    line
}

/// A subscriber that writes the client's warnings and errors.
pub(crate) struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.target().starts_with("client")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Spans are not shown, so all may be the same.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = json::Object::new();
        let error = *event.metadata().level() == Level::ERROR;
        line.string("level", if error { "error" } else { "warn" });
        line.string("ts", &timestamp());
        line.string("logger", "etcd-client");
        line.string("msg", &fields.message);
        line.raw_fields(&fields.others.finish());
        write(&line.finish());
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: json::Object,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.string(field.name(), &format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.others.string(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.number(field.name(), value);
    }
}

fn write(line: &str) {
    // There is nowhere left to tell that standard error cannot be written.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    rfc3339(now)
}

/// A time since 1970 as RFC 3339 in UTC with microseconds. The calendar is that of Howard Hinnant's
/// `civil_from_days`: years begin in March, so that the leap day is the last day of a year.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_epoch.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_795_264_199, "2026-11-21T12:29:59.000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
    }
}
