//! What the proxy serves over HTTP: `/health` and `/metrics` of a member, `/proxy/health` and
//! `/proxy/metrics` of its own.

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use http::{Response, StatusCode};
use prometheus::{Registry, TextEncoder};
use proto::etcdserverpb::RangeRequest;
use tokio::time::Instant;
use tonic::Code;

use crate::listen::{HttpBody, HttpHandler};

/// How long a member may take to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member may take for its metrics.
const METRICS_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pages are made of.
pub(super) struct Pages {
    pub(super) client: Client,
    /// How the members are reached, for what is no gRPC.
    pub(super) config: client::Config,
    pub(super) registry: Registry,
}

pub(super) fn handler(pages: Arc<Pages>) -> HttpHandler {
    Arc::new(move |request| {
        let pages = pages.clone();
        let path = request.uri().path().to_owned();
        Box::pin(async move { pages.answer(&path).await })
    })
}

impl Pages {
    async fn answer(&self, path: &str) -> Response<HttpBody> {
        match path {
            "/health" | "/proxy/health" => self.health().await,
            "/metrics" => self.metrics_of_a_member().await,
            "/proxy/metrics" => {
                match TextEncoder::new().encode_to_string(&self.registry.gather()) {
                    Ok(text) => page(StatusCode::OK, text),
                    Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            _ => page(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        }
    }

    /// Whether a key can be read. That it may not be read is an answer too.
    async fn health(&self) -> Response<HttpBody> {
        let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
        let client = self.client.until(Instant::now() + HEALTH_TIMEOUT);
        match client.range(request).await {
            Err(error) if error.code() != Some(Code::PermissionDenied) => {
                let reason = serde_json::Value::from(format!("GET ERROR:{error}"));
                let text = format!("{{\"health\":\"false\",\"reason\":{reason}}}");
                page(StatusCode::SERVICE_UNAVAILABLE, text)
            }
            _ => page(StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()),
        }
    }

    async fn metrics_of_a_member(&self) -> Response<HttpBody> {
        let endpoints = self.client.endpoints();
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

fn page(status: StatusCode, text: String) -> Response<HttpBody> {
    let mut response = Response::new(HttpBody::from(text));
    *response.status_mut() = status;
    response
}
