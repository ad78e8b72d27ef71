//! Distributed tracing: where spans of calls go, and of how many calls there are any.

use super::values::Values;
use super::{ConfigError, refuse};

/// The sampling rate at which every call is traced whose caller has not decided.
pub const SAMPLING_RATE_MAX: u32 = 1_000_000;

/// What `--enable-distributed-tracing` and its kin say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingConfig {
    /// Host and port of an OpenTelemetry collector.
    pub collector: String,
    pub service_name: String,
    /// Empty for none.
    pub instance_id: String,
    /// Calls per million.
    pub sampling_rate: u32,
}

/// None unless it is enabled; then the other flags are not looked at, as in etcd.
pub(super) fn tracing_of(values: &Values<'_>) -> Result<Option<TracingConfig>, ConfigError> {
    if !values.boolean("enable-distributed-tracing")? {
        return Ok(None);
    }
    let rate = values.signed("distributed-tracing-sampling-rate")?;
    // The text is etcd's, with its spelling, because people search for it.
    let wrong = |why: &str| {
        refuse(format!(
            "distributed tracing configurition is not valid: (tracing sampling rate {why})"
        ))
    };
    let sampling_rate = match u32::try_from(rate) {
        Ok(rate) if rate <= SAMPLING_RATE_MAX => rate,
        _ if rate < 0 => return wrong("must be positive"),
        _ => return wrong(&format!("must be less than {SAMPLING_RATE_MAX}")),
    };
    Ok(Some(TracingConfig {
        collector: values.text("distributed-tracing-address"),
        service_name: values.text("distributed-tracing-service-name"),
        instance_id: values.text("distributed-tracing-instance-id"),
        sampling_rate,
    }))
}
