//! Log lines on standard error, one JSON object each, with the fields of etcd's logs.
//!
//! The client reports failed attempts through `tracing`; [`Lines`] is the subscriber that writes
//! them. Only warnings and errors are written, as in Go etcdctl.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use jiff::Timestamp;
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
    line.string("ts", &format!("{:.6}", Timestamp::now()));
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
        line.string("ts", &format!("{:.6}", Timestamp::now()));
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
