//! Counting gRPC calls, under the names that Go's gRPC middleware and etcd give them
//! (`grpc_server_*`, `etcd_server_client_requests_total`, `etcd_network_client_grpc_*`), and saying
//! which calls were slow.
//!
//! Calls are counted where bytes become messages, outside of the services, so that a service that
//! encodes its own answers is counted like any other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request};
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, histogram_opts,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};

use super::spans::{Entered, Span, Spans};
use crate::listen::ConnectionInfo;

/// Go's names of the gRPC codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const CODE_OK: usize = 0;
const CODE_CANCELED: usize = 1;
const CODE_UNKNOWN: usize = 2;

/// Packages whose services are served to clients.
const CLIENT_PACKAGES: [&str; 4] = ["etcdserverpb", "v3electionpb", "v3lockpb", "grpc.health.v1"];

/// The counters of all methods; a cheap copy.
#[derive(Clone)]
pub struct CallMetrics {
    methods: Arc<BTreeMap<String, Arc<Method>>>,
    shared: Arc<Shared>,
    /// Shows calls to a collector, too.
    spans: Option<Spans>,
}

struct Shared {
    handled: IntCounterVec,
    handling: Option<HistogramVec>,
    client_requests: IntCounterVec,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    slow: Duration,
}

struct Method {
    kind: &'static str,
    service: String,
    name: String,
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    ok: IntCounter,
    handling: OnceLock<Histogram>,
    /// The version that the first client named, and its counter: most clients are of one version.
    requests: OnceLock<(String, IntCounter)>,
}

impl CallMetrics {
    /// Registers the counters, at 0 for every method that clients may call. `extensive` adds the
    /// histogram of `--metrics=extensive`; unary calls longer than `slow` are logged.
    ///
    /// # Errors
    /// When a name is taken in `registry`.
    pub fn register(
        registry: &Registry,
        extensive: bool,
        slow: Duration,
    ) -> Result<Self, prometheus::Error> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let vector = |name: &str, help: &str, labels: &[&str]| {
            let vector = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vector.clone()))?;
            Ok::<_, prometheus::Error>(vector)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let started = vector("grpc_server_started_total", "RPCs started.", &labels)?;
        let received = vector("grpc_server_msg_received_total", "Messages received.", &labels)?;
        let sent = vector("grpc_server_msg_sent_total", "Messages sent.", &labels)?;
        let code_labels = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let shared = Shared {
            handled: vector("grpc_server_handled_total", "RPCs completed.", &code_labels)?,
            handling: extensive.then(|| handling(registry, &labels)).transpose()?,
            client_requests: vector(
                "etcd_server_client_requests_total",
                "Requests by kind of call and version of the client.",
                &["type", "client_api_version"],
            )?,
            sent_bytes: counter(
                "etcd_network_client_grpc_sent_bytes_total",
                "Bytes sent to gRPC clients.",
            )?,
            received_bytes: counter(
                "etcd_network_client_grpc_received_bytes_total",
                "Bytes received from gRPC clients.",
            )?,
            slow,
        };
        let mut methods = BTreeMap::new();
        for (service, name, kind) in client_methods() {
            let values = [kind, service.as_str(), name.as_str()];
            for code in CODES {
                shared.handled.with_label_values(&[kind, &service, &name, code]);
            }
            let method = Method {
                kind,
                started: started.with_label_values(&values),
                received: received.with_label_values(&values),
                sent: sent.with_label_values(&values),
                ok: shared.handled.with_label_values(&[kind, &service, &name, CODES[CODE_OK]]),
                handling: OnceLock::new(),
                requests: OnceLock::new(),
                service: service.clone(),
                name: name.clone(),
            };
            if let Some(histogram) = &shared.handling {
                let _ = method.handling.set(histogram.with_label_values(&values));
            }
            methods.insert(format!("/{service}/{name}"), Arc::new(method));
        }
        Ok(Self { methods: Arc::new(methods), shared: Arc::new(shared), spans: None })
    }

    /// The same with calls traced.
    pub(crate) fn traced(self, spans: Option<Spans>) -> Self {
        Self { spans, ..self }
    }

    /// What is said to a call of a path that no client service has, in the words of grpc-go.
    pub(crate) fn unknown(&self, path: &str) -> tonic::Status {
        let Some((service, method)) = path.strip_prefix('/').and_then(|name| name.rsplit_once('/'))
        else {
            return tonic::Status::unimplemented(format!("malformed method name: {path:?}"));
        };
        let is_service = self.methods.values().any(|known| known.service == service);
        tonic::Status::unimplemented(match is_service {
            true => format!("unknown method {method} for service {service}"),
            false => format!("unknown service {service}"),
        })
    }

    /// A call begins; none for a path that no client service has.
    pub fn start<B>(&self, request: &Request<B>) -> Option<Call> {
        let method = self.methods.get(request.uri().path())?.clone();
        method.started.inc();
        let version = request
            .headers()
            .get("client-api-version")
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        method.count_request(&self.shared.client_requests, version.unwrap_or("unknown"));
        Some(Call {
            method,
            shared: self.shared.clone(),
            started: Instant::now(),
            remote: request.extensions().get::<ConnectionInfo>().and_then(|info| info.remote),
            sent: Messages::default(),
            sent_bytes: 0,
            code: None,
            answered: false,
            span: self.spans.as_ref().and_then(|spans| spans.call(request)),
            ended: None,
        })
    }
}

impl Method {
    fn count_request(&self, requests: &IntCounterVec, version: &str) {
        let kind = if self.kind == "unary" { "unary" } else { "stream" };
        let counter = || requests.with_label_values(&[kind, version]);
        match self.requests.get_or_init(|| (version.to_owned(), counter())) {
            (known, requests) if known == version => requests.inc(),
            _ => counter().inc(),
        }
    }
}

fn handling(registry: &Registry, labels: &[&str]) -> Result<HistogramVec, prometheus::Error> {
    let options = histogram_opts!(
        "grpc_server_handling_seconds",
        "How long the server took to answer an RPC.",
        vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
    );
    let histogram = HistogramVec::new(options, labels)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

/// Service, method and kind of every RPC that clients may call, from the protocol's descriptors.
fn client_methods() -> Vec<(String, String, &'static str)> {
    let files = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)
        .expect("the descriptors are compiled in from the same build");
    let mut methods = Vec::new();
    for file in files.file.iter().filter(|file| CLIENT_PACKAGES.contains(&file.package())) {
        for service in &file.service {
            let full_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "unary",
                    (true, false) => "client_stream",
                    (false, true) => "server_stream",
                    (true, true) => "bidi_stream",
                };
                methods.push((full_name.clone(), method.name().to_owned(), kind));
            }
        }
    }
    methods
}

/// One call under way; it is counted as handled when it is dropped.
pub struct Call {
    method: Arc<Method>,
    shared: Arc<Shared>,
    started: Instant,
    remote: Option<SocketAddr>,
    sent: Messages,
    sent_bytes: usize,
    code: Option<usize>,
    answered: bool,
    /// If the call is traced.
    span: Option<Span>,
    /// What a call that is traced ended with.
    ended: Option<Status>,
}

impl Call {
    /// Counts what the client sends, as the request's body is read.
    pub(crate) fn received(&self) -> Received {
        Received {
            method: self.method.clone(),
            shared: self.shared.clone(),
            messages: Messages::default(),
        }
    }

    /// Makes the span of a call that is traced the current one, while the call is polled.
    pub(crate) fn enter(&self) -> Option<Entered> {
        self.span.as_ref().map(Span::enter)
    }

    /// Looks for the status in the headers or the trailers of the answer.
    pub(crate) fn headers(&mut self, headers: &HeaderMap) {
        self.answered = true;
        if let Some(status) = headers.get("grpc-status") {
            let number = status.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            self.code = Some(number.filter(|code| *code < CODES.len()).unwrap_or(CODE_UNKNOWN));
            if self.span.is_some() {
                self.ended = Status::from_header_map(headers);
            }
        }
    }

    /// Counts what is sent.
    pub(crate) fn sent(&mut self, data: &Bytes) {
        self.sent_bytes += data.len();
        self.shared.sent_bytes.inc_by(data.len() as u64);
        self.method.sent.inc_by(self.sent.count(data));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let method = &self.method;
        match self.code.unwrap_or(CODE_CANCELED) {
            CODE_OK => method.ok.inc(),
            code => self
                .shared
                .handled
                .with_label_values(&[method.kind, &method.service, &method.name, CODES[code]])
                .inc(),
        }
        if let Some(span) = &self.span {
            let (code, message) = match &self.ended {
                Some(status) => (status.code(), status.message()),
                None => (Code::Cancelled, ""),
            };
            span.end_call(code, message);
        }
        let spent = self.started.elapsed();
        if let Some(handling) = method.handling.get() {
            handling.observe(spent.as_secs_f64());
        }
        if method.kind == "unary" && spent > self.shared.slow {
            tracing::warn!(
                "time spent" = ?spent,
                remote = self.remote.map(tracing::field::display),
                "response type" = format!("/{}/{}", method.service, method.name),
                "response size" = self.sent_bytes,
                code = CODES[self.code.unwrap_or(CODE_CANCELED)],
                "request stats"
            );
        }
    }
}

/// Counts the messages of a request.
pub(crate) struct Received {
    method: Arc<Method>,
    shared: Arc<Shared>,
    messages: Messages,
}

impl Received {
    pub(crate) fn count(&mut self, data: &Bytes) {
        self.shared.received_bytes.inc_by(data.len() as u64);
        self.method.received.inc_by(self.messages.count(data));
    }
}

/// Finds where gRPC messages begin: each has a byte of flags and four bytes of length before it.
#[derive(Default)]
struct Messages {
    header: [u8; 5],
    have: usize,
    skip: usize,
}

impl Messages {
    /// How many messages begin in this part of the body.
    fn count(&mut self, data: &Bytes) -> u64 {
        let mut rest = &data[..];
        let mut begun = 0;
        while !rest.is_empty() {
            let skipped = self.skip.min(rest.len());
            self.skip -= skipped;
            rest.advance(skipped);
            let taken = (5 - self.have).min(rest.len());
            self.header[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
            self.have += taken;
            rest.advance(taken);
            if self.have == 5 {
                let [_, a, b, c, d] = self.header;
                self.skip = u32::from_be_bytes([a, b, c, d]) as usize;
                self.have = 0;
                begun += 1;
            }
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_the_body_is_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 300] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(vec![7; length as usize]);
        }
        for cut in 1..body.len() {
            let mut messages = Messages::default();
            let count: u64 =
                body.chunks(cut).map(|part| messages.count(&Bytes::copy_from_slice(part))).sum();
            assert_eq!(count, 3, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_call_is_counted_with_the_code_it_ends_with() {
        let registry = Registry::new();
        let metrics = CallMetrics::register(&registry, true, Duration::from_secs(1)).unwrap();
        let start = |path: &str| metrics.start(&Request::get(path).body(()).unwrap());
        let mut call = start("/etcdserverpb.KV/Range").unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("11"));
        call.headers(&trailers);
        drop(call);
        drop(start("/etcdserverpb.KV/Range"));
        let labels = |code| ["unary", "etcdserverpb.KV", "Range", code];
        let handled = &metrics.shared.handled;
        assert_eq!(handled.with_label_values(&labels("OutOfRange")).get(), 1);
        assert_eq!(handled.with_label_values(&labels("Canceled")).get(), 1);
        assert_eq!(handled.with_label_values(&labels("OK")).get(), 0);
        assert!(start("/nobody/Knows").is_none());
    }
}
