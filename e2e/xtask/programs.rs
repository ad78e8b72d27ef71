//! Test programs: compiled by cargo, run several at a time.
//!
//! `cargo test` runs one program after the other, and ours mostly wait: for elections, time-outs and
//! other processes. So cargo only compiles them here, and says where they are.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::progress::{Progress, elapsed, last_line, telling_lines};
use crate::workspace::Workspace;

/// Those that take longest begin first, so that none of them is left alone at the end.
const LONG: [&str; 9] = [
    "scenarios",
    "differential_calls",
    "grpc_proxy_tls",
    "differential_etcdutl",
    "discovery",
    "peer_tls",
    "tls",
    "clients",
    "differential_check",
];

/// A test program, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// Cargo's name of it.
    target: String,
    /// The same, and unlike any other's.
    name: String,
    executable: PathBuf,
    /// Where cargo would run it: the directory of its package.
    directory: PathBuf,
}

impl Ord for TestProgram {
    /// In the order in which they begin.
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |program: &Self| {
            let long = LONG.iter().position(|long| *long == program.target);
            (long.unwrap_or(LONG.len()), program.name.clone())
        };
        place(self).cmp(&place(other))
    }
}

impl PartialOrd for TestProgram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A program that is to run, for one step.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) step: String,
    pub(crate) program: TestProgram,
    pub(crate) arguments: Vec<&'static str>,
}

/// How a program went.
pub(crate) struct Outcome {
    pub(crate) step: String,
    pub(crate) name: String,
    pub(crate) output: String,
    pub(crate) succeeded: bool,
}

/// Compiles what `cargo test` would run for this command line.
pub(crate) fn compile(
    workspace: &Workspace,
    progress: &Progress,
    name: &str,
    line: &[&str],
) -> Result<Vec<TestProgram>> {
    let mut whole = vec!["test", "--no-run", "--message-format=json-render-diagnostics"];
    whole.extend(line);
    let (what, log) = (format!("compile {name}"), workspace.log(&format!("{name}-compile")));
    programs_of(&progress.running(&what, &log, &mut workspace.cargo(&whole))?)
}

/// Reads cargo's messages: a JSON object a line, between the lines that are for people.
fn programs_of(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("read a message of cargo")?;
        let (true, Some(executable)) =
            (message["profile"]["test"] == true, message["executable"].as_str())
        else {
            continue;
        };
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let directory = manifest.parent().context("a manifest lies in a directory")?;
        let package = directory.file_name().unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        programs.push(TestProgram {
            target: target.to_owned(),
            name: format!("{package}-{kind}-{target}"),
            executable: executable.into(),
            directory: directory.to_owned(),
        });
    }
    programs.sort();
    Ok(programs)
}

/// Test programs that run together. What they run themselves is up to date.
pub(crate) struct Batch<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) progress: &'a Progress,
    pub(crate) name: &'a str,
    /// How many programs run at a time.
    pub(crate) at_once: usize,
    /// Whether what else runs on the machine comes first: at the processors, and at the disk.
    pub(crate) gives_way: bool,
}

impl Batch<'_> {
    /// Runs all of them, in the order of programs. One that fails does not keep the others from running; what
    /// it wrote is shown, and kept like that of all others in a file of its own.
    pub(crate) fn run(&self, mut tasks: Vec<Task>) -> Result<Vec<Outcome>> {
        for step in tasks.iter().map(|task| &task.step).collect::<BTreeSet<_>>() {
            let logs = self.logs(step);
            if logs.exists() {
                fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
            }
            fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        }

        let all = tasks.len();
        tasks.sort_by(|one, other| one.program.cmp(&other.program));
        let waiting = Mutex::new(tasks.into_iter());
        let running = Mutex::new(BTreeMap::new());
        let outcomes = Mutex::new(Vec::new());
        let work = || -> Result<()> {
            loop {
                let Some(task) = lock(&waiting).next() else { return Ok(()) };
                let name = task.program.name.clone();
                lock(&running).insert(name.clone(), self.log_of(&task));
                let outcome = self.run_one(task)?;
                lock(&running).remove(&name);
                lock(&outcomes).push(outcome);
            }
        };
        let how_far = || {
            let running = lock(&running);
            let names: Vec<&str> = running.keys().map(String::as_str).collect();
            match running.first_key_value() {
                Some((name, log)) if running.len() == 1 => {
                    format!("{name}: {}", last_line(log).unwrap_or_default())
                }
                _ => format!("{} of {all} done; {}", lock(&outcomes).len(), names.join(", ")),
            }
        };
        self.progress.working_with(self.name, &how_far, || {
            thread::scope(|scope| {
                let workers: Vec<_> = (0..self.at_once).map(|_| scope.spawn(work)).collect();
                workers.into_iter().try_for_each(|worker| worker.join().expect("workers return"))
            })
        })?;
        let mut outcomes: Vec<Outcome> = mem::take(&mut *lock(&outcomes));
        outcomes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(outcomes)
    }

    fn run_one(&self, task: Task) -> Result<Outcome> {
        let log = self.log_of(&task);
        let Task { step, program, arguments } = task;
        let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(&program.executable);
        let mut scratch = None;
        if self.gives_way {
            command = Command::new("nice");
            command.args(["-n", "10"]).arg(&program.executable);
            scratch = in_memory()?;
        }
        if let Some(scratch) = &scratch {
            command.env("TMPDIR", scratch.path());
        }
        command.args(arguments).current_dir(&program.directory);
        command.env("CARGO_MANIFEST_DIR", &program.directory);
        command.env("KEELSON_STATE", self.workspace.state());
        command.env(e2e::peers::BUILT, "1");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let (began, name) = (Instant::now(), program.name);
        let status = command.status().with_context(|| format!("run {name}"))?;
        let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if !status.success() {
            let (took, log) = (elapsed(began), log.display());
            self.progress.say(&format!("FAILED {name}: {status} after {took}; see {log}"));
            telling_lines(&output).iter().for_each(|line| println!("          | {line}"));
        }
        Ok(Outcome { step, name, output, succeeded: status.success() })
    }

    fn logs(&self, step: &str) -> PathBuf {
        self.workspace.log(step).with_extension("")
    }

    fn log_of(&self, task: &Task) -> PathBuf {
        self.logs(&task.step).join(format!("{}.log", task.program.name))
    }
}

impl TestProgram {
    pub(crate) fn target(&self) -> &str {
        &self.target
    }
}

/// A directory of memory, if the machine has one with room for the members of a test program. None of them
/// asks what a disk keeps when the power fails; that is the simulator's.
fn in_memory() -> Result<Option<TempDir>> {
    const MEMORY: &str = "/dev/shm";
    const ROOM: u64 = 6 << 30;
    match rustix::fs::statvfs(MEMORY) {
        Ok(space) if space.f_bavail * space.f_frsize >= ROOM => {
            let directory = tempfile::Builder::new().prefix("keelson-").tempdir_in(MEMORY);
            Ok(Some(directory.context("make a directory in /dev/shm")?))
        }
        _ => Ok(None),
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = "   Compiling e2e v0.0.0\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/etcd\",\"profile\":{\"test\":false}}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/wire-1\",\"profile\":{\"test\":true},\
            \"manifest_path\":\"/w/e2e/Cargo.toml\",\"target\":{\"kind\":[\"test\"],\"name\":\"wire\"}}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        let found = programs_of(messages).unwrap();
        let wire = TestProgram {
            target: "wire".to_owned(),
            name: "e2e-test-wire".to_owned(),
            executable: "/t/wire-1".into(),
            directory: "/w/e2e".into(),
        };
        assert_eq!(found, [wire]);
    }
}
