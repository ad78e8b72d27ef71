//! Words of command lines and of lines of input.
//!
//! Keys, values and names of files are bytes that need not be UTF-8, so a word is kept as it was given.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bytes::Bytes;

/// One word.
pub type Word = Bytes;

/// A word as it can be shown in a message, or compared with what is text anyway.
pub fn shown(word: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(word)
}

/// A word for the operating system.
pub fn os(word: &[u8]) -> &OsStr {
    OsStr::from_bytes(word)
}

/// A word that names a file.
pub fn path(word: &[u8]) -> PathBuf {
    PathBuf::from(os(word))
}
