//! What operators look at: health, versions, metrics, logs, readiness.

pub mod calls;
