//! Distributed tracing (`--enable-distributed-tracing`): spans of calls, for an OpenTelemetry collector.
//!
//! A call that is traced has one span, which goes on where the caller's `traceparent` left off, and below
//! it one for each step of the server (`range`, `put`, `txn`, ...), under the names and with the attributes
//! that Go etcd 3.7 and its gRPC library give them. Whether a call is traced the caller decides; for one that
//! has not decided chance does, at `--distributed-tracing-sampling-rate`.
//!
//! While a call is polled its span, or that of the step it is in, is the current one of the thread
//! ([`Span::current`]), so that handlers need not hand it on. Without tracing, and in calls that are not
//! traced, there is no current one, and a step costs that look.
//!
//! # Invariants
//! No call waits for a span. Spans go into the SDK's bounded queue, which drops what does not fit, and a
//! thread of the SDK exports them in batches. A collector that cannot be reached costs spans and a warning
//! now and then; the last export, when the server stops, is bounded.
//!
//! # Deliberately absent
//! TLS to the collector, which etcd has no flags for. Baggage: nothing that is called from here would take
//! it. Spans of one member for what another one does: members do not hand contexts on to each other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::config::{SAMPLING_RATE_MAX, TracingConfig};
use crate::listen::ConnectionInfo;

/// How long connecting to the collector, and one export, may take; OpenTelemetry's default.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last export may hold up the end of the server.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is said that spans are lost.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// The name of the code that makes the spans, among the scopes of OpenTelemetry.
const SCOPE: &str = "keelson";

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpansError {
    #[error(
        "--distributed-tracing-address must be \"host:port\" of an OTLP/gRPC collector, not {address:?}: \
         {error}"
    )]
    Address { address: String, error: tonic::transport::Error },
    #[error("distributed tracing cannot be set up: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Makes the spans of calls and exports them; a cheap copy.
#[derive(Clone)]
pub(crate) struct Spans {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    propagator: TraceContextPropagator,
}

impl Spans {
    /// Begins to export, on the current runtime; the collector is looked for when there is a span.
    ///
    /// # Errors
    /// When the collector's address is none.
    pub(crate) fn export(config: &TracingConfig) -> Result<Self, SpansError> {
        let address = config.collector.strip_prefix("dns:///").unwrap_or(&config.collector);
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| SpansError::Address { address: config.collector.clone(), error })?;
        let channel =
            endpoint.connect_timeout(EXPORT_TIMEOUT).timeout(EXPORT_TIMEOUT).connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .build()?;
        let share = f64::from(config.sampling_rate) / f64::from(SAMPLING_RATE_MAX);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource(config))
            .with_batch_exporter(Complaining { exporter, complained: Mutex::default() })
            .build();
        tracing::debug!(
            address = config.collector,
            "service-name" = config.service_name,
            "service-instance-id" = config.instance_id,
            "sampling-rate" = config.sampling_rate,
            "distributed tracing enabled"
        );
        tracing::info!("distributed tracing setup enabled");
        Ok(Self::of(provider))
    }

    fn of(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer(SCOPE);
        Self { tracer, provider, propagator: TraceContextPropagator::new() }
    }

    /// The span of a call that begins; none if the call is not traced.
    pub(crate) fn call<B>(&self, request: &Request<B>) -> Option<Span> {
        let caller =
            self.propagator.extract_with_context(&Context::new(), &Headers(request.headers()));
        // What most calls will not need is not made before that is known.
        let builder = SpanBuilder::from_name("").with_kind(SpanKind::Server);
        let mut span = self.tracer.build_with_context(builder, &caller);
        if !span.is_recording() {
            return None;
        }
        let method = request.uri().path().trim_start_matches('/').to_owned();
        span.update_name(method.clone());
        span.set_attribute(KeyValue::new("rpc.method", method));
        span.set_attribute(KeyValue::new("rpc.system.name", "grpc"));
        let info = request.extensions().get::<ConnectionInfo>();
        if let Some(local) = info.and_then(|info| info.local) {
            span.set_attributes(server_address(local));
        }
        Some(Span::new(self.tracer.clone(), span))
    }

    /// Exports what is left, for no longer than is reasonable.
    pub(crate) async fn shutdown(self) {
        let flush = move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(flush).await {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// What the environment says of the process, as for every program with OpenTelemetry, and what the flags do.
fn resource(config: &TracingConfig) -> Resource {
    let id = Some(&config.instance_id).filter(|id| !id.is_empty());
    Resource::builder_empty()
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_service_name(config.service_name.clone())
        .with_attributes(id.map(|id| KeyValue::new("service.instance.id", id.clone())))
        .build()
}

fn server_address(address: SocketAddr) -> [KeyValue; 2] {
    [
        KeyValue::new("server.address", address.ip().to_canonical().to_string()),
        KeyValue::new("server.port", i64::from(address.port())),
    ]
}

/// The metadata of a call, where its caller may have left a context.
struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// A step of the server within a call.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) attributes: Vec<KeyValue>,
}

/// A span under way of a call that is traced. It ends with its last copy, or when it is told to.
#[derive(Clone)]
pub(crate) struct Span(Arc<Shared>);

struct Shared {
    tracer: SdkTracer,
    /// What spans below this one begin in.
    context: Context,
    // A std mutex: held to add something to the span, which never waits.
    span: Mutex<opentelemetry_sdk::trace::Span>,
}

thread_local! {
    static CURRENT: RefCell<Option<Span>> = const { RefCell::new(None) };
}

impl Span {
    fn new(tracer: SdkTracer, span: opentelemetry_sdk::trace::Span) -> Self {
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        Self(Arc::new(Shared { tracer, context, span: Mutex::new(span) }))
    }

    /// The span of the call that this thread is at, or of the step that the call is in.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Makes it the current one until the result is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered { before: CURRENT.replace(Some(self.clone())) }
    }

    /// A step that began at this moment.
    pub(crate) fn step_since(&self, step: Step, began: SystemTime) -> Self {
        let builder = SpanBuilder::from_name(step.name)
            .with_kind(SpanKind::Internal)
            .with_start_time(began)
            .with_attributes(step.attributes);
        let Shared { tracer, context, .. } = &*self.0;
        Self::new(tracer.clone(), tracer.build_with_context(builder, context))
    }

    /// Something happened.
    pub(crate) fn event(&self, name: &'static str) {
        self.with(|span| span.add_event(name, Vec::new()));
    }

    /// Something failed, under the name that OpenTelemetry has for it.
    pub(crate) fn exception(&self, message: &str) {
        let message = KeyValue::new("exception.message", message.to_owned());
        self.with(|span| span.add_event("exception", vec![message]));
    }

    /// The call has ended with this code, under the name that gRPC's specification has for it.
    pub(crate) fn end_call(&self, code: Code, message: &str) {
        self.with(|span| {
            if is_fault_of_the_server(code) {
                span.set_status(Status::error(message.to_owned()));
            }
            span.set_attribute(KeyValue::new("rpc.response.status_code", code_name(code)));
            span.end();
        });
    }

    fn with(&self, change: impl FnOnce(&mut opentelemetry_sdk::trace::Span)) {
        change(&mut self.0.span.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A span is current while this lives.
pub(crate) struct Entered {
    before: Option<Span>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// Begins a step of the current call, if that is traced.
pub(crate) fn begin(step: impl FnOnce() -> Step) -> Option<Span> {
    Span::current().map(|call| call.step_since(step(), SystemTime::now()))
}

/// Does something as a step of the current call. The work is pinned by the caller: a future that is handed
/// on takes its space twice, in every call.
pub(crate) async fn within<T>(
    step: impl FnOnce() -> Step,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> T {
    let span = begin(step);
    poll_fn(|cx| {
        let _entered = span.as_ref().map(Span::enter);
        work.as_mut().poll(cx)
    })
    .await
}

/// Codes that make a span one that failed; the others are answers like any, for a server.
fn is_fault_of_the_server(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An exporter that says when it loses spans, but not each time.
#[derive(Debug)]
struct Complaining<E> {
    exporter: E,
    // A std mutex: held to compare two moments.
    complained: Mutex<Option<Instant>>,
}

impl<E> Complaining<E> {
    /// Whether it is time to say so again.
    fn may_complain(&self, now: Instant) -> bool {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = complained.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL);
        if is_due {
            *complained = Some(now);
        }
        is_due
    }
}

impl<E: SpanExporter> SpanExporter for Complaining<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        if let Err(error) = &exported
            && self.may_complain(Instant::now())
        {
            tracing::warn!(spans, %error, "spans could not be exported and are lost");
        }
        exported
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use opentelemetry::trace::{SpanId, TraceId};
    use opentelemetry_sdk::trace::SimpleSpanProcessor;

    use super::*;

    /// Keeps what is exported.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    fn spans(share: f64) -> (Spans, Kept) {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_span_processor(SimpleSpanProcessor::new(kept.clone()))
            .build();
        (Spans::of(provider), kept)
    }

    fn request(traceparent: &str) -> Request<()> {
        let request = Request::builder().uri("/etcdserverpb.KV/Put");
        request.header("traceparent", traceparent).body(()).unwrap()
    }

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[tokio::test]
    async fn a_step_belongs_to_the_call_that_is_polled_and_the_call_to_its_caller() {
        let (spans, kept) = spans(0.0);
        let call = spans.call(&request(SAMPLED)).unwrap();
        let proposed = pin!(async {
            tokio::task::yield_now().await;
            Span::current().unwrap().event("Send raft proposal");
        });
        let step = || Step { name: "put", attributes: vec![KeyValue::new("key", "k")] };
        let mut work = pin!(within(step, proposed));
        poll_fn(|cx| {
            let _entered = call.enter();
            work.as_mut().poll(cx)
        })
        .await;
        assert!(Span::current().is_none(), "nothing is current between two polls");
        call.end_call(Code::Unavailable, "no leader");
        let kept = kept.0.lock().unwrap();
        let [put, call] = &kept[..] else { panic!("{kept:?}") };
        assert_eq!((put.name.as_ref(), call.name.as_ref()), ("put", "etcdserverpb.KV/Put"));
        assert_eq!(put.parent_span_id, call.span_context.span_id());
        assert_eq!(put.events.events[0].name, "Send raft proposal");
        assert_eq!(call.parent_span_id, SpanId::from(0xb7ad_6b71_6920_3331));
        let trace = TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((put.span_context.trace_id(), call.span_context.trace_id()), (trace, trace));
        assert_eq!(call.status, Status::error("no leader"));
    }

    #[test]
    fn the_caller_decides_whether_a_call_is_traced_and_else_chance_does() {
        let not_sampled = SAMPLED.replace("-01", "-00");
        for (share, traceparent, traced) in [
            (0.0, SAMPLED, true),
            (0.0, "", false),
            (0.0, "nonsense", false),
            (1.0, not_sampled.as_str(), false),
            (1.0, "", true),
            (1.0, "nonsense", true),
        ] {
            let (spans, _) = spans(share);
            let span = spans.call(&request(traceparent));
            assert_eq!(span.is_some(), traced, "{share} {traceparent:?}");
        }
    }

    #[test]
    fn lost_spans_are_told_once_a_minute() {
        let exporter = Complaining { exporter: Kept::default(), complained: Mutex::default() };
        let start = Instant::now();
        let told = [0, 1, 59, 60, 61, 119, 120]
            .map(|seconds| exporter.may_complain(start + Duration::from_secs(seconds)));
        assert_eq!(told, [true, false, false, true, false, false, true]);
    }
}
