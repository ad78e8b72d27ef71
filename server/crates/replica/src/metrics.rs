//! What this room measures, under etcd's names.

use prometheus::{Gauge, Histogram, HistogramOpts, Registry, exponential_buckets};

/// How the log reaches the disk.
#[derive(Clone)]
pub struct LogMetrics {
    /// fdatasync of the log, in seconds.
    pub fsync_duration: Histogram,
    /// Appending to the log before the flush, in seconds.
    pub write_duration: Histogram,
    /// Bytes appended.
    pub bytes: Gauge,
}

impl LogMetrics {
    /// Registers the log's metrics.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = |name: &str, help: &str| {
            let buckets = exponential_buckets(0.001, 2.0, 14)?;
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        let metrics = Self {
            fsync_duration: seconds(
                "etcd_disk_wal_fsync_duration_seconds",
                "How long a flush of the write-ahead log to the device takes.",
            )?,
            write_duration: seconds(
                "etcd_disk_wal_write_duration_seconds",
                "How long appending a batch to the write-ahead log takes, without its flush.",
            )?,
            bytes: Gauge::new(
                "etcd_disk_wal_write_bytes_total",
                "Bytes appended to the write-ahead log.",
            )?,
        };
        registry.register(Box::new(metrics.fsync_duration.clone()))?;
        registry.register(Box::new(metrics.write_duration.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        Ok(metrics)
    }
}
