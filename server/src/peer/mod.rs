//! Member-to-member transport: the peer protocol over gRPC.
//!
//! `outbound` implements the replica's `Peers`; `inbound` serves the same protocol. Neither decides
//! anything: requests are checked and answered by `replica::Inbound`.

pub(crate) mod inbound;
pub(crate) mod meters;
pub(crate) mod outbound;

use std::time::Duration;

use crate::listen::ConnectionSettings;

/// How often either end probes a connection between members, and how long the probe's answer may take.
/// A member that was frozen or lost its power says nothing of it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a member serves the others with; the flags of the same names are about clients.
pub(crate) fn connection_settings() -> ConnectionSettings {
    ConnectionSettings {
        streams_max: u32::MAX,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_timeout: Some(KEEPALIVE_TIMEOUT),
        // Members are not judged by their pings.
        keepalive_min_time: Duration::ZERO,
    }
}

/// A refusal (wrong cluster, wrong member, incompatible protocol) travels as this code, so that the sender
/// can tell it from a broken connection.
const REFUSED: tonic::Code = tonic::Code::FailedPrecondition;
/// What a removed member is told, and then ends itself (etcd: HTTP 410). An older peer takes it for no
/// answer.
const EXPELLED: tonic::Code = tonic::Code::PermissionDenied;
