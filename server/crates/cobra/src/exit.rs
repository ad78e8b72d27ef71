//! How a run ends: the exit codes of etcd's tools (pkg/cobrautl/error.go).

use std::fmt::Display;

/// Anything else.
pub const ERROR: u8 = 1;
/// No connection, or no token for it.
pub const BAD_CONNECTION: u8 = 2;
/// Bad input of `txn` or `watch`.
pub const INVALID_INPUT: u8 = 3;
/// A flag with a value that is not supported.
pub const BAD_FEATURE: u8 = 4;
/// A long command was ended from outside.
pub const INTERRUPTED: u8 = 5;
/// Output could not be written.
pub const IO: u8 = 6;
/// Nobody reads the output any more: what a shell says of a program that SIGPIPE has ended.
pub const NOBODY_READS: u8 = 141;
/// Bad arguments.
pub const BAD_ARGUMENTS: u8 = 128;

/// The end of a run that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// What follows `Error: ` on standard error; nothing if all has been said.
    pub message: Option<String>,
}

/// What a command ends with.
pub type Outcome<T = ()> = Result<T, Exit>;

impl Exit {
    /// Ends with a message.
    pub fn with(code: u8, message: impl Display) -> Exit {
        Exit { code, message: Some(message.to_string()) }
    }

    /// Ends with a code only.
    pub fn silent(code: u8) -> Exit {
        Exit { code, message: None }
    }

    /// Ends because of bad arguments.
    pub fn bad_arguments(message: impl Display) -> Exit {
        Exit::with(BAD_ARGUMENTS, message)
    }
}

/// An error ends the run with code 1 unless a command says otherwise.
impl<E: std::error::Error> From<E> for Exit {
    fn from(error: E) -> Exit {
        Exit::with(ERROR, error)
    }
}
