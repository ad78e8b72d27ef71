//! Bounded waiting. Nothing in the harness waits without a limit, and a limit that is reached says
//! what was waited for and what stood in the way last.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The pause before it is asked again, at first.
const PAUSE: Duration = Duration::from_millis(50);
/// What it grows to: an answer is often that of a kubectl, whose start takes a twentieth of a second of a
/// processor, and several tests wait at a time.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Asks until the answer is `Ok`; an `Err` means "not yet" and carries the reason.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= deadline => {
                return Err(reason)
                    .with_context(|| format!("{what}: not within {} s", limit.as_secs()));
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 5 / 4).min(PAUSE_MAX);
    }
}
