//! The memory of a failed write or sync; see the crate documentation for why it never heals.

use std::io;
use std::sync::OnceLock;

/// The first fatal error of a file, given back to every later write and sync.
#[derive(Default)]
pub(crate) struct Poison {
    cause: OnceLock<Cause>,
}

/// What can be kept of an [`io::Error`], which is not `Clone`.
struct Cause {
    kind: io::ErrorKind,
    os_code: Option<i32>,
    message: String,
}

impl Poison {
    /// Refuses when the file is poisoned.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.cause.get() {
            None => Ok(()),
            Some(cause) => Err(cause.error()),
        }
    }

    /// Passes a write's result through; any error but "no space" poisons.
    pub(crate) fn after_write<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && !crate::is_no_space(error)
        {
            self.remember(error);
        }
        result
    }

    /// Passes a sync's result through; any error poisons, "no space" too: delayed allocation means
    /// that bytes accepted earlier are gone.
    pub(crate) fn after_sync(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.remember(error);
        }
        result
    }

    fn remember(&self, error: &io::Error) {
        // Only the first cause is kept: later errors are its consequences.
        let _ = self.cause.set(Cause {
            kind: error.kind(),
            os_code: error.raw_os_error(),
            message: error.to_string(),
        });
    }
}

impl Cause {
    fn error(&self) -> io::Error {
        match self.os_code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.message.clone()),
        }
    }
}
