//! A program that serves until it is told to end, or ends by itself: what it logs, and how it ended.
//!
//! For members of a cluster there is [`crate::processes`]; this is for what is started with another command
//! line, such as `etcd gateway start`. It ends when it is dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long it may take until it has logged what is waited for, or has ended.
const LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The running program.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    // A std mutex: held to add a line or to copy them.
    log: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Serving {
    /// Starts it without waiting for anything.
    pub fn launch(command: &mut Command) -> Result<Serving> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        let lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let kept = log.clone();
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = kept.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Ok(Serving { child, log, reader: Some(reader) })
    }

    /// Starts it and waits until it has logged these words.
    pub fn start(command: &mut Command, words: &str) -> Result<Serving> {
        let serving = Serving::launch(command)?;
        serving.wait_for_log(words).with_context(|| format!("{command:?}"))?;
        Ok(serving)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has logged these words.
    pub fn wait_for_log(&self, words: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            // Asked before the log is: what was logged before the end is in it then.
            let is_at_end = self.reader.as_ref().is_none_or(thread::JoinHandle::is_finished);
            let log = self.log();
            if log.contains(words) {
                return Ok(());
            }
            if is_at_end || Instant::now() > deadline {
                bail!("{words:?} was not logged:\n{log}");
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until it has ended by itself, and answers how.
    pub fn wait_until_ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().context("look at the program")? {
                if let Some(reader) = self.reader.take() {
                    // It does not panic, and there is nothing more to read.
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("it runs although it should have ended:\n{}", self.log());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A failure means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
