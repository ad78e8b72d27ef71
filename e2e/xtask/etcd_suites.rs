//! `cargo xtask etcd-suites`: the end-to-end tests that etcd has for itself, with our programs in the place of
//! its own.
//!
//! They come as a Go module of the version that we are compared with, and are compiled as they are. Each test
//! is a process of its own, in a network and with processes of its own, so that it finds the ports that it
//! counts on and leaves nothing behind. What cannot pass stands in `e2e/peers/etcd-suites.txt` with the reason;
//! a test that is listed there and passes is a mistake as well.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use e2e::kubernetes::program::Program;
use serde_json::Value;

use crate::prerequisites;
use crate::progress::Progress;
use crate::workspace::{Profile, Workspace};

const MODULE: &str = "go.etcd.io/etcd/tests/v3";
/// The version of the peers in `e2e/peers/etcd`.
const VERSION: &str = "v3.7.3";
const SUITES: [&str; 2] = ["common", "e2e"];
const DEVIATIONS: &str = "e2e/peers/etcd-suites.txt";

/// The Go client may have to fetch and compile everything.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// The longest takes two minutes and a half on a quiet machine.
const TEST_LIMIT: &str = "600";

/// What the suites say of goroutines that they find at their end.
const LEFTOVERS: &str = "Unexpected goroutines running after all test(s).";

#[derive(Args)]
pub(crate) struct Options {
    /// Only these tests: a part of the name.
    #[arg(long)]
    only: Option<String>,
    /// Tests at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Compile our programs without optimization.
    #[arg(long)]
    dev: bool,
}

/// A test of one of the suites.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    suite: &'static str,
    name: String,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped,
    Failed,
}

/// Answers whether all went as it is written down.
pub(crate) fn run(workspace: &Workspace, progress: &Progress, options: &Options) -> Result<bool> {
    prerequisites::require_go()?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "each test gets a network of its own, which needs root"
    );
    let profile = Profile::chosen(options.dev);
    workspace.build_programs(progress, profile)?;
    let suites = Suites {
        directory: workspace.state().join("etcd-suites"),
        programs: workspace.program(profile, "etcd").parent().context("a directory")?.to_owned(),
        logs: workspace.log("etcd-suites").with_extension(""),
    };
    progress.working("compile etcd's own tests", || suites.compile())?;
    let deviations = deviations(&fs::read_to_string(workspace.join(DEVIATIONS))?)?;
    let mut tests = suites.tests()?;
    if let Some(unknown) = deviations.keys().find(|test| !tests.contains(test)) {
        bail!("{DEVIATIONS}: etcd {VERSION} has no {} {}", unknown.suite, unknown.name);
    }
    tests.retain(|test| options.only.as_ref().is_none_or(|part| test.name.contains(part)));
    let verdicts = suites.run(progress, tests, options.jobs)?;
    Ok(judge(progress, &verdicts, &deviations))
}

struct Suites {
    /// Where the module is copied to and compiled.
    directory: PathBuf,
    /// Where the programs are that are tested.
    programs: PathBuf,
    logs: PathBuf,
}

impl Suites {
    fn source(&self) -> PathBuf {
        self.directory.join("tests")
    }

    fn program(&self, suite: &str) -> PathBuf {
        self.directory.join(format!("{suite}.test"))
    }

    fn compile(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        if !self.source().exists() {
            self.fetch()?;
        }
        for suite in SUITES {
            self.go()
                .words("test -c -tags e2e -o")
                .args([self.program(suite).as_os_str(), format!("./{suite}").as_ref()])
                .run()?;
        }
        Ok(())
    }

    fn go(&self) -> Program {
        let go = Program::new("go").args(["-C".as_ref(), self.source().as_os_str()]);
        go.env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0").limit(BUILD_LIMIT)
    }

    /// Copies the module, because it is part of a repository: its file names neighbours that a module does not
    /// have, and has to be told to take those of the same version.
    fn fetch(&self) -> Result<()> {
        let fetched = Program::new("go")
            .args(["-C".as_ref(), self.directory.as_os_str()])
            .words("mod download -json")
            .args([format!("{MODULE}@{VERSION}")])
            .limit(BUILD_LIMIT)
            .run()?;
        let fetched: Value = serde_json::from_str(&fetched).context("read what go has fetched")?;
        let module = fetched["Dir"].as_str().context("go says where the module is")?;
        let copy = self.directory.join("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        Program::new("cp").args(["-r".as_ref(), module.as_ref(), copy.as_os_str()]).run()?;
        Program::new("chmod").args(["-R".as_ref(), "u+w".as_ref(), copy.as_os_str()]).run()?;
        let go = || Program::new("go").args(["-C".as_ref(), copy.as_os_str()]).words("mod edit");
        let file: Value = serde_json::from_str(&go().words("-json").run()?)?;
        for replaced in file["Replace"].as_array().into_iter().flatten() {
            let path = replaced["Old"]["Path"].as_str().unwrap_or_default();
            go().args([format!("-dropreplace={path}")]).run()?;
        }
        fs::rename(&copy, self.source()).context("put the module in its place")
    }

    fn tests(&self) -> Result<Vec<Test>> {
        let mut tests = Vec::new();
        for suite in SUITES {
            let listed = Program::new(self.program(suite)).words("-test.list .*").run()?;
            let names = listed.lines().filter(|line| line.starts_with("Test"));
            tests.extend(names.map(|name| Test { suite, name: name.to_owned() }));
        }
        Ok(tests)
    }

    fn run(
        &self,
        progress: &Progress,
        tests: Vec<Test>,
        jobs: usize,
    ) -> Result<BTreeMap<Test, Verdict>> {
        fs::create_dir_all(&self.logs)?;
        let (all, waiting) = (tests.len(), Mutex::new(tests.into_iter()));
        let verdicts = Mutex::new(BTreeMap::new());
        let lock = |waiting: &Mutex<std::vec::IntoIter<Test>>| {
            waiting.lock().unwrap_or_else(PoisonError::into_inner).next()
        };
        let work = || -> Result<()> {
            while let Some(test) = lock(&waiting) {
                let verdict = self.run_one(&test)?;
                if verdict == Verdict::Failed {
                    progress.say(&format!("  failed: {} {}", test.suite, test.name));
                }
                verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(test, verdict);
            }
            Ok(())
        };
        let done = || verdicts.lock().unwrap_or_else(PoisonError::into_inner).len();
        progress.working_with("etcd's own tests", &|| format!("{} of {all}", done()), || {
            thread::scope(|scope| {
                let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
                workers.into_iter().try_for_each(|worker| worker.join().expect("workers return"))
            })
        })?;
        Ok(verdicts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn run_one(&self, test: &Test) -> Result<Verdict> {
        let log = self.logs.join(format!("{}-{}.log", test.suite, test.name));
        let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let scratch = tempfile::tempdir().context("make a directory for a test")?;
        let inside = "ip link set lo up && exec timeout --signal=QUIT --kill-after=10 \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", inside, "sh", TEST_LIMIT])
            .arg(self.program(test.suite))
            .args(["-test.v", "-test.timeout=0", "-test.run"])
            .arg(format!("^{}$", test.name))
            .arg("-bin-dir")
            .arg(&self.programs)
            .current_dir(self.source().join(test.suite))
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let status = command.status().context("run unshare, of util-linux")?;
        Ok(verdict(&test.name, status.success(), &fs::read_to_string(&log).unwrap_or_default()))
    }
}

fn verdict(name: &str, succeeded: bool, output: &str) -> Verdict {
    let said = |verdict: &str| {
        let line = format!("--- {verdict}: {name} ");
        output.lines().any(|said| said.starts_with(&line))
    };
    // A suite looks for what still runs when all of its tests are done: for what the last one has told to
    // end and not waited for, if it is the only one. Etcd's own programs are caught like that as well.
    let only_left_something =
        output.lines().any(|line| line == "PASS") && output.contains(LEFTOVERS);
    match succeeded || only_left_something {
        true if said("PASS") => Verdict::Passed,
        true if said("SKIP") => Verdict::Skipped,
        _ => Verdict::Failed,
    }
}

/// Reads lines of `suite test: reason`.
fn deviations(text: &str) -> Result<BTreeMap<Test, String>> {
    let mut deviations = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts = line.split_once(": ").and_then(|(test, reason)| {
            let (suite, name) = test.split_once(' ')?;
            let suite = SUITES.into_iter().find(|known| *known == suite)?;
            Some((Test { suite, name: name.to_owned() }, reason.to_owned()))
        });
        let (test, reason) = parts.with_context(|| {
            format!("{DEVIATIONS} has {line:?}, which is not `SUITE TEST: REASON`")
        })?;
        deviations.insert(test, reason);
    }
    Ok(deviations)
}

fn judge(
    progress: &Progress,
    verdicts: &BTreeMap<Test, Verdict>,
    deviations: &BTreeMap<Test, String>,
) -> bool {
    let count = |wanted| verdicts.values().filter(|verdict| **verdict == wanted).count();
    let mut wrong = 0;
    for (test, verdict) in verdicts {
        let Test { suite, name } = test;
        match (verdict, deviations.get(test)) {
            (Verdict::Failed, None) => {
                progress.say(&format!("{suite} {name} failed, and should not"));
                wrong += 1;
            }
            (Verdict::Passed, Some(reason)) => {
                progress.say(&format!("{suite} {name} passed; {DEVIATIONS} says: {reason}"));
                wrong += 1;
            }
            _ => {}
        }
    }
    println!(
        "\n{} of etcd's own tests: {} passed, {} skipped themselves, {} failed, {wrong} of all not as \
         {DEVIATIONS} says",
        verdicts.len(),
        count(Verdict::Passed),
        count(Verdict::Skipped),
        count(Verdict::Failed),
    );
    wrong == 0
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_deviation_has_a_reason() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/etcd-suites.txt");
        let read = deviations(&fs::read_to_string(file).unwrap()).unwrap();
        assert!(!read.is_empty() && read.values().all(|reason| reason.len() > 10), "{read:?}");
        assert!(deviations("e2e TestX").is_err() && deviations("e3e TestX: because").is_err());
    }

    #[test]
    fn a_test_that_does_not_say_that_it_passed_has_failed() {
        let passed = "=== RUN   TestX\n--- PASS: TestX (0.1s)\n";
        assert_eq!(verdict("TestX", true, passed), Verdict::Passed);
        assert_eq!(verdict("TestX", false, passed), Verdict::Failed);
        assert_eq!(verdict("Test", true, passed), Verdict::Failed);
        assert_eq!(verdict("TestX", true, "--- SKIP: TestX (0s)\n"), Verdict::Skipped);
        assert_eq!(verdict("TestX", true, ""), Verdict::Failed);
        let left = format!("{passed}PASS\n{LEFTOVERS}\n");
        assert_eq!(verdict("TestX", false, &left), Verdict::Passed);
        assert_eq!(verdict("TestX", false, LEFTOVERS), Verdict::Failed);
    }
}
