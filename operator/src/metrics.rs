//! Metrics of the operator and of the clusters it looks after, and the HTTP endpoint with them:
//! `/metrics`, `/healthz` and `/readyz`.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::net::TcpListener;

use crate::crd::EtcdClusterStatus;

const CLUSTER: [&str; 2] = ["namespace", "cluster"];

/// All metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    pub pass_seconds: Histogram,
    pub actions: IntCounterVec,
    pub failures: IntCounterVec,
    blocked: IntGaugeVec,
    fault_tolerance: IntGaugeVec,
    quorum_healthy: IntGaugeVec,
    spec_applied: IntGaugeVec,
    backup_timestamp: IntGaugeVec,
}

impl Metrics {
    /// # Errors
    /// A name is not valid or comes twice, which is a mistake in this file.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let gauge =
            |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
                let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(gauge.clone()))?;
                Ok(gauge)
            };
        let counter =
            |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
                let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(counter.clone()))?;
                Ok(counter)
            };
        let pass_seconds = Histogram::with_opts(HistogramOpts::new(
            "etcd_operator_reconcile_seconds",
            "How long a pass over a cluster takes.",
        ))?;
        registry.register(Box::new(pass_seconds.clone()))?;
        Ok(Metrics {
            actions: counter(
                "etcd_operator_action_total",
                "Actions by kind and result.",
                &["kind", "result"],
            )?,
            failures: counter(
                "etcd_operator_reconcile_failures_total",
                "Passes that failed.",
                &["kind"],
            )?,
            blocked: gauge(
                "etcd_operator_blocked",
                "1 while something should happen and a rule holds it back.",
                &CLUSTER,
            )?,
            fault_tolerance: gauge(
                "etcd_operator_cluster_fault_tolerance",
                "Healthy voters minus quorum.",
                &CLUSTER,
            )?,
            quorum_healthy: gauge(
                "etcd_operator_cluster_quorum_healthy",
                "1 while a quorum answers.",
                &CLUSTER,
            )?,
            spec_applied: gauge(
                "etcd_operator_cluster_spec_applied",
                "1 while every field is in effect.",
                &CLUSTER,
            )?,
            backup_timestamp: gauge(
                "etcd_operator_cluster_last_backup_timestamp_seconds",
                "When the newest successful backup was completed.",
                &CLUSTER,
            )?,
            pass_seconds,
            registry,
        })
    }

    /// Sets the gauges of one cluster.
    pub fn cluster(&self, namespace: &str, cluster: &str, status: &EtcdClusterStatus) {
        let labels = [namespace, cluster];
        let holds = |kind: &str| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
            i64::from(condition.is_some_and(|condition| condition.status == "True"))
        };
        self.fault_tolerance.with_label_values(&labels).set(i64::from(status.fault_tolerance));
        self.quorum_healthy.with_label_values(&labels).set(holds("QuorumHealthy"));
        self.spec_applied.with_label_values(&labels).set(holds("SpecApplied"));
        self.blocked.with_label_values(&labels).set(i64::from(!status.blocked_by.is_empty()));
        match &status.backup {
            Some(backup) => {
                let completed = backup.last_successful_time.0.as_second();
                self.backup_timestamp.with_label_values(&labels).set(completed);
            }
            // The last one was deleted, or there never was one.
            None => {
                let _ = self.backup_timestamp.remove_label_values(&labels);
            }
        }
    }

    /// A cluster that is gone is none that has no quorum or no new backups.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        for gauge in [
            &self.fault_tolerance,
            &self.quorum_healthy,
            &self.spec_applied,
            &self.blocked,
            &self.backup_timestamp,
        ] {
            // It may never have been set.
            let _ = gauge.remove_label_values(&[namespace, cluster]);
        }
    }

    pub(crate) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics were not encoded");
        }
        text
    }
}

/// Serves the endpoint until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> Result<(), std::io::Error> {
    let listener = listen(address).await?;
    let metrics = Arc::new(metrics);
    loop {
        let (stream, _) = listener.accept().await?;
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &metrics);
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            {
                tracing::debug!(%error, "metrics connection");
            }
        });
    }
}

/// The unspecified address means both families: a Pod may have an address of IPv6 only.
async fn listen(address: SocketAddr) -> Result<TcpListener, std::io::Error> {
    if address.ip().is_unspecified() {
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, address.port())).await {
            // The machine has no IPv6, or the port is taken, which the next attempt tells as well.
            Err(_) if address.is_ipv4() => {}
            bound => return bound,
        }
    }
    TcpListener::bind(address).await
}

fn answer(path: &str, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => (StatusCode::OK, metrics.text()),
        "/healthz" | "/readyz" => (StatusCode::OK, b"ok\n".to_vec()),
        _ => (StatusCode::NOT_FOUND, b"not found\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use tokio::net::TcpStream;

    use super::*;
    use crate::crd::ClusterBackupStatus;

    #[tokio::test]
    async fn the_unspecified_address_is_that_of_both_families() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(address.parse().unwrap()).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // Only where the machine has IPv6.
            if TcpListener::bind("[::1]:0").await.is_ok() {
                TcpStream::connect(("::1", port)).await.unwrap();
            }
        }
    }

    #[test]
    fn a_cluster_shows_in_the_metrics_text_until_it_is_gone() {
        let metrics = Metrics::new().unwrap();
        let backup = ClusterBackupStatus {
            last_successful: "b".to_owned(),
            last_successful_time: Time(Timestamp::UNIX_EPOCH),
            last_revision: None,
        };
        let backup = Some(backup);
        let status = EtcdClusterStatus { fault_tolerance: 1, backup, ..Default::default() };
        metrics.cluster("ns", "main", &status);
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(
            text.contains(
                r#"etcd_operator_cluster_fault_tolerance{cluster="main",namespace="ns"} 1"#
            ),
            "{text}"
        );
        assert!(text.contains("last_backup_timestamp_seconds{"), "{text}");
        metrics.cluster("ns", "main", &EtcdClusterStatus { backup: None, ..status });
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(!text.contains("last_backup_timestamp_seconds{"), "{text}");
        metrics.forget("ns", "main");
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(!text.contains("cluster=\"main\""), "{text}");
    }
}
