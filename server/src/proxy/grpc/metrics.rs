//! The proxy's own metrics, under the names that etcd's has.

use prometheus::{Counter, Gauge, Registry};

/// What the proxy saved the members.
#[derive(Clone, Debug)]
pub(super) struct ProxyMetrics {
    pub(super) cache_hits: Gauge,
    pub(super) cache_misses: Gauge,
    pub(super) cache_keys: Gauge,
    pub(super) events_coalescing: Counter,
    pub(super) watchers_coalescing: Gauge,
}

impl ProxyMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(format!("etcd_grpc_proxy_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let name = "etcd_grpc_proxy_events_coalescing_total";
        let events = Counter::new(name, "Events that several watchers got from one watch.")?;
        registry.register(Box::new(events.clone()))?;
        Ok(Self {
            cache_hits: gauge("cache_hits_total", "Ranges that were answered from memory.")?,
            cache_misses: gauge("cache_misses_total", "Serializable ranges that were not.")?,
            cache_keys: gauge("cache_keys_total", "Ranges that are remembered.")?,
            events_coalescing: events,
            watchers_coalescing: gauge(
                "watchers_coalescing_total",
                "Watchers that share the watch of another.",
            )?,
        })
    }
}
