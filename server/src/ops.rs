//! What operators look at: health, versions, metrics, logs, readiness.

pub mod calls;
pub mod health;
pub mod http;
mod log_file;
pub mod logging;
pub mod measured_disk;
pub mod memory;
pub mod metrics;
pub mod notify;
pub mod observed;
pub(crate) mod profile;
mod scrapes;
pub mod signals;
pub(crate) mod spans;

/// Registers `process_*`: memory, CPU time and file descriptors of the process.
///
/// # Errors
/// When a name is taken in `registry`.
pub fn register_process(registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
}
