//! Member-to-member transport: the peer protocol over gRPC.
//!
//! `outbound` implements the replica's `Peers`; `inbound` serves the same protocol. Neither decides
//! anything: requests are checked and answered by `replica::Inbound`.

pub(crate) mod inbound;
pub(crate) mod meters;
pub(crate) mod outbound;

/// A refusal (wrong cluster, wrong member, removed member) travels as this code, so that the sender
/// can tell it from a broken connection.
const REFUSED: tonic::Code = tonic::Code::FailedPrecondition;
