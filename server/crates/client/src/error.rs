//! What a call can fail with.
//!
//! The text of an error is part of `etcdctl`'s interface, so it is clientv3's: an error of etcd is
//! its bare description, any other gRPC error has grpc-go's `rpc error: code = .. desc = ..`.

use std::path::PathBuf;

use tonic::{Code, Status};

/// An error of the client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to connect to.
    #[error("etcdclient: no available endpoints")]
    NoEndpoints,
    /// An endpoint cannot be parsed.
    #[error("invalid endpoint {endpoint:?}: {reason}")]
    InvalidEndpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the TLS settings cannot be read.
    #[error("open {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
    },
    /// The TLS settings do not fit together.
    #[error("{0}")]
    Tls(String),
    /// The limits for messages do not fit together.
    #[error(
        "gRPC message recv limit ({receive} bytes) must be greater than send limit ({send} bytes)"
    )]
    MessageLimits {
        /// Largest request.
        send: usize,
        /// Largest response.
        receive: usize,
    },
    /// A page could not be fetched.
    #[error("fetch from {endpoint}: {reason}")]
    Http {
        /// The server.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
    /// Servers could not be found by DNS.
    #[error("{0}")]
    Discovery(String),
    /// The deadline of the call passed.
    #[error("context deadline exceeded")]
    DeadlineExceeded,
    /// A call was answered with an error, or the connection was lost.
    #[error("{}", describe(*code, message))]
    Rpc {
        /// The gRPC code.
        code: Code,
        /// The description; for an error of etcd it begins with `etcdserver: `.
        message: String,
    },
}

impl Error {
    /// The gRPC code, as far as there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Rpc { code, .. } => Some(*code),
            Error::DeadlineExceeded => Some(Code::DeadlineExceeded),
            _ => None,
        }
    }

    /// The error as grpc-go prints it where Go's client does not take etcd's words out of it.
    pub fn in_words_of_grpc(&self) -> String {
        match self {
            Error::Rpc { code, message } => grpc_text(*code, message),
            other => other.to_string(),
        }
    }

    /// The description of an error of etcd or of gRPC; empty for others.
    pub fn message(&self) -> &str {
        match self {
            Error::Rpc { message, .. } => message,
            _ => "",
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Error {
        Error::Rpc { code: status.code(), message: status.message().to_owned() }
    }
}

fn describe(code: Code, message: &str) -> String {
    if message.starts_with("etcdserver: ") { message.to_owned() } else { grpc_text(code, message) }
}

/// An error as grpc-go prints it.
pub(crate) fn grpc_text(code: Code, message: &str) -> String {
    format!("rpc error: code = {} desc = {message}", code_name(code))
}

/// The name of a code in grpc-go.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// The reason of an I/O error as Go prints it: its first letter is small, and it has no number.
pub fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = reason.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_print_as_clientv3_prints_them() {
        let etcd = Error::from(Status::not_found("etcdserver: requested lease not found"));
        assert_eq!(etcd.to_string(), "etcdserver: requested lease not found");
        let other = Error::from(Status::unimplemented("unknown service x"));
        assert_eq!(other.to_string(), "rpc error: code = Unimplemented desc = unknown service x");
    }
}
