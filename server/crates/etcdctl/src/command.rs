//! What a command of this program is.

use std::pin::Pin;

pub(crate) use cobra::Invocation;
use cobra::Outcome;

/// What a command does.
pub(crate) type Run = fn(Invocation) -> Pin<Box<dyn Future<Output = Outcome>>>;

pub(crate) type Command = cobra::Command<Run>;

/// The headings of the help.
pub(crate) struct Group;

impl Group {
    pub(crate) const KEY_VALUE: &str = "Key-value commands";
    pub(crate) const MAINTENANCE: &str = "Cluster maintenance commands";
    pub(crate) const CONCURRENCY: &str = "Concurrency commands";
    pub(crate) const AUTHENTICATION: &str = "Authentication commands";
    pub(crate) const UTILITY: &str = "Utility commands";

    /// In their order.
    pub(crate) const ALL: &[&str] = &[
        Self::KEY_VALUE,
        Self::MAINTENANCE,
        Self::CONCURRENCY,
        Self::AUTHENTICATION,
        Self::UTILITY,
    ];
}
