//! How often the metrics were read, under the names of Go's handler of them.

use http::Response;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counts those who read the metrics.
#[derive(Clone)]
pub(super) struct ScrapeMetrics {
    in_flight: IntGauge,
    total: IntCounterVec,
}

impl ScrapeMetrics {
    /// # Errors
    /// When a name is taken in `registry`.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let in_flight = IntGauge::new(
            "promhttp_metric_handler_requests_in_flight",
            "Scrapes of the metrics that are being answered.",
        )?;
        let total = IntCounterVec::new(
            Opts::new(
                "promhttp_metric_handler_requests_total",
                "Scrapes of the metrics by HTTP status.",
            ),
            &["code"],
        )?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(total.clone()))?;
        for code in ["200", "500", "503"] {
            total.with_label_values(&[code]);
        }
        Ok(Self { in_flight, total })
    }

    /// Serves somebody who reads them. The one under way is in flight in what it reads.
    pub(super) fn count<T>(&self, answer: impl FnOnce() -> Response<T>) -> Response<T> {
        self.in_flight.inc();
        let answer = answer();
        self.in_flight.dec();
        self.total.with_label_values(&[answer.status().as_str()]).inc();
        answer
    }
}
