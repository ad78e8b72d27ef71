//! How a run ends: etcdctl's exit codes (pkg/cobrautl/error.go).

use std::fmt::Display;

/// Anything else.
pub(crate) const ERROR: u8 = 1;
/// No connection, or no token for it.
pub(crate) const BAD_CONNECTION: u8 = 2;
/// Bad input of `txn` or `watch`.
pub(crate) const INVALID_INPUT: u8 = 3;
/// A flag with a value that is not supported.
pub(crate) const BAD_FEATURE: u8 = 4;
/// A long command was ended from outside.
pub(crate) const INTERRUPTED: u8 = 5;
/// Output could not be written.
pub(crate) const IO: u8 = 6;
/// Nobody reads the output any more: what a shell says of a program that SIGPIPE has ended.
pub(crate) const NOBODY_READS: u8 = 141;
/// Bad arguments.
pub(crate) const BAD_ARGUMENTS: u8 = 128;

/// The end of a run that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code.
    pub(crate) code: u8,
    /// What follows `Error: ` on standard error; nothing if all has been said.
    pub(crate) message: Option<String>,
}

/// What a command ends with.
pub(crate) type Outcome<T = ()> = Result<T, Exit>;

impl Exit {
    /// Ends with a message.
    pub(crate) fn with(code: u8, message: impl Display) -> Exit {
        Exit { code, message: Some(message.to_string()) }
    }

    /// Ends with a code only.
    pub(crate) fn silent(code: u8) -> Exit {
        Exit { code, message: None }
    }

    /// Ends because of bad arguments.
    pub(crate) fn bad_arguments(message: impl Display) -> Exit {
        Exit::with(BAD_ARGUMENTS, message)
    }
}

/// A failed call ends the run with code 1 unless a command says otherwise.
impl From<client::Error> for Exit {
    fn from(error: client::Error) -> Exit {
        Exit::with(ERROR, error)
    }
}
