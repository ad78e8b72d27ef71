//! Logs in the form that etcd's logger (zap) writes, because collectors parse it and people search
//! for its texts.
//!
//! ```text
//! json     {"level":"info","ts":"2026-01-02T03:04:05.678901Z","caller":"src/boot.rs:12","msg":"..","field":".."}
//! console  2026-01-02T03:04:05.678901Z <TAB> info <TAB> src/boot.rs:12 <TAB> message <TAB> {"field":".."}
//! ```
//!
//! Logging never waits for the target: lines go through a bounded queue to a thread of their own.
//! When the queue is full, lines are dropped, and the next line that fits says how many.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use super::log_file::LogFile;
use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput, LogRotation};

/// Lines that wait for the target.
const QUEUE_LINES: usize = 8192;
/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it looks whether there is room for asking.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);
/// Libraries that say more than an operator wants to know; shown from `--log-level=debug` on.
const NOISY: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"];
/// This one warns at each message to a member that is down, many times a second; `peer::meters` says it once.
const NOISIER: &str = "openraft";

/// Writes out what waits; keep it until the end of the process.
pub struct Logs {
    queue: SyncSender<Message>,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Logs {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// When a file cannot be opened, or when the process logs already.
    pub fn start(config: &LogConfig) -> io::Result<Self> {
        let targets = config
            .outputs
            .iter()
            .map(|output| open(output, config.rotation))
            .collect::<io::Result<Vec<_>>>()?;
        let (queue, lines) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_out(&lines, targets))?;
        let layer = ZapLayer {
            format: config.format,
            queue: queue.clone(),
            dropped: Arc::new(AtomicU64::new(0)),
        };
        let (filter, level) = reload::Layer::new(filter(config.level));
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init()
            .map_err(io::Error::other)?;
        // The process logs once, so this is the first time.
        let _ = LEVEL.set(Mutex::new((config.level, level)));
        Ok(Self { queue })
    }

    /// Waits until everything logged so far is written, within reason.
    pub fn flush(&self) {
        // A target that hangs must not keep the process alive, nor must the queue before it, which is
        // full then.
        let until = Instant::now() + FLUSH_TIMEOUT;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(full) = self.queue.try_send(message) {
            let (TrySendError::Full(again), true) = (full, Instant::now() < until) else { return };
            message = again;
            std::thread::sleep(FLUSH_PAUSE);
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

type FilterHandle = reload::Handle<Targets, Registry>;

/// The level of the process's log, and how it is changed.
// A std mutex: held while the level is changed, never across an await.
static LEVEL: OnceLock<Mutex<(LogLevel, FilterHandle)>> = OnceLock::new();

/// Why the level cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("Invalid log level {0}")]
    Unknown(String),
    #[error("this process has no log: {0}")]
    NoLog(String),
}

/// The level in capitals, as etcd wrote it.
pub(super) fn level() -> &'static str {
    let level = LEVEL.get().map(|level| level.lock().unwrap_or_else(PoisonError::into_inner).0);
    match level {
        Some(LogLevel::Debug) => "DEBUG",
        Some(LogLevel::Info) | None => "INFO",
        Some(LogLevel::Warn) => "WARNING",
        Some(LogLevel::Error) => "ERROR",
    }
}

/// Changes the level of the log while the server runs.
///
/// # Errors
/// When there is no such level.
pub(super) fn set_level(name: &str) -> Result<(), LevelError> {
    let wanted = match name.to_ascii_uppercase().as_str() {
        "DEBUG" | "D" | "TRACE" | "T" => LogLevel::Debug,
        "INFO" | "I" | "NOTICE" | "N" => LogLevel::Info,
        "WARNING" | "WARN" | "W" => LogLevel::Warn,
        "ERROR" | "E" | "CRITICAL" | "C" => LogLevel::Error,
        _ => return Err(LevelError::Unknown(name.to_owned())),
    };
    let Some(level) = LEVEL.get() else {
        return Err(LevelError::NoLog("it was not started".to_owned()));
    };
    let mut level = level.lock().unwrap_or_else(PoisonError::into_inner);
    level.1.reload(filter(wanted)).map_err(|error| LevelError::NoLog(error.to_string()))?;
    level.0 = wanted;
    Ok(())
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.flush();
    }
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let quiet = if level == LevelFilter::INFO { LevelFilter::WARN } else { level };
    let quieter = if level == LevelFilter::DEBUG { level } else { LevelFilter::ERROR };
    Targets::new()
        .with_default(level)
        .with_targets(NOISY.map(|target| (target, quiet)))
        .with_target(NOISIER, quieter)
}

enum Target {
    Stderr,
    Stdout,
    File(File),
    Rotating(LogFile),
}

fn open(output: &LogOutput, rotation: Option<LogRotation>) -> io::Result<Target> {
    Ok(match output {
        LogOutput::Stderr => Target::Stderr,
        LogOutput::Stdout => Target::Stdout,
        LogOutput::File(path) => {
            let opened = match rotation {
                None => OpenOptions::new().create(true).append(true).open(path).map(Target::File),
                Some(rotation) => LogFile::open(Path::new(path), rotation).map(Target::Rotating),
            };
            opened.map_err(|error| {
                io::Error::new(error.kind(), format!("open --log-outputs {path}: {error}"))
            })?
        }
    })
}

impl Target {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Target::Stderr => io::stderr().lock().write_all(line),
            Target::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line)?;
                stdout.flush()
            }
            Target::File(file) => file.write_all(line),
            Target::Rotating(file) => file.write(line),
        }
    }
}

fn write_out(lines: &Receiver<Message>, mut targets: Vec<Target>) {
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => {
                for target in &mut targets {
                    // There is nowhere to report a log that cannot be written.
                    let _ = target.write(&line);
                }
            }
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Turns events into lines.
struct ZapLayer {
    format: LogFormat,
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ZapLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            fields.values.insert("dropped-log-lines".to_owned(), dropped.into());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = render(self.format, event.metadata(), now, fields);
        match self.queue.try_send(Message::Line(line.into_bytes())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => match value {
                Value::String(text) => self.message = text,
                other => self.message = other.to_string(),
            },
            name => {
                self.values.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

fn render(
    format: LogFormat,
    metadata: &Metadata<'_>,
    since_epoch: Duration,
    fields: Fields,
) -> String {
    let level = match *metadata.level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    };
    let caller = caller(metadata.file().unwrap_or_default(), metadata.line().unwrap_or(0));
    let time = timestamp(since_epoch);
    let message = Value::String(fields.message);
    let mut line = String::with_capacity(256);
    match format {
        LogFormat::Json => {
            let _ = write!(
                line,
                "{{\"level\":\"{level}\",\"ts\":\"{time}\",\"caller\":{},\"msg\":{message}",
                Value::String(caller)
            );
            for (name, value) in fields.values {
                let _ = write!(line, ",{}:{value}", Value::String(name));
            }
            line.push_str("}\n");
        }
        LogFormat::Console => {
            let text = message.as_str().unwrap_or_default();
            let _ = write!(line, "{time}\t{level}\t{caller}\t{text}");
            if !fields.values.is_empty() {
                let _ = write!(line, "\t{}", Value::Object(fields.values));
            }
            line.push('\n');
        }
    }
    line
}

/// The last two parts of the path, as zap shortens it.
fn caller(file: &str, line: u32) -> String {
    let parts: Vec<&str> = file.rsplit('/').take(2).collect();
    let short = parts.into_iter().rev().collect::<Vec<_>>().join("/");
    format!("{short}:{line}")
}

/// RFC 3339 in UTC with microseconds.
pub(super) fn timestamp(since_epoch: Duration) -> String {
    let (seconds, nanoseconds) = (since_epoch.as_secs(), since_epoch.subsec_nanos());
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = Timestamp::new(seconds, nanoseconds.cast_signed()).unwrap_or(Timestamp::MAX);
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_the_calendar_says() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(timestamp(Duration::from_secs(seconds)), text);
        }
        assert!(timestamp(Duration::from_micros(1_500_001)).ends_with("01.500001Z"));
    }

    /// Renders events with a layer of the test.
    struct Catch(LogFormat, Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Catch {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let line = render(self.0, event.metadata(), Duration::ZERO, fields);
            self.1.lock().unwrap().push(line);
        }
    }

    fn lines(format: LogFormat) -> Vec<String> {
        let caught = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(Catch(format, caught.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(revision = 7, name = "a\"b", "data-dir" = %"/d", "it is {}", "so");
        });
        caught.lock().unwrap().clone()
    }

    #[test]
    fn a_json_line_has_the_keys_of_zap_in_its_order() {
        let line = lines(LogFormat::Json).remove(0);
        assert!(
            line.starts_with(
                r#"{"level":"warn","ts":"1970-01-01T00:00:00.000000Z","caller":"ops/logging.rs:"#
            ),
            "{line}"
        );
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["msg"], "it is so");
        assert_eq!(parsed["revision"], 7);
        assert_eq!(parsed["name"], "a\"b");
        assert_eq!(parsed["data-dir"], "/d");
    }

    #[test]
    fn a_console_line_is_for_people() {
        let line = lines(LogFormat::Console).remove(0);
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z\twarn\tops/logging.rs:"), "{line}");
        assert!(line.contains("\tit is so\t{"), "{line}");
    }
}
