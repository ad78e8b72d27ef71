//! The signals that end the server.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Returns the name of the first SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn terminated() -> io::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => Ok("interrupt"),
        _ = terminate.recv() => Ok("terminated"),
    }
}
