//! Prints answers in the format that was asked for.
//!
//! In: an [`Answer`], the typed response of one call with what the printers need besides. Out: bytes
//! on standard output. Which format supports which answer is Go etcdctl's choice: `table` only lists
//! members and endpoints, `fields` and `protobuf` leave some out, which is exit code 4.

pub(crate) mod auth;
mod fields;
pub(crate) mod json;
mod json_messages;
mod protobuf;
mod simple;
mod table;

use std::io::Write as _;
use std::time::Duration;

pub(crate) use cobra::write;
use cobra::{Exit, Outcome, exit};
use proto::etcdserverpb::*;

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Simple,
    Fields,
    Json,
    Protobuf,
    Table,
}

impl Format {
    /// Reads a format's name.
    pub(crate) fn parse(name: &str) -> Option<Format> {
        Some(match name {
            "simple" => Format::Simple,
            "fields" => Format::Fields,
            "json" => Format::Json,
            "protobuf" => Format::Protobuf,
            "table" => Format::Table,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Format::Simple => "simple",
            Format::Fields => "fields",
            Format::Json => "json",
            Format::Protobuf => "protobuf",
            Format::Table => "table",
        }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    /// `--hex`
    pub(crate) hex: bool,
    /// `get --print-value-only`
    pub(crate) value_only: bool,
}

/// What to print.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer<'a> {
    Get(&'a RangeResponse),
    Put(&'a PutResponse),
    Delete(&'a DeleteRangeResponse),
    Txn(&'a TxnResponse),
    Watch(&'a WatchResponse),
    LeaseGrant(&'a LeaseGrantResponse),
    LeaseRevoke(i64, &'a LeaseRevokeResponse),
    LeaseKeepAlive(&'a LeaseKeepAliveResponse),
    /// With whether the keys were asked for.
    LeaseTimeToLive(&'a LeaseTimeToLiveResponse, bool),
    Leases(&'a LeaseLeasesResponse),
    MemberAdd(&'a MemberAddResponse),
    MemberRemove(u64, &'a MemberRemoveResponse),
    MemberUpdate(u64, &'a MemberUpdateResponse),
    MemberPromote(u64, &'a MemberPromoteResponse),
    MemberList(&'a MemberListResponse),
    Health(&'a [Health]),
    Status(&'a [(String, StatusResponse)]),
    HashKv(&'a [(String, HashKvResponse)]),
    MoveLeader(u64, u64, &'a MoveLeaderResponse),
    Alarm(&'a AlarmResponse),
    Auth(auth::AuthAnswer<'a>),
}

/// How an endpoint is.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) endpoint: String,
    pub(crate) healthy: bool,
    /// How long the answer took; nothing if it was never asked.
    pub(crate) took: Option<Duration>,
    /// Why it is unhealthy; empty if it is healthy.
    pub(crate) error: String,
}

impl Printer {
    /// Prints an answer.
    pub(crate) fn print(&self, answer: Answer<'_>) -> Outcome {
        let mut errors = Vec::new();
        let bytes = match self.format {
            _ if let Answer::Auth(answer) = answer => auth::render(self.format, self.hex, answer),
            Format::Simple => Some(simple::render(self, answer, &mut errors)),
            Format::Fields => fields::render(self.hex, answer),
            Format::Json => Some(json_messages::render(self.hex, answer)),
            Format::Protobuf => protobuf::render(answer)?,
            Format::Table => table::render(answer),
        };
        let Some(bytes) = bytes else {
            let message = format!("{} not supported as output format", self.format.name());
            return Err(Exit::with(exit::BAD_FEATURE, message));
        };
        // There is nowhere left to tell that standard error cannot be written.
        let _ = std::io::stderr().write_all(&errors);
        write(&bytes)
    }
}
