//! Running another program to its end: with a time limit, with its output captured, and with an
//! error that shows the command line and what the program said.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(4);

/// A command line with its limit.
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Vec<u8>,
    limit: Duration,
}

impl Program {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Vec::new(),
            limit: DEFAULT_LIMIT,
        }
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|one| one.as_ref().to_owned()));
        self
    }

    /// Splits at blanks: for command lines that are fixed text.
    pub fn words(self, line: &str) -> Self {
        self.args(line.split_whitespace())
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it and answers what it printed; an exit code other than 0 is an error.
    pub fn run(self) -> Result<String> {
        let line = self.line();
        let output = self.output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{line}` ended with {}: {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it and answers whatever came of it.
    pub fn output(self) -> Result<Output> {
        let line = self.line();
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{line}`"))?;
        let mut stdin = child.stdin.take().expect("stdin is piped above");
        let input = self.input;
        // A program that does not read its input to the end is no error of ours.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = collect(child.stdout.take().expect("stdout is piped above"));
        let stderr = collect(child.stderr.take().expect("stderr is piped above"));
        let deadline = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                child.kill()?;
                child.wait()?;
                bail!("`{line}` did not end within {} s", self.limit.as_secs());
            }
            thread::sleep(POLL);
        };
        writer.join().expect("the writer does not panic");
        let stdout = stdout.join().expect("the reader does not panic");
        let stderr = stderr.join().expect("the reader does not panic");
        Ok(Output { status, stdout, stderr })
    }

    fn line(&self) -> String {
        let mut line = self.path.display().to_string();
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error ends the output as its end would; the exit code tells the rest.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
