//! `/debug/pprof/` for `--enable-pprof`: what a running server spends its time on, in the form that
//! `go tool pprof http://host:port/debug/pprof/profile` reads.
//!
//! etcd's profiles come from Go's runtime. Of them, this server has CPU samples and its threads; for
//! the others it says that there are none and what to use instead. As in etcd nobody is asked for a
//! token, which is why the flag is off by default.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use pprof::{ProfilerGuard, ProfilerGuardBuilder, Report};
use prost::Message;

/// Below this path everything is ours.
pub(crate) const PREFIX: &str = "/debug/pprof/";

/// Samples per second of CPU time, as Go takes them.
const FREQUENCY: i32 = 100;
const SECONDS_DEFAULT: u64 = 30;
const SECONDS_MAX: u64 = 600;
/// A sample that interrupts these may not walk the stack: they hold locks that the walk needs.
const NOT_INTERRUPTED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Profiles of Go's runtime that have no counterpart here.
const OF_GO: [&str; 8] =
    ["allocs", "block", "goroutine", "heap", "mutex", "symbol", "threadcreate", "trace"];

/// Answers a request for what follows the prefix.
pub(crate) async fn answer(name: &str, query: &str) -> Response<Full<Bytes>> {
    match name {
        "" => index(),
        "cmdline" => text(StatusCode::OK, std::env::args().collect::<Vec<_>>().join("\0")),
        "profile" => profile(query).await,
        "threads" => text(StatusCode::OK, threads()),
        "goroutine" if query.split('&').any(|pair| pair.starts_with("debug=")) => {
            text(StatusCode::OK, threads())
        }
        _ if OF_GO.contains(&name) => text(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "{name} is a profile of Go's runtime and this server is not written in Go.\n\
                 Use {PREFIX}profile for CPU time, {PREFIX}threads for what threads do,\n\
                 /metrics for memory (process_resident_memory_bytes), and perf or heaptrack\n\
                 for allocations.\n"
            ),
        ),
        _ => text(StatusCode::NOT_FOUND, format!("Unknown profile\n{name}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn index() -> Response<Full<Bytes>> {
    let links = [
        ("profile?seconds=30", "CPU samples for go tool pprof"),
        ("threads", "what each thread does and how much CPU time it took"),
        ("cmdline", "the command line"),
    ];
    let mut body = "<html><head><title>/debug/pprof/</title></head><body><ul>\n".to_owned();
    for (link, what) in links {
        let _ = writeln!(body, "<li><a href=\"{link}\">{link}</a>: {what}</li>");
    }
    body.push_str("</ul></body></html>\n");
    let mut response = text(StatusCode::OK, body);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}

async fn profile(query: &str) -> Response<Full<Bytes>> {
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
    // Go reads what is no positive number as its default too.
    let seconds = asked.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let seconds: u64 = seconds.unwrap_or(SECONDS_DEFAULT);
    if seconds > SECONDS_MAX {
        let error = format!("profile duration exceeds {SECONDS_MAX} seconds\n");
        return text(StatusCode::BAD_REQUEST, error);
    }
    let failed = |error: &dyn std::fmt::Display| {
        let error = format!("Could not enable CPU profiling: {error}\n");
        text(StatusCode::INTERNAL_SERVER_ERROR, error)
    };
    let builder = ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&NOT_INTERRUPTED);
    let guard = match builder.build() {
        Ok(guard) => guard,
        Err(error) => return failed(&error),
    };
    let (from, length) = (SystemTime::now(), Duration::from_secs(seconds));
    tokio::time::sleep(length).await;
    // Finding the names of functions takes a while and must not hold up the calls of this thread.
    let encoded = tokio::task::spawn_blocking(move || encode(&guard, from, length)).await;
    match encoded {
        Ok(Ok(profile)) => {
            let mut response = Response::new(Full::from(profile));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            let disposition = HeaderValue::from_static("attachment; filename=\"profile\"");
            headers.insert(CONTENT_DISPOSITION, disposition);
            response
        }
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn encode(
    guard: &ProfilerGuard<'_>,
    from: SystemTime,
    length: Duration,
) -> Result<Vec<u8>, pprof::Error> {
    Ok(build(&guard.report().build()?, from, length).encode_to_vec())
}

/// Names of this process's threads with their states and times.
fn threads() -> String {
    let mut out = String::from("thread\tstate\tuser ticks\tsystem ticks\twaits in\tname\n");
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return out };
    let mut lines = BTreeMap::new();
    for task in tasks.flatten() {
        let path = task.path();
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        let (stat, id) = (read("stat"), task.file_name().to_string_lossy().into_owned());
        // The name is in brackets and may hold anything; the rest follows it.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default();
        let (state, user, system) = (field(0), field(11), field(12));
        let (waits, name) = (read("wchan"), read("comm"));
        let line = format!("{id}\t{state}\t{user}\t{system}\t{waits}\t{}\n", name.trim_end());
        lines.insert(id.parse::<u64>().unwrap_or(0), line);
    }
    out.extend(lines.into_values());
    out
}

/// Collects texts, functions and places under numbers.
struct Builder {
    profile: Profile,
    texts: BTreeMap<String, i64>,
    functions: BTreeMap<(String, String), u64>,
    locations: BTreeMap<Vec<(u64, i64)>, u64>,
}

fn build(report: &Report, from: SystemTime, length: Duration) -> Profile {
    let mut builder = Builder {
        profile: Profile::default(),
        texts: BTreeMap::new(),
        functions: BTreeMap::new(),
        locations: BTreeMap::new(),
    };
    builder.text(""); // The format wants the first to be empty.
    let period = 1_000_000_000 / i64::from(FREQUENCY);
    let samples = ValueType { kind: builder.text("samples"), unit: builder.text("count") };
    let cpu = ValueType { kind: builder.text("cpu"), unit: builder.text("nanoseconds") };
    let thread_key = builder.text("thread");
    for (frames, count) in &report.data {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let location_ids = frames.frames.iter().map(|frame| builder.location(frame)).collect();
        let label = Label { key: thread_key, text: builder.text(&frames.thread_name) };
        let values = vec![count, count.saturating_mul(period)];
        builder.profile.samples.push(Sample { location_ids, values, labels: vec![label] });
    }
    let mut profile = builder.profile;
    profile.sample_types = vec![samples, cpu.clone()];
    profile.period_type = Some(cpu);
    profile.period = period;
    profile.time_nanos = nanos(from.duration_since(UNIX_EPOCH).unwrap_or_default());
    profile.duration_nanos = nanos(length);
    profile
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(known) = self.texts.get(text) {
            return *known;
        }
        let index = i64::try_from(self.profile.texts.len()).unwrap_or(i64::MAX);
        self.profile.texts.push(text.to_owned());
        self.texts.insert(text.to_owned(), index);
        index
    }

    /// One place of the program; functions that were inlined there come first.
    fn location(&mut self, frame: &[pprof::Symbol]) -> u64 {
        let lines: Vec<(u64, i64)> = frame
            .iter()
            .map(|symbol| {
                let function = self.function(symbol.name(), symbol.filename().into_owned());
                (function, i64::from(symbol.lineno()))
            })
            .collect();
        if let Some(known) = self.locations.get(&lines) {
            return *known;
        }
        let id = self.locations.len() as u64 + 1;
        let to_line =
            |(function_id, line): &(u64, i64)| Line { function_id: *function_id, line: *line };
        self.profile.locations.push(Location { id, lines: lines.iter().map(to_line).collect() });
        self.locations.insert(lines, id);
        id
    }

    fn function(&mut self, name: String, file: String) -> u64 {
        let key = (name, file);
        if let Some(known) = self.functions.get(&key) {
            return *known;
        }
        let id = self.functions.len() as u64 + 1;
        let (name, file_name) = (self.text(&key.0), self.text(&key.1));
        self.profile.functions.push(Function { id, name, system_name: name, file_name });
        self.functions.insert(key, id);
        id
    }
}

/// `perftools.profiles.Profile`, the part of it that is used.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_types: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    texts: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_ids: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    file_name: i64,
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_profile_shows_what_a_busy_thread_does() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::Builder::new().name("busy".to_owned());
        let busy = busy.spawn(move || {
            let mut sum = 0_u64;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                sum = std::hint::black_box((0..1_000_000_u64).fold(sum, u64::wrapping_add));
            }
            sum
        });
        let response = answer("profile", "seconds=1").await;
        assert_eq!(response.status(), StatusCode::OK);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        drop(stop);
        busy.unwrap().join().unwrap();
        let profile = Profile::decode(bytes).unwrap();
        assert_eq!(profile.texts[0], "");
        assert!(profile.texts.iter().any(|text| text == "busy"), "{:?}", profile.texts);
        assert!(profile.samples.iter().any(|sample| sample.values[0] > 0));
        let known = 1..=profile.locations.len() as u64;
        assert!(profile.samples.iter().flat_map(|s| &s.location_ids).all(|id| known.contains(id)));
        let functions = 1..=profile.functions.len() as u64;
        let lines = profile.locations.iter().flat_map(|location| &location.lines);
        assert!(lines.clone().all(|line| functions.contains(&line.function_id)));
    }

    #[tokio::test]
    async fn what_there_is_not_is_said() {
        let cases = [
            ("heap", "", StatusCode::NOT_IMPLEMENTED, "not written in Go"),
            ("goroutine", "debug=2", StatusCode::OK, "waits in"),
            ("goroutine", "", StatusCode::NOT_IMPLEMENTED, "/debug/pprof/threads"),
            ("nonsense", "", StatusCode::NOT_FOUND, "Unknown profile"),
            ("profile", "seconds=601", StatusCode::BAD_REQUEST, "exceeds 600 seconds"),
            ("", "", StatusCode::OK, "profile?seconds=30"),
        ];
        for (name, query, status, expected) in cases {
            let response = answer(name, query).await;
            assert_eq!(response.status(), status, "{name}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains(expected), "{name}: {body}");
        }
    }
}
