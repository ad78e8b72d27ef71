//! What the proxy serves over HTTP: `/health` and `/metrics` of a member, `/proxy/health` and
//! `/proxy/metrics` of its own.

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use http::{Response, StatusCode};
use prometheus::{Registry, TextEncoder};
use proto::etcdserverpb::{RangeRequest, WatchCreateRequest};
use tokio::time::Instant;
use tonic::Code;

use crate::listen::{HttpBody, HttpHandler};
use crate::ops::profile;

/// How long a member may take to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a watch through the proxy may take to be created.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a member may take for its metrics.
const METRICS_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pages are made of.
pub(super) struct Pages {
    pub(super) client: Client,
    /// The proxy as its clients reach it; nothing if it does not say how.
    pub(super) itself: Option<Client>,
    /// How the members are reached, for what is no gRPC.
    pub(super) config: client::Config,
    pub(super) registry: Registry,
    /// Whether `/debug/pprof/` is answered.
    pub(super) profiling: bool,
}

/// A client of the proxy itself.
pub(super) async fn itself(
    config: &Option<client::Config>,
) -> Result<Option<Client>, client::Error> {
    match config {
        Some(config) => Client::connect(config.clone()).await.map(Some),
        None => Ok(None),
    }
}

pub(super) fn handler(pages: Arc<Pages>) -> HttpHandler {
    Arc::new(move |request| {
        let pages = pages.clone();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        Box::pin(async move { pages.answer(&path, &query).await })
    })
}

impl Pages {
    async fn answer(&self, path: &str, query: &str) -> Response<HttpBody> {
        match path {
            "/health" => told(health(&self.client).await),
            "/proxy/health" => told(self.own_health().await),
            "/metrics" => self.metrics_of_a_member().await,
            "/proxy/metrics" => {
                match TextEncoder::new().encode_to_string(&self.registry.gather()) {
                    Ok(text) => page(StatusCode::OK, text),
                    Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            _ => match path.strip_prefix(profile::PREFIX).filter(|_| self.profiling) {
                Some(name) => profile::answer(name, query).await.map(HttpBody::Full),
                None => page(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
            },
        }
    }

    /// Whether a key can be read and watched as clients do.
    async fn own_health(&self) -> Result<(), String> {
        let Some(itself) = &self.itself else { return Err("no connection to proxy".to_owned()) };
        health(itself).await?;
        let watch = WatchCreateRequest { key: "a".into(), ..WatchCreateRequest::default() };
        let mut watch = itself.watch(watch);
        let created = watch.progress_requester();
        match tokio::time::timeout(WATCH_TIMEOUT, created).await {
            Ok(_) => Ok(()),
            Err(_) => Err("WATCH TIMEOUT".to_owned()),
        }
    }

    async fn metrics_of_a_member(&self) -> Response<HttpBody> {
        let endpoints = self.client.current_endpoints();
        let first = rand::random_range(0..endpoints.len());
        let mut last = String::new();
        for number in 0..endpoints.len() {
            let endpoint = &endpoints[(first + number) % endpoints.len()];
            let asked = client::http_get(&self.config, endpoint, "/metrics");
            match tokio::time::timeout(METRICS_TIMEOUT, asked).await {
                Ok(Ok(text)) => return page(StatusCode::OK, text),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("fetch from {endpoint}: i/o timeout"),
            }
        }
        page(StatusCode::SERVICE_UNAVAILABLE, format!("{last}\n"))
    }
}

/// Whether a key can be read. That it may not be read is an answer too.
async fn health(client: &Client) -> Result<(), String> {
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    match client.until(Instant::now() + HEALTH_TIMEOUT).range(request).await {
        Err(error) if error.code() != Some(Code::PermissionDenied) => {
            Err(format!("GET ERROR:{error}"))
        }
        _ => Ok(()),
    }
}

fn told(health: Result<(), String>) -> Response<HttpBody> {
    match health {
        Ok(()) => page(StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()),
        Err(reason) => {
            let reason = serde_json::Value::from(reason);
            let text = format!("{{\"health\":\"false\",\"reason\":{reason}}}\n");
            page(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

fn page(status: StatusCode, text: String) -> Response<HttpBody> {
    let mut response = Response::new(HttpBody::from(text));
    *response.status_mut() = status;
    response
}
