//! The gRPC API: ours beside Go etcd's. The same calls go to a fresh server of each kind, and every
//! answer, message by message and status by status, has to be the same.
//!
//! `etcdctl` asks for what people ask for (`e2e/scenarios`); this asks for everything else that the
//! wire can say: options that contradict each other, values beyond every limit, methods in states in
//! which they are refused.

#[path = "differential_auth/codec.rs"]
mod codec;
#[path = "differential_calls/errors.rs"]
mod errors;
#[path = "differential_calls/extremes.rs"]
mod extremes;
#[path = "differential_calls/flags.rs"]
mod flags;
#[path = "differential_calls/logs.rs"]
mod logs;
#[path = "differential_calls/metrics.rs"]
mod metrics;
#[path = "differential_calls/metrics_of_three.rs"]
mod metrics_of_three;
#[path = "differential_calls/random.rs"]
mod random;
#[path = "differential_calls/ranges.rs"]
mod ranges;
#[path = "differential_calls/refusals.rs"]
mod refusals;
#[path = "differential_calls/shown.rs"]
mod shown;
#[path = "differential_calls/talk.rs"]
mod talk;
#[path = "differential_calls/troubled.rs"]
mod troubled;
#[path = "differential_calls/users.rs"]
mod users;
#[path = "differential_calls/watches.rs"]
mod watches;
