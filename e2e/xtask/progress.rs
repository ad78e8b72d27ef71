//! What the person in front of the terminal sees: one line per step with the time since the start,
//! a sign of life every 20 seconds during long steps, and on failure the end of the step's output.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
const SHOWN_ON_FAILURE: usize = 60;

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
        self.with_signs_of_life(what, None, work).with_context(|| what.to_owned())
    }

    /// Runs a command with its output in a log file, and answers the output.
    pub(crate) fn running(&self, what: &str, log: &Path, command: &mut Command) -> Result<String> {
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = self.with_signs_of_life(what, Some(log.to_owned()), || {
            command.status().with_context(|| format!("start {:?}", command.get_program()))
        })?;
        let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        if !status.success() {
            let lines: Vec<&str> = output.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_ON_FAILURE)..] {
                println!("          | {line}");
            }
            bail!("{what}: {status}; all of its output is in {}", log.display());
        }
        Ok(output)
    }

    fn with_signs_of_life<T>(
        &self,
        what: &str,
        log: Option<PathBuf>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.say(&format!("{what} ..."));
        let (done, waiting) = mpsc::channel::<()>();
        let (began, origin, name) = (Instant::now(), self.started, what.to_owned());
        let teller = thread::spawn(move || {
            while waiting.recv_timeout(SIGN_OF_LIFE) == Err(RecvTimeoutError::Timeout) {
                let last = log.as_deref().and_then(last_line).unwrap_or_default();
                println!("[{:>7}]   still: {name} ({}) {last}", elapsed(origin), elapsed(began));
            }
        });
        let result = work();
        drop(done);
        teller.join().expect("the teller does not panic");
        if began.elapsed() > Duration::from_secs(2) && result.is_ok() {
            self.say(&format!("{what}: done in {}", elapsed(began)));
        }
        result
    }
}

fn elapsed(since: Instant) -> String {
    let time = since.elapsed();
    if time.as_secs() < 60 {
        return format!("{:.1} s", time.as_secs_f32());
    }
    format!("{} m {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn last_line(log: &Path) -> Option<String> {
    let bytes = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(400)..]).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?.trim();
    Some(line.chars().take(100).collect())
}
