//! Tests that need a network or files of `/etc` for themselves run a second time, inside namespaces that
//! `unshare` makes, where this process is root.
//!
//! The test function asks [`is_inside`] first; outside it builds its programs and calls [`Rerun::run`], which
//! starts the same test program for that one test. Deliberately absent: builds inside, where there is no
//! network.
//!
//! Where the system lets nobody make namespaces, the test says so and is skipped ([`can_be_made`], also
//! for tests that only start a program in namespaces). Root can make them everywhere that tests are meant
//! to run, and a test that CI has skipped proves nothing, so both fail.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Set for the process inside.
const INSIDE: &str = "KEELSON_E2E_INSIDE";
/// What brings the loopback up, which namespaces begin without.
const LOOPBACK: &str = "ip link set lo up";

/// Whether this process is the one inside the namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A program that was built outside.
///
/// # Errors
/// When [`Rerun`] was not given it.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os(name).with_context(|| format!("{name} names no program"))?;
    Ok(PathBuf::from(path))
}

/// What to run again, and where.
#[derive(Debug)]
pub struct Rerun<'a> {
    /// The test by its whole name.
    pub test: &'a str,
    /// The namespaces besides that of users: flags of `unshare`.
    pub kinds: &'a [&'a str],
    /// A shell command that prepares them once the loopback is up; `$1` and so on are the arguments.
    pub prepare: String,
    /// Arguments of the command.
    pub arguments: Vec<PathBuf>,
    /// What [`program`] finds inside.
    pub programs: Vec<(&'a str, PathBuf)>,
}

impl Rerun<'_> {
    /// Runs the test inside.
    ///
    /// # Errors
    /// When it fails there, or when it cannot be run and should be.
    pub fn run(self) -> Result<()> {
        if !can_be_made(self.test, self.kinds, LOOPBACK)? {
            return Ok(());
        }
        let shift = format!("shift {}", self.arguments.len());
        let script = format!("{LOOPBACK}\n{}\n{shift}\nexec \"$@\"", self.prepare);
        let status = Command::new("unshare")
            .args(flags(self.kinds))
            .args(["sh", "-ec", &script, "sh"])
            .args(&self.arguments)
            .arg(std::env::current_exe().context("find the running program")?)
            .args(["--exact", self.test, "--nocapture"])
            .env(INSIDE, "1")
            .envs(self.programs)
            .status()
            .context("run `unshare`")?;
        if !status.success() {
            bail!("inside the namespaces: {status}");
        }
        Ok(())
    }
}

/// The flags of `unshare` that make namespaces of these kinds in which this user is root.
pub fn flags<'a>(kinds: &[&'a str]) -> Vec<&'a str> {
    let user = (!is_root()).then_some("--map-root-user");
    user.into_iter().chain(kinds.iter().copied()).collect()
}

/// Whether namespaces of these kinds can be made here, and this shell command be run in them; the test
/// is to be skipped if not, which is said past the harness: it would keep what a test that passes says.
///
/// # Errors
/// When they cannot be made, although the test has to be run.
pub fn can_be_made(test: &str, kinds: &[&str], command: &str) -> Result<bool> {
    let probe = Command::new("unshare").args(flags(kinds)).args(["sh", "-ec", command]).output();
    if probe.as_ref().is_ok_and(|probe| probe.status.success()) {
        return Ok(true);
    }
    if is_root() || std::env::var_os("CI").is_some() {
        bail!("`{command}` does not run in namespaces of its own, made by `unshare`: {probe:?}");
    }
    let line = format!("SKIPPED {test}: no namespaces can be made here\n");
    std::io::stderr().write_all(line.as_bytes()).context("say that the test is skipped")?;
    Ok(false)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
