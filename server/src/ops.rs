//! What operators look at: health, versions, metrics, logs, readiness.

pub mod calls;
pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod signals;
