//! What the person in front of the terminal sees: one line per step with the time since the start,
//! a sign of life every 20 seconds during long steps, and on failure the end of the step's output.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
/// How much of the end of the output of what has failed is shown, and how much of each error in it.
const SHOWN_ON_FAILURE: usize = 60;
const SHOWN_OF_AN_ERROR: usize = 12;

pub(crate) struct Progress {
    started: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub(crate) fn say(&self, text: &str) {
        println!("[{:>7}] {text}", elapsed(self.started));
    }

    /// Says what is being done, does it, and says how long it took.
    pub(crate) fn working<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.working_with(what, &String::new, work)
    }

    /// The same with signs of life that say how far it is.
    pub(crate) fn working_with<T>(
        &self,
        what: &str,
        how_far: &(impl Fn() -> String + Sync),
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.with_signs_of_life(what, how_far, work).with_context(|| what.to_owned())
    }

    /// Runs a command with its output in a log file, and answers the output.
    pub(crate) fn running(&self, what: &str, log: &Path, command: &mut Command) -> Result<String> {
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let how_far = || last_line(log).unwrap_or_default();
        let status = self.with_signs_of_life(what, &how_far, || {
            command.status().with_context(|| format!("start {:?}", command.get_program()))
        })?;
        let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        if !status.success() {
            for line in telling_lines(&output) {
                println!("          | {line}");
            }
            bail!("{what}: {status}; all of its output is in {}", log.display());
        }
        Ok(output)
    }

    fn with_signs_of_life<T>(
        &self,
        what: &str,
        how_far: &(impl Fn() -> String + Sync),
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.say(&format!("{what} ..."));
        let began = Instant::now();
        let (done, waiting) = mpsc::channel::<()>();
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                while waiting.recv_timeout(SIGN_OF_LIFE) == Err(RecvTimeoutError::Timeout) {
                    self.say(&format!("  still: {what} ({}) {}", elapsed(began), how_far()));
                }
            });
            // Moved in, so that the teller ends also when the work panics.
            let _done = done;
            work()
        });
        if began.elapsed() > Duration::from_secs(2) && result.is_ok() {
            self.say(&format!("{what}: done in {}", elapsed(began)));
        }
        result
    }
}

/// What says why a command has failed: the end of its output, and before it what tests and programs
/// have written when they failed, which may stand far above.
pub(crate) fn telling_lines(output: &str) -> Vec<&str> {
    let lines: Vec<&str> = output.lines().collect();
    let end = lines.len().saturating_sub(SHOWN_ON_FAILURE);
    let mut shown = Vec::new();
    let mut open = 0;
    for line in &lines[..end] {
        if line.contains("Error: ") || line.contains(" panicked at ") || line.ends_with("FAILED") {
            open = SHOWN_OF_AN_ERROR;
        } else if open > 0 && is_about_another_test(line) {
            open = 0;
        }
        if open > 0 {
            shown.push(*line);
            open -= 1;
        }
    }
    shown.extend(&lines[end..]);
    shown
}

fn is_about_another_test(line: &str) -> bool {
    line.starts_with("test ") || line.starts_with("     Running ") || line.starts_with("---- ")
}

pub(crate) fn elapsed(since: Instant) -> String {
    let time = since.elapsed();
    if time.as_secs() < 60 {
        return format!("{:.1} s", time.as_secs_f32());
    }
    format!("{} m {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

pub(crate) fn last_line(log: &Path) -> Option<String> {
    let bytes = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(400)..]).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    Some(line.chars().take(100).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_stands_far_above_the_end_is_shown() {
        let passed = |from: usize| -> String {
            (from..from + 100).map(|number| format!("test test_{number} ... ok\n")).collect()
        };
        let failed =
            "test test_x ... Error: the answer is \"\"\n\nCaused by:\n    a reason\nFAILED\n";
        let output = format!("{}{failed}{}", passed(0), passed(100));
        let shown = telling_lines(&output);
        assert_eq!(shown[..5], failed.lines().collect::<Vec<_>>()[..]);
        assert_eq!(shown[5..], output.lines().collect::<Vec<_>>()[205 - SHOWN_ON_FAILURE..]);
    }
}
