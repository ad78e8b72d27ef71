//! Words of command lines that become parts of requests.

pub(crate) use cobra::words::{Word, os, path, shown};
use cobra::{Exit, Outcome, exit};

/// Go's gRPC library says this of a message whose text is none.
const NO_TEXT: &str = "rpc error: code = Internal desc = grpc: error while marshaling: string field \
                       contains invalid UTF-8";

/// A word that the protocol sends as text, and not as the bytes that it is.
pub(crate) fn text(word: &[u8]) -> Outcome<String> {
    match str::from_utf8(word) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Exit::with(exit::ERROR, NO_TEXT)),
    }
}
