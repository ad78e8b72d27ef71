//! What HTTP serves beside gRPC: health, version, metrics, variables, and the rules of CORS and
//! host names.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prometheus::{Registry, TextEncoder};

use crate::config::HttpConfig;
use crate::gateway::{Gateway, websocket};
use crate::listen::{ConnectionInfo, HttpBody, HttpHandler, Purpose};

use super::health::{self, HealthMetrics, Vitals};
use super::scrapes::ScrapeMetrics;
use super::{logging, profile};

/// What the handlers ask the member for.
pub trait Member: Vitals {
    /// The version the cluster has agreed on, if it has.
    fn cluster_version(&self) -> Option<String>;
    /// `raft.status` of `/debug/vars`.
    fn raft_status(&self) -> serde_json::Value;
    /// Brings the metrics up to date before they are read.
    fn refresh_metrics(&self);
}

/// Everything the handlers need.
pub struct HttpParts {
    pub member: Arc<dyn Member>,
    pub metrics: HttpMetrics,
    pub registry: Registry,
    pub config: HttpConfig,
    pub arguments: Vec<String>,
}

/// What is counted of requests here.
#[derive(Clone)]
pub struct HttpMetrics {
    health: HealthMetrics,
    scrapes: ScrapeMetrics,
}

impl HttpMetrics {
    /// # Errors
    /// When a name is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let health = HealthMetrics::register(registry)?;
        Ok(Self { health, scrapes: ScrapeMetrics::register(registry)? })
    }
}

/// The handler of all listeners that serve HTTP; it looks at the connection's purpose.
pub fn handler(parts: Arc<HttpParts>) -> HttpHandler {
    handler_with(parts, None)
}

/// The same with the JSON gateway of one thread, which client listeners serve.
pub(crate) fn handler_with(parts: Arc<HttpParts>, gateway: Option<Gateway>) -> HttpHandler {
    Arc::new(move |request| {
        let (parts, gateway) = (parts.clone(), gateway.clone());
        Box::pin(async move { answer(&parts, gateway.as_ref(), request).await })
    })
}

async fn answer(
    parts: &HttpParts,
    gateway: Option<&Gateway>,
    request: Request<Incoming>,
) -> Response<HttpBody> {
    let info = request.extensions().get::<ConnectionInfo>().cloned();
    let purpose = info.as_ref().map_or(Purpose::Client, |info| info.purpose);
    let secure = info.is_some_and(|info| info.secure);
    let from_clients = matches!(purpose, Purpose::Client | Purpose::ClientHttp);
    if from_clients && !secure && !host_is_welcome(parts, &request) {
        return host_refused(host_name(&request)).map(as_body);
    }
    let gateway = gateway.filter(|_| is_gateway_path(request.uri().path()));
    if let Some(refused) = gateway.and_then(|gateway| gateway.refuse_name(request.extensions())) {
        return refused;
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match (request.method(), gateway) {
        (&Method::OPTIONS, _) if from_clients => Response::new(HttpBody::from("")),
        (_, _)
            if from_clients && request.uri().path() == LOG_LEVEL_PATH && parts.config.profiling =>
        {
            log_level(request).await.map(as_body)
        }
        (_, Some(gateway)) if websocket::is_wanted(request.headers()) => {
            websocket::accept(gateway.clone(), request)
        }
        (_, Some(gateway)) => gateway.answer(request).await,
        _ => route(parts, purpose, &request).await.map(as_body),
    };
    if from_clients {
        add_cors(parts, origin, &mut response);
    }
    response
}

fn as_body(body: Full<Bytes>) -> HttpBody {
    HttpBody::Full(body)
}

fn is_gateway_path(path: &str) -> bool {
    path.starts_with("/v3/") || path.starts_with("/v3beta/")
}

async fn route(
    parts: &HttpParts,
    purpose: Purpose,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let is_get = request.method() == Method::GET;
    match path {
        "/version" | "/debug/vars" if purpose == Purpose::Metrics => not_found(),
        "/version" if !is_get => method_not_allowed(),
        "/version" => json(version(parts)),
        _ if purpose == Purpose::Peer => not_found(),
        "/metrics" => parts.metrics.scrapes.count(|| metrics(parts)),
        "/debug/vars" if !is_get => method_not_allowed(),
        "/debug/vars" => with_charset(json(variables(parts))),
        _ if path.starts_with(profile::PREFIX) && parts.config.profiling => {
            match purpose == Purpose::Metrics {
                true => not_found(),
                false => profile::answer(&path[profile::PREFIX.len()..], query).await,
            }
        }
        "/debug/requests" | "/debug/events" if parts.config.traces => {
            text(StatusCode::NOT_IMPLEMENTED, NO_TRACES.to_owned())
        }
        _ if is_health(path) && !is_get => method_not_allowed(),
        _ => {
            match health::answer(parts.member.as_ref(), &parts.metrics.health, path, query).await {
                Some(answer) => text(answer.status, answer.body),
                None => not_found(),
            }
        }
    }
}

/// What etcd shows here with `--log-level=debug` is kept by a library of Go.
const NO_TRACES: &str = "calls are not traced here.\nUse /metrics for how long calls take \
    (etcd_server_request_duration_seconds, and grpc_server_handling_seconds with --metrics=extensive)\n\
    and the log for those that take longer than --warning-unary-request-duration.\n";

/// Where etcd up to 3.4 changed the level of its log.
const LOG_LEVEL_PATH: &str = "/config/local/log";

/// `GET` tells the level of the log and `PUT` sets it, both as `{"Level":"DEBUG"}`.
async fn log_level(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let refused = |message: String| {
        let mut response = json(serde_json::json!({ "message": message }).to_string());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response
    };
    if request.method() == Method::GET {
        return json(format!("{{\"Level\":\"{}\"}}\n", logging::level()));
    }
    if request.method() != Method::PUT {
        let mut response = method_not_allowed();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, PUT"));
        return response;
    }
    let body = http_body_util::Limited::new(request.into_body(), LOG_LEVEL_BYTES_MAX).collect();
    let body = body.await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let Ok(wanted) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return refused("Invalid json body".to_owned());
    };
    let name = wanted["Level"].as_str().unwrap_or_default();
    match logging::set_level(name) {
        Ok(()) => {
            tracing::info!("new-level" = name, "changed the log level");
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => refused(error.to_string()),
    }
}

/// A level is named in fewer bytes.
const LOG_LEVEL_BYTES_MAX: usize = 1024;

fn is_health(path: &str) -> bool {
    path == "/health" || health::checks_of(path).is_some()
}

fn version(parts: &HttpParts) -> String {
    let cluster = parts.member.cluster_version();
    let storage =
        crate::version::told_storage(cluster.as_deref().and_then(|text| text.parse().ok()));
    let cluster = cluster.as_deref().unwrap_or("not_decided");
    // The order of the fields is etcd's.
    format!(
        r#"{{"etcdserver":"{}","etcdcluster":"{cluster}","storage":"{storage}"}}"#,
        crate::version::release().etcd
    )
}

fn variables(parts: &HttpParts) -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let memory = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident_pages = memory.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok());
    let page = rustix::param::page_size() as u64;
    let variables = serde_json::json!({
        "cmdline": parts.arguments,
        "file_descriptor_limit": limit,
        "memstats": { "Sys": resident_pages.map(|pages| pages * page) },
        "raft.status": parts.member.raft_status(),
    });
    format!("{variables:#}\n")
}

fn metrics(parts: &HttpParts) -> Response<Full<Bytes>> {
    parts.member.refresh_metrics();
    match TextEncoder::new().encode_to_string(&parts.registry.gather()) {
        Ok(body) => {
            let mut response = Response::new(Full::from(body));
            let kind = HeaderValue::from_static(
                "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            );
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn not_found() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

fn text(status: StatusCode, body: impl Into<Full<Bytes>>) -> Response<Full<Bytes>> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Go's expvar says which characters its JSON is of; etcd's own handlers do not.
fn with_charset(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// etcd's defence against DNS rebinding: over plain HTTP only the listed names may be asked for.
fn host_is_welcome(parts: &HttpParts, request: &Request<Incoming>) -> bool {
    let allowed = &parts.config.host_whitelist;
    if allowed.is_empty() || allowed.iter().any(|host| host == "*") {
        return true;
    }
    let name = host_name(request);
    allowed.iter().any(|allowed| allowed == name)
}

/// The host that a request names, without its port.
fn host_name(request: &Request<Incoming>) -> &str {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let host = header.or(authority).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, _)) if name.starts_with('[') && name.ends_with(']') => &name[1..name.len() - 1],
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

/// In etcd's words, which say what to do.
fn host_refused(host: &str) -> Response<Full<Bytes>> {
    tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
    let body = format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  \
           - e.g. etcd --host-whitelist {host:?}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks \
         (CVE-2018-5702).\n\n"
    );
    text(StatusCode::MISDIRECTED_REQUEST, body)
}

fn add_cors(parts: &HttpParts, origin: Option<HeaderValue>, response: &mut Response<HttpBody>) {
    let allowed = &parts.config.cors;
    let any = allowed.is_empty() || allowed.iter().any(|origin| origin == "*");
    let granted = match (any, origin) {
        (true, _) => HeaderValue::from_static("*"),
        (false, Some(origin)) if allowed.iter().any(|a| a.as_bytes() == origin.as_bytes()) => {
            origin
        }
        _ => return,
    };
    let fixed: [(HeaderName, &'static str); 2] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
    ];
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, granted);
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests;
