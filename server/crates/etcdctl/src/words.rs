//! Words of command lines and of lines of input.
//!
//! Keys, values and names of files are bytes that need not be UTF-8, so a word is kept as it was given.
//! Only what the protocol sends as text has to be one.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bytes::Bytes;

use crate::exit::{self, Exit, Outcome};

/// One word.
pub(crate) type Word = Bytes;

/// Go's gRPC library says this of a message whose text is none.
const NO_TEXT: &str = "rpc error: code = Internal desc = grpc: error while marshaling: string field \
                       contains invalid UTF-8";

/// A word that is sent as text.
pub(crate) fn text(word: &[u8]) -> Outcome<String> {
    match str::from_utf8(word) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Exit::with(exit::ERROR, NO_TEXT)),
    }
}

/// A word as it can be shown in a message, or compared with what is text anyway.
pub(crate) fn shown(word: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(word)
}

/// A word for the operating system.
pub(crate) fn os(word: &[u8]) -> &OsStr {
    OsStr::from_bytes(word)
}

/// A word that names a file.
pub(crate) fn path(word: &[u8]) -> PathBuf {
    PathBuf::from(os(word))
}
